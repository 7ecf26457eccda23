"""How an offline agent sees the observations, actions and returns of a dataset."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from envs.datasets import Episodes


@dataclass(frozen=True, eq=False)
class DataView:
    """How a policy sees the observations, actions and returns of a dataset."""

    mean: np.ndarray
    """Of observations, and their deviation + 1e-6."""
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
    def of(cls, episodes: Episodes, targets: tuple[float, ...] = ()) -> "DataView":
        """The view of `episodes`. Without `targets` these are deciles 1, 5 and 9 of the returns, and the greatest."""
        which = np.repeat(np.arange(len(episodes.lengths)), episodes.lengths)
        obs = episodes.obs[np.arange(len(which)) + which].astype(np.float64)  # without those after the last steps
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
            mean=obs.mean(0).astype(np.float32),
            deviation=(obs.std(0) + 1e-6).astype(np.float32),
            centre=((low + high) / 2).astype(np.float32),
            half=((high - low) / 2).astype(np.float32),
            bound=np.where(bounded, 1.0, np.inf).astype(np.float32),
            num_actions=episodes.num_actions if episodes.discrete else None,
            targets=targets,
            references=references,
        )

    @property
    def scored(self) -> bool:
        return self.references is not None

    def score(self, returns: jax.Array) -> jax.Array:
        """Normalised score: 0 for random actions, 100 for the expert."""
        assert self.references is not None
        low, high = self.references
        return 100.0 * (returns - low) / (high - low)

    def normalise(self, obs: jax.Array) -> jax.Array:
        return (obs - self.mean) / self.deviation

    def numbers(self, action: jax.Array) -> jax.Array:
        """Actions as the policy takes them: one-hot, or vectors within [-1, 1]."""
        if self.num_actions is not None:
            return jax.nn.one_hot(action, self.num_actions)
        return (action - self.centre) / self.half

    def decide(self, out: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The policy's output `[..., n]` as actions, and these as the policy takes them."""
        if self.num_actions is not None:
            action = jnp.argmax(out, -1).astype(jnp.int32)
            return action, self.numbers(action)
        numbers = jnp.clip(out, -self.bound, self.bound)
        return numbers * self.half + self.centre, numbers
