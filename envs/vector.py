"""From one environment to a batch that restarts itself."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, VectorEnvironment
from engram.envs.spaces import Box, Space
from engram.kernels.rows import select_rows


def clip_action(space: Space, action: Any) -> Any:
    """`action` clipped to the bounds of a `Box`; actions of other spaces are returned as they are."""
    if not isinstance(space, Box):
        return action
    return jnp.clip(action, jnp.asarray(space.low, space.dtype), jnp.asarray(space.high, space.dtype))


NEAR_ONE = (0.5, 4.0)
"""Bounds of actions of a size between these, on both sides of 0, are left as they are: so act the policies of published
results in most environments of continuous control."""


def action_scale(space: Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Middle and half width of the bounds of each entry of a `Box`, `[*shape]` each; 0 and 1 where an entry has no
    bounds or those that are near +-1. None where this is so for all entries, and for other spaces."""
    if not isinstance(space, Box):
        return None
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), space.shape) for bound in (space.low, space.high))
    least, most = NEAR_ONE
    near = (np.minimum(-low, high) >= least) & (np.maximum(-low, high) <= most)
    scaled = np.isfinite(low) & np.isfinite(high) & (low < high) & ~near
    if not scaled.any():
        return None
    low, high = np.where(scaled, low, -1.0), np.where(scaled, high, 1.0)
    return ((high + low) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


@struct.dataclass
class VectorisedState:
    """States of the running episodes, and for each environment the opening of one to come; leaves `[B, ...]`."""

    env_state: Any
    spare: Any
    """`(obs, state)` as `env.reset` returned them, or None where resets are made as they are needed."""
    used: Any
    """bool: the spare was used (or never made)."""


@dataclass(frozen=True)
class Vectorised(VectorEnvironment):
    """`num_envs` independent copies of `env` under `vmap`, each restarted in the step that ends its episode.

    Box actions are clipped to the action space before they reach the environment.

    A reset costs many steps in some environments, and out of step with each other a few of the episodes end at every
    step. So each environment keeps a spare opening. When one needs a spare that it has used, all used spares are made
    afresh in one batched reset: spare `b` made in `step(key, ...)` is `env.reset(reset_key(key, b), params)`. Where
    episodes have one length, no reset is ever wasted. Where `params` change from step to step, a spare may be from
    earlier ones. With `env.cheap_reset` on an accelerator, which would wait for the condition of a loop, every step
    makes resets with those same keys, uses them at once, and keeps none.
    """

    env: Environment
    num_envs: int

    @property
    def name(self) -> str:
        return self.env.name

    @property
    def default_params(self) -> Any:
        return self.env.default_params

    def observation_space(self, params: Any) -> Space:
        return self.env.observation_space(params)

    def action_space(self, params: Any) -> Space:
        return self.env.action_space(params)

    def max_steps(self, params: Any) -> int | None:
        return self.env.max_steps(params)

    @property
    def keeps_spares(self) -> bool:
        return not self.env.cheap_reset or jax.default_backend() == "cpu"

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, VectorisedState]:
        obs, state = jax.vmap(self.env.reset, (0, None))(jax.random.split(key, self.num_envs), params)
        if not self.keeps_spares:
            return obs, VectorisedState(state, None, None)
        # Copies: outside jit one array in two places could not be donated.
        return obs, VectorisedState(state, jax.tree.map(jnp.copy, (obs, state)), jnp.ones(self.num_envs, bool))

    def step(self, key: jax.Array, state: VectorisedState, action: Any, params: Any):
        # Keys are derived where they are used: XLA drops the hashing of those that an environment ignores.
        return self.step_rows(key, self.step_keys(key), state, action, params)

    def step_keys(self, key: jax.Array) -> jax.Array:
        """The key of each environment's own step in `step(key, ...)`, `[num_envs]`."""
        return jax.random.split(jax.random.fold_in(key, 0), self.num_envs)

    def step_rows(
        self, key: jax.Array, keys: jax.Array, state: VectorisedState, action: Any, params: Any, first: int = 0
    ):
        """`step(key, ...)` from `keys [num_envs]`, as rows `first, first + 1, ...` of a larger batch take it."""
        action = clip_action(self.action_space(params), action)
        step = jax.vmap(self.env.step, (0, 0, 0, None))
        last_obs, last_state, reward, terminated, truncated, info = step(keys, state.env_state, action, params)
        done = terminated | truncated
        if self.keeps_spares:
            obs, state = self._restart_from_spares(key, first, done, last_obs, last_state, state, params)
        else:
            fresh = self._resets(key, first + jnp.arange(self.num_envs), params)
            obs, env_state = select_rows(done, fresh, (last_obs, last_state))
            state = VectorisedState(env_state, None, None)
        info = {**info, "reset": done, "valid": jnp.ones_like(done), "final_observation": last_obs}
        return obs, state, reward, terminated, truncated, info

    def reset_key(self, key: jax.Array, index: int | jax.Array) -> jax.Array:
        """The key of a reset of environment `index` in `step(key, ...)`."""
        return jax.random.fold_in(jax.random.fold_in(key, 1), index)

    def _resets(self, key: jax.Array, indices: jax.Array, params: Any) -> tuple[Any, Any]:
        keys = jax.vmap(self.reset_key, (None, 0))(key, indices)
        return jax.vmap(self.env.reset, (0, None))(keys, params)

    def _restart_from_spares(
        self,
        key: jax.Array,
        first: int,
        done: jax.Array,
        obs: Any,
        env_state: Any,
        before: VectorisedState,
        params: Any,
    ) -> tuple[Any, VectorisedState]:
        # Loops of one round or none, and not branches: under an outer vmap a branch turns into a select, which pays for
        # a reset at every step, whereas a loop still runs zero rounds when no environment of the whole batch needs one.

        def refill(carry):
            used, spare = carry
            # Indices that depend on the carry: XLA would move the resets out of the loop, into every step, otherwise.
            fresh = self._resets(key, jnp.where(used, first + jnp.arange(self.num_envs), 0), params)
            return jnp.zeros_like(used), select_rows(used, fresh, spare)

        def restart(carry):
            pending, current = carry
            return jnp.zeros_like(pending), select_rows(pending, spare, current)

        used, spare = jax.lax.while_loop(lambda carry: (carry[0] & done).any(), refill, (before.used, before.spare))
        _, (obs, env_state) = jax.lax.while_loop(lambda carry: carry[0].any(), restart, (done, (obs, env_state)))
        return obs, VectorisedState(env_state, spare, used | done)

    def render(self, state: VectorisedState, params: Any, index: int = 0) -> np.ndarray:
        return self.env.render(jax.tree.map(lambda x: x[index], state.env_state), params)
