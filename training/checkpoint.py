"""Checkpoints that survive a kill: each is whole and verified, or set aside.

One checkpoint is a folder `<root>/<chunk>` with the state's arrays, written by orbax, the lines of metrics so far, and
a `manifest.json` with how far the run was, the size and CRC-32 of every file, and a CRC-32 of its own. The folder gets
its name by one atomic rename after all of it is on disk, so a kill leaves either the whole checkpoint or a `.partial`
folder, which the next training removes. A checkpoint that was damaged later does not match its manifest: the training
renames it to `<chunk>.damaged` and goes on from the one before it. One that cannot be read, as the disk fails or a
permission is missing, is not damaged: nothing is changed. Loading only reads arrays and runs no code.
"""

import dataclasses
import errno
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from engram.atomic_files import set_aside, sync
from engram.errors import BadRequest, EngramError
from engram.regular_files import read_json
from engram.training.metrics import Row, read_metrics, text_of
from engram.training.stderr import notify
from engram.training.types import PyTree

KEEP = 2
"""Checkpoints that are kept."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
"""Names of checkpoints."""
MANIFEST, METRICS = "manifest.json", "metrics.jsonl"
"""Files of a checkpoint beside its arrays."""
MOST = 2**24
"""Most bytes of a manifest."""
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ELOOP)
"""Errors of the operating system that tell of a file that is not there, or of another kind than it was."""


@dataclass(frozen=True)
class Progress:
    """What a checkpoint says on its run beside the states."""

    chunk: int
    """Chunks that were trained, which is the checkpoint's number."""
    wall_s: float = 0.0
    """Seconds of training and evaluation."""
    rows: Sequence[Row] | None = ()
    """Lines of metrics, one a chunk; None in checkpoints of earlier versions, which do not hold them."""
    action_bytes: int = 0
    """Bytes of the log of actions."""
    action_crc32: int | None = 0
    """CRC-32 of these bytes; None in checkpoints of earlier versions."""
    played_crc32: int | None = 0
    """CRC-32 of what the emulators did (see `engram.training.action_log`); None in checkpoints of earlier versions."""
    lanes: int | None = 0
    """How the lanes of its emulators were seeded, `engram.training.action_log.LANES`; 0 if they were opened anew on the
    way, None in checkpoints of earlier versions."""


class _Damaged(Exception):
    """A checkpoint is not what was written. The message says how it shows."""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arrays(state: PyTree) -> dict[str, np.ndarray]:
    """The leaves of `state` by path: random keys as their raw bits, without empty leaves (which orbax refuses)."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if _is_key(leaf):
            leaf = jax.random.key_data(leaf)
        if leaf.size:
            leaves[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


def _generators(state: PyTree) -> list[str]:
    """Names of the random generators whose keys are in `state`, such as `key<fry>`."""
    return sorted({str(leaf.dtype) for leaf in jax.tree.leaves(state) if _is_key(leaf)})


def _like(arrays: dict[str, np.ndarray], template: PyTree) -> PyTree:
    """`arrays` in the structure of `template` (arrays or shape-dtype structs). Raises KeyError if they do not fit."""

    def leaf_of(path, leaf):
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype)
        name = jax.tree_util.keystr(path)
        wanted = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array = arrays[name]
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise KeyError(f"{name}, a key of another JAX_DEFAULT_PRNG_IMPL" if _is_key(leaf) else name)
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and not _is_key(leaf):  # each device gets its part, none gets all
            return jax.device_put(array, where, may_alias=False)
        array = jnp.array(array)  # a copy of its own: the training loop donates it
        return jax.random.wrap_key_data(array) if _is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(leaf_of, template)


def _crc32(file: Path) -> int:
    """CRC-32 of a file, which may be larger than memory."""
    crc = 0
    with file.open("rb") as opened:
        while part := opened.read(2**24):
            crc = zlib.crc32(part, crc)
    return crc


def _sizes(folder: Path) -> dict[str, int]:
    """Size of every file in `folder` but the manifest. Raises OSError where a folder cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    found = {}
    for parent, _, names in os.walk(folder, onerror=fail):
        for file in (Path(parent, name) for name in names):
            about = file.stat()
            found[str(file.relative_to(folder))] = about.st_size if stat.S_ISREG(about.st_mode) else -1
    found.pop(MANIFEST, None)
    return dict(sorted(found.items()))


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file in `folder` but the manifest."""
    return {name: [size, _crc32(folder / name)] for name, size in _sizes(folder).items()}


def _own_crc32(manifest: dict[str, Any]) -> int:
    """The checksum of all that `manifest` says, but for the checksum."""
    return zlib.crc32(json.dumps({k: v for k, v in manifest.items() if k != "crc32"}, sort_keys=True).encode())


def save(root: Path, state: PyTree, progress: Progress, check_place: Callable[[], None] = lambda: None) -> Path:
    """Writes the checkpoint of `progress.chunk`, and drops all but the newest two.

    Args:
        root: folder of the checkpoints, whose own folder exists.
        check_place: raises where the folder is no longer this process's; called before the checkpoint gets its name.

    Returns:
        the folder of the checkpoint.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
        EngramError: raised by `check_place`; likewise.
    """
    root.mkdir(exist_ok=True)
    # A name of its own: another process may have taken the folder over, and be writing the same checkpoint.
    partial, final = root / f"{progress.chunk}.{secrets.token_hex(4)}.partial", root / str(progress.chunk)
    try:
        partial.mkdir()
        with _quiet_orbax(), _checkpointer() as checkpointer:
            checkpointer.save((partial / "state").absolute(), _arrays(state))
        (partial / METRICS).write_text(text_of(progress.rows or ()))
        numbers = {k: v for k, v in vars(progress).items() if k != "rows"}
        manifest = {**numbers, "generators": _generators(state), "files": _files(partial)}
        (partial / MANIFEST).write_text(json.dumps({**manifest, "crc32": _own_crc32(manifest)}))
        sync(partial)
        check_place()
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, EngramError):
            raise
        raise _as_os_error(error, final) from error
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync_names(root)
    for old in [number for number in checkpoints(root) if number <= progress.chunk][:-KEEP]:
        shutil.rmtree(root / str(old), ignore_errors=True)
    return final


def _as_os_error(error: Exception, place: Path) -> Exception:
    """`error`, or what the operating system said: tensorstore tells it as a ValueError of many lines."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if not isinstance(error, ValueError) or not code:
        return error
    return OSError(int(code[1]), os.strerror(int(code[1])), str(place))


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps the tracebacks of orbax's threads off the terminal: their errors are raised here as well."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl.setLevel(level)


def _checkpointer() -> Any:
    """Orbax's, for this process alone: in a run of several it waits for no other."""
    import orbax.checkpoint as ocp  # here: its half a second is not for the wait before training

    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"engram-{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _sync_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(root: Path) -> list[int]:
    """Numbers of the checkpoints under `root`, oldest first; among them may be damaged ones that nobody has read yet.

    Raises:
        BadRequest: the folder is there and cannot be read.
    """
    try:
        return sorted(int(name) for name in os.listdir(root) if NUMBER.fullmatch(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(error, root) from None


def remove_unfinished(root: Path) -> None:
    """Removes what a killed run left of a checkpoint. Only the process that trains may call it."""
    for partial in root.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _unreadable(error: OSError, place: Path) -> BadRequest:
    return BadRequest(f"cannot read {error.filename or place}: {error.strerror or error}; nothing was changed")


def restore(root: Path, template: PyTree, training: bool = False) -> tuple[PyTree, Progress] | None:
    """The newest intact checkpoint, or None if there is none.

    Args:
        template: structure, shapes and dtypes of the state (`jax.eval_shape` of the initialiser).
        training: whether this process trains the run. Then damaged checkpoints are renamed, so that they count no more.

    Raises:
        BadRequest: the checkpoint cannot be read, or is intact but that of a differently shaped state.
    """
    for chunk in reversed(checkpoints(root)):
        folder = root / str(chunk)
        try:
            progress, generators = _inspect(folder, chunk)
            return _load(folder, template, generators), progress
        except _Damaged as damage:
            if not os.path.lexists(folder):  # the training process has dropped it meanwhile
                return restore(root, template, training)
            kept = f"; it is kept as {set_aside(folder).name}" if training else ""
            notify(f"checkpoint {folder} is damaged ({damage}){kept}; using the one before it, if there is one")
        except OSError as error:
            raise _unreadable(error, folder) from None
    return None


def _inspect(folder: Path, chunk: int) -> tuple[Progress, list[str] | None]:
    """What an intact checkpoint says on its run, and the generators of its random keys (None: it does not say).

    Raises:
        _Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    try:
        manifest = _manifest(folder)
        recorded, found = manifest["files"], _sizes(folder)
        if recorded.keys() != found.keys():
            raise _Damaged(f"missing or strange: {', '.join(sorted(recorded.keys() ^ found.keys()))}")
        for name, size in found.items():
            if recorded[name] != [size, _crc32(folder / name) if size >= 0 else 0]:
                raise _Damaged(f"{name} is not what was written")
        if manifest["chunk"] != chunk:
            raise _Damaged(f"it is number {manifest['chunk']}")
        rows = read_metrics(folder / METRICS) if METRICS in found else None
    except BadRequest as error:
        raise _Damaged(str(error)) from None
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        raise _Damaged(f"{error.filename}: {error.strerror}") from None
    numbers: Any = {
        field.name: manifest.get(field.name) for field in dataclasses.fields(Progress) if field.name != "rows"
    }
    return Progress(rows=rows, **numbers), manifest.get("generators")


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, its form checked. Raises _Damaged, BadRequest, OSError."""
    manifest = read_json(folder / MANIFEST, MOST)
    if not isinstance(manifest, dict):
        intact = False
    elif manifest.keys() == ENTRIES:
        intact = manifest["crc32"] == _own_crc32(manifest)
    else:
        intact = manifest.keys() == OLD_ENTRIES and manifest["rows"] == manifest["chunk"]
    if not intact or not all(CHECKS[name](value) for name, value in manifest.items()):
        raise _Damaged(f"{MANIFEST} is not what was written")
    return manifest


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


CHECKS: dict[str, Callable[[Any], bool]] = {
    "chunk": _is_count,
    "wall_s": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "action_bytes": _is_count,
    "action_crc32": lambda value: value is None or _is_count(value),
    "played_crc32": lambda value: value is None or _is_count(value),
    "lanes": lambda value: value is None or _is_count(value),
    "generators": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "files": lambda value: isinstance(value, dict),
    "crc32": _is_count,
    "rows": _is_count,
}
"""Which values the entries of a manifest may have."""
ENTRIES = CHECKS.keys() - {"rows"}
"""Entries of a manifest."""
OLD_ENTRIES = {"chunk", "rows", "wall_s", "action_bytes", "files"}
"""Those of earlier versions, without a checksum. The lines of metrics, always one a chunk, were only counted."""


def _load(folder: Path, template: PyTree, generators: list[str] | None) -> PyTree:
    """The state of an intact checkpoint. Raises BadRequest where it does not fit, OSError where it cannot be read."""
    here = _generators(template)
    if generators is not None and not {*here} <= {*generators}:
        raise BadRequest(
            f"checkpoint {folder} holds random keys of the type {', '.join(generators)}, not {', '.join(here)}: "
            "set JAX_DEFAULT_PRNG_IMPL as it was in training"
        )
    try:
        with _quiet_orbax(), _checkpointer() as checkpointer:
            arrays = checkpointer.restore((folder / "state").absolute())
    except ValueError as error:
        raise _as_os_error(error, folder) from None
    try:
        return _like(arrays, template)
    except KeyError as error:
        raise BadRequest(f"checkpoint {folder} does not fit this configuration (at {error.args[0]})") from None
