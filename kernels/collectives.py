"""Sums over groups of rows, which are computed side by side: by `vmap` on one device, by `shard_map` over several.

`axes` are the names of the axes of groups, the outermost first. Without any there is one group, and nothing to sum.
"""

import jax
import jax.numpy as jnp

Axes = tuple[str, ...]


def total(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum of `x` over groups."""
    return jax.lax.psum(x, axes) if axes else x


def average(x: jax.Array, axes: Axes) -> jax.Array:
    """Mean of `x` over groups."""
    return jax.lax.pmean(x, axes) if axes else x


def largest(x: jax.Array, axes: Axes) -> jax.Array:
    """Largest `x` of all groups, entry by entry; no gradient passes."""
    return jax.lax.pmax(jax.lax.stop_gradient(x), axes) if axes else x


def group_count(axes: Axes) -> int:
    """Number of groups."""
    count = 1
    for axis in axes:
        count *= jax.lax.axis_size(axis)
    return count


def group_index(axes: Axes) -> jax.Array | int:
    """Number of this group, counted from 0."""
    index: jax.Array | int = 0
    for axis in axes:
        index = index * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
    return index


def of_all_groups(x: jax.Array, axes: Axes) -> jax.Array:
    """`x` of every group, `[groups, ...]`, by one sum with zeros. That rounds nothing: what is computed from it has the
    same bits however the groups are spread."""
    if not axes:
        return x[None]
    slots = jnp.zeros((group_count(axes), *x.shape), x.dtype)
    return total(slots.at[group_index(axes)].set(x), axes)
