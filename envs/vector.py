"""From one environment to a batch that restarts itself."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Environment, VectorEnvironment
from envs.spaces import Box, Space


def reset_round(num_envs: int) -> int:
    """Environments restarted per round of the auto-reset loop: about as many as end an episode at once when episodes
    of some tens of steps are out of step with each other."""
    return min(num_envs, max(4, num_envs // 16))


def clip_action(space: Space, action: Any) -> Any:
    """`action` clipped to the bounds of a `Box`; actions of other spaces are returned as they are."""
    if not isinstance(space, Box):
        return action
    return jnp.clip(action, jnp.asarray(space.low, space.dtype), jnp.asarray(space.high, space.dtype))


def select_rows(mask: jax.Array, new: Any, old: Any) -> Any:
    """Leaf by leaf, row `b` of `new` where `mask[b]`, else row `b` of `old`; leaves are `(B, ...)`."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(mask.shape + (1,) * (y.ndim - 1)), x, y), new, old)


@dataclass(frozen=True)
class Vectorised(VectorEnvironment):
    """`num_envs` independent copies of `env` under `vmap`, each restarted in the step that ends its episode.

    Box actions are clipped to the action space before they reach the environment. The episode of environment `b`
    that opens in `step(key, ...)` starts from `env.reset(reset_key(key, b), params)`.
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

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        return jax.vmap(self.env.reset, (0, None))(jax.random.split(key, self.num_envs), params)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        # Keys are derived where they are used: XLA drops the hashing of those that an environment ignores.
        keys = jax.random.split(jax.random.fold_in(key, 0), self.num_envs)
        action = clip_action(self.action_space(params), action)
        step = jax.vmap(self.env.step, (0, 0, 0, None))
        last_obs, last_state, reward, terminated, truncated, info = step(keys, state, action, params)
        done = terminated | truncated
        # On a CPU a loop of zero rounds costs nothing and beats even a cheap reset; an accelerator has to wait for it.
        select = self.env.cheap_reset and jax.default_backend() != "cpu"
        restart = self._select_restarts if select else self._loop_restarts
        obs, state = restart(key, done, last_obs, last_state, params)
        info = {**info, "reset": done, "valid": jnp.ones_like(done), "final_observation": last_obs}
        return obs, state, reward, terminated, truncated, info

    def reset_key(self, key: jax.Array, index: int | jax.Array) -> jax.Array:
        """The key that restarts environment `index` in `step(key, ...)`."""
        return jax.random.fold_in(jax.random.fold_in(key, 1), index)

    def _select_restarts(self, key: jax.Array, done: jax.Array, obs: Any, state: Any, params: Any) -> tuple[Any, Any]:
        keys = jax.vmap(self.reset_key, (None, 0))(key, jnp.arange(self.num_envs))
        return select_rows(done, jax.vmap(self.env.reset, (0, None))(keys, params), (obs, state))

    def _loop_restarts(self, key: jax.Array, done: jax.Array, obs: Any, state: Any, params: Any) -> tuple[Any, Any]:
        # A loop and not a branch: under an outer vmap a branch turns into a select, which pays for a reset at every
        # step, whereas a loop still runs zero rounds when no environment of the whole batch is done. In a step in which
        # many end at once, as all do where episodes have one length, one round restarts all of them. The outer loop
        # runs once or not at all, so that most steps evaluate one condition and not two.
        size = reset_round(self.num_envs)

        def restart_all(carry):
            pending, current = carry
            # Indices that depend on the carry: XLA would move the resets out of the loop, into every step, otherwise.
            keys = jax.vmap(self.reset_key, (None, 0))(key, jnp.where(pending, jnp.arange(self.num_envs), 0))
            fresh = jax.vmap(self.env.reset, (0, None))(keys, params)
            return jnp.zeros_like(pending), select_rows(pending, fresh, current)

        def restart_some(carry):
            pending, current = carry
            count = jnp.cumsum(pending)
            index = jnp.sum(count[None, :] <= jnp.arange(size)[:, None], axis=1)
            keys = jax.vmap(self.reset_key, (None, 0))(key, index)
            fresh = jax.vmap(self.env.reset, (0, None))(keys, params)
            chosen = pending & (count <= size)
            slot = jnp.clip(count - 1, 0, size - 1)
            current = select_rows(chosen, jax.tree.map(lambda x: x[slot], fresh), current)
            return pending & ~chosen, current

        def restart(carry):
            carry = jax.lax.while_loop(lambda carry: carry[0].sum() > self.num_envs // 4, restart_all, carry)
            return jax.lax.while_loop(lambda carry: carry[0].any(), restart_some, carry)

        return jax.lax.while_loop(lambda carry: carry[0].any(), restart, (done, (obs, state)))[1]

    def render(self, state: Any, params: Any, index: int = 0) -> np.ndarray:
        return self.env.render(jax.tree.map(lambda x: x[index], state), params)
