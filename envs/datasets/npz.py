"""The suite's own format: the arrays of `Episodes` and one JSON text in an uncompressed `.npz`. The fastest to read."""

import json
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engram.atomic_files import replacing
from engram.envs.datasets import d4rl
from engram.envs.datasets.episodes import About, Episodes, Origin
from engram.envs.datasets.files import (
    actions,
    archived,
    archived_columns,
    dump_origin,
    load_origin,
    numbers,
    reading,
)
from engram.errors import BadRequest
from engram.regular_files import parse_json

ARRAYS = {"obs": np.float32, "reward": np.float32, "terminated": np.bool_, "lengths": np.int64}
"""Arrays of every file; besides these there are `action`, and its bounds where these are known."""
VERSION = 1


def write(episodes: Episodes, path: Path) -> None:
    header = {
        "version": VERSION,
        "num_actions": episodes.num_actions,
        "origin": json.loads(dump_origin(episodes.origin)),
    }
    arrays = {name: getattr(episodes, name) for name in (*ARRAYS, "action")}
    if episodes.action_low is not None:
        arrays |= {"action_low": episodes.action_low, "action_high": episodes.action_high}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def read(path: Path, max_episode_steps: int | None = None) -> Episodes:
    """Reads a file of `write`, or one whose arrays are named as D4RL's columns.

    Args:
        max_episode_steps: see `engram.envs.datasets.d4rl.episodes_of`.

    Raises:
        BadRequest: whatever is wrong with the file, in one line that names it.
    """
    with reading(path):
        arrays = archived(path)
        if "header" not in arrays and {*arrays} & {*d4rl.COLUMNS}:
            return d4rl.episodes_of(arrays, max_episode_steps)
        num_actions, origin = _header(arrays, lambda name: arrays[name])
        return Episodes(
            **{name: numbers(name, np.atleast_1d(arrays[name]), dtype) for name, dtype in ARRAYS.items()},
            origin=origin,
            **actions(
                np.atleast_1d(arrays["action"]), num_actions, arrays.get("action_low"), arrays.get("action_high")
            ),
        )


def _header(arrays: Container[str], read: Callable[[str], np.ndarray]) -> tuple[int | None, Origin]:
    """The number of discrete actions and the origin that a file of `write` says. Raises BadRequest."""
    missing = [name for name in sorted((*ARRAYS, "action", "header")) if name not in arrays]
    if missing:
        raise BadRequest(f"lacks {', '.join(missing)}")
    header = parse_json(str(read("header")), "its header")
    try:
        version, num_actions, origin = header["version"], header["num_actions"], header["origin"]
    except (KeyError, TypeError):
        raise BadRequest("its header is damaged") from None
    if version != VERSION:
        raise BadRequest(f"is of version {version}, not {VERSION}")
    if not isinstance(num_actions, int | None) or not isinstance(origin, dict):
        raise BadRequest("its header is damaged")
    return num_actions, load_origin(origin)


@contextmanager
def opened_parts(path: Path, max_episode_steps: int | None) -> Iterator[tuple[Iterator[dict[str, np.ndarray]], About]]:
    """The same in blocks, and what is known of it. Raises BadRequest."""
    with archived_columns(path) as columns:
        if "header" not in columns and {*columns} & {*d4rl.COLUMNS}:
            yield d4rl.parts_of(columns, max_episode_steps, d4rl.UNKNOWN, {})
            return
        num_actions, origin = _header(columns, lambda name: columns[name].all().reshape(()))
        low, high = (columns[name].all() if name in columns else None for name in ("action_low", "action_high"))

        def converted(name: str, block: np.ndarray) -> np.ndarray:
            if name == "action":
                return actions(block, num_actions, low, high)["action"]
            return block if name == "obs" and block.dtype == np.uint8 else numbers(name, block, ARRAYS[name])

        def parts() -> Iterator[dict[str, np.ndarray]]:
            for name in ("obs", "action", "reward"):
                yield from ({name: converted(name, block)} for block in columns[name].blocks())

        some = actions(columns["action"].rows(slice(0, 1)), num_actions, low, high)
        lengths, terminated = (numbers(n, columns[n].all(), ARRAYS[n]) for n in ("lengths", "terminated"))
        about = About(origin, num_actions, some.get("action_low"), some.get("action_high"), lengths, terminated)
        yield parts(), about
