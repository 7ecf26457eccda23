"""Folders `.engram` of recorded episodes: what converting to them keeps, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest

from engram.envs.datasets import Episodes, Origin, episodes, load, save, unpack
from engram.errors import BadRequest

ARRAYS = ("obs", "action", "reward", "terminated", "lengths", "action_low", "action_high")


@pytest.fixture(autouse=True, params=[None, 100], ids=["one-block", "small-blocks"])
def blocks(request, monkeypatch):
    """What is read in parts is also read in very small ones."""
    if request.param:
        monkeypatch.setattr(episodes, "BLOCK", request.param)


def recorded(discrete: bool = False, seed: int = 0) -> Episodes:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 12)
    steps = int(lengths.sum())
    continuous: dict[str, Any] = {
        "action": rng.uniform(-2, 2, (steps, 2)).astype(np.float32),
        "action_low": np.array([-2, -2.5], np.float32),
        "action_high": np.array([2, 3], np.float32),
    }
    return Episodes(
        obs=(5 * rng.normal(size=(steps + 12, 3)) + 2).astype(np.float32),
        reward=rng.normal(size=steps).astype(np.float32),
        terminated=rng.random(12) < 0.5,
        lengths=lengths,
        origin=Origin("gymnax/Pendulum-v1", keep=(0, 2, 1), tier="medium", seed=3, ref_min=-5.5, ref_max=-0.1),
        **({"action": rng.integers(0, 4, steps, dtype=np.int32), "num_actions": 6} if discrete else continuous),
    )


def assert_same(a: Episodes, b: Episodes, exactly: bool = True) -> None:
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert not exactly or getattr(x, "dtype", None) == getattr(y, "dtype", None), name
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert a.num_actions == b.num_actions
    assert a.origin == b.origin


def rows(count: int = 60, digits: int | None = None, **more: Any) -> dict[str, np.ndarray]:
    """Columns of D4RL, of which most may be left out."""
    rng = np.random.default_rng(1)
    path = rng.normal(size=(count + 1, 2)).astype(np.float32)
    terminals, timeouts = np.zeros((2, count), bool)
    terminals[[9, 30]], timeouts[[4, 5, 29, 45]] = True, True
    successor = path[1:].copy()
    successor[terminals | timeouts] += 10
    if digits:
        successor = successor.round(digits)
    columns = {
        "observations": path[:-1],
        "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": rng.normal(size=(count, 1)).astype(np.float64),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": successor,
    }
    return {name: column for name, column in (columns | more).items() if column is not None}


# --------------------------------------------------------------------------------------------------- converting


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", ["set.npz", "set.hdf5", "ns/set-v0", "other.engram"])
def test_what_is_converted_is_what_was_there(name, discrete, tmp_path):
    original = recorded(discrete)
    save(original, tmp_path / name)
    assert_same(unpack(tmp_path / name, tmp_path / "new.engram"), original)
    assert_same(load(tmp_path / "new.engram"), load(tmp_path / name))
    assert not list(tmp_path.rglob(".*")), "temporary files"


@pytest.mark.parametrize("name", ["set.npz", "set.hdf5", "set.csv"])
@pytest.mark.parametrize(
    ("columns", "limit"),
    [
        (rows(), None),
        (rows(digits=5), None),
        (rows(digits=3), None),
        (rows(next_observations=None), None),
        (rows(next_observations=None, timeouts=None), 7),
        (rows(timeouts=None), 7),
        (rows(actions=np.arange(60) % 3), None),
    ],
    ids=["all", "five-digits", "three-digits", "no-successors", "a-limit", "limit-and-successors", "discrete"],
)
def test_rows_of_all_steps_become_the_same_episodes(name, columns, limit, tmp_path):
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez_compressed(path, **columns)
    elif name.endswith("hdf5"):
        with h5py.File(path, "w") as file:
            for column, values in columns.items():
                file.create_dataset(column, data=values, compression="gzip")
    else:
        wide = {column: values.reshape(len(values), -1) for column, values in columns.items()}
        names = [f"{c}_{i}" if v.shape[1] > 1 else c for c, v in wide.items() for i in range(v.shape[1])]
        lines = [",".join(repr(x.item()) if x.dtype != bool else str(int(x)) for x in row) for row in
                 zip(*(v[:, i] for v in wide.values() for i in range(v.shape[1])), strict=True)]  # fmt: skip
        path.write_text("\n".join([",".join(names), *lines]))
    expected = load(path, limit)
    assert len(expected.lengths) > 5
    assert_same(unpack(path, tmp_path / "new.engram", limit), expected)


@pytest.mark.parametrize("name", ["set.npz", "set.hdf5"])
def test_bytes_stay_bytes(name, tmp_path):
    columns = rows()
    picture = np.random.default_rng(0).integers(0, 256, (61, 2, 2), dtype=np.uint8)
    columns |= {"observations": picture[:-1], "next_observations": picture[1:]}
    if name.endswith("npz"):
        np.savez(tmp_path / name, **cast(Any, columns))
    else:
        with h5py.File(tmp_path / name, "w") as file:
            for column, values in columns.items():
                file[column] = values
    made = unpack(tmp_path / name, tmp_path / "new.engram")
    assert made.obs.dtype == np.uint8
    assert_same(made, load(tmp_path / name), exactly=False)


def test_statistics_are_those_of_the_arrays(tmp_path):
    original = recorded()
    save(original, tmp_path / "set.engram")
    stored = json.loads((tmp_path / "set.engram" / "header.json").read_text())
    seen = np.delete(original.obs, np.cumsum(original.lengths + 1) - 1, axis=0).astype(np.float64)
    np.testing.assert_array_equal(stored["mean"], seen.mean(0))
    np.testing.assert_array_equal(stored["deviation"], seen.std(0))
    known = load(tmp_path / "set.engram")
    ends = np.cumsum(original.lengths)
    episodes_of = [
        original.reward[end - n : end].astype(np.float64) for end, n in zip(ends, original.lengths, strict=True)
    ]
    np.testing.assert_allclose(known.returns, [part.sum() for part in episodes_of], rtol=1e-12)
    to_go = np.concatenate([np.cumsum(part[::-1])[::-1] for part in episodes_of])
    np.testing.assert_allclose(known.to_go, to_go, rtol=1e-6, atol=1e-6)
    other = replace(known, reward=known.reward * 2)
    np.testing.assert_allclose(other.returns, 2 * known.returns, rtol=1e-6)
    np.testing.assert_array_equal(
        replace(known, obs=known.obs + 1).mean_and_deviation[0] > known.mean_and_deviation[0], True
    )


def test_what_is_interrupted_leaves_what_was_there(tmp_path):
    """Nothing, or the folder of before; a bad number in the last rows is found before anything is there."""
    columns = rows()
    columns["rewards"][-1] = np.nan
    np.savez(tmp_path / "bad.npz", **cast(Any, columns))
    with pytest.raises(BadRequest, match=r"bad.npz: reward has entries that are not finite"):
        unpack(tmp_path / "bad.npz", tmp_path / "new.engram")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]
    save(recorded(), tmp_path / "new.engram")
    with pytest.raises(BadRequest, match="not finite"):
        unpack(tmp_path / "bad.npz", tmp_path / "new.engram")
    assert_same(load(tmp_path / "new.engram"), recorded())


def test_a_full_disk_is_not_the_source_s_fault(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        for name, values in rows().items():
            file[name] = values

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        unpack(tmp_path / "set.hdf5", tmp_path / "new.engram")
    assert [path.name for path in tmp_path.iterdir()] == ["set.hdf5"]


@pytest.mark.slow
def test_converting_takes_little_memory(tmp_path, blocks, request):
    """200 MB of observations, of which 4 MB are held at a time, beside a few bytes of each step."""
    if episodes.BLOCK < 2**20:
        pytest.skip("small blocks would take minutes")
    steps = 1_000_000
    with h5py.File(tmp_path / "big.hdf5", "w") as file:
        for name in ("observations", "next_observations"):
            data = file.create_dataset(name, (steps, 50), np.float32, chunks=(4096, 50))
            for begin in range(0, steps, 100_000):
                values = np.arange(begin, begin + 100_000) + (name != "observations")
                data[begin : begin + 100_000] = values[:, None] + np.arange(50)
        file["actions"], file["rewards"] = np.zeros((steps, 1), np.float32), np.zeros(steps, np.float32)
        file["terminals"] = np.arange(steps) % 1000 == 999
    program = """
import sys
from pathlib import Path
from threading import Event, Thread
from engram.envs.datasets import unpack
import h5py

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.005):
        most.append(anonymous())

done, before, most = Event(), anonymous(), [0]
thread = Thread(target=watch)
thread.start()
made = unpack(sys.argv[1], sys.argv[2])
done.set()
thread.join()
print(len(made.lengths), (max(most) - before) / 1024)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "big.hdf5"), str(tmp_path / "big.engram")]
    count, megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(count) == 1000
    assert float(megabytes) < 100


# ------------------------------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def header(change: Any) -> Any:
    def damage(path: Path) -> None:
        values = json.loads((path / "header.json").read_text())
        change(values)
        (path / "header.json").write_text(json.dumps(values))

    return damage


DAMAGES = {
    "no header": (lambda p: (p / "header.json").unlink(), "lacks header.json"),
    "header cut": (lambda p: cut(p / "header.json"), "it is no JSON"),
    "header a list": (lambda p: (p / "header.json").write_text("[]"), "header.json is damaged"),
    "no obs": (lambda p: (p / "obs.npy").unlink(), "lacks obs.npy"),
    "obs cut": (lambda p: cut(p / "obs.npy"), "obs.npy is damaged: it has not as many bytes as its shape"),
    "obs longer": (lambda p: lengthen(p / "obs.npy"), "obs.npy is damaged: it has not as many bytes"),
    "obs empty": (lambda p: (p / "obs.npy").write_bytes(b""), "obs.npy is damaged: it does not begin as an array"),
    "to_go shorter": (lambda p: np.save(p / "to_go.npy", np.zeros(3, np.float32)), "to_go.npy is damaged: it holds"),
    "other type": (
        lambda p: np.save(p / "reward.npy", np.load(p / "reward.npy").astype(float)),
        "reward.npy is damaged",
    ),
    "by columns": (
        lambda p: np.save(p / "obs.npy", np.asfortranarray(np.load(p / "obs.npy"))),
        "obs.npy is stored column by column",
    ),
    "objects": (
        lambda p: np.save(p / "obs.npy", np.array([{}], object), allow_pickle=True),
        "obs.npy holds Python objects, which can run code",
    ),
    "lengths": (
        lambda p: np.save(p / "lengths.npy", np.load(p / "lengths.npy") + 1),
        "episode lengths do not add up",
    ),
    "version": (header(lambda values: values.update(version=2)), "is of version 2, not 1"),
    "array unnamed": (header(lambda values: values["arrays"].pop("obs")), "header.json is damaged"),
    "array unknown": (
        header(lambda values: values["arrays"].update(x=values["arrays"]["obs"])),
        "header.json is damaged",
    ),
    "statistics": (header(lambda values: values.update(mean=[0.0])), "its statistics do not fit"),
    "infinite": (header(lambda values: values.update(mean=[float("inf")] * 3)), "header.json is damaged"),
    "number of actions": (header(lambda values: values.update(num_actions="6")), "header.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_folder_is_refused_in_one_line(name, tmp_path):
    damage, reason = DAMAGES[name]
    path = tmp_path / "set.engram"
    save(recorded(), path)
    damage(path)
    with pytest.raises(BadRequest) as refused:
        load(path)
    assert str(refused.value).startswith(str(path))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_half_a_folder_is_not_taken_for_whole(tmp_path):
    """As a kill leaves it: under a name of its own; and under its own name, should somebody rename it."""
    save(recorded(), tmp_path / "set.engram")
    shutil.copytree(tmp_path / "set.engram", tmp_path / "half.engram")
    (tmp_path / "half.engram" / "header.json").unlink()
    with pytest.raises(BadRequest, match=r"is not a whole dataset: it lacks header.json"):
        load(tmp_path / "half.engram")
    with pytest.raises(BadRequest, match="left as it is"):
        save(recorded(), tmp_path / "half.engram")
