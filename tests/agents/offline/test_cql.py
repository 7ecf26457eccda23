"""CQL: losses and gradients in float64, the conservative term against quadrature, lower bounds of exact values."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from engram.agents.offline.cql import CQL, CQLSettings, log_density_of, squashed
from engram.envs.spaces import Box, Discrete
from tests.agents.offline import cases
from tests.oracles import offline as mirror

CONTINUOUS = Box(-1.0, 1.0, (1,))


def settings(**changed) -> CQLSettings:
    return CQLSettings(**{**cases.VALUE, "weight": 0.5, "policy_learning_rate": 0.01, "samples": 4, **changed})


@cache
def on_grid(weight: float):
    """Agent and state after training, and the smaller of both values of all actions in all cells."""
    agent = CQL.of(cases.grid_episodes(), cases.grid_environment(), settings(weight=weight))
    state = cases.trained(agent, 2000)
    values = agent.critic.apply(
        {"params": state.params["critic"]}, jnp.asarray(cases.CELLS, jnp.float32), method="all_actions"
    )
    return agent, state, np.asarray(values).min(0)


@cache
def continuous(**changed) -> CQL:
    kind = {"action_low": -np.ones(1), "action_high": np.ones(1)}
    episodes = cases.one_step_episodes(np.eye(4, 3), np.zeros((4, 1), np.float32), np.zeros(4), **kind)
    return CQL.of(episodes, cases.playground(3, CONTINUOUS), settings(hidden=(4,), **changed))


@cache
def discrete() -> CQL:
    episodes = cases.one_step_episodes(np.eye(4, 3), np.zeros(4, np.int32), np.zeros(4), num_actions=3)
    return CQL.of(episodes, cases.playground(3, Discrete(3)), settings(hidden=(4,)))


def test_discrete_loss_and_gradient_are_those_of_equation_4():
    agent = discrete()
    batch = cases.transitions(0, 24, 3, Discrete(3))
    params, target = cases.random_parameters(agent, 1)
    gradient, metrics = cases.jit_once(agent.gradient)(params, target, batch, jax.random.key(0))
    p, slow, b = mirror.float64((params, target, batch))
    future = cases.GAMMA * np.where(b.terminal, 0.0, mirror.every(slow["critic"], b.next_obs).min(0).max(-1))

    def parts(params):
        every, taken = mirror.every(params, b.obs), mirror.critic(params, b.obs, b.action)
        bellman = np.sum(np.mean((taken - b.reward - future) ** 2, axis=1))
        return bellman, np.sum(np.mean(np.log(np.exp(every).sum(-1)) - taken, axis=1))

    np.testing.assert_allclose(metrics["loss/critic"], parts(p["critic"])[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/conservative"], parts(p["critic"])[1], rtol=1e-4)
    expected = mirror.numeric_gradient(lambda params: parts(params) @ np.array([1.0, 0.5]), p["critic"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), gradient["critic"], expected)


def test_greedy_actions_have_the_largest_smaller_value_or_are_the_policys_mean():
    obs = np.random.default_rng(5).normal(size=(40, 3))
    agent = discrete()
    params = cases.random_parameters(agent, 2)[0]
    values = mirror.every(mirror.float64(params)["critic"], obs).min(0)
    np.testing.assert_array_equal(cases.greedy(agent, params, obs), values.argmax(-1))
    assert len(np.unique(values.argmax(-1))) == 3
    agent = continuous()
    params = cases.random_parameters(agent, 2)[0]
    mean = mirror.network(mirror.float64(params)["policy"], obs)[:, :1]
    np.testing.assert_allclose(cases.greedy(agent, params, obs), np.tanh(mean), atol=1e-5)


def test_squashed_samples_have_the_density_that_is_returned():
    """tanh of a Gaussian, by the change of variables in float64."""
    out = jnp.array([[0.3, -0.8, -1.0, 0.2]])
    action, log_prob = cases.jit_once(squashed, static_argnums=2)(out, jax.random.key(0), 50)
    a = np.asarray(action, np.float64)[:, 0]
    expected = scipy.stats.norm.logpdf(np.arctanh(a), [0.3, -0.8], np.exp([-1.0, 0.2])) - np.log(1 - a**2)
    near = (np.abs(a) < 0.99).all(1)  # arctanh of a float32 near 1 has few digits
    assert near.sum() > 30
    np.testing.assert_allclose(log_prob[near, 0], expected.sum(1)[near], atol=2e-3)


def test_the_density_of_a_given_action_is_that_of_its_sample():
    out = jnp.array([[0.3, -0.8, -1.0, 0.2]])
    action, log_prob = cases.jit_once(squashed, static_argnums=2)(out, jax.random.key(0), 50)
    near = (np.abs(action) < 0.99).all(-1)
    found = cases.jit_once(log_density_of)(out, action)
    np.testing.assert_allclose(np.asarray(found)[near], np.asarray(log_prob)[near], atol=2e-3)
    at_bounds, gradient = jax.jit(jax.value_and_grad(lambda out: log_density_of(out, jnp.array([[1.0, -1.0]])).sum()))(
        out
    )
    assert np.isfinite(at_bounds)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_the_policy_imitates_before_it_seeks_values():
    """At first its loss is that of cloning with SAC's entropy, in float64; those of the critics never change."""
    agent, batch = continuous(clone_steps=7), cases.transitions(0, 24, 3, CONTINUOUS)
    params, target = cases.random_parameters(agent, 1)
    losses = cases.jit_once(agent.loss)
    early, late, later = (losses(params, target, batch, jax.random.key(0), n)[1] for n in (6, 7, 8))
    for name in early:
        assert late[name] == later[name]
        assert (early[name] == late[name]) == (name != "loss/policy")
    p, b = mirror.float64((params, batch))
    mean, log_std = np.split(mirror.network(p["policy"], b.obs), 2, axis=-1)
    u = np.arctanh(b.action)
    density = scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - b.action**2)
    expected = np.exp(p["log_temperature"]) * -float(early["loss/entropy"]) - density.mean()
    np.testing.assert_allclose(early["loss/policy"], expected, rtol=1e-4)


@pytest.mark.slow
def test_an_imitating_policy_takes_the_actions_of_the_data():
    """Each state has one action in the data, 0.5 or -0.5, and a reward that grows with the action."""
    kind = {"action_low": -np.ones(1), "action_high": np.ones(1)}
    obs, action = np.eye(4, 3), np.array([[0.5], [-0.5], [0.5], [-0.5]], np.float32)
    episodes = cases.one_step_episodes(obs, action, 10 * action[:, 0], **kind)
    options = {"hidden": (16,), "policy_learning_rate": 0.01, "weight": 0.0, "clone_steps": 2000}
    agent = CQL.of(episodes, cases.playground(3, CONTINUOUS), settings(**options))
    state = cases.trained(agent, 1500)
    np.testing.assert_allclose(cases.greedy(agent, state.params, obs), action, atol=0.15)


def test_conservative_term_of_continuous_actions_is_an_integral():
    """Against quadrature over the actions, value and gradient, where nothing is bootstrapped."""
    agent, batch = continuous(samples=3000, discount=0.0), cases.transitions(0, 8, 3, CONTINUOUS)
    params, target = cases.random_parameters(agent, 1)
    # Near 0: with densities that are all but 0 somewhere, importance sampling is slow.
    params["policy"] = jax.tree.map(lambda x: 0.1 * x, params["policy"])
    gradient, metrics = cases.jit_once(agent.gradient)(params, target, batch, jax.random.key(0))
    p, b = mirror.float64((params["critic"], batch))
    nodes, weights = np.polynomial.legendre.leggauss(64)
    obs, grid = np.repeat(b.obs, 64, axis=0), np.tile(nodes, 8)[:, None]

    def parts(params):
        taken = mirror.critic(params, b.obs, b.action)
        integral = np.exp(mirror.critic(params, obs, grid)).reshape(2, 8, 64) @ weights
        return np.sum(np.mean((taken - b.reward) ** 2, axis=1)), np.sum(np.mean(np.log(integral) - taken, axis=1))

    np.testing.assert_allclose(metrics["loss/critic"], parts(p)[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/conservative"], parts(p)[1], atol=0.05)
    expected = mirror.numeric_gradient(lambda params: parts(params) @ np.array([1.0, 0.5]), p)
    jax.tree.map(partial(np.testing.assert_allclose, atol=0.03), gradient["critic"], expected)
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 0.5


@pytest.mark.slow
def test_continuous_target_is_the_smaller_slow_value_of_the_policys_next_action_without_entropy():
    agent, batch = continuous(), cases.transitions(3, 16, 3, CONTINUOUS)
    params, target = cases.random_parameters(agent, 1)
    params["policy"]["Dense_1"]["bias"] = jnp.array([0.0, -500.0])  # all but certain: a deviation of e^-20
    gradient, metrics = cases.jit_once(agent.gradient)(params, target, batch, jax.random.key(0))
    p, slow, b = mirror.float64((params, target, batch))
    action = np.tanh(mirror.network(p["policy"], b.next_obs)[:, :1])
    assert np.ptp(action) > 0.5
    goal = b.reward + cases.GAMMA * np.where(b.terminal, 0, mirror.critic(slow["critic"], b.next_obs, action).min(0))
    taken = mirror.critic(p["critic"], b.obs, b.action)
    np.testing.assert_allclose(metrics["loss/critic"], np.sum(np.mean((taken - goal) ** 2, axis=1)), rtol=1e-4)
    # So certain a policy is to become less so: the temperature, which pays for entropy, is to rise.
    assert gradient["log_temperature"] < 0


@pytest.mark.slow
def test_values_are_lower_bounds_where_plain_ones_are_not():
    """Theorem 3.2 on the grid. In the true MDP all values are exact; of some actions the data hold nothing."""
    true = cases.optimal_values(np.ones((cases.STATES, cases.ACTIONS), bool))[: cases.GOAL]
    unseen = ~cases.SUPPORT[: cases.GOAL]
    values = {weight: on_grid(weight)[2] for weight in (0.0, 0.5)}
    for weight, bounded in ((0.0, False), (0.5, True)):
        policy = np.append(values[weight].argmax(1), 0)
        above = values[weight].max(1) - cases.policy_values(policy)[: cases.GOAL]
        assert (above <= 0).all() == bounded
    assert np.mean(values[0.0][unseen] - true[unseen]) > 0.5
    assert np.all(values[0.5][unseen] < true[unseen])


@pytest.mark.slow
def test_greedy_policy_is_the_best_that_the_data_hold():
    agent, state, _ = on_grid(0.5)
    np.testing.assert_array_equal(cases.greedy(agent, state.params, cases.CELLS), cases.BEST)
    agent, state, _ = on_grid(0.0)
    assert np.any(cases.greedy(agent, state.params, cases.CELLS) != cases.BEST)


@pytest.mark.parametrize("changed", [{"weight": -1.0}, {"samples": 0}, {"policy_learning_rate": 0.0}])
def test_settings_are_refused(changed):
    with pytest.raises(ValueError, match=f"cql.{next(iter(changed))} must"):
        settings(**changed)
