"""Recorded episodes in memory, as the formats of this folder read and write them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from engram.errors import BadRequest

MOST_ACTIONS = 2**16
"""Discrete actions that there may be."""
BLOCK = 2**22
"""Bytes of an array that are looked at together, so that no copy of all of it is made."""


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from; all of it is kept inside the file."""

    env: str
    """Environment id in the registry; empty where it is unknown (a foreign file)."""
    keep: tuple[int, ...] = ()
    """Entries of the flat observation that were kept (empty: all)."""
    time_limit: int = 0
    """Steps after which episodes were cut (0: the environment's own limit)."""
    tier: str = ""
    """Tier of the dataset: random, medium, medium-replay, medium-expert, expert, full-replay, or a name of its
    maker's."""
    algorithm: str = ""
    """Name of the algorithm that acted."""
    seed: int | None = None
    score: float | None = None
    """Normalised score of the policy that acted, in per cent of the expert's, where there was one policy."""
    ref_min: float | None = None
    """Mean undiscounted return of random actions: a normalised score of 0."""
    ref_max: float | None = None
    """Mean undiscounted return of the expert: a normalised score of 100."""
    versions: str = ""
    """Package versions and code version, as text."""


@dataclass
class About:
    """What a dataset says beside its steps."""

    origin: Origin
    num_actions: int | None = None
    action_low: np.ndarray | None = None
    action_high: np.ndarray | None = None
    lengths: Any = None
    """As those of `Episodes`, or a list that grows while episodes are read; `terminated` too."""
    terminated: Any = None


@dataclass(frozen=True, eq=False)
class Known:
    """What was computed of a dataset when it was written: of these very arrays, and of no others."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    lengths: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    returns: np.ndarray
    to_go: np.ndarray


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, one after another.

    Episode `e` has `lengths[e]` steps and `lengths[e] + 1` observations: the last one is what followed its last step.
    Observations are as the environment gives them, before any normalisation; actions as they were executed.

    Raises:
        BadRequest: arrays whose sizes do not fit together, numbers that are not finite, an empty dataset.
    """

    obs: np.ndarray
    """float32 or uint8 `[N + E, O]`, of `N` steps in `E` episodes."""
    action: np.ndarray
    """float32 `[N, A]`, or int32 `[N]` where actions are discrete."""
    reward: np.ndarray
    """float32 `[N]`."""
    terminated: np.ndarray
    """bool `[E]`: ended by the task; else cut by a limit or by the end of the recording."""
    lengths: np.ndarray
    """int64 `[E]`."""
    origin: Origin
    num_actions: int | None = None
    """Number of discrete actions; each is below it. None where the file does not say."""
    action_low: np.ndarray | None = None
    """float32 `[A]`: least and greatest continuous actions. None where the file does not say."""
    action_high: np.ndarray | None = None
    known: Known | None = None
    """What need not be computed again, where they were read from a file that says it."""

    def __post_init__(self):
        steps, episodes = len(self.reward), len(self.lengths)
        if not steps:
            raise BadRequest("the dataset is empty")
        if self.reward.ndim != 1 or self.lengths.ndim != 1:
            raise BadRequest(f"rewards {self.reward.shape} or lengths {self.lengths.shape} are no list of numbers")
        total = sum(self.lengths.tolist())  # of Python's numbers, which do not wrap
        if np.any(self.lengths < 1) or total != steps:
            raise BadRequest(f"episode lengths do not add up: {total} in {steps} steps")
        if self.obs.ndim != 2 or not self.obs.shape[1] or len(self.obs) != steps + episodes:
            raise BadRequest(f"observations of shape {self.obs.shape} do not fit {steps} steps in {episodes} episodes")
        if len(self.action) != steps:
            raise BadRequest(f"{len(self.action)} actions do not fit {steps} rewards")
        if self.terminated.shape != (episodes,):
            raise BadRequest(f"terminated of shape {self.terminated.shape} does not fit {episodes} episodes")
        for name in ("obs", "action", "reward"):
            if self._known_of(name) is None:
                refuse_not_finite(name, getattr(self, name))
        if self.discrete:
            if self.action.ndim != 1:
                raise BadRequest(f"actions of several integers, shape {self.action.shape}, are not supported")
            count = MOST_ACTIONS if self.num_actions is None else self.num_actions
            if not 1 <= count <= MOST_ACTIONS:
                raise BadRequest(f"the number of discrete actions must lie in [1, {MOST_ACTIONS}], got {count}")
            if self.action.min() < 0 or self.action.max() >= count:
                raise BadRequest(f"discrete actions must lie in [0, {count})")
            return
        if self.action.ndim != 2:
            raise BadRequest(f"continuous actions are [N, A], got {self.action.shape}")
        if self.action_low is None and self.action_high is None:
            return
        if self.action_low is None or self.action_high is None:
            raise BadRequest("lacks one of the bounds of its continuous actions")
        if not self.action_low.shape == self.action_high.shape == self.action.shape[1:]:
            raise BadRequest(f"action bounds {self.action_low.shape} do not fit actions {self.action.shape}")
        if not np.all(self.action_low <= self.action_high):  # which NaN is not
            raise BadRequest(f"action bounds are reversed or no numbers: [{self.action_low}, {self.action_high}]")

    def _known_of(self, *arrays: str) -> Known | None:
        """What is known of the dataset, if these arrays are still those of the file."""
        known = self.known
        return known if known and all(getattr(known, name) is getattr(self, name) for name in arrays) else None

    @property
    def discrete(self) -> bool:
        return np.issubdtype(self.action.dtype, np.integer)

    def with_bounds(self) -> "Episodes":
        """The same, where the file did not say the number or the bounds of actions with those that the data show: as
        many as the greatest action, or [-1, 1], as in most continuous control, or wider where actions are."""
        if self.discrete:
            return self if self.num_actions is not None else replace(self, num_actions=int(self.action.max()) + 1)
        if self.action_low is not None:
            return self
        low, high = np.minimum(self.action.min(axis=0), -1), np.maximum(self.action.max(axis=0), 1)
        return replace(self, action_low=low.astype(np.float32), action_high=high.astype(np.float32))

    @cached_property
    def starts(self) -> np.ndarray:
        """The first step of each episode `[E]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    @cached_property
    def episode(self) -> np.ndarray:
        """The episode of each step `[N]`."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of `obs` that each step saw `[N]`; the next one is what followed."""
        return np.arange(len(self.reward)) + self.episode

    @cached_property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode `[E]`."""
        if known := self._known_of("reward", "lengths"):
            return known.returns
        returns, first = np.empty(len(self.lengths)), 0
        ends = self.starts + self.lengths
        while first < len(ends):  # some whole episodes at a time
            begin = self.starts[first]
            after = max(first + 1, int(np.searchsorted(ends, begin + BLOCK // 8, side="right")))
            reward = self.reward[begin : ends[after - 1]].astype(np.float64)
            returns[first:after] = np.add.reduceat(reward, self.starts[first:after] - begin)
            first = after
        return returns

    @cached_property
    def to_go(self) -> np.ndarray:
        """Undiscounted return from each step to the end of its episode, float32 `[N]`."""
        if known := self._known_of("reward", "lengths"):
            return known.to_go
        to_go = np.empty(len(self.reward), np.float32)
        write_to_go(self.reward, self.lengths, to_go)
        return to_go

    @cached_property
    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of observations, without the last one of each episode, float64 `[O]`."""
        if known := self._known_of("obs", "lengths"):
            return known.mean, known.deviation
        return mean_and_deviation(self.obs, self.lengths)

    def score(self, returns: Any) -> Any:
        """Normalised score: 0 for random actions, 100 for the expert.

        Raises:
            BadRequest: the dataset does not say what those achieve.
        """
        low, high = self.origin.ref_min, self.origin.ref_max
        if low is None or high is None or high <= low:
            raise BadRequest(f"the dataset has no usable reference returns (random {low}, expert {high})")
        return normalised_score(np.asarray(returns), low, high)


def normalised_score(returns: Any, low: float, high: float) -> Any:
    """In per cent of the way from `low`, the return of random actions, to `high`, the expert's (Fu et al. 2020)."""
    return 100.0 * (returns - low) / (high - low)


def refuse_not_finite(name: str, array: np.ndarray) -> None:
    """Raises BadRequest where `array` holds a number that is not finite."""
    for rows in blocks(array):
        if not np.all(np.isfinite(array[rows])):
            raise BadRequest(f"{name} has entries that are not finite")


def blocks(array: np.ndarray) -> Iterator[slice]:
    """The rows of `array`, from the first to the last, some at a time."""
    return spans(len(array), array.nbytes // max(len(array), 1))


def spans(count: int, size: int) -> Iterator[slice]:
    """`count` rows of `size` bytes, some at a time."""
    step = max(1, BLOCK // max(size, 1))
    return (slice(begin, min(begin + step, count)) for begin in range(0, count, step))


def mean_and_deviation(obs: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the rows of `obs` that steps saw, float64 `[O]`."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def seen() -> Iterator[np.ndarray]:
        for span in spans(int(starts[-1] + lengths[-1]), 8 * obs.shape[1]):
            step = np.arange(span.start, span.stop)
            yield obs[step + np.searchsorted(starts, step, side="right") - 1]

    return moments(seen)


def moments(rows: Callable[[], Iterator[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all rows of the blocks `[n, O]` that `rows` gives each time it is called."""

    def mean(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total, count = None, 0
        for block in rows():
            values = of(block.astype(np.float64))
            # One row added after the other (if a row has several numbers), whatever the blocks.
            total = np.add.reduce(values if total is None else np.concatenate([total[None], values]))
            count += len(block)
        return np.asarray(total) / count

    middle = mean(lambda values: values)
    return middle, np.sqrt(mean(lambda values: np.square(values - middle)))


def write_to_go(reward: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """Undiscounted returns from each step to the end of its episode, into `out[N]`.

    They are suffix sums in float64: the sum over all later steps, less that over later episodes.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    after, later = 0.0, np.zeros(len(lengths))  # the sum from the block on; over all later episodes
    known = len(lengths)  # episodes from this one on have theirs
    for span in reversed([*spans(len(reward), 8)]):
        backwards = np.append(after, reward[span][::-1].astype(np.float64))
        total = np.cumsum(backwards)[:0:-1]
        step = np.arange(span.start, span.stop)
        episode = np.searchsorted(starts, step, side="right") - 1
        first = int(np.searchsorted(starts, span.start))  # the first episode that begins in the block
        # An episode that begins in the block gives those before it what follows them.
        begun = np.arange(max(first, 1), known)
        later[begun - 1] = total[starts[begun] - span.start]
        known, after = min(first, known), float(total[0])
        out[span] = total - later[episode]
