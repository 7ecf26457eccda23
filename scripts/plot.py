"""Learning curves of one or more runs in one picture.

python scripts/plot.py RUN_DIR [RUN_DIR ...] [--out FILE]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from engram.configs.experiment import EXPERIMENTS, ValueExperiment
from engram.errors import BadRequest
from engram.scripts.common import parse, run_script
from engram.training.folder import read_config, say
from engram.training.metrics import Row, read_metrics


def band(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[n]` and values `[n, seeds]` of one metric, at the rows that have it for every seed."""
    have = [row for row in rows if key in row and None not in row[key]]
    return np.array([row["env_steps"] for row in have]), np.array([row[key] for row in have])


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a metric over time, and what is drawn with it."""

    key: str
    """The metric: a line for its mean over seeds, a band for their spread."""
    label: str
    """What the vertical axis says."""
    dots: str | None = None
    """A metric at few points, drawn as dots."""
    floor: str | None = None
    """A metric that `key` must not fall below, drawn dashed."""
    zero: bool = False
    """Also draw the line at 0."""
    events: str | None = None
    """Instead of a curve: `key` and this metric hold the steps of two kinds of events, drawn as dots and bars."""
    targets: bool = False
    """Instead of a curve: the latest metrics `<key><number>` over these numbers, and where both are equal."""


PANELS: dict[str, tuple[Panel, ...]] = {
    "ppo": (Panel("train/return", "episode return", dots="eval/return"),),
    "drama": (
        Panel("train/return", "episode return", dots="eval/return"),
        Panel("loss/reconstruction", "reconstruction loss"),
        Panel("loss/dynamics", "KL of the dynamics"),
    ),
    "conservative": (
        Panel("train/return", "return while learning", floor="train/threshold"),
        Panel("train/learner_steps", "share of steps that the learner makes"),
        Panel("eval/return", "return of the learner alone"),
    ),
    "sequence": (
        Panel("eval/return", "return of the best target"),
        Panel("loss/action", "loss of the action"),
        Panel("eval/return_at_", "return achieved", targets=True),
    ),
    "values": (
        Panel("eval/return", "return of the best actions"),
        Panel("loss/policy", "loss of the policy"),
        Panel("loss/value", "value, or its loss"),
    ),
    "lsd": (
        Panel("train/regret", "cumulative regret against (1 - 1/e) LP"),
        Panel("train/return", "reward a round"),
    ),
    "ucrl": (
        Panel("train/regret", "cumulative regret"),
        Panel("train/return", "reward a step"),
        Panel("train/last_alarm", "seed (bars: true changes, dots: alarms)", events="train/last_change"),
    ),
    "stepmix": (
        Panel("train/regret", "cumulative regret"),
        Panel("train/return", "exact value an episode", floor="train/threshold"),
        Panel("train/margin_min", "least value of an episode above the safety line", zero=True),
    ),
    "dynlin": (Panel("train/regret", "cumulative regret"), Panel("train/best_action", "share of best actions")),
    "neucb": (Panel("train/regret", "cumulative mistakes"), Panel("train/return", "reward a round")),
}
"""What is drawn of a run, by the agent's name. `compare` draws the first panel."""
EVENT_SEEDS = 20
"""Seeds whose events are drawn."""
MANY_SEEDS = 8
"""From so many seeds on, a band spans 80 % of them instead of all: a range only grows with their number."""


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of a band over the last axis, the seeds."""
    low, high = (10, 90) if values.shape[-1] >= MANY_SEEDS else (0, 100)
    return np.percentile(values, low, axis=-1), np.percentile(values, high, axis=-1)


def band_words(seeds: int) -> str:
    """What a band spans, for a title."""
    return "80 % of the seeds" if seeds >= MANY_SEEDS else "range over seeds"


def agent_of(config: dict[str, Any]) -> str:
    """The agent of a `config.yaml`."""
    return config.get("agent", "ppo")


def label_of(config: dict[str, Any]) -> str:
    """The memory or the algorithm, or both, of a `config.yaml`."""
    chosen = config[EXPERIMENTS[agent_of(config)].choice]
    history = config.get("memory") if agent_of(config) == ValueExperiment.agent else ""
    return f"{chosen}-{history}" if history else chosen


def task_of(config: dict[str, Any]) -> str:
    """The environment or dataset of a `config.yaml`."""
    return config[EXPERIMENTS[agent_of(config)].row]


def steps_of(config: dict[str, Any]) -> str:
    """What the steps of a run count, for an axis."""
    return "gradient steps per seed" if "dataset" in config else "environment steps per seed"


def draw_targets(axes: Any, panel: Panel, rows: list[Row], color: str, label: str) -> int:
    """Draws a panel with `targets`. Returns the number of seeds, 0 before the first evaluation."""
    names = {key: float(key.removeprefix(panel.key)) for row in rows for key in row if key.startswith(panel.key)}
    names = dict(sorted(names.items(), key=lambda item: item[1]))
    values = np.array([band(rows, key)[1][-1] for key in names])
    if not names:
        return 0
    asked = list(names.values())
    axes.plot(asked, values.mean(1), "o-", color=color, label=label, markersize=4)
    axes.fill_between(asked, *spread(values), color=color, alpha=0.2, linewidth=0)
    axes.axline((asked[0], asked[0]), slope=1, linestyle="--", color="black", linewidth=1)
    return values.shape[-1]


def draw_panel(axes: Any, panel: Panel, rows: list[Row], color: str, label: str) -> int:
    """Draws `panel` of one run. Returns the number of its seeds, 0 if the metric is missing."""
    if panel.targets:
        return draw_targets(axes, panel, rows, color, label)
    steps, values = band(rows, panel.key)
    if panel.events:
        for key, style, shade in ((panel.events, "|", "0.6"), (panel.key, ".", color)):
            latest = band(rows, key)[1][:, :EVENT_SEEDS]
            points = [(step, seed) for seed, column in enumerate(latest.T) for step in np.unique(column[column > 0])]
            axes.plot(*np.array(points).reshape(-1, 2).T, style, color=shade, markersize=9 if style == "|" else 5)
        return values.shape[-1]
    if len(steps):
        # A line of one point would not be seen.
        axes.plot(steps, values.mean(1), "o-" if len(steps) == 1 else "-", color=color, label=label, markersize=4)
        axes.fill_between(steps, *spread(values), color=color, alpha=0.2, linewidth=0)
    if panel.zero:
        axes.axhline(0, linestyle="--", color="black", linewidth=1)
    if panel.floor:
        at, floor = band(rows, panel.floor)
        if len(at):
            axes.plot(at, floor.mean(1), "--", color="black", linewidth=1)
    if panel.dots:
        at, dots = band(rows, panel.dots)
        if len(at):
            axes.plot(at, dots.mean(1), "o", color=color, markersize=4)
    return values.shape[-1] if len(steps) else 0


def draw_curves(folders: Sequence[Path], out: Path) -> None:
    """Draws the panels of one or more runs of the same agent into `out`.

    Raises:
        BadRequest: a folder has no metrics to draw, or the runs are of different agents.
    """
    import matplotlib.pyplot as plt  # slow to import: only once there is something to draw

    runs = []
    for folder in folders:
        try:
            rows = read_metrics(folder / "metrics.jsonl")
        except OSError as error:
            raise BadRequest(f"cannot read {folder / 'metrics.jsonl'}: {error.strerror}") from None
        if not rows:
            raise BadRequest(f"{folder / 'metrics.jsonl'} holds no log point yet")
        runs.append((read_config(folder), rows))
    agents = sorted({agent_of(config) for config, _ in runs})
    if len(agents) > 1:
        raise BadRequest(f"these are runs of different agents ({', '.join(agents)}): draw each agent's on their own")
    panels = PANELS[agents[0]]
    plt.switch_backend("Agg")
    size = (7, 4.2) if len(panels) == 1 else (5.5 * len(panels), 4)
    tasks = {task_of(config) for config, _ in runs}
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for panel, axes in zip(panels, all_axes.flat, strict=True):
        seeds = 0
        for color, (config, rows) in enumerate(runs):
            label = label_of(config) if len(tasks) == 1 else f"{task_of(config)}, {label_of(config)}"
            seeds = max(seeds, draw_panel(axes, panel, rows, f"C{color}", label))
        axes.set_xlabel("return asked for" if panel.targets else steps_of(runs[0][0]))
        axes.set_ylabel(panel.label)
        if panel.events:
            axes.set_title("of each log point the latest", fontsize=9)
            axes.set_xlim(0, max(rows[-1]["env_steps"] for _, rows in runs))
            axes.yaxis.get_major_locator().set_params(integer=True)
            continue
        words = f"line: mean (band: {band_words(seeds)})" + (", dots: evaluation" if panel.dots else "")
        axes.set_title(words, fontsize=9)
        axes.grid(alpha=0.3)
    if all_axes.flat[0].get_legend_handles_labels()[0]:
        all_axes.flat[0].legend(fontsize=8)
    if len(tasks) == 1:
        figure.suptitle(tasks.pop(), fontsize=10)
    figure.savefig(out, dpi=120)
    plt.close(figure)


@dataclass(frozen=True)
class Options:
    """Learning curves of one or more runs in one picture."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("curves.png")
    """Picture to write."""


def main(arguments: Sequence[str]) -> int:
    options = parse(Options, None, arguments, "plot.py", Options.__doc__ or "")
    if not options.runs:
        raise BadRequest("name at least one run folder")
    draw_curves(options.runs, options.out)
    say(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
