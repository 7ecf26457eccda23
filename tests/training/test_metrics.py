"""Aggregation of metrics over updates and seeds, and plans of runs."""

import os

import numpy as np
import pytest

from engram.agents.ppo.experiment import PPOExperiment
from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.training.loop import plan
from engram.training.metrics import LastKnown, MetricsLog, WandbLog, aggregate, finite_or_none, read_metrics


def test_episode_means_weigh_episodes_not_updates():
    metrics = {
        "train/episodes": np.array([[1, 0], [3, 0]]),
        "train/return_sum": np.array([[1.0, 0.0], [9.0, 0.0]]),
        "loss/total": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "train/regret_last": np.array([[1.0, 2.0], [5.0, 3.0]]),
        "train/value_min": np.array([[1.0, 5.0], [3.0, 2.0]]),
    }
    out = aggregate(metrics)
    assert out["train/return"][0] == 2.5
    assert np.isnan(out["train/return"][1])
    assert finite_or_none(out["train/return"][1]) is None
    np.testing.assert_array_equal(out["train/episodes"], [4, 0])
    np.testing.assert_array_equal(out["loss/total"], [2.0, 3.0])
    np.testing.assert_array_equal(out["train/regret"], [5.0, 3.0])
    np.testing.assert_array_equal(out["train/value_min"], [1.0, 2.0])


def test_a_resumed_log_drops_lines_of_the_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, [])
    for step in range(3):
        log.write({"env_steps": step})
    log.close()
    with path.open("a") as file:
        file.write('{"env_steps": 3, "loss')
    assert len(read_metrics(path)) == 3
    log = MetricsLog(path, read_metrics(path)[:2])
    log.write({"env_steps": 20})
    log.close()
    assert [row["env_steps"] for row in read_metrics(path)] == [0, 1, 20]


def test_damage_in_the_middle_is_one_line(tmp_path):
    path, good = tmp_path / "metrics.jsonl", b'{"env_steps": 1, "eval/return": [null, 2.5]}\n'
    values = (b'"text"', b"[[1]]", b"NaN", b"1e999", b"[" * 100_000)
    rows = [b'{"env_steps": 2, "x": ' + value + b"}" for value in values]
    for bad in (b"[]", b"", b"1", b"{}", b'{"env_steps": "1"}', b"\xff\xfe", *rows):
        path.write_bytes(good + bad + b"\n" + good)
        with pytest.raises(BadRequest, match=r"metrics.jsonl is damaged in line 2$"):
            read_metrics(path)
        path.write_bytes(good + bad)  # a kill may have cut the last one short
        assert read_metrics(path) == [{"env_steps": 1, "eval/return": [None, 2.5]}]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadRequest, match="no regular file"):
        read_metrics(path)


def test_wandb_without_a_home_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # nor an entry among the users
    with pytest.raises(BadRequest, match="--wandb offline needs a home folder: set HOME"):
        WandbLog("offline", tmp_path)


def test_a_seed_whose_episodes_did_not_end_keeps_its_last_return():
    """Acrobot with one stuck seed: its episodes are longer than a log point, and it counts in every mean."""
    last = LastKnown()
    rows = [
        {"env_steps": 1, "train/return": [None, -90.0, None]},
        {"env_steps": 2, "train/return": [-88.0, -87.0, -500.0], "eval/return": [1.0, 2.0, 3.0]},
        {"env_steps": 3, "train/return": [-87.0, -88.0, None]},
    ]
    filled = [last.fill(row) for row in rows]
    assert filled[0]["train/return"] == [None, -90.0, None]
    assert filled[2] == {"env_steps": 3, "train/return": [-87.0, -88.0, -500.0]}
    assert np.mean(filled[2]["train/return"]) == -225
    assert last.values["eval/return"] == [1.0, 2.0, 3.0]
    assert rows[2]["train/return"][2] is None, "metrics.jsonl tells what was measured"


@pytest.mark.parametrize(("steps", "points"), [(1, 50), (1_000_000, 50), (8192 * 7, 3), (8192 * 50, 50)])
def test_plans_cover_the_budget_in_equal_chunks(steps, points):
    division = plan(steps, 8192, points)
    assert division.updates * 8192 >= steps
    assert division.updates == division.chunks * division.updates_per_chunk
    assert division.chunks <= points
    assert (division.updates - division.updates_per_chunk) * 8192 < steps


def test_more_updates_than_agents_can_count_are_refused():
    assert plan(2**30, 1, 1).updates == 2**30
    with pytest.raises(BadRequest, match="total_steps must be at most 8,796,093,022,208"):
        plan(2**43 + 1, 2**13, 50)


def test_the_budget_of_popgym_fast_is_rounded_up_to_whole_updates():
    config = PRESETS["popgym-fast"]
    assert isinstance(config, PPOExperiment)
    steps = config.ppo.num_envs * config.ppo.num_steps
    division = plan(config.total_steps, steps, config.log_points)
    assert (config.total_steps, division.updates, division.updates * steps) == (400_000, 49, 401_408)
