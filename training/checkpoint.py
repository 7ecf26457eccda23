"""Checkpoints that survive a kill: each is whole and verified, or ignored.

One checkpoint is a folder `<root>/<chunk>` with the state's arrays, written by orbax, and a `manifest.json` with
the size and CRC-32 of every file. The folder gets its name by one atomic rename after all of it is on disk, so a kill
leaves either the whole checkpoint or a `.partial` folder, which the next training removes. A checkpoint that was
damaged later does not match its manifest, and the one before it is used. Loading only reads arrays and runs no code.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.atomic_files import sync
from engram.errors import BadRequest
from engram.training.types import PyTree

KEEP = 2
"""Checkpoints that are kept."""
log = logging.getLogger(__name__)


def _arrays(state: PyTree) -> dict[str, np.ndarray]:
    """The leaves of `state` by path: random keys as their raw bits, without empty leaves (which orbax refuses)."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.size:
            leaves[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


def _like(arrays: dict[str, np.ndarray], template: PyTree) -> PyTree:
    """`arrays` in the structure of `template` (arrays or shape-dtype structs). Raises KeyError if they do not fit."""

    def leaf_of(path, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(arrays[jax.tree_util.keystr(path)]))
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype)
        array = arrays[jax.tree_util.keystr(path)]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise KeyError(jax.tree_util.keystr(path))
        return jnp.array(array)  # a copy of its own: the training loop donates it

    return jax.tree_util.tree_map_with_path(leaf_of, template)


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file in `folder` but the manifest."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "manifest.json":
            data = file.read_bytes()
            found[str(file.relative_to(folder))] = [len(data), zlib.crc32(data)]
    return found


def save(root: Path, chunk: int, state: PyTree, extra: dict[str, Any]) -> Path:
    """Writes checkpoint `chunk`, with `extra` (JSON values) in its manifest, and drops all but the newest two.

    Returns:
        the folder of the checkpoint.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    partial, final = root / f"{chunk}.partial", root / str(chunk)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        import orbax.checkpoint as ocp  # here and below: its half a second is not for the wait before training

        with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((partial / "state").absolute(), _arrays(state))
        manifest = {"chunk": chunk, "files": _files(partial), **extra}
        (partial / "manifest.json").write_text(json.dumps(manifest))
        sync(partial)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # tensorstore reports a full disk as a ValueError of many lines. To the caller both are a write that failed.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if not isinstance(error, ValueError) or not code:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(final)) from error
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync_names(root)
    for old in checkpoints(root)[:-KEEP]:
        shutil.rmtree(root / str(old), ignore_errors=True)
    return final


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


def _sync_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(root: Path) -> list[int]:
    """Numbers of the checkpoints under `root`, oldest first, damaged ones included."""
    return sorted(int(p.name) for p in root.glob("*") if p.name.isdecimal()) if root.is_dir() else []


def remove_unfinished(root: Path) -> None:
    """Removes what a killed run left of a checkpoint. Only the process that trains may call it."""
    for partial in root.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _intact_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, or None where a file of it is missing or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return manifest if manifest["files"] == _files(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def restore(root: Path, template: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
    """The newest intact checkpoint as `(state, manifest)`, or None if there is none.

    Args:
        template: structure, shapes and dtypes of the state (`jax.eval_shape` of the initialiser).

    Raises:
        BadRequest: the checkpoint is intact but is that of a differently shaped state.
    """
    for chunk in reversed(checkpoints(root)):
        folder = root / str(chunk)
        manifest = _intact_manifest(folder)
        if manifest is None:
            log.warning("checkpoint %s is damaged or incomplete; using the one before it", folder)
            continue
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore((folder / "state").absolute())
        try:
            return _like(arrays, template), manifest
        except KeyError as error:
            raise BadRequest(f"checkpoint {folder} does not fit this configuration (at {error.args[0]})") from None
    return None
