"""Tables and a picture of the reference comparison, from what is kept of it (see `benchmarks.reference`).

    python -m benchmarks.reference_report [--results DIR] [--picture docs/images/reference.png]

Prints all tables in Markdown. What is not there yet is left out: rows are tasks of which every column is finished.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import reference
from benchmarks.reference import (
    COLUMNS,
    EVERYTHING,
    NONE,
    SETTINGS,
    TUNING_TASKS,
    Key,
    Planned,
    Row,
    is_there,
    seeds,
    winners,
)
from engram.atomic_files import replacing
from engram.envs.popgym import FULL
from engram.experiments.tables import aggregates
from engram.training.statistics import t_interval

Scores = dict[str, dict[str, np.ndarray]]
"""Of each task and column one score per seed."""


def scores(rows: Mapping[Key, Row], phase: str = "table", field: str = "returns") -> Scores:
    """The scores of the tasks that are finished, in the order of the plan; `field` "best" for running maxima."""
    found: Scores = {}
    names = reference.ANCHOR_TASKS if phase == "anchor" else reference.tasks()
    columns = reference.ANCHOR_COLUMNS if phase == "anchor" else COLUMNS
    by_cell = {key[:3]: row for key, row in rows.items() if key[0] == phase}
    for task in names:
        wanted = [column for column in columns if is_there(task, column)]
        if all((phase, task, column) in by_cell for column in wanted):
            found[task] = {column: seeds(by_cell[phase, task, column][field]) for column in wanted}
    return found


def gains(found: Scores) -> Scores:
    """Memory gain: 0 for `none`'s mean and 1 for that of `full`, of tasks that a memory can win. These are the tasks in
    which `full` is better than `none` by more than the t interval of that difference."""
    result: Scores = {}
    for task, columns in found.items():
        if EVERYTHING not in columns:
            continue
        low = 2 * t_interval([columns[EVERYTHING], -columns[NONE]])[1]  # of the difference
        if low > 0:
            bottom, top = columns[NONE].mean(), columns[EVERYTHING].mean()
            result[task] = {column: (score - bottom) / (top - bottom) for column, score in columns.items()}
    return result


def counted(found: Scores) -> Scores:
    """The tasks that are spoken of together: not those of the search, and no labyrinths."""
    return {task: columns for task, columns in found.items() if task in FULL and task not in TUNING_TASKS}


def marked(task: str) -> str:
    """A task's name, with what sets it apart."""
    return task + (" (search)" if task in TUNING_TASKS else "" if task in FULL else " (labyrinth)")


def task_table(found: Scores) -> str:
    """Rows are tasks: the mean of each column and half of its 95 % t interval; the best mean of a memory is bold."""
    columns = [column for column in COLUMNS if any(column in each for each in found.values())]
    lines = [f"| task | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for task, each in found.items():
        best = max(score.mean() for column, score in each.items() if column != EVERYTHING)
        words = [marked(task)]
        for column in columns:
            if column not in each:
                words.append("")
                continue
            mean, _, high = t_interval([each[column]])
            number = f"{mean:.3f}"
            bold = column != EVERYTHING and each[column].mean() == best
            words.append(f"{f'**{number}**' if bold else number} ± {high - mean:.3f}")
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def overall_table(found: Scores) -> str:
    """What is said of all tasks, by memory gain. Empty before two tasks are there."""
    usable = gains(counted(found))
    if len(usable) < 2:
        return ""
    columns = {column: [each[column] for each in usable.values()] for column in COLUMNS if column != EVERYTHING}
    return "\n".join(aggregates(columns, NONE, f"0 for the mean of `{NONE}` and 1 for that of `{EVERYTHING}`"))


def tuning_table(rows: Mapping[Key, Row]) -> str:
    """Mean score of each setting over the tasks of the search, the best in bold; columns are settings."""
    head = [f"{rate:g}, {entropy:g}" for rate, entropy in SETTINGS]
    lines = [f"| step size, entropy | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    best = winners(dict(rows))
    for column in COLUMNS:
        words = [column]
        for setting in SETTINGS:
            cells = [rows.get(Planned("tune", task, column, *setting).key) for task in TUNING_TASKS]
            known = [np.mean(seeds(row["returns"])) for row in cells if row is not None]
            number = f"{np.mean(known):.3f}" if len(known) == len(TUNING_TASKS) else ""
            words.append(f"**{number}**" if best.get(column) == setting else number)
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def cost_table(rows: Mapping[Key, Row]) -> str:
    """Size of each column, and the median over cells of steps a second."""
    lines = ["| column | width | parameters | operations a step | bytes of state | steps/s |", "|---" * 6 + "|"]
    for column in COLUMNS:
        mine = [row for key, row in rows.items() if key[0] == "table" and key[2] == column]
        if mine:
            sizes = [f"{int(mine[0][name]):,}" for name in ("width", "params", "flops", "state_bytes")]
            speed = np.median([float(row["steps_per_s"]) for row in mine])
            lines.append(f"| {' | '.join([column, *sizes, f'{speed:,.0f}'])} |")
    return "\n".join(lines)


def draw(found: Scores, out: Path) -> None:
    """A grid of memory gains: rows are tasks that a memory can win, columns memories, best first."""
    import matplotlib.pyplot as plt  # slow to import

    usable = gains(found)
    means = {c: [each[c].mean() for each in usable.values()] for c in COLUMNS if c not in (EVERYTHING, NONE)}
    order = sorted(means, key=lambda column: -float(np.mean(np.clip(means[column], 0, 1))))
    grid = np.array([means[column] for column in order]).T
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(0.75 * len(order) + 3, 0.28 * len(usable) + 1.6), layout="constrained")
    image = axes.imshow(np.clip(grid, 0, 1), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (i, j), gain in np.ndenumerate(grid):
        axes.text(j, i, f"{gain:.2f}", ha="center", va="center", fontsize=7, color="white" if gain < 0.6 else "black")
    axes.set_xticks(range(len(order)), order, rotation=30, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(usable)), [marked(task) for task in usable], fontsize=8)
    figure.colorbar(image, label="memory gain: 0 as without memory, 1 as with nothing hidden")
    with replacing(out) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def tables(rows: Mapping[Key, Row]) -> Sequence[str]:
    """All tables, each under its title."""
    found, anchor = scores(rows), scores(rows, "anchor")
    parts = [("Search: mean score by setting", tuning_table(rows)), ("Size and speed", cost_table(rows))]
    if found:
        best = scores(rows, field="best")
        parts += [
            ("All tasks together", overall_table(found)),
            ("Final evaluation return", task_table(found)),
            ("Running maximum of training returns, POPGym's measure", task_table(best)),
        ]
    if anchor:
        parts.append(("15 million steps", task_table(anchor)))
    return [f"### {title}\n\n{text}\n" for title, text in parts if text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=reference.RESULTS)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    rows = reference.read(arguments.results)
    print("\n".join(tables(rows)))
    if arguments.picture:
        draw(scores(rows), arguments.picture)


if __name__ == "__main__":
    main()
