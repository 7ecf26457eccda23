"""brax environments as `Environment`s.

The bare environment is wrapped: brax's own auto-reset returns to the same first state in every episode and overwrites
the final observation. swimmer is left out: brax 0.14.2 cannot run it.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs as brax_envs
from brax.io import image
from flax import struct

from engram.envs.base import Environment
from engram.envs.spaces import Box
from engram.errors import BadRequest

BACKENDS = ("spring", "positional", "generalized", "mjx")


@struct.dataclass
class BraxState:
    env_state: Any
    time: jax.Array


@dataclass(frozen=True)
class BraxEnvironment(Environment):
    """The brax environment `env_name` under a physics backend, cut (truncated) after `episode_length` steps.

    Actions are in [-1, 1]. Returns under different backends cannot be compared: results must name it.
    """

    env_name: str
    backend: str = "spring"
    episode_length: int = 1000

    @cached_property
    def env(self) -> Any:
        # First asked for inside a traced function, its arrays would be tracers otherwise.
        with jax.ensure_compile_time_eval():
            return brax_envs.get_environment(self.env_name, backend=self.backend)

    @cached_property
    def observation_size(self) -> int:
        # brax's own property of this name resets the environment, whose physics is slow outside a compiled program.
        return jax.eval_shape(self.env.reset, jax.random.key(0)).obs.shape[-1]

    @property
    def name(self) -> str:
        return f"brax/{self.env_name}?backend={self.backend}"

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, BraxState]:
        state = self.env.reset(key)
        return state.obs, BraxState(state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: BraxState, action: jax.Array, params: Any):
        env_state, time = self.env.step(state.env_state, action), state.time + 1
        terminated, truncated = env_state.done > 0.5, time >= self.episode_length
        # Physics can break down (light links on stiff springs do). One such environment must not spoil a training.
        sound = jnp.all(jnp.isfinite(env_state.obs)) & jnp.isfinite(env_state.reward)
        obs, reward = (jnp.where(sound, x, 0.0) for x in (env_state.obs, env_state.reward))
        return obs, BraxState(env_state, time), reward, terminated | ~sound, truncated, {}

    def observation_space(self, params: Any) -> Box:
        return Box(-np.inf, np.inf, (self.observation_size,))

    def action_space(self, params: Any) -> Box:
        return Box(-1.0, 1.0, (self.env.action_size,))

    def max_steps(self, params: Any) -> int:
        return self.episode_length

    def render(self, state: BraxState, params: Any) -> np.ndarray:
        """Drawn by MuJoCo, which needs OpenGL: on a machine without a screen set `MUJOCO_GL=egl`."""
        return np.asarray(image.render_array(self.env.sys, state.env_state.pipeline_state, height=240, width=320))


def make(name: str, backend: str = "spring", episode_length: int = 1000) -> BraxEnvironment:
    """Raises BadRequest for a backend that brax does not have."""
    if backend not in BACKENDS:
        raise BadRequest(f"brax/{name}: backend {backend!r} is not one of {', '.join(BACKENDS)}")
    return BraxEnvironment(name, backend, episode_length)


NAMES = {name: partial(make, name) for name in brax_envs._envs if name != "swimmer"}
"""Constructors by brax's names."""
