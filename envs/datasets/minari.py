"""Minari's folders (the Farama Foundation's successor of D4RL), written and read without the package.

A dataset is `<root>/<namespace>/<name>-v<number>/data/` with `main_data.hdf5` and `metadata.json`; the package finds it
as `<namespace>/<name>-v<number>` if the environment variable `MINARI_DATASETS_PATH` is the root. Each episode is a
group `episode_<i>` with `observations` (a row more than steps), `actions`, `rewards`, `terminations` and `truncations`.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from engram.envs.atomic_files import replacing
from engram.envs.datasets.episodes import Episodes, Origin
from engram.envs.datasets.files import actions, dump_origin, hdf5, load_origin, numbers, reading, stored
from engram.errors import BadRequest

DATA, METADATA, NAMESPACE = "main_data.hdf5", "metadata.json", "namespace_metadata.json"
FORMAT_VERSION = "0.5.4"
"""The Minari version whose layout is written."""
ORIGIN = "origin"
"""The key of `Origin` in `metadata.json`; Minari keeps keys that it does not know."""
STEPS = ("actions", "rewards", "terminations", "truncations")


def write(episodes: Episodes, path: Path) -> None:
    """Writes the dataset folder `path`, `<namespace>/<name>-v<number>` under any root.

    Raises:
        BadRequest: the last two parts of `path` are not of this form, or it is a folder of something else.
    """
    namespace, name = path.absolute().parts[-2:]
    if not re.fullmatch(r"[-\w]+-v\d+", name) or not re.fullmatch(r"[-\w]{2,}", namespace):
        raise BadRequest(
            f"{path}: a Minari dataset is a folder <namespace>/<name>-v<number>, of letters, digits, - and _"
        )
    if path.exists() and not (path / "data" / METADATA).exists():
        raise BadRequest(f"{path} exists and is not a Minari dataset: it is left as it is")
    h5py, origin = hdf5(path), episodes.origin
    metadata = {
        "dataset_id": f"{namespace}/{name}",
        "minari_version": FORMAT_VERSION,
        "data_format": "hdf5",
        "jpeg_encoding": True,
        "total_episodes": len(episodes.lengths),
        "total_steps": len(episodes.reward),
        # Spaces are JSON inside JSON.
        "observation_space": json.dumps(
            _box(np.full(episodes.obs.shape[1], -np.inf), np.full(episodes.obs.shape[1], np.inf))
        ),
        "action_space": json.dumps(
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": episodes.num_actions}
            if episodes.discrete
            else _box(episodes.action_low, episodes.action_high)
        ),
        "description": f"{origin.tier or 'recorded'} episodes of {origin.env or 'an unknown environment'}",
        "algorithm_name": origin.algorithm,
        ORIGIN: json.loads(dump_origin(origin)),
    }
    for key, value in (("ref_min_score", origin.ref_min), ("ref_max_score", origin.ref_max)):
        if value is not None:
            metadata[key] = value
    with replacing(path) as partial:
        (partial / "data").mkdir(parents=True)
        with h5py.File(partial / "data" / DATA, "w") as file:
            for index, (start, length) in enumerate(zip(episodes.starts, episodes.lengths, strict=True)):
                _write_episode(file.create_group(f"episode_{index}"), index, episodes, int(start), int(length))
        metadata["dataset_size"] = round((partial / "data" / DATA).stat().st_size / 1e6, 1)
        (partial / "data" / METADATA).write_text(json.dumps(metadata))
        if not (path.parent / NAMESPACE).exists():
            with replacing(path.parent / NAMESPACE) as described:
                described.write_text("{}")


def _box(low: Any, high: Any) -> dict[str, Any]:
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return {"type": "Box", "dtype": "float32", "shape": [*low.shape], "low": low.tolist(), "high": high.tolist()}


def _write_episode(group: Any, index: int, episodes: Episodes, start: int, length: int) -> None:
    step, row = slice(start, start + length), slice(start + index, start + index + length + 1)
    ends = np.arange(length) == length - 1
    group.attrs["id"], group.attrs["total_steps"] = index, length
    group["observations"] = episodes.obs[row]
    group["actions"] = episodes.action[step].astype(np.int64) if episodes.discrete else episodes.action[step]
    group["rewards"] = episodes.reward[step]
    group["terminations"] = ends & episodes.terminated[index]
    group["truncations"] = ends & ~episodes.terminated[index]


def read(path: Path) -> Episodes:
    """Reads a dataset folder, or the `data` folder in it. Boxes are flattened.

    Raises:
        BadRequest: whatever is wrong with it, in one line that names it; spaces other than boxes of numbers and, for
            actions, one integer from 0 up.
    """
    data = path if path.name == "data" else path / "data"
    h5py = hdf5(path)
    with reading(path):
        if not (data / METADATA).exists():
            raise BadRequest(f"is not a Minari dataset: no data/{METADATA}")
        try:
            metadata = json.loads((data / METADATA).read_text())
            kind, total = metadata["data_format"], metadata["total_episodes"]
            obs_space, action_space = (
                {**json.loads(metadata.get(name, "{}"))} for name in ("observation_space", "action_space")
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadRequest(f"{METADATA} is damaged") from None
        if kind != "hdf5":
            raise BadRequest(f"holds its data as {kind}; only hdf5 is read")
        if obs_space.get("type", "Box") != "Box":
            raise BadRequest(f"observations are {obs_space['type']}; only boxes of numbers are read")
        discrete = action_space.get("type") == "Discrete"
        if action_space.get("type", "Box") not in ("Box", "Discrete") or action_space.get("start", 0) != 0:
            raise BadRequest(f"actions are {action_space['type']}; only boxes and integers from 0 up are read")
        with h5py.File(data / DATA, "r") as file:
            found = sum(str(name).startswith("episode_") for name in file)
            if not found:
                raise BadRequest("the dataset is empty")
            if found != total:
                raise BadRequest(f"{METADATA} says {total} episodes, {DATA} has {found}")
            parts = [_read_episode(file, f"episode_{index}") for index in range(found)]
        obs, action, reward, terminated = zip(*parts, strict=True)
        if len({array.shape[1:] for array in obs}) > 1 or len({array.shape[1:] for array in action}) > 1:
            raise BadRequest("episodes differ in the shape of their observations or actions")
        return Episodes(
            obs=np.concatenate(obs),
            reward=np.concatenate(reward),
            terminated=np.array(terminated),
            lengths=np.array([len(part) for part in reward], np.int64),
            origin=load_origin(metadata[ORIGIN]) if ORIGIN in metadata else _foreign(metadata),
            **actions(
                np.concatenate(action),
                action_space.get("n") if discrete else None,
                action_space.get("low"),
                action_space.get("high"),
            ),
        )


def _read_episode(file: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Observations `[T + 1, O]`, actions, rewards and whether it was terminated."""
    group = file.get(name)
    if group is None or hasattr(group, "shape"):  # nothing, or an array
        raise BadRequest(f"lacks {name}")
    missing = [key for key in ("observations", *STEPS) if key not in group]
    if missing:
        raise BadRequest(f"{name} lacks {', '.join(missing)}")
    obs, action, reward, terminations, truncations = (
        np.atleast_1d(stored(group, key)) for key in ("observations", *STEPS)
    )
    sizes = [len(obs), *map(len, (action, reward, terminations, truncations))]
    steps = len(reward)
    if not steps or sizes != [steps + 1, steps, steps, steps, steps]:
        rows = (f"{key} {size}" for key, size in zip(("observations", *STEPS), sizes, strict=True))
        raise BadRequest(f"{name} is ragged: {', '.join(rows)}")
    obs, reward = numbers("observations", obs, np.float32), numbers("rewards", reward, np.float32)
    ends = numbers("terminations", terminations, bool) | numbers("truncations", truncations, bool)
    if reward.shape != (steps,) or ends.shape != (steps,):
        raise BadRequest(f"{name}: rewards, terminations and truncations are not one number for each step")
    if ends[:-1].any():
        raise BadRequest(f"{name} goes on after its end")
    return obs.reshape(steps + 1, math.prod(obs.shape[1:])), action, reward, bool(terminations[-1])


def _foreign(metadata: dict[str, Any]) -> Origin:
    return Origin(
        env="",
        algorithm=str(metadata.get("algorithm_name", "")),
        ref_min=metadata.get("ref_min_score"),
        ref_max=metadata.get("ref_max_score"),
    )
