"""D4RL's HDF5 layout (Fu et al. 2020): flat rows of all steps.

`observations`, `actions`, `rewards` and `terminals` are there always, `timeouts` and `next_observations` in some files;
rewards and ends may be `[N]` or `[N, 1]`.

An episode ends at `terminals | timeouts`. Only `terminals` stop bootstrapping. Where a file has no `next_observations`,
what followed the last row of an episode is unknown: the row after it belongs to another episode. Such a step is dropped
unless it was terminal; then nothing of what follows is ever used, and its own observation stands for it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram.atomic_files import replacing
from engram.envs.datasets.episodes import About, Episodes, Origin, moments, spans
from engram.envs.datasets.files import HDF5, Column, actions, dump_origin, h5py_for, load_origin, numbers, reading
from engram.errors import BadRequest

REQUIRED = ("observations", "actions", "rewards", "terminals")
OBSERVATIONS = ("observations", "next_observations")
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
    with reading(path), opened_columns(path) as (columns, origin, described):
        held = {name: column.all() for name, column in columns.items()}
        return episodes_of(held, max_episode_steps, origin, **described)


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
    held = {name: Column.of(np.atleast_1d(columns[name])) for name in COLUMNS if columns.get(name) is not None}
    found = layout(held, max_episode_steps)
    obs = _table("observations", held["observations"].all())[found.rows]
    if "next_observations" in held:
        successor = _table("next_observations", held["next_observations"].all())
        obs[found.added] = successor[found.rows[found.added]]
    return Episodes(
        obs=obs,
        reward=found.reward[found.steps],
        terminated=found.terminated,
        lengths=found.lengths,
        origin=origin,
        **actions(held["actions"].all()[found.steps], _count(num_actions), action_low, action_high),
    )


def parts_of(
    columns: Mapping[str, Column], max_episode_steps: int | None, origin: Origin, described: Mapping[str, Any]
) -> tuple[Iterator[dict[str, np.ndarray]], About]:
    """The same episodes in blocks, and what is known of them.

    Args:
        columns, max_episode_steps, origin: as for `episodes_of`.
        described: its arguments of actions, as far as they are known.
    """
    found = layout(columns, max_episode_steps)
    count = _count(described.get("num_actions"))
    bounds = described.get("action_low"), described.get("action_high")
    small = all(columns[name].dtype == np.uint8 for name in OBSERVATIONS if name in columns)

    def table(name: str, span: slice) -> np.ndarray:
        block = columns[name].rows(span)
        return block.reshape(len(block), math.prod(block.shape[1:])) if small else _table(name, block)

    def parts() -> Iterator[dict[str, np.ndarray]]:
        for part in spans(len(found.rows), 8 * math.prod(columns["observations"].shape[1:])):
            rows, added = found.rows[part], found.added[part]
            span = slice(int(rows[0]), int(rows[-1]) + 1)
            obs = table("observations", span)[rows - span.start]
            if added.any():
                obs[added] = table("next_observations", span)[rows[added] - span.start]
            yield {"obs": obs}
        for part in spans(len(found.steps), 8 * math.prod(columns["actions"].shape[1:])):
            steps = found.steps[part]
            span = slice(int(steps[0]), int(steps[-1]) + 1)
            block = columns["actions"].rows(span)[steps - span.start]
            yield {"action": actions(block, count, *bounds)["action"], "reward": found.reward[steps]}

    some = actions(columns["actions"].rows(slice(0, 1)), count, *bounds)
    about = About(origin, count, some.get("action_low"), some.get("action_high"), found.lengths, found.terminated)
    return parts(), about


def _count(num_actions: Any) -> int | None:
    if num_actions is None:
        return None
    count = numbers("num_actions", num_actions, np.int64)
    if count.size != 1:
        raise BadRequest(f"num_actions of shape {count.shape} is not one number")
    return int(count.item())


@dataclass(frozen=True)
class Layout:
    """Which rows of the columns make which episodes."""

    rows: np.ndarray
    """`[N + E]`: the row of `observations` that is each observation of the episodes, or where `added` is True of
    `next_observations`."""
    added: np.ndarray
    steps: np.ndarray
    """`[N]`: the row of each step."""
    reward: np.ndarray
    """Of all rows."""
    terminated: np.ndarray
    lengths: np.ndarray


def layout(columns: Mapping[str, Column], max_episode_steps: int | None) -> Layout:
    """Where episodes begin and end in rows of all steps. Raises BadRequest as `episodes_of`."""
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise BadRequest(f"lacks {', '.join(missing)}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise BadRequest(f"max_episode_steps must be at least 1, got {max_episode_steps}")
    sizes = {name: columns[name].shape[0] for name in COLUMNS if name in columns}
    if len(set(sizes.values())) > 1:
        raise BadRequest(f"columns differ in length: {', '.join(f'{n} {size}' for n, size in sizes.items())}")
    if not sizes["rewards"]:
        raise BadRequest("the dataset is empty")

    reward = _flat("rewards", columns["rewards"], np.float32)
    terminal = _flat("terminals", columns["terminals"], bool)
    end = terminal | _flat("timeouts", columns["timeouts"], bool) if "timeouts" in columns else terminal.copy()
    end[-1] = True  # the recording ends with the last row
    rows = np.arange(len(end))
    if "next_observations" in columns:
        shapes = [columns[name].shape for name in OBSERVATIONS]
        if shapes[0] != shapes[1]:
            raise BadRequest(f"next_observations {shapes[1]} do not fit observations {shapes[0]}")
        # Also where the next row is not what followed: a limit that was not marked, or rows that were shuffled.
        end[:-1] |= ~_follows(columns, end[:-1])
    elif "timeouts" not in columns and max_episode_steps is None:
        raise BadRequest("has no timeouts: say max_episode_steps, where its environment cut episodes")
    if max_episode_steps is not None:
        start = np.maximum.accumulate(np.where(np.append(True, end[:-1]), rows, 0))
        end |= (rows - start) % max_episode_steps == max_episode_steps - 1

    kept, followed = np.ones(len(reward), bool), "next_observations" in columns
    if not followed:
        kept = ~end | terminal
        # An episode of one step that is dropped leaves nothing: its row is not even the end of another.
        alone = ~kept & np.append(True, end[:-1])
        rows, end, terminal, kept = rows[~alone], end[~alone], terminal[~alone], kept[~alone]
        if not kept.any():
            raise BadRequest("no step has a known successor")
    more = np.flatnonzero(end if followed else end & terminal)
    return Layout(
        rows=np.insert(rows, more + 1, rows[more]),
        added=np.insert(np.zeros(len(rows), bool), more + 1, followed),
        steps=rows[kept],
        reward=reward,
        terminated=terminal[end],
        # Steps before each end, dropped ones left out.
        lengths=np.diff(np.cumsum(kept)[end], prepend=0).astype(np.int64),
    )


def _follows(columns: Mapping[str, Column], marked: np.ndarray) -> np.ndarray:
    """Which rows but the first are what `next_observations` says that followed the row before, bool `[N - 1]`.

    Either may have been stored with fewer digits than the other; where they nearly never agree, rows that differ by
    less than a thousandth of how much an entry varies are the same.

    Args:
        marked: rows that are known to end an episode.
    """
    obs, successor = (columns[name] for name in OBSERVATIONS)

    def rows(span: slice) -> np.ndarray:
        return _table("observations", obs.rows(slice(span.start + 1, span.stop + 1)))

    def pairs() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for span in spans(len(marked), 8 * math.prod(obs.shape[1:])):
            yield span, _table("next_observations", successor.rows(span)), rows(span)

    exact, rounded = np.zeros((2, len(marked)), bool)
    few_digits = np.array([True, True])  # of all successors, of all observations
    with np.errstate(all="ignore"):  # numbers that are not finite are refused later
        for span, after, now in pairs():
            half_after, half_now = after.astype(np.float16), now.astype(np.float16)
            few_digits &= np.array_equal(after, half_after), np.array_equal(now, half_now)
            exact[span], rounded[span] = np.all(after == now, axis=1), np.all(half_after == half_now, axis=1)
        same = rounded if few_digits.any() else exact
        if 2 * np.count_nonzero(same[~marked]) < np.count_nonzero(~marked):
            _, deviation = moments(lambda: (now for _, _, now in pairs()))
            for span, after, now in pairs():
                same[span] = np.all(np.abs(after - now) <= 1e-3 * deviation, axis=1)
    return same


def _table(name: str, column: np.ndarray) -> np.ndarray:
    table = numbers(name, column, np.float32)
    return table.reshape(len(table), math.prod(table.shape[1:]))


def _flat(name: str, column: Column, dtype: type) -> np.ndarray:
    if len(column.shape) != 1 and column.shape != (column.shape[0], 1):
        numbers(name, column.rows(slice(0, 1)), dtype, rounded=True)
        raise BadRequest(f"{name} of shape {column.shape} is not one number for each step")
    return np.concatenate([numbers(name, block, dtype, rounded=True) for block in column.blocks()]).reshape(-1)


@contextmanager
def opened_columns(path: Path) -> Iterator[tuple[dict[str, Column], Origin, dict[str, Any]]]:
    """The columns of a file of D4RL or of `write`, where it is from, and what it says of actions.

    Raises:
        BadRequest: whatever is wrong with the file.
    """
    with HDF5.opened(path) as file:
        if file.has("episode_0"):
            raise BadRequest("is Minari's: load its dataset folder instead")
        missing = [name for name in REQUIRED if not file.is_array(name)]
        if missing:
            raise BadRequest(f"lacks {', '.join(missing)}")
        columns = {name: file.column(name) for name in COLUMNS if file.has(name)}
        described = {name: file.array(f"metadata/{name}") for name in DESCRIBED if file.has(f"metadata/{name}")}
        origin = load_origin(file.text("metadata/origin")) if file.has("metadata/origin") else UNKNOWN
        yield columns, origin, described


@contextmanager
def opened_parts(path: Path, max_episode_steps: int | None) -> Iterator[tuple[Iterator[dict[str, np.ndarray]], About]]:
    """The episodes in blocks, and what is known of them. Raises BadRequest as `read`."""
    with opened_columns(path) as (columns, origin, described):
        yield parts_of(columns, max_episode_steps, origin, described)
