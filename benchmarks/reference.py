"""The reference comparison: which memory should an agent have? Every POPGym task, tuned alike, of one size.

    python -m benchmarks.reference [--phases tune table anchor] [--jobs 2] [--out runs/reference] [--results DIR]

Takes days on two cores. Stop it whenever you like, and repeat the command to go on. A finished cell is a line of
`cells.csv` in the results, with its curves beside it, and is not run again where it has one: the run folders in `--out`
serve to resume what was broken, and to look into.

- *tune*: each column the same six settings (step size and entropy) on four tasks, two seeds, a million steps.
- *table*: all 48 tasks with each column's best setting, five other seeds, two million steps. First the easy level of
  every task, then the medium, then the hard one, labyrinths last; all columns of a task before the next one.
- *anchor*: six tasks and four columns with three seeds and 15 million steps, the published number: do ranks hold?

All is PPO by the preset `popgym-fast`. Widths are such that every memory has as many parameters as a GRU of width 64
(`--match params`). The column `none` is an MLP of that size, the column `full` the same MLP in the task with nothing
hidden (see `engram.envs.popgym.full_information`).
"""

import argparse
import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engram.agents.registry import spec_of
from engram.atomic_files import replacing
from engram.configs import store
from engram.configs.presets import PRESETS
from engram.envs.popgym import FULL, POPGYM
from engram.errors import EngramError
from engram.experiments.cells import Cell, make_folder
from engram.experiments.launch import run_cells
from engram.experiments.match import matched, measured, width_of
from engram.experiments.options import Output
from engram.kernels.malloc import keep_freed_memory
from engram.regular_files import read_json
from engram.training.folder import write_atomically
from engram.training.metrics import read_metrics

PRESET = "popgym-fast"
NONE, EVERYTHING = "none", "full"
MEMORIES = (
    "gru",
    "lstm",
    "mingru",
    "s5",
    "lru",
    "mamba",
    "mamba2",
    "deltanet",
    "attention",
    "framestack",
)
COLUMNS = (*MEMORIES, NONE, EVERYTHING)
"""The first one's size is that of all."""

SETTINGS = tuple((rate, entropy) for rate in (7e-4, 2e-3, 5e-3) for entropy in (0.003, 0.02))
"""Step sizes and weights of the entropy that are tried."""
TUNING_TASKS = ("AutoencodeEasy", "RepeatPreviousMedium", "CountRecallEasy", "NoisyPositionOnlyPendulumEasy")
"""Tasks of the search. Their rows are in the table and left out of what is said of all tasks."""
ANCHOR_TASKS = (
    "RepeatPreviousMedium",
    "RepeatFirstMedium",
    "AutoencodeMedium",
    "ConcentrationEasy",
    "HigherLowerEasy",
    "NoisyPositionOnlyCartPoleMedium",
)
ANCHOR_COLUMNS = ("gru", "s5", "mamba2", NONE)

BUDGETS: dict[str, dict[str, int]] = {
    "tune": {"seed": 100, "seeds": 2, "total_steps": 1_000_000},
    "table": {"seed": 0, "seeds": 5, "total_steps": 2_000_000},
    "anchor": {"seed": 0, "seeds": 3, "total_steps": 15_000_000},
}
PHASES = tuple(BUDGETS)

RESULTS = Path(__file__).parent / "measured" / "reference"
CELLS, CURVES = "cells.csv", "curves"
KEY = ("phase", "task", "column", "learning_rate", "entropy")
NUMBERS = ("env_steps", "steps_per_s", "wall_s", "compile_s")
FIELDS = (*KEY, "returns", "best", "width", "params", "flops", "state_bytes", *NUMBERS, "commit", "jax", "platform")
"""Fields of `cells.csv`. `returns` are final evaluation returns, one per seed; `best` is POPGym's measure, the running
maximum of training returns."""

Key = tuple[str, ...]
Row = dict[str, str]


@dataclass(frozen=True)
class Planned:
    """One cell of the comparison."""

    phase: str
    task: str
    column: str
    learning_rate: float
    entropy: float

    @property
    def key(self) -> Key:
        return (self.phase, self.task, self.column, f"{self.learning_rate:g}", f"{self.entropy:g}")

    @property
    def env(self) -> str:
        return f"{'popgym-full' if self.column == EVERYTHING else 'popgym'}/{self.task}"

    def cell(self, out: Path) -> Cell:
        """The run that it is."""
        config = store.override(
            replace(sized()[self.column], env=self.env, **BUDGETS[self.phase]),
            {"ppo.learning_rate": self.learning_rate, "ppo.entropy": self.entropy, "ppo.entropy_end": self.entropy},
        )
        return Cell(spec_of(config).resolve(config), out / "-".join(self.key), PRESET)


@cache
def sized() -> dict[str, Any]:
    """The experiment of each column, all of one size."""
    memories = {column: NONE if column == EVERYTHING else column for column in COLUMNS}
    return matched({column: replace(PRESETS[PRESET], memory=name) for column, name in memories.items()}, "params")


def tasks() -> list[str]:
    """All tasks: one level after the other, families in turn; last the labyrinths, which need no memory."""
    levels = [[name for name in POPGYM if name.endswith(level)] for level in ("Easy", "Medium", "Hard")]
    return sorted((name for level in levels for name in level), key=lambda name: name not in FULL)


def is_there(task: str, column: str) -> bool:
    """Whether there is such a cell: labyrinths have no twin that hides nothing."""
    return column != EVERYTHING or task in FULL


def planned(phases: tuple[str, ...], rows: dict[Key, Row]) -> Iterator[Planned]:
    """The cells of some phases, in the order in which they are run. Those of the table need the search's results, and
    are left out for a column where these are not all there."""
    if "tune" in phases:
        for task in TUNING_TASKS:
            for column in COLUMNS:
                yield from (Planned("tune", task, column, *setting) for setting in SETTINGS)
    best = winners(rows)
    for phase, names, columns in (("table", tasks(), COLUMNS), ("anchor", ANCHOR_TASKS, ANCHOR_COLUMNS)):
        for task in names if phase in phases else ():
            yield from (
                Planned(phase, task, column, *best[column])
                for column in columns
                if column in best and is_there(task, column)
            )


def winners(rows: dict[Key, Row]) -> dict[str, tuple[float, float]]:
    """The best setting of each column whose search is complete: the greatest mean over tasks of final evaluation
    returns, which lie in [-1, 1] in all of them. One that diverged in any is the worst."""
    found = {}
    for column in COLUMNS:
        scores = {}
        for setting in SETTINGS:
            cells = [rows.get(Planned("tune", task, column, *setting).key) for task in TUNING_TASKS]
            if None not in cells:
                score = np.mean([np.mean(seeds(row["returns"])) for row in cells if row])
                scores[setting] = -np.inf if np.isnan(score) else score
        if len(scores) == len(SETTINGS):
            found[column] = max(scores, key=lambda setting: scores[setting])
    return found


# ------------------------------------------------------------------------------------------------------------- results


def seeds(numbers: str) -> np.ndarray:
    """A field with one number per seed."""
    return np.array([float(number) for number in numbers.split()])


def read(results: Path = RESULTS) -> dict[Key, Row]:
    """The finished cells."""
    path = results / CELLS
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}


def curve_file(results: Path, phase: str, task: str) -> Path:
    return results / CURVES / f"{phase}-{task}.csv.gz"


def read_curves(path: Path) -> list[Row]:
    """The curves of all cells of a task: for each seed, training returns and, where measured, evaluation returns."""
    if not path.exists():
        return []
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


CURVE_FIELDS = ("column", "learning_rate", "entropy", "env_steps", "train", "eval")


def collect(cells: dict[Planned, Cell], results: Path) -> None:
    """Adds finished cells to the results, and those that diverged: they would again."""
    rows = read(results)
    new = {p: cell for p, cell in cells.items() if p.key not in rows and (cell.is_finished or cell.divergence)}
    for plan, cell in new.items():
        lines = read_metrics(cell.folder / "metrics.jsonl")
        add_curves(curve_file(results, plan.phase, plan.task), plan, lines)
        rows[plan.key] = row_of(plan, cell, lines)
    if new:
        write_atomically(results / CELLS, to_csv(FIELDS, sorted(rows.values(), key=place)))


def row_of(plan: Planned, cell: Cell, lines: list[dict[str, Any]]) -> Row:
    """A cell as a line; its scores are no numbers where it diverged."""
    summary, versions = cell.summary or {}, read_json(cell.folder / "versions.json")
    sizes = measured(cell.config)
    scores = cell.scores() or [None] * cell.config.seeds
    returns = np.array([line["train/return"] for line in lines if "train/return" in line], float)
    best = np.fmax.reduce(returns, axis=0) if summary else scores  # over the numbers that there are
    return {
        **dict(zip(KEY, plan.key, strict=True)),
        "returns": words(scores),
        "best": words(best),
        "width": str(width_of(cell.config)),
        "params": str(sizes.params),
        "flops": str(sizes.flops),
        "state_bytes": str(sizes.state),
        **{name: str(summary.get(name, "")) for name in NUMBERS},
        "commit": str(versions.get("git_commit"))[:12],
        "jax": versions["packages"]["jax"],
        "platform": versions["platform"],
    }


def add_curves(path: Path, plan: Planned, lines: list[dict[str, Any]]) -> None:
    """Adds the curves of a cell to the file of its task."""
    mine = dict(zip(("column", "learning_rate", "entropy"), plan.key[2:], strict=True))
    rows = [row for row in read_curves(path) if any(row[name] != mine[name] for name in mine)]
    for line in lines:
        points = {"train": line.get("train/return"), "eval": line.get("eval/return")}
        rows.append(
            {**mine, "env_steps": str(line["env_steps"]), **{name: words(p) if p else "" for name, p in points.items()}}
        )
    text = to_csv(CURVE_FIELDS, sorted(rows, key=lambda row: COLUMNS.index(row["column"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a time in its head, the same curves are the same bytes.
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(text.encode(), mtime=0))


def words(numbers: Any) -> str:
    """One number per seed, as a field."""
    return " ".join("nan" if number is None or np.isnan(number) else f"{number:.4f}" for number in numbers)


def to_csv(fields: tuple[str, ...], rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def place(row: Row) -> tuple[Any, ...]:
    """Where a line stands."""
    order = (PHASES.index(row["phase"]), [*POPGYM].index(row["task"]), COLUMNS.index(row["column"]))
    return (*order, float(row["learning_rate"]), float(row["entropy"]))


def run(plans: list[Planned], out: Path, results: Path, jobs: int) -> list[Cell]:
    """Runs what is not among the results yet. Returns the cells that failed."""
    rows = read(results)
    cells = {plan: plan.cell(out) for plan in plans if plan.key not in rows}
    collect(cells, results)
    run_cells([*cells.values()], Output(quiet=True), jobs, lambda: collect(cells, results))
    return [cell for cell in cells.values() if cell.failure and not cell.divergence]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/reference"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    keep_freed_memory()
    failed: list[Cell] = []
    try:
        make_folder(arguments.out)
        for phase in PHASES:
            if phase in arguments.phases:
                plans = [*planned((phase,), read(arguments.results))]
                failed += run(plans, arguments.out, arguments.results, arguments.jobs)
    except EngramError as error:
        parser.exit(error.exit_code, f"{error}\n")
    if failed:
        parser.exit(1, "".join(f"failed: {cell.folder.name}: {cell.failure}\n" for cell in failed))


if __name__ == "__main__":
    main()
