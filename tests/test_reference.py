"""The reference comparison: its plan, its choice of settings, and results that are kept and never run again."""

import csv
import gzip
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import reference, reference_report
from benchmarks.reference import COLUMNS, SETTINGS, TUNING_TASKS, Planned, planned, read, read_curves, winners
from engram.configs.presets import PRESETS
from engram.envs.popgym import FULL, POPGYM
from engram.experiments.attempts import failure_file


def searched(best: dict[str, tuple[float, float]]) -> dict:
    """Results of a whole search in which each column has this best setting."""
    plans = [
        Planned("tune", task, column, *setting) for task in TUNING_TASKS for column in best for setting in SETTINGS
    ]
    return {
        plan.key: {"returns": "0.5 0.7" if (plan.learning_rate, plan.entropy) == best[plan.column] else "0.5 0.6"}
        for plan in plans
    }


def test_each_column_is_tuned_alike():
    plans = [*planned(("tune",), {})]
    assert len(plans) == len({*plans}) == len(COLUMNS) * len(SETTINGS) * len(TUNING_TASKS)
    assert len(SETTINGS) >= 6


def test_the_winner_is_the_best_mean_over_tasks():
    best = dict.fromkeys(COLUMNS, SETTINGS[2]) | {"gru": SETTINGS[-1]}
    rows = searched(best)
    assert winners(rows) == best
    # One good task is not enough.
    rows[Planned("tune", TUNING_TASKS[0], "lstm", *SETTINGS[0]).key]["returns"] = "0.6 0.7"
    assert winners(rows)["lstm"] == SETTINGS[2]
    rows[Planned("tune", TUNING_TASKS[0], "lstm", *SETTINGS[0]).key]["returns"] = "1.0 1.0"
    assert winners(rows)["lstm"] == SETTINGS[0]


def test_a_setting_that_diverged_is_the_worst_and_not_run_again(tmp_path, monkeypatch):
    rows = searched(dict.fromkeys(COLUMNS, SETTINGS[0]))
    rows[Planned("tune", TUNING_TASKS[1], "s5", *SETTINGS[0]).key]["returns"] = "nan nan"
    assert winners(rows)["s5"] == SETTINGS[1]
    assert winners(rows)["gru"] == SETTINGS[0]

    monkeypatch.setattr(reference, "sized", lambda: {"none": replace(PRESETS["debug"], memory="none")})
    plan = Planned("tune", "RepeatFirstEasy", "none", *SETTINGS[-1])
    folder = plan.cell(tmp_path / "runs").folder
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"env_steps": 8, "train/return": [0.5, null]}\n')
    (folder / "versions.json").write_text('{"packages": {"jax": "1"}, "platform": "here", "git_commit": null}')
    failed = json.dumps({"reason": "exit code 3: training diverged in chunk 1"})
    failure_file(folder).write_text(failed)
    monkeypatch.setattr(reference, "run_cells", lambda *_: None)
    assert reference.run([plan], tmp_path / "runs", tmp_path, 1) == []
    (row,) = read(tmp_path).values()
    assert (row["returns"], row["best"], row["wall_s"]) == ("nan nan", "nan nan", "")
    failure_file(folder).write_text(failed.replace("3", "1"))
    (tmp_path / "cells.csv").unlink()
    assert reference.run([plan], tmp_path / "runs", tmp_path, 1) == [plan.cell(tmp_path / "runs")]
    assert read(tmp_path) == {}


def test_the_table_waits_for_the_search_and_has_every_task():
    rows = searched(dict.fromkeys(COLUMNS, SETTINGS[0]))
    plans = [*planned(("table",), rows)]
    assert {(plan.task, plan.column) for plan in plans} == {
        (task, column) for task in POPGYM for column in COLUMNS if column != "full" or task in FULL
    }
    levels = [plan.task[-4:] for plan in plans if plan.task in FULL]
    assert levels == sorted(levels, key=["Easy", "dium", "Hard"].index)
    assert not {plan.task for plan in plans[: len(FULL) * len(COLUMNS)]} - {*FULL}  # labyrinths last
    rows.pop(Planned("tune", TUNING_TASKS[1], "s5", *SETTINGS[3]).key)
    assert {plan.column for plan in planned(("table",), rows)} == {*COLUMNS} - {"s5"}


@pytest.mark.slow
def test_memories_are_of_one_size_within_a_tenth():
    sizes = {column: reference.measured(config).params for column, config in reference.sized().items()}
    assert all(abs(size / sizes["gru"] - 1) < 0.1 for size in sizes.values()), sizes


def test_seeds_of_the_search_are_not_those_of_the_table():
    seeds = {phase: {*range(b["seed"], b["seed"] + b["seeds"])} for phase, b in reference.BUDGETS.items()}
    assert not seeds["tune"] & (seeds["table"] | seeds["anchor"])


@pytest.mark.slow
def test_finished_cells_are_kept_and_not_run_again(tmp_path, monkeypatch):
    """Two tiny cells: results survive without the run folders, and curves are what the metrics were."""
    small = {"none": replace(PRESETS["popgym-fast+debug"], memory="none")}
    small["full"] = small["none"]
    monkeypatch.setattr(reference, "sized", lambda: small)
    monkeypatch.setitem(reference.BUDGETS, "table", {"seed": 3, "seeds": 2, "total_steps": 2048})
    plans = [Planned("table", "RepeatFirstEasy", column, 1e-3, 0.01) for column in small]
    results = tmp_path / "results"
    assert reference.run(plans, tmp_path / "runs", results, 1) == []

    rows = read(results)
    assert [*rows] == [plan.key for plan in plans]
    with (results / "cells.csv").open() as file:
        assert [row["column"] for row in csv.DictReader(file)] == ["none", "full"]
    curves = read_curves(reference.curve_file(results, "table", "RepeatFirstEasy"))
    for plan in plans:
        row, cell = rows[plan.key], plan.cell(tmp_path / "runs")
        config: Any = cell.config
        assert config.seed == 3
        assert config.ppo.entropy_end == 0.01
        np.testing.assert_allclose(reference.seeds(row["returns"]), np.array(cell.scores(), float), atol=1e-4)
        mine = [line for line in curves if line["column"] == plan.column]
        best = np.max([reference.seeds(line["train"]) for line in mine if line["train"]], axis=0)
        np.testing.assert_allclose(reference.seeds(row["best"]), best, atol=1e-4)
        last = [line["eval"] for line in mine if line["eval"]][-1]
        assert last == row["returns"]
        assert mine[-1]["env_steps"] == row["env_steps"] == "2048"

    before = (results / "cells.csv").read_bytes()
    monkeypatch.setattr(reference, "run_cells", lambda cells, *_: pytest.fail("run again") if cells else None)
    reference.run(plans, tmp_path / "elsewhere", results, 1)
    assert (results / "cells.csv").read_bytes() == before
    file = reference.curve_file(results, "table", "RepeatFirstEasy")
    assert file.read_bytes() == gzip.compress(gzip.decompress(file.read_bytes()), mtime=0)


def table_rows(scores: dict[str, dict[str, str]]) -> dict:
    """Rows of the table's phase."""
    return {
        ("table", task, column, "0.002", "0.02"): {
            **{"returns": numbers, "best": "0.9 0.9", "width": "64", "params": "33280", "flops": "67401"},
            **{"state_bytes": "256", "steps_per_s": "50000"},
        }
        for task, columns in scores.items()
        for column, numbers in columns.items()
    }


def made_up(top: str = "1.0 1.0", **others: str) -> dict[str, str]:
    return {column: others.get(column, "0.09 0.11") for column in COLUMNS} | {"full": top}


def test_gains_are_of_tasks_that_a_memory_can_win(tmp_path):
    """RepeatFirstEasy can be won; in HigherLowerEasy knowing all is worth nothing; MineSweeperEasy is not finished."""
    rows = table_rows(
        {
            "RepeatFirstEasy": made_up(gru="0.5 0.6"),
            "HigherLowerEasy": made_up(top="0.1 0.3"),
            "MineSweeperEasy": {"gru": "1.0 1.0"},
            "AutoencodeEasy": made_up(s5="1.0 1.0"),  # of the search
            "BattleshipEasy": made_up(gru="1.0 1.0"),
            "LabyrinthEscapeEasy": {column: text for column, text in made_up().items() if column != "full"},
        }
    )
    found = reference_report.scores(rows)
    assert "MineSweeperEasy" not in found
    assert "LabyrinthEscapeEasy" in found
    usable = reference_report.gains(reference_report.counted(found))
    assert [*usable] == ["RepeatFirstEasy", "BattleshipEasy"]
    np.testing.assert_allclose(usable["RepeatFirstEasy"]["gru"], [0.4 / 0.9, 0.5 / 0.9])
    assert np.mean(usable["BattleshipEasy"]["none"]) == pytest.approx(0)
    text = "\n".join(reference_report.tables(rows))
    assert "| gru | 64 | 33,280 | 67,401 | 256 | 50,000 |" in text
    assert "AutoencodeEasy (search)" in text
    assert "LabyrinthEscapeEasy (labyrinth)" in text
    # The middle half of 0.44, 0.56, 1 and 1; each run is better than each of none.
    gru = next(line for line in text.splitlines() if line.startswith("| gru |") and "[" in line)
    assert gru.split("|")[2].strip().startswith("0.778 [")
    assert gru.split("|")[6].strip().startswith("1.000 [")
    reference_report.draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
