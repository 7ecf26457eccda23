"""`benchmarks.popgym_easy`: what is kept of finished cells, and what beats `none`."""

import json
from typing import Any

from benchmarks import popgym_easy
from engram.configs.presets import PRESETS
from engram.experiments.cells import Cell


def test_finished_cells_are_kept_once_and_compared_seed_by_seed(tmp_path):
    scores = {"none": [0.1, 0.2, -0.1], "gru": [0.3, 0.21, 0.9], "s5": [0.9, 0.9, 0.2], "lru": None}
    cells, task = [], popgym_easy.TASKS[1]
    for memory, each in scores.items():
        config: Any = PRESETS["debug"]
        config = config.__class__(**{**vars(config), "memory": memory, "env": task})
        cells.append(Cell(config, tmp_path / memory))
        if each is not None:
            cells[-1].folder.mkdir()
            result = {"per_seed": each, "mean": None}
            summary = {"seeds": 3, "env_steps": 1000, "steps_per_s": 10.0, "wall_s": 1.0, "compile_s": 2.0}
            summary |= {"eval_return": result, "train_return": result}
            (cells[-1].folder / "summary.json").write_text(json.dumps(summary))
    path = tmp_path / "results.csv"
    popgym_easy.collect(cells[:2], path)
    popgym_easy.collect(cells, path)
    rows = popgym_easy.read(path)
    assert [(row["memory"], row["task"]) for row in rows] == [("none", task), ("gru", task), ("s5", task)]
    assert popgym_easy.beats_none(rows, "gru", task)
    assert not popgym_easy.beats_none(rows, "s5", task), "one seed is no better than the best of none"
    assert not popgym_easy.beats_none(rows, "lru", task)
    assert "| `gru` |  | 0.470 (0.30, 0.21, 0.90) * |" in popgym_easy.table(rows)
