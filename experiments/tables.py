"""Tables of a comparison: final evaluation returns by task and column, what may be said of them, and what they cost."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from engram.agents.registry import spec_of
from engram.experiments.atari_scores import published
from engram.experiments.cells import Cell
from engram.experiments.match import NAMES, TOLERANCE, Match, Sizes, measured, width_of
from engram.experiments.space import Settings, words
from engram.training.statistics import (
    TEST_SEEDS,
    better,
    bootstrap_interval,
    human_normalised,
    in_words,
    iqm_of_scores,
    mean_rank,
    median_of_tasks,
    optimality_gap,
    probability_of_improvement,
    summarise,
    t_interval,
)

WORDS = {"env": ("environment", "environment steps"), "dataset": ("dataset", "gradient steps")}
"""Words for rows, and for the steps that their runs count."""
WITHOUT_NUMBER = {"failed": "**failed**", "running": "*running*", "not run": "not run"}
"""What stands in place of a number."""


def rows_and_columns(cells: list[Cell]) -> tuple[list[str], list[str], dict[tuple[str, str], Cell]]:
    """Tasks, labels of the columns, and the cell of each pair of them."""
    tasks, columns = list(dict.fromkeys(c.task for c in cells)), list(dict.fromkeys(c.label for c in cells))
    return tasks, columns, {(cell.task, cell.label): cell for cell in cells}


def markdown_table(cells: list[Cell]) -> str:
    """Rows are tasks, columns memories or algorithms; a star where the mean is above that of `none`, by a test."""
    tasks, columns, at = rows_and_columns(cells)
    kind, unit = WORDS[cells[0].config.row]
    lines = [f"| {kind} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    rivals = [label for label in columns if label != "none"] if "none" in columns else []
    for task in tasks:
        base = at[task, "none"].scores() if rivals else []
        stars = dict(zip(rivals, better([at[task, label].scores() for label in rivals], base), strict=True))
        row = []
        for label in columns:
            cell = at[task, label]
            state = cell.state
            if state == "done":
                row.append(in_words(summarise(cell.scores())) + (" *" if stars.get(label) else ""))
            else:
                row.append(WITHOUT_NUMBER[state])
        lines.append(f"| {task} | " + " | ".join(row) + " |")
    over_tasks, about_tasks = row_over_tasks(cells) if len(tasks) > 1 else ([], [])
    lines += [*over_tasks, "", "Final evaluation return: mean over n seeds and its 95 % t interval.", *about_tasks]
    if rivals:
        lines.append(
            "A star: the mean is above that of `none` (Welch's one-sided t-test at 5 %, Holm's correction for the "
            f"columns of a row; none below {TEST_SEEDS} seeds)."
        )
    done = [cell.summary for cell in cells if cell.summary is not None]
    if any(None in cell.scores() for cell in cells):
        lines.append("Where n is said to be of more seeds, the others finished no episode of any evaluation.")
    if done:
        seeds = sorted({s["seeds"] for s in done})
        steps = sorted({s["env_steps"] for s in done})
        lines += [
            f"Seeds: {', '.join(map(str, seeds))}. {unit.capitalize()} per seed: {', '.join(f'{s:,}' for s in steps)}."
        ]
        lines += [f"Training time of all cells: {sum(s['wall_s'] + s['compile_s'] for s in done) / 60:.1f} minutes."]
    for cell in cells:
        ended = (cell.summary or {}).get("eval_finished", [1.0])
        if min(ended) < 1:
            share = f"{sum(ended) / len(ended):.1%} of the evaluation's episodes ended"
            lines.append(f"- **unfinished**: {cell.task} with {cell.label}: {share}; the mean leaves out the others")
    for cell in cells:
        if (reason := cell.failure) is not None:
            lines.append(f"- **failed**: {cell.task} with {cell.label}: {reason}")
    return "\n".join(lines) + "\n"


def columns_table(cells: list[Cell], match: Match = "none", settings: Mapping[str, Settings] = {}) -> str:
    """One line a column: width and sizes of its memory, and the settings that a sweep chose for it. Empty where there
    is nothing to say."""
    columns = {cell.label: cell.config for cell in cells}
    rows, about = {label: [label] for label in columns}, []
    head = [next(iter(columns.values())).choice]
    if all(spec_of(config).remembering for config in columns.values()):
        head += ["width", *NAMES.values()]
        first = measured(next(iter(columns.values())))
        for label, config in columns.items():
            rows[label] += [str(width_of(config)), *sizes_in_words(measured(config), first, match)]
        around = "" if match == "none" else ", and of the projections around it"
        about.append(
            f"Sizes are those of the memory{around}: parameters, operations of one step as it is written, bytes of the "
            "state of one environment."
        )
    if match != "none":
        about.append(
            f"Widths were chosen so that {NAMES[match]} are those of the first column; in brackets how far they are "
            f"from that, with ! where it is over {TOLERANCE:.0%}."
        )
    if settings:
        head.append("settings")
        for label in columns:
            rows[label].append(words(settings.get(label, {})))
        about.append("Settings were chosen by a sweep with as many trials for each, on other seeds than these.")
    if not about:
        return ""
    lines = ["", *(f"| {' | '.join(row)} |" for row in (head, *rows.values())), "", *about]
    lines.insert(2, "|---" * len(head) + "|")
    return "\n".join(lines) + "\n"


def sizes_in_words(sizes: Sizes, first: Sizes, match: Match) -> list[str]:
    """Sizes as a table shows them, with the difference from the first column in what is matched."""
    shown = [f"{number:,}" for number in sizes]
    if match != "none" and sizes != first:
        place = Sizes._fields.index(match)
        share = sizes[place] / first[place] - 1
        shown[place] += f" ({share:+.1%}){' !' if abs(share) > TOLERANCE else ''}"
    return shown


def row_over_tasks(cells: list[Cell]) -> tuple[list[str], list[str]]:
    """The last row of a table of several tasks, and what is to be said of it. Raw returns of tasks are never averaged:
    without a common scale there is no row."""
    _, columns, _ = rows_and_columns(cells)
    scores, scale = normalised(cells)
    if not scores:
        return [], [f"No row over all tasks: {scale}."]
    row = []
    for label in columns:
        if label not in scores:
            row.append("incomplete")
            continue
        mean, low, high = t_interval(scores[label])
        interval = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        count = sum(len(task) for task in scores[label])
        row.append(f"{mean:.3f}{interval} (n = {count} in {len(scores[label])} tasks)")
    about = (
        f"Row **all**: mean over tasks of normalised returns, {scale}. The interval is a t interval with the variance "
        "within tasks; it takes the tasks and their scales as given."
    )
    return ["| **all** (normalised) | " + " | ".join(row) + " |"], [about]


def in_brackets(statistic: tuple[float, float, float]) -> str:
    """A statistic and the ends of its interval, where it has one."""
    value, low, high = statistic
    return f"{value:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def aggregates_table(cells: list[Cell]) -> str:
    """One line a column: what is said of all tasks. Empty for one task, and where tasks have no common scale."""
    tasks, columns, _ = rows_and_columns(cells)
    scores, scale = normalised(cells) if len(tasks) > 1 else ({}, "")
    scores = {label: scores[label] for label in columns if label in scores}
    if len(scores) < 2 or min(len(task) for each in scores.values() for task in each) < 2:
        return ""
    return "\n".join(["", *aggregates(scores, "none" if "none" in scores else next(iter(scores)), scale), ""])


def aggregates(scores: Mapping[str, list[np.ndarray]], base: str, scale: str) -> list[str]:
    """Lines of a table of what is said of all tasks.

    Args:
        scores: normalised, of each column one array of seeds, two or more, for each task.
        base: the column that others are compared to.
        scale: words for how scores were normalised.
    """
    head = ["over all tasks", "IQM", "median", "optimality gap", "mean rank", f"P(better than {base})"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for i, (label, mine) in enumerate(scores.items()):
        row = [label]
        for statistic in (iqm_of_scores, median_of_tasks, optimality_gap):
            low, high = bootstrap_interval(mine, statistic)
            low = max(low, 0.0) if statistic is optimality_gap else low
            row.append(in_brackets((float(statistic(mine)), low, high)))
        row.append(in_brackets(mean_rank(i, [*scores.values()])))
        row.append("" if label == base else in_brackets(probability_of_improvement(mine, scores[base])))
        lines.append(f"| {' | '.join(row)} |")
    return [
        *lines,
        "",
        f"Returns are normalised, {scale}. IQM: mean of the middle half of all runs. Median: of the means of tasks. "
        "Optimality gap: how far runs fall short of 1. Mean rank: of a run among one of each column, in a task drawn "
        f"at random. P: probability that a run is better than one of {base} there. In brackets 95 % intervals (widened "
        "bootstrap of seeds within tasks; t intervals of ranks and probabilities).",
    ]


def normalised(cells: list[Cell]) -> tuple[dict[str, list[np.ndarray]], str]:
    """Scores by column, one array of seeds for each task, on scales that make tasks comparable; columns that lack a
    number of any seed are left out. And words for the scale, or for why there is none."""
    tasks, columns, at = rows_and_columns(cells)
    complete = [
        label for label in columns if all(at[t, label].scores() and None not in at[t, label].scores() for t in tasks)
    ]
    registered = {(task, label): reference_scores(at[task, label]) for label in complete for task in tasks}
    if complete and None not in registered.values():
        scores = {label: [np.array(registered[task, label]) for task in tasks] for label in complete}
        return scores, "0 for random play and 1 for the reference (a human, or an expert) in each task"
    if len(complete) < 2:
        return {}, "it needs two columns with a number for every seed, or tasks with known returns of random play"
    scales = {}
    for task in tasks:
        every = np.array([score for label in complete for score in at[task, label].scores()], float)
        scales[task] = every.min(), every.max()
    return {
        label: [_between(at[task, label].scores(), *scales[task]) for task in tasks] for label in complete
    }, "0 for the worst and 1 for the best seed of any column in each task"


def _between(scores: Sequence[float | None], low: float, high: float) -> np.ndarray:
    if low == high:
        return np.full(len(scores), 0.5)
    return (np.array(scores, float) - low) / (high - low)


def reference_scores(cell: Cell) -> list[float] | None:
    """Final evaluation per seed, 0 for random play and 1 for the reference, where the task has them registered."""
    score = (cell.summary or {}).get("eval_score")
    if score is not None:
        return None if None in score["per_seed"] else [value / 100 for value in score["per_seed"]]
    scale = known_scale(cell.task)
    return None if scale is None else human_normalised(cell.scores(), *scale).tolist()


def known_scale(task: str) -> tuple[float, float] | None:
    """Returns of random play and of a human in a game, None where they are not registered."""
    game, _, options = task.removeprefix("atari/").partition("?")
    table = published()
    if task == game or game not in table["random"] or "reward_clip" in options:
        return None
    return table["random"][game], table["human"][game]


LATEX = str.maketrans({mark: "\\" + mark for mark in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"})
"""Marks that LaTeX takes for its own, and what stands for them."""


def latex_table(cells: list[Cell]) -> str:
    """The table of means and intervals as a `tabular` for LaTeX, with `booktabs`; the best mean of a row is bold."""
    tasks, columns, at = rows_and_columns(cells)
    lines = [
        "% needs \\usepackage{booktabs}; final evaluation return: mean over seeds, 95 % t interval",
        f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
        "\\toprule",
        " & ".join([WORDS[cells[0].config.row][0], *(label.translate(LATEX) for label in columns)]) + r" \\",
        "\\midrule",
    ]
    for task in tasks:
        found = [summarise(at[task, label].scores()) for label in columns]
        best = max((each["mean"] for each in found if each["mean"] is not None), default=None)
        row = [task.translate(LATEX)]
        for each in found:
            if each["mean"] is None:
                row.append("--")
                continue
            mean = f"{each['mean']:.3f}"
            interval = "" if each["ci95"] is None else " [{:.3f}, {:.3f}]".format(*each["ci95"])
            row.append((f"\\textbf{{{mean}}}" if each["mean"] == best else mean) + interval)
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def scores_table(cells: list[Cell]) -> str:
    """One line a seed: its final evaluation return, and that of its training."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("env", "variant", "seed", "eval_return", "train_return"))
    for cell in cells:
        if (summary := cell.summary) is None:
            continue
        trained = summary["train_return"]["per_seed"]
        for i, score in enumerate(cell.scores()):
            last = trained[i] if i < len(trained) else None
            writer.writerow(
                [cell.task, cell.label, cell.config.seed + i, *("" if x is None else f"{x:.6g}" for x in (score, last))]
            )
    return text.getvalue()


def csv_table(cells: list[Cell]) -> str:
    """One line a cell and seed-level scores in one column, for further analysis."""
    text = io.StringIO()
    writer = csv.writer(text)
    head = ("env", "variant", "state", "n", "missing", "mean", "mean_ci95_low", "mean_ci95_high", "iqm", "per_seed")
    sizes = ("memory_width", "memory_params", "memory_flops", "memory_state_bytes")
    writer.writerow((*head, "train_mean", "env_steps", "steps_per_s", "wall_s", "compile_s", *sizes))
    for cell in cells:
        summary = cell.summary
        if summary is None:
            state = "not run" if (state := cell.state) == "done" else state  # it ended at this moment
            state += f": {cell.failure}" if state == "failed" else ""
            writer.writerow([cell.task, cell.label, state])
            continue
        found = summarise(cell.scores())
        numbers = [found["n"], found["missing"], found["mean"], *(found["ci95"] or ("", "")), found["iqm"]]
        per_seed = " ".join("none" if s is None else f"{s:.6g}" for s in found["per_seed"])
        rest = [summary["train_return"]["mean"], summary["env_steps"], summary["steps_per_s"]]
        rest += [summary["wall_s"], summary["compile_s"]]
        if spec_of(cell.config).remembering:
            rest += [width_of(cell.config), *measured(cell.config)]
        writer.writerow([cell.task, cell.label, "done", *numbers, per_seed, *rest])
    return text.getvalue()
