"""Which tasks are for training and which are kept away from it: data files beside this one, not code.

A file `distributions/<file>.json` holds, by name of the family and then by split, what that family draws tasks from:
ranges, parameters of priors, or sets of discrete tasks.
"""

import functools
import json
from pathlib import Path
from typing import Any

from engram.errors import BadRequest

SPLITS = ("train", "test", "heldout")
"""`test` has the ranges of `train` and, where tasks are a finite set, other members; `heldout` lies outside both."""

FOLDER = Path(__file__).parent / "distributions"


def check_split(split: str) -> None:
    """Raises BadRequest unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise BadRequest(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def drawn_from(file: str, family: str, split: str) -> Any:
    """What `family` draws the tasks of a split from. Raises BadRequest for an unknown split."""
    check_split(split)
    return read(file, family)[split]


@functools.cache
def read(file: str, family: str) -> dict[str, Any]:
    """What `family` draws tasks from, by split. The caller leaves the answer as it is: it is kept."""
    return json.loads((FOLDER / f"{file}.json").read_text())[family]
