"""Resuming agents whose environment is an emulator on the host: its state cannot be saved, but it can be repeated.

A pool is deterministic, so every action is logged, and a resumed run makes the pool again from its seed and steps it
through the log, which takes about as long as the emulation itself took. Beyond `EXACT_STEPS` that costs more than it
gives: the run then continues with new episodes from another seed, and the user is told.
"""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.spaces import Discrete, MultiDiscrete, Space
from engram.envs.wrappers import EpisodeStatistics, Wrapper
from engram.errors import BadRequest
from engram.regular_files import opened
from engram.training.checkpoint import Progress
from engram.training.stderr import notify
from engram.training.types import Key, PyTree

EXACT_STEPS = 1_000_000
"""Most emulator steps, over all environments and seeds, that a resumed run repeats."""
LANES = 1
"""Number of the way in which the lanes of a pool get their seeds, `engram.envs.host.pool.lane_seeds`. A log is only
repeated in lanes that are seeded as they were."""
ACTIONS = "actions.bin"
"""Name of the log in the run folder."""


class ActionLog:
    """The actions of a run, `[updates, seeds, T, B, ...]` of every chunk, raw, in the smallest type that holds them."""

    def __init__(self, path: Path, progress: Progress, space: Space):
        """Opens `path` for appending actions of `space` after what `progress` counts. What follows is of a run that was
        killed."""
        self._file, self._space = path.open("ab"), space
        self._file.truncate(progress.action_bytes)
        self._size, crc32 = progress.action_bytes, progress.action_crc32
        self._actions = zlib.crc32(path.read_bytes()) if crc32 is None else crc32
        self._played = progress.played_crc32

    def write(self, actions: np.ndarray, played: np.ndarray) -> None:
        """Appends the actions of a chunk, and takes note of what they led to (see `played_of`)."""
        data = actions.astype(stored_as(self._space, actions.dtype)).tobytes()
        self._actions = zlib.crc32(data, self._actions)
        if self._played is not None:
            self._played = zlib.crc32(played.tobytes(), self._played)
        self._file.write(data)
        self._file.flush()
        self._size += len(data)

    @property
    def so_far(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log, as fields of `engram.training.checkpoint.Progress`."""
        return {"action_bytes": self._size, "action_crc32": self._actions, "played_crc32": self._played}

    def close(self) -> None:
        self._file.close()


def played_of(episode_return: jax.Array, episode_length: jax.Array) -> jax.Array:
    """What emulators did in some steps, `[...]` each -> `[..., 2]`, int32, bit by bit: an agent on a host pool hands
    out those of all its steps as the metric `replay/played`, `[T, B, 2]`."""
    return jnp.stack([jax.lax.bitcast_convert_type(episode_return, jnp.int32), episode_length], axis=-1)


def stored_as(space: Space, dtype: np.dtype) -> np.dtype:
    """The type in which actions of `space`, which programs hold as `dtype`, are logged: integers in the smallest that
    holds all of them, real numbers as they are."""
    if not isinstance(space, Discrete | MultiDiscrete):
        return np.dtype(dtype)
    greatest = (space.n if isinstance(space, Discrete) else max(space.nvec)) - 1
    return next(np.dtype(kind) for kind in (np.int8, np.int16, np.int32) if greatest <= np.iinfo(kind).max)


def episode_state(env: Wrapper, state: PyTree) -> PyTree:
    """The part of a wrapped state that repeats exactly: returns and lengths of the running episodes, and the state of
    the pool."""
    while not isinstance(env, EpisodeStatistics):
        if not isinstance(env.env, Wrapper):
            raise TypeError("the environment must be wrapped in EpisodeStatistics")
        state, env = env.env_state(state), env.env
    return state


def repeat(
    env: Wrapper, keys: Key, path: Path, progress: Progress, action: jax.ShapeDtypeStruct, updates: int, state: PyTree
) -> None:
    """Steps a fresh pool through the log at `path`, up to where a checkpoint was.

    Args:
        env: an environment that was made again from the run's seed and never stepped.
        keys: one random key per seed, `[seeds]`.
        progress: that of the checkpoint.
        action: shape `[seeds, T, B, ...]` and dtype of one update's actions.
        updates: how many there are up to the checkpoint.
        state: environment state of the checkpoint, which the repetition must reach.

    Raises:
        BadRequest: the log is damaged or cannot be read, or the emulator did something else this time.
    """
    params = env.default_params
    stored = stored_as(env.action_space(params), action.dtype)
    size = updates * math.prod(action.shape) * stored.itemsize
    lost = "the emulators cannot be brought back to where the run was"
    try:
        with opened(path) as file:
            data = file.read(size)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}; {lost}") from None
    if len(data) < size:
        raise BadRequest(f"{path} is cut short: {lost}")
    if size != progress.action_bytes or progress.action_crc32 not in (None, zlib.crc32(data)):
        raise BadRequest(f"{path} is damaged: {lost}")
    actions = np.frombuffer(data, stored).reshape(updates, *action.shape).astype(action.dtype)
    # [updates, seeds, T, ...] -> [seeds, updates * T, ...]
    actions = np.moveaxis(actions, 0, 1).reshape(action.shape[0], -1, *action.shape[2:])
    notify(f"repeating {actions[0].shape[0]:,} steps of {env.name} x {action.shape[0] * action.shape[2]} ...")

    def one_seed(key: Key, actions: jax.Array) -> PyTree:
        def step(env_state, action):
            _, env_state, _, _, _, info = env.step(key, env_state, action, params)
            return env_state, played_of(info["episode_return"], info["episode_length"])

        return jax.lax.scan(step, env.reset(key, params)[1], actions)

    reached, played = jax.jit(jax.vmap(one_seed))(keys, actions)
    # [seeds, updates * T, B, 2] -> [updates, seeds, T, B, 2]
    played = np.moveaxis(np.asarray(played).reshape(action.shape[0], updates, *action.shape[1:3], 2), 1, 0)
    same = jax.tree.map(np.array_equal, *jax.device_get((episode_state(env, reached), episode_state(env, state))))
    if progress.played_crc32 not in (None, zlib.crc32(played.tobytes())) or not all(jax.tree.leaves(same)):
        raise BadRequest(f"{env.name} did not repeat the logged actions as before; start a new run")


def reopen(keys: Key, init: Callable[[Key], PyTree], states: PyTree) -> PyTree:
    """`states` continued in new episodes, which `init` opens in a fresh pool. Running statistics are kept."""
    fresh = init(keys)

    def pick(path, new, old):
        return old if any(getattr(key, "name", None) == "statistics" for key in path) else new

    env = jax.tree_util.tree_map_with_path(pick, fresh.env, states.env)
    return states.replace(env=env, obs=fresh.obs, reset=fresh.reset)
