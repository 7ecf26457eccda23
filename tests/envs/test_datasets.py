"""Recorded episodes: what the three file formats keep, what D4RL's rows mean, and what is refused."""

import dataclasses
import json
import os
from dataclasses import replace
from typing import Any

import gymnasium
import h5py
import jax
import jax.numpy as jnp
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from minari.namespace import list_local_namespaces

from engram.agents.offline.data import OfflineData
from engram.envs.adapters.gymnax import GymnaxEnvironment
from engram.envs.datasets import Episodes, Origin, episodes_of, load, save, swing_up
from engram.envs.datasets.recorder import Recorder, Step, Tape
from engram.envs.vector import Vectorised
from engram.envs.wrappers import (
    EpisodeStatistics,
    FlattenObservation,
    NoiseObservation,
    NormaliseObservation,
    NormaliseReward,
    PreviousAction,
)
from engram.errors import BadRequest

ARRAYS = ("obs", "action", "reward", "terminated", "lengths", "action_low", "action_high")
NAMES = ("set.npz", "set.hdf5", "somewhere/set-v0", "set.engram")


def random_episodes(seed: int, discrete: bool, episodes: int = 7) -> Episodes:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, episodes)
    steps = int(lengths.sum())
    continuous: dict[str, Any] = {
        "action": rng.uniform(-2, 2, (steps, 2)).astype(np.float32),
        "action_low": np.array([-2, -2.5], np.float32),
        "action_high": np.array([2, 3], np.float32),
    }
    return Episodes(
        obs=rng.normal(size=(steps + episodes, 3)).astype(np.float32),
        reward=rng.normal(size=steps).astype(np.float32),
        terminated=rng.random(episodes) < 0.5,
        lengths=lengths,
        origin=Origin(
            env="gymnax/Pendulum-v1",
            keep=(0, 2, 1),
            time_limit=50,
            tier="medium",
            algorithm="PPO",
            seed=3,
            score=34.5,
            ref_min=-1234.5,
            ref_max=-0.1,
            versions='{"jax": "0"}',
        ),
        **({"action": rng.integers(0, 4, steps, dtype=np.int32), "num_actions": 6} if discrete else continuous),
    )


def assert_same(a: Episodes, b: Episodes) -> None:
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        if x is None:
            assert y is None
        else:
            np.testing.assert_array_equal(x, y, name)
            assert x.dtype == y.dtype, name
    assert a.origin == b.origin
    assert a.num_actions == b.num_actions


def transitions(episodes: Episodes) -> list[tuple[float, float | None]]:
    """First entries of observation and next observation of every step, the latter None where the task ended."""
    rows, row = [], 0
    for length, terminated in zip(episodes.lengths, episodes.terminated, strict=True):
        for step in range(length):
            over = terminated and step == length - 1
            rows.append((float(episodes.obs[row, 0]), None if over else float(episodes.obs[row + 1, 0])))
            row += 1
        row += 1
    return rows


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 0), (2, 1, 0, 2), (1, 1), (2, 0, 1, 2)])
def test_formats_convert_into_each_other_exactly(order, discrete, tmp_path):
    original = current = random_episodes(0, discrete)
    for index, kind in enumerate(order):
        path = tmp_path / str(index) / NAMES[kind]
        save(current, path)
        current = load(path)
    assert_same(original, current)
    assert not list(tmp_path.rglob(".*")), "temporary files"


@pytest.mark.parametrize("name", NAMES)
def test_unknown_origins_and_references_survive(name, tmp_path):
    episodes = replace(random_episodes(1, False), origin=Origin(env=""))
    save(episodes, tmp_path / name)
    assert_same(load(tmp_path / name), episodes)


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_write_leaves_the_old_file(name, tmp_path, monkeypatch):
    old, new = random_episodes(2, False), random_episodes(3, False)
    path = tmp_path / name
    save(old, path)
    save(old, path)  # replaces what is there
    with monkeypatch.context() as broken:

        def full(*_):
            raise OSError(28, "No space left on device")

        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(new, path)
    assert_same(load(path), old)
    assert not list(tmp_path.rglob(".*")), "temporary files"
    save(new, path)
    assert_same(load(path), new)


# -------------------------------------------------------------------------------------------------------------- Minari


@pytest.mark.parametrize("discrete", [False, True])
def test_minari_itself_reads_what_is_written(discrete, tmp_path, monkeypatch):
    episodes = random_episodes(4, discrete)
    save(episodes, tmp_path / "engram" / "tiny-v3")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert list(minari.list_local_datasets()) == ["engram/tiny-v3"]
    assert list_local_namespaces() == ["engram"]
    dataset = minari.load_dataset("engram/tiny-v3")
    assert dataset.total_steps == len(episodes.reward)
    assert dataset.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    if discrete:
        assert dataset.action_space == gymnasium.spaces.Discrete(6)
    else:
        assert dataset.action_space == gymnasium.spaces.Box(
            np.array([-2, -2.5], np.float32), np.array([2, 3], np.float32)
        )
    for index, episode in enumerate(dataset):
        start, length = episodes.starts[index], episodes.lengths[index]
        np.testing.assert_array_equal(episode.observations, episodes.obs[start + index : start + index + length + 1])
        np.testing.assert_array_equal(episode.actions, episodes.action[start : start + length])
        assert all(dataset.action_space.contains(action) for action in episode.actions)
        np.testing.assert_array_equal(episode.rewards, episodes.reward[start : start + length])
        assert episode.terminations.tolist() == [False] * (length - 1) + [bool(episodes.terminated[index])]
        assert episode.truncations.tolist() == [False] * (length - 1) + [not episodes.terminated[index]]
    np.testing.assert_allclose(
        100 * minari.get_normalized_score(dataset, episodes.returns), episodes.score(episodes.returns)
    )


def test_what_minari_writes_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    lengths = (2, 4, 3)
    obs: Any = [rng.normal(size=(length + 1, 2, 2)) for length in lengths]
    action: Any = [rng.integers(0, 3, length) for length in lengths]
    buffers = [
        EpisodeBuffer(
            observations=o,
            actions=a,
            rewards=rng.normal(size=length).tolist(),
            terminations=[False] * (length - 1) + [length == 4],
            truncations=[False] * (length - 1) + [length != 4],
        )
        for o, a, length in zip(obs, action, lengths, strict=True)
    ]
    minari.create_dataset_from_buffers(
        "a/b/made-v0",
        buffers,
        observation_space=gymnasium.spaces.Box(-9, 9, (2, 2), np.float64),
        action_space=gymnasium.spaces.Discrete(3),
    )
    episodes = load(tmp_path / "a" / "b" / "made-v0")
    assert episodes.lengths.tolist() == [2, 4, 3]
    assert episodes.terminated.tolist() == [False, True, False]
    assert episodes.num_actions == 3
    np.testing.assert_array_equal(episodes.obs, np.concatenate(obs).reshape(-1, 4).astype(np.float32))
    np.testing.assert_array_equal(episodes.action, np.concatenate(action))
    assert episodes.origin.env == ""


# ---------------------------------------------------------------------------------------------------------------- D4RL


def d4rl_file(path, rows: int, **columns) -> None:
    """Observations 0, 1, 2, ... and actions and rewards 10 and 100 times these, with some columns given or left out."""
    number = np.arange(rows, dtype=np.float32)
    defaults = {
        "observations": number[:, None],
        "actions": number[:, None] / 10,
        "rewards": 100 * number,
        "terminals": np.zeros(rows, bool),
    }
    with h5py.File(path, "w") as file:
        for name, column in (defaults | columns).items():
            if column is not None:
                file[name] = column


def marks(rows: int, *true: int) -> np.ndarray:
    return np.isin(np.arange(rows), true)


def test_steps_that_timed_out_are_dropped_where_nothing_says_what_followed(tmp_path):
    """Rows 0 to 2 end by the task, 3 to 5 by a limit, 6 to 8 with the file.

    D4RL's own `qlearning_dataset` makes (3, 4), (4, 5), (6, 7), (7, 8) of the latter two, and skips row 5; of the first
    it makes (0, 1), (1, 2) and a terminal step 2, whose next observation, row 3, no target ever uses.
    """
    path = tmp_path / "set.hdf5"
    d4rl_file(path, 9, terminals=marks(9, 2)[:, None], timeouts=marks(9, 5), rewards=100.0 * np.arange(9)[:, None])
    episodes = load(path)
    assert transitions(episodes) == [(0, 1), (1, 2), (2, None), (3, 4), (4, 5), (6, 7), (7, 8)]
    assert episodes.reward.tolist() == [0, 100, 200, 300, 400, 600, 700]
    np.testing.assert_array_equal(episodes.action[:, 0], episodes.reward / np.float32(1000))
    assert episodes.lengths.tolist() == [3, 2, 2]
    assert episodes.terminated.tolist() == [True, False, False]
    assert episodes.obs[3, 0] == 2, "what stands for the observation after a terminal step is not another episode's"


def test_next_observations_save_the_last_steps(tmp_path):
    path = tmp_path / "set.h5"
    following = np.array([1, 2, 50, 4, 5, 60, 7, 8, 70], np.float32)[:, None]
    d4rl_file(path, 9, terminals=marks(9, 2), timeouts=marks(9, 5), next_observations=following)
    episodes = load(path)
    assert transitions(episodes) == [(0, 1), (1, 2), (2, None), (3, 4), (4, 5), (5, 60), (6, 7), (7, 8), (8, 70)]
    assert episodes.lengths.tolist() == [3, 3, 3]
    # The same without timeouts: the limit shows where the next row is not what followed.
    d4rl_file(path, 9, terminals=marks(9, 2), next_observations=following)
    assert_same(load(path), episodes)


def test_a_limit_cuts_every_episode_after_that_many_steps(tmp_path):
    """D4RL's `sequence_dataset` counts a step too many from the second episode on, and would cut that before row 7."""
    path = tmp_path / "set.hdf5"
    d4rl_file(path, 14, terminals=marks(14, 9))
    episodes = load(path, max_episode_steps=4)
    # Rows 0-3 and 4-7 reach the limit, 8-9 end by the task, 10-13 reach it again.
    assert transitions(episodes) == [
        *[(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7)],
        *[(8, 9), (9, None), (10, 11), (11, 12), (12, 13)],
    ]
    assert episodes.lengths.tolist() == [3, 3, 2, 3]
    d4rl_file(path, 8, terminals=marks(8, 3))
    assert load(path, max_episode_steps=4).terminated.tolist() == [True, False], "the task's end comes first"
    d4rl_file(path, 3, timeouts=marks(3, 0))
    assert load(path).lengths.tolist() == [1], "an episode of one step that timed out leaves nothing"
    d4rl_file(path, 5, timeouts=marks(5, 1, 2, 3))
    assert transitions(load(path)) == [(0, 1)]


def test_a_limit_cuts_where_there_are_timeouts_or_successors_too(tmp_path):
    path = tmp_path / "set.hdf5"
    following = np.arange(1, 9, dtype=np.float32)[:, None]
    d4rl_file(path, 8, next_observations=following, terminals=marks(8, 1))
    assert load(path).lengths.tolist() == [2, 6]
    assert load(path, max_episode_steps=4).lengths.tolist() == [2, 4, 2]
    d4rl_file(path, 8, timeouts=marks(8, 1))
    assert load(path).lengths.tolist() == [1, 5]
    assert load(path, max_episode_steps=4).lengths.tolist() == [1, 3, 1]
    with pytest.raises(BadRequest, match="must be at least 1"):
        load(path, max_episode_steps=0)


@pytest.mark.parametrize("fewer", [np.float16, lambda x: x.astype(np.float16).astype(np.float32), lambda x: x.round(3)])
@pytest.mark.parametrize("name", ["observations", "next_observations"])
def test_rows_of_fewer_digits_are_the_same_rows(name, fewer, tmp_path):
    """Without `timeouts` an episode ends where the next row is another: here after row 19, where the limit cut."""
    rng = np.random.default_rng(0)
    states = 3 * rng.normal(size=(42, 2)).astype(np.float32)
    columns = {
        "observations": np.concatenate([states[:20], states[21:41]]),
        "next_observations": np.concatenate([states[1:21], states[22:42]]),
    }
    columns[name] = fewer(columns[name])
    d4rl_file(tmp_path / "set.hdf5", 40, **columns)
    assert load(tmp_path / "set.hdf5").lengths.tolist() == [20, 20]


def test_shuffled_rows_are_episodes_of_one_step(tmp_path):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(50, 2)).astype(np.float32)
    d4rl_file(tmp_path / "set.hdf5", 50, observations=obs, next_observations=obs + np.float32(0.1))
    assert load(tmp_path / "set.hdf5").lengths.tolist() == [1] * 50


def test_booleans_are_discrete_actions(tmp_path):
    d4rl_file(tmp_path / "set.hdf5", 4, timeouts=marks(4, 3), actions=np.array([True, False, True, True]))
    episodes = load(tmp_path / "set.hdf5")
    assert episodes.discrete
    assert episodes.action.tolist() == [1, 0, 1]


# ------------------------------------------------------------------------------------------------------------ own data


def test_own_data_from_arrays_npz_and_a_table_are_the_same(tmp_path):
    columns = {
        "observations": np.array([[0.5, 1], [1.5, 2], [2.5, 3], [10.5, 11], [11.5, 12]]),
        "actions": np.array([[0.25], [-0.5], [1.0], [0.0], [0.125]]),
        "rewards": np.array([1, 2, 3, 4, 5]),
        "terminals": np.array([0, 0, 1, 0, 0]),
        "timeouts": np.array([0, 0, 0, 0, 1]),
    }
    made = episodes_of(columns)
    assert made.lengths.tolist() == [3, 1]
    assert made.terminated.tolist() == [True, False]
    assert made.obs[:, 0].tolist() == [0.5, 1.5, 2.5, 2.5, 10.5, 11.5]
    assert made.reward.tolist() == [1, 2, 3, 4]
    np.savez(tmp_path / "mine.npz", **columns)
    assert_same(load(tmp_path / "mine.npz"), made)
    np.savez_compressed(tmp_path / "small.npz", **columns)
    assert_same(load(tmp_path / "small.npz"), made)
    rows = np.concatenate([columns["observations"], columns["actions"]], axis=1)
    ends = zip(columns["rewards"], columns["terminals"], columns["timeouts"], strict=True)
    lines = [",".join(map(str, [*row, *end])) for row, end in zip(rows.tolist(), ends, strict=True)]
    header = "observations_0,observations_1,actions,rewards,terminals,timeouts"
    (tmp_path / "mine.csv").write_text("\n".join([header, *lines]) + "\n")
    assert_same(load(tmp_path / "mine.csv"), made)
    limited = {name: columns[name] for name in ("observations", "actions", "rewards", "terminals")}
    assert episodes_of(limited, max_episode_steps=2).lengths.tolist() == [1, 1, 1]
    for name in ("set.hdf5", "set.npz", "ns/set-v0"):  # that bounds are not known is kept
        save(made, tmp_path / name)
        assert_same(load(tmp_path / name), made)


def test_integers_in_a_table_are_discrete_actions(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("observations,actions,rewards,terminals\r\n0.5,2,1,0\r\n1.5,0,1,1\r\n")
    episodes = load(path, max_episode_steps=10)
    assert (episodes.discrete, episodes.action.tolist(), episodes.lengths.tolist()) == (True, [2, 0], [2])
    path.write_text("observations,actions,rewards,terminals\n0.5,2.0,1,0\n1.5,0.0,1,1\n")
    assert not load(path, max_episode_steps=10).discrete
    with pytest.raises(BadRequest, match="say max_episode_steps"):
        load(path)


class Odd(gymnasium.Env):
    """Random observations of a space of many kinds."""

    observation_space: Any = gymnasium.spaces.Dict(
        {
            "where": gymnasium.spaces.Box(-9, 9, (2, 2), np.float64),
            "colour": gymnasium.spaces.Discrete(3, start=1),
            "both": gymnasium.spaces.Tuple((gymnasium.spaces.MultiDiscrete([2, 3]), gymnasium.spaces.Discrete(2))),
        }
    )
    action_space: Any = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


def test_spaces_of_minari_become_the_vectors_that_environments_show(tmp_path, monkeypatch):
    """Against gymnasium's own flattening, of what Minari itself collects; and its environment is named."""
    space = Odd.observation_space
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    gymnasium.register("Odd-v0", f"{__name__}:Odd", max_episode_steps=5)
    collector = minari.DataCollector(gymnasium.make("Odd-v0"))
    for seed in range(3):
        collector.reset(seed=seed)
        while not collector.step(0)[3]:
            pass
    collector.create_dataset("any/odd-v0")
    del gymnasium.registry["Odd-v0"]
    episodes = load(tmp_path / "any" / "odd-v0")
    assert (episodes.origin.env, episodes.origin.time_limit) == ("gymnasium/Odd-v0", 5)
    assert episodes.lengths.tolist() == [5, 5, 5]
    width = gymnasium.spaces.flatdim(space)
    assert episodes.obs.shape == (18, width)
    with h5py.File(tmp_path / "any" / "odd-v0" / "data" / "main_data.hdf5") as file:
        stored: Any = file["episode_1/observations"]
        for row in range(6):
            member = {
                "where": stored["where"][row],
                "colour": stored["colour"][row],
                "both": (stored["both/_index_0"][row], stored["both/_index_1"][row]),
            }
            flat: Any = gymnasium.spaces.flatten(space, member)
            np.testing.assert_array_equal(episodes.obs[6 + row], flat.astype(np.float32))


def test_action_bounds_of_foreign_files(tmp_path):
    path = tmp_path / "set.hdf5"
    d4rl_file(path, 4, timeouts=marks(4, 3))
    assert load(path).action_low is None, "the file does not say"
    episodes = load(path).with_bounds()
    assert episodes.action_low is not None
    assert episodes.action_high is not None
    assert (episodes.action_low.tolist(), episodes.action_high.tolist()) == ([-1], [1])
    d4rl_file(path, 4, timeouts=marks(4, 3), actions=np.array([[0, 0], [-3, 0], [0, 2], [0, 0]], np.float32))
    episodes = load(path).with_bounds()
    assert episodes.action_low is not None
    assert episodes.action_high is not None
    assert (episodes.action_low.tolist(), episodes.action_high.tolist()) == ([-3, -1], [1, 2])
    d4rl_file(path, 4, timeouts=marks(4, 3), actions=np.array([0, 2, 1, 0]))
    assert load(path).num_actions is None
    assert load(path).with_bounds().num_actions == 3


@pytest.mark.slow
@pytest.mark.parametrize("successors", [True, False])
def test_nothing_passes_from_one_episode_to_another(successors, tmp_path):
    """Whatever stands in one episode's rows, all that is drawn from the others stays the same."""
    rng = np.random.default_rng(0)
    lengths = [4, 2, 5, 3, 2]
    ends = np.cumsum(lengths) - 1
    rows, terminal, timeout = ends[-1] + 1, marks(ends[-1] + 1, *ends[[0, 2]]), marks(ends[-1] + 1, *ends[[1, 3, 4]])
    columns = {
        "observations": rng.normal(size=(rows, 2)),
        "rewards": rng.normal(size=rows),
        "actions": rng.random((rows, 1)),
    }
    following = np.append(columns["observations"][1:], rng.normal(size=(1, 2)), axis=0)
    following[ends] = rng.normal(size=(len(ends), 2))
    if successors:
        columns["next_observations"] = following

    @jax.jit
    def everything(data):
        every = jnp.arange(data.steps)
        windows = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), data.windows(every, 6))
        return data.transitions(every), windows

    def drawn(columns):
        path = tmp_path / "set.hdf5"
        d4rl_file(path, rows, terminals=terminal, timeouts=timeout, **columns)
        data = OfflineData.of(load(path))
        return np.asarray(data.episode), jax.tree.leaves(everything(data))

    owner, before = drawn(columns)
    for episode in range(len(lengths)):
        rows_of = slice(ends[episode] - lengths[episode] + 1, ends[episode] + 1)
        changed = {name: column.copy() for name, column in columns.items()}
        for column in changed.values():
            column[rows_of] = rng.normal(size=column[rows_of].shape)
        if successors:  # inside the episode these are the next rows
            changed["next_observations"][rows_of][:-1] = changed["observations"][rows_of][1:]
        now_owner, after = drawn(changed)
        np.testing.assert_array_equal(now_owner, owner)
        touched = False
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x[owner != episode], y[owner != episode])
            touched |= not np.array_equal(x[owner == episode], y[owner == episode])
        assert touched


# ----------------------------------------------------------------------------------------------------------- bad files


def damage_npz(path, **changes: Any) -> None:
    save(random_episodes(0, False), path)
    with np.load(path) as stored:
        arrays = dict(stored) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def truncated(path) -> None:
    save(random_episodes(0, False), path)
    path.write_bytes(path.read_bytes()[:-700])


def minari_folder(path, **changes) -> None:
    """A good dataset with `changes` to its metadata."""
    save(random_episodes(0, False), path)
    file = path / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def minari_rows(path, name: str, rows) -> None:
    """A good dataset with other rows in one place of its third episode."""
    minari_folder(path)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_2/{name}"]
        if rows is not None:
            file[f"episode_2/{name}"] = rows(random_episodes(0, False).lengths[2])


class Payload:
    """What unpickling would run."""

    def __reduce__(self):
        return os.abort, ()


BAD = {
    "missing.npz": (lambda p: None, "no such file"),
    "missing.hdf5": (lambda p: None, "no such file"),
    "missing-v0": (lambda p: None, "no such file"),
    "text.npz": (lambda p: p.write_text("observations"), "not an npz file"),
    "empty.npz": (lambda p: p.touch(), "not an npz file"),
    "cut.npz": (truncated, "not an npz file, or one that was cut short"),
    "object.npz": (lambda p: damage_npz(p, action=np.array([Payload()])), "Python objects"),
    "header.npz": (lambda p: damage_npz(p, header=np.array("{")), "header is damaged"),
    "version.npz": (
        lambda p: damage_npz(p, header=np.array('{"version": 9, "num_actions": 1, "origin": 0}')),
        "version 9",
    ),
    "bounds.npz": (lambda p: damage_npz(p, action_low=None), "lacks one of the bounds"),
    "keys.npz": (lambda p: damage_npz(p, obs=None, lengths=None), "lacks lengths, obs"),
    "ragged.npz": (lambda p: damage_npz(p, lengths=np.array([3, 3])), "lengths do not add up"),
    "nan.npz": (
        lambda p: damage_npz(p, reward=np.full(int(random_episodes(0, False).lengths.sum()), np.nan)),
        "reward .* finite",
    ),
    "words.npz": (lambda p: damage_npz(p, reward=np.array(["a"])), "reward does not hold numbers"),
    "text.hdf5": (lambda p: p.write_text("observations"), "file signature not found"),
    "cut.hdf5": (truncated, "truncated"),
    "keys.hdf5": (lambda p: d4rl_file(p, 3, rewards=None, terminals=None), "lacks rewards, terminals"),
    "ragged.hdf5": (
        lambda p: d4rl_file(p, 3, rewards=np.zeros(2)),
        "observations 3, actions 3, rewards 2, terminals 3",
    ),
    "nan.hdf5": (
        lambda p: d4rl_file(p, 3, timeouts=marks(3, 2), observations=np.full((3, 1), np.nan)),
        "obs .* finite",
    ),
    "huge.hdf5": (lambda p: d4rl_file(p, 3, timeouts=marks(3, 2), rewards=np.full(3, 1e300)), "reward .* finite"),
    "empty.hdf5": (lambda p: d4rl_file(p, 0), "empty"),
    "all-dropped.hdf5": (lambda p: d4rl_file(p, 2, timeouts=marks(2, 0, 1)), "no step has a known successor"),
    "limit.hdf5": (lambda p: d4rl_file(p, 3), "has no timeouts: say max_episode_steps"),
    "wide.hdf5": (lambda p: d4rl_file(p, 3, rewards=np.zeros((3, 2))), "rewards of shape"),
    "next.hdf5": (lambda p: d4rl_file(p, 3, next_observations=np.zeros((3, 2))), "do not fit"),
    "words.hdf5": (lambda p: d4rl_file(p, 1, rewards=np.array([b"a"])), "rewards does not hold numbers"),
    "integers.hdf5": (
        lambda p: d4rl_file(p, 3, timeouts=marks(3, 2), actions=np.zeros((3, 2), int)),
        "several integers",
    ),
    "group.hdf5": (lambda p: d4rl_file(p, 3, **{"actions": None, "actions/a": np.zeros(3)}), "lacks actions"),
    "scalar.hdf5": (lambda p: d4rl_file(p, 3, rewards=1.0), "differ in length"),
    "policy.pkl": (lambda p: p.write_bytes(b"\x80\x04."), "can run code"),
    "table.csv": (lambda p: p.touch(), "lacks observations"),
    "bare": (lambda p: p.touch(), "not a dataset"),
    "folder-v0": (lambda p: p.mkdir(), "not a Minari dataset"),
    "ns/json-v0": (
        lambda p: (minari_folder(p), (p / "data" / "metadata.json").write_text("["))[0],
        "metadata.json is damaged",
    ),
    "ns/list-v0": (
        lambda p: (minari_folder(p), (p / "data" / "metadata.json").write_text("[]"))[0],
        "metadata.json is damaged",
    ),
    "ns/space-v0": (lambda p: minari_folder(p, action_space="[1]"), "metadata.json is damaged"),
    "ns/arrow-v0": (lambda p: minari_folder(p, data_format="arrow"), "arrow; only hdf5"),
    "ns/dict-v0": (
        lambda p: minari_folder(p, observation_space='{"type": "Dict"}'),
        "no parts of episode_0/observations",
    ),
    "ns/many-v0": (lambda p: minari_folder(p, action_space='{"type": "MultiDiscrete"}'), "MultiDiscrete; only"),
    "ns/count-v0": (lambda p: minari_folder(p, total_episodes=3), "says 3 episodes, main_data.hdf5 has 7"),
    "ns/origin-v0": (lambda p: minari_folder(p, origin={"colour": "red"}), "where the data come from is damaged"),
    "ns/gone-v0": (lambda p: (minari_folder(p), (p / "data" / "main_data.hdf5").unlink())[0], "no such file"),
    "ns/cut-v0": (lambda p: (minari_folder(p), truncated_data(p))[0], "truncated"),
    "ns/keys-v0": (lambda p: minari_rows(p, "rewards", None), "episode_2 lacks rewards"),
    "ns/ragged-v0": (lambda p: minari_rows(p, "rewards", lambda n: np.zeros(n + 1)), "episode_2 is ragged: .*rewards"),
    "ns/nan-v0": (lambda p: minari_rows(p, "rewards", lambda n: np.full(n, np.nan)), "reward .* finite"),
    "ns/after-v0": (
        lambda p: minari_rows(p, "truncations", lambda n: np.ones(n, bool)),
        "episode_2 goes on after its end",
    ),
    "ns/wide-v0": (lambda p: minari_rows(p, "observations", lambda n: np.zeros((n + 1, 5))), "episodes differ"),
}


def truncated_data(path) -> None:
    file = path / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-700])


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_and_refused_in_one_line(name, tmp_path):
    make, message = BAD[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_minari_file_as_d4rl_is_recognised(tmp_path):
    save(random_episodes(0, False), tmp_path / "ns" / "set-v0")
    with pytest.raises(ValueError, match="load its dataset folder"):
        load(tmp_path / "ns" / "set-v0" / "data" / "main_data.hdf5")


@pytest.mark.parametrize("name", ["set.pkl", "set", "ns/se t-v0", "set.txt"])
def test_names_that_are_no_dataset_are_not_written(name, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder|not the name"):
        save(random_episodes(0, False), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_something_else_are_left_as_they_are(name, tmp_path):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="left as it is"):
        save(random_episodes(0, False), tmp_path / name)
    assert (tmp_path / name / "thesis.txt").read_text() == "all of it"


# ----------------------------------------------------------------------------------------------------------- recording


def played(env, step_env, key: jax.Array, actions: jax.Array):
    """`actions[T, B]` in `env`; what `step_env` makes of each step's results."""
    params = env.default_params

    @jax.jit
    def run(key):
        start, key = jax.random.split(key)

        def one_step(carry, x):
            obs, state = carry
            action, key = x
            results = env.step(key, state, action, params)
            return (results[0], results[1]), step_env(obs, action, results)

        return jax.lax.scan(one_step, env.reset(start, params), (actions, jax.random.split(key, len(actions))))[1]

    return jax.device_get(run(key))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_records_are_what_the_bare_environment_does(name):
    """The same actions from the same keys, without any wrapper and beneath all of them."""
    lanes, steps = 3, 230
    bare = Vectorised(GymnaxEnvironment(name), lanes)
    wrapped = Recorder(FlattenObservation(EpisodeStatistics(bare)))
    wrapped = NormaliseReward(PreviousAction(NormaliseObservation(wrapped), reward=True))
    rng = np.random.default_rng(0)
    if name == "CartPole-v1":
        actions = jnp.asarray(rng.integers(0, 2, (steps, lanes)), jnp.int32)
    else:
        actions = jnp.asarray(rng.normal(0, 4, (steps, lanes, 1)), jnp.float32)

    def as_step(obs, action, results):
        _, _, reward, terminated, truncated, info = results
        return Step(obs, action, reward, terminated, truncated, info["final_observation"])

    expected = played(bare, as_step, jax.random.key(0), actions)
    record = played(wrapped, lambda obs, action, results: results[-1]["record"], jax.random.key(0), actions)
    for field in dataclasses.fields(Step):
        x, y = getattr(expected, field.name), getattr(record, field.name)
        if field.name == "action" and name == "Pendulum-v1":
            assert np.abs(x).max() > 2
            x = np.clip(x, -2, 2)
        np.testing.assert_array_equal(x, y, field.name)
    assert (expected.terminated | expected.truncated).any()


def test_noise_is_not_recorded():
    lanes = 2
    wrapped = NoiseObservation(Recorder(FlattenObservation(Vectorised(GymnaxEnvironment("Pendulum-v1"), lanes))), 1.0)
    record = played(wrapped, lambda o, a, results: results[-1]["record"], jax.random.key(0), jnp.zeros((5, lanes, 1)))
    np.testing.assert_allclose(np.hypot(record.obs[..., 0], record.obs[..., 1]), 1, atol=1e-6)


def test_whole_episodes_in_the_order_of_their_ends():
    """Two environments: one ends at steps 1 and 3, the other at step 2 and is then cut off."""
    number = np.arange(10).reshape(5, 2)
    done = np.array([[0, 0], [1, 0], [0, 1], [1, 0], [0, 0]], bool)
    steps = Step(
        obs=number[..., None].astype(np.float32),
        action=number.astype(np.int32),
        reward=10.0 * number.astype(np.float32),
        terminated=done & (number != 5),
        truncated=done & (number == 5),
        next_obs=100 + number[..., None].astype(np.float32),
    )
    whole = Tape.of(steps)
    parts = Tape.joined(
        [Tape.of(jax.tree.map(lambda x, rows=rows: x[rows], steps)) for rows in (slice(3), slice(3, 5))]
    )
    actions = GymnaxEnvironment("CartPole-v1").action_space(None)
    for tape in (whole, parts):
        episodes = tape.episodes(Origin(env=""), replace(actions, n=10))
        assert episodes.lengths.tolist() == [2, 3, 2]
        assert episodes.obs[:, 0].tolist() == [0, 2, 102, 1, 3, 5, 105, 4, 6, 106]
        assert episodes.action.tolist() == [0, 2, 1, 3, 5, 4, 6]
        assert episodes.reward.tolist() == [0, 20, 10, 30, 50, 40, 60]
        assert episodes.terminated.tolist() == [True, False, True]
        first = tape.episodes(Origin(env=""), replace(actions, n=10), each=np.array([1, 1]))
        assert first.lengths.tolist() == [2, 3]
    with pytest.raises(ValueError, match="no episode"):
        Tape.of(jax.tree.map(lambda x: x[:1], steps)).episodes(Origin(env=""), actions)


# ------------------------------------------------------------------------------------------------------ noisy Pendulum


@pytest.fixture(scope="module")
def noisy() -> Episodes:
    return swing_up.noisy(40, seed=1)


def test_noisy_pendulum_steps_as_gymnasium_does(noisy):
    reference: Any = gymnasium.make("Pendulum-v1").unwrapped
    reference.reset(seed=0)
    rng = np.random.default_rng(0)
    for episode in rng.integers(0, len(noisy.lengths), 20):
        step = int(rng.integers(0, 200))
        row = noisy.starts[episode] + episode + step
        cos, sin, velocity = noisy.obs[row].astype(np.float64)
        reference.state = np.array([np.arctan2(sin, cos), velocity])
        obs, reward, *_ = reference.step(noisy.action[noisy.starts[episode] + step].astype(np.float64))
        np.testing.assert_allclose(noisy.obs[row + 1], obs, atol=2e-5)
        assert noisy.reward[noisy.starts[episode] + step] == pytest.approx(reward, abs=2e-4)


def test_noisy_pendulum_has_five_levels(noisy):
    """Returns within a few deviations of those that the same recipe gave elsewhere: -148, -235, -638, -934, -1236."""
    assert noisy.lengths.tolist() == [200] * 200
    assert not noisy.terminated.any()
    assert np.abs(noisy.action).max() <= 2
    levels = noisy.returns.reshape(5, 40).mean(axis=1)
    np.testing.assert_allclose(levels, [-148, -235, -638, -934, -1236], atol=150)
    assert (np.diff(levels) < 0).all()
    np.testing.assert_allclose(noisy.score(levels[[0, 4]]), [100, 0], atol=7)
    # Actions that are the controller's up to the jitter are as many as the noise leaves.
    obs = np.delete(noisy.obs, np.cumsum(noisy.lengths + 1) - 1, axis=0)
    near = np.abs(np.asarray(swing_up.torque(obs)) - noisy.action[:, 0]) < 0.2
    uniform_near = near.reshape(5, -1)[4].mean()
    share = (near.reshape(5, -1).mean(axis=1) - uniform_near) / (1 - uniform_near)
    np.testing.assert_allclose(share, [1, 0.7, 0.4, 0.2, 0], atol=0.02)


def test_velocity_can_be_masked(noisy):
    masked = swing_up.noisy(40, seed=1, mask_velocity=True)
    np.testing.assert_array_equal(masked.obs, noisy.obs[:, :2])
    assert masked.origin.keep == (0, 1)
    np.testing.assert_array_equal(masked.reward, noisy.reward)
