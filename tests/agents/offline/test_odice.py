"""ODICE: the conjugate by its definition, gradients in float64, the projection, the best that the data hold."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from engram.agents.offline.odice import ODICE, ODICESettings, conjugate, orthogonalised
from engram.envs.spaces import Box, Discrete
from tests.agents.offline import cases
from tests.oracles import offline as mirror

SPACE, LAMBDA, ETA = Discrete(3), 0.6, 0.7


def settings(**changed) -> ODICESettings:
    rest = {
        "policy_hidden": (4,),
        "policy_weight_decay": 0.0,
        "residual_weight": LAMBDA,
        "eta": ETA,
        "variant": "orthogonal",
        "layer_norm": True,
        "bounded": False,
    }
    return ODICESettings(**{**cases.VALUE, "hidden": (4,), **rest, **changed})


@cache
def agent_of(**changed) -> ODICE:
    episodes = cases.one_step_episodes(np.eye(4, 3), np.zeros(4, np.int32), np.zeros(4), num_actions=3)
    return ODICE.of(episodes, cases.playground(3, SPACE), settings(**changed))


@cache
def case() -> Any:
    """Parameters, target, batch, in float32 and in float64."""
    batch = cases.transitions(0, 24, 3, SPACE)
    batch = batch.replace(reward=2.0 * batch.reward)  # so that some residuals are below -2, where f* is flat
    single = *cases.random_parameters(agent_of(), 1), batch
    return single, mirror.float64(single)


@cache
def gradient_program(**changed) -> Any:
    return cases.jit_once(agent_of(**changed).gradient)


@cache
def gradient_of(**changed) -> Any:
    return gradient_program(**changed)(*case()[0], jax.random.key(0))


@cache
def value_gradients() -> Any:
    params, target, batch = case()[0]
    return cases.jit_once(agent_of().value_gradients)(params["value"], target, batch)


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def values(params: Any, obs: np.ndarray) -> np.ndarray:
    return np.stack([mirror.network(params[f"twin_{i}"], obs)[:, 0] for i in range(2)])


def legendre(y: np.ndarray) -> np.ndarray:
    """max over w >= 0 of w y - f(w), f(w) = (w - 1)^2."""
    return np.where(y < -2, -1.0, y + y**2 / 4)


def residual(here: np.ndarray, there: np.ndarray, b: Any) -> np.ndarray:
    return b.reward + cases.GAMMA * np.where(b.terminal, 0.0, there) - here


def test_conjugate_is_the_largest_of_w_y_minus_f():
    y = np.linspace(-6, 6, 49)
    w = np.linspace(0, 6, 60001)
    brute = np.max(w * y[:, None] - (w - 1) ** 2, axis=1)
    np.testing.assert_allclose(conjugate(jnp.asarray(y)), brute, atol=1e-5)
    np.testing.assert_allclose(legendre(y), brute, atol=1e-7)


def test_forward_and_backward_gradients_by_central_differences():
    p, slow, b = case()[1]
    forward, backward, y = value_gradients()
    slow_here, slow_next = (values(slow["value"], obs).min(0) for obs in (b.obs, b.next_obs))
    np.testing.assert_allclose(y, residual(values(p["value"], b.obs), slow_next, b), rtol=1e-4, atol=1e-4)
    assert 0.05 < np.mean(y < -2) < 0.5

    def f(v):
        return LAMBDA * np.mean(legendre(residual(values(v, b.obs), slow_next, b)))

    def g(v):
        return LAMBDA * ETA * np.mean(legendre(residual(slow_here, values(v, b.next_obs), b)))

    check = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)
    jax.tree.map(check, forward, mirror.numeric_gradient(f, p["value"]))
    jax.tree.map(check, backward, mirror.numeric_gradient(g, p["value"]))


def test_true_gradient_is_that_of_the_whole_objective():
    p, _, b = case()[1]

    def objective(v):
        here = values(v, b.obs)
        return (1 - LAMBDA) * here.mean() + LAMBDA * np.mean(legendre(residual(here, values(v, b.next_obs), b)))

    expected = mirror.numeric_gradient(objective, p["value"])
    check = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)
    jax.tree.map(check, gradient_of(variant="true")[0]["value"], expected)


def test_projection_is_of_all_parameters_as_one_vector():
    p, _, b = case()[1]
    forward, backward, _ = value_gradients()
    f, g = flat(forward), flat(backward)
    projected, cosine = orthogonalised(forward, backward)
    expected = g - (f @ g) / (f @ f) * f
    np.testing.assert_allclose(flat(projected), expected, atol=1e-5)
    np.testing.assert_allclose(cosine, f @ g / np.linalg.norm(f) / np.linalg.norm(g), atol=1e-4)
    assert abs(flat(projected) @ f) < 1e-5 * np.linalg.norm(f) * np.linalg.norm(g)
    assert np.linalg.norm(expected) > 0.05 * np.linalg.norm(g)
    # Parameter by parameter it would be another vector.
    by_leaf = [
        flat(orthogonalised(x, y)[0]) for x, y in zip(jax.tree.leaves(forward), jax.tree.leaves(backward), strict=True)
    ]
    assert np.abs(np.concatenate(by_leaf) - expected).max() > 1e-2

    # What a step takes is the forward gradient, the projected one, and that of the values' mean.
    mean = flat(mirror.numeric_gradient(lambda v: (1 - LAMBDA) * values(v, b.obs).mean(), p["value"]))
    whole = flat(gradient_of()[0]["value"])
    np.testing.assert_allclose(whole, f + expected + mean, atol=2e-4)
    assert (whole - mean - f) @ f > -1e-3
    assert g @ f < -1e-2  # whereas the backward gradient as it is would undo some of it


@pytest.mark.slow
def test_without_weight_the_backward_gradient_is_gone():
    without, semi = gradient_of(eta=0.0)[0], gradient_of(variant="semi")[0]
    np.testing.assert_allclose(flat(without), flat(semi), rtol=1e-5, atol=1e-7)
    assert np.abs(flat(gradient_of()[0]) - flat(semi)).max() > 1e-2


def test_a_single_value_network_is_its_own_smaller_one():
    """With twins that are alike every gradient is that of one network, but for the share that each twin has."""
    (params, target, batch), _ = case()
    one = {**params, "value": {"twin_0": params["value"]["twin_0"]}}
    alike = {**params, "value": dict.fromkeys(("twin_0", "twin_1"), params["value"]["twin_0"])}
    slow_one = {"value": {"twin_0": target["value"]["twin_0"]}}
    slow = {"value": dict.fromkeys(("twin_0", "twin_1"), target["value"]["twin_0"])}
    options = {"variant": "semi"}
    single, metrics = gradient_program(twin=False, **options)(one, slow_one, batch, jax.random.key(0))
    double, same = gradient_program(**options)(alike, slow, batch, jax.random.key(0))
    for name in ("loss/residual", "loss/value", "loss/policy", "loss/weight"):
        np.testing.assert_allclose(metrics[name], same[name], rtol=1e-5)
    np.testing.assert_allclose(flat(single["policy"]), flat(double["policy"]), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(flat(single["value"]), 2 * flat(double["value"]["twin_0"]), rtol=1e-4, atol=1e-7)


def test_policy_imitates_with_the_positive_residuals():
    (params, target, batch), (p, slow, b) = case()
    big = batch.replace(reward=batch.reward.at[0].set(300.0))
    for given in (batch, big):
        gradient, metrics = gradient_program()(params, target, given, jax.random.key(0))
        b = mirror.float64(given)
        slow_next = values(slow["value"], b.next_obs).min(0)
        weight = np.clip(residual(values(p["value"], b.obs), slow_next, b), 0, 100).mean(0)

        def loss(policy, weight=weight, b=b):
            return -np.mean(weight * mirror.log_prob(policy, b.obs, b.action))

        np.testing.assert_allclose(metrics["loss/policy"], loss(p["policy"]), rtol=1e-3)
        expected = mirror.numeric_gradient(loss, p["policy"])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=5e-4), gradient["policy"], expected)
    assert weight.max() == 100


@pytest.mark.parametrize("bounded", [True, False])
def test_the_policys_mean_is_bounded_where_asked(bounded):
    action = np.array([[-1.0], [1.0]], np.float32)
    limits = {"action_low": action[0], "action_high": action[1]}
    episodes = cases.one_step_episodes(np.eye(2), action, np.arange(2.0), **limits)
    agent = ODICE.of(episodes, cases.playground(2, Box(-1.0, 1.0, (1,))), settings(bounded=bounded))
    far = 1e4 * jax.random.normal(jax.random.key(1), (64, 2))
    policy: Any = agent.policy.init_with_output(jax.random.key(0), far)[0]
    assert (float(jnp.abs(policy.mean).max()) <= 1) == bounded


@pytest.mark.slow
def test_greedy_policy_is_the_best_that_the_data_hold():
    """Rewards times 10: weights are positive residuals, so advantages must stand out from what f* costs."""
    tables = {"hidden": (), "policy_hidden": (), "layer_norm": False, "eta": 1.0, "reward_scale": 10.0}
    agent = ODICE.of(cases.grid_episodes(), cases.grid_environment(), settings(**tables))
    np.testing.assert_array_equal(cases.greedy(agent, cases.trained(agent, 2000).params, cases.CELLS), cases.BEST)


def test_weight_decay_is_the_policys_alone():
    agent = replace(agent_of(), settings=settings(policy_weight_decay=0.1))
    params = case()[0][0]
    nothing = jax.tree.map(np.zeros_like, params)
    step: Any = agent.optimiser.update(nothing, agent.optimiser.init(params), params)[0]
    assert not flat(step["value"]).any()
    np.testing.assert_allclose(flat(step["policy"]), -0.02 * np.sign(flat(params["policy"])), rtol=1e-2)


@pytest.mark.parametrize("changed", [{"residual_weight": 1.0}, {"eta": -1.0}, {"policy_hidden": (0,)}])
def test_settings_are_refused(changed):
    with pytest.raises(ValueError, match=f"odice.{next(iter(changed))} must"):
        settings(**changed)
