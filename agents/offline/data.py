"""Recorded episodes, and the batches that offline agents draw from them.

Sampling is with replacement and uniform over steps, so that an episode counts in proportion to its length. What is held
are the numbers of the file; observations are standardised in the batch, so that there is one copy of the data.

The data are on the device (`OfflineData`), or on the host (`HostData`), where they may be files larger than memory. A
program that learns from the latter is the same program: it gets `OfflineData` of what its updates draw, and no more.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.datasets import Episodes
from engram.errors import BadRequest

Array = Any
"""An array of JAX, an array of NumPy on its way there, or its shape and dtype."""


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


class Scale(struct.PyTreeNode):
    """What is known of a dataset wherever it is."""

    mean: jax.Array
    """`[O]`, subtracted from observations."""
    deviation: jax.Array
    """`[O]`, observations are divided by it."""
    longest: jax.Array
    """Steps of the longest episode."""

    @classmethod
    def of(cls, episodes: Episodes, mean: Any, deviation: Any) -> "Scale":
        """That of `episodes`, whose observations are to be shifted by `mean` and divided by `deviation`."""
        size = episodes.obs.shape[1:]
        return cls(
            mean=jnp.asarray(np.broadcast_to(mean, size), jnp.float32),
            deviation=jnp.asarray(np.broadcast_to(deviation, size), jnp.float32),
            longest=jnp.asarray(episodes.lengths.max(), jnp.int32),
        )

    def standardised(self, obs: jax.Array) -> jax.Array:
        """Raw observations, shifted and scaled, as NumPy would do it."""
        obs = obs.astype(jnp.float32)
        # Where XLA sees that one number divides many, it multiplies by the reciprocal, which rounds twice.
        return (obs - self.mean) / (0.0 * obs + self.deviation)


class OfflineData(struct.PyTreeNode):
    """`Episodes` on the device: `N` steps of `E` episodes."""

    scale: Scale
    obs: Array
    """`[N + E, O]`, raw, float32 or uint8: each episode has one observation more than steps."""
    action: Array
    reward: Array
    to_go: Array
    """`[N]`, undiscounted return from each step to the end of its episode."""
    episode: Array
    """`[N]`, the episode of each step."""
    start: Array
    """`[E]`, the first step of each episode."""
    length: Array
    """`[E]`, steps of each episode."""
    terminated: Array
    """`[E]` bool, the task ended the episode, not a limit."""

    @classmethod
    def of(
        cls, episodes: Episodes, mean: Any = 0.0, deviation: Any = 1.0, factor: float = 1.0, shift: float = 0.0
    ) -> "OfflineData":
        """`episodes`, whose observations are to be shifted and scaled, with rewards times `factor` plus `shift`."""
        return cls(
            scale=Scale.of(episodes, mean, deviation),
            obs=jnp.asarray(episodes.obs),
            action=jnp.asarray(episodes.action),
            reward=jnp.asarray(scaled(episodes.reward, factor, shift)),
            to_go=jnp.asarray(episodes.to_go),
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
            obs=self.observations(row),
            action=self.action[step],
            reward=self.reward[step],
            next_obs=self.observations(row + 1),
            terminal=last & self.terminated[episode],
        )

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
            obs=masked(self.observations(step + episode)),
            action=masked(self.action[step]),
            reward=masked(self.reward[step]),
            to_go=masked(self.to_go[step]),
            timestep=masked(step - self.start[episode]),
            mask=mask,
            reset=offset <= 0,
        )

    def observations(self, row: jax.Array) -> jax.Array:
        """Standardised observations of rows of `obs`."""
        return self.scale.standardised(self.obs[row])


@dataclass(frozen=True, eq=False)
class Arrays:
    """Arrays of `Episodes` on the host, in memory or in files."""

    episodes: Episodes
    factor: float
    """Of rewards, to which `shift` is added."""
    shift: float
    most: int
    """Bytes of what is drawn that are gathered at a time."""

    @functools.cached_property
    def start(self) -> np.ndarray:
        return self.episodes.starts.astype(np.int32)


class HostData(struct.PyTreeNode):
    """`Episodes` on the host. Programs know their scale alone, and those that learn get `pieces` of them."""

    scale: Scale
    arrays: Arrays = struct.field(pytree_node=False)

    @classmethod
    def of(
        cls,
        episodes: Episodes,
        mean: Any = 0.0,
        deviation: Any = 1.0,
        factor: float = 1.0,
        shift: float = 0.0,
        most: int = 2**26,
    ) -> "HostData":
        """As `OfflineData.of`, but nothing is read. Drawn steps are gathered in pieces of at most `most` bytes."""
        return cls(Scale.of(episodes, mean, deviation), Arrays(episodes, factor, shift, most))

    @property
    def steps(self) -> int:
        return len(self.arrays.episodes.reward)

    def piece(self, step: np.ndarray, before: int, after: int) -> tuple[np.ndarray, OfflineData]:
        """The steps with numbers `step[...]`, each in an episode of its own with up to `before` steps before it and
        `after` steps after it -> their numbers in there, and these episodes, whose arrays are NumPy's.

        Episodes begin and end where they do in the dataset, though most of their steps are missing.
        """
        data, size = self.arrays.episodes, before + after + 1
        flat = step.reshape(-1)
        episode = np.searchsorted(self.arrays.start, flat, side="right") - 1
        start = self.arrays.start[episode]
        first = np.maximum(flat - before, start)
        # Beyond the end of an episode anything may stand.
        steps = np.minimum(first[:, None] + np.arange(size), len(data.reward) - 1).reshape(-1)
        rows = np.minimum((first + episode)[:, None] + np.arange(size + 1), len(data.obs) - 1).reshape(-1)
        begin = np.arange(0, len(steps), size, dtype=np.int32)
        return (begin + (flat - first)).reshape(step.shape), OfflineData(
            scale=self.scale,
            obs=data.obs.take(rows, axis=0),
            action=data.action.take(steps, axis=0),
            reward=scaled(data.reward[steps], self.arrays.factor, self.arrays.shift),
            to_go=data.to_go[steps],
            episode=np.repeat(np.arange(len(flat), dtype=np.int32), size),
            start=begin - (first - start),
            length=data.lengths[episode].astype(np.int32),
            terminated=data.terminated[episode],
        )


@dataclass(frozen=True)
class HostFeed:
    """How the training loop feeds an agent whose data are on the host (see `engram.training.feed.Feed`)."""

    data: HostData
    draws: int
    """Batches that an update draws."""
    drawn: Callable[[jax.Array], jax.Array]
    """Key -> the numbers `[B]` of the steps of one batch."""
    reach: tuple[int, int]
    """Steps that a batch holds before each of these, and after it."""

    @property
    def most(self) -> int:
        return self.data.arrays.most

    @property
    def on_device(self) -> OfflineData:
        episodes = self.data.arrays.episodes
        steps, ends = len(episodes.reward), len(episodes.lengths)
        shape = jax.ShapeDtypeStruct
        return OfflineData(
            scale=self.data.scale,
            obs=shape(episodes.obs.shape, episodes.obs.dtype),
            action=shape(episodes.action.shape, episodes.action.dtype),
            reward=shape((steps,), np.float32),
            to_go=shape((steps,), np.float32),
            episode=shape((steps,), np.int32),
            start=shape((ends,), np.int32),
            length=shape((ends,), np.int32),
            terminated=shape((ends,), bool),
        )

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = []
        for _ in range(self.draws):
            key, draw_key, _ = jax.random.split(key, 3)
            drawn.append(self.drawn(draw_key))
        return key, jnp.stack(drawn)

    def gather(self, numbers: np.ndarray) -> tuple[np.ndarray, OfflineData]:
        return self.data.piece(numbers, *self.reach)


def draw(key: jax.Array, data: OfflineData | HostData, count: int) -> jax.Array:
    """The numbers of `count` random steps: any, those near the end of an episode included."""
    return jax.random.randint(key, (count,), 0, data.steps)


def scaled(reward: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """Rewards times `factor` plus `shift`: rounded twice, as a compiled program might not."""
    return reward if (factor, shift) == (1.0, 0.0) else reward * factor + shift


def held(episodes: Episodes, device_gb: float, chunk_gb: float) -> Callable[..., OfflineData | HostData]:
    """What makes the data of `episodes`: `OfflineData.of` where they take, with a fifth to spare, up to `device_gb`
    gigabytes, else `HostData.of` with `chunk_gb` gigabytes of batches at a time.

    Raises:
        BadRequest: their rows cannot be counted in 32 bits.
    """
    if len(episodes.obs) >= 2**31:
        raise BadRequest(f"the dataset has {len(episodes.obs):,} rows, and more than 2^31 - 1 are not supported")
    if 1.2 * device_bytes(episodes) <= 1e9 * device_gb:
        return OfflineData.of
    return functools.partial(HostData.of, most=int(1e9 * chunk_gb))


def device_bytes(episodes: Episodes) -> int:
    """Bytes of the arrays of `OfflineData.of`."""
    steps, ends = len(episodes.reward), len(episodes.lengths)
    return episodes.obs.nbytes + episodes.action.nbytes + 12 * steps + 9 * ends
