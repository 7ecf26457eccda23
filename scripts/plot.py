"""Learning curves of one or more runs in one picture.

python scripts/plot.py RUN_DIR [RUN_DIR ...] [--out FILE]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from agents.run.errors import BadRequest
from agents.run.folder import read_config, say
from agents.run.metrics import Row, read_metrics
from scripts.common import parse, run_script


def band(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[n]` and values `[n, seeds]` of one metric, at the rows that have it for every seed."""
    have = [row for row in rows if key in row and None not in row[key]]
    return np.array([row["env_steps"] for row in have]), np.array([row[key] for row in have])


def draw_curves(folders: Sequence[Path], out: Path) -> None:
    """Draws training return (line: mean over seeds, band: their range) and evaluations (dots) of runs into `out`.

    Raises:
        BadRequest: a folder has no metrics to draw.
    """
    import matplotlib.pyplot as plt  # slow to import: only once there is something to draw

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for color, folder in enumerate(folders):
        try:
            rows = read_metrics(folder / "metrics.jsonl")
        except OSError as error:
            raise BadRequest(f"cannot read {folder / 'metrics.jsonl'}: {error.strerror}") from None
        if not rows:
            raise BadRequest(f"{folder / 'metrics.jsonl'} holds no log point yet")
        config = read_config(folder)
        label = f"{config['env']}, {config['memory']}"
        steps, values = band(rows, "train/return")
        if len(steps):
            axes.plot(steps, values.mean(1), color=f"C{color}", label=label)
            axes.fill_between(steps, values.min(1), values.max(1), color=f"C{color}", alpha=0.2, linewidth=0)
        steps, values = band(rows, "eval/return")
        if len(steps):
            axes.plot(steps, values.mean(1), "o", color=f"C{color}", markersize=4)
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel("episode return")
    axes.set_title("line: training (band: range over seeds), dots: evaluation", fontsize=9)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
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
