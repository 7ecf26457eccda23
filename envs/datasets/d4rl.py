"""D4RL's HDF5 layout (Fu et al. 2020): flat rows of all steps.

`observations`, `actions`, `rewards` and `terminals` are there always, `timeouts` and `next_observations` in some files;
rewards and ends may be `[N]` or `[N, 1]`.

An episode ends at `terminals | timeouts`. Only `terminals` stop bootstrapping. Where a file has no `next_observations`,
what followed the last row of an episode is unknown: the row after it belongs to another episode. Such a step is dropped
unless it was terminal; then nothing of what follows is ever used, and its own observation stands for it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engram.atomic_files import replacing
from engram.envs.datasets.episodes import Episodes, Origin
from engram.envs.datasets.files import HDF5, actions, dump_origin, h5py_for, load_origin, numbers, reading
from engram.errors import BadRequest

REQUIRED = ("observations", "actions", "rewards", "terminals")
COLUMNS = (*REQUIRED, "timeouts", "next_observations")
DESCRIBED = ("num_actions", "action_low", "action_high")
"""Names in the group `metadata` of files of `write`."""


UNKNOWN = Origin(env="")


def write(episodes: Episodes, path: Path) -> None:
    """With `timeouts`, `next_observations` and `metadata/...`, so that nothing is lost.

    `metadata/origin` is JSON; reference returns are also attributes of the file, named as Minari names them.
    """
    last = episodes.starts + episodes.lengths - 1
    terminals, timeouts = np.zeros((2, len(episodes.reward)), bool)
    terminals[last], timeouts[last] = episodes.terminated, ~episodes.terminated
    arrays = {
        "observations": episodes.obs[episodes.rows],
        "actions": episodes.action,
        "rewards": episodes.reward,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": episodes.obs[episodes.rows + 1],
    }
    h5py = h5py_for(path)
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1, shuffle=True)
        file["metadata/origin"] = dump_origin(episodes.origin)
        for name in DESCRIBED:
            if getattr(episodes, name) is not None:
                file[f"metadata/{name}"] = getattr(episodes, name)
        for name, value in (("ref_min_score", episodes.origin.ref_min), ("ref_max_score", episodes.origin.ref_max)):
            if value is not None:
                file.attrs[name] = value


def read(path: Path, max_episode_steps: int | None = None) -> Episodes:
    """Reads a file of D4RL or of `write`.

    Args:
        max_episode_steps: see `episodes_of`.

    Raises:
        BadRequest: whatever is wrong with the file, in one line that names it.
    """
    with reading(path), HDF5.opened(path) as file:
        if file.has("episode_0"):
            raise BadRequest("is Minari's: load its dataset folder instead")
        missing = [name for name in REQUIRED if not file.is_array(name)]
        if missing:
            raise BadRequest(f"lacks {', '.join(missing)}")
        columns = {name: file.array(name) for name in COLUMNS if file.has(name)}
        described = {name: file.array(f"metadata/{name}") for name in DESCRIBED if file.has(f"metadata/{name}")}
        origin = load_origin(file.text("metadata/origin")) if file.has("metadata/origin") else UNKNOWN
        return episodes_of(columns, max_episode_steps, origin, **described)


def episodes_of(
    columns: Mapping[str, Any],
    max_episode_steps: int | None = None,
    origin: Origin = UNKNOWN,
    *,
    num_actions: Any = None,
    action_low: Any = None,
    action_high: Any = None,
) -> Episodes:
    """The episodes in rows of all steps, named as D4RL's columns.

    Args:
        columns: `observations` `[N, ...]`, `actions` `[N]` or `[N, A]` (integers and booleans are discrete), `rewards`
            and `terminals` `[N]`, and where there are any `timeouts` `[N]` and `next_observations` as `observations`.
        max_episode_steps: steps after which the environment cut episodes. Needed where there are neither `timeouts` nor
            `next_observations`; elsewhere it cuts as well.
        origin: where they come from.
        num_actions: number of discrete actions (None: not known).
        action_low, action_high: bounds of continuous actions, numbers or `[A]` (None: not known).

    Raises:
        BadRequest: columns that are missing, do not fit together or hold anything but numbers.
    """
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise BadRequest(f"lacks {', '.join(missing)}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise BadRequest(f"max_episode_steps must be at least 1, got {max_episode_steps}")
    columns = {name: np.atleast_1d(columns[name]) for name in COLUMNS if columns.get(name) is not None}
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise BadRequest(f"columns differ in length: {', '.join(f'{n} {size}' for n, size in sizes.items())}")
    if not sizes["rewards"]:
        raise BadRequest("the dataset is empty")

    obs = _table("observations", columns["observations"])
    reward = _flat("rewards", columns["rewards"], np.float32)
    terminal = _flat("terminals", columns["terminals"], bool)
    end = terminal | _flat("timeouts", columns["timeouts"], bool) if "timeouts" in columns else terminal.copy()
    end[-1] = True  # the recording ends with the last row
    action, successor = columns["actions"], None
    if "next_observations" in columns:
        successor = _table("next_observations", columns["next_observations"])
        if successor.shape != obs.shape:
            raise BadRequest(f"next_observations {successor.shape} do not fit observations {obs.shape}")
        # Also where the next row is not what followed: a limit that was not marked, or rows that were shuffled.
        end[:-1] |= ~_follows(successor[:-1], obs[1:], end[:-1])
    elif "timeouts" not in columns and max_episode_steps is None:
        raise BadRequest("has no timeouts: say max_episode_steps, where its environment cut episodes")
    if max_episode_steps is not None:
        rows = np.arange(len(end))
        start = np.maximum.accumulate(np.where(np.append(True, end[:-1]), rows, 0))
        end |= (rows - start) % max_episode_steps == max_episode_steps - 1

    kept = np.ones(len(reward), bool)
    if successor is None:
        kept = ~end | terminal
        # An episode of one step that is dropped leaves nothing: its row is not even the end of another.
        alone = ~kept & np.append(True, end[:-1])
        obs, end, terminal, kept = obs[~alone], end[~alone], terminal[~alone], kept[~alone]
        reward, action = reward[~alone], action[~alone]
        if not kept.any():
            raise BadRequest("no step has a known successor")
        added = np.flatnonzero(end & terminal)
        obs = np.insert(obs, added + 1, obs[added], axis=0)
    else:
        obs = np.insert(obs, np.flatnonzero(end) + 1, successor[end], axis=0)
    # Steps before each end, dropped ones left out.
    lengths = np.diff(np.cumsum(kept)[end], prepend=0)
    count = None if num_actions is None else numbers("num_actions", num_actions, np.int64)
    if count is not None and count.size != 1:
        raise BadRequest(f"num_actions of shape {count.shape} is not one number")
    return Episodes(
        obs=obs,
        reward=reward[kept],
        terminated=terminal[end],
        lengths=lengths.astype(np.int64),
        origin=origin,
        **actions(action[kept], None if count is None else int(count.item()), action_low, action_high),
    )


def _follows(successor: np.ndarray, obs: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Which rows of `obs` are what `successor` says that followed, bool `[N]`.

    Either may have been stored with fewer digits than the other; where they nearly never agree, rows that differ by
    less than a thousandth of how much an entry varies are the same.

    Args:
        marked: rows that are known to end an episode.
    """
    with np.errstate(all="ignore"):  # numbers that are not finite are refused later
        half_successor, half_obs = successor.astype(np.float16), obs.astype(np.float16)
        if np.array_equal(successor, half_successor) or np.array_equal(obs, half_obs):
            same = np.all(half_successor == half_obs, axis=1)
        else:
            same = np.all(successor == obs, axis=1)
        if 2 * np.count_nonzero(same[~marked]) < np.count_nonzero(~marked):
            same = np.all(np.abs(successor - obs) <= 1e-3 * np.std(obs, axis=0, dtype=np.float64), axis=1)
    return same


def _table(name: str, column: np.ndarray) -> np.ndarray:
    table = numbers(name, column, np.float32)
    return table.reshape(len(table), math.prod(table.shape[1:]))


def _flat(name: str, column: np.ndarray, dtype: type) -> np.ndarray:
    column = numbers(name, column, dtype, rounded=True)
    if column.ndim != 1 and column.shape != (len(column), 1):
        raise BadRequest(f"{name} of shape {column.shape} is not one number for each step")
    return column.reshape(-1)
