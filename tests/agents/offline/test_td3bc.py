"""TD3+BC: losses and gradients in float64, delayed steps, a fixed point in closed form."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from engram.agents.offline.td3bc import TD3BC, TD3BCSettings
from engram.envs.spaces import Box, Discrete
from tests.agents.offline import cases
from tests.oracles import offline as mirror

SPACE = Box(-1.0, 1.0, (2,))


def settings(**changed) -> TD3BCSettings:
    rest = {"alpha": 2.5, "policy_noise": 0.0, "noise_clip": 0.5, "policy_delay": 2}
    return TD3BCSettings(**{**cases.VALUE, **rest, **changed})


@cache
def agent() -> TD3BC:
    rng = np.random.default_rng(0)
    kind = {"action_low": -np.ones(2), "action_high": np.ones(2)}
    action = rng.uniform(-1, 1, (64, 2)).astype(np.float32)
    episodes = cases.one_step_episodes(rng.normal(size=(64, 3)), action, rng.normal(size=64), **kind)
    return TD3BC.of(episodes, cases.playground(3, SPACE), settings(hidden=(4,)))


def numpy_actions(policy, obs):
    return np.tanh(mirror.network(policy, obs))


def test_critics_learn_from_the_smaller_slow_value_of_the_slow_policys_action():
    (params, target), batch = cases.random_parameters(agent(), 1), cases.transitions(0, 24, 3, SPACE)
    of = cases.jit_once(jax.value_and_grad(agent().critic_loss, has_aux=True))
    (loss, _), gradient = of(params, target, batch, jax.random.key(0))
    p, slow, b = mirror.float64((params, target, batch))
    action = numpy_actions(slow["policy"], b.next_obs)
    future = np.where(b.terminal, 0.0, mirror.critic(slow["critic"], b.next_obs, action).min(0))

    def critic_loss(params):
        goal = b.reward + cases.GAMMA * future
        return np.sum(np.mean((mirror.critic(params, b.obs, b.action) - goal) ** 2, axis=1))

    np.testing.assert_allclose(loss, critic_loss(p["critic"]), rtol=1e-4)
    expected = mirror.numeric_gradient(critic_loss, p["critic"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), gradient["critic"], expected)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(gradient["policy"]))


def test_noise_on_the_target_action_is_clipped_and_so_is_the_action():
    """The slow critic is the action's first entry, so the spread of goals is that of the noise."""
    noisy = replace(agent(), settings=settings(hidden=(), policy_noise=5.0, noise_clip=0.25, discount=1.0))
    zero = jax.tree.map(jnp.zeros_like, cases.random_parameters(noisy, 0)[0])
    first = {"Dense_0": {"kernel": jnp.zeros((5, 1)).at[3, 0].set(1.0), "bias": jnp.zeros(1)}}
    target = {"policy": zero["policy"], "critic": {"twins_0": first, "twins_1": first}}
    batch = cases.transitions(0, 400, 3, SPACE)
    batch = batch.replace(reward=jnp.zeros(400), terminal=jnp.zeros(400, bool))
    loss = cases.jit_once(noisy.critic_loss)(zero, target, batch, jax.random.key(1))[0]
    # With a deviation of 5 nearly all of the noise sits at +-0.25: both critics' errors are 0.25^2.
    np.testing.assert_allclose(loss, 2 * 0.25**2, rtol=0.1)
    wide = replace(noisy, settings=replace(noisy.settings, noise_clip=100.0))
    np.testing.assert_allclose(
        cases.jit_once(wide.critic_loss)(zero, target, batch, jax.random.key(1))[0], 2.0, rtol=0.2
    )


def test_policy_gradient_is_that_of_equation_5_and_does_not_depend_on_the_scale_of_values():
    params, batch = cases.random_parameters(agent(), 1)[0], cases.transitions(0, 24, 3, SPACE)
    of = cases.jit_once(jax.value_and_grad(agent().policy_loss, has_aux=True))
    (loss, _), gradient = of(params, batch)
    p, b = mirror.float64((params, batch))

    def values(params):
        return mirror.critic(p["critic"], b.obs, numpy_actions(params, b.obs))[0]

    weight = 2.5 / np.mean(np.abs(values(p["policy"])))

    def policy_loss(params):
        return -weight * np.mean(values(params)) + np.mean((numpy_actions(params, b.obs) - b.action) ** 2)

    np.testing.assert_allclose(loss, policy_loss(p["policy"]), rtol=1e-4)
    expected = mirror.numeric_gradient(policy_loss, p["policy"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), gradient["policy"], expected)

    scaled = jax.tree_util.tree_map_with_path(
        lambda path, x: 1000.0 * x if path[1].key == "Dense_1" else x, params["critic"]
    )
    (again, _), other = of({**params, "critic": scaled}, batch)
    np.testing.assert_allclose(again, loss, rtol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), other["policy"], gradient["policy"])


@pytest.mark.slow
def test_one_step_of_policy_and_targets_for_several_of_the_critics():
    before = cases.jit_once(agent().init)(jax.random.key(1))
    after, _ = cases.jit_once(agent().update)(before)
    assert agent().steps_per_update == 2 == after.updates - before.updates
    counts = {name: int(after.optimiser[name][0].count) for name in ("critic", "policy")}
    assert counts == {"critic": 2, "policy": 1}
    # Adam's first step has the size of the step size in every entry with a gradient, its two first ones not more than
    # twice that: the policy moved once, the critics twice.
    moved = {
        name: max(np.abs(x).max() for x in jax.tree.leaves(jax.tree.map(jnp.subtract, after.params[name], x)))
        for name, x in before.params.items()
    }
    np.testing.assert_allclose(moved["policy"], 0.02, rtol=1e-2)
    assert 0.03 < moved["critic"] < 0.041
    expected = jax.tree.map(lambda old, new: 0.95 * old + 0.05 * new, before.target, after.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.target, expected)


@pytest.mark.slow
def test_policy_settles_between_the_best_action_and_the_data():
    """One state and one action a, reward 1 - (a - 0.3)^2, actions of the data symmetric about 0: with exact values the
    policy solves weight * 2 (0.3 - a) = 2 a, where weight = 2.5 / Q(a)."""
    action = np.linspace(-1, 1, 400, dtype=np.float32)[:, None]
    reward = 1 - (action[:, 0] - 0.3) ** 2
    kind = {"action_low": -np.ones(1), "action_high": np.ones(1)}
    episodes = cases.one_step_episodes(np.ones((400, 1)), action, reward, **kind)
    changed = {"hidden": (24, 24), "learning_rate": 3e-3, "batch_size": 200}
    trainee = TD3BC.of(episodes, cases.playground(1, Box(-1.0, 1.0, (1,))), settings(**changed))
    settled = cases.greedy(trainee, cases.trained(trainee, 1500).params, np.ones((1, 1)))[0, 0]
    exact: Any = scipy.optimize.brentq(lambda a: 2.5 / (1 - (a - 0.3) ** 2) * (0.3 - a) - a, 0, 0.3)
    assert abs(exact - 0.2147) < 1e-3
    np.testing.assert_allclose(settled, exact, atol=0.04)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="td3bc is for continuous actions"):
        TD3BC.of(cases.grid_episodes(), cases.playground(cases.STATES, Discrete(4)), settings())
    for changed in ({"alpha": 0.0}, {"policy_delay": 0}, {"noise_clip": -1.0}):
        with pytest.raises(ValueError, match=f"td3bc.{next(iter(changed))} must"):
            settings(**changed)
