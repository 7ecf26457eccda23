"""gymnax environments as `Environment`s, without gymnax's own auto-reset (which resets at every step).

MNISTBandit-bsuite is left out: it downloads its data.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
from gymnax.environments.spaces import gymnax_space_to_gym_space
from jax.core import Tracer

from engram.envs.base import Environment
from engram.envs.host.gymnasium_spaces import convert
from engram.envs.spaces import Box, Space
from engram.errors import BadRequest


def _observation(space: Space, obs: Any) -> jax.Array:
    # Declared dtypes are not reliable (FourRooms returns int32 for float32), so the kind of space decides.
    return jnp.asarray(obs, space.dtype if isinstance(space, Box) else jnp.int32)


class GymnaxEnvironment(Environment):
    """The gymnax environment `env_name`; its parameters are gymnax's own (`env.default_params.replace(...)`).

    The bounds of the spaces follow the parameters where these are concrete, the default ones under a trace.
    Raises BadRequest for `options` that are no parameters of the environment, or not of their type.
    """

    def __init__(self, env_name: str, /, **options: float | bool):
        self.env, params = gymnax.make(env_name)
        known = {field.name for field in dataclasses.fields(params)}
        for option, value in options.items():
            if option not in known:
                raise BadRequest(f"gymnax/{env_name} has no parameter {option!r}: it has {', '.join(sorted(known))}")
            kind = type(getattr(params, option))
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits or not math.isfinite(value):
                raise BadRequest(f"gymnax/{env_name}?{option} must be {kind.__name__}, got {value!r}")
            options[option] = kind(value)
        self._default_params = params.replace(**options)
        self._name = env_name

    @property
    def name(self) -> str:
        return self._name

    @property
    def default_params(self) -> Any:
        return self._default_params

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        obs, state = self.env.reset_env(key, params)
        # gymnax opens with Python numbers here and there, which are weakly typed and would not carry through a loop.
        state = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.asarray(x).dtype), state)
        return _observation(self.observation_space(params), obs), state

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        obs, new_state, reward, terminated, info = self.env.step_env(key, state, action, params)
        truncated = jnp.asarray(self.env.is_truncated(new_state, params))
        new_state = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new_state, state)
        obs = _observation(self.observation_space(params), obs)
        return obs, new_state, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool), truncated, info

    def _space(self, describe: Any, params: Any) -> Space:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
            params = self.default_params
        with jax.ensure_compile_time_eval():
            return convert(gymnax_space_to_gym_space(describe(params)))

    def observation_space(self, params: Any) -> Space:
        return self._space(self.env.observation_space, params)

    def action_space(self, params: Any) -> Space:
        return self._space(self.env.action_space, params)

    def max_steps(self, params: Any) -> int:
        return int(params.max_steps_in_episode)


NAMES = {name: partial(GymnaxEnvironment, name) for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"}
"""Constructors by gymnax's names."""
