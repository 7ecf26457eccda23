"""Recorded episodes on the device, and what offline agents draw from them.

Everything is drawn with replacement, uniformly over steps: an episode counts by its length.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.datasets import Episodes


class Transitions(struct.PyTreeNode):
    """Steps `[B, ...]`. `terminal`: the task ended there, so nothing follows."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    terminal: jax.Array


class Windows(struct.PyTreeNode):
    """Consecutive steps of one episode each, `[K, B, ...]`, time-major and padded at the left.

    `reset` is True at every pad and at the first step, so that a memory begins there; padded entries are 0.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    to_go: jax.Array
    """Undiscounted return from this step to the end of the episode."""
    timestep: jax.Array
    """Steps since the episode began."""
    mask: jax.Array
    reset: jax.Array


class OfflineData(struct.PyTreeNode):
    """`Episodes` on the device: `N` steps of `E` episodes; observations have one row more for each episode."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    to_go: jax.Array
    episode: jax.Array
    """`[N]`: the episode of each step."""
    start: jax.Array
    """`[E]`: its first step."""
    length: jax.Array
    terminated: jax.Array

    @classmethod
    def of(cls, episodes: Episodes, mean: Any = 0.0, deviation: Any = 1.0) -> "OfflineData":
        """`episodes` with shifted and scaled observations, in float32 (discrete actions in int32)."""
        # Suffix sums of each episode, in float64: the sum from here to the end of all, less what later episodes add.
        total = np.cumsum(episodes.reward[::-1], dtype=np.float64)[::-1]
        later = np.append(total, 0.0)[episodes.starts + episodes.lengths]
        return cls(
            obs=jnp.asarray((episodes.obs - mean) / deviation, jnp.float32),
            action=jnp.asarray(episodes.action, jnp.int32 if episodes.discrete else jnp.float32),
            reward=jnp.asarray(episodes.reward, jnp.float32),
            to_go=jnp.asarray(total - later[episodes.episode], jnp.float32),
            episode=jnp.asarray(episodes.episode, jnp.int32),
            start=jnp.asarray(episodes.starts, jnp.int32),
            length=jnp.asarray(episodes.lengths, jnp.int32),
            terminated=jnp.asarray(episodes.terminated),
        )

    @property
    def steps(self) -> int:
        return self.reward.shape[0]

    def transitions(self, step: jax.Array) -> Transitions:
        """The steps with numbers `step[B]`."""
        episode = self.episode[step]
        row = step + episode
        last = step == self.start[episode] + self.length[episode] - 1
        return Transitions(
            obs=self.obs[row],
            action=self.action[step],
            reward=self.reward[step],
            next_obs=self.obs[row + 1],
            terminal=last & self.terminated[episode],
        )

    def draw_transitions(self, key: jax.Array, n: int) -> Transitions:
        return self.transitions(jax.random.randint(key, (n,), 0, self.steps))

    def windows(self, first: jax.Array, size: int) -> Windows:
        """`size` steps from each of the steps `first[B]` on, or as many as the episode has left."""
        episode = self.episode[first]
        left = jnp.minimum(self.start[episode] + self.length[episode] - first, size)
        offset = jnp.arange(size)[:, None] - (size - left)
        mask = offset >= 0
        step = first + jnp.maximum(offset, 0)

        def kept(x: jax.Array) -> jax.Array:
            return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0)

        return Windows(
            obs=kept(self.obs[step + episode]),
            action=kept(self.action[step]),
            reward=kept(self.reward[step]),
            to_go=kept(self.to_go[step]),
            timestep=kept(step - self.start[episode]),
            mask=mask,
            reset=offset <= 0,
        )

    def draw_windows(self, key: jax.Array, n: int, size: int) -> Windows:
        """Windows that begin anywhere, the last steps of an episode included."""
        return self.windows(jax.random.randint(key, (n,), 0, self.steps), size)
