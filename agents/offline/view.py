"""Scaling of the observations, actions and returns of a dataset."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.common.distributions import allowed
from engram.envs.datasets import Episodes
from engram.envs.datasets.episodes import blocks, normalised_score
from engram.envs.spaces import Box, Discrete, Space
from engram.errors import BadRequest

CONSTANT = 1e-6
"""Standard deviation, in parts of the mean or of 1, up to which an entry of the observations counts as constant."""


@dataclass(frozen=True, eq=False)
class DataView:
    """Scaling of the observations, actions and returns of a dataset."""

    mean: np.ndarray
    """`[O]`, mean of the observations (without the last one of each episode); 0 where they are not standardised."""
    deviation: np.ndarray
    """`[O]`, standard deviation of the same, plus a constant; 1 where they do not vary or are not standardised."""
    centre: np.ndarray
    """`[A]`, middle of the range of bounded continuous actions."""
    half: np.ndarray
    """`[A]`, half width of the range of bounded continuous actions; 0 where they are constant."""
    bound: np.ndarray
    """`[A]`, 1 where an action is bounded, infinity where it is not."""
    num_actions: int | None
    """Number of discrete actions; None where actions are continuous."""
    targets: tuple[float, ...]
    """Returns that evaluations ask for."""
    references: tuple[float, float] | None
    """Returns of random actions and of an expert; None where they are not known."""

    @classmethod
    def of(
        cls,
        episodes: Episodes,
        targets: tuple[float, ...] = (),
        standardise: bool = True,
        constant: float = 1e-6,
    ) -> "DataView":
        """The view of `episodes`.

        Args:
            targets: returns to ask for; where empty, deciles 1, 5 and 9 of the dataset's returns, and the highest.
            standardise: shift observations by their mean and divide them by their standard deviation.
            constant: added to the standard deviation, so that entries that hardly vary do not become large.
        """
        episodes = episodes.with_bounds()
        low, high = episodes.action_low, episodes.action_high
        if low is None or high is None:
            low = high = np.zeros(0)
        bounded = _bounded(low, high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        if not targets:
            deciles = np.quantile(episodes.returns, (0.1, 0.5, 0.9, 1.0))
            targets = tuple(dict.fromkeys(float(f"{decile:.4g}") for decile in deciles))
        mean, deviation = episodes.mean_and_deviation
        # An entry that is constant in the data has no scale: whatever else it shows later would become huge.
        deviation = np.where(deviation <= CONSTANT * np.maximum(np.abs(mean), 1.0), 1.0, deviation + constant)
        if not standardise:
            mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
        least, most = episodes.origin.ref_min, episodes.origin.ref_max
        references = None if least is None or most is None or most <= least else (least, most)
        return cls(
            mean=mean.astype(np.float32),
            deviation=deviation.astype(np.float32),
            centre=((low + high) / 2).astype(np.float32),
            half=((high - low) / 2).astype(np.float32),
            bound=np.where(bounded, 1.0, np.inf).astype(np.float32),
            num_actions=episodes.num_actions if episodes.discrete else None,
            targets=targets,
            references=references,
        )

    def score(self, returns: jax.Array) -> jax.Array:
        """Normalised scores of returns: 0 for random actions, 100 for the expert."""
        assert self.references is not None
        return normalised_score(returns, *self.references)

    def with_scores(self, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`metrics` and, if the reference returns are known, a score beside each return."""
        if self.references is None:
            return metrics
        returns = {name: value for name, value in metrics.items() if "return" in name}
        return metrics | {name.replace("return", "score"): self.score(value) for name, value in returns.items()}

    def normalise(self, obs: jax.Array) -> jax.Array:
        """Standardised observations."""
        return (obs - self.mean) / self.deviation

    def to_unit(self, action: jax.Array) -> jax.Array:
        """Bounded actions rescaled to [-1, 1]; others unchanged."""
        if self.num_actions is not None:
            return action
        return jnp.clip((action - self.centre) / np.where(self.half > 0, self.half, 1.0), -self.bound, self.bound)

    def from_unit(self, action: jax.Array) -> jax.Array:
        """The inverse of `to_unit`, after clipping to the bounds."""
        if self.num_actions is not None:
            return action
        return jnp.clip(action, -self.bound, self.bound) * self.half + self.centre

    def numbers(self, action: jax.Array) -> jax.Array:
        """Actions as vectors: one-hot, or in units of `to_unit`."""
        if self.num_actions is not None:
            return jax.nn.one_hot(action, self.num_actions)
        return self.to_unit(action)

    def decide(self, out: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The greedy actions of a policy's output `[..., n]` (logits, or actions in units of `to_unit`), and the same
        actions as vectors. `mask[..., n]` (bool) says which discrete actions are allowed."""
        if self.num_actions is not None:
            action = jnp.argmax(allowed(out, mask), -1).astype(jnp.int32)
            return action, self.numbers(action)
        return self.from_unit(out), jnp.clip(out, -self.bound, self.bound)


def _bounded(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which entries have bounds, bool `[A]`. Some environments write none as the greatest number of float32."""
    most = np.finfo(np.float32).max / 2
    return (np.abs(low) < most) & (np.abs(high) < most)


def fitted(episodes: Episodes, action_space: Space) -> Episodes:
    """`episodes` with what the environment says of actions where the file says nothing: that they are discrete, how
    many there are, or their bounds. What does not fit stays as it is (see `refuse_mismatch`)."""
    action = episodes.action
    if isinstance(action_space, Discrete):
        if not episodes.discrete and episodes.action_low is None and action.shape[1] == 1:
            whole = action[:, 0].astype(np.int32)
            if np.array_equal(whole, action[:, 0]) and whole.min() >= 0:
                episodes = replace(episodes, action=whole)
        if episodes.discrete and episodes.num_actions is None and episodes.action.max() < action_space.n:
            return replace(episodes, num_actions=action_space.n)
    elif isinstance(action_space, Box) and not episodes.discrete and episodes.action_low is None:
        low, high = (
            np.broadcast_to(np.asarray(bound, np.float32), action_space.shape).reshape(-1).copy()
            for bound in (action_space.low, action_space.high)
        )
        if low.shape == action.shape[1:]:
            return replace(episodes, action_low=low, action_high=high)
    return episodes.with_bounds()


def outside(episodes: Episodes) -> int:
    """How many steps have an action outside of its bounds, by more than rounding."""
    low, high = episodes.action_low, episodes.action_high
    if episodes.discrete or low is None or high is None:
        return 0
    slack = 1e-5 * np.maximum(np.abs(low), np.abs(high))
    low, high, action = low - slack, high + slack, episodes.action
    return sum(int(np.any((x < low) | (x > high), axis=1).sum()) for x in (action[rows] for rows in blocks(action)))


def refuse_mismatch(episodes: Episodes, observation_space: Space, action_space: Space) -> None:
    """Raises BadRequest where `episodes` cannot come from an environment with these spaces."""
    if not isinstance(action_space, Box | Discrete) or not isinstance(observation_space, Box):
        raise BadRequest(
            "the environment must have vectors as observations, and vectors or single integers as actions, "
            f"but has {observation_space} and {action_space}"
        )
    played = _actions(action_space.n if isinstance(action_space, Discrete) else None, action_space.shape)
    recorded = _actions(episodes.num_actions if episodes.discrete else None, episodes.action.shape[1:])
    if (observation_space.shape, played) != (episodes.obs.shape[1:], recorded):
        raise BadRequest(
            f"the dataset has observations of shape {episodes.obs.shape[1:]} and {recorded}, the environment "
            f"{observation_space.shape} and {played}"
        )


def _actions(number: int | None, shape: tuple[int, ...]) -> str:
    return f"actions of shape {shape}" if number is None else f"{number} discrete actions"
