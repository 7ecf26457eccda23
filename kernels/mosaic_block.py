"""What the kernels of a GPU thread block share (Pallas Mosaic GPU, `plgpu.kernel`).

A thread block is one warpgroup. It takes one row of the batch and 128 channels, a thread each, and walks through time
with the states in registers. The steps are taken in tiles: while one tile is computed, the operands of the next one are
on their way from memory to registers, so that a step waits for its arithmetic and not for memory.

These kernels are lowered, and interpreted on a CPU, in the tests.
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

BLOCK = 128
"""Channels of a thread block: as many as a warpgroup has threads."""


def launch(
    body: Callable[..., None],
    results: Any,
    rows: int,
    channels: int,
    *inputs: jax.Array,
    scratch: dict[str, Any] | None = None,
    barriers: bool = False,
) -> Any:
    """Runs `body(row, channels, *input refs, *result refs, **scratch refs)` for each row and each block of channels.

    Args:
        body: one thread block; `channels` is the slice of its channels.
        results: shapes and dtypes of the results.
        rows: size of the batch.
        channels: multiple of `BLOCK`.
        inputs: operands in GPU memory.
        scratch: shared memory by name.
        barriers: whether threads must wait for each other's reads and writes, as they must if they share memory.
    """

    def block(*refs, **shared):
        body(lax.axis_index("row"), pl.ds(lax.axis_index("block") * BLOCK, BLOCK), *refs, **shared)

    return plgpu.kernel(
        block,
        out_type=results,
        scratch_types=scratch or {},
        grid=(channels // BLOCK, rows),  # the last axis is the one that may be longer than 65535
        grid_names=("block", "row"),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=not barriers),
    )(*inputs)


def walk(
    steps: int,
    tile: int,
    read: Callable[[Any], Any],
    advance: Callable[[Any, Any, Any], Any],
    carry: Any,
) -> Any:
    """`carry = advance(k, carry, read(k))` for k = 0 .. steps - 1, a tile of operands read ahead.

    Args:
        steps: how many; static.
        tile: steps a tile. The steps beyond the last whole tile are unrolled.
        read: operands of a step, arrays in registers. Must not read what `advance` writes.
        advance: one step.
        carry: before the first step.
    """

    def read_tile(start):
        return [read(start + k) for k in range(tile)]

    def run_tile(i, carry_and_operands):
        carry, operands = carry_and_operands
        upcoming = read_tile(jnp.minimum(i + 1, tiles - 1) * tile)  # the last tile is read once more, to no effect
        for k, now in enumerate(operands):
            carry = advance(i * tile + k, carry, now)
        return carry, upcoming

    tiles = steps // tile
    if tiles:
        carry, _ = lax.fori_loop(0, tiles, run_tile, (carry, read_tile(0)))
    for k, now in [(k, read(k)) for k in range(tiles * tile, steps)]:
        carry = advance(k, carry, now)
    return carry


def load(ref: Any, *index: Any) -> jax.Array:
    """A row of `BLOCK` channels, one in each thread."""
    return plgpu.load(ref, index, layout=plgpu.Layout.WG_STRIDED((BLOCK,), vec_size=1))


def zeros() -> jax.Array:
    """A zero in each thread, laid out as `load` does."""
    return plgpu.layout_cast(jnp.zeros(BLOCK, jnp.float32), plgpu.Layout.WG_STRIDED((BLOCK,), vec_size=1))


def clear(reset: jax.Array, h: jax.Array) -> jax.Array:
    """Zeros where the scalar `reset` is not 0, else `h`. A select: NaN in `h` cannot leak."""
    # A scalar predicate has no lowering; broadcasting it leaves one flag a thread.
    return lax.select(lax.broadcast(reset != 0, h.shape), jnp.zeros_like(h), h)


def pad(x: jax.Array) -> jax.Array:
    """Zeros behind the last axis, up to a multiple of `BLOCK`."""
    missing = -x.shape[-1] % BLOCK
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),)) if missing else x


def over_rows(kernel: Callable[..., Any], inputs: Sequence[int], results: Sequence[int]) -> Callable[..., Any]:
    """`kernel`, which under `vmap` takes the mapped axis into the rows of its batch.

    Args:
        kernel: arrays -> tuple of arrays.
        inputs: which axis of each array counts the rows, or a divisor of them.
        results: which axis of each result does.
    """

    @jax.custom_batching.custom_vmap
    def mapped(*arrays):
        return kernel(*arrays)

    @mapped.def_vmap
    def rule(size, is_mapped, *arrays):
        def merge(x, mapped, axis):
            x = x if mapped else jnp.broadcast_to(x, (size, *x.shape))
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

        def split(x, axis):
            return jnp.moveaxis(x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis, 0)

        merged = map(merge, arrays, is_mapped, inputs)
        return tuple(map(split, mapped(*merged), results)), (True,) * len(results)

    return mapped
