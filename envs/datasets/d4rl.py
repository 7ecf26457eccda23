"""D4RL's HDF5 layout (Fu et al. 2020): flat rows of all steps.

`observations`, `actions`, `rewards` and `terminals` are there always, `timeouts` and `next_observations` in some files;
rewards and ends may be `[N]` or `[N, 1]`.

An episode ends at `terminals | timeouts`. Only `terminals` stop bootstrapping. Where a file has no `next_observations`,
what followed the last row of an episode is unknown: the row after it belongs to another episode. Such a step is dropped
unless it was terminal; then nothing of what follows is ever used, and its own observation stands for it.
"""

from pathlib import Path

import numpy as np

from engram.envs.atomic_files import replacing
from engram.envs.datasets.episodes import Episodes, Origin
from engram.envs.datasets.files import actions, dump_origin, hdf5, load_origin, numbers, reading, stored
from engram.errors import BadRequest

REQUIRED = ("observations", "actions", "rewards", "terminals")


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
    h5py = hdf5(path)
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1, shuffle=True)
        file["metadata/origin"] = dump_origin(episodes.origin)
        if episodes.discrete:
            file["metadata/num_actions"] = episodes.num_actions
        else:
            file["metadata/action_low"], file["metadata/action_high"] = episodes.action_low, episodes.action_high
        for name, value in (("ref_min_score", episodes.origin.ref_min), ("ref_max_score", episodes.origin.ref_max)):
            if value is not None:
                file.attrs[name] = value


def read(path: Path, max_episode_steps: int | None = None) -> Episodes:
    """Reads a file of D4RL or of `write`.

    Args:
        max_episode_steps: of its environment, for files that have neither `timeouts` nor `next_observations`.

    Raises:
        BadRequest: whatever is wrong with the file, in one line that names it.
    """
    h5py = hdf5(path)
    with reading(path), h5py.File(path, "r") as file:
        if "episode_0" in file:
            raise BadRequest("is Minari's: load its dataset folder instead")
        missing = [name for name in REQUIRED if not isinstance(file.get(name), h5py.Dataset)]
        if missing:
            raise BadRequest(f"lacks {', '.join(missing)}")
        columns = {
            name: np.atleast_1d(stored(file, name))
            for name in (*REQUIRED, "timeouts", "next_observations")
            if name in file
        }
        metadata = {name: stored(file, f"metadata/{name}") for name in _METADATA if f"metadata/{name}" in file}
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise BadRequest(f"columns differ in length: {', '.join(f'{n} {size}' for n, size in sizes.items())}")
        if not sizes["rewards"]:
            raise BadRequest("the dataset is empty")

        obs, successor = (
            None if name not in columns else _table(name, columns[name])
            for name in ("observations", "next_observations")
        )
        assert obs is not None
        if successor is not None and successor.shape != obs.shape:
            raise BadRequest(f"next_observations {successor.shape} do not fit observations {obs.shape}")
        reward = _flat("rewards", columns["rewards"], np.float32)
        terminal = _flat("terminals", columns["terminals"], bool)
        timeout = _flat("timeouts", columns["timeouts"], bool) if "timeouts" in columns else None
        end = _ends(terminal, timeout, obs, successor, max_episode_steps)

        kept = np.ones(len(reward), bool)
        if successor is None:
            kept = ~end | terminal
            # An episode of one step that is dropped leaves nothing: its row is not even the end of another.
            alone = ~kept & np.append(True, end[:-1])
            obs, end, terminal, kept = obs[~alone], end[~alone], terminal[~alone], kept[~alone]
            reward, columns["actions"] = reward[~alone], columns["actions"][~alone]
            if not kept.any():
                raise BadRequest("no step has a known successor")
            added = np.flatnonzero(end & terminal)
            obs = np.insert(obs, added + 1, obs[added], axis=0)
        else:
            obs = np.insert(obs, np.flatnonzero(end) + 1, successor[end], axis=0)
        # Steps before each end, dropped ones left out.
        lengths = np.diff(np.cumsum(kept)[end], prepend=0)
        return Episodes(
            obs=obs,
            reward=reward[kept],
            terminated=terminal[end],
            lengths=lengths.astype(np.int64),
            origin=load_origin(metadata["origin"]) if "origin" in metadata else Origin(env=""),
            **actions(columns["actions"][kept], *(metadata.get(name) for name in _METADATA[1:])),
        )


_METADATA = ("origin", "num_actions", "action_low", "action_high")


def _table(name: str, column: np.ndarray) -> np.ndarray:
    table = numbers(name, column, np.float32)
    return table.reshape(len(table), -1)


def _flat(name: str, column: np.ndarray, dtype: type) -> np.ndarray:
    column = numbers(name, column, dtype)
    if column.ndim != 1 and column.shape != (len(column), 1):
        raise BadRequest(f"{name} of shape {column.shape} is not one number for each step")
    return column.reshape(-1)


def _ends(
    terminal: np.ndarray, timeout: np.ndarray | None, obs: np.ndarray, successor: np.ndarray | None, limit: int | None
) -> np.ndarray:
    """Which rows are the last of an episode, bool `[N]`; the recording ends with the last of all."""
    end = terminal.copy() if timeout is None else terminal | timeout
    end[-1] = True
    if successor is not None:
        # Also where the next row is not what followed: a limit that was not marked, or rows that were shuffled.
        end[:-1] |= np.any(successor[:-1] != obs[1:], axis=1)
    elif timeout is None:
        if limit is None:
            raise BadRequest("has no timeouts: say max_episode_steps, where its environment cut episodes")
        if limit < 1:
            raise BadRequest(f"max_episode_steps must be at least 1, got {limit}")
        rows = np.arange(len(end))
        start = np.maximum.accumulate(np.where(np.append(True, end[:-1]), rows, 0))
        end |= (rows - start) % limit == limit - 1
    return end
