"""Tables of comparisons, of runs that are faked: what stands beside a mean, stars, and the row over tasks."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engram.configs.presets import PRESETS
from engram.experiments.cells import Cell
from engram.experiments.compare import draw_bars, draw_profiles
from engram.experiments.tables import aggregates_table, csv_table, latex_table, markdown_table, scores_table


def cells_of(out: Path, scores: Mapping[str, Mapping[str, Sequence[float | None] | None]]) -> list[Cell]:
    """Cells of a column and a task with these final evaluations per seed; None: it has not run."""
    cells = []
    for memory, tasks in scores.items():
        for env, per_seed in tasks.items():
            config: Any = replace(PRESETS["debug"], env=env, memory=memory)
            cell = Cell(config, out / f"{env.replace('/', '-')}-{memory}")
            if per_seed is not None:
                cell.folder.mkdir(parents=True)
                summary: dict[str, Any] = {"seeds": len(per_seed), "env_steps": 1000, "steps_per_s": 10.0}
                summary |= {"wall_s": 60.0, "compile_s": 0.0, "train_return": {"per_seed": [0.0], "mean": 0.0}}
                summary |= {"eval_return": {"per_seed": per_seed, "mean": None}}
                (cell.folder / "summary.json").write_text(json.dumps(summary))
            cells.append(cell)
    return cells


def rows_of(cells: list[Cell]) -> dict[str, list[str]]:
    """Cells of the table by the first of their row, in the order of the columns."""
    lines = [line for line in markdown_table(cells).splitlines() if line.startswith("| ")]
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in rows}


A, B = "popgym/RepeatFirstEasy", "gymnax/CartPole-v1"


def test_scales_of_tasks_do_not_weigh(tmp_path):
    """One column has the best of a task in [-1, 1] and is a little worse where returns are hundreds."""
    scores = {"gru": {A: [1.0, 1.0, 1.0], B: [400.0, 450.0, 500.0]}, "s5": {A: [-1.0] * 3, B: [520.0, 530.0, 540.0]}}
    cells = cells_of(tmp_path, scores)
    gru, s5 = rows_of(cells)["**all** (normalised)"]
    # Of [400, 540] the means are 50 / 140 and 130 / 140; the intervals are half of those of B, with its 2 degrees.
    assert gru == "0.679 [0.235, 1.122] (n = 6 in 2 tasks)"
    assert s5 == "0.464 [0.376, 0.553] (n = 6 in 2 tasks)"
    text = markdown_table(cells)
    assert "0 for the worst and 1 for the best seed of any column in each task" in text
    assert rows_of(cells)[B] == ["450.000 [325.793, 574.207] (n = 3)", "530.000 [505.159, 554.841] (n = 3)"]


def test_registered_play_is_the_scale_where_it_is_known(tmp_path):
    """Random play and a human's of Pong and Boxing, as published: one column is enough."""
    cells = cells_of(tmp_path, {"gru": {"atari/Pong": [14.6, -20.7], "atari/Boxing": [12.1, 12.1]}})
    assert rows_of(cells)["**all** (normalised)"][0].startswith("0.750 [")
    assert "0 for random play and 1 for the reference" in markdown_table(cells)
    clipped = cells_of(tmp_path / "b", {"gru": {"atari/Pong?reward_clip=true": [14.6], "atari/Boxing": [12.1]}})
    assert "**all** (normalised)" not in rows_of(clipped)


@pytest.mark.parametrize("other", [None, [520.0, None]])
def test_without_a_common_scale_there_is_no_row_over_tasks(tmp_path, other):
    cells = cells_of(tmp_path, {"gru": {A: [1.0, 1.0], B: [400.0, 450.0]}, "s5": {A: [-1.0, 1.0], B: other}})
    assert not [row for row in rows_of(cells) if "all" in row]
    assert "No row over all tasks: it needs two columns" in markdown_table(cells)
    three = cells_of(
        tmp_path / "c",
        {"gru": {A: [1.0], B: [4.0]}, "s5": {A: [-1.0], B: other}, "lru": {A: [0.0], B: [8.0]}},
    )
    half = "0.500 (n = 2 in 2 tasks)"
    assert rows_of(three)["**all** (normalised)"] == [half, "incomplete", half]


def test_tasks_in_which_all_are_equal_favour_none(tmp_path):
    cells = cells_of(tmp_path, {"gru": {A: [1.0, 1.0], B: [3.0, 3.0]}, "s5": {A: [1.0, 1.0], B: [4.0, 4.0]}})
    assert rows_of(cells)["**all** (normalised)"] == [
        "0.250 [0.250, 0.250] (n = 4 in 2 tasks)",
        "0.750 [0.750, 0.750] (n = 4 in 2 tasks)",
    ]


def test_seeds_without_a_number_are_counted(tmp_path):
    cells = cells_of(tmp_path, {"gru": {A: [1.0, None, 3.0]}, "s5": {A: [None, None, None]}, "lru": {A: None}})
    assert rows_of(cells)[A] == ["2.000 [-10.706, 14.706] (n = 2 of 3)", "no number (n = 0 of 3)", "not run"]
    assert "the others finished no episode" in markdown_table(cells)
    first, second, third = csv.DictReader(csv_table(cells).splitlines())
    assert (first["n"], first["missing"], first["mean"], first["per_seed"]) == ("2", "1", "2.0", "1 none 3")
    assert (second["state"], second["mean"], second["per_seed"]) == ("done", "", "none none none")
    assert third["state"] == "not run"
    path = cells[0].folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eval_finished": [1.0, 0.0, 0.5]}))
    assert f"**unfinished**: {A} with gru: 50.0% of the evaluation's episodes ended" in markdown_table(cells)
    draw_bars(cells, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000


FIVE = [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("none", "others", "stars"),
    [
        (FIVE, [[1.0, 1.1, 1.2, 1.3, 1.4], FIVE], [True, False]),
        (FIVE[:4], [[1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 2.1]], [False, False]),  # too few of the one or of the other
        (FIVE, [[1.0, 1.1, 1.2, 1.3], [1.0, 1.1, 1.2, None, 1.4]], [False, False]),
        # p = 0.031 each: alone it has a star, beside another it has none.
        (FIVE, [[0.2, 0.3, 0.4, 0.5, 0.62]], [True]),
        (FIVE, [[0.2, 0.3, 0.4, 0.5, 0.62], FIVE], [False, False]),
        (FIVE, [None, [1.0, 1.1, 1.2, 1.3, 1.4]], [False, True]),
    ],
)
def test_stars(tmp_path, none, others, stars):
    columns = dict(zip(("gru", "s5"), others, strict=False))
    cells = cells_of(tmp_path, {"none": {A: none}, **{memory: {A: scores} for memory, scores in columns.items()}})
    first, *rest = rows_of(cells)[A]
    assert not first.endswith("*")
    assert [cell.endswith(" *") for cell in rest] == stars


def test_what_is_said_of_all_tasks(tmp_path):
    """Two tasks in which gru beats s5 in all pairs of the first and in half of those of the second."""
    scores = {"gru": {A: [0.8, 1.0], B: [100.0, 0.0]}, "s5": {A: [0.0, 0.2], B: [50.0, 50.0]}}
    cells = cells_of(tmp_path, scores)
    table = aggregates_table(cells)
    gru, s5 = (
        [word.strip() for word in line.strip("|").split("|")]
        for line in table.splitlines()
        if line[:5] in ("| gru", "| s5 ")
    )
    # On scales from the worst to the best seed: 0.8 1 and 1 0 against 0 0.2 and 0.5 0.5.
    assert [word.split(" ")[0] for word in gru[1:5]] == ["0.900", "0.700", "0.300", "1.250"]
    assert [word.split(" ")[0] for word in s5[1:5]] == ["0.350", "0.300", "0.700", "1.750"]
    assert gru[5] == ""  # the column that others are compared to, without one of none
    assert s5[5].startswith("0.250 [")
    assert aggregates_table(cells_of(tmp_path / "b", {"gru": {A: [1.0, 2.0]}, "s5": {A: [1.0, 2.0]}})) == ""
    assert aggregates_table(cells_of(tmp_path / "c", {"gru": {A: [1.0], B: [1.0]}, "s5": {A: [1.0], B: [2.0]}})) == ""


def test_profiles_are_drawn_where_tasks_have_a_common_scale(tmp_path):
    scores = {"gru": {A: [0.8, 1.0], B: [100.0, 0.0]}, "s5": {A: [0.0, 0.2], B: [50.0, 50.0]}}
    cells = cells_of(tmp_path, scores)
    draw_profiles(cells, tmp_path / "profiles.svg")
    assert (tmp_path / "profiles.svg").read_text().count("<path") > 2
    draw_profiles([cells[0], cells[2]], tmp_path / "one.png")  # one task
    assert not (tmp_path / "one.png").exists()


def test_latex_has_the_best_mean_in_bold_and_no_mark_of_its_own(tmp_path):
    odd = "gymnax/MemoryChain-bsuite?memory_length=5"
    table = latex_table(
        cells_of(tmp_path, {"gru": {odd: [1.0, 3.0], A: None}, "s5": {odd: [3.0, 3.0], A: [1.0, None]}})
    )
    assert (
        r"gymnax/MemoryChain-bsuite?memory\_length=5 & 2.000 [-10.706, 14.706] & \textbf{3.000} [3.000, 3.000] \\"
        in table
    )
    assert rf"{A} & -- & \textbf{{1.000}} \\" in table
    assert table.count(r"\begin{tabular}{lcc}") == table.count(r"\end{tabular}") == 1


def test_scores_are_one_line_a_seed(tmp_path):
    cells = cells_of(tmp_path, {"gru": {A: [1.0, None]}, "s5": {A: None}})
    assert [*csv.reader(scores_table(cells).splitlines())] == [
        ["env", "variant", "seed", "eval_return", "train_return"],
        [A, "gru", str(cells[0].config.seed), "1", "0"],
        [A, "gru", str(cells[0].config.seed + 1), "", ""],
    ]
