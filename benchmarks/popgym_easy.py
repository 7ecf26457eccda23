"""Every memory on two easy tasks of POPGym, by PPO: final evaluation returns of 3 seeds after a million steps.

    python -m benchmarks.popgym_easy [--memories s5 gru ...] [--jobs 2] [--out runs/popgym-easy] [--csv FILE.csv]

RepeatPreviousEasy asks for the card of 4 steps ago at every step, CountRecallEasy how often a card was seen. The preset
is `popgym-fast`, and no memory was tuned. A finished cell is a line of the CSV file, and is not run again where it has
one. Prints a Markdown table of all that is there.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.memory_length import by_group
from engram.configs.presets import PRESETS
from engram.errors import EngramError
from engram.experiments.cells import Cell, make_folder
from engram.experiments.compare import cells_of
from engram.experiments.launch import run_cells
from engram.experiments.options import Compare, Output
from engram.kernels.malloc import keep_freed_memory
from engram.memory import MEMORIES
from engram.training.folder import write_atomically

PRESET, STEPS, SEEDS = "popgym-fast", 1_000_000, 3
TASKS = ("popgym/RepeatPreviousEasy", "popgym/CountRecallEasy")
RESULTS = Path(__file__).parent / "measured" / "popgym_easy.csv"
FIELDS = ["memory", "task", "returns", "steps_per_s", "wall_s", "compile_s"]

Row = dict[str, str]


def read(path: Path = RESULTS) -> list[Row]:
    """The lines of a file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def collect(cells: list[Cell], path: Path) -> None:
    """Adds finished cells to the file."""
    rows = {(row["memory"], row["task"]): row for row in read(path)}
    for cell in cells:
        if (summary := cell.summary) is None or (cell.label, cell.task) in rows:
            continue
        returns = " ".join(f"{score:.4f}" for score in cell.scores() if score is not None)
        numbers = {name: str(summary[name]) for name in ("steps_per_s", "wall_s", "compile_s")}
        rows[cell.label, cell.task] = {"memory": cell.label, "task": cell.task, "returns": returns, **numbers}
    order = by_group({memory for memory, _ in rows})
    lines = [",".join(FIELDS)]
    for row in sorted(rows.values(), key=lambda row: (order.index(row["memory"]), TASKS.index(row["task"]))):
        lines.append(",".join(row[name] for name in FIELDS))
    write_atomically(path, "\n".join(lines) + "\n")


def returns(rows: list[Row], memory: str, task: str) -> list[float]:
    """Final evaluation of each seed; empty where it was not run."""
    found = [row["returns"] for row in rows if (row["memory"], row["task"]) == (memory, task)]
    return [float(word) for word in found[0].split()] if found else []


def beats_none(rows: list[Row], memory: str, task: str) -> bool:
    """Whether every seed is above every seed of `none`: by chance this is one of 20 cases."""
    scores, base = returns(rows, memory, task), returns(rows, "none", task)
    return bool(scores and base) and min(scores) > max(base)


def table(rows: list[Row]) -> str:
    """Rows are memories: mean and seeds in both tasks; a star where every seed is above every seed of `none`."""
    names = [name for name in by_group({row["memory"] for row in rows}) if name != "none"]
    lines = ["| memory | " + " | ".join(task.partition("/")[2] for task in TASKS) + " |", "|---" * 3 + "|"]
    for name in ["none", *names]:
        words = []
        for task in TASKS:
            scores = returns(rows, name, task)
            each = ", ".join(f"{score:.2f}" for score in scores)
            star = " *" if beats_none(rows, name, task) else ""
            words.append(f"{np.mean(scores):.3f} ({each}){star}" if scores else "")
        lines.append(f"| `{name}` | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", default=["none", *by_group({*MEMORIES} - {"none"})], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/popgym-easy"))
    parser.add_argument("--csv", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        options = Compare(memories=tuple(arguments.memories), envs=TASKS, seeds=SEEDS, jobs=arguments.jobs)
        config = replace(PRESETS[PRESET], total_steps=STEPS, seeds=SEEDS)
        cells = cells_of(config, PRESET, options, arguments.out)
        done = {(row["memory"], row["task"]) for row in read(arguments.csv)}
        cells = [cell for cell in cells if (cell.label, cell.task) not in done]
        make_folder(arguments.out)
        collect(cells, arguments.csv)
        run_cells(cells, Output(quiet=True), arguments.jobs, lambda: collect(cells, arguments.csv))
    except EngramError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(table(read(arguments.csv)))
    failures = [f"failed: {cell.task} with {cell.label}: {cell.failure}\n" for cell in cells if cell.failure]
    if failures:
        parser.exit(1, "".join(failures))


if __name__ == "__main__":
    main()
