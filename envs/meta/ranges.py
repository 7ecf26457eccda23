"""Numbers drawn from the ranges that `envs/meta/distributions` gives for each split: splits are data."""

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np

SPLITS = ("train", "test", "heldout")

Intervals = Sequence[Sequence[float]]
"""`[[low, high], ...]`, disjoint."""


@functools.cache
def ranges(file: str, name: str) -> Mapping[str, Mapping[str, Intervals]]:
    """What `file` says of `name`: by split, for each quantity, the intervals that its values come from."""
    return json.loads((resources.files("envs.meta") / "distributions" / file).read_text())[name]


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
