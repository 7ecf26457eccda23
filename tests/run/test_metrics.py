"""Aggregation of metrics and statistics over seeds, against numpy and scipy."""

import numpy as np
import pytest
from scipy import stats

from agents.run.loop import plan
from agents.run.metrics import MetricsLog, aggregate, number, read_metrics
from agents.run.statistics import interquartile_mean, stratified_bootstrap, summarise


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
    assert number(out["train/return"][1]) is None
    np.testing.assert_array_equal(out["train/episodes"], [4, 0])
    np.testing.assert_array_equal(out["loss/total"], [2.0, 3.0])
    np.testing.assert_array_equal(out["train/regret"], [5.0, 3.0])
    np.testing.assert_array_equal(out["train/value_min"], [1.0, 2.0])


def test_a_resumed_log_drops_lines_of_the_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in range(3):
        log.write({"env_steps": step})
    log.close()
    with path.open("a") as file:
        file.write('{"env_steps": 3, "loss')
    assert len(read_metrics(path)) == 3
    log = MetricsLog(path, 2)
    log.write({"env_steps": 20})
    log.close()
    assert [row["env_steps"] for row in read_metrics(path)] == [0, 1, 20]


def test_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean(np.array([[-1000.0, 1.0], [3.0, 1000.0]])) == 2.0
    scores = np.random.default_rng(0).normal(size=40)
    assert interquartile_mean(scores) == pytest.approx(np.sort(scores)[10:30].mean())


def test_bootstrap_equals_scipy_on_one_task():
    scores = np.random.default_rng(1).normal(size=30)
    ours = stratified_bootstrap([scores], np.mean, samples=20_000)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_bootstrap_keeps_tasks_apart():
    """Two constant tasks leave nothing to resample within; pooling them would."""
    assert stratified_bootstrap([np.zeros(5), np.ones(5)], np.mean) == (0.5, 0.5)


def test_summary_of_missing_scores():
    assert summarise([None, None])["mean"] is None
    assert summarise([1.0, None, 3.0])["mean"] == 2.0


@pytest.mark.parametrize(("steps", "points"), [(1, 50), (1_000_000, 50), (8192 * 7, 3), (8192 * 50, 50)])
def test_plans_cover_the_budget_in_equal_chunks(steps, points):
    division = plan(steps, 8192, points)
    assert division.updates * 8192 >= steps
    assert division.updates == division.chunks * division.updates_per_chunk
    assert division.chunks <= points
    assert (division.updates - division.updates_per_chunk) * 8192 < steps
