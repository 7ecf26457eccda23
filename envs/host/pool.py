"""Emulators on the host as a `VectorEnvironment`, stepped from inside a compiled program.

The episodes live in the pool, outside the program: a state here only holds a token that orders the calls and the
mask of episodes that have just ended. So:

- a state can be stepped once, in order. `reset` hands out the observations that the pool opened with and is good once;
  to start again, or to resume exactly, make the pool again from its seed and step it through the same actions.
- under `vmap` over `copies` agents one pool of `copies * num_envs` lanes serves all: agent `i` has the lanes
  `i * num_envs ... (i + 1) * num_envs - 1`.

Pools restart on the step after the end. With `done` at step t, the observation that step t returns is the final one;
step t + 1 is a dummy (`valid` False: action ignored, reward 0, no flags) whose observation opens the next episode
(`reset` True).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from engram.envs.base import NoParams, VectorEnvironment
from engram.envs.host.gymnasium_spaces import convert, from_gymnasium, structs, to_gymnasium
from engram.envs.spaces import Space
from engram.envs.vector import clip_action
from engram.errors import BadRequest

Transition = tuple[Any, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]
"""Observation, reward (float32), terminated, truncated, and the flags of `HostPool.extra_info`, each `[lanes]`."""


@struct.dataclass
class HostPoolState:
    token: jax.Array
    pending: jax.Array


class HostPool(VectorEnvironment):
    """What all pools share. A subclass gives `first_token` and `step_lanes`. Box actions are clipped to the action
    space before they reach the emulator."""

    is_host_pool = True
    extra_info: tuple[str, ...] = ()
    """Flags (bool) beyond those of every environment that the pool's own info holds and `step` passes on."""
    first_token: np.ndarray

    def __init__(self, name: str, pool: Any, first_observation: Any, num_envs: int, copies: int,
                 spaces: tuple[Any, Any], max_steps: int | None):  # fmt: skip
        self._name, self.pool, self._max_steps = name, pool, max_steps
        self.num_envs, self.copies = num_envs, copies
        self.pool_spaces = spaces
        self._observation_space, self._action_space = convert(spaces[0]), convert(spaces[1])
        self.first_observation = from_gymnasium(spaces[0], first_observation)
        self._reset = jax.custom_batching.custom_vmap(self._reset_one)
        self._reset.def_vmap(self._reset_copies)
        self._step = jax.custom_batching.custom_vmap(self._step_one)
        self._step.def_vmap(self._step_copies)

    @property
    def name(self) -> str:
        return self._name

    @property
    def default_params(self) -> NoParams:
        return NoParams()

    def observation_space(self, params: Any) -> Space:
        return self._observation_space

    def action_space(self, params: Any) -> Space:
        return self._action_space

    def max_steps(self, params: Any) -> int | None:
        return self._max_steps

    def step_lanes(self, token: jax.Array, action: Any) -> tuple[jax.Array, Transition]:
        """One step of the whole pool, `action[copies * num_envs]` -> the next token and the transition."""
        raise NotImplementedError

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, HostPoolState]:
        # The key only tells which axis is the agents'; the randomness is the pool's, from its seed.
        obs, token = self._reset(jax.random.key_data(key))
        return obs, HostPoolState(token, jnp.zeros(self.num_envs, bool))

    def step(self, key: jax.Array, state: HostPoolState, action: Any, params: Any):
        action = clip_action(self._action_space, action)
        token, (obs, reward, terminated, truncated, extra) = self._step(state.token, action)
        info = {**extra, "reset": state.pending, "valid": ~state.pending, "final_observation": obs}
        return obs, HostPoolState(token, terminated | truncated), reward, terminated, truncated, info

    def _check(self, copies: int) -> None:
        if copies != self.copies:
            raise BadRequest(
                f"{self.name}: this pool was made for {self.copies} vmapped agents and is used by {copies}; "
                f"give make_vector copies={copies}"
            )

    def _reset_one(self, key: jax.Array) -> tuple[Any, jax.Array]:
        # Also traced, and then thrown away, on the way to `_reset_copies`: so this only needs the right shapes then.
        del key
        return jax.tree.map(lambda x: jnp.asarray(x[: self.num_envs]), self.first_observation), self._first()

    def _reset_copies(self, axis_size: int, batched: Any, key: jax.Array):
        del batched, key
        self._check(axis_size)
        out = self._split(self.first_observation), self._spread(self._first())
        return out, jax.tree.map(lambda _: True, out)

    def _step_one(self, token: jax.Array, action: Any) -> tuple[jax.Array, Transition]:
        if self.copies == 1:
            return self.step_lanes(token, action)
        out = (jax.ShapeDtypeStruct(token.shape, token.dtype), self._transition_structs(self.num_envs))
        return io_callback(lambda *_: self._check(1), out, token, action)

    def _step_copies(self, axis_size: int, batched: Any, token: jax.Array, action: Any):
        self._check(axis_size)
        token_batched, action_batched = batched
        token = token[0] if token_batched else token
        lanes = jax.tree.map(
            lambda x, is_batched: (x if is_batched else self._spread(x)).reshape(-1, *x.shape[1 + is_batched :]),
            action,
            action_batched,
        )
        token, transition = self.step_lanes(token, lanes)
        out = self._spread(token), self._split(transition)
        return out, jax.tree.map(lambda _: True, out)

    def _first(self) -> jax.Array:
        return jnp.asarray(self.first_token)

    def _split(self, lanes: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x).reshape(self.copies, self.num_envs, *x.shape[1:]), lanes)

    def _spread(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (self.copies, *x.shape))

    def _transition_structs(self, lanes: int) -> Any:
        observation = structs(self._observation_space, lanes)
        reward = jax.ShapeDtypeStruct((lanes,), np.float32)
        flag = jax.ShapeDtypeStruct((lanes,), np.bool_)
        return observation, reward, flag, flag, dict.fromkeys(self.extra_info, flag)

    def close(self) -> None:
        self.pool.close()


class CallbackPool(HostPool):
    """A pool that is stepped in Python, with gymnasium's `step(actions)`, by a call back from the program.

    The token counts the steps. It passes from call to call, which orders them, and the host compares it with its own
    count, so a state that is stepped out of turn raises RuntimeError.
    """

    first_token = np.zeros((), np.int32)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._steps = 0

    def step_lanes(self, token: jax.Array, action: Any) -> tuple[jax.Array, Transition]:
        out = (jax.ShapeDtypeStruct((), np.int32), self._transition_structs(self.copies * self.num_envs))
        return io_callback(self._host_step, out, token, action)

    def _host_step(self, token: np.ndarray, action: Any) -> Any:
        if int(token) != self._steps:
            raise RuntimeError(
                f"{self.name}: a state of step {int(token)} was stepped, but the pool is at step {self._steps}; "
                "an emulator cannot be reset or rewound, make it again"
            )
        self._steps += 1
        observation_space, action_space = self.pool_spaces
        action = to_gymnasium(action_space, jax.tree.map(np.asarray, action))
        obs, reward, terminated, truncated, info = self.pool.step(action)
        transition = (
            from_gymnasium(observation_space, obs),
            np.asarray(reward, np.float32),
            np.asarray(terminated, np.bool_),
            np.asarray(truncated, np.bool_),
            {name: np.asarray(info[name], np.bool_) for name in self.extra_info},
        )
        return np.int32(self._steps), transition
