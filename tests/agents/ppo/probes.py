"""Environments with known answers: each isolates one thing that an agent with memory can get wrong."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from engram.envs.base import Environment, Info, NoParams, VectorEnvironment
from engram.envs.spaces import Box, Discrete, Space


class ProbeState(struct.PyTreeNode):
    time: jax.Array
    cue: jax.Array
    """+1 or -1."""


@dataclass(frozen=True)
class Probe(Environment):
    """Episodes of `length` steps with two actions. The observation is `(cue, time == length - 1)`, where shown."""

    length: int = 1
    cheap_reset = True

    def observe(self, state: ProbeState) -> jax.Array:
        return jnp.stack([self.shown(state), jnp.where(state.time == self.length - 1, 1.0, 0.0)])

    def shown(self, state: ProbeState) -> jax.Array:
        """What the observation tells of the cue."""
        return state.cue

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        raise NotImplementedError

    def truncates(self) -> bool:
        """Whether the episode is cut at its length instead of ending."""
        return False

    def reset(self, key, params):
        state = ProbeState(jnp.zeros((), jnp.int32), jax.random.rademacher(key, (), jnp.float32))
        return self.observe(state), state

    def step(self, key, state, action, params) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, Info]:
        reward = self.reward(state, jnp.where(action == 1, 1.0, -1.0))
        state = state.replace(time=state.time + 1)
        over = state.time == self.length
        no = jnp.zeros((), bool)
        terminated, truncated = (no, over) if self.truncates() else (over, no)
        return self.observe(state), state, reward, terminated, truncated, {}

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params) -> Space:
        return Discrete(2)

    def max_steps(self, params):
        return self.length


class ConstantReward(Probe):
    """Reward 1 at each of `length` steps: values are 1, 1 + discount, ... from the end."""

    def reward(self, state, action):
        return jnp.ones(())


class CutConstantReward(ConstantReward):
    """The same, cut instead of ended: every value is 1 / (1 - discount)."""

    def truncates(self):
        return True


class ActOnObservation(Probe):
    """Reward 1 for repeating the cue that is shown."""

    def reward(self, state, action):
        return jnp.where(action == state.cue, 1.0, 0.0)


class Recall(Probe):
    """The cue shows at the first step alone; reward 1 for repeating it at the last one."""

    def shown(self, state):
        return jnp.where(state.time == 0, state.cue, 0.0)

    def reward(self, state, action):
        return jnp.where((state.time == self.length - 1) & (action == state.cue), 1.0, 0.0)


class LeakState(struct.PyTreeNode):
    second: jax.Array
    """Whether every environment is at the second step of its episode."""
    bit: jax.Array


@dataclass(frozen=True)
class ResetLeak(VectorEnvironment):
    """Episodes of two steps. The second shows a bit, +1 or -1, and the first step of the *next* episode pays
    `action * bit`. A memory that is cleared between episodes can earn only 0; one that leaks earns 1.

    With `marked` False the same stream is one endless episode, the control in which the bit may be remembered.
    """

    num_envs: int
    marked: bool = True

    @property
    def name(self):
        return "ResetLeak"

    @property
    def default_params(self):
        return NoParams()

    def reset(self, key, params):
        return jnp.zeros((self.num_envs, 2)), LeakState(jnp.zeros((), bool), jnp.ones(self.num_envs))

    def step(self, key, state, action, params):
        second = state.second
        reward = jnp.where(second, 0.0, jnp.where(action == 1, 1.0, -1.0) * state.bit)
        bit = jnp.where(second, state.bit, jax.random.rademacher(key, (self.num_envs,), jnp.float32))
        obs = jnp.stack([jnp.where(second, 0.0, bit), jnp.broadcast_to(jnp.where(second, 0.0, 1.0), bit.shape)], axis=1)
        ends = jnp.broadcast_to(second & self.marked, bit.shape)
        info = {"reset": ends, "valid": jnp.ones_like(ends), "final_observation": obs}
        return obs, LeakState(~second, bit), reward, ends, jnp.zeros_like(ends), info

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params):
        return Discrete(2)

    def max_steps(self, params):
        return 2


@dataclass(frozen=True, eq=False)
class OneOf(VectorEnvironment):
    """The one of `parts`, alike in sizes and spaces, that `chosen` names. As the number may be traced, one compiled
    program trains on all of them."""

    parts: tuple[VectorEnvironment, ...]
    chosen: jax.Array

    @property
    def num_envs(self) -> int:  # type: ignore[override]
        return self.parts[0].num_envs

    @property
    def name(self):
        return "OneOf"

    @property
    def default_params(self):
        return NoParams()

    def choose(self, results: list[Any]) -> Any:
        return jax.tree.map(lambda *x: jax.lax.select_n(self.chosen, *x), *results)

    def reset(self, key, params):
        obs, states = zip(*(part.reset(key, params) for part in self.parts), strict=True)
        return self.choose(list(obs)), states

    def step(self, key, state, action, params):
        steps = [part.step(key, s, action, params) for part, s in zip(self.parts, state, strict=True)]
        obs, reward, terminated, truncated, info = self.choose([(obs, *rest) for obs, _, *rest in steps])
        return obs, tuple(s for _, s, *_ in steps), reward, terminated, truncated, info

    def observation_space(self, params):
        return self.parts[0].observation_space(params)

    def action_space(self, params):
        return self.parts[0].action_space(params)

    def max_steps(self, params):
        return max(part.max_steps(params) or 0 for part in self.parts)
