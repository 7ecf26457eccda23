"""Behaviour cloning: losses and inputs in float64; it recovers a known policy, and the return it is asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.offline.bc import BC, RCBC, BCSettings, RCBCSettings
from engram.envs.datasets import Episodes
from engram.envs.datasets.episodes import Origin
from engram.envs.spaces import Box, Discrete
from tests.agents.offline import cases
from tests.oracles import offline as mirror

HORIZON = 4


def bounded(n: int, seed: int = 0) -> Episodes:
    """`n` episodes of one step each: observations with mean 3 and deviation 10, actions in [5, 9]."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(5, 9, (n, 1)).astype(np.float32)
    low, high = np.array([5.0], np.float32), np.array([9.0], np.float32)
    obs = 3 + 10 * rng.normal(size=(n, 2))
    return cases.one_step_episodes(obs, action, np.zeros(n), action_low=low, action_high=high)


def test_losses_are_cross_entropy_and_squared_error_in_the_actions_bounds():
    space = Discrete(cases.ACTIONS)
    agent = BC.of(cases.grid_episodes(), cases.grid_environment(), BCSettings(**cases.COMMON))
    batch, params = cases.transitions(0, 24, cases.STATES, space), cases.random_parameters(agent, 0)[0]
    loss = cases.jit_once(agent.loss)(params, {}, batch, jax.random.key(0))[0]
    p, b = mirror.float64((params, batch))
    logits = mirror.network(p["policy"], b.obs)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(loss, -np.take_along_axis(log_p, b.action[:, None], 1).mean(), rtol=1e-4)

    episodes = bounded(60)
    settings = BCSettings(**{**cases.COMMON, "hidden": (4,), "normalise": True})
    agent = BC.of(episodes, cases.playground(2, Box(5.0, 9.0, (1,))), settings)
    params = cases.random_parameters(agent, 0)[0]
    batch = cases.jit_once(agent.drawn_batch)(jax.random.key(0))
    assert float(jnp.abs(batch.action).max()) <= 1.0
    loss = cases.jit_once(agent.loss)(params, {}, batch, jax.random.key(0))[0]
    p, b = mirror.float64((params, batch))
    expected = np.mean((np.tanh(mirror.network(p["policy"], b.obs)) - b.action) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)

    # Through `_play_step`, which standardises observations as the data were and gives actions in their own units.
    rows = episodes.obs[::2].astype(np.float64)
    seen = np.array([[1.0, -4.0], [20.0, 3.0]])
    state = agent.env.reset(jax.random.key(0), agent.env.default_params)[1]
    carry = (state, jnp.asarray(seen, jnp.float32), jnp.zeros(2), jnp.ones(2, bool), ())
    played = cases.jit_once(agent._play_step)(params, carry, jax.random.key(0))[2]
    out = np.tanh(mirror.network(p["policy"], (seen - rows.mean(0)) / (rows.std(0) + 1e-3)))
    np.testing.assert_allclose(played, 7 + 2 * out, atol=1e-4)


@pytest.mark.slow
def test_the_policy_is_given_the_scaled_return_and_the_share_of_the_longest_episode():
    agent = RCBC.of(cases.grid_episodes(), cases.grid_environment(), asked((7.0,)))
    batch = agent.data.windows(jnp.arange(20), 1)
    rows = jax.tree.map(lambda x: x[0], batch)
    inputs = np.asarray(agent.inputs(rows))
    np.testing.assert_array_equal(inputs[:, :-2], rows.obs)
    np.testing.assert_allclose(inputs[:, -2], rows.to_go / 4.0)
    np.testing.assert_allclose(inputs[:, -1], rows.timestep / cases.grid_episodes().lengths.max(), rtol=1e-6)


@pytest.mark.slow
def test_cloning_recovers_the_policy_of_the_data():
    """On the grid: an action that is taken in 7 of 10 steps becomes the greedy one, with that probability."""
    favourite = np.arange(cases.STATES) % cases.ACTIONS
    episodes = cases.grid_episodes()
    rng = np.random.default_rng(0)
    rows = np.arange(len(episodes.action)) + np.repeat(np.arange(len(episodes.lengths)), episodes.lengths)
    cells = episodes.obs[rows].argmax(1)
    action = np.where(rng.random(len(cells)) < 0.6, favourite[cells], rng.integers(4, size=len(cells)))
    recorded = cases.replace(episodes, action=action.astype(np.int32))
    agent = BC.of(recorded, cases.grid_environment(), BCSettings(**cases.COMMON))
    state = cases.trained(agent, 800)
    np.testing.assert_array_equal(cases.greedy(agent, state.params, cases.CELLS), favourite[: cases.GOAL])
    probabilities = jax.nn.softmax(agent._out(state.params, jnp.asarray(cases.CELLS, jnp.float32)))
    counts = np.array([[np.mean(action[cells == s] == a) for a in range(4)] for s in range(cases.GOAL)])
    np.testing.assert_allclose(probabilities, counts, atol=0.05)


@pytest.mark.slow
def test_cloning_of_continuous_actions_is_regression_in_their_bounds():
    """Actions are a linear function of the observation, in units of 5 to 9, and noise."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (2000, 2))
    known = lambda obs: 7 + obs @ np.array([[1.2], [-0.5]])  # noqa: E731
    action = (known(obs) + 0.05 * rng.normal(size=(2000, 1))).astype(np.float32)
    low, high = np.array([5.0], np.float32), np.array([9.0], np.float32)
    episodes = cases.one_step_episodes(3 + 10 * obs, action, np.zeros(2000), action_low=low, action_high=high)
    env = cases.playground(2, Box(5.0, 9.0, (1,)))
    agent = BC.of(episodes, env, BCSettings(**{**cases.COMMON, "hidden": (16,), "normalise": True}))
    state = cases.trained(agent, 1000)

    # Through `_play_step`, which standardises observations as the data were and gives actions in their own units.
    seen = rng.uniform(-1, 1, (2, 2))
    env_state = env.reset(jax.random.key(0), env.default_params)[1]
    carry = (env_state, jnp.asarray(3 + 10 * seen, jnp.float32), jnp.zeros(2), jnp.ones(2, bool), ())
    played = cases.jit_once(agent._play_step)(state.params, carry, jax.random.key(0))[2]
    np.testing.assert_allclose(played, known(seen), atol=0.15)


def asked(targets: tuple[float, ...]) -> RCBCSettings:
    settings = {**cases.COMMON, "hidden": (32,), "learning_rate": 0.01}
    return RCBCSettings(**settings, return_scale=4.0, targets=targets)


@pytest.mark.slow
def test_what_is_asked_for_is_what_is_achieved():
    """Episodes of four steps that pay the action, 0 or 1: a policy that knows what is left of the return that was asked
    for achieves every whole number exactly, however it breaks ties; one that is always told the whole does not."""
    rng = np.random.default_rng(0)
    n = 500
    action = rng.integers(2, size=n * HORIZON).astype(np.int32)
    episodes = Episodes(
        obs=np.zeros((n * (HORIZON + 1), 1), np.float32),
        action=action,
        reward=action.astype(np.float32),
        terminated=np.ones(n, bool),
        lengths=np.full(n, HORIZON),
        origin=Origin(""),
        num_actions=2,
    )
    targets = (3.0, 0.0, 1.0, 2.0, 4.0)
    agent = RCBC.of(episodes, cases.playground(1, Discrete(2), HORIZON), asked(targets))
    state = cases.trained(agent, 1500)
    metrics = cases.jit_once(agent.evaluate)(state, jax.random.key(0))
    assert {target: float(metrics[f"eval/return_at_{target:g}"]) for target in targets} == {t: t for t in targets}
    assert metrics["eval/return"] == 3.0
    assert metrics["eval/finished"] == 1.0


def test_return_and_time_start_afresh_with_an_episode():
    agent = RCBC.of(cases.grid_episodes(), cases.grid_environment(), asked((7.0,)))
    params = cases.random_parameters(agent, 0)[0]
    act = cases.jit_once(partial(agent.act, params))
    obs, acting, no = jnp.zeros((2, cases.STATES)), agent.start_acting(2), jnp.zeros(2, bool)
    acting, _ = act(acting, obs, jnp.array([100.0, 0.0]), ~no)
    np.testing.assert_allclose([acting[1], acting[2]], [[7, 7], [0, 0]])  # the reward was of the episode before
    acting, _ = act(acting, obs, jnp.array([1.0, -2.0]), no)
    np.testing.assert_allclose([acting[1], acting[2]], [[6, 9], [1, 1]])
    acting, _ = act(acting, obs, jnp.array([1.0, 1.0]), jnp.array([True, False]))
    np.testing.assert_allclose([acting[1], acting[2]], [[7, 8], [0, 2]])


@pytest.mark.parametrize("targets", [(), (1.0, 1.0), (float("inf"),)])
def test_targets_are_refused(targets):
    with pytest.raises(ValueError, match=r"rcbc\.targets must"):
        asked(targets)
