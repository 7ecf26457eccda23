"""An agent that stands outside of the suite: a learner of bandits that explores now and then, and its bandit."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from engram.agents.common.experiment import Experiment
from engram.agents.common.spec import AgentSpec, Build, Panel, Play
from engram.envs import registry
from engram.envs.base import Environment
from engram.envs.spaces import Box, Discrete
from engram.errors import UnknownName

ALGORITHMS = ("greedy", "uniform")


@dataclass(frozen=True)
class Arms(Environment):
    """Episodes of one step; arm i pays i, give or take one."""

    arms: int = 4

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        reward = action + jax.random.uniform(key, minval=-1.0)
        return jnp.zeros(1), state, reward, jnp.ones((), bool), jnp.zeros((), bool), {}

    def observation_space(self, params):
        return Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(self.arms)

    def max_steps(self, params):
        return 1


@dataclass(frozen=True)
class ToySettings:
    """Settings of the learner."""

    explore: float = 0.2
    """Share of steps with a uniform action."""


@dataclass(frozen=True, kw_only=True)
class ToyExperiment(Experiment):
    """A learner of bandits."""

    agent: ClassVar[str] = "toy"
    choice: ClassVar[str] = "algorithm"

    algorithm: str = "greedy"
    """Algorithm: greedy or uniform."""
    toy: ToySettings = ToySettings()
    """Settings of the learner."""


class ToyState(struct.PyTreeNode):
    key: jax.Array
    sums: jax.Array
    pulls: jax.Array


@dataclass(frozen=True)
class Toy:
    """Pulls the arm of the greatest mean, or any arm where it explores."""

    env: Environment
    explore: float
    steps_per_update: int = 8

    def init(self, key):
        arms = self.env.action_space(self.env.default_params).n  # type: ignore[attr-defined]
        return ToyState(key, jnp.zeros(arms), jnp.zeros(arms))

    def pull(self, state: ToyState, key: jax.Array, explore: float) -> tuple[jax.Array, jax.Array]:
        """The arm and its reward."""
        toss, draw, step = jax.random.split(key, 3)
        best = jnp.argmax(state.sums / jnp.maximum(state.pulls, 1))
        arm = jnp.where(jax.random.uniform(toss) < explore, jax.random.randint(draw, (), 0, len(state.sums)), best)
        params = self.env.default_params
        return arm, self.env.step(step, self.env.reset(step, params)[1], arm, params)[2]

    def update(self, state):
        def one_step(state, _):
            key, now = jax.random.split(state.key)
            arm, reward = self.pull(state, now, self.explore)
            return ToyState(key, state.sums.at[arm].add(reward), state.pulls.at[arm].add(1)), reward

        state, rewards = jax.lax.scan(one_step, state, None, self.steps_per_update)
        return state, {"train/return": jnp.mean(rewards), "loss/spread": jnp.std(rewards)}

    def evaluate(self, state, key, axis_name=None):
        _, rewards = jax.vmap(lambda key: self.pull(state, key, 0.0))(jax.random.split(key, 16))
        return {"eval/return": jnp.mean(rewards), "eval/length": jnp.ones(())}

    def close(self):
        pass


def build(config: ToyExperiment, circumstances: Build) -> Toy:
    if config.algorithm not in ALGORITHMS:
        raise UnknownName.among("algorithm", config.algorithm, ALGORITHMS)
    explore = 1.0 if config.algorithm == "uniform" else config.toy.explore
    return Toy(registry.make(config.env), explore)


TOY = AgentSpec(
    experiment=ToyExperiment,
    build=build,
    panels=(Panel("train/return", "reward of a pull", dots="eval/return"),),
    columns=ALGORITHMS,
    play=Play(lambda config, episodes, greedy: config, is_greedy=lambda config: True, episodes=lambda config: 16),
)
"""For a line in the registry, or an entry point, of the name `toy`."""


@dataclass(frozen=True, kw_only=True)
class NamedExperiment(ToyExperiment):
    """The same, found by its module."""

    agent: ClassVar[str] = "tests.toy_agent:SPEC"


SPEC: Any = replace(TOY, experiment=NamedExperiment)
