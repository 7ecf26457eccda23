"""gymnax environments as `Environment`s, without gymnax's own auto-reset (which resets at every step).

MNISTBandit-bsuite is left out: it downloads its data.
"""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces as gymnax_spaces

from envs.base import Environment
from envs.spaces import Box, Dict, Discrete, Space, Tuple

NAMES = tuple(name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite")


def _bound(value: Any, shape: tuple[int, ...]) -> float | tuple:
    """A box bound as a hashable value: one number when all entries agree. gymnax writes 'no bound' as float32's max."""
    array = np.broadcast_to(np.asarray(value, np.float32), shape)
    array = np.where(np.abs(array) == np.finfo(np.float32).max, np.copysign(np.inf, array), array)
    return float(array.flat[0]) if (array == array.flat[0]).all() else _nested_tuple(array.tolist())


def _nested_tuple(values: Any) -> Any:
    return tuple(_nested_tuple(value) for value in values) if isinstance(values, list) else values


def _convert(space: Any) -> Space:
    match space:
        case gymnax_spaces.Discrete():
            return Discrete(int(space.n))
        case gymnax_spaces.Box():
            # Declared dtypes are not reliable (FourRooms returns int32 for float32): every box becomes float32.
            shape = tuple(space.shape)
            return Box(_bound(space.low, shape), _bound(space.high, shape), shape)
        case gymnax_spaces.Tuple():
            return Tuple(tuple(_convert(part) for part in space.spaces))
        case gymnax_spaces.Dict():
            return Dict(tuple(sorted((name, _convert(part)) for name, part in space.spaces.items())))
    raise ValueError(f"gymnax space {space!r} is not supported")


def _cast(space: Space, x: Any) -> Any:
    match space:
        case Tuple():
            return tuple(_cast(part, y) for part, y in zip(space.spaces, x, strict=True))
        case Dict():
            return {name: _cast(part, x[name]) for name, part in space.spaces}
        case Box():
            return jnp.asarray(x, jnp.float32)
    return jnp.asarray(x, jnp.int32)


class GymnaxEnvironment(Environment):
    """The gymnax environment `env_name`; its parameters are gymnax's own (`env.default_params.replace(...)`).

    The bounds of the spaces follow the parameters where these are concrete, the default ones under a trace.
    """

    def __init__(self, env_name: str):
        self.env, self._default_params = gymnax.make(env_name)
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
        return _cast(self.observation_space(params), obs), state

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        obs, new_state, reward, terminated, info = self.env.step_env(key, state, action, params)
        truncated = jnp.asarray(self.env.is_truncated(new_state, params))
        new_state = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new_state, state)
        obs = _cast(self.observation_space(params), obs)
        return obs, new_state, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool), truncated, info

    def _space(self, describe: Any, params: Any) -> Space:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
            params = self.default_params
        with jax.ensure_compile_time_eval():
            return _convert(describe(params))

    def observation_space(self, params: Any) -> Space:
        return self._space(self.env.observation_space, params)

    def action_space(self, params: Any) -> Space:
        return self._space(self.env.action_space, params)

    def max_steps(self, params: Any) -> int:
        return int(params.max_steps_in_episode)
