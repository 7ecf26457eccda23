"""The report of a sweep: what tuning brings each memory, as a table, a picture and a file with the winners."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from engram.agents.common.experiment import Experiment
from engram.atomic_files import replacing
from engram.configs import docstrings, store
from engram.experiments.cells import reporting
from engram.experiments.figures import color_of
from engram.experiments.space import words
from engram.experiments.trials import WORST, Plan, Trial
from engram.experiments.tuned import BEST, SCHEMA
from engram.training.folder import write_atomically


def report(plan: Plan, trials: Sequence[Trial]) -> None:
    """Writes the report of what is there, one command at a time."""
    with reporting(plan.out):
        write_atomically(plan.out / "sweep.md", markdown(plan, trials))
        write_atomically(plan.out / "sweep.csv", table(plan, trials))
        write_atomically(plan.out / BEST, json.dumps(best(plan, trials), indent=2) + "\n")
        draw(plan, trials)


def scores(trials: Sequence[Trial], column: str) -> list[float]:
    """Scores of the trials of a column that have ended. One without a score of its own has the lowest of the sweep;
    empty where no trial has any."""
    ended = [(trial.column, trial.score) for trial in trials if trial.has_ended]
    lowest = min((score for _, score in ended if score != WORST), default=None)
    return [] if lowest is None else [lowest if score == WORST else score for name, score in ended if name == column]


def best_of(scores: Sequence[float]) -> np.ndarray:
    """What the best of k trials comes to, `[n]` for k = 1 .. n: the mean of the maximum over all subsets of k.

    The i-th smallest of n is the maximum of (i - 1 choose k - 1) of the (n choose k) subsets.
    """
    ordered, n = np.sort(np.asarray(scores, float)), len(scores)
    shares = [[math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return np.array(shares).reshape(n, n) @ ordered


def winners(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The trial with the highest score of each column, the first of equals; none of a column without a score."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if not trial.has_ended or trial.score == WORST:
            continue
        if trial.column not in found or trial.score > found[trial.column].score:
            found[trial.column] = trial
    return found


def best(plan: Plan, trials: Sequence[Trial]) -> dict:
    """The winners, and what they were chosen from, for `best.json`."""
    ended = {column: sum(t.column == column and t.has_ended for t in trials) for column in plan.columns}
    return {
        "schema": SCHEMA,
        "preset": plan.preset,
        "agent": plan.config.agent,
        "tasks": [*plan.tasks],
        "seeds": [*seeds_of(plan.config)],
        "total_steps": plan.config.total_steps,
        "space": [dimension.entry for dimension in plan.space.dimensions],
        "sampler": plan.sampler,
        "match": plan.match,
        "trials": plan.trials,
        "winners": {
            column: {
                "fields": plan.columns[column],
                "settings": store.plain(trial.settings),
                "score": trial.score,
                "trial": trial.number,
                "ended": ended[column],
            }
            for column, trial in winners(trials).items()
        },
    }


def seeds_of(config: Experiment) -> range:
    """The seeds of its runs."""
    return range(config.seed, config.seed + config.seeds)


def markdown(plan: Plan, trials: Sequence[Trial]) -> str:
    """Best, median and best of k of each column; then all trials, the best first."""
    found, ks = winners(trials), [k for k in (2**i for i in range(1, 12)) if k < plan.trials]
    kind = plan.config.choice
    head = [kind, "best", "median", *(f"best of {k}" for k in ks), "trials", "without a score", "best settings"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for column in plan.columns:
        known, curve = scores(trials, column), best_of(scores(trials, column))
        mine = [trial for trial in trials if trial.column == column]
        ended = [trial for trial in mine if trial.has_ended]
        winner = found.get(column)
        cells = [
            column,
            "" if winner is None else f"{winner.score:.3f}",
            f"{np.median(known):.3f}" if known else "",
            *(f"{curve[k - 1]:.3f}" if k <= len(curve) else "" for k in ks),
            f"{len(ended)} of {plan.trials}",
            str(sum(trial.score == WORST for trial in ended)),
            "" if winner is None else f"{words(winner.settings)} (trial {winner.number})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = ", ".join(map(str, seeds_of(plan.config)))
    lines += [
        "",
        f"Score: final evaluation return of a trial, mean over its seeds ({seeds}) in {' and '.join(plan.tasks)}.",
        f"Every {kind} has the same space ({'; '.join(d.entry for d in plan.space.dimensions)}), sampler "
        f"({plan.sampler}), number of trials, seeds and steps ({plan.config.total_steps:,} a seed).",
        "Best of k: what the best of k of these trials comes to, in the mean over all choices of k"
        + (" (tpe chose later ones by earlier ones, so no shorter search). " if plan.sampler == "tpe" else ". ")
        + "A trial that "
        "diverged, could not be built or has a seed without a number counts as the lowest score of the sweep.",
        "The best is chosen by the seeds that score it, so it is too high: compare the winners on fresh seeds with "
        f"`compare.py --tuned {plan.out / BEST}`.",
    ]
    for column in plan.columns:
        lines += ["", f"## {column}", "", "| trial | score | settings |", "|---|---|---|"]
        for trial in ranked(trial for trial in trials if trial.column == column):
            lines.append(f"| {trial.number} | {said(trial)} | {words(trial.settings)} |")
    return "\n".join(lines) + "\n"


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The best first, those that have not ended last."""
    return sorted(trials, key=lambda t: (not t.has_ended, -t.score if t.has_ended else 0.0, t.number))


def said(trial: Trial) -> str:
    """The score of a trial, or why it has none, for a table."""
    if trial.state == "done" and trial.score != WORST:
        return f"{trial.score:.3f}"
    why = f": {trial.why}" if trial.why else ""
    return f"**{trial.state}**{why}" if trial.state not in ("running", "not run") else f"*{trial.state}*"


def table(plan: Plan, trials: Sequence[Trial]) -> str:
    """One line a trial, with its settings in columns."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = [name for dimension in plan.space.dimensions for name in dimension.fields]
    writer.writerow([plan.config.choice, "trial", "state", "score", "per_seed", *names, "why"])
    for trial in trials:
        score = trial.score if trial.has_ended else WORST
        per_seed = "; ".join(
            " ".join("none" if s is None else f"{s:.6g}" for s in cell.scores()) for cell in trial.cells
        )
        values = [docstrings.words(trial.settings[name]) for name in names]
        shown = "" if score == WORST else f"{score:.6g}"
        writer.writerow([trial.column, trial.number, trial.state, shown, per_seed, *values, trial.why])
    return text.getvalue()


def draw(plan: Plan, trials: Sequence[Trial]) -> None:
    """Best of k over k, and each trial as a dot over its number; one color a column."""
    import matplotlib.pyplot as plt  # slow to import

    plt.switch_backend("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for column in plan.columns:
        curve = best_of(scores(trials, column))
        if not len(curve):
            continue
        left.plot(range(1, len(curve) + 1), curve, color=color_of(column), marker=".", label=column)
        ended = [t for t in trials if t.column == column and t.has_ended and t.score != WORST]
        right.plot([t.number for t in ended], [t.score for t in ended], ".", color=color_of(column), label=column)
    left.set_xlabel("k")
    left.set_ylabel("final evaluation return")
    left.set_title("best of k trials, in the mean", fontsize=9)
    right.set_xlabel("trial")
    right.set_title("each trial", fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    with replacing(plan.out / "sweep.png") as partial_file:
        figure.savefig(partial_file, dpi=110, format="png")
    plt.close(figure)
