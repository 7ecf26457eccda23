"""Learning curves of runs: the panels that their agent declares."""

import colorsys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engram.agents.common.experiment import Experiment
from engram.agents.common.spec import Panel
from engram.agents.registry import spec_of
from engram.errors import BadRequest, UnknownName
from engram.experiments.runs import Run
from engram.training.metrics import LastKnown, Row, read_metrics


def band(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[n]` and values `[n, seeds]` of one metric. Where a seed has no number its last one stands; the band
    begins where all have one, but for seeds that never have: these are left out."""
    last = LastKnown()
    filled = [last.fill({"env_steps": row["env_steps"], key: row[key]}) for row in rows if key in row]
    seeds = [seed for seed, value in enumerate(last.values.get(key, [])) if value is not None]
    have = [(row["env_steps"], [row[key][seed] for seed in seeds]) for row in filled]
    have = [(step, values) for step, values in have if seeds and None not in values]
    return np.array([step for step, _ in have]), np.array([values for _, values in have])


def missing(rows: list[Row], key: str) -> str:
    """Words for the seeds that `band` leaves out, none where there are none."""
    per_seed = next((row[key] for row in rows if key in row), [])
    steps, values = band(rows, key)
    left = values.shape[-1] if len(steps) else 0
    return "" if left == len(per_seed) else f" ({left} of {len(per_seed)} seeds)"


COLORS = {
    "none": "#7f7f7f",
    "gru": "#1f77b4",
    "lstm": "#17becf",
    "mingru": "#6a9fd8",
    "rnn": "#9edae5",
    "s5": "#ff7f0e",
    "lru": "#e6ab02",
    "s4d": "#ffbb78",
    "mamba": "#2ca02c",
    "mamba2": "#98df8a",
    "mamba3": "#66a61e",
    "gla": "#8c564b",
    "deltanet": "#d62728",
    "rwkv7": "#ff9896",
    "mlstm": "#c49c94",
    "attention": "#9467bd",
    "gtrxl": "#c5b0d5",
    "framestack": "#e377c2",
    "ffm": "#bcbd22",
    "aaren": "#f7b6d2",
}
"""Colors of the memories that are compared most often."""


def color_of(label: str) -> str:
    """The color of a memory or an algorithm, the same in every picture. One without an entry in `COLORS` has a hue and
    a brightness by its name."""
    if label in COLORS:
        return COLORS[label]
    number = zlib.crc32(label.encode())
    hue, brightness = number % 360 / 360, (0.55, 0.7, 0.85)[number // 360 % 3]
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, brightness)))


def colors_of(labels: Sequence[str]) -> list[str]:
    """Colors of the entries of a picture: their own, or where two entries have one label, one after the other."""
    if len({*labels}) == len(labels):
        return [color_of(label) for label in labels]
    return [f"C{i}" for i in range(len(labels))]


EVENT_SEEDS = 20
"""Seeds whose events are drawn."""
MANY_SEEDS = 8
"""From so many seeds on, a band spans 80 % of them instead of all: a range only grows with their number."""


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of a band over the last axis, the seeds."""
    low, high = (10, 90) if values.shape[-1] >= MANY_SEEDS else (0, 100)
    return np.percentile(values, low, axis=-1), np.percentile(values, high, axis=-1)


def band_words(seeds: int) -> str:
    """Words for the span of a band, for a title."""
    return "80 % of the seeds" if seeds >= MANY_SEEDS else "range over seeds"


X = Literal["env_steps", "wall_s"]
"""What curves are drawn over."""


def over(rows: list[Row], x: X) -> list[Row]:
    """Log points whose place on the horizontal axis, `env_steps`, is that of `x`."""
    return [{**row, "env_steps": row[x]} for row in rows]


def steps_of(config: Experiment, x: X = "env_steps") -> str:
    """Words for the steps of a run, or for what else is drawn over, for an axis."""
    if x == "wall_s":
        return "seconds of training, all seeds together"
    return "gradient steps per seed" if config.row == "dataset" else "environment steps per seed"


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
        style = "o-" if len(steps) == 1 else "-"
        axes.plot(steps, values.mean(1), style, color=color, label=label + missing(rows, panel.key), markersize=4)
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


def panel_of(metric: str, runs: list[tuple[Experiment, list[Row]]]) -> Panel:
    """A panel of one metric. Raises BadRequest where no run has it."""
    known = {name for _, rows in runs for row in rows for name, value in row.items() if isinstance(value, list)}
    if metric not in known:
        raise UnknownName.among("metric", metric, sorted(known))
    return Panel(metric, metric)


def told_apart(folders: Sequence[Path], configs: Sequence[Experiment]) -> list[str]:
    """A label for each run: its memory or algorithm, with the task where there are several, and with the name of its
    folder where that is not enough."""
    several = len({config.task for config in configs}) > 1
    labels = [f"{config.task}, {config.label}" if several else config.label for config in configs]
    times = Counter(labels)
    return [
        label if times[label] == 1 else f"{label} ({folder.absolute().name})"
        for label, folder in zip(labels, folders, strict=True)
    ]


def draw_curves(
    folders: Sequence[Path],
    out: Path,
    x: X = "env_steps",
    metrics: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> None:
    """Draws the panels of one or more runs of the same agent into `out`.

    Args:
        x: what is on the horizontal axis.
        metrics: names of metrics, a panel each, in place of the agent's panels; runs may then be of any agents.
        labels: of the runs (default: the memory or algorithm, with what else tells two runs apart).

    Raises:
        BadRequest: there is no run, a folder has no metrics to draw, the runs are of different agents, no run has one
            of `metrics`, there are more or fewer `labels` than runs, or the ending of `out` is that of no picture.
    """
    import matplotlib.pyplot as plt  # slow to import: only once there is something to draw
    from matplotlib.backend_bases import FigureCanvasBase

    runs = []
    if not folders:
        raise BadRequest("name at least one run folder")
    for folder in folders:
        try:
            rows = read_metrics(folder / "metrics.jsonl")
        except OSError as error:
            raise BadRequest(f"cannot read {folder / 'metrics.jsonl'}: {error.strerror}") from None
        if not rows:
            raise BadRequest(f"{folder / 'metrics.jsonl'} holds no log point yet")
        runs.append((Run.load(folder).config, over(rows, x)))
    agents = sorted({config.agent for config, _ in runs})
    if len(agents) > 1 and not metrics:
        raise BadRequest(f"these are runs of different agents ({', '.join(agents)}): draw each agent's on their own")
    panels = [panel_of(name, runs) for name in metrics] or spec_of(runs[0][0]).panels
    plt.switch_backend("Agg")
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if out.suffix.removeprefix(".").lower() not in endings:
        raise BadRequest(f"{out}: the ending of a picture is one of {', '.join(endings)}")
    size = (7, 4.2) if len(panels) == 1 else (5.5 * len(panels), 4)
    tasks = {config.task for config, _ in runs}
    names = list(labels) or told_apart(folders, [config for config, _ in runs])
    if len(names) != len(runs):
        raise BadRequest(f"{len(names)} labels for {len(runs)} runs")
    colors = colors_of([config.label for config, _ in runs])
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for panel, axes in zip(panels, all_axes.flat, strict=True):
        seeds = 0
        for color, label, (_, rows) in zip(colors, names, runs, strict=True):
            seeds = max(seeds, draw_panel(axes, panel, rows, color, label))
        axes.set_xlabel("return asked for" if panel.targets else steps_of(runs[0][0], x))
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
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)
