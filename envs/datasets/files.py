"""What the formats share: errors that name the file, numbers and actions as they are stored, and the origin as JSON."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engram.envs.datasets.episodes import Origin
from engram.envs.extras import needs
from engram.errors import BadRequest


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what reading a bad file raises into a BadRequest of one line that begins with `path`."""
    try:
        yield
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such file") from None
    except (BadRequest, OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise BadRequest(f"{path}: {' '.join(str(reason).split())}") from None


def hdf5(path: Path) -> Any:
    """The package h5py, to read or write `path`. Raises MissingExtra."""
    return needs("h5py", "offline", f"{path} (HDF5)")


def stored(group: Any, name: str) -> Any:
    """The array or text `name` in an open HDF5 file.

    Raises:
        BadRequest: it is neither.
    """
    try:
        found = group.get(name)
        if hasattr(found, "shape"):
            return found[()]
    except ValueError as error:  # h5py's, of damaged bytes
        raise BadRequest(f"{name} is damaged: {error}") from None
    raise BadRequest(f"{name} is not an array")


def archived(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file.

    Raises:
        BadRequest: it is none, it is damaged, or it holds Python objects.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise BadRequest("not an npz file, or one that was cut short")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ValueError as error:  # NumPy's, of damaged bytes
        if "pickle" in str(error):
            raise BadRequest("holds Python objects, which can run code and are not read") from None
        raise BadRequest(f"is damaged: {error}") from None


def numbers(name: str, array: Any, dtype: Any) -> np.ndarray:
    """`array` as `dtype`.

    Raises:
        BadRequest: it does not hold numbers.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise BadRequest(f"{name} does not hold numbers but {array.dtype}")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which is refused
        return array.astype(dtype, copy=False)


def actions(array: Any, count: Any, low: Any, high: Any) -> dict[str, Any]:
    """The fields of `Episodes` that concern actions, from what a file has: integers are discrete.

    A file may lack `count`, or the bounds: then `count` is one more than the greatest action, and bounds are -1 and 1,
    as in most continuous control, or the least and greatest action where these lie outside.
    """
    array = np.asarray(array)
    if array.dtype.kind in "iu":
        array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        if array.ndim != 1:
            raise BadRequest(f"actions of several integers, shape {array.shape}, are not supported")
        return {
            "action": array.astype(np.int32),
            "num_actions": int(array.max(initial=0) + 1 if count is None else count),
        }
    array = numbers("actions", array, np.float32)
    array = array[:, None] if array.ndim == 1 else array.reshape(len(array), -1)
    if low is None or high is None:
        low, high = np.minimum(array.min(axis=0, initial=-1.0), -1.0), np.maximum(array.max(axis=0, initial=1.0), 1.0)
    low, high = (
        np.broadcast_to(numbers("action bounds", bound, np.float32).reshape(-1), array.shape[1:]).copy()
        for bound in (low, high)
    )
    return {"action": array, "action_low": low, "action_high": high}


def dump_origin(origin: Origin) -> str:
    return json.dumps(dataclasses.asdict(origin))


def load_origin(values: Mapping[str, Any] | str | bytes) -> Origin:
    """The origin of `dump_origin`, as text or parsed.

    Raises:
        BadRequest: it is damaged.
    """
    try:
        fields = json.loads(values) if isinstance(values, str | bytes) else dict(values)
        return Origin(**{**fields, "keep": tuple(fields["keep"])})
    except (TypeError, KeyError, ValueError):
        raise BadRequest("the record of where the data come from is damaged") from None
