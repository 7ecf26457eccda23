"""Replay buffer on the device, with dynamic frequency-based sampling (arXiv 2410.08893, section 2.4).

Each environment ("lane") has a ring buffer of rows of its own, so that windows of consecutive rows never mix lanes.
Rows are a pytree of arrays. Two counts say how often a training window and an imagined trajectory began at each row.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct


class ReplayState(struct.PyTreeNode):
    """Contents of the buffer."""

    rows: Any
    """Stored rows, leaves `[rows, lanes, ...]`."""
    trained: jax.Array
    """int32 `[rows, lanes]`, training windows that began at each row since it was written."""
    imagined: jax.Array
    """int32 `[rows, lanes]`, imagined trajectories that began at each row since it was written."""
    position: jax.Array
    """int32 `[lanes]`, the row that each lane writes next."""
    filled: jax.Array
    """int32 `[lanes]`, rows of each lane that have been written."""


@dataclass(frozen=True)
class Replay:
    """A ring buffer of `capacity` rows for each of `lanes` lanes.

    Attributes:
        sampling: frequency-based, or uniform over all windows.
        temperature: training windows begin at a row with weight `exp(-trained / temperature)`.
        imagine_temperature: contexts of imagination begin at a row with weight
            `exp(min(0, trained - imagined / ratio) / imagine_temperature)`.
        ratio: imagined trajectories for each training window of an update.
    """

    capacity: int
    lanes: int
    sampling: Literal["frequency", "uniform"]
    temperature: float
    imagine_temperature: float
    ratio: float

    def init(self, row: Any) -> ReplayState:
        """The empty buffer. `row`: one row of one lane, for shapes and dtypes."""
        size = (self.capacity, self.lanes)
        return ReplayState(
            rows=jax.tree.map(lambda x: jnp.zeros((*size, *jnp.shape(x)), jnp.asarray(x).dtype), row),
            trained=jnp.zeros(size, jnp.int32),
            imagined=jnp.zeros(size, jnp.int32),
            position=jnp.zeros(self.lanes, jnp.int32),
            filled=jnp.zeros(self.lanes, jnp.int32),
        )

    def add(self, state: ReplayState, row: Any, valid: jax.Array) -> ReplayState:
        """Appends one row `[lanes, ...]` where `valid[lanes]`. Where a ring is full it replaces the oldest row."""
        lanes = jnp.arange(self.lanes)
        place = jnp.where(valid, state.position, self.capacity)  # beyond the end: dropped
        put = lambda ring, x: ring.at[place, lanes].set(x, mode="drop")  # noqa: E731
        return ReplayState(
            rows=jax.tree.map(put, state.rows, row),
            trained=put(state.trained, 0),
            imagined=put(state.imagined, 0),
            position=jnp.where(valid, (state.position + 1) % self.capacity, state.position),
            filled=jnp.minimum(state.filled + valid, self.capacity),
        )

    def is_start(self, state: ReplayState, length: int) -> jax.Array:
        """bool `[rows, lanes]`, a window of `length` rows can begin here: all of them are written and consecutive."""
        age = (jnp.arange(self.capacity)[:, None] - (state.position - state.filled)) % self.capacity
        return age + length <= state.filled

    def draw_training(self, state: ReplayState, key: jax.Array, n: int, length: int) -> tuple[ReplayState, jax.Array]:
        """Samples `n` different starts of windows of `length` rows -> state with new counts, flat indices `[n]`."""
        logits = -state.trained / self.temperature
        starts = self._draw(state, key, logits, n, length)
        return state.replace(trained=_count(state.trained, starts)), starts

    def draw_imagination(
        self, state: ReplayState, key: jax.Array, n: int, length: int
    ) -> tuple[ReplayState, jax.Array]:
        """Samples `n` different starts of contexts of `length` rows -> state with new counts, flat indices `[n]`.

        A start becomes less likely once more trajectories were imagined from it, in units of `ratio`, than windows
        trained on: the general form n - alpha m - beta max(0, n - m) is min(0, n - m) for the published alpha = beta =
        1.
        """
        logits = jnp.minimum(0.0, state.trained - state.imagined / self.ratio) / self.imagine_temperature
        starts = self._draw(state, key, logits, n, length)
        return state.replace(imagined=_count(state.imagined, starts)), starts

    def _draw(self, state: ReplayState, key: jax.Array, logits: jax.Array, n: int, length: int) -> jax.Array:
        # The n largest of logits + Gumbel noise are a sample without replacement in proportion to exp(logits).
        if self.sampling == "uniform":
            logits = jnp.zeros(logits.shape)
        noisy = logits + jax.random.gumbel(key, logits.shape)
        return jax.lax.top_k(jnp.where(self.is_start(state, length), noisy, -jnp.inf).reshape(-1), n)[1]

    def windows(self, state: ReplayState, starts: jax.Array, length: int) -> Any:
        """Windows of `length` rows that begin at `starts[n]`, leaves `[length, n, ...]`."""
        first, lane = starts // self.lanes, starts % self.lanes
        index = (first + jnp.arange(length)[:, None]) % self.capacity
        return jax.tree.map(lambda ring: ring[index, lane], state.rows)


def _count(counts: jax.Array, starts: jax.Array) -> jax.Array:
    return counts.reshape(-1).at[starts].add(1).reshape(counts.shape)
