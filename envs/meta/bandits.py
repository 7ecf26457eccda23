"""Bandits: every pull is an inner episode of one step, as in RL^2, so a trial of 100 pulls is one of 100 episodes.

A task is the arms' mean rewards, which the priors of `distributions/bandits.json` draw. The observation is constant:
all that an agent can know of a task is in the actions and rewards before.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from engram.envs.base import Info
from engram.envs.meta.splits import drawn_from
from engram.envs.meta.trials import Family
from engram.envs.spaces import Discrete
from engram.errors import BadRequest

ARMS = (2, 50)


@struct.dataclass
class BanditState:
    """Nothing: an episode is one pull."""


@dataclass(frozen=True)
class Bandit(Family):
    """What kinds of bandits share. Their tasks have `means [arms]`, the expected rewards.

    Observation: Discrete(1). Action: Discrete(arms). `info`: `regret`.
    """

    arms: int = 10

    cheap_reset = True

    def __post_init__(self):
        if not ARMS[0] <= self.arms <= ARMS[1]:
            raise BadRequest(f"arms must lie in {ARMS[0]} .. {ARMS[1]}, got {self.arms}")

    def reward(self, key: jax.Array, action: jax.Array, task) -> jax.Array:
        raise NotImplementedError

    def reset(self, key: jax.Array, params) -> tuple[jax.Array, BanditState]:
        return jnp.int32(0), BanditState()

    def step(
        self, key: jax.Array, state: BanditState, action: jax.Array, params
    ) -> tuple[jax.Array, BanditState, jax.Array, jax.Array, jax.Array, Info]:
        means = params.means
        info = {"regret": jnp.max(means) - means[action]}
        return jnp.int32(0), state, self.reward(key, action, params), jnp.bool_(True), jnp.bool_(False), info

    def observation_space(self, params) -> Discrete:
        return Discrete(1)

    def action_space(self, params) -> Discrete:
        return Discrete(self.arms)

    def max_steps(self, params) -> int:
        return 1

    def optimal_return(self, task) -> jax.Array:
        return jnp.max(task.means)


@struct.dataclass
class BernoulliTask:
    means: jax.Array
    """`[arms]`: probability of the reward 1; the reward is 0 otherwise."""


@dataclass(frozen=True)
class BernoulliBandit(Bandit):
    """Arms that pay 1 with a probability, each drawn from a prior Beta(1, b); b = 1 is uniform."""

    def draw(self, key: jax.Array, split: str) -> BernoulliTask:
        # By the inverse of the distribution function: gamma variates, for other priors, would compile for seconds.
        uniform = jax.random.uniform(key, (self.arms,))
        return BernoulliTask(1.0 - (1.0 - uniform) ** (1.0 / drawn_from("bandits", "Bandit", split)["beta"]))

    def reward(self, key: jax.Array, action: jax.Array, task: BernoulliTask) -> jax.Array:
        return (jax.random.uniform(key) < task.means[action]).astype(jnp.float32)


@struct.dataclass
class GaussianTask:
    means: jax.Array
    """`[arms]`."""
    noise: jax.Array
    """Standard deviation of a reward."""


@dataclass(frozen=True)
class GaussianBandit(Bandit):
    """Arms that pay their mean plus Gaussian noise, means drawn from a Gaussian prior."""

    def draw(self, key: jax.Array, split: str) -> GaussianTask:
        prior = drawn_from("bandits", "GaussianBandit", split)
        means = prior["mean"] + prior["deviation"] * jax.random.normal(key, (self.arms,))
        return GaussianTask(means, jnp.float32(prior["noise"]))

    def reward(self, key: jax.Array, action: jax.Array, task: GaussianTask) -> jax.Array:
        return task.means[action] + task.noise * jax.random.normal(key)
