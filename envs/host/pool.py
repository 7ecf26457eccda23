"""Emulators on the host as a `VectorEnvironment`, stepped from inside a compiled program, which calls Python for it.

The episodes live in the pool, outside the program: a state here only holds the number of steps so far and the mask of
episodes that have just ended. The number passes from call to call, which orders them, and the host compares it with its
own count. So:

- a state can be stepped once, in order. `reset` hands out the observations that the pool opened with and is good once;
  to start again, or to resume exactly, make the pool again from its seed and step it through the same actions.
- under `vmap` over `copies` agents one pool of `copies * num_envs` lanes serves all: agent `i` has the lanes
  `i * num_envs ... (i + 1) * num_envs - 1`.

Pools restart on the step after the end. With `done` at step t, the observation that step t returns is the final one;
step t + 1 is a dummy (`valid` False: action ignored, reward 0, no flags) whose observation opens the next episode
(`reset` True).
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import NoParams, VectorEnvironment
from engram.envs.host.gymnasium_spaces import (
    action_to_gymnasium,
    convert,
    convert_action,
    from_gymnasium,
    lost_digits,
    may_lose_digits,
    structs,
    whole_numbers,
)
from engram.envs.spaces import EXACT, MASK, REST, Box, Dict, MultiDiscrete, Space, allows_nothing, has_mask
from engram.envs.vector import clip_action
from engram.errors import BadRequest
from engram.kernels.host_call import HostCall

log = logging.getLogger(__name__)
Seed = int | tuple[int, ...]
"""Seed of a pool's first agent, and behind it numbers that set the pool apart from others of the same agent."""
Transition = tuple[Any, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]
"""Observation, reward (float32), terminated, truncated, each `[lanes]`; and by name what goes into `info`:
`executed`, and the flags of `HostPool.extra_info`."""


def lane_seeds(seed: Seed, num_envs: int, copies: int = 1) -> list[int]:
    """Seeds of the `copies * num_envs` lanes of a pool, in 0 .. 2^31 - 1, those of the first agent first.

    The agents' seeds count up from `seed`, and each hashes its own with the number of the lane. So an agent has the
    lanes that it would have in a pool of its own, and shares none with an agent of another seed.
    """
    first, *apart = (seed,) if isinstance(seed, int) else seed

    def lane_seed(copy: int, lane: int) -> int:
        return int(np.random.SeedSequence(first + copy, spawn_key=(*apart, lane)).generate_state(1)[0]) >> 1

    return [lane_seed(copy, lane) for copy in range(copies) for lane in range(num_envs)]


@struct.dataclass
class HostPoolState:
    token: jax.Array
    pending: jax.Array


def wrong_shape(space: Any, x: Any, where: str = "observation") -> str | None:
    """What of `x` has another shape than its gymnasium space says, in words; None where nothing has."""
    parts: Any = getattr(space, "spaces", None)
    if isinstance(parts, Mapping) and isinstance(x, Mapping):
        found = (wrong_shape(parts[name], x[name], f"{where}[{name!r}]") for name in parts if name in x)
    elif isinstance(parts, tuple) and isinstance(x, tuple | list):
        found = (wrong_shape(part, y, f"{where}[{i}]") for i, (part, y) in enumerate(zip(parts, x, strict=False)))
    elif parts is None and space.shape is not None and np.shape(x) != space.shape:
        return f"{where} of shape {np.shape(x)}, its space has shape {space.shape}"
    else:
        return None
    return next((words for words in found if words), None)


def check_limits(what: str, options: Mapping[str, Any], none: int | None = None) -> None:
    """Raises BadRequest for an option of length that no episode can have.

    Args:
        none: the value that asks for no limit, where there is one.
    """
    for option in ("max_episode_steps", "max_num_frames_per_episode"):
        value = options.get(option, none)
        if value != none and (type(value) is not int or value < 1):
            way_out = "" if none is None else f", or {none} for no limit"
            raise BadRequest(f"{what}?{option} must be int and at least 1{way_out}, got {value!r}")


class HostPool(VectorEnvironment):
    """Emulators with the interface of gymnasium's vector environments. Box actions are clipped to the action space,
    and rounded where it has whole numbers, before they reach the emulator; those of several axes or parts are one
    vector here (see `convert_action`). A state that is stepped out of turn raises RuntimeError.

    `info["executed"]` are the actions as the emulator took them, bit for bit: those who repeat a pool keep these. A
    compiler that computes a number twice, once for the emulator and once for a log, may round it in two ways.

    If the `info` of every reset and step has an `action_mask`, observations are dicts of it and of what they are
    otherwise (see `engram.envs.wrappers.ActionMask`). An environment that allows no action while its episode goes on
    raises BadRequest.

    Where an observation or a reward is not finite, zeros stand in its place. The first time the log of this module
    says in which environment and step.
    """

    is_host_pool = True
    first_token: Any = np.int32(0)
    """What the first state holds to order the calls: the number of steps so far."""
    extra_info: tuple[str, ...] = ()
    """Flags (bool) beyond those of every environment that the pool's own info holds and `step` passes on."""
    heeds_masks = True
    """Whether masks of actions are of use. If not, they are not checked."""

    def __init__(self, name: str, pool: Any, first_observation: Any, num_envs: int, copies: int,
                 spaces: tuple[Any, Any], max_steps: int | None, first_info: Mapping[str, Any] = {}):  # fmt: skip
        self._name, self.pool, self._max_steps = name, pool, max_steps
        self.num_envs, self.copies = num_envs, copies
        self.pool_spaces = spaces
        self._observation_space, self._action_space = convert(spaces[0]), convert_action(spaces[1])
        self._steps, self._told, self._told_of_digits = 0, False, not may_lose_digits(spaces[0])
        self._lifts_masks = MASK in first_info and not has_mask(self._observation_space)
        running = np.zeros(num_envs * copies, bool)
        self.first_observation = self._shown(first_observation, first_info, running)
        if self._lifts_masks:
            mask = MultiDiscrete((2,) * self.first_observation[MASK].shape[1])
            self._observation_space = Dict(((MASK, mask), (REST, self._observation_space)))
        self._open_call = HostCall(lambda _: (self.first_token, self.first_observation), is_pure=True)
        self._step_call = HostCall(self._host_step)
        self._wrong_call = HostCall(lambda *_: self._check(1))
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
        return self._step_call((self._token, self._transition_structs(self.copies * self.num_envs)), token, action)

    def _host_step(self, token: np.ndarray, action: Any) -> tuple[Any, Any]:
        if int(token) != self._steps:
            raise RuntimeError(
                f"{self.name}: a state of step {int(token)} was stepped, but the pool is at step {self._steps}; "
                "an emulator cannot be reset or rewound, make it again"
            )
        self._steps += 1
        obs, reward, terminated, truncated, info = self.pool.step(action_to_gymnasium(self.pool_spaces[1], action))
        terminated, truncated = np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_)
        transition = (
            self._shown(obs, info, terminated | truncated),
            self._finite(np.asarray(reward, np.float32), "reward"),
            terminated,
            truncated,
            {"executed": action} | {name: np.asarray(info[name], np.bool_) for name in self.extra_info},
        )
        return np.int32(self._steps), transition

    def _shown(self, obs: Any, info: Mapping[str, Any], done: np.ndarray) -> Any:
        """Observations of all lanes as members of the observation space.

        Args:
            done: `[lanes]` bool: the episode has ended, and what is allowed after it does not matter.
        """
        if not self._told_of_digits:
            self._tell_of_digits(obs)
        shown = jax.tree.map(self._finite, from_gymnasium(self.pool_spaces[0], obs))
        if self._lifts_masks:
            shown = {MASK: self._mask(info, done), REST: shown}
        elif MASK in info and self.heeds_masks and not has_mask(self._observation_space):
            raise BadRequest(f"{self.name} gives info['action_mask'] in a step, but gave none at its reset")
        if isinstance(shown, dict) and MASK in shown and self.heeds_masks:
            mask = np.concatenate([np.reshape(x, (len(done), -1)) for x in jax.tree.leaves(shown[MASK])], axis=1)
            stuck = np.asarray(allows_nothing(self._action_space, mask) & ~done)
            if stuck.any():
                raise BadRequest(f"{self.name}: {self._lane(stuck)} allows no action, and its episode goes on")
        return shown

    def _tell_of_digits(self, obs: Any) -> None:
        """Says the first time that an observation holds a whole number that float32 does not."""
        lost = lost_digits(self.pool_spaces[0], obs)
        if lost is None:
            return
        value = int(lost[lost != 0][0])
        log.warning(
            "%s: the observation of %s holds %s, which agents see as %s: whole numbers beyond +-%s lose their last "
            "digits in float32, here and later; a gymnasium.ObservationWrapper can shift them, or show them in parts",
            *(self.name, self._lane(lost != 0), f"{value:,}", f"{int(np.float32(value)):,}", f"{EXACT:,}"),
        )
        self._told_of_digits = True

    def _mask(self, info: Mapping[str, Any], done: np.ndarray) -> np.ndarray:
        """`info["action_mask"]` of all lanes, int32 `[lanes, n]`; ones where an episode has ended without it."""
        lanes = len(done)
        if not self.heeds_masks:
            return np.ones((lanes, self.first_observation[MASK].shape[1]), np.int32)
        given = info.get(MASK, np.full(lanes, None))
        there: Any = np.broadcast_to(info.get(f"_{MASK}", MASK in info), lanes)
        if not (there | done).all():
            raise BadRequest(f"{self.name}: {self._lane(~there & ~done)} gave no info['action_mask']")
        # A tuple has a mask for each component of an action.
        rows = [
            np.concatenate([np.ravel(part) for part in row]) if isinstance(row, tuple) else np.ravel(row)
            for row, is_there in zip(given, there, strict=True)
            if is_there
        ]
        size = len(rows[0]) if self._steps == 0 else self.first_observation[MASK].shape[1]
        if any(len(row) != size for row in rows):
            raise BadRequest(f"{self.name} gave an info['action_mask'] of {len(rows[0])} entries, not of {size}")
        mask = np.ones((lanes, size), np.int32)
        mask[there] = np.asarray(rows).reshape(-1, size) != 0
        return mask

    def _lane(self, which: Any) -> str:
        """The first lane of `which [lanes]`, and the step, in words."""
        lane = int(np.argmax(which))
        agent = f" of seed {lane // self.num_envs + 1} out of {self.copies}" if self.copies > 1 else ""
        return f"environment {lane % self.num_envs}{agent} at step {self._steps} of the emulators"

    def _finite(self, x: np.ndarray, what: str = "observation") -> np.ndarray:
        """`x[lanes, ...]` with zeros where it is not finite, which is said the first time."""
        if x.dtype != np.float32 or np.isfinite(x).all():
            return x
        finite = np.isfinite(x)
        if not self._told:
            lane = self._lane(~finite.reshape(len(x), -1).all(axis=1))
            log.warning(
                "%s: the %s of %s is not finite: zeros take the place of such numbers, here and later",
                *(self.name, what, lane),
            )
            self._told = True
        return np.where(finite, x, np.float32(0))

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, HostPoolState]:
        # The key only tells which axis is the agents'; the randomness is the pool's, from its seed.
        obs, token = self._reset(jax.random.key_data(key))
        return obs, HostPoolState(token, jnp.zeros(self.num_envs, bool))

    def step(self, key: jax.Array, state: HostPoolState, action: Any, params: Any):
        action = clip_action(self._action_space, action)
        if isinstance(self._action_space, Box):
            action = jnp.where(whole_numbers(self.pool_spaces[1]), jnp.round(action), action)
        token, (obs, reward, terminated, truncated, extra) = self._step(state.token, action)
        info = {**extra, "reset": state.pending, "valid": ~state.pending, "final_observation": obs}
        return obs, HostPoolState(token, terminated | truncated), reward, terminated, truncated, info

    def _check(self, copies: int) -> None:
        if copies != self.copies:
            raise BadRequest(
                f"{self.name}: this pool was made for {self.copies} vmapped agents and is used by {copies}; "
                f"give make_vector copies={copies}"
            )

    def _open(self) -> tuple[jax.Array, Any]:
        """The first token, and the observations that the pool opened with, of all lanes."""
        lanes = structs(self._observation_space, self.copies * self.num_envs)
        return self._open_call((self._token, lanes), jnp.zeros((), np.int32))

    def _reset_one(self, key: jax.Array) -> tuple[Any, jax.Array]:
        # Also traced, and then thrown away, on the way to `_reset_copies`: so this only needs the right shapes then.
        del key
        token, lanes = self._open()
        return jax.tree.map(lambda x: x[: self.num_envs], lanes), token

    def _reset_copies(self, axis_size: int, batched: Any, key: jax.Array):
        del batched, key
        self._check(axis_size)
        token, lanes = self._open()
        out = self._split(lanes), self._spread(token)
        return out, jax.tree.map(lambda _: True, out)

    def _step_one(self, token: jax.Array, action: Any) -> tuple[jax.Array, Transition]:
        if self.copies == 1:
            return self.step_lanes(token, action)
        return self._wrong_call((self._token, self._transition_structs(self.num_envs)), token, action)

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

    def _split(self, lanes: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(self.copies, self.num_envs, *x.shape[1:]), lanes)

    def _spread(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (self.copies, *x.shape))

    def _transition_structs(self, lanes: int) -> Any:
        observation = structs(self._observation_space, lanes)
        reward = jax.ShapeDtypeStruct((lanes,), np.float32)
        flag = jax.ShapeDtypeStruct((lanes,), np.bool_)
        executed = {"executed": structs(self._action_space, lanes)}
        return observation, reward, flag, flag, executed | dict.fromkeys(self.extra_info, flag)

    @property
    def _token(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.first_token.shape, self.first_token.dtype)

    def close(self) -> None:
        """Closes the emulators. Programs that step them must not be called any more."""
        for call in (self._open_call, self._step_call, self._wrong_call):
            call.close()
        self.pool.close()
