"""Contextual bandits: classification data played one label at a time, and two linear instances with a known answer.

A round shows one context per arm, `[K, d]`, and pays 1 - loss of the arm that is played. Data sets are those bundled
with scikit-learn; an example x of D features becomes K contexts of K D numbers, x in block a of arm a's and zeros
elsewhere (Zhou et al. 2020, arXiv 1911.04462; Deb et al., ICLR 2024, arXiv 2312.07145), with loss 1 for every arm but
its class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams, UniformEnvironment
from engram.envs.extras import needs
from engram.envs.spaces import Box, Discrete
from engram.errors import BadRequest

DATA_SETS = ("iris", "wine", "breast_cancer", "digits")


@struct.dataclass
class ClassificationState:
    """State of a `ClassificationBandit`."""

    example: jax.Array
    """Index of the example shown, int32."""


@dataclass(frozen=True, eq=False)
class ClassificationBandit(UniformEnvironment):
    """Observation: contexts `[K, K D]`. Action: a class, Discrete(K). Reward: 1 if it is right, else 0. Never ends.

    Each round shows an example drawn with replacement, from one uniform.
    """

    features: np.ndarray
    """`[N, D]`, rows of norm 1 (or 0)."""
    labels: np.ndarray
    """`[N]`: classes 0 .. K - 1."""

    cheap_reset = True

    def __post_init__(self):
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1] or len(self.labels) == 0:
            raise BadRequest(
                "classification bandit: features and labels must have shapes [N, D] and [N], "
                f"got {self.features.shape} and {self.labels.shape}"
            )

    @property
    def num_arms(self) -> int:
        return int(self.labels.max()) + 1

    def _contexts(self, example: jax.Array) -> jax.Array:
        k = self.num_arms
        x = jnp.asarray(self.features, jnp.result_type(float))[example]
        return (jnp.eye(k, dtype=x.dtype)[:, :, None] * x).reshape(k, -1)

    def _draw(self, uniform: jax.Array) -> jax.Array:
        n = len(self.labels)
        return jnp.minimum((uniform * n).astype(jnp.int32), n - 1)

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, ClassificationState]:
        example = self._draw(jax.random.uniform(key))
        return self._contexts(example), ClassificationState(example)

    def transition(
        self, state: ClassificationState, action: jax.Array | int, uniforms: jax.Array, params: NoParams
    ) -> tuple[jax.Array, ClassificationState, jax.Array, jax.Array, jax.Array, Info]:
        reward = (jnp.asarray(self.labels)[state.example] == action).astype(uniforms.dtype)
        example = self._draw(uniforms[0])
        info = {"mean": reward, "optimal": jnp.ones_like(reward)}
        no = jnp.bool_(False)
        return self._contexts(example), ClassificationState(example), reward, no, no, info

    def observation_space(self, params: NoParams) -> Box:
        return Box(-1.0, 1.0, (self.num_arms, self.num_arms * self.features.shape[1]))

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_arms)

    def max_steps(self, params: NoParams) -> None:
        return None


def bundled(name: str) -> ClassificationBandit:
    """The bandit on one of scikit-learn's bundled `DATA_SETS`; features are standardised, then every example is scaled
    to norm 1."""
    datasets = needs("sklearn.datasets", "bandits", f"classification/{name}")

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = np.asarray(x, np.float64)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return ClassificationBandit(x / np.where(norm > 0, norm, 1.0), np.asarray(y, np.int32))


@struct.dataclass
class LinearState:
    """State of a `LinearLoss`."""

    weights: jax.Array
    """`[d]`: the mean loss of a context x is <weights, x>."""
    contexts: jax.Array
    """`[K, d]`: the contexts shown."""


@dataclass(frozen=True)
class LinearLoss(UniformEnvironment):
    """Bernoulli losses whose mean is linear in the context, so that a linear predictor can be right.

    Observation: contexts `[K, d]`. Action: an arm, Discrete(K). Reward: 1 - loss. Never ends. With uniforms v, an arm's
    context is v / sqrt(d), of norm at most 1, and its mean loss <p, v>; p is drawn at reset, uniformly from the
    simplex. A step uses the uniforms `[loss, contexts of the next round]`.
    """

    arms: int
    dimension: int
    instance_seed: int | None
    """Seed of the weights (None: the key of the reset)."""

    cheap_reset = True

    def __post_init__(self):
        if self.arms < 2 or self.dimension < 2:
            raise BadRequest(
                f"classification/{self.name}: arms and dimension must be at least 2, got {self.arms}, {self.dimension}"
            )

    @property
    def num_uniforms(self) -> int:
        return 1 + self.arms * self.dimension

    def _weights(self, key: jax.Array) -> jax.Array:
        p = jax.random.exponential(key, (self.dimension,))
        return p / jnp.sum(p) * self.dimension**0.5

    def _contexts(self, uniforms: jax.Array) -> jax.Array:
        return uniforms.reshape(self.arms, self.dimension) / self.dimension**0.5

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, LinearState]:
        weights_key, key = jax.random.split(key)
        if self.instance_seed is not None:
            weights_key = jax.random.key(self.instance_seed)
        contexts = self._contexts(jax.random.uniform(key, (self.num_uniforms - 1,)))
        return contexts, LinearState(self._weights(weights_key), contexts)

    def transition(
        self, state: LinearState, action: jax.Array | int, uniforms: jax.Array, params: NoParams
    ) -> tuple[jax.Array, LinearState, jax.Array, jax.Array, jax.Array, Info]:
        mean_loss = state.contexts @ state.weights
        reward = 1.0 - (uniforms[0] < mean_loss[action]).astype(uniforms.dtype)
        contexts = self._contexts(uniforms[1:])
        info = {"mean": 1.0 - mean_loss[action], "optimal": 1.0 - jnp.min(mean_loss)}
        no = jnp.bool_(False)
        return contexts, LinearState(state.weights, contexts), reward, no, no, info

    def observation_space(self, params: NoParams) -> Box:
        return Box(0.0, 1.0, (self.arms, self.dimension))

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.arms)

    def max_steps(self, params: NoParams) -> None:
        return None


@dataclass(frozen=True)
class ZeroLoss(LinearLoss):
    """In every round one arm loses nothing and every other loses 1: the best policy's loss is 0.

    As `LinearLoss`, but the last entry of v is the loss, 0 for the good arm and 1 for the others. The good arm is drawn
    from one more uniform, the last.
    """

    @property
    def num_uniforms(self) -> int:
        return 2 + self.arms * self.dimension

    def _weights(self, key: jax.Array) -> jax.Array:
        return jnp.zeros(self.dimension).at[-1].set(self.dimension**0.5)

    def _contexts(self, uniforms: jax.Array) -> jax.Array:
        v = uniforms[:-1].reshape(self.arms, self.dimension)
        good = jnp.minimum((uniforms[-1] * self.arms).astype(jnp.int32), self.arms - 1)
        return v.at[:, -1].set((jnp.arange(self.arms) != good).astype(v.dtype)) / self.dimension**0.5


def linear_loss(*, arms: int = 5, dimension: int = 5, instance_seed: int | None = None) -> LinearLoss:
    """`LinearLoss` with weights drawn at reset, or from `instance_seed`."""
    return LinearLoss(arms, dimension, instance_seed)


def zero_loss(*, arms: int = 5, dimension: int = 5) -> ZeroLoss:
    """`ZeroLoss`, which has a single instance."""
    return ZeroLoss(arms, dimension, None)


NAMES: dict[str, Callable[..., Environment]] = {
    **{name: partial(bundled, name) for name in DATA_SETS},
    "LinearLoss": linear_loss,
    "ZeroLoss": zero_loss,
}
"""Public names of the family `classification`."""
