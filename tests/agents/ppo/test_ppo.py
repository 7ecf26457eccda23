"""PPO on environments with known answers, for every registered memory."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.common.control_flow import when
from engram.agents.ppo.agent import PPO, PPOSettings
from engram.agents.ppo.networks import ActorCritic
from engram.configs.presets import PRESETS
from engram.envs.spaces import Box, MultiDiscrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, NormaliseReward
from engram.memory import MEMORIES, make_memory
from engram.memory.para import Para
from tests.agents.ppo.probes import ActOnObservation, ConstantReward, CutConstantReward, OneOf, Recall, ResetLeak

DISCOUNT = 0.9
SETTINGS = PPOSettings(
    num_envs=16,
    num_steps=24,
    epochs=4,
    minibatches=2,
    learning_rate=5e-3,
    learning_rate_end=5e-4,
    adam_eps=1e-5,
    max_grad_norm=1.0,
    discount=DISCOUNT,
    gae_lambda=0.95,
    bootstrap_truncated=True,
    clip=0.2,
    value_clip=0.0,
    value_coefficient=0.5,
    entropy=0.003,
    entropy_end=0.0,
    normalise_advantage=True,
    eval_envs=32,
    eval_greedy=True,
)


def make_ppo(env, memory: str, updates: int, settings: PPOSettings = SETTINGS) -> PPO:
    env = FlattenObservation(EpisodeStatistics(env))
    network = ActorCritic(
        memory=make_memory(memory, 16),
        action_space=env.action_space(env.default_params),
        encoder=(),
        heads=(),
        activation="tanh",
        head_scale=1.0,
    )
    return PPO(env, env, network, settings, updates)


def train(agent: PPO, updates: int):
    """One compiled program: the whole of training."""

    @jax.jit
    def run(key):
        return jax.lax.scan(lambda s, _: agent.update(s), agent.init(key), None, length=updates)

    return run(jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def values_of(network: ActorCritic, params: Any, obs: jax.Array, reset: jax.Array) -> jax.Array:
    out: Any = network.apply({"params": params}, network.initial_state(1), obs, reset)
    return out[2][:, 0]


def values(agent: PPO, state, observations: list[list[float]]) -> np.ndarray:
    """Values of an episode's observations, from its start."""
    obs = jnp.asarray(observations)[:, None]
    return np.asarray(values_of(agent.network, state.params, obs, jnp.arange(len(observations))[:, None] == 0))


def vectorised(probe) -> Vectorised:
    return Vectorised(probe, SETTINGS.num_envs)


PROBES = (vectorised(Recall(4)), ResetLeak(SETTINGS.num_envs), vectorised(ConstantReward(2)))
RUNS = np.array([0, 0, 0, 0, 0, 1, 2])  # the probe of each run: five seeds of the first, one of the others
RECALLS, LEAK, CONSTANT = slice(5), 5, 6
UPDATES = 150


def slow_but_none(*memories: str) -> list:
    """Parameters of a test: it learns, so all but the cheapest are slow."""
    return [name if name == "none" else pytest.param(name, marks=pytest.mark.slow) for name in memories]


EVERY = slow_but_none(*MEMORIES)


@cache
def trained(memory: str):
    """One compiled program trains on all the probes -> agent, last states, final returns and metrics `[RUNS, ...]`."""

    @jax.jit
    @jax.vmap
    def run(seed, probe):
        agent = make_ppo(OneOf(PROBES, probe), memory, UPDATES)
        state, metrics = jax.lax.scan(
            lambda s, _: agent.update(s), agent.init(jax.random.key(seed)), None, length=UPDATES
        )
        return state, agent.evaluate(state, jax.random.key(1))["eval/return"], metrics

    seeds = np.where(RUNS == 0, np.arange(len(RUNS)), 0)
    return make_ppo(PROBES[0], memory, UPDATES), *run(seeds, RUNS)


def late_return(metrics, runs) -> float:
    """Mean return of the episodes of the last 20 updates."""
    return float(metrics["train/return_sum"][runs, -20:].sum() / metrics["train/episodes"][runs, -20:].sum())


@pytest.mark.parametrize("memory", EVERY)
def test_values_of_constant_reward_are_discounted(memory):
    agent, states, _, _ = trained(memory)
    state = jax.tree.map(lambda x: x[CONSTANT], states)
    for cue in (-1.0, 1.0):
        np.testing.assert_allclose(values(agent, state, [[cue, 0.0], [cue, 1.0]]), [1 + DISCOUNT, 1.0], atol=0.15)


@pytest.mark.parametrize("memory", EVERY)
def test_first_ratio_is_one(memory):
    """The learner's first minibatch sees the policy that acted: in every update, over resets and chunk boundaries."""
    _, _, _, metrics = trained(memory)
    assert float(jnp.max(metrics["loss/ratio_error"])) < 3e-5  # the rounding of 150 updates, mamba3: 1.2e-5


def test_first_ratio_is_one_in_rollouts_that_begin_within_episodes():
    """Episodes of 4 steps, rollouts of 5: the fast share of what the test above says of every memory."""
    settings = replace(SETTINGS, num_envs=8, num_steps=5, epochs=1)
    _, metrics = train(make_ppo(Vectorised(Recall(4), 8), "gru", 3, settings), 3)
    assert float(jnp.max(metrics["loss/ratio_error"])) < 1e-5
    assert float(jnp.min(metrics["loss/grad_norm"])) > 0


@pytest.mark.slow
def test_numbers_that_a_memory_leaves_are_logged():
    """Iterations of Newton's method: the mean of the layers, of the minibatches and of the epochs."""
    settings = replace(SETTINGS, num_envs=4, num_steps=5, epochs=1)
    agent = make_ppo(Vectorised(Recall(4), 4), "none", 1, settings)
    layers = tuple(Para(16, backend=backend) for backend in ("newton", "xla"))
    memory = make_memory("para", 16, 2).clone(layers=layers)
    _, metrics = train(replace(agent, network=agent.network.clone(memory=memory)), 1)
    assert 1 <= 2 * float(metrics["loss/newton_iterations"][0]) <= 6  # the other layer has none


@pytest.mark.parametrize("memory", EVERY)
def test_recalls_a_cue_after_three_steps(memory):
    """The middle one of five seeds: `gla` misses the cue in 3 of 24, which of them the last bits of sums decide."""
    _, _, scores, metrics = trained(memory)
    if memory == "none":
        assert abs(late_return(metrics, RECALLS) - 0.5) < 0.1, "without memory only chance is possible"
    else:
        assert float(jnp.median(scores[RECALLS])) > 0.95


@pytest.mark.parametrize("memory", EVERY)
def test_nothing_leaks_through_a_reset(memory):
    """A leaking memory would earn 1 where a clean one can only earn 0."""
    # 20 updates of 16 x 12 episodes of +-1: standard error 0.016.
    assert abs(late_return(trained(memory)[3], LEAK)) < 0.08


@pytest.mark.slow
def test_the_leak_detector_can_detect():
    """The same stream as one endless episode: a memory that keeps the bit earns it."""
    agent = make_ppo(ResetLeak(SETTINGS.num_envs, marked=False), "gru", 150)

    @jax.jit
    def late_reward(key):
        state, _ = jax.lax.scan(lambda s, _: agent.update(s), agent.init(key), None, length=150)
        _, rollout = agent._collect(state, jax.random.key(1))
        return jnp.mean(rollout.reward) * 2  # every second step pays

    assert float(late_reward(jax.random.key(0))) > 0.9


@pytest.mark.parametrize("memory", slow_but_none("none", "s5"))
def test_acts_on_the_observation(memory):
    agent = make_ppo(vectorised(ActOnObservation(1)), memory, 40)
    state, _ = train(agent, 40)
    assert float(jax.jit(agent.evaluate)(state, jax.random.key(1))["eval/return"]) == 1.0


@pytest.mark.slow
def test_truncated_episodes_bootstrap_from_their_final_observation():
    """Reward 1 for ever, cut every three steps: the value is 1 / (1 - discount) = 10, not 1 + 0.9 + 0.81."""
    agent = make_ppo(vectorised(CutConstantReward(3)), "none", 300)
    state, _ = train(agent, 300)
    episode = [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    np.testing.assert_allclose(values(agent, state, episode), 1 / (1 - DISCOUNT), rtol=0.1)


@pytest.mark.slow
def test_limits_can_be_treated_as_ends():
    """The same without bootstrapping: at the last step the value is 1, before it 1.9 or 2.71 (which look the same)."""
    settings = replace(SETTINGS, bootstrap_truncated=False)
    agent = make_ppo(vectorised(CutConstantReward(3)), "none", 300, settings)
    state, _ = train(agent, 300)
    first, second, last = values(agent, state, [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert first == second == pytest.approx((2.71 + 1.9) / 2, rel=0.1)
    assert last == pytest.approx(1.0, rel=0.1)


class TwoSwitches(ActOnObservation):
    """Multi-discrete: reward for setting the first switch to the cue and the second to 2."""

    def step(self, key, state, action, params):
        right = (jnp.where(action[0] == 1, 1.0, -1.0) == state.cue) & (action[1] == 2)
        obs, state, _, terminated, truncated, info = super().step(key, state, action[0], params)
        return obs, state, right.astype(jnp.float32), terminated, truncated, info

    def action_space(self, params):
        return MultiDiscrete((2, 3))


class Reach(ActOnObservation):
    """Continuous: minus the squared distance to (cue / 2, 0.25)."""

    def step(self, key, state, action, params):
        target = jnp.stack([state.cue / 2, jnp.asarray(0.25)])
        obs, state, _, terminated, truncated, info = super().step(key, state, jnp.zeros((), jnp.int32), params)
        return obs, state, -jnp.sum((action - target) ** 2), terminated, truncated, info

    def action_space(self, params):
        return Box(-1.0, 1.0, (2,))


@pytest.mark.slow
def test_noise_moves_a_policy_by_the_step_size_where_rewards_say_nothing_of_actions():
    """Standardised advantages are then noise. Nats that 16 updates take a policy away from chance, as documented."""

    def lost(learning_rate):
        settings = replace(PRESETS["gymnax"].ppo, num_envs=16, learning_rate=learning_rate)  # type: ignore[attr-defined]
        agent = make_ppo(Vectorised(CutConstantReward(500), 16), "none", 60, settings)
        agent = replace(agent, env=NormaliseReward(agent.env, settings.discount))

        @jax.jit
        @jax.vmap
        def entropies(key):
            return jax.lax.scan(lambda s, _: agent.update(s), agent.init(key), None, length=16)[1]["loss/entropy"]

        return float(np.log(2) - entropies(jax.random.split(jax.random.key(0), 8))[:, -1].mean())

    assert lost(2e-3) == pytest.approx(0.10, abs=0.04)
    assert lost(5e-4) == pytest.approx(0.02, abs=0.01)


@pytest.mark.slow
def test_multi_discrete_actions():
    agent = make_ppo(vectorised(TwoSwitches(1)), "none", 60)
    state, _ = train(agent, 60)
    assert float(jax.jit(agent.evaluate)(state, jax.random.key(1))["eval/return"]) == 1.0


@pytest.mark.slow
def test_continuous_actions():
    agent = make_ppo(vectorised(Reach(1)), "none", 200)
    state, _ = train(agent, 200)
    assert float(jax.jit(agent.evaluate)(state, jax.random.key(1))["eval/return"]) > -0.02


def test_when_runs_only_where_needed():
    calls = []

    def compute():
        jax.debug.callback(lambda: calls.append(1))
        return jnp.ones(3)

    chosen = jax.jit(lambda c: when(c, compute, jnp.zeros(3)))
    np.testing.assert_array_equal(chosen(False), 0.0)
    jax.effects_barrier()
    assert not calls
    np.testing.assert_array_equal(chosen(True), 1.0)
    batched = jax.vmap(lambda c: when(c, lambda: jnp.ones(3), jnp.zeros(3)))(jnp.array([True, False]))
    np.testing.assert_array_equal(batched, [[1.0] * 3, [0.0] * 3])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("minibatches", 3, "must divide"), ("num_steps", 0, "at least 1"), ("discount", 1.5, "must lie in")],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **{field: value})
