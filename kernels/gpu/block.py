"""Building blocks of the GPU kernels (Pallas Mosaic GPU, `plgpu.kernel`).

A thread block is one warpgroup. It takes one row of the batch and 128 channels, a thread each, and walks through time
with the states in registers. The steps are taken in tiles: while one tile is computed, the operands of the next one are
on their way from memory to registers.

These kernels are lowered, and interpreted on a CPU, in the tests.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

BLOCK = 128
"""Number of channels of a thread block: as many as a warpgroup has threads."""
SUM_ROWS = 64
"""Divisor of the number of rows that a warpgroup sums at once, each row by four neighbouring threads."""
SUM_WIDTH = BLOCK + 8
"""Width of the rows that a warpgroup sums: with 8 unused columns, threads that read together read from different
banks."""


def launch(
    body: Callable[..., None],
    results: Any,
    rows: int,
    channels: int,
    *inputs: jax.Array,
    shared: Sequence[jax.ShapeDtypeStruct] = (),
) -> Any:
    """Runs `body(row, channels, *input refs, *result refs, *shared refs)` for each row and each block of channels.

    Threads wait for each other only where `body` says so (`meet`).

    Args:
        body: one thread block; `channels` is the slice of its channels.
        results: shapes and dtypes of the results.
        rows: size of the batch.
        channels: multiple of `BLOCK`.
        inputs: operands in GPU memory.
        shared: shapes and dtypes of the arrays in the memory that the threads share.
    """

    def block(*refs):
        body(lax.axis_index("row"), pl.ds(lax.axis_index("block") * BLOCK, BLOCK), *refs)

    return plgpu.kernel(
        block,
        out_type=results,
        scratch_types=[plgpu.SMEM(x.shape, x.dtype) for x in shared],
        grid=(channels // BLOCK, rows),  # the last axis is the one that may be longer than 65535
        grid_names=("block", "row"),
        compiler_params=plgpu.CompilerParams(
            # Each operation becomes what one thread does. The other semantics infers a layout for each first, which
            # takes minutes where a kernel has thousands of operations.
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
    )(*inputs)


def walk(
    steps: int,
    tile: int,
    read: Callable[[Any], Any],
    advance: Callable[[Any, int, Any, Any], Any],
    carry: Any,
    fetch: Callable[[Any], Any] = lambda tile: (),
    place: Callable[[Any, Any, Any], None] = lambda tile, fetched, carry: None,
) -> Any:
    """`carry = advance(t, k, carry, read(t))` for t = 0 .. steps - 1, a tile of operands read ahead.

    Args:
        steps: how many; static.
        tile: steps a tile. The steps beyond the last whole tile are unrolled.
        read: operands of a step, arrays in registers. Must not read what `advance` writes.
        advance: one step; `k = t % tile`, static.
        carry: before the first step.
        fetch: operands of a whole tile, given its index; read ahead as well.
        place: called with the index, `fetch(index)` and the carry before the first step of a tile.
    """

    def read_tile(i, length=tile):
        return fetch(i), [read(i * tile + k) for k in range(length)]

    def run_tile(i, carry, operands):
        fetched, operands = operands
        place(i, fetched, carry)
        for k, now in enumerate(operands):
            carry = advance(i * tile + k, k, carry, now)
        return carry

    def run_and_read(i, carry_and_operands):
        upcoming = read_tile(jnp.minimum(i + 1, tiles - 1))  # the last tile is read once more, to no effect
        return run_tile(i, *carry_and_operands), upcoming

    tiles, rest = divmod(steps, tile)
    if tiles:
        carry, _ = lax.fori_loop(0, tiles, run_and_read, (carry, read_tile(0)))
    return run_tile(tiles, carry, read_tile(tiles, rest)) if rest else carry


def load(ref: Any, *index: Any) -> jax.Array:
    """A row of `BLOCK` channels, one in each thread."""
    return plgpu.layout_cast(ref[index], plgpu.Layout.WG_STRIDED((BLOCK,), vec_size=1))


def zeros() -> jax.Array:
    """A zero in each thread, laid out as `load` does."""
    return plgpu.layout_cast(jnp.zeros(BLOCK, jnp.float32), plgpu.Layout.WG_STRIDED((BLOCK,), vec_size=1))


def pieces(length: int) -> list[Any]:
    """Slices of `BLOCK` elements."""
    return [pl.ds(start, BLOCK) for start in range(0, length, BLOCK)]


def put_row(ref: Any, row: Any, values: jax.Array) -> None:
    """Sets a row of a matrix `[rows, SUM_WIDTH]` in shared memory."""
    ref[row, pl.ds(0, BLOCK)] = values


def sum_rows(ref: Any) -> jax.Array:
    """The sum of each row of a matrix `[rows, SUM_WIDTH]` in shared memory, rows a multiple of `SUM_ROWS`."""
    return plgpu.layout_cast(ref[:, pl.ds(0, BLOCK)], plgpu.Layout.WGMMA).sum(1)


def meet() -> None:
    """Makes threads wait for each other: what one wrote to shared memory before, others read after."""
    plgpu.commit_smem()


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
