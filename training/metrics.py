"""Where numbers go: `metrics.jsonl`, the terminal, and Weights & Biases."""

import json
import math
import os
import sys
import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Row = dict[str, Any]


def finite_or_none(value: float) -> float | None:
    """A JSON number; NaN and infinities, which JSON lacks, become null."""
    value = float(value)
    return value if math.isfinite(value) else None


def aggregate(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One chunk's metrics `[updates, seeds]` as one number per seed.

    Means over updates; but `train/episodes` is a sum, and `<x>_sum` becomes `<x>`, the mean over the episodes that
    ended (NaN where none did); `<x>_last` becomes `<x>`, its value after the last update, for what counts up over the
    whole run; `<x>_min` is the least. Where `train/learned` says which updates learned, `loss/<x>` are means over these
    alone, and missing where a seed has none. `replay/<x>` are records, not metrics, and left out.
    """
    out = {}
    learned = metrics.get("train/learned")
    episodes = np.sum(metrics.get("train/episodes", np.zeros(1)), axis=0)
    for name, values in metrics.items():
        if name.startswith("replay/"):
            continue
        if name == "train/episodes":
            out[name] = episodes
        elif name.endswith("_sum"):
            total = np.sum(values, axis=0, dtype=np.float64)
            out[name.removesuffix("_sum")] = np.divide(
                total, episodes, out=np.full(episodes.shape, np.nan), where=episodes > 0
            )
        elif name.endswith("_last"):
            out[name.removesuffix("_last")] = values[-1]
        elif name.endswith("_min"):
            out[name] = np.min(values, axis=0)
        elif name.startswith("loss/") and learned is not None:
            if np.all(np.any(learned, axis=0)):
                out[name] = np.average(values, axis=0, weights=learned)
        else:
            out[name] = np.mean(values, axis=0, dtype=np.float64)
    return out


class MetricsLog:
    """`metrics.jsonl`, one object a line, flushed as it is written."""

    def __init__(self, path: Path, rows: int):
        """Opens `path` for appending after its first `rows` lines; later ones are of a run that was killed."""
        kept = read_metrics(path)[:rows] if path.exists() else []
        self.rows: list[Row] = kept
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.rename(path)
        self._file = path.open("a")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class WandbLog:
    """Weights & Biases, or nothing when `mode` is "disabled"."""

    def __init__(self, mode: Literal["disabled", "offline", "online"], folder: Path, config: dict[str, Any]):
        self.run = None
        if mode != "disabled":
            import wandb  # slow to import, and most runs do without

            identity = folder / "wandb-id"  # kept in the folder, so that a resumed run continues its own page
            if not identity.exists():
                identity.write_text(uuid.uuid4().hex)
            name = f"{folder.parent.name}/{folder.name}"
            self.run = wandb.init(
                project="engram",
                mode=mode,
                dir=folder,
                id=identity.read_text().strip(),
                name=name,
                config=config,
                resume="allow",
            )

    def write(self, row: Row) -> None:
        if self.run is None:
            return
        flat = {}
        for key, value in row.items():
            known = [v for v in value if v is not None] if isinstance(value, list) else [value]
            if known:
                flat[key] = float(np.mean(known))
        self.run.log(flat, step=row["env_steps"])

    def picture(self, path: Path) -> None:
        """A PNG or GIF, by its file's name."""
        if self.run is not None:
            import wandb

            show = wandb.Video(str(path), format="gif") if path.suffix == ".gif" else wandb.Image(str(path))
            self.run.log({f"views/{path.stem}{path.suffix.replace('.', '_')}": show})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def mean_of(row: Row, key: str) -> float | None:
    """Mean over seeds of one entry of a row, or None where it is missing."""
    known = [v for v in row.get(key, []) if v is not None]
    return float(np.mean(known)) if known else None


class Display:
    """Progress: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, label: str, total_steps: int, seeds: int, quiet: bool):
        self.total, self.seeds = total_steps, seeds
        self.quiet = quiet
        self.bar = None
        console = Console(file=sys.stderr)
        if console.is_terminal and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[state]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task(label, total=total_steps, state="compiling")
            self.bar.start()
        self.label = label

    def show(self, row: Row) -> None:
        if self.quiet:
            return
        returns = mean_of(row, "train/return")
        text = "return  n/a" if returns is None else f"return {returns:6.3f}"
        evaluated = mean_of(row, "eval/return")
        if evaluated is not None:
            text += f"  eval {evaluated:6.3f}"
        text += f"  {row['steps_per_s']:,.0f} steps/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=row["env_steps"], state=text)
        else:
            left = (self.total - row["env_steps"]) * self.seeds / max(row["steps_per_s"], 1e-9)
            print(
                f"{self.label}: {row['env_steps']:>12,} steps  {text}  {left:,.0f} s left", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
