"""Minari's folders (the Farama Foundation's successor of D4RL), written and read without the package.

A dataset is `<root>/<namespace>/<name>-v<number>/data/` with `main_data.hdf5` and `metadata.json`; the package finds it
as `<namespace>/<name>-v<number>` if the environment variable `MINARI_DATASETS_PATH` is the root. Each episode is a
group `episode_<i>` with `observations` (a row more than steps), `actions`, `rewards`, `terminations` and `truncations`.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engram.atomic_files import replacing
from engram.envs.datasets.episodes import About, Episodes, Origin
from engram.envs.datasets.files import HDF5, actions, dump_origin, h5py_for, load_origin, numbers, reading
from engram.envs.spec import EnvSpec
from engram.errors import BadRequest
from engram.regular_files import parse_json, read_json

DATA, METADATA, NAMESPACE = "main_data.hdf5", "metadata.json", "namespace_metadata.json"
FORMAT_VERSION = "0.5.4"
"""The Minari version whose layout is written."""
ORIGIN = "origin"
"""The key of `Origin` in `metadata.json`; Minari keeps keys that it does not know."""
BOUNDS_KNOWN = "action_bounds_known"
"""The key that is false where the action space was not known: Minari's needs bounds."""
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
    h5py, origin = h5py_for(path), episodes.origin
    known = episodes.with_bounds()
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
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": known.num_actions}
            if episodes.discrete
            else _box(known.action_low, known.action_high)
        ),
        BOUNDS_KNOWN: known is episodes,
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
    """Reads a dataset folder, or the `data` folder in it. Observations become vectors as they do in environments.

    Raises:
        BadRequest: whatever is wrong with it, in one line that names it; spaces other than boxes of numbers, integers,
            and tuples and dicts of these, and for actions other than boxes and one integer from 0 up.
    """
    with reading(path), opened_parts(path) as (parts, about):
        blocks = [*parts]
        for name in ("obs", "action"):
            if len({block[name].shape[1:] for block in blocks}) > 1:
                raise BadRequest("episodes differ in the shape of their observations or actions")
        obs, action, reward = (np.concatenate([block[name] for block in blocks]) for name in blocks[0])
        return Episodes(
            obs=obs.astype(np.float32, copy=False),
            action=action,
            reward=reward,
            terminated=np.array(about.terminated),
            lengths=np.array(about.lengths, np.int64),
            origin=about.origin,
            num_actions=about.num_actions,
            action_low=about.action_low,
            action_high=about.action_high,
        )


@contextmanager
def opened_parts(path: Path) -> Iterator[tuple[Iterator[dict[str, np.ndarray]], About]]:
    """The episodes one after the other, and what is known of them, which is complete once all are read.

    Raises:
        BadRequest: as `read`.
    """
    data = path if path.name == "data" else path / "data"
    h5py_for(path)
    if not (data / METADATA).exists():
        raise BadRequest(f"is not a Minari dataset: no data/{METADATA}")
    metadata = read_json(data / METADATA)
    try:
        kind, total = metadata["data_format"], metadata["total_episodes"]
        obs_space, action_space = (
            {"type": "Box", **parse_json(metadata.get(name, "{}"), METADATA)}
            for name in ("observation_space", "action_space")
        )
    except (KeyError, TypeError, AttributeError):
        raise BadRequest(f"{METADATA} is damaged") from None
    if kind != "hdf5":
        raise BadRequest(f"holds its data as {kind}; only hdf5 is read")
    kind, start, count = action_space["type"], action_space.get("start", 0), action_space.get("n")
    if kind not in ("Box", "Discrete") or start != 0 or (kind == "Discrete" and not isinstance(count, int)):
        raise BadRequest(f"actions are {kind}; only boxes and integers from 0 up are read")
    pictures = bool(metadata.get("jpeg_encoding"))
    with HDF5.opened(data / DATA) as file:
        found = sum(name.startswith("episode_") for name in file.names())
        if not found:
            raise BadRequest("the dataset is empty")
        if found != total:
            raise BadRequest(f"{METADATA} says {total} episodes, {DATA} has {found}")
        known = metadata.get(BOUNDS_KNOWN, True)
        about = About(
            load_origin(metadata[ORIGIN]) if ORIGIN in metadata else _foreign(metadata), lengths=[], terminated=[]
        )
        described = {
            "count": (count if known else None) if kind == "Discrete" else None,
            "low": action_space.get("low") if known else None,
            "high": action_space.get("high") if known else None,
            "discrete": kind == "Discrete",
        }
        small = obs_space["type"] == "Box" and obs_space.get("dtype") == "uint8"

        def parts() -> Iterator[dict[str, np.ndarray]]:
            for index in range(found):
                obs, action, reward, terminated = _read_episode(file, f"episode_{index}", obs_space, pictures)
                fields = actions(action, **described)
                for name in ("num_actions", "action_low", "action_high"):
                    setattr(about, name, fields.get(name))
                about.lengths.append(len(reward))
                about.terminated.append(terminated)
                yield {"obs": obs.astype(np.uint8) if small else obs, "action": fields["action"], "reward": reward}

        yield parts(), about


def _read_episode(
    file: HDF5, name: str, obs_space: dict[str, Any], pictures: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Observations `[T + 1, O]`, actions, rewards and whether it was terminated."""
    if not file.is_group(name):
        raise BadRequest(f"lacks {name}")
    missing = [key for key in ("observations", *STEPS) if not file.has(f"{name}/{key}")]
    if missing:
        raise BadRequest(f"{name} lacks {', '.join(missing)}")
    obs = _vectors(file, f"{name}/observations", obs_space, pictures)
    action, reward, terminations, truncations = (np.atleast_1d(file.array(f"{name}/{key}")) for key in STEPS)
    sizes = [len(obs), *map(len, (action, reward, terminations, truncations))]
    steps = len(reward)
    if not steps or sizes != [steps + 1, steps, steps, steps, steps]:
        rows = (f"{key} {size}" for key, size in zip(("observations", *STEPS), sizes, strict=True))
        raise BadRequest(f"{name} is ragged: {', '.join(rows)}")
    reward = numbers("rewards", reward, np.float32, rounded=True)
    terminations, truncations = numbers("terminations", terminations, bool), numbers("truncations", truncations, bool)
    if not reward.shape == terminations.shape == truncations.shape == (steps,):
        raise BadRequest(f"{name}: rewards, terminations and truncations are not one number for each step")
    if (terminations | truncations)[:-1].any():
        raise BadRequest(f"{name} goes on after its end")
    return obs, action, reward, bool(terminations[-1])


def _vectors(file: HDF5, name: str, space: Any, pictures: bool) -> np.ndarray:
    """Observations of a space in Minari's JSON as float32 `[rows, entries]`, by the rules of `wrappers.flatten`:
    integers become one-hot, and tuples and dicts (by name) the concatenation of their parts.

    Args:
        pictures: whether boxes of bytes are stored as JPEG, which is not read.
    """
    kind = space.get("type") if isinstance(space, dict) else None
    if not isinstance(kind, str):
        raise BadRequest(f"{METADATA} is damaged: no space of {name}")
    if kind in ("Tuple", "Dict"):
        spaces = space.get("subspaces")
        if not isinstance(spaces, list if kind == "Tuple" else dict) or not spaces:
            raise BadRequest(f"{METADATA} is damaged: no parts of {name}")
        named = (
            sorted(spaces.items()) if isinstance(spaces, dict) else [(f"_index_{i}", s) for i, s in enumerate(spaces)]
        )
        parts = [_vectors(file, f"{name}/{part}", inner, pictures) for part, inner in named]
        if len({len(part) for part in parts}) > 1:
            raise BadRequest(f"the parts of {name} differ in length: {', '.join(str(len(part)) for part in parts)}")
        return np.concatenate(parts, axis=1)
    if kind == "Box":
        if pictures and space.get("dtype") == "uint8" and len(space.get("shape", ())) == 3:
            raise BadRequest("observations are pictures stored as JPEG; only numbers are read")
        array = numbers(name, np.atleast_1d(file.array(name)), np.float32)
        return array.reshape(len(array), math.prod(array.shape[1:]))
    sizes = {"Discrete": space.get("n"), "MultiDiscrete": space.get("nvec"), "MultiBinary": space.get("n")}
    if kind not in sizes:
        raise BadRequest(f"observations are {kind}; only numbers, integers, and tuples and dicts of these are read")
    values = np.atleast_1d(file.array(name))
    values = numbers(name, values.reshape(len(values), math.prod(values.shape[1:])), np.int64)
    try:
        size = np.asarray(sizes[kind], np.int64).reshape(-1)
        if kind == "MultiBinary":
            size = np.full(values.shape[1], 2)
        start = np.broadcast_to(np.asarray(space.get("start", 0), np.int64).reshape(-1), size.shape)
    except (ValueError, TypeError, OverflowError):
        raise BadRequest(f"{METADATA} is damaged: {name}") from None
    if values.shape[1:] != size.shape or np.any(size < 1) or np.any((values < start) | (values - start >= size)):
        raise BadRequest(f"{name} does not lie in its space, {kind} of {sizes[kind]}")
    file.room.take(f"{name} as one-hot", 4 * len(values) * sum(size.tolist()))
    return np.concatenate(
        [column[:, None] == np.arange(n) for column, n in zip((values - start).T, size, strict=True)], axis=1
    ).astype(np.float32)


def _foreign(metadata: dict[str, Any]) -> Origin:
    """What another maker's metadata say of where the data come from."""

    def number(name: str) -> Any:
        value = metadata.get(name)
        return (
            value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
        )

    env, limit = "", 0
    if metadata.get("env_spec") is not None:  # gymnasium's description of the environment, JSON in JSON
        try:
            spec = parse_json(metadata["env_spec"], "env_spec")
            env = str(EnvSpec("gymnasium", spec["id"], spec.get("kwargs") or {}))
            limit = spec.get("max_episode_steps") or 0
        except (KeyError, TypeError, AttributeError, ValueError):
            raise BadRequest(f"{METADATA} is damaged: env_spec") from None
    return load_origin(
        {
            "env": env,
            "keep": (),
            "time_limit": max(limit, 0) if isinstance(limit, int) else limit,
            "algorithm": str(metadata.get("algorithm_name", "")),
            "ref_min": number("ref_min_score"),
            "ref_max": number("ref_max_score"),
        }
    )
