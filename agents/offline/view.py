"""How an offline agent sees the observations, actions and returns of a dataset."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.datasets import Episodes
from engram.envs.datasets.episodes import normalised_score
from engram.envs.spaces import Box, Discrete, Space
from engram.errors import BadRequest


@dataclass(frozen=True, eq=False)
class DataView:
    """How a policy sees the observations, actions and returns of a dataset."""

    mean: np.ndarray
    """Of the observations that were acted on, and their deviation plus a constant; 0 and 1 where they are seen raw."""
    deviation: np.ndarray
    centre: np.ndarray
    """Middle and half width of bounded continuous actions."""
    half: np.ndarray
    bound: np.ndarray
    """1 where an action is bounded, else infinite."""
    num_actions: int | None
    """Of discrete actions."""
    targets: tuple[float, ...]
    """Returns to ask for."""
    references: tuple[float, float] | None
    """Returns of random actions and of the expert, where they are known."""

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
            targets: without these they are deciles 1, 5 and 9 of the returns, and the greatest.
            standardise: shift and scale observations.
            constant: added to their deviation, so that entries that hardly change are not blown up.
        """
        obs = episodes.obs[episodes.rows].astype(np.float64)  # without those after the last steps
        low, high = episodes.action_low, episodes.action_high
        if low is None or high is None:
            low = high = np.zeros(0)
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        if not targets:
            deciles = np.quantile(episodes.returns, (0.1, 0.5, 0.9, 1.0))
            targets = tuple(dict.fromkeys(float(f"{decile:.4g}") for decile in deciles))
        least, most = episodes.origin.ref_min, episodes.origin.ref_max
        references = None if least is None or most is None or most <= least else (least, most)
        return cls(
            mean=(obs.mean(0) if standardise else np.zeros(obs.shape[1])).astype(np.float32),
            deviation=(obs.std(0) + constant if standardise else np.ones(obs.shape[1])).astype(np.float32),
            centre=((low + high) / 2).astype(np.float32),
            half=((high - low) / 2).astype(np.float32),
            bound=np.where(bounded, 1.0, np.inf).astype(np.float32),
            num_actions=episodes.num_actions if episodes.discrete else None,
            targets=targets,
            references=references,
        )

    def score(self, returns: jax.Array) -> jax.Array:
        """Normalised score: 0 for random actions, 100 for the expert."""
        assert self.references is not None
        return normalised_score(returns, *self.references)

    def with_scores(self, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`metrics` and, if the references are known, a score beside each return."""
        if self.references is None:
            return metrics
        returns = {name: value for name, value in metrics.items() if "return" in name}
        return metrics | {name.replace("return", "score"): self.score(value) for name, value in returns.items()}

    def normalise(self, obs: jax.Array) -> jax.Array:
        return (obs - self.mean) / self.deviation

    def to_unit(self, action: jax.Array) -> jax.Array:
        """Bounded actions as numbers in [-1, 1]; others as they are."""
        if self.num_actions is not None:
            return action
        return jnp.clip((action - self.centre) / self.half, -self.bound, self.bound)

    def from_unit(self, action: jax.Array) -> jax.Array:
        """The inverse of `to_unit`; what lies beyond the bounds is cut off."""
        if self.num_actions is not None:
            return action
        return jnp.clip(action, -self.bound, self.bound) * self.half + self.centre

    def numbers(self, action: jax.Array) -> jax.Array:
        """Actions as vectors: one-hot, or within [-1, 1]."""
        if self.num_actions is not None:
            return jax.nn.one_hot(action, self.num_actions)
        return self.to_unit(action)

    def decide(self, out: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A policy's output `[..., n]`, logits or numbers, as actions, and these as vectors."""
        if self.num_actions is not None:
            action = jnp.argmax(out, -1).astype(jnp.int32)
            return action, self.numbers(action)
        return self.from_unit(out), jnp.clip(out, -self.bound, self.bound)


def refuse_mismatch(episodes: Episodes, observation_space: Space, action_space: Space) -> None:
    """Raises BadRequest where `episodes` cannot be of an environment with these spaces."""
    if not isinstance(action_space, Box | Discrete) or not isinstance(observation_space, Box):
        raise BadRequest("the environment shows or takes something else than vectors and one kind of actions")
    played = _actions(action_space.n if isinstance(action_space, Discrete) else None, action_space.shape)
    recorded = _actions(episodes.num_actions if episodes.discrete else None, episodes.action.shape[1:])
    if (observation_space.shape, played) != (episodes.obs.shape[1:], recorded):
        raise BadRequest(
            f"the dataset has observations of shape {episodes.obs.shape[1:]} and {recorded}, the environment "
            f"{observation_space.shape} and {played}"
        )


def _actions(number: int | None, shape: tuple[int, ...]) -> str:
    return f"actions of shape {shape}" if number is None else f"{number} discrete actions"
