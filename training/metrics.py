"""Numbers of a run: one chunk's metrics as a row, `metrics.jsonl`, and Weights & Biases."""

import json
import math
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engram.atomic_files import is_at, replacing, set_aside
from engram.errors import BadRequest
from engram.regular_files import opened, read_text
from engram.training.stderr import notify

Row = dict[str, Any]
"""One line of `metrics.jsonl`: numbers of the run, and under `loss/`, `train/` and `eval/` lists of one number per seed
(None where it is missing or not finite)."""


OF_THE_RUN = ("env_steps", "updates", "wall_s", "steps_per_s")
"""Names of what a row has one number of."""


def finite_or_none(value: float) -> float | None:
    """`value` as a JSON number. NaN and infinities, which JSON lacks, become None."""
    value = float(value)
    return value if math.isfinite(value) else None


def aggregate(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of one chunk, `[updates, seeds]`, as one number per seed, `[seeds]`.

    The number is the mean over updates, except for:

    - `train/episodes`: the sum;
    - `<x>_sum`: becomes `<x>`, the mean over the episodes that ended (NaN where none did);
    - `<x>_last`: becomes `<x>`, the value after the last update, for what counts up over the whole run;
    - `<x>_min`: the least value;
    - `loss/<x>`, where `train/learned` tells which updates learned: the mean over these alone, and no number at all
      where a seed has none;
    - `replay/<x>`: left out, a record and no metric.
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


class LastKnown:
    """The last known number of every seed. A mean over seeds would else leave out those whose episodes have not ended,
    which may be the best or the worst."""

    def __init__(self):
        self.values: dict[str, list[float | None]] = {}
        """By metric; None for a seed that has had no number yet."""

    def fill(self, row: Row) -> Row:
        """The next row, with the last known number wherever a seed has none."""
        for name, values in row.items():
            if isinstance(values, list):
                before = self.values.get(name, values)
                self.values[name] = [old if new is None else new for new, old in zip(values, before, strict=True)]
        return {name: self.values.get(name, value) for name, value in row.items()}


class MetricsLog:
    """`metrics.jsonl`, one object a line, on disk as soon as it is written."""

    def __init__(self, path: Path, rows: Sequence[Row]):
        """Opens `path` for appending after `rows`. Later lines, which are of a run that was killed, are dropped; a file
        that does not begin with `rows` is damaged, and is set aside and written again."""
        self.rows: list[Row] = list(rows)
        self.path, text = path, text_of(rows)
        if path.exists() and not _content(path).startswith(text.encode()):
            notify(f"{path} has lost lines: it is written again, and kept as {set_aside(path).name}")
        self._open()

    def _open(self) -> None:
        """Writes what is known, as one whole, and goes on behind it."""
        with replacing(self.path) as partial:
            partial.write_text(text_of(self.rows))
        self._file = self.path.open("a")

    def write(self, row: Row) -> None:
        self.rows.append(row)
        if not is_at(self._file, self.path):  # somebody removed or replaced it
            self._file.close()
            self._open()
            return
        self._file.write(text_of([row]))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def text_of(rows: Sequence[Row]) -> str:
    """The lines of a metrics file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_metrics(path: Path) -> list[Row]:
    """The lines of a metrics file. A last line that a kill cut short is left out.

    Raises:
        BadRequest: another line is damaged, or it is no regular file.
        OSError: the file cannot be read.
    """
    return rows_of(_content(path), path)


def _content(path: Path) -> bytes:
    with opened(path) as file:
        return file.read()


def rows_of(data: bytes, path: Path) -> list[Row]:
    """The lines of a metrics file with the content `data`; `path` is named where one is damaged."""
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    rows = [_row(line) for line in lines]
    seeds = next((len(value) for row in rows for value in (row or {}).values() if isinstance(value, list)), 0)
    rows = [row if row is not None and _is_of(row, seeds) else None for row in rows]
    if rows and rows[-1] is None:  # cut short
        rows.pop()
    if None in rows:
        raise BadRequest(f"{path} is damaged in line {rows.index(None) + 1}")
    return [row for row in rows if row is not None]


def _row(line: bytes) -> Row | None:
    """A line of a metrics file, or None where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("env_steps")) is not int:
        return None
    values = [v for value in row.values() for v in (value if isinstance(value, list) else [value])]
    return row if all(v is None or (type(v) in (int, float) and abs(v) <= sys.float_info.max) for v in values) else None


def _is_of(row: Row, seeds: int) -> bool:
    """Whether a row has lists of one number for each of `seeds`, and one number where the run has one."""
    lists = {name: value for name, value in row.items() if isinstance(value, list)}
    named = all(name in lists for name in row if "/" in name)
    return named and not lists.keys() & {*OF_THE_RUN} and all(len(value) == seeds for value in lists.values())


class WandbLog:
    """Weights & Biases, or nothing when `mode` is "disabled"."""

    def __init__(
        self,
        mode: Literal["disabled", "offline", "online"] = "disabled",
        folder: Path = Path(),
        config: dict[str, Any] | None = None,
    ):
        self.run = None
        if mode != "disabled":
            if os.path.expanduser("~") == "~":  # which it would fail to import without
                raise BadRequest(f"--wandb {mode} needs a home folder: set HOME")
            import wandb  # slow to import, and most runs do not use it

            identity = folder / "wandb-id"  # kept in the folder, so that a resumed run continues its own page
            if not identity.exists():
                identity.write_text(uuid.uuid4().hex)
            name = f"{folder.parent.name}/{folder.name}"
            self.run = wandb.init(
                project="engram",
                mode=mode,
                dir=folder,
                id=read_text(identity).strip(),
                name=name,
                config=config,
                resume="allow",
            )

    def write(self, row: Row) -> None:
        if self.run is None:
            return
        flat = {}
        for key, value in row.items():
            values = value if isinstance(value, list) else [value]
            known = [v for v in values if v is not None]
            if known:
                flat[key] = float(np.mean(known))
            if len(known) < len(values):
                flat[f"{key}_missing_seeds"] = len(values) - len(known)
        self.run.log(flat, step=row["env_steps"])

    def picture(self, path: Path) -> None:
        """Shows a PNG or GIF under the name of its file."""
        if self.run is not None:
            import wandb

            show = wandb.Video(str(path), format="gif") if path.suffix == ".gif" else wandb.Image(str(path))
            self.run.log({f"views/{path.stem}{path.suffix.replace('.', '_')}": show})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
