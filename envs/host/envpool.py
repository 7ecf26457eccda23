"""envpool's emulators: through their XLA interface where the types allow, else called back from the program.

The interface needs no Python: a step of four CartPoles takes a tenth of the time, one of Pong about the same. Its
program holds addresses, so no other process can use it again.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import envpool
import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.host.gymnasium_spaces import action_to_gymnasium, convert, from_gymnasium, may_lose_digits
from engram.envs.host.pool import HostPool, Seed, Transition, check_limits, lane_seeds
from engram.envs.spaces import has_mask
from engram.envs.spec import UnknownEnvironment
from engram.errors import BadRequest, close_matches


def names(asked: str = "") -> list[str]:
    return envpool.list_all_envs()


class XlaPool(HostPool):
    """A pool stepped by a custom call in the compiled program. Stepping a stale state cannot be detected here: the
    pool then simply goes on from where it is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        handle, _, _, self._xla_step = self.pool.xla()
        self._handle = np.asarray(handle)
        self.first_token = np.zeros_like(self._handle)

    def step_lanes(self, token: jax.Array, action: Any) -> tuple[jax.Array, Transition]:
        # The handle is an address, so it may not get into a state that is saved and loaded by another process: states
        # carry its difference from the address of this very pool. That is zero, but the compiler cannot know, and so
        # the calls stay ordered.
        observation_space, action_space = self.pool_spaces
        given = action_to_gymnasium(action_space, action)
        handle, (obs, reward, terminated, truncated, _) = self._xla_step(token ^ self._handle, given)
        obs, reward = jax.tree.map(_finite, (from_gymnasium(observation_space, obs), reward.astype(jnp.float32)))
        return handle ^ self._handle, (obs, reward, terminated, truncated, {"executed": action})


def _finite(x: jax.Array) -> jax.Array:
    """Zeros where real numbers are not finite, of which nobody is told here: no Python runs."""
    return jnp.where(jnp.isfinite(x), x, 0.0) if jnp.issubdtype(x.dtype, jnp.floating) else x


def make(name: str, num_envs: int, *, copies: int = 1, seed: Seed = 0, **options: Any) -> HostPool:
    """The pool `name` of lanes with the seeds `lane_seeds(seed, num_envs, copies)`.

    Args:
        options: envpool's (`episodic_life`, `frame_skip`, ...).

    Raises:
        UnknownEnvironment: an option that the pool does not have.
        BadRequest: an option of another type; games of several players.
    """
    _check_options(f"envpool/{name}", options, envpool.make_spec(name).config._asdict())
    check_limits(f"envpool/{name}", options)
    seeds = lane_seeds(seed, num_envs, copies)
    with warnings.catch_warnings():
        # envpool gives the bounds of its float32 spaces as float64, and gymnasium warns of each of them.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        pool = envpool.make(name, env_type="gymnasium", num_envs=copies * num_envs, seed=seeds, **options)
    config = pool.spec.config._asdict()
    if config["max_num_players"] > 1:
        raise BadRequest(f"envpool/{name} is a game of several players")
    first_observation, first_info = pool.reset()
    arrays = [*pool.spec.state_array_spec.values(), *pool.spec.action_array_spec.values()]
    wide = any(np.dtype(array.dtype).itemsize > 4 for array in arrays)
    spaces = pool.observation_space, pool.action_space
    # Real numbers as actions are called back too: the interface does not say which it got, see `HostPool`.
    real = any(np.issubdtype(array.dtype, np.floating) for array in pool.spec.action_array_spec.values())
    # And what has to be looked at: masks of actions, and whole numbers that float32 may not hold.
    looked_at = has_mask(convert(spaces[0])) or may_lose_digits(spaces[0])
    kind, limit = HostPool if wide or real or looked_at else XlaPool, config.get("max_episode_steps")
    return kind(f"envpool/{name}", pool, first_observation, num_envs, copies, spaces, limit, first_info)


def _check_options(what: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if option not in defaults:
            raise UnknownEnvironment(f"{what} has no option {option!r}{close_matches(option, defaults)}")
        kind = type(defaults[option])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise BadRequest(f"{what}?{option} must be {kind.__name__}, got {value!r}")
