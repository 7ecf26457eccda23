"""A random permutation of discrete actions, or rotation of continuous ones, which hides what actions do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.spaces import Box, Discrete, Space
from engram.envs.wrappers import flat_size


def draw_scramble(key: jax.Array, space: Space) -> jax.Array:
    """A permutation `[n]` (int32) of `n` discrete actions, or an orthogonal matrix `[n, n]` of a Box of `n` entries."""
    if isinstance(space, Discrete):
        return jax.random.permutation(key, space.n).astype(jnp.int32)
    return jax.nn.initializers.orthogonal()(key, (flat_size(space),) * 2)


def scrambled(space: Space, scramble: jax.Array, action: Any) -> jax.Array:
    """What `action` of `space` becomes under what `draw_scramble` drew.

    A rotation is of the bounds scaled to -1 .. 1, and what it carries outside is clipped. Entries without bounds are
    rotated as they are.
    """
    if isinstance(space, Discrete):
        return scramble[action]
    assert isinstance(space, Box)  # other spaces are refused when the trials are made
    low = np.broadcast_to(np.asarray(space.low, np.float32), space.shape).reshape(-1)
    high = np.broadcast_to(np.asarray(space.high, np.float32), space.shape).reshape(-1)
    bounded = np.isfinite(low) & np.isfinite(high)
    centre = np.where(bounded, (np.where(bounded, low, 0.0) + np.where(bounded, high, 0.0)) / 2, 0.0)
    half = np.where(bounded, np.where(bounded, high - centre, 1.0), 1.0)
    turned = scramble @ ((action.reshape(-1) - centre) / half)
    return jnp.clip(centre + half * turned, low, high).reshape(space.shape).astype(space.dtype)
