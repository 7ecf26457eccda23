"""IQL: losses and gradients in float64, expectiles in closed form, the best that the data hold."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.offline.base import Policy
from engram.agents.offline.build import make_values
from engram.agents.offline.iql import IQL, IQLSettings
from engram.api import make_config
from engram.envs.datasets.swing_up import noisy
from engram.envs.spaces import Box, Discrete
from tests.agents.offline import cases
from tests.oracles import offline as mirror

IQL_SETTINGS = {"expectile": 0.8, "temperature": 3.0, "greatest_weight": 20.0, "decay_steps": 0}
SPACES: dict[str, Discrete | Box] = {"discrete": Discrete(3), "continuous": Box(-1.0, 1.0, (2,))}


def settings(**changed) -> IQLSettings:
    return IQLSettings(**{**cases.VALUE, **IQL_SETTINGS, **changed})


@cache
def agent_of(space: Discrete | Box) -> IQL:
    n = 4
    if isinstance(space, Discrete):
        action, kind = np.zeros(n, np.int32), {"num_actions": space.n}
    else:
        action, kind = np.zeros((n, 2), np.float32), {"action_low": -np.ones(2), "action_high": np.ones(2)}
    episodes = cases.one_step_episodes(np.eye(n, 3), action, np.zeros(n), **kind)
    return IQL.of(episodes, cases.playground(3, space), settings(hidden=(4,)))


@pytest.mark.parametrize("kind", SPACES)
def test_losses_and_gradients_are_those_of_equations_5_to_7(kind):
    space = SPACES[kind]
    agent, batch = agent_of(space), cases.transitions(0, 24, 3, space)
    params, target = cases.random_parameters(agent, 0)
    gradient, metrics = cases.jit_once(agent.gradient)(params, target, batch, jax.random.key(0))
    p, slow, b = mirror.float64((params, target, batch))
    future = cases.GAMMA * np.where(b.terminal, 0.0, mirror.network(p["value"], b.next_obs)[:, 0])
    q = mirror.critic(slow["critic"], b.obs, b.action).min(0)
    v = mirror.network(p["value"], b.obs)[:, 0]
    weight = np.minimum(np.exp(3.0 * (q - v)), 20.0)
    assert (weight == 20.0).any()  # the cut is exercised
    assert (weight < 20.0).any()

    def value_loss(params):
        u = q - mirror.network(params, b.obs)[:, 0]
        return np.mean(np.where(u < 0, 0.2, 0.8) * u**2)

    def critic_loss(params):
        return np.sum(np.mean((mirror.critic(params, b.obs, b.action) - b.reward - future) ** 2, axis=1))

    def policy_loss(params):
        return -np.mean(weight * mirror.log_prob(params, b.obs, b.action))

    for name, loss in (("value", value_loss), ("critic", critic_loss), ("policy", policy_loss)):
        np.testing.assert_allclose(metrics[f"loss/{name}"], loss(p[name]), rtol=1e-4)
        expected = mirror.numeric_gradient(loss, p[name])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), gradient[name], expected)


@pytest.mark.slow
def test_value_becomes_the_expectile_of_the_actions():
    """One state, actions with rewards 0, 1 and 3 taken with probabilities 0.5, 0.3 and 0.2."""
    rewards, shares = np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.3, 0.2])
    action = np.repeat([0, 1, 2], (shares * 1000).astype(int)).astype(np.int32)
    episodes = cases.one_step_episodes(np.ones((1000, 1)), action, rewards[action], num_actions=3)
    changed = {"expectile": 0.9, "batch_size": 1024, "learning_rate": 0.01}
    agent = IQL.of(episodes, cases.playground(1, Discrete(3)), settings(**changed))
    state = cases.trained(agent, 1500)
    value = agent._value(state.params, jnp.ones((1, 1)))[0]
    # The expectile solves tau E[(r - v)+] = (1 - tau) E[(v - r)+]: with v between 1 and 3 it is a linear equation.
    exact = (0.9 * 0.2 * 3 + 0.1 * 0.3 * 1) / (0.9 * 0.2 + 0.1 * (0.3 + 0.5))
    assert 1 < exact < 3
    np.testing.assert_allclose(value, exact, atol=0.04)


@pytest.mark.slow
def test_greedy_policy_is_the_best_that_the_data_hold():
    agent = IQL.of(cases.grid_episodes(), cases.grid_environment(), settings(expectile=0.9))
    np.testing.assert_array_equal(cases.greedy(agent, cases.trained(agent, 1500).params, cases.CELLS), cases.BEST)


def test_step_size_of_the_policy_decays_and_that_of_the_others_stays():
    """With constant gradients Adam's steps have the size of the step size: a cosine to 0 over 10 steps."""
    agent = IQL.of(cases.grid_episodes(), cases.grid_environment(), settings(learning_rate=0.1, decay_steps=10))
    params: Any = {"policy": jnp.zeros(()), "critic": jnp.zeros(()), "value": jnp.zeros(())}
    state, sizes = agent.optimiser.init(params), []
    for _ in range(11):
        step, state = agent.optimiser.update(jax.tree.map(jnp.ones_like, params), state)
        sizes.append(jax.tree.leaves(step))  # critic, policy, value
    critic, policy, value = -np.array(sizes).T
    np.testing.assert_allclose(policy, 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-6)
    np.testing.assert_allclose([critic, value], 0.1, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "steps"), [({}, 30), ({"decay_steps": 0}, 0), ({"decay_steps": 7}, 7)])
def test_the_schedule_is_that_of_the_run(given, steps):
    config: Any = make_config("offline", env="gymnax/Pendulum-v1", total_steps=30, iql=given)[1]
    agent: Any = make_values(config, episodes=noisy(1, 0, False, "{}"))
    assert agent.settings.decay_steps == steps


@pytest.mark.slow
def test_dropout_is_of_the_policy_in_training_alone():
    agent, plain = agent_of(SPACES["continuous"]), agent_of(SPACES["continuous"])
    agent = replace(agent, settings=settings(hidden=(4,), dropout=0.5))
    params, target = cases.random_parameters(agent, 0)
    batch = cases.transitions(0, 24, 3, SPACES["continuous"])
    run = cases.jit_once(lambda key: agent.loss(params, target, batch, key)[1])
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    without = cases.jit_once(lambda: plain.loss(params, target, batch, jax.random.key(0))[1])()
    assert one["loss/policy"] != other["loss/policy"]
    for name in ("loss/value", "loss/critic"):
        assert one[name] == other[name] == without[name]
    # The hidden layer's ReLUs are dropped half of the time, and twice as large else: unbiased before the tanh.
    free = Policy((4,), SPACES["continuous"], bounded=False, dropout=0.5)

    def mean_of(key):
        out: Any = free.apply({"params": params["policy"]}, batch.obs, training=True, rngs={"dropout": key})
        return out.mean

    means = jax.jit(jax.vmap(mean_of))(jax.random.split(jax.random.key(2), 4000))
    still: Any = free.apply({"params": params["policy"]}, batch.obs)
    np.testing.assert_allclose(means.mean(0), still.mean, atol=0.07 * np.abs(still.mean).max())
    assert np.asarray(means).std(0).max() > 0.01
    one, other = (a.act(params, (), batch.obs, jnp.zeros(24), jnp.zeros(24, bool))[1] for a in (agent, plain))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "changed",
    [{"expectile": 1.0}, {"temperature": -1.0}, {"greatest_weight": 0.0}, {"decay_steps": -1}, {"dropout": 1.0}],
)
def test_settings_are_refused(changed):
    with pytest.raises(ValueError, match=f"iql.{next(iter(changed))} must"):
        settings(**changed)
