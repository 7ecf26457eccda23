"""The suite's own format: the arrays of `Episodes` and one JSON text in an uncompressed `.npz`. The fastest to read."""

import json
from pathlib import Path

import numpy as np

from engram.envs.atomic_files import replacing
from engram.envs.datasets.episodes import Episodes
from engram.envs.datasets.files import archived, dump_origin, load_origin, numbers, reading
from engram.errors import BadRequest

ARRAYS = {"obs": np.float32, "reward": np.float32, "terminated": np.bool_, "lengths": np.int64}
"""Arrays of every file; besides these there are `action`, and its bounds if it is continuous."""
VERSION = 1


def write(episodes: Episodes, path: Path) -> None:
    header = {
        "version": VERSION,
        "num_actions": episodes.num_actions,
        "origin": json.loads(dump_origin(episodes.origin)),
    }
    arrays = {name: getattr(episodes, name) for name in (*ARRAYS, "action")}
    if not episodes.discrete:
        arrays |= {"action_low": episodes.action_low, "action_high": episodes.action_high}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def read(path: Path) -> Episodes:
    """Raises BadRequest, in one line that names the file, for whatever is wrong with it."""
    with reading(path):
        arrays = archived(path)
        missing = sorted({*ARRAYS, "action", "header"} - {*arrays})
        if missing:
            raise BadRequest(f"lacks {', '.join(missing)}")
        try:
            header = json.loads(str(arrays.pop("header")))
            version, num_actions, origin = header["version"], header["num_actions"], header["origin"]
        except (ValueError, KeyError, TypeError):
            raise BadRequest("its header is damaged") from None
        if version != VERSION:
            raise BadRequest(f"is of version {version}, not {VERSION}")
        continuous = {}
        if num_actions is None:
            if not {"action_low", "action_high"} <= {*arrays}:
                raise BadRequest("lacks the bounds of its continuous actions")
            continuous = {name: numbers(name, arrays[name], np.float32) for name in ("action_low", "action_high")}
        return Episodes(
            **{name: numbers(name, arrays[name], dtype) for name, dtype in ARRAYS.items()},
            action=numbers("action", arrays["action"], np.float32 if num_actions is None else np.int32),
            num_actions=num_actions,
            origin=load_origin(origin),
            **continuous,
        )
