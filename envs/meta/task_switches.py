"""Tasks that change within a trial, at times the agent is not told, for any family.

A task of `Switching` is a whole history, drawn before the trial begins: one task of the family for each segment, and
the steps at which segments begin. So the changes are the same whatever the agent does, and an oracle can know them.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Info
from engram.envs.meta.trials import Family
from engram.envs.spaces import Space
from engram.errors import BadRequest

NEVER = 2**31 - 1


@struct.dataclass
class SwitchingTask:
    tasks: Any
    """Tasks of the family, leaves `[segments, ...]`."""
    starts: jax.Array
    """`[segments]` int32, increasing, the first is 0: steps of the trial taken when a segment comes into force. Those
    that the trial does not reach begin at `NEVER`."""


class SwitchingState(struct.PyTreeNode):
    inner: Any
    clock: jax.Array
    """Steps of the trial so far, int32; inner episodes do not restart it."""


@dataclass(frozen=True)
class Switching(Family):
    """`family` whose task is drawn anew at some steps of the trial, and stays in force over the ends of inner episodes.

    `switches` > 0: so many changes, at distinct steps drawn uniformly from 1 .. horizon - 1. `hazard` > 0: a change
    after every step with that probability. Exactly one of them is given. `info` is the family's with `switched` (bool:
    the next step is under another task) and `segment` (int32, in force during the step).
    """

    family: Family
    horizon: int
    """Steps of a trial. Should one go on longer, the last task stays."""
    switches: int = 0
    hazard: float = 0.0

    def __post_init__(self):
        if (self.switches > 0) == (self.hazard > 0.0):
            raise BadRequest(f"give switches or hazard, one of them: got {self.switches} and {self.hazard}")
        if not 0.0 <= self.hazard <= 1.0:
            raise BadRequest(f"hazard must lie in 0 .. 1, got {self.hazard}")
        if not 0 <= self.switches < self.horizon:
            raise BadRequest(f"switches must be fewer than the {self.horizon} steps of a trial, got {self.switches}")

    @property
    def cheap_reset(self) -> bool:
        return self.family.cheap_reset

    @property
    def name(self) -> str:
        return f"Switching{self.family.name}"

    @property
    def segments(self) -> int:
        """Segments of a trial, with a hazard so many that more are less likely than 1e-9."""
        if self.switches:
            return self.switches + 1
        from scipy.stats import binom  # takes seconds to import

        return int(binom.isf(1e-9, self.horizon - 1, self.hazard)) + 1

    def draw(self, key: jax.Array, split: str) -> SwitchingTask:
        task_key, start_key = jax.random.split(key)
        tasks = jax.vmap(lambda key: self.family.draw(key, split))(jax.random.split(task_key, self.segments))
        if self.switches:
            changes = jax.random.choice(start_key, self.horizon - 1, (self.switches,), replace=False) + 1
            starts = jnp.sort(changes)
        else:
            gaps = jax.random.geometric(start_key, self.hazard, (self.segments - 1,), dtype=jnp.int32)
            starts = jnp.cumsum(jnp.minimum(gaps, self.horizon))
            starts = jnp.where(starts < self.horizon, starts, NEVER)
        return SwitchingTask(tasks, jnp.concatenate([jnp.zeros(1, jnp.int32), starts.astype(jnp.int32)]))

    def segment(self, task: SwitchingTask, clock: jax.Array) -> jax.Array:
        """Index of the segment that rules the step after `clock` steps, int32."""
        return jnp.sum(task.starts <= clock, dtype=jnp.int32) - 1

    def in_force(self, task: SwitchingTask, clock: jax.Array) -> Any:
        """The family's task in the step after `clock` steps."""
        segment = self.segment(task, clock)
        return jax.tree.map(lambda x: x[segment], task.tasks)

    def reset(self, key: jax.Array, params: SwitchingTask) -> tuple[Any, SwitchingState]:
        clock = jnp.int32(0)
        obs, inner = self.family.reset(key, self.in_force(params, clock))
        return obs, SwitchingState(inner, clock)

    def restart(self, key: jax.Array, state: SwitchingState, task: SwitchingTask) -> tuple[Any, SwitchingState]:
        obs, inner = self.family.restart(key, state.inner, self.in_force(task, state.clock))
        return obs, SwitchingState(inner, state.clock)

    def step(
        self, key: jax.Array, state: SwitchingState, action: Any, params: SwitchingTask
    ) -> tuple[Any, SwitchingState, jax.Array, jax.Array, jax.Array, Info]:
        step = self.family.step(key, state.inner, action, self.in_force(params, state.clock))
        obs, inner, reward, terminated, truncated, info = step
        segment, clock = self.segment(params, state.clock), state.clock + 1
        info = {**info, "segment": segment, "switched": self.segment(params, clock) != segment}
        return obs, SwitchingState(inner, clock), reward, terminated, truncated, info

    def _first(self, task: SwitchingTask) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), task.tasks)

    def observation_space(self, params: SwitchingTask) -> Space:
        return self.family.observation_space(self._first(params))

    def action_space(self, params: SwitchingTask) -> Space:
        return self.family.action_space(self._first(params))

    def max_steps(self, params: SwitchingTask) -> int | None:
        return self.family.max_steps(self._first(params))

    def render(self, state: SwitchingState, params: SwitchingTask) -> np.ndarray:
        return self.family.render(state.inner, self.in_force(params, state.clock))
