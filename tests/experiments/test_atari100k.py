"""The benchmark Atari 100k: its arithmetic against published numbers, and its tables of runs that are faked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from engram.configs.presets import PRESETS
from engram.configs.store import describe
from engram.errors import BadRequest, Interrupted
from engram.experiments import atari100k, cells
from engram.experiments.atari100k import Options
from engram.experiments.launch import run_cells
from engram.experiments.options import Output
from engram.training.statistics import summarise

PRESET = PRESETS["atari100k"]
AGGREGATES = {
    "random": (0.000, 0.000, 0.000),
    "human": (1.000, 1.000, 1.000),
    "Drama": (1.049, 0.270, 0.416),
    "STORM": (1.222, 0.425, 0.606),
    "DreamerV3": (1.247, 0.494, 0.543),
    "IRIS": (1.046, 0.289, 0.543),
    "TWM": (0.956, 0.505, 0.530),
    "REM": (1.222, 0.280, 0.725),
    "DIAMOND": (1.459, 0.373, 0.757),
    "TWISTER": (1.621, 0.773, 0.746),
    "Simulus": (1.645, 0.982, 1.091),
    "EfficientZero": (1.943, 1.090, 1.047),
    "BBF": (2.247, 0.917, 1.139),
}
"""Mean, median and interquartile mean over games, from unrounded scores; mean and median as their authors print."""


def table(out: Path) -> dict[str, list[str]]:
    """Rows of `table.md` by their first cell, the first of a name."""
    rows: dict[str, list[str]] = {}
    for line in (out / "table.md").read_text().splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
            rows.setdefault(name, cells)
    return rows


# ---------------------------------------------------------------------------------------------------- published scores


def test_aggregates_of_the_table_are_the_published_ones():
    scores = atari100k.published()
    assert set(scores) == set(AGGREGATES)
    for name, expected in AGGREGATES.items():
        assert list(scores[name]) == list(atari100k.ATARI_100K)
        games = list(atari100k.normalise(scores[name], scores).values())
        found = [atari100k.AGGREGATES[kind](games) for kind in ("mean", "median", "IQM of game means")]
        np.testing.assert_allclose(found, expected, atol=0.002, err_msg=name)


# ------------------------------------------------------------------------------------------------- games x seeds, faked

SCORES = {("Boxing", 3): 12.1, ("Boxing", 4): 24.1, ("Pong", 3): -20.7, ("Pong", 4): 14.6}
"""Human-normalised 1, 2, 0, 1."""


@pytest.fixture
def played(monkeypatch):
    """Runs that are not trained."""
    monkeypatch.setattr(cells, "train_apart", play)


def play(config, preset, folder, output, *_):
    """Stands in for a training process: the summary of one which earns `SCORES`, or a failure."""
    game = config.env.removeprefix("atari/").partition("?")[0]
    if (game, config.seed) not in SCORES:
        return "exit code 3: training diverged"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(describe(preset, config)))
    (folder / "metrics.jsonl").write_text('{"env_steps": 99000}\n{"env_steps": 100000, "eval/finished": [1.0]}\n')
    result = summarise([SCORES[game, config.seed]])
    numbers = {"seeds": 1, "env_steps": 100_000, "compile_s": 60.0, "wall_s": 540.0, "steps_per_s": 185.2}
    (folder / "summary.json").write_text(json.dumps({**numbers, "eval_return": result, "train_return": result}))
    return None


def benchmark(out, *games, seeds, seed, **options):
    """Reports of the published preset on these games."""
    return atari100k.atari100k(replace(PRESET, seed=seed), "atari100k", Options(games, seeds, out=out, **options))


def test_table_of_games_and_seeds(tmp_path, played):
    """Numbers by hand; published ones are taken over the same two games."""
    assert not benchmark(tmp_path, "Pong", "Boxing", seeds=2, seed=3)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"Boxing": [12.1, 24.1], "Pong": [-20.7, 14.6]}
    rows = table(tmp_path)
    drama = rows["game"].index("Drama")
    assert rows["Boxing"][2:4] == ["18.1** (12.1, 24.1)", "1.500"]
    assert rows["Pong"][2:4] == ["-3** (-20.7, 14.6)", "0.500"]
    # Two runs a game, one apart: Satterthwaite's 2 degrees of freedom, 1 +- 4.303 x sqrt(2 x 0.25) / 2.
    assert rows["HNS mean"][2] == "1.000** [-0.521, 2.521] (n = 4)"
    assert rows["HNS IQM of runs"][2].startswith("1.000**")
    assert rows["HNS mean"][drama] == f"{(77.9 / 12 + 35.7 / 35.3) / 2:.3f}"
    text = (tmp_path / "table.md").read_text()
    assert "Episodes of an evaluation: 100." in text
    assert "| Pong | 2 | 10.0 | 185.2 |" in text
    assert "not comparable" not in text


def test_a_run_whose_metrics_lost_lines_is_named(tmp_path, played):
    benchmark(tmp_path, "Pong", seeds=1, seed=3)
    (tmp_path / "Pong" / "seed3" / "metrics.jsonl").write_text('{"env_steps": 99000}\n')
    with pytest.raises(BadRequest, match=r"metrics\.jsonl tells of no evaluation"):
        atari100k.results_in(tmp_path)


def test_failed_runs_are_named_and_others_go_on(tmp_path, played):
    failures = benchmark(tmp_path, "Boxing", "Krull", "Pong", seeds=1, seed=4)
    assert failures == {"Krull, seed 4": "exit code 3: training diverged"}
    assert "- **failed**: Krull, seed 4: exit code 3: training diverged" in (tmp_path / "table.md").read_text()
    assert set(json.loads((tmp_path / "scores.json").read_text())) == {"Boxing", "Pong"}
    assert table(tmp_path)["HNS mean"][2] == "1.500** (n = 2)", "one run a game has no interval"


def test_no_run_begins_when_time_is_up(tmp_path):
    with pytest.raises(Interrupted, match="repeat the command"):
        benchmark(tmp_path, "Pong", seeds=1, seed=0, hours=0.0)
    assert not list(tmp_path.glob("Pong/*"))


def test_time_stops_a_running_run(tmp_path):
    """Even one that does not listen for signals yet; it would train for days."""
    cell = cells.Cell(replace(PRESET, total_steps=10**8), tmp_path / "run", "atari100k")
    with pytest.raises(Interrupted):
        run_cells([cell], Output(), seconds=0.2)
    assert cell.state == "not run", "it has not failed"
