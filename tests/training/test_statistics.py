"""Statistics over seeds and tasks against numpy, scipy, and the definitions of rliable (Agarwal et al. 2021)."""

import itertools

import numpy as np
import pytest
from scipy import stats

from engram.training.statistics import (
    human_normalised,
    interquartile_mean,
    iqm_of_scores,
    iqm_of_tasks,
    mean_of_tasks,
    median_of_tasks,
    stratified_bootstrap,
)


def test_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean(np.array([[-1000.0, 1.0], [3.0, 1000.0]])) == 2.0
    scores = np.random.default_rng(0).normal(size=40)
    assert interquartile_mean(scores) == pytest.approx(np.sort(scores)[10:30].mean())


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_interquartile_mean_is_scipys_trimmed_mean(axis):
    scores = np.random.default_rng(0).normal(size=(9, 7))
    np.testing.assert_allclose(interquartile_mean(scores, axis), stats.trim_mean(scores, 0.25, axis), rtol=1e-12)
    scores[2, 3] = np.nan  # a seed that diverged is not cut off as if it were the best
    np.testing.assert_allclose(interquartile_mean(scores, axis), stats.trim_mean(scores, 0.25, axis), rtol=1e-12)
    assert np.isnan(interquartile_mean(scores, axis)).any()


def test_human_normalised_scores():
    """Pong from -20.7 (random) to 14.6 (human)."""
    np.testing.assert_allclose(human_normalised([-20.7, 14.6, -3.05, 49.9], -20.7, 14.6), [0.0, 1.0, 0.5, 2.0])


def test_aggregates_are_rliables():
    """rliable on a matrix runs x tasks: mean and median over tasks of the means over runs, IQM of all entries."""
    matrix = np.random.default_rng(2).lognormal(size=(5, 26))
    tasks = list(matrix.T)
    assert mean_of_tasks(tasks) == pytest.approx(matrix.mean())
    assert median_of_tasks(tasks) == pytest.approx(np.median(matrix.mean(axis=0)))
    assert iqm_of_scores(tasks) == pytest.approx(stats.trim_mean(matrix.flatten(), proportiontocut=0.25))
    assert iqm_of_tasks(tasks) == pytest.approx(np.sort(matrix.mean(axis=0))[6:20].mean())


def test_tasks_weigh_the_same_whatever_their_number_of_seeds():
    tasks = [np.array([0.0, 0.0, 0.0, 0.0]), np.array([3.0]), np.array([6.0, 6.0])]
    assert mean_of_tasks(tasks) == 3.0
    assert median_of_tasks(tasks) == 3.0


def test_bootstrap_equals_scipy_on_one_task():
    scores = np.random.default_rng(1).normal(size=30)
    ours = stratified_bootstrap([scores], mean_of_tasks, samples=20_000)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_bootstrap_keeps_tasks_apart():
    """Two constant tasks leave nothing to resample within; pooling them would."""
    assert stratified_bootstrap([np.zeros(5), np.ones(5)], mean_of_tasks) == (0.5, 0.5)


def test_bootstrap_has_the_quantiles_of_all_resamples():
    """Every way of drawing three runs and two runs of a pair of tasks, and three of a third: 27 x 4 x 27."""
    tasks = [np.array([0.0, 1.0, 5.0]), np.array([2.0, 2.5]), np.array([-1.0, 0.3, 0.9])]
    resamples = list(itertools.product(*(itertools.product(task, repeat=len(task)) for task in tasks)))
    assert len(resamples) == 27 * 4 * 27
    expected = {
        mean_of_tasks: [np.mean([np.mean(each) for each in drawn]) for drawn in resamples],
        median_of_tasks: [np.median([np.mean(each) for each in drawn]) for drawn in resamples],
        # Eight scores: a quarter at each end is two of them.
        iqm_of_scores: [np.mean(sorted(itertools.chain(*drawn))[2:6]) for drawn in resamples],
    }
    for statistic, values in expected.items():
        found = stratified_bootstrap(tasks, statistic, samples=40_000)
        np.testing.assert_allclose(found, np.percentile(values, [2.5, 97.5]), atol=0.06, err_msg=statistic.__name__)
