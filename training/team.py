"""The processes of one run, on one machine or several (`jax.distributed`); mostly there is only one.

The first one leads: it alone owns the run folder, and decides. What every process must know, such as whether a
checkpoint is due, is agreed upon between chunks, as processes that differ would wait for each other for ever. Others
write what they write into a folder that is thrown away.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.training.types import PyTree

HEARTBEAT = 30
"""Seconds of silence after which a process counts as lost, and the others end."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several. To be called before JAX computes anything.

    Args:
        coordinator, processes, process: address of the first process, number of processes, and of this one; all None
            where the cluster says so.

    Raises:
        BadRequest: the cluster says nothing, or the others cannot be found.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        raise BadRequest(f"--distributed: {str(error).splitlines()[0]}") from None


def is_alone() -> bool:
    """Whether the run has one process."""
    return jax.process_count() == 1


def leads() -> bool:
    """Whether this process is the one that owns the run folder."""
    return jax.process_index() == 0


@contextmanager
def own_folder(folder: Callable[[], Path]) -> Iterator[Path]:
    """`folder()` for the process that leads; one that is thrown away for the others."""
    if leads():
        yield folder()
        return
    with tempfile.TemporaryDirectory(prefix="engram-") as thrown_away:
        yield Path(thrown_away) / "run"


def any_of(flag: bool) -> bool:
    """Whether `flag` is set in any process."""
    if is_alone():
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.int32(flag))))


def of_leader(values: PyTree) -> PyTree:
    """The numbers and arrays of the process that leads; the others' have the same structure, shapes and dtypes."""
    if is_alone():
        return values
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return jax.tree.map(np.asarray, broadcast_one_to_all(values))


def on_host(tree: PyTree) -> PyTree:
    """`tree`, which may lie on devices of other processes, as arrays of this one; as it is if there are no others."""
    if is_alone():
        return tree
    from jax.experimental.multihost_utils import process_allgather

    def gather(leaf: Any) -> Any:
        if not _is_key(leaf):
            return process_allgather(leaf, tiled=True)
        bits = process_allgather(jax.jit(jax.random.key_data)(leaf), tiled=True)
        return jax.random.wrap_key_data(jnp.asarray(bits))

    return jax.tree.map(gather, tree)


def bits_of(tree: PyTree) -> PyTree:
    """`tree` as arrays of NumPy: keys as their raw bits, and shapes and dtypes as zeros."""

    def bits(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raw = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
            return np.zeros(raw.shape, raw.dtype)
        return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)

    return jax.tree.map(bits, tree)


def on_devices(bits: PyTree, template: PyTree) -> PyTree:
    """What `bits_of` gave, the same in every process, where `template` (shapes, dtypes and shardings) says."""

    def place(array: np.ndarray, wanted: Any) -> jax.Array:
        made = jax.make_array_from_callback(array.shape, wanted.sharding, lambda index: array[index])
        return jax.jit(jax.random.wrap_key_data)(made) if _is_key(wanted) else made

    return jax.tree.map(place, bits, template)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
