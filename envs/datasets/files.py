"""What the formats share: errors that name the file, arrays whose size and kind are checked before memory is asked
for, actions as they are stored, and the origin as JSON."""

import dataclasses
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram.envs.datasets.episodes import Origin, spans
from engram.envs.extras import needs
from engram.errors import BadRequest, MissingExtra
from engram.regular_files import opened, parse_json, size_of

EXPANSION = 256
"""The arrays of a file may take this many times its own size in memory, as they may be compressed."""
ALWAYS = 64 * 2**20
"""Bytes that the arrays of the smallest file may take."""
MOST_INFLATED = 1032
"""Bytes that one byte of deflate can become."""
CHECKSUM = 4
"""Bytes of a checksum behind a chunk."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what reading a bad file raises into a BadRequest of one line that begins with `path`."""
    try:
        yield
    except MissingExtra:
        raise
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such file") from None
    except OSError as error:
        raise _named(path, error.strerror or error) from None
    except RecursionError:
        raise BadRequest(f"{path}: is nested too deeply") from None
    except BadRequest as error:
        raise _named(path, error) from None


def _named(path: Path, reason: Any) -> BadRequest:
    line = " ".join(str(reason).split()).removeprefix(f"{path}: ")
    return BadRequest(f"{path}: {line if len(line) < 500 else line[:500] + ' ...'}")


@dataclass(frozen=True)
class Column:
    """An array of which rows are read as they are needed."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[slice], np.ndarray]
    """Consecutive rows, those behind the last ones that were read, or from the first on again."""

    @classmethod
    def of(cls, array: np.ndarray) -> "Column":
        """Of an array in memory."""
        return cls(array.shape, array.dtype, array.__getitem__)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, some at a time."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        return (self.rows(span) for span in spans(self.shape[0], size))

    def all(self) -> np.ndarray:
        """The whole array."""
        return self.rows(slice(0, self.shape[0]))


class Room:
    """Memory for the arrays of one file, which a few bytes can declare to be huge."""

    def __init__(self, path: Path):
        self.left = max(ALWAYS, EXPANSION * size_of(path))

    def take(self, what: str, size: int) -> None:
        """Raises BadRequest where `what` needs more bytes than are left."""
        self.left -= size
        if self.left < 0:
            raise BadRequest(f"declares more than a file of its size can hold: {what} of {size:,} bytes")


# ----------------------------------------------------------------------------------------------------------------- HDF5


def h5py_for(path: Path) -> Any:
    """The package h5py, to read or write `path`. Raises MissingExtra."""
    return needs("h5py", "offline", f"{path} (HDF5)")


class HDF5:
    """An open HDF5 file, of which nothing is read but arrays that lie in the file itself.

    Links, external storage and virtual datasets would read whatever files they name.
    """

    def __init__(self, path: Path, h5py: Any, file: Any):
        self.room, self._h5py, self._file = Room(path), h5py, file

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator["HDF5"]:
        """The file `path`. Raises MissingExtra, and BadRequest for what is wrong with it."""
        h5py = h5py_for(path)
        with opened(path):  # which refuses pipes and devices
            pass
        with _h5py_errors("the file"), h5py.File(path, "r") as file:
            yield cls(path, h5py, file)

    def names(self) -> list[str]:
        """Names at the top of the file."""
        return [str(name) for name in self._file]

    def find(self, name: str) -> Any:
        """The dataset or group `name`, None where there is none.

        Raises:
            BadRequest: it is a link.
        """
        found = self._file
        with _h5py_errors(name):
            for part in name.split("/"):
                if not isinstance(found, self._h5py.Group):
                    return None
                link = found.get(part, getlink=True)
                if link is None:
                    return None
                if not isinstance(link, self._h5py.HardLink):
                    raise BadRequest(f"{name} is a link to somewhere else, which is not followed")
                found = found[part]
        return found

    def has(self, name: str) -> bool:
        return self.find(name) is not None

    def is_array(self, name: str) -> bool:
        return isinstance(self.find(name), self._h5py.Dataset)

    def is_group(self, name: str) -> bool:
        return isinstance(self.find(name), self._h5py.Group)

    def array(self, name: str) -> np.ndarray:
        """The array of numbers `name`. Raises BadRequest for anything else."""
        dataset = self._checked(name)
        if dataset.dtype.kind not in "biuf":
            raise BadRequest(f"{name} does not hold numbers but {dataset.dtype}")
        with _h5py_errors(name):
            return np.asarray(dataset[()])

    def column(self, name: str) -> Column:
        """The array of numbers `name`, to be read in parts. Raises BadRequest for anything else."""
        dataset = self._checked(name)
        if dataset.dtype.kind not in "biuf":
            raise BadRequest(f"{name} does not hold numbers but {dataset.dtype}")

        def rows(span: slice) -> np.ndarray:
            with _h5py_errors(name):
                return np.asarray(dataset[span] if dataset.shape else dataset[()].reshape(1))

        return Column(dataset.shape or (1,), dataset.dtype, rows)

    def text(self, name: str) -> str:
        """The one text `name`. Raises BadRequest for anything else."""
        dataset = self._checked(name)
        if dataset.shape != () or self._h5py.check_string_dtype(dataset.dtype) is None:
            raise BadRequest(f"{name} is no text")
        with _h5py_errors(name):
            return dataset.asstr()[()]

    def _checked(self, name: str) -> Any:
        dataset = self.find(name)
        with _h5py_errors(name):
            if not isinstance(dataset, self._h5py.Dataset) or dataset.shape is None:
                raise BadRequest(f"{name} is not an array")
            if dataset.is_virtual or dataset.external:
                raise BadRequest(f"{name} lies in other files, which are not read")
            item = dataset.dtype.itemsize
            self.room.take(name, math.prod(max(n, 1) for n in dataset.shape) * item)
            if dataset.chunks is not None:
                self._check_chunks(name, dataset, math.prod(dataset.chunks) * item)
        return dataset

    def _check_chunks(self, name: str, dataset: Any, size: int) -> None:
        """Raises BadRequest where reading chunks of `size` bytes would take more memory than there is room for: HDF5
        inflates a chunk to its end, which may be a thousand times what is stored, whatever size was declared."""
        z, limit = self._h5py.h5z, max(self.room.left, ALWAYS)
        if size > limit:
            raise BadRequest(f"declares more than a file of its size can hold: chunks {dataset.chunks} of {name}")
        described = dataset.id.get_create_plist()
        filters = [described.get_filter(index)[0] for index in range(described.get_nfilters())]
        usual = [z.FILTER_SHUFFLE, z.FILTER_DEFLATE, z.FILTER_LZF, z.FILTER_FLETCHER32]
        if filters != [kind for kind in usual if kind in filters]:
            known = {z.FILTER_SZIP: "szip", z.FILTER_NBIT: "nbit", z.FILTER_SCALEOFFSET: "scaleoffset"}
            unread = [known.get(kind, f"number {kind}") for kind in filters if kind not in usual] or [
                "an unusual order"
            ]
            raise BadRequest(
                f"{name} is compressed with filters that are not read here ({', '.join(unread)}): "
                "h5repack -f GZIP=1 OLD NEW writes the file anew with one that is"
            )
        if z.FILTER_DEFLATE not in filters or dataset.id.get_storage_size() * MOST_INFLATED <= limit:
            return
        large: list[tuple[int, ...]] = []
        dataset.id.chunk_iter(
            lambda chunk: large.append(chunk.chunk_offset) if chunk.size * MOST_INFLATED > limit else None
        )
        for offset in large:
            _, stored = dataset.id.read_direct_chunk(offset)
            with suppress(zlib.error):  # which HDF5 will say
                if len(zlib.decompressobj().decompress(stored, size + CHECKSUM + 1)) > size + CHECKSUM:
                    raise BadRequest(f"declares less than it holds: a chunk of {name}")


@contextmanager
def _h5py_errors(what: str) -> Iterator[None]:
    """What h5py raises of damaged bytes, and it raises many things, is a BadRequest.

    Raises:
        BadRequest: with the name of what is damaged.
        OSError: the file cannot be read.
    """
    try:
        yield
    except (BadRequest, FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise BadRequest(f"{what} is damaged: {reason}") from None


# ------------------------------------------------------------------------------------------------------------------ npz


def archived(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file.

    Raises:
        BadRequest: it is none, it is damaged, it holds Python objects, or declares more than it can hold.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        if not zipfile.is_zipfile(file):
            raise BadRequest("not an npz file, or one that was cut short")
        room = Room(path)
        try:
            with zipfile.ZipFile(file) as archive:
                return {
                    name.removesuffix(".npy"): _member(archive, archive.getinfo(name), room)
                    for name in dict.fromkeys(archive.namelist())
                }
        except BadRequest:
            raise
        # What zipfile raises of damaged bytes.
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError, ValueError) as error:
            raise BadRequest(f"is damaged: {error}") from None


@contextmanager
def archived_columns(path: Path) -> Iterator[dict[str, "Column"]]:
    """The arrays of an .npz file, of which rows are read as they are needed. Raises as `archived`."""
    with opened(path) as file, ExitStack() as stack:
        if not zipfile.is_zipfile(file):
            raise BadRequest("not an npz file, or one that was cut short")
        room = Room(path)
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
            yield {
                name.removesuffix(".npy"): _member_column(archive, archive.getinfo(name), room, stack)
                for name in dict.fromkeys(archive.namelist())
            }
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError) as error:
            raise BadRequest(f"is damaged: {error}") from None


def _member_column(archive: zipfile.ZipFile, member: zipfile.ZipInfo, room: Room, stack: ExitStack) -> "Column":
    """One array, which is read forwards."""
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadRequest(f"{name} is compressed in a way that npz files are not")
    room.take(name, member.file_size)
    file = stack.enter_context(archive.open(member))
    shape, dtype, by_columns = array_header(file, name)
    begin, width = file.tell(), math.prod(shape[1:]) * dtype.itemsize
    if math.prod(shape) * dtype.itemsize != member.file_size - begin:
        raise BadRequest(f"{name} is damaged: it has not as many bytes as its shape {shape} needs")
    if by_columns and len(shape) > 1:
        raise BadRequest(f"{name} is stored column by column, of which rows cannot be read: convert it to .npz first")

    def rows(span: slice) -> np.ndarray:
        file.seek(begin + span.start * width)
        content = file.read((span.stop - span.start) * width)
        return np.frombuffer(content, dtype).reshape(span.stop - span.start, *shape[1:])

    return Column(shape or (1,), dtype, rows)


def array_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape and dtype of the array that begins in an open file, and whether it is stored column by column.

    Raises:
        BadRequest: it does not begin as an array of numbers.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_columns, dtype = read(file)
    # What NumPy raises of damaged headers, which it reads as Python literals.
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        raise BadRequest(f"{name} is damaged: it does not begin as an array does") from None
    if dtype.hasobject:
        raise BadRequest(f"{name} holds Python objects, which can run code and are not read")
    if dtype.kind not in "biufU" or not dtype.itemsize:
        raise BadRequest(f"{name} does not hold numbers but {dtype}")
    if min(shape, default=0) < 0:
        raise BadRequest(f"{name} is damaged: its shape is {shape}")
    return shape, dtype, by_columns


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, room: Room) -> np.ndarray:
    """One array, once its header agrees with the size of the member."""
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadRequest(f"{name} is compressed in a way that npz files are not")
    room.take(name, member.file_size)
    with archive.open(member) as file:
        shape, dtype, _ = array_header(file, name)
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise BadRequest(f"{name} is damaged: it has not as many bytes as its shape {shape} needs")
    with archive.open(member) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise BadRequest(f"{name} is damaged: {error}") from None


# -------------------------------------------------------------------------------------------------------------- values


def numbers(name: str, array: Any, dtype: Any, rounded: bool = False) -> np.ndarray:
    """`array` as `dtype`, without a change of what it says.

    Args:
        rounded: whole numbers too large for a float are rounded as fractions are.

    Raises:
        BadRequest: it does not hold numbers, or numbers that `dtype` cannot hold. What is too large for a float becomes
            infinite.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise BadRequest(f"{name} does not hold numbers but {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype, copy=False)
        fractions = array.dtype.kind == converted.dtype.kind == "f"
        if fractions or array.dtype == converted.dtype or (rounded and converted.dtype.kind == "f"):
            return converted
        changed = converted.astype(array.dtype) != array
    if changed.any():
        kind = {"b": "neither 0 nor 1", "f": "a whole number beyond what float32 can hold"}
        example = array[changed].flat[0]
        raise BadRequest(f"{name} has {example}, {kind.get(converted.dtype.kind, 'no whole number of 32 bits')}")
    return converted


def actions(
    array: Any, count: int | None = None, low: Any = None, high: Any = None, discrete: bool | None = None
) -> dict[str, Any]:
    """The fields of `Episodes` that concern actions, from what a file has.

    Args:
        count: number of discrete actions, where the file says it.
        low, high: bounds of continuous actions, where the file says them.
        discrete: what the file says (None: nothing; then integers and booleans are discrete, as is what has a count).
    """
    array = np.asarray(array)
    if discrete is None:
        discrete = count is not None or array.dtype.kind in "iub"
    if discrete:
        array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        if array.ndim != 1:
            raise BadRequest(f"actions of several integers, shape {array.shape}, are not supported")
        return {
            "action": numbers("actions", array, np.int32),
            "num_actions": count,
        }
    array = numbers("actions", array, np.float32)
    array = array[:, None] if array.ndim == 1 else array.reshape(len(array), -1)
    bounds = {}
    if low is None and high is None:
        return {"action": array}
    for name, bound in (("action_low", low), ("action_high", high)):
        if bound is None:
            raise BadRequest("lacks one of the bounds of its continuous actions")
        try:
            bound = numbers(name, np.asarray(bound), np.float32, rounded=True).reshape(-1)
            bounds[name] = np.broadcast_to(bound, array.shape[1:]).copy()
        except ValueError:  # NumPy's, and ours
            raise BadRequest(f"{name} does not fit actions of shape {array.shape[1:]}") from None
    return {"action": array, **bounds}


def dump_origin(origin: Origin) -> str:
    return json.dumps(dataclasses.asdict(origin))


def load_origin(values: Mapping[str, Any] | str | bytes) -> Origin:
    """The origin of `dump_origin`, as text or parsed.

    Raises:
        BadRequest: it is damaged.
    """
    where = "the record of where the data come from"
    fields = parse_json(values, where) if isinstance(values, str | bytes) else values
    kinds = {field.name: field.type for field in dataclasses.fields(Origin)}
    try:
        fields = {**fields, "keep": tuple(fields["keep"])}
        whole = all(_is(kinds[name], value) for name, value in fields.items()) and "env" in fields
    except (TypeError, KeyError):
        whole = False
    if not whole:
        raise BadRequest(f"{where} is damaged")
    return Origin(**fields)


def _is(kind: Any, value: Any) -> bool:
    """Whether `value` can stand in a field of `Origin` of type `kind`."""
    if kind == tuple[int, ...]:
        return isinstance(value, tuple) and all(_is(int, entry) for entry in value)
    if isinstance(value, int | float):
        kind = int | float | None if kind == float | None else kind
        return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 2.0**63  # which NaN is not
    return isinstance(value, kind)
