"""Comparing memories, or algorithms: each on every environment or dataset, with several seeds.

Each cell is a run folder `<out>/<env or dataset>-<memory or algorithm>`, trained in a process of its own. Repeating a
comparison skips finished cells and resumes broken ones. `table.md`, `table.csv`, `curves.png` and `bars.png` are
written after every cell; a cell that failed is named with its reason. In meta/ environments it ends with how the agents
adapt within trials (see `engram.experiments.adapt`): `adaptation.md` and `adaptation.png`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.atomic_files import replacing
from engram.errors import BadRequest
from engram.experiments.adapt import adapt, is_trials
from engram.experiments.cells import Cell, make_folder, reporting
from engram.experiments.figures import X, band_words, color_of, draw_panel, over, steps_of
from engram.experiments.launch import require_engine, run_cells
from engram.experiments.match import Match, matched
from engram.experiments.options import Adapt, Output, Sweep
from engram.experiments.options import Compare as Options
from engram.experiments.runs import folder_name
from engram.experiments.space import Settings
from engram.experiments.tables import (
    aggregates_table,
    columns_table,
    csv_table,
    latex_table,
    markdown_table,
    normalised,
    rows_and_columns,
    scores_table,
)
from engram.experiments.tuned import Tuned
from engram.experiments.watch import watch
from engram.training.folder import write_atomically
from engram.training.metrics import read_metrics
from engram.training.statistics import performance_profile, summarise
from engram.training.stderr import notify


@dataclass(frozen=True)
class Comparison:
    """A finished comparison. `engram.compare(...)` gives one.

    Attributes:
        out: its folder, with `table.md`, `table.csv`, `curves.png` and `bars.png`.
        cells: its cells, each in a run folder (`cell.folder`).
    """

    out: Path
    cells: list[Cell] = field(repr=False)

    @property
    def failures(self) -> dict[Cell, str]:
        """Why cells failed, by cell."""
        return {cell: reason for cell in self.cells if (reason := cell.failure) is not None}

    @property
    def table(self) -> str:
        """The table, in Markdown."""
        return (self.out / "table.md").read_text()


def compare(
    config: Experiment,
    preset: str,
    options: Options,
    output: Output = Output(),
    seconds: float | None = None,
) -> Comparison:
    """Trains every cell that is not finished, and reports.

    Args:
        config: what all cells have in common.
        preset: name of the preset that it began from.
        output: `wandb` and `quiet` of the runs.
        seconds: time between two looks at cells that others train (see `watch`); None to train them here.

    Raises:
        BadRequest: cells that cannot be built, or of another comparison in the same folder.
        Interrupted: stopped; the same comparison goes on where it was.
    """
    config = replace(config, seeds=options.seeds)
    out = options.out or Path("runs") / "compare" / (preset or "own")
    cells = cells_of(config, preset, options, out)
    tuned = tuned_of(config, options)
    if seconds is not None and not out.is_dir():
        raise BadRequest(f"there is no comparison in {out}")
    if seconds is None:
        require_engine(options.launcher)
    make_folder(out)
    settings = {} if tuned is None else tuned.all_settings
    write = partial(report, out, cells, options.match, settings, options.x, options.pictures)
    if seconds is None:
        run_cells(cells, output, options.jobs, write, launcher=options.launcher, out=out)
        write()
    else:
        watch(cells, seconds, write)
    notify(f"wrote table.md, table.csv, table.tex, scores.csv, curves and bars in {out}")
    if seconds is None:
        report_adaptation(cells, out)
    return Comparison(out, cells)


def cells_of(config: Experiment, preset: str, options: Options, out: Path) -> list[Cell]:
    """The cells of a comparison, row by row. Raises BadRequest as `compare`."""
    spec, cells = spec_of(config), []
    columns = matched(experiments_of(config, options), options.match)
    for task in rows_of(config, options):
        for column in columns.values():
            chosen = spec.resolve(replace(column, **{config.row: task}))
            cell = Cell(chosen, out / folder_name(task, chosen.label), preset)
            cell.refuse_impossible()
            if cell.is_finished:
                cell.refuse_other()
            cells.append(cell)
    return cells


def experiments_of(config: Experiment, options: Options) -> dict[str, Experiment]:
    """The experiment of each column, by its label: with the settings of its winner, where there are any."""
    tuned = tuned_of(config, options)
    chosen = [replace(config, **column) for column in columns_of(config, options)]
    if tuned is None:
        return {column.label: column for column in chosen}
    tuned.refuse_seeds(config)
    tuned.refuse_match(options.match)
    return {column.label: tuned.apply(column) for column in chosen}


def tuned_of(config: Experiment, options: Options) -> Tuned | None:
    """The winners that `options` name. Raises BadRequest where they cannot be compared."""
    return None if options.tuned is None else Tuned.read(options.tuned, config)


def refuse_fixed(config: Experiment, options: Options, given: Collection[str]) -> None:
    """Raises BadRequest where fields that are `given` are those that a comparison varies."""
    varied = fields_of(config, options)
    if options.match != "none" and (memory := spec_of(config).remembering):
        varied.append(memory.width)
    if tuned := tuned_of(config, options):
        varied += [name for settings in tuned.all_settings.values() for name in settings]
    refuse_given(varied, given, "compare")


def refuse_given(varied: Sequence[str], given: Collection[str], who: str) -> None:
    """Raises BadRequest where `given` fields are among those that `who` varies."""
    for name in varied:
        if name in given:
            raise BadRequest(f"{who} sets --{name.replace('_', '-')} itself")


def fields_of(config: Experiment, options: Options | Sweep) -> list[str]:
    """Fields of the experiment that rows and columns have values of their own of."""
    return [config.row, *sorted({field for column in columns_of(config, options) for field in column})]


def rows_of(config: Experiment, options: Options | Sweep) -> tuple[str, ...]:
    """Tasks: the values of the field `config.row`."""
    wanted = {"env": options.envs, "dataset": options.datasets}
    for other, given in wanted.items():
        if given and other != config.row:
            raise BadRequest(f"{config.agent} is not compared by --{other}s; use --{config.row}s")
    return wanted[config.row] or (config.task,)


def columns_of(config: Experiment, options: Options | Sweep) -> list[dict[str, str]]:
    """Columns, each as fields of the experiment and their values."""
    everything = not options.memories and not options.algorithms
    if everything and isinstance(options, Options) and (tuned := tuned_of(config, options)):
        return tuned.columns
    wanted = {"memory": options.memories, "algorithm": options.algorithms}
    flags = {"memory": "--memories", "algorithm": "--algorithms"}
    spec, choice = spec_of(config), config.choice
    second = wanted.pop(spec.second_choice) if spec.second_choice else ()
    for other, given in wanted.items():
        if given and other != choice:
            raise BadRequest(f"{config.agent} has no {flags[other]} to compare; use {flags[choice]}")
    chosen = wanted[choice] or spec.columns or (config.chosen,)
    if not second:
        return [{choice: name} for name in chosen]
    assert spec.second_choice is not None
    if not wanted[choice]:
        raise BadRequest(f"{flags[spec.second_choice]} of {config.agent} needs {flags[choice]}, those that take one")
    return [{choice: name, spec.second_choice: other} for name in chosen for other in second]


# ---------------------------------------------------------------------------------------------------------- reporting


def report(
    out: Path,
    cells: list[Cell],
    match: Match = "none",
    settings: Mapping[str, Settings] = {},
    x: X = "env_steps",
    pictures: Sequence[str] = ("png",),
) -> None:
    """Writes tables and pictures of what is there, one command at a time; `match` and `settings` by column are what its
    columns were given, `pictures` the formats of pictures."""
    with reporting(out):
        table = markdown_table(cells) + aggregates_table(cells) + columns_table(cells, match, settings)
        write_atomically(out / "table.md", table)
        write_atomically(out / "table.csv", csv_table(cells))
        write_atomically(out / "table.tex", latex_table(cells))
        write_atomically(out / "scores.csv", scores_table(cells))
        if any(cell.is_finished for cell in cells):
            for ending in pictures:
                draw_curves(cells, out / f"curves.{ending}", x)
                draw_bars(cells, out / f"bars.{ending}")
                draw_profiles(cells, out / f"profiles.{ending}")


def report_adaptation(cells: list[Cell], out: Path) -> None:
    """Measures how agents that were trained on trials adapt. The comparison stands, whether that succeeds or not."""
    trained = [cell.folder for cell in cells if cell.is_finished and is_trials(cell.task)]
    if not trained or not spec_of(cells[0].config).adapts:
        return
    try:
        adapt(trained, Adapt(), out)
    except BadRequest as error:
        notify(f"adaptation was not measured: {error}")


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
    return plt, figure, list(axes.flat)


def draw_curves(cells: list[Cell], out: Path, x: X = "env_steps") -> None:
    """One panel a row: the agent's first metric (see `engram.experiments.figures`) of each memory or algorithm."""
    tasks, columns, at = rows_and_columns(cells)
    plt, figure, axes = _figure(len(tasks), 3.6 if len(tasks) > 1 else 6.5, 2.7 if len(tasks) > 1 else 4)
    quantity, seeds = "", 0
    for axis, task in zip(axes, tasks, strict=False):
        for label in columns:
            path = at[task, label].folder / "metrics.jsonl"
            if path.exists():
                panel = replace(spec_of(at[task, label].config).panels[0], dots=None)
                seeds = max(seeds, draw_panel(axis, panel, over(read_metrics(path), x), color_of(label), label))
                quantity = panel.label
        axis.set_title(short(task), fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend([*handles.values()], [*handles], fontsize=8, loc="outside right upper")
        figure.suptitle(f"line: mean over seeds, band: {band_words(seeds)}", fontsize=9)
    figure.supxlabel(steps_of(cells[0].config, x), fontsize=9)
    figure.supylabel(quantity, fontsize=9)
    with replacing(out) as partial_file:
        figure.savefig(partial_file, dpi=110, format=out.suffix[1:])
    plt.close(figure)


def draw_bars(cells: list[Cell], out: Path) -> None:
    """One group a row: mean final evaluation return, its 95 % t interval (from three seeds on, as one of two dwarfs all
    else) and the seeds as dots."""
    tasks, columns, at = rows_and_columns(cells)
    plt, figure, axes = _figure(1, max(6.0, 1.1 * len(tasks) + 2), 4)
    width, counts = 0.8 / len(columns), set()
    for column, label in enumerate(columns):
        for place, task in enumerate(tasks):
            found = summarise(at[task, label].scores())
            if not found["n"]:
                continue
            x = place + (column - (len(columns) - 1) / 2) * width
            known = [score for score in found["per_seed"] if score is not None]
            named = label in axes[0].get_legend_handles_labels()[1]
            axes[0].bar(x, found["mean"], width * 0.9, color=color_of(label), alpha=0.8, label=None if named else label)
            if len(known) > 2:
                axes[0].vlines(x, *found["ci95"], color="black", linewidth=1.2)
            axes[0].plot([x] * len(known), known, ".", color="black", markersize=3)
            counts.add(f"{found['n']}" + (f" of {len(found['per_seed'])}" if found["missing"] else ""))
    axes[0].axhline(0, color="black", linewidth=0.6)
    axes[0].set_xticks(range(len(tasks)), [short(task) for task in tasks], rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel("final evaluation return")
    axes[0].set_title(f"mean, 95 % t interval, seeds (n = {', '.join(sorted(counts))})", fontsize=9)
    if counts:
        figure.legend(fontsize=8, loc="outside right upper")
    with replacing(out) as partial_file:
        figure.savefig(partial_file, dpi=110, format=out.suffix[1:])
    plt.close(figure)


def draw_profiles(cells: list[Cell], out: Path) -> None:
    """Performance profiles (Agarwal et al. 2021): the share of the runs of all tasks whose normalised return is above a
    threshold, over the threshold. Nothing for one task, and where tasks have no common scale."""
    tasks, columns, _ = rows_and_columns(cells)
    scores, scale = normalised(cells) if len(tasks) > 1 else ({}, "")
    if len(scores) < 2:
        return
    everything = np.concatenate([task for each in scores.values() for task in each])
    thresholds = np.linspace(everything.min(), everything.max(), 401)
    plt, figure, axes = _figure(1, 6.5, 4)
    for label in columns:
        if label in scores:
            profile = performance_profile(scores[label], thresholds)
            axes[0].plot(thresholds, profile, color=color_of(label), label=label, linewidth=1.4)
    axes[0].set_xlabel("normalised return")
    axes[0].set_ylabel("share of runs above it")
    axes[0].set_title(f"{len(tasks)} tasks; {scale}", fontsize=8)
    axes[0].grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    with replacing(out) as partial_file:
        figure.savefig(partial_file, dpi=110, format=out.suffix[1:])
    plt.close(figure)
