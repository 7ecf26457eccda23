"""Aggregates over seeds and tasks (Agarwal et al. 2021): interquartile mean and bootstrap intervals."""

from collections.abc import Callable
from typing import Any

import numpy as np


def interquartile_mean(scores: np.ndarray, axis: int | None = None) -> Any:
    """Mean of the middle half of the entries of `scores`, all of them or along `axis`; NaN where one of them is."""
    # By hand, as scipy.stats takes seconds to import.
    scores = np.asarray(scores, float)
    ordered = np.sort(scores.ravel() if axis is None else np.moveaxis(scores, axis, 0), axis=0)
    cut = len(ordered) // 4
    # Sorted last, a NaN would be cut off.
    return np.where(np.isnan(ordered).any(axis=0), np.nan, ordered[cut : len(ordered) - cut].mean(axis=0))[()]


def human_normalised(score: Any, random: float, human: float) -> Any:
    """0 for the return of random play, 1 for a human's (Mnih et al. 2015)."""
    return (np.asarray(score, float) - random) / (human - random)


# Aggregates over tasks. `tasks` has one array `[..., seeds]` for each task; the numbers of seeds may differ. The result
# has the leading axes. A task counts as much as any other in the first three, in the last a score as any other.


def mean_of_tasks(tasks: list[np.ndarray]) -> Any:
    """Mean over tasks of the means over seeds."""
    return np.mean([np.mean(task, axis=-1) for task in tasks], axis=0)


def median_of_tasks(tasks: list[np.ndarray]) -> Any:
    """Median over tasks of the means over seeds."""
    return np.median([np.mean(task, axis=-1) for task in tasks], axis=0)


def iqm_of_tasks(tasks: list[np.ndarray]) -> Any:
    """Interquartile mean over tasks of the means over seeds, for scores that are published as means."""
    return interquartile_mean(np.array([np.mean(task, axis=-1) for task in tasks]), axis=0)


def iqm_of_scores(tasks: list[np.ndarray]) -> Any:
    """Interquartile mean over the scores of all tasks and seeds together."""
    return interquartile_mean(np.concatenate(tasks, axis=-1), axis=-1)


def stratified_bootstrap(
    scores: list[np.ndarray],
    statistic: Callable[[list[np.ndarray]], Any] = iqm_of_scores,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic`, resampling seeds within each task (stratum).

    Args:
        scores: one vector of per-seed scores for each task; lengths may differ.
        statistic: maps the resampled scores, `[samples, seeds]` for each task, to `[samples]` numbers.
        samples: bootstrap resamples.
        level: coverage, 0.95 for a 95 % interval.

    Returns:
        lower and upper end. With few seeds the interval cannot leave the range of the scores: read it as such.
    """
    rng = np.random.default_rng(seed)
    tasks = [np.asarray(task, float) for task in scores]
    draws = [task[rng.integers(len(task), size=(samples, len(task)))] for task in tasks]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(statistic(draws), [tail, 100 - tail])
    return float(low), float(high)


def summarise(per_seed: list[float | None]) -> dict[str, Any]:
    """`{"per_seed", "mean", "iqm", "ci95"}` of one number per seed; the interval is that of the interquartile mean."""
    known = np.asarray([value for value in per_seed if value is not None], float)
    if known.size == 0:
        return {"per_seed": per_seed, "mean": None, "iqm": None, "ci95": None}
    return {
        "per_seed": per_seed,
        "mean": float(known.mean()),
        "iqm": float(interquartile_mean(known)),
        "ci95": list(stratified_bootstrap([known])),
    }
