"""Compare memories, or algorithms: each on every environment or dataset, several seeds, one command.

    python scripts/compare.py PRESET --memories s5 gru none --envs ID ... --seeds N [--out DIR] [any option of train.py]
    python scripts/compare.py PRESET --memories dm attention --datasets FILE ... --seeds N [--out DIR] [...]
    python scripts/compare.py PRESET --algorithms epoch-ucb greedy --envs ID ... --seeds N [--out DIR] [...]

Each cell is a run folder `<out>/<env or dataset>-<memory or algorithm>`, trained in a process of its own. Repeating the
command skips finished cells and resumes broken ones. Writes `table.md`, `table.csv`, `curves.png` and `bars.png` after
every cell; a cell that failed is named with its reason. In meta/ environments it ends with how the agents adapt within
trials (see `adapt.py`): `adaptation.md` and `adaptation.png`. Exit code 0 if every cell is there, 1 if some failed.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from engram.configs.experiment import PPOExperiment, SequenceExperiment, ValueExperiment
from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.scripts import train
from engram.scripts.adapt import Options as AdaptOptions
from engram.scripts.adapt import adapt, is_trials
from engram.scripts.common import describe, folder_name, run_script, split_preset
from engram.scripts.factory import algorithms_of, make_agent, resolve
from engram.scripts.plot import PANELS, agent_of, draw_panel
from engram.training.folder import read_config, say, write_atomically
from engram.training.metrics import read_metrics
from engram.training.statistics import iqm_of_scores, stratified_bootstrap

MEMORIES = ("s5", "gru", "none")
"""What is compared when no memory is named."""
MIXERS = ("dm", "attention", "mamba")
"""And of a sequence policy."""
WORDS = {"env": ("environment", "environment steps"), "dataset": ("dataset", "gradient steps")}
"""What rows are, and what their runs count."""


@dataclass(frozen=True)
class Options:
    """What to compare. Any option of train.py can follow."""

    memories: tuple[str, ...] = ()
    """Memories, the columns of the table, for presets of agents with a memory (default: s5 gru none, of
    sequence policies dm attention mamba). Of single-step methods: those that encode histories, with --algorithms."""
    algorithms: tuple[str, ...] = ()
    """Algorithms, the columns of the table, for presets of planners and of single-step methods (default: all)."""
    envs: tuple[str, ...] = ()
    """Environment ids, the rows (default: the preset's)."""
    datasets: tuple[str, ...] = ()
    """Recorded episodes, the rows, for presets that learn from these alone (default: the preset's)."""
    seeds: int = 3
    """Seeds per cell."""
    out: Path | None = None
    """Folder of the comparison (default: runs/compare/<preset>)."""


@dataclass(frozen=True)
class Cell:
    """One column on one environment or dataset."""

    row: str
    """The field that holds the task."""
    task: str
    label: str
    """Of the column: a memory, an algorithm, or both."""
    column: tuple[tuple[str, str], ...]
    """Fields and their values that make it."""
    folder: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        path = self.folder / "summary.json"
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise BadRequest(f"{path} is damaged: remove it, and the cell is resumed from its checkpoint") from None

    def scores(self) -> list[float]:
        """Final evaluation return per seed; empty while there is none."""
        summary = self.summary
        return [] if summary is None else [s for s in summary["eval_return"]["per_seed"] if s is not None]


def main(arguments: Sequence[str]) -> int:
    preset, rest = split_preset(arguments)
    options, training = tyro.cli(
        Options, args=rest, prog="compare.py PRESET", description=__doc__, return_unknown_args=True
    )
    out = options.out or Path("runs") / "compare" / preset
    row, tasks = rows_of(preset, options)
    columns = columns_of(preset, options)
    varied = {field for column in columns for field in column}
    for fixed in (f"--{row}", *(f"--{field}" for field in varied), "--resume"):
        if fixed in training:
            raise BadRequest(f"compare sets {fixed} itself")
    training = ["--seeds", str(options.seeds), *training]
    defaults = train.options_for(preset, training, "compare.py PRESET", __doc__ or "")
    cells = []
    for task in tasks:
        for column in columns:
            # Refuses unknown names before hours of training, not after.
            config = resolve(replace(defaults.experiment, **{row: task, **column}))
            make_agent(config).close()
            cell = Cell(row, task, config.label, tuple(column.items()), out / folder_name(task, config.label))
            if cell.summary is not None and read_config(cell.folder) != describe(preset, config):
                raise BadRequest(f"{cell.folder} was trained with other options: choose another --out")
            cells.append(cell)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"cannot write to {out}: {error.strerror}") from None

    failures: dict[Cell, str] = {}
    for number, cell in enumerate(cells, 1):
        if cell.summary is None:
            say(f"[{number}/{len(cells)}] {cell.task} with {cell.label}")
            failure = train_cell(preset, cell, training)
            if failure is not None:
                failures[cell] = failure
                say(f"failed: {failure}")
            report(out, cells, failures)
    report(out, cells, failures)
    print((out / "table.md").read_text())
    say(f"wrote table.md, table.csv, curves.png and bars.png in {out}")
    report_adaptation(preset, cells, out)
    return 1 if failures else 0


def rows_of(preset: str, options: Options) -> tuple[str, tuple[str, ...]]:
    """What the rows are, the name of a field, and its values."""
    wanted = {"env": options.envs, "dataset": options.datasets}
    row = PRESETS[preset].row
    for other, given in wanted.items():
        if given and other != row:
            raise BadRequest(f"{preset} is not compared by --{other}s; use --{row}s")
    return row, wanted[row] or (PRESETS[preset].task,)


def columns_of(preset: str, options: Options) -> list[dict[str, str]]:
    """What to compare, each as fields of the experiment and their values."""
    wanted = {"memory": options.memories, "algorithm": options.algorithms}
    flags = {"memory": "--memories", "algorithm": "--algorithms"}
    choice = PRESETS[preset].choice
    histories: tuple[str, ...] = ()
    if isinstance(PRESETS[preset], ValueExperiment):  # which of its algorithms read histories with a memory
        histories = wanted.pop("memory")
    for other, given in wanted.items():
        if given and other != choice:
            raise BadRequest(f"{preset} has no {flags[other]} to compare; use {flags[choice]}")
    memories = MIXERS if isinstance(PRESETS[preset], SequenceExperiment) else MEMORIES
    chosen = wanted[choice] or (memories if choice == "memory" else algorithms_of(PRESETS[preset]))
    if not histories:
        return [{choice: name} for name in chosen]
    if not options.algorithms:
        raise BadRequest(f"--memories of {preset} needs --algorithms, those that read histories")
    return [{choice: name, "memory": memory} for name in chosen for memory in histories]


def train_cell(preset: str, cell: Cell, training: Sequence[str]) -> str | None:
    """Trains one cell in its own process; returns why it failed, or None."""
    chosen = [argument for field, value in ((cell.row, cell.task), *cell.column) for argument in (f"--{field}", value)]
    return train.run_apart([preset, *chosen, "--out", str(cell.folder), "--resume", *training])


# ---------------------------------------------------------------------------------------------------------- reporting


def report(out: Path, cells: list[Cell], failures: dict[Cell, str]) -> None:
    """Writes tables and pictures of what is there."""
    write_atomically(out / "table.md", markdown_table(cells, failures))
    write_atomically(out / "table.csv", csv_table(cells, failures))
    if any(cell.summary for cell in cells):
        draw_curves(cells, out / "curves.png")
        draw_bars(cells, out / "bars.png")


def report_adaptation(preset: str, cells: list[Cell], out: Path) -> None:
    """How agents that PPO trained on trials adapt. What was trained and reported stands, whether that can be measured
    or not."""
    trained = [cell.folder for cell in cells if cell.summary is not None and is_trials(cell.task)]
    if not trained or type(PRESETS[preset]) is not PPOExperiment:
        return
    try:
        adapt(trained, AdaptOptions(), out)
    except BadRequest as error:
        say(f"adaptation was not measured: {error}")


def rows_and_columns(cells: list[Cell]) -> tuple[list[str], list[str], dict[tuple[str, str], Cell]]:
    tasks, columns = list(dict.fromkeys(c.task for c in cells)), list(dict.fromkeys(c.label for c in cells))
    return tasks, columns, {(cell.task, cell.label): cell for cell in cells}


def interval(scores: list[float]) -> tuple[float, float, float]:
    """Interquartile mean and its 95 % bootstrap interval over seeds."""
    return (float(iqm_of_scores([np.array(scores)])), *stratified_bootstrap([np.array(scores)]))


def markdown_table(cells: list[Cell], failures: dict[Cell, str]) -> str:
    """Rows are tasks, columns memories or algorithms; a star where the interval lies above that of `none`."""
    tasks, columns, at = rows_and_columns(cells)
    kind, unit = WORDS[cells[0].row]
    lines = [f"| {kind} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for task in tasks:
        base = at[task, "none"].scores() if "none" in columns else []
        row = []
        for label in columns:
            cell = at[task, label]
            scores = cell.scores()
            if not scores:
                row.append("**failed**" if cell in failures else "not run")
                continue
            iqm, low, high = interval(scores)
            # The interval of a single seed is a point, and lies above another by chance alone.
            better = label != "none" and min(len(base), len(scores)) > 1 and low > interval(base)[2]
            row.append(f"{iqm:.3f} [{low:.3f}, {high:.3f}]{' *' if better else ''}")
        lines.append(f"| {task} | " + " | ".join(row) + " |")
    if len(tasks) > 1:
        row = []
        for label in columns:
            scores = [np.array(at[task, label].scores()) for task in tasks]
            if all(len(task) for task in scores):
                low, high = stratified_bootstrap(scores)
                row.append(f"{iqm_of_scores(scores):.3f} [{low:.3f}, {high:.3f}]")
            else:
                row.append("incomplete")
        lines.append("| **all** | " + " | ".join(row) + " |")
    done = [cell.summary for cell in cells if cell.summary is not None]
    lines += [
        "",
        "Final evaluation return: interquartile mean over seeds and 95 % bootstrap interval (stratified by task in the",
        "last row)."
        + (" A star: the whole interval lies above that of `none` (two seeds or more)." if "none" in columns else ""),
    ]
    if done:
        seeds = sorted({s["seeds"] for s in done})
        steps = sorted({s["env_steps"] for s in done})
        lines += [
            f"Seeds: {', '.join(map(str, seeds))}. {unit.capitalize()} per seed: {', '.join(f'{s:,}' for s in steps)}."
        ]
        lines += [f"Training time of all cells: {sum(s['wall_s'] + s['compile_s'] for s in done) / 60:.1f} minutes."]
    lines += [f"- **failed**: {cell.task} with {cell.label}: {reason}" for cell, reason in failures.items()]
    return "\n".join(lines) + "\n"


def csv_table(cells: list[Cell], failures: dict[Cell, str]) -> str:
    """One line a cell and seed-level scores in one column, for further analysis."""
    text = io.StringIO()
    writer = csv.writer(text)
    head = ("env", "variant", "state", "iqm", "ci95_low", "ci95_high", "per_seed", "train_mean", "env_steps")
    writer.writerow((*head, "steps_per_s", "wall_s", "compile_s"))
    for cell in cells:
        summary = cell.summary
        if summary is None:
            state = f"failed: {failures[cell]}" if cell in failures else "not run"
            writer.writerow([cell.task, cell.label, state])
            continue
        scores = cell.scores()
        numbers = interval(scores) if scores else ("", "", "")
        per_seed = " ".join(f"{s:.6g}" for s in scores)
        rest = [summary["train_return"]["mean"], summary["env_steps"], summary["steps_per_s"]]
        writer.writerow(
            [cell.task, cell.label, "done", *numbers, per_seed, *rest, summary["wall_s"], summary["compile_s"]]
        )
    return text.getvalue()


def short(task: str) -> str:
    """A task as a label."""
    return Path(task).stem if Path(task).suffix else task.removeprefix("popgym/")


def _figure(panels: int, width: float, height: float):
    import matplotlib.pyplot as plt  # slow to import

    plt.switch_backend("Agg")
    columns = min(panels, 4)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for spare in axes.flat[panels:]:
        spare.axis("off")
    return plt, figure, axes.flat


def draw_curves(cells: list[Cell], out: Path) -> None:
    """One panel a row: the agent's first metric (see `engram.scripts.plot`) of each memory or algorithm."""
    tasks, columns, at = rows_and_columns(cells)
    plt, figure, axes = _figure(len(tasks), 3.6 if len(tasks) > 1 else 6.5, 2.7 if len(tasks) > 1 else 4)
    quantity = ""
    for axis, task in zip(axes, tasks, strict=False):
        for color, label in enumerate(columns):
            path = at[task, label].folder / "metrics.jsonl"
            if path.exists():
                panel = replace(PANELS[agent_of(read_config(path.parent))][0], dots=None)
                draw_panel(axis, panel, read_metrics(path), f"C{color}", label)
                quantity = panel.label
        axis.set_title(short(task), fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=8)
    figure.supxlabel(f"{WORDS[cells[0].row][1]} per seed", fontsize=9)
    figure.supylabel(quantity, fontsize=9)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_bars(cells: list[Cell], out: Path) -> None:
    """One group a row: final evaluation return with 95 % intervals and the seeds as dots."""
    tasks, columns, at = rows_and_columns(cells)
    plt, figure, axes = _figure(1, max(6.0, 1.1 * len(tasks) + 2), 4)
    width = 0.8 / len(columns)
    for color, label in enumerate(columns):
        for place, task in enumerate(tasks):
            scores = at[task, label].scores()
            if not scores:
                continue
            x = place + (color - (len(columns) - 1) / 2) * width
            iqm, low, high = interval(scores)
            first = task == next(e for e in tasks if at[e, label].scores())
            axes[0].bar(x, iqm, width * 0.9, color=f"C{color}", alpha=0.8, label=label if first else None)
            axes[0].vlines(x, low, high, color="black", linewidth=1.2)
            axes[0].plot([x] * len(scores), scores, ".", color="black", markersize=3)
    axes[0].axhline(0, color="black", linewidth=0.6)
    axes[0].set_xticks(range(len(tasks)), [short(task) for task in tasks], rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel("final evaluation return")
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
