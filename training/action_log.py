"""Resuming agents whose environment is an emulator on the host: its state cannot be saved, but it can be repeated.

A pool is deterministic, so every action is logged, and a resumed run makes the pool again from its seed and steps it
through the log (about as long as the emulation itself took). Beyond `EXACT_STEPS` that costs more than it gives:
the run then continues with new episodes from another seed, and says so.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engram.envs.wrappers import EpisodeStatistics, Wrapper
from engram.errors import BadRequest
from engram.training.folder import notify

EXACT_STEPS = 1_000_000
"""Emulator steps, over all lanes, that a resumed run repeats at most."""
ACTIONS = "actions.bin"


class ActionLog:
    """The actions of a run, `[updates, seeds, T, B, ...]` of every chunk, raw, in the smallest type that holds them."""

    def __init__(self, path: Path, bytes_before: int):
        """Opens `path` for appending after its first `bytes_before` bytes; what follows is of a killed run."""
        self._file = path.open("ab")
        self._file.truncate(bytes_before)

    def write(self, actions: np.ndarray) -> None:
        self._file.write(compact(actions).tobytes())
        self._file.flush()

    @property
    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def compact(actions: np.ndarray) -> np.ndarray:
    """Integers as int8 (no emulator has more than 127 actions per component), reals as they are."""
    if not np.issubdtype(actions.dtype, np.integer):
        return actions
    if actions.max(initial=0) > np.iinfo(np.int8).max:
        raise ValueError("an action above 127 cannot be logged")
    return actions.astype(np.int8)


def episode_state(env: Wrapper, state: Any) -> Any:
    """The part of a wrapped state that repeats exactly: running episodes' returns and lengths, and the pool's own."""
    while not isinstance(env, EpisodeStatistics):
        if not isinstance(env.env, Wrapper):
            raise TypeError("the environment must be wrapped in EpisodeStatistics")
        state, env = env.env_state(state), env.env
    return state


def repeat(env: Wrapper, keys: jax.Array, path: Path, size: int, action: jax.ShapeDtypeStruct, state: Any) -> None:
    """Steps a fresh pool through the first `size` bytes of the log at `path`.

    Args:
        env: made again from the run's seed, never stepped.
        keys: one per seed.
        action: shape `[seeds, T, B, ...]` and dtype of one update's actions.
        state: the checkpoint's environment state, which the repetition must reach.

    Raises:
        BadRequest: the log is cut short, or the emulator did something else this time.
    """
    stored = np.dtype(np.int8) if np.issubdtype(action.dtype, np.integer) else np.dtype(action.dtype)
    data = path.read_bytes()[:size]
    if len(data) < size:
        raise BadRequest(f"{path} is cut short: the emulator cannot be brought back to where the run was")
    actions = np.frombuffer(data, stored).reshape(-1, *action.shape).astype(action.dtype)
    # [updates, seeds, T, ...] -> [seeds, updates * T, ...]
    actions = np.moveaxis(actions, 0, 1).reshape(action.shape[0], -1, *action.shape[2:])
    notify(f"repeating {actions[0].shape[0]:,} steps of {env.name} x {action.shape[0] * action.shape[2]} ...")
    params = env.default_params

    def one_seed(key: jax.Array, actions: jax.Array) -> Any:
        _, env_state = env.reset(key, params)
        step = lambda env_state, a: (env.step(key, env_state, a, params)[1], None)  # noqa: E731
        return jax.lax.scan(step, env_state, actions)[0]

    reached = jax.jit(jax.vmap(one_seed))(keys, actions)
    same = jax.tree.map(np.array_equal, *jax.device_get((episode_state(env, reached), episode_state(env, state))))
    if not all(jax.tree.leaves(same)):
        raise BadRequest(f"{env.name} did not repeat the logged actions as before; start a new run")


def reopen(keys: jax.Array, init: Callable, states: Any) -> Any:
    """`states` continued in new episodes, which `init` opens in a fresh pool; running statistics are kept."""
    fresh = init(keys)

    def pick(path, new, old):
        return old if any(getattr(key, "name", None) == "statistics" for key in path) else new

    env = jax.tree_util.tree_map_with_path(pick, fresh.env, states.env)
    return states.replace(env=env, obs=fresh.obs, reset=fresh.reset)
