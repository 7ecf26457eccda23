"""Statistics over seeds and tasks: means with intervals that cover at few seeds, comparisons, and the aggregates of
Agarwal et al. (2021).

How often intervals cover, and how often a comparison finds a difference where there is none, is simulated in the tests.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LEVEL = 0.95
"""Coverage of intervals."""
TEST_LEVEL = 0.05
"""Probability that a row of comparisons finds a difference where there is none."""
TEST_SEEDS = 5
"""Fewest seeds of either side of a comparison."""


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


def optimality_gap(tasks: list[np.ndarray]) -> Any:
    """How far scores fall short of 1, what lies above it not counted: the mean over all of `1 - min(score, 1)`."""
    return 1 - np.minimum(np.concatenate(tasks, axis=-1), 1).mean(axis=-1)


def performance_profile(tasks: list[np.ndarray], thresholds: Any) -> np.ndarray:
    """Share of the scores of all tasks and seeds that are above each of `thresholds` `[n]`, `[n]`."""
    scores = np.concatenate(tasks, axis=-1)
    return np.mean(scores > np.asarray(thresholds, float)[:, None], axis=-1)


def stratified_bootstrap(
    scores: list[np.ndarray],
    statistic: Callable[[list[np.ndarray]], Any] = iqm_of_scores,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic`, resampling seeds within each task (stratum).

    Too narrow at few seeds: `bootstrap_interval` is this one, widened.

    Args:
        scores: one vector of per-seed scores for each task; lengths may differ.
        statistic: maps the resampled scores, `[samples, seeds]` for each task, to `[samples]` numbers.
        samples: bootstrap resamples.

    Returns:
        lower and upper end.
    """
    rng = np.random.default_rng(seed)
    tasks = [np.asarray(task, float) for task in scores]
    draws = [task[rng.integers(len(task), size=(samples, len(task)))] for task in tasks]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(statistic(draws), [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_interval(scores: list[np.ndarray], statistic: Callable[[list[np.ndarray]], Any]) -> tuple[float, float]:
    """The interval of `stratified_bootstrap`, widened about the statistic for few seeds.

    A bootstrap takes the variance within a task with n seeds for (n - 1) / n of what it is, and a normal quantile for
    one of Student's. Both are put right as the mean over tasks needs it, for which this comes close to `t_interval`.

    Args:
        scores: at least two scores for each task.
    """
    tasks = [np.asarray(task, float) for task in scores]
    low, high = stratified_bootstrap(tasks, statistic)
    parts = [task.var(ddof=1) / len(task) for task in tasks]
    if not sum(parts):
        return low, high
    seen = sum(part * (len(task) - 1) / len(task) for part, task in zip(parts, tasks, strict=True))
    wider = np.sqrt(sum(parts) / seen) * _t_quantile(_freedom(parts, tasks)) / _t_quantile(np.inf)
    middle = float(statistic(tasks))
    return middle - float(wider) * (middle - low), middle + float(wider) * (high - middle)


# ---------------------------------------------------------------------------------------------------------------------
# Means and their intervals


def _t_quantile(freedom: Any) -> Any:
    from scipy.special import stdtrit  # slow to import, and not needed while a run trains

    return stdtrit(freedom, (1 + LEVEL) / 2)


def _freedom(parts: Sequence[Any], samples: Sequence[Any], axis: int = 0) -> Any:
    """Degrees of freedom (Satterthwaite 1946) of the sum of `parts`, the squared standard errors of `samples`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        below = [part**2 / (np.shape(x)[axis] - 1) for part, x in zip(parts, samples, strict=True)]
        return sum(parts) ** 2 / sum(below)


def t_interval(samples: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Mean over `samples` (one for each task, say) of the mean of each, with the ends of its t interval.

    Its variance is pooled from those within the samples, its degrees of freedom are Satterthwaite's. With one sample it
    is Student's interval.

    Args:
        samples: arrays `[n, ...]`, n independent numbers along the first axis; n may differ.

    Returns:
        mean, lower and upper end, each `[...]`. The ends are NaN where a sample has a single number.
    """
    arrays = [np.asarray(x, np.float64) for x in samples]
    mean = np.mean([x.mean(axis=0) for x in arrays], axis=0)
    if min(len(x) for x in arrays) < 2:
        unknown = np.full(np.shape(mean), np.nan)[()]
        return mean, unknown, unknown
    parts = [x.var(axis=0, ddof=1) / len(x) for x in arrays]
    error = np.sqrt(sum(parts)) / len(arrays)
    half = np.where(error > 0, _t_quantile(_freedom(parts, arrays)) * error, 0.0)
    return mean, mean - half, mean + half


def summarise(per_seed: Sequence[float | None]) -> dict[str, Any]:
    """Mean of one number per seed, and how many seeds have none.

    Returns:
        `per_seed`, with None for what is no finite number; `n`, seeds with a number, and `missing`, those without;
        `mean`, `ci95` and `iqm` of the n: the mean, its t interval (`ci95_of` names it), the interquartile mean. None
        where there is no such number; one seed has no interval.
    """
    numbers = [None if value is None or not math.isfinite(value) else float(value) for value in per_seed]
    known = np.array([value for value in numbers if value is not None])
    result: dict[str, Any] = {"per_seed": numbers, "n": len(known), "missing": len(numbers) - len(known)}
    if not len(known):
        return {**result, "mean": None, "ci95": None, "ci95_of": "mean", "iqm": None}
    mean, low, high = t_interval([known])
    interval = [float(low), float(high)] if len(known) > 1 else None
    return {
        **result,
        "mean": float(mean),
        "ci95": interval,
        "ci95_of": "mean",
        "iqm": float(interquartile_mean(known)),
    }


def in_words(summary: dict[str, Any], digits: int = 3) -> str:
    """`mean [low, high] (n = 3)` of what `summarise` returns, or as much of it as there is; `n = 2 of 3` where a seed
    has no number."""
    n, missing = summary["n"], summary["missing"]
    count = f"(n = {n} of {n + missing})" if missing else f"(n = {n})"
    if summary["mean"] is None:
        return f"no number {count}"
    interval = "" if summary["ci95"] is None else " [{:.{d}f}, {:.{d}f}]".format(*summary["ci95"], d=digits)
    return f"{summary['mean']:.{digits}f}{interval} {count}"


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons


def welch(x: Any, y: Any) -> Any:
    """One-sided p-value of Welch's t-test that the mean of `x` `[..., n]` is greater than that of `y` `[..., m]`.

    Where neither varies, it is that of the permutation test: by chance, all of `x` come before all of `y` in one of
    (n + m choose n) orders.
    """
    from scipy.special import stdtr  # slow to import

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    parts = [sample.var(axis=-1, ddof=1) / sample.shape[-1] for sample in (x, y)]
    difference = x.mean(axis=-1) - y.mean(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = stdtr(_freedom(parts, (x, y), axis=-1), -difference / np.sqrt(sum(parts)))
    constant = np.where(difference > 0, 1 / math.comb(x.shape[-1] + y.shape[-1], x.shape[-1]), 1.0)
    return np.where(sum(parts) > 0, p, constant)[()]


def holm(p: Any) -> np.ndarray:
    """Which of the p-values `[..., m]` of a family are small: the probability that any of them is so by chance is at
    most `TEST_LEVEL` (Holm 1979)."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, axis=-1)
    small = np.take_along_axis(p, order, axis=-1) <= TEST_LEVEL / np.arange(p.shape[-1], 0, -1)
    rejected = np.logical_and.accumulate(small, axis=-1)
    result = np.zeros(p.shape, bool)
    np.put_along_axis(result, order, rejected, axis=-1)
    return result


def better(rivals: Sequence[Sequence[float | None]], base: Sequence[float | None]) -> list[bool]:
    """Which `rivals` have a greater mean than `base`, per-seed numbers each: Welch's test, corrected for their number.

    None has where it or `base` has fewer than `TEST_SEEDS` seeds, or a seed without a number, which may be its worst.
    """

    def fits(scores: Sequence[float | None]) -> bool:
        return len(scores) >= TEST_SEEDS and None not in scores

    p = [welch(scores, base) if fits(scores) and fits(base) else 1.0 for scores in rivals]
    return holm(p).tolist() if p else []


def _beaten(scores: np.ndarray, others: Sequence[np.ndarray]) -> tuple[float, list[tuple[float, int]]]:
    """How many of the `others`, one score drawn from each, are above one of `scores` on average, ties by half; and the
    variance of that estimate in parts, each with its number of seeds: one of `scores`, one of each other (Hoeffding's
    projections, as DeLong et al. 1988 use them)."""
    above = [np.where(y[:, None] == scores, 0.5, y[:, None] > scores) for y in others]  # [m, n] each
    of_mine = np.sum([each.mean(axis=0) for each in above], axis=0)
    parts = [of_mine, *(each.mean(axis=1) for each in above)]
    variances = [float(part.var(ddof=1)) / len(part) if len(part) > 1 else math.nan for part in parts]
    if not any(variances):
        # Few seeds that are all above, or all below, do not make it certain: as if half a pair more were the other way.
        pairs = [(each.sum() + 0.5) / (each.size + 1) for each in above]
        variances[0] = sum(p * (1 - p) / min(each.shape) for p, each in zip(pairs, above, strict=True))
    return float(of_mine.mean()), [(variance, len(part)) for variance, part in zip(variances, parts, strict=True)]


def _over_tasks(found: list[tuple[float, list[tuple[float, int]]]]) -> tuple[float, float, float]:
    """Mean over tasks of what `_beaten` gives, and the ends of its t interval (see `t_interval`)."""
    mean = float(np.mean([value for value, _ in found]))
    parts = np.array([part for _, parts in found for part, _ in parts]) / len(found) ** 2
    sizes = np.array([size for _, parts in found for _, size in parts])
    if np.isnan(parts).any():
        return mean, math.nan, math.nan
    if not parts.sum():
        return mean, mean, mean
    freedom = parts.sum() ** 2 / np.sum(parts**2 / (sizes - 1))
    half = float(_t_quantile(freedom) * np.sqrt(parts.sum()))
    return mean, mean - half, mean + half


def probability_of_improvement(x: Sequence[Any], y: Sequence[Any]) -> tuple[float, float, float]:
    """Probability that a run of `x` scores above one of `y` in a task drawn at random, ties by half: the mean over
    tasks of Mann and Whitney's U, as a share (Agarwal et al. 2021, section 4.3).

    Args:
        x: one vector of scores for each task, two of them or more; as are those of `y`, in the same tasks.

    Returns:
        probability, and the ends of its t interval, cut at 0 and 1. Where all pairs of a task are on one side, its
        share of the variance is that of half a pair more on the other.
    """
    mine, theirs = ([np.asarray(task, float) for task in tasks] for tasks in (x, y))
    mean, low, high = _over_tasks([_beaten(b, [a]) for a, b in zip(mine, theirs, strict=True)])
    return mean, max(low, 0.0), min(high, 1.0)


def mean_rank(column: int, columns: Sequence[Sequence[Any]]) -> tuple[float, float, float]:
    """Rank of a run of one column among one run of each of the others, 1 for the best, in a task drawn at random.

    Args:
        column: index of that column.
        columns: of each column, one vector of scores for each task, two of them or more.

    Returns:
        mean rank, and the ends of its t interval, cut at 1 and the number of columns; see `probability_of_improvement`.
    """
    scores = [[np.asarray(task, float) for task in tasks] for tasks in columns]
    mine, others = scores[column], [tasks for i, tasks in enumerate(scores) if i != column]
    found = [_beaten(task, [other[k] for other in others]) for k, task in enumerate(mine)]
    mean, low, high = (1 + value for value in _over_tasks(found))
    return mean, max(low, 1.0), min(high, float(len(scores)))
