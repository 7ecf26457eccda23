"""Resuming agents whose environment is an emulator on the host: its state cannot be saved, but it can be repeated.

A pool is deterministic, so every action is logged, and a resumed run makes the pool again from its seed and steps it
through the log, which takes about as long as the emulation itself took. Beyond `EXACT_STEPS` that costs more than it
gives: the run then continues with new episodes from another seed, and the user is told.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from engram.envs.wrappers import EpisodeStatistics, Wrapper
from engram.errors import BadRequest
from engram.training.folder import notify
from engram.training.types import Key, PyTree

EXACT_STEPS = 1_000_000
"""Most emulator steps, over all environments and seeds, that a resumed run repeats."""
ACTIONS = "actions.bin"
"""Name of the log in the run folder."""


class ActionLog:
    """The actions of a run, `[updates, seeds, T, B, ...]` of every chunk, raw, in the smallest type that holds them."""

    def __init__(self, path: Path, bytes_before: int):
        """Opens `path` for appending after its first `bytes_before` bytes. What follows is of a run that was killed."""
        self._file = path.open("ab")
        self._file.truncate(bytes_before)

    def write(self, actions: np.ndarray) -> None:
        """Appends the actions of a chunk."""
        self._file.write(compact(actions).tobytes())
        self._file.flush()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def compact(actions: np.ndarray) -> np.ndarray:
    """Integers as int8 (no emulator has more than 127 actions per component), real numbers as they are."""
    if not np.issubdtype(actions.dtype, np.integer):
        return actions
    if actions.max(initial=0) > np.iinfo(np.int8).max:
        raise ValueError("an action above 127 cannot be logged")
    return actions.astype(np.int8)


def episode_state(env: Wrapper, state: PyTree) -> PyTree:
    """The part of a wrapped state that repeats exactly: returns and lengths of the running episodes, and the state of
    the pool."""
    while not isinstance(env, EpisodeStatistics):
        if not isinstance(env.env, Wrapper):
            raise TypeError("the environment must be wrapped in EpisodeStatistics")
        state, env = env.env_state(state), env.env
    return state


def repeat(env: Wrapper, keys: Key, path: Path, size: int, action: jax.ShapeDtypeStruct, state: PyTree) -> None:
    """Steps a fresh pool through the first `size` bytes of the log at `path`.

    Args:
        env: an environment that was made again from the run's seed and never stepped.
        keys: one random key per seed, `[seeds]`.
        action: shape `[seeds, T, B, ...]` and dtype of one update's actions.
        state: environment state of the checkpoint, which the repetition must reach.

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

    def one_seed(key: Key, actions: jax.Array) -> PyTree:
        _, env_state = env.reset(key, params)
        step = lambda env_state, a: (env.step(key, env_state, a, params)[1], None)  # noqa: E731
        return jax.lax.scan(step, env_state, actions)[0]

    reached = jax.jit(jax.vmap(one_seed))(keys, actions)
    same = jax.tree.map(np.array_equal, *jax.device_get((episode_state(env, reached), episode_state(env, state))))
    if not all(jax.tree.leaves(same)):
        raise BadRequest(f"{env.name} did not repeat the logged actions as before; start a new run")


def reopen(keys: Key, init: Callable[[Key], PyTree], states: PyTree) -> PyTree:
    """`states` continued in new episodes, which `init` opens in a fresh pool. Running statistics are kept."""
    fresh = init(keys)

    def pick(path, new, old):
        return old if any(getattr(key, "name", None) == "statistics" for key in path) else new

    env = jax.tree_util.tree_map_with_path(pick, fresh.env, states.env)
    return states.replace(env=env, obs=fresh.obs, reset=fresh.reset)
