"""Numbers drawn from ranges, the form in which `envs/meta/distributions` gives splits of continuous tasks."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Intervals = Sequence[Sequence[float]]
"""`[[low, high], ...]`, disjoint."""


def draw_values(key: jax.Array, intervals: Mapping[str, Intervals]) -> dict[str, jax.Array]:
    """One value of each quantity, float32, uniform over the union of its intervals, all independent.

    Each has a key of its own by its place in `intervals`.
    """
    return {name: _draw(jax.random.fold_in(key, i), parts) for i, (name, parts) in enumerate(intervals.items())}


def _draw(key: jax.Array, parts: Intervals) -> jax.Array:
    low, high = np.asarray(parts, np.float32).T
    before = np.concatenate([[0.0], np.cumsum(high - low)]).astype(np.float32)
    along = jax.random.uniform(key, maxval=before[-1])
    part = jnp.sum(along >= before[1:-1])
    low, high, before = jnp.asarray(low)[part], jnp.asarray(high)[part], jnp.asarray(before)[part]
    return jnp.clip(low + along - before, low, high)  # rounding must not carry a value beyond its interval
