"""The parts of PPO one by one: the loss against a float64 mirror, schedules, bootstrapping, evaluation."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from engram.agents.ppo.agent import Batch
from engram.envs.base import NoParams, VectorEnvironment
from engram.envs.spaces import Box, Discrete
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, NormaliseObservation, NormaliseParams
from tests.agents.ppo.probes import ActOnObservation, Recall
from tests.agents.ppo.test_ppo import SETTINGS, make_ppo, train, values, vectorised


def loss_by_definition(logits, value, batch, settings, entropy_weight) -> dict[str, float]:
    """Schulman et al. 2017, eq. 7 and 9, over the valid rows alone, in float64."""
    rows = np.asarray(batch.valid)
    logits, value = np.asarray(logits, float)[rows], np.asarray(value, float)[rows]
    old_value, advantage = np.asarray(batch.value, float)[rows], np.asarray(batch.advantage, float)[rows]
    target = old_value + advantage
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = p[np.arange(len(p)), np.asarray(batch.action)[rows]]
    ratio = chosen / np.exp(np.asarray(batch.log_prob, float)[rows])
    if settings.normalise_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = -np.minimum(ratio * advantage, np.clip(ratio, 1 - settings.clip, 1 + settings.clip) * advantage).mean()
    error = (value - target) ** 2
    if settings.value_clip:
        near = old_value + np.clip(value - old_value, -settings.value_clip, settings.value_clip)
        error = np.maximum(error, (near - target) ** 2)
    entropy = -(p * np.log(p)).sum(-1).mean()
    total = policy + settings.value_coefficient * error.mean() / 2 - entropy_weight * entropy
    return {
        "loss/total": total,
        "loss/policy": policy,
        "loss/value": error.mean() / 2,
        "loss/entropy": entropy,
        "loss/kl": (ratio - 1 - np.log(ratio)).mean(),
        "loss/clip_fraction": (abs(ratio - 1) > settings.clip).mean(),
        "loss/ratio_error": abs(ratio - 1).max(),
    }


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("value_clip", [0.0, 0.2])
def test_loss_equals_its_definition(normalise, value_clip):
    settings = replace(SETTINGS, normalise_advantage=normalise, value_clip=value_clip)
    agent = make_ppo(vectorised(ActOnObservation(1)), "none", 1, settings)
    state = jax.jit(agent.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    T, B = 7, 5
    valid = rng.random((T, B)) < 0.7
    batch = Batch(
        obs=jnp.asarray(rng.normal(size=(T, B, 2)), jnp.float32),
        reset=jnp.zeros((T, B), bool),
        action=jnp.asarray(rng.integers(2, size=(T, B))),
        log_prob=jnp.asarray(np.log(rng.uniform(0.3, 0.7, (T, B))), jnp.float32),
        value=jnp.asarray(rng.normal(size=(T, B)), jnp.float32),
        # Rows that did not happen hold nonsense: it must not get through.
        advantage=jnp.asarray(np.where(valid, rng.normal(2.0, 3.0, (T, B)), 1e6), jnp.float32),
        valid=jnp.asarray(valid),
    )
    memory = agent.network.initial_state(B)
    _, metrics = jax.jit(agent.loss)(state.params, memory, batch, 0.1)
    out: Any = agent.network.apply({"params": state.params}, memory, batch.obs, batch.reset)
    for name, expected in loss_by_definition(out[1].logits, out[2], batch, settings, 0.1).items():
        assert float(metrics[name]) == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_schedules_run_from_start_to_end():
    settings = replace(SETTINGS, learning_rate=1e-3, learning_rate_end=2e-4, entropy=0.1, entropy_end=0.0)
    _, metrics = train(make_ppo(vectorised(ActOnObservation(1)), "none", 4, settings), 5)
    np.testing.assert_allclose(metrics["train/learning_rate"], [1e-3, 8e-4, 6e-4, 4e-4, 2e-4], rtol=1e-5)
    np.testing.assert_allclose(metrics["train/entropy_weight"], [0.1, 0.075, 0.05, 0.025, 0.0], atol=1e-7)


class PaidCue(Recall):
    """The cue shows at the first step alone and is the reward of every step; episodes are cut."""

    def reward(self, state, action):
        return state.cue

    def truncates(self):
        return True


@pytest.mark.slow
def test_the_value_of_a_final_observation_knows_what_the_memory_knows():
    """Cut for ever, the value is 10 x the cue; a bootstrap from a cleared memory could only see 0, and give 2.7."""
    agent = make_ppo(vectorised(PaidCue(3)), "gru", 300)
    state, _ = train(agent, 300)
    for cue in (1.0, -1.0):
        assert cue * values(agent, state, [[cue, 0.0], [0.0, 0.0], [0.0, 1.0]])[0] > 6.0


class CountedState(struct.PyTreeNode):
    episode: jax.Array
    time: jax.Array


@dataclass(frozen=True)
class FirstEpisodePays(VectorEnvironment):
    """Environment b has episodes of b + 1 steps; each ends with reward 1 the first time and 0 ever after."""

    num_envs: int

    @property
    def name(self):
        return "FirstEpisodePays"

    @property
    def default_params(self):
        return NoParams()

    def reset(self, key, params):
        zeros = jnp.zeros(self.num_envs, jnp.int32)
        return jnp.zeros((self.num_envs, 1)), CountedState(zeros, zeros)

    def step(self, key, state, action, params):
        time = state.time + 1
        done = time > jnp.arange(self.num_envs)
        reward = jnp.where(done & (state.episode == 0), 1.0, 0.0)
        obs = jnp.zeros((self.num_envs, 1))
        info = {"reset": done, "valid": jnp.ones_like(done), "final_observation": obs}
        state = CountedState(state.episode + done, jnp.where(done, 0, time))
        return obs, state, reward, done, jnp.zeros_like(done), info

    def observation_space(self, params):
        return Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(2)

    def max_steps(self, params):
        return self.num_envs


def test_evaluation_counts_the_first_episode_of_each_environment():
    agent = make_ppo(FirstEpisodePays(SETTINGS.num_envs), "none", 1)
    state = jax.jit(agent.init)(jax.random.key(0))
    metrics = jax.jit(agent.evaluate)(state, jax.random.key(1))
    assert float(metrics["eval/return"]) == 1.0
    assert float(metrics["eval/length"]) == (SETTINGS.num_envs + 1) / 2
    assert float(metrics["eval/finished"]) == 1.0


def test_evaluation_normalises_as_training_did():
    inner = FlattenObservation(EpisodeStatistics(vectorised(ActOnObservation(1))))
    agent = make_ppo(vectorised(ActOnObservation(1)), "none", 3)
    agent = replace(agent, env=NormaliseObservation(inner), eval_env=NormaliseObservation(inner))
    state, _ = train(agent, 3)
    params, _ = agent._start_play(state, jax.random.key(1))
    assert isinstance(params, NormaliseParams)
    assert params.statistics is not None
    assert float(params.statistics.count) == SETTINGS.num_envs * (1 + 3 * SETTINGS.num_steps)
