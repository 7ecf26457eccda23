"""Small operations on rows of a sequence or a batch, shared by the scans and the networks.

Products of matrices take all rows at once, as `[T * B, n]`. The gradient of `W` in `x[T, B, n] @ W` contracts two axes:
XLA's CPU compiler makes a transposed copy of one side for that and takes twice as long as for the same numbers in two.
"""

from typing import Any

import jax
import jax.numpy as jnp

from engram.kernels.backends import check_flags
from engram.kernels.collectives import Axes, total


def select_rows(mask: jax.Array, new: Any, old: Any) -> Any:
    """Rows of `new` where `mask[B]`, else rows of `old`, leaf by leaf. Leaves are `[B, ...]`.

    `mask` is bool. It may have more axes, such as `[T, B]`: leaves then begin with these. A select and no product, so a
    NaN in what is not taken cannot leak.

    Raises:
        ValueError: a mask of another dtype, or whose axes are not the first ones of every leaf.
    """
    for leaf in jax.tree.leaves(old):
        check_flags("rows to select", mask, leaf.shape[: mask.ndim], "the mask")

    def pick(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), x, y)

    return jax.tree.map(pick, new, old)


def clear(reset: jax.Array | None, h: jax.Array) -> jax.Array:
    """Zeros where `reset`, else `h`, by `select_rows`; `h` itself where `reset` is None."""
    return h if reset is None else select_rows(reset, jnp.zeros_like(h), h)


def masked_mean(x: jax.Array, mask: jax.Array, axes: Axes = ()) -> jax.Array:
    """Mean of the entries of `x` where `mask`, of one shape; 0 where there is none. With `axes` it is over all groups
    (see `engram.kernels.collectives`)."""
    return total(jnp.sum(jnp.where(mask, x, 0.0)), axes) / jnp.maximum(total(jnp.sum(mask), axes), 1)


def rows_matmul(x: jax.Array, W: jax.Array) -> jax.Array:
    """`x[..., n] @ W[n, m]` -> `[..., m]`."""
    return (x.reshape(-1, x.shape[-1]) @ W).reshape(*x.shape[:-1], W.shape[-1])


def rows_outer(x: jax.Array, g: jax.Array) -> jax.Array:
    """Outer products of `x[..., n]` and `g[..., m]`, summed over rows -> `[n, m]`: the gradient of `W` above."""
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])
