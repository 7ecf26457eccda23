"""The suite's format for data beyond memory: a folder `NAME.engram` of plain `.npy` arrays and `header.json`.

The arrays are those of `Episodes`, and `returns` and `to_go`, which follow from them. They are mapped into memory and
read as they are needed. The header says what there must be, so that a folder that is not whole is refused, and keeps
the statistics of observations, which are computed once, in float64, when the folder is written.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engram.atomic_files import replacing
from engram.envs.datasets.episodes import About, Episodes, Known, blocks, mean_and_deviation, write_to_go
from engram.envs.datasets.files import array_header, dump_origin, load_origin, reading
from engram.errors import BadRequest
from engram.regular_files import is_number, opened, read_json, size_of

ENDING = ".engram"
HEADER = "header.json"
VERSION = 1
STEPS = ("obs", "action", "reward")
"""Arrays that grow while episodes are written."""
KINDS = {
    "obs": ("float32", "uint8"),
    "action": ("float32", "int32"),
    "reward": ("float32",),
    "terminated": ("bool",),
    "lengths": ("int64",),
    "returns": ("float64",),
    "to_go": ("float32",),
    "action_low": ("float32",),
    "action_high": ("float32",),
}
"""Dtypes of each array; the bounds of actions are there where they are known."""


def write(episodes: Episodes, path: Path) -> None:
    """Writes `episodes`, which may be larger than memory, in blocks."""

    def parts() -> Iterator[dict[str, np.ndarray]]:
        for name in STEPS:
            array = getattr(episodes, name)
            yield from ({name: array[rows]} for rows in blocks(array))

    about = About(
        origin=episodes.origin,
        num_actions=episodes.num_actions,
        action_low=episodes.action_low,
        action_high=episodes.action_high,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
    )
    write_parts(parts(), about, path)


def write_parts(parts: Iterator[Mapping[str, np.ndarray]], about: About, path: Path) -> None:
    """Writes what `parts` holds of `obs`, `action` and `reward`, one block after another.

    Raises:
        BadRequest: it is no dataset, or `path` is something else.
    """
    if path.exists() and not (path / HEADER).is_file():
        raise BadRequest(f"{path} exists and is not a dataset of this format: it is left as it is")
    with replacing(path) as partial:
        partial.mkdir()
        with ExitStack() as stack:
            files: dict[str, Growing] = {}
            for part in parts:
                for name, block in part.items():
                    if name not in files:
                        files[name] = Growing(stack.enter_context((partial / f"{name}.npy").open("w+b")), block)
                    files[name].append(name, block)
            if {*files} != {*STEPS}:
                raise BadRequest("the dataset is empty")
            for file in files.values():
                file.finish()
        arrays = {name: _mapped(partial, name) for name in STEPS}
        fields = {field.name: getattr(about, field.name) for field in dataclasses.fields(About)}
        fields |= {"lengths": np.asarray(about.lengths, np.int64), "terminated": np.asarray(about.terminated, bool)}
        episodes = Episodes(**arrays, **fields)  # which looks at all of it, in blocks
        _complete(partial, episodes)


class Growing:
    """An array in a file, to which rows are added."""

    def __init__(self, file: BinaryIO, first: np.ndarray):
        self._file, self._dtype, self._shape, self._rows = file, first.dtype, first.shape[1:], 0
        self._head()

    def append(self, name: str, block: np.ndarray) -> None:
        if block.shape[1:] != self._shape or block.dtype != self._dtype:
            raise BadRequest(f"episodes differ in the shape of their {name}")
        self._rows += len(block)
        self._file.write(np.ascontiguousarray(block).data.cast("B") if block.size else b"")

    def finish(self) -> None:
        self._file.seek(0)
        self._head()

    def _head(self) -> None:
        """NumPy leaves room in a header for the first axis to grow."""
        described = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _complete(folder: Path, episodes: Episodes) -> None:
    """Adds to `folder` what is not there yet, the header last."""
    known: dict[str, np.ndarray] = {
        "lengths": episodes.lengths.astype(np.int64),
        "terminated": episodes.terminated,
        "returns": episodes.returns,
    }
    for name in ("action_low", "action_high"):
        if (bound := getattr(episodes, name)) is not None:
            known[name] = bound
    to_go = np.lib.format.open_memmap(folder / "to_go.npy", "w+", np.dtype(np.float32), episodes.reward.shape)
    write_to_go(episodes.reward, episodes.lengths, np.asarray(to_go))
    to_go.flush()
    for name, array in known.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    shapes = {name: _header(folder / f"{name}.npy") for name in KINDS if (folder / f"{name}.npy").exists()}
    mean, deviation = mean_and_deviation(episodes.obs, episodes.lengths)
    header = {
        "version": VERSION,
        "arrays": {name: {"shape": list(shape), "dtype": dtype.name} for name, (shape, dtype, _) in shapes.items()},
        "num_actions": episodes.num_actions,
        "origin": json.loads(dump_origin(episodes.origin)),
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
    }
    (folder / HEADER).write_text(json.dumps(header))


def read(path: Path) -> Episodes:
    """Opens a folder of `write`. Its arrays stay where they are.

    Raises:
        BadRequest: whatever is wrong with it, in one line that names it.
    """
    with reading(path):
        if not (path / HEADER).exists():
            raise BadRequest(f"is not a whole dataset: it lacks {HEADER}")
        header = read_json(path / HEADER)
        try:
            version, arrays, origin = header["version"], header["arrays"], load_origin(header["origin"])
            num_actions, statistics = header["num_actions"], [header["mean"], header["deviation"]]
            expected = {name: (tuple(about["shape"]), about["dtype"]) for name, about in arrays.items()}
            whole = (
                {*expected} | {"action_low", "action_high"} == {*KINDS}
                and all(dtype in KINDS[name] for name, (_, dtype) in expected.items())
                and all(isinstance(column, list) and all(map(is_number, column)) for column in statistics)
                and isinstance(num_actions, int | None)
            )
        except (KeyError, TypeError, AttributeError):
            raise BadRequest(f"{HEADER} is damaged") from None
        if version != VERSION:
            raise BadRequest(f"is of version {version}, not {VERSION}")
        if not whole:
            raise BadRequest(f"{HEADER} is damaged")
        mapped = {name: _mapped(path, name, *about) for name, about in expected.items()}
        mean, deviation = (np.array(column, np.float64) for column in statistics)
        returns, to_go = mapped.pop("returns"), mapped.pop("to_go")
        if mean.shape != mapped["obs"].shape[1:] or deviation.shape != mean.shape:
            raise BadRequest(f"{HEADER} is damaged: its statistics do not fit the observations")
        if returns.shape != mapped["lengths"].shape or to_go.shape != mapped["reward"].shape:
            raise BadRequest("its arrays do not fit together")
        known = Known(
            **{name: mapped[name] for name in (*STEPS, "lengths")},
            mean=mean,
            deviation=deviation,
            returns=returns,
            to_go=to_go,
        )
        return Episodes(**mapped, origin=origin, num_actions=num_actions, known=known)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and place of the numbers of an array in a file. Raises BadRequest where it is not whole."""
    with opened(path) as file:
        shape, dtype, by_columns = array_header(file, path.name)
        offset = file.tell()
    if by_columns and len(shape) > 1:
        raise BadRequest(f"{path.name} is stored column by column")
    if offset + math.prod(shape) * dtype.itemsize != size_of(path):
        raise BadRequest(f"{path.name} is damaged: it has not as many bytes as its shape {shape} needs")
    return shape, dtype, offset


def _mapped(folder: Path, name: str, shape: Any = None, dtype: str = "") -> np.ndarray:
    """An array of the folder, mapped into memory; it must be as the header says, where that is given."""
    path = folder / f"{name}.npy"
    if not path.exists():
        raise BadRequest(f"lacks {path.name}")
    found, kind, offset = _header(path)
    if dtype and (found, kind.name) != (shape, dtype):
        raise BadRequest(f"{path.name} is damaged: it holds {kind.name} {found} in place of {dtype} {shape}")
    if not math.prod(found):
        return np.empty(found, kind)
    return np.asarray(np.memmap(path, kind, "r", offset, found))
