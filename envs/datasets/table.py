"""A table of numbers (.csv) with a line for each step and D4RL's columns, as any program writes it.

The first line names the columns: `rewards`, `terminals` and where there are any `timeouts`; `observations_0`,
`observations_1`, ..., and likewise `actions_0`, ... and `next_observations_0`, ..., or without a number where there is
one. Actions are discrete where all are written as integers: `1`, not `1.0`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from engram.envs.datasets.d4rl import COLUMNS, REQUIRED, episodes_of
from engram.envs.datasets.episodes import Episodes
from engram.envs.datasets.files import reading
from engram.errors import BadRequest
from engram.regular_files import read_text

MOST = 2**30
"""Bytes of the largest table; what is larger is better stored in binary."""


def read(path: Path, max_episode_steps: int | None = None) -> Episodes:
    """Reads a table.

    Args:
        max_episode_steps: see `engram.envs.datasets.d4rl.episodes_of`.

    Raises:
        BadRequest: whatever is wrong with the file, in one line that names it.
    """
    with reading(path):
        header, _, body = read_text(path, MOST).lstrip("\ufeff").partition("\n")
        names = [name.strip().strip('"') for name in header.split(",")]
        if len({*names}) < len(names):
            raise BadRequest("two columns have one name")
        places = {name: _places(name, names) for name in COLUMNS}
        if missing := [name for name in REQUIRED if not places[name]]:
            raise BadRequest(f"lacks {', '.join(missing)}")
        lines = [line for line in body.splitlines() if line.strip()]
        if not lines:
            raise BadRequest("the dataset is empty")
        try:
            rows = np.loadtxt(lines, np.float64, comments=None, delimiter=",", ndmin=2)
        except ValueError as error:
            raise BadRequest(f"is no table of numbers: {str(error).partition(';')[0]}") from None
        if rows.shape[1] != len(names):
            raise BadRequest(f"names {len(names)} columns and has {rows.shape[1]}")
        columns: dict[str, Any] = {name: rows[:, place] for name, place in places.items() if place}
        actions = places["actions"]
        if len(actions) == 1 and all(re.fullmatch(r"[+-]?\d+", line.split(",")[actions[0]].strip()) for line in lines):
            columns["actions"] = columns["actions"].astype(np.int64)
        return episodes_of(columns, max_episode_steps)


def _places(name: str, names: list[str]) -> list[int]:
    """Where the columns of `name` stand, in the order of their numbers."""
    if name in names:
        return [names.index(name)]
    found = {}
    while (numbered := f"{name}_{len(found)}") in names:
        found[numbered] = names.index(numbered)
    return [*found.values()]
