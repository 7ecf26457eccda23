"""Recorded episodes on the device, and the batches that offline agents sample from them.

Sampling is with replacement and uniform over steps, so that an episode counts in proportion to its length.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.datasets import Episodes


class Transitions(struct.PyTreeNode):
    """Steps `[B, ...]`."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    terminal: jax.Array
    """`[B]` bool, the task ended with this step, so that no value follows."""


class Windows(struct.PyTreeNode):
    """Windows of `K` consecutive steps of one episode, `[K, B, ...]`, padded with 0 before the first step."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    to_go: jax.Array
    """Undiscounted return from this step to the end of the episode."""
    timestep: jax.Array
    """Steps since the episode began."""
    mask: jax.Array
    """`[K, B]` bool, False at padding."""
    reset: jax.Array
    """`[K, B]` bool, True at padding and at the first step of a window, where a memory begins."""


class OfflineData(struct.PyTreeNode):
    """`Episodes` on the device: `N` steps of `E` episodes."""

    obs: jax.Array
    """`[N + E, O]`: each episode has one observation more than steps."""
    action: jax.Array
    reward: jax.Array
    to_go: jax.Array
    """`[N]`, undiscounted return from each step to the end of its episode."""
    episode: jax.Array
    """`[N]`, the episode of each step."""
    start: jax.Array
    """`[E]`, the first step of each episode."""
    length: jax.Array
    """`[E]`, steps of each episode."""
    terminated: jax.Array
    """`[E]` bool, the task ended the episode, not a limit."""

    @classmethod
    def of(cls, episodes: Episodes, mean: Any = 0.0, deviation: Any = 1.0) -> "OfflineData":
        """`episodes` with shifted and scaled observations, in float32 (discrete actions in int32)."""
        # Suffix sums of each episode, in float64: the sum over all later steps, less that over later episodes.
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
        """`n` random steps."""
        return self.transitions(jax.random.randint(key, (n,), 0, self.steps))

    def windows(self, first: jax.Array, size: int) -> Windows:
        """Windows of `size` steps that begin at the steps `first[B]`, shorter where the episode ends."""
        episode = self.episode[first]
        left = jnp.minimum(self.start[episode] + self.length[episode] - first, size)
        offset = jnp.arange(size)[:, None] - (size - left)
        mask = offset >= 0
        step = first + jnp.maximum(offset, 0)

        def masked(x: jax.Array) -> jax.Array:
            return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0)

        return Windows(
            obs=masked(self.obs[step + episode]),
            action=masked(self.action[step]),
            reward=masked(self.reward[step]),
            to_go=masked(self.to_go[step]),
            timestep=masked(step - self.start[episode]),
            mask=mask,
            reset=offset <= 0,
        )

    def draw_windows(self, key: jax.Array, n: int, size: int) -> Windows:
        """`n` windows of `size` steps, which begin at any step, those near the end of an episode included."""
        return self.windows(jax.random.randint(key, (n,), 0, self.steps), size)
