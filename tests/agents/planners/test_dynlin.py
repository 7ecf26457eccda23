"""DynLin-UCB: step by step against NumPy in float64, and what theory says of it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.planners.dynlin import ALGORITHMS, DynLin, DynLinSettings, hold_lengths, inverse
from engram.envs.bandits import classification as classification_bandit
from engram.envs.bandits import dynamical as dynamical_bandit
from engram.envs.bandits.dynamical import from_arrays
from tests.oracles import dynlin as mirror

BOUNDS = ("radius", "omega", "theta", "gain", "action", "growth", "sigma")


settings = partial(DynLinSettings, steps_per_update=100, discount=0.98)


def play(agent, rounds, seed=0):
    """Trace in float64 of one seed, its first state, and the uniforms."""
    with jax.enable_x64(True):
        state = agent.init(jax.random.key(seed))
        uniforms = jax.random.uniform(jax.random.key(seed + 1), (rounds, agent.env.num_uniforms))
        end, steps = jax.jit(agent.play)(state, uniforms)
        return jax.tree.map(np.asarray, (state.env.system, uniforms, end.replace(key=0), steps))


def by_mirror(agent, system, uniforms):
    env = mirror.Environment(
        system.A, system.B, system.omega, system.theta, agent.env.state_sigma, agent.env.output_sigma
    )
    bounds = {name: getattr(agent.bounds, name) for name in BOUNDS}
    s = agent.settings
    args = (env, system.actions, bounds, agent.regularisation, s.delta or 1 / agent.total_steps, uniforms)
    if agent.algorithm == "dynlin-ucb":
        return mirror.dynlin_ucb(*args)
    return mirror.linucb(*args, gamma=s.discount if agent.algorithm == "d-linucb" else None)


ENVS = {
    "diagonal": dynamical_bandit.diagonal(sigma=0.1),
    "advertising": dynamical_bandit.advertising(),
    "random": dynamical_bandit.random(sigma=0.3, actions=7, radius=0.7),
}


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_step_by_step_against_the_mirror(algorithm, name):
    agent = DynLin(ENVS[name], settings(), algorithm, 1500)
    system, uniforms, _, steps = play(agent, 1500)
    actions, rewards, hs = by_mirror(agent, system, uniforms)
    np.testing.assert_array_equal(steps.action, actions)
    np.testing.assert_allclose(steps.reward, rewards, atol=1e-10)
    np.testing.assert_allclose(steps.h, hs, atol=1e-9)
    assert len(set(actions)) > 2


def test_explicit_bounds_reach_the_confidence_width():
    given: dict[str, Any] = {
        "delta": 0.2, "regularisation": 2.0, "radius": 0.5, "omega": 0.3, "theta": 0.7,
        "gain": 0.2, "action": 1.3, "growth": 1.5, "sigma": 0.4,
    }  # fmt: skip
    for algorithm in ALGORITHMS:
        agent = DynLin(ENVS["random"], settings(**given), algorithm, 800)
        system, uniforms, _, steps = play(agent, 800)
        np.testing.assert_array_equal(steps.action, by_mirror(agent, system, uniforms)[0])


def test_hold_lengths():
    for radius in (0.2, 0.5, 0.793, 0.99):
        table = hold_lengths(radius, 5000)
        for m in (1, 2, 4, 5, 24, 25, 26, 124, 125, 126, 1000, 4999):
            # The largest j with radius^-j <= m, in exact integers where the radius is 1 / 5 or 1 / 2.
            H = int(np.floor(np.log(m) / -np.log(radius) + 1e-12))
            assert np.sum(m >= table) == H
    assert [int(np.sum(m >= hold_lengths(0.2, 200))) for m in (4, 5, 24, 25, 124, 125)] == [0, 1, 1, 2, 2, 3]
    assert hold_lengths(0.0, 100).size == 0


def test_actions_are_held_as_scheduled():
    agent = DynLin(ENVS["diagonal"], settings(), "dynlin-ucb", 2000)
    _, _, end, steps = play(agent, 2000)
    starts = np.flatnonzero(steps.chosen)
    assert end.decisions == len(starts)
    m = np.arange(1, len(starts))
    np.testing.assert_array_equal(np.diff(starts), 1 + np.floor(np.log(m) / np.log(5) + 1e-9).astype(int))
    held = np.flatnonzero(~steps.chosen)
    np.testing.assert_array_equal(steps.action[held], steps.action[held - 1])


def test_inverse():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(6, 4))
        V = x.T @ x + np.eye(4)
        np.testing.assert_allclose(inverse(jnp.asarray(V)), np.linalg.inv(V), atol=1e-13)


def quiet_system(radius):
    """Without noise, two actions e_1, e_2 that both cost: the greedy player tries each, then stays with the cheaper."""
    return from_arrays([[radius]], [[1.0, 1.0]], [-0.3], [-0.2, -0.6], np.eye(2), 0.0, 0.0)


@pytest.mark.parametrize(("algorithm", "biased"), [("dynlin-ucb", False), ("linucb", True)])
def test_long_holds_remove_the_transients_bias(algorithm, biased):
    """beta = 0, no noise, lambda -> 0: every sample but the first, which is never held, is J itself.

    Both actions cost, which makes greed try them both (nothing estimates h in a direction that is never played). H_m is
    long because the radius is overstated. Without holding, the second action is sampled once, amid a transient.
    """
    env = quiet_system(0.5)
    agent = DynLin(env, settings(confidence_scale=0.0, radius=0.99, regularisation=1e-9), algorithm, 30_000)
    _, _, end, steps = play(agent, 30_000)
    n = end.counts
    assert n[0] > 50
    assert n[1] == 1
    first = (env.theta[0] - env.h[0]) / n[0]  # the first sample of the first action pays theta_1 alone
    error = steps.h[-1] - env.h
    if biased:
        assert abs(error[1]) > 0.1
    else:
        np.testing.assert_allclose(error, [first, 0.0], atol=1e-8)


def test_without_memory_it_is_linucb():
    """A = 0: H_m = 0 for every m, and with c2 kept out (omega = 0) the trace is LinUCB's, bit for bit."""
    rng = np.random.default_rng(0)
    B, omega, theta, actions = (rng.normal(size=shape) for shape in ((2, 3), 2, 3, (8, 3)))
    env = from_arrays(np.zeros((2, 2)), B, omega, theta, actions, 0.1, 0.1)
    traces = [play(DynLin(env, settings(omega=0.0), name, 1000), 1000)[3] for name in ("dynlin-ucb", "linucb")]
    jax.tree.map(np.testing.assert_array_equal, *traces)
    with_c2 = play(DynLin(env, settings(), "dynlin-ucb", 1000), 1000)[3]
    assert np.any(with_c2.action != traces[0].action)


def final_regret(env, horizon, seeds, algorithm="dynlin-ucb", **changes):
    agent = DynLin(env, settings(steps_per_update=horizon, **changes), algorithm, horizon)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return np.asarray(jax.jit(jax.vmap(lambda key: agent.update(agent.init(key))[1]["train/regret_last"]))(keys))


def test_regret_grows_like_the_root_of_the_horizon():
    """Each horizon is its own run (delta and lambda depend on it). sqrt(T) is a factor 1.41 a doubling, with logarithms
    somewhat more; linear regret is 2, and constant regret 1. 8 seeds; their spread of the mean is about 1 %."""
    horizons = [2**k * 25_000 for k in range(4)]
    regret = np.array([final_regret(ENVS["diagonal"], T, 8).mean() for T in horizons])
    ratios = regret[1:] / regret[:-1]
    assert np.all((ratios >= 1.2) & (ratios <= 1.7)), ratios


def test_linucb_fails_where_the_transient_deceives():
    """An action that pays now and costs later: J ranks the two actions one way, their first payment the other.

    Null: both learn alike. The static learner changes its mind every round and never sees a steady state; the margin of
    a factor 2 in 8 seeds is far beyond the spread of a few per cent.
    """
    env = from_arrays([[0.9]], [[-0.1, 0.1]], [1.0], [0.9, 0.0], np.eye(2), 0.01, 0.01)
    np.testing.assert_allclose(env.h, [-0.1, 1.0])
    ours = final_regret(env, 20_000, 8, confidence_scale=0.05)
    static = final_regret(env, 20_000, 8, "linucb", confidence_scale=0.05)
    assert static.min() > 2 * ours.max(), (ours, static)


def test_regret_is_counted_exactly():
    agent = DynLin(ENVS["random"], settings(), "dynlin-ucb", 600)
    system, _, end, steps = play(agent, 600)
    np.testing.assert_allclose(end.regret, 600 * system.value.max() - system.value[steps.action].sum(), rtol=1e-12)
    np.testing.assert_allclose(end.reward_sum, steps.reward.sum(), rtol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rounds_may_be_cut_anywhere(algorithm):
    """One call of 400 rounds equals calls of 150 and 250: the state carries everything, also in mid-hold."""
    agent = DynLin(ENVS["advertising"], settings(), algorithm, 400)
    with jax.enable_x64(True):
        start = agent.init(jax.random.key(0))
        u = jax.random.uniform(jax.random.key(1), (400, agent.env.num_uniforms))
        whole, steps = jax.jit(agent.play)(start, u)
        half, first = jax.jit(agent.play)(start, u[:150])
        rest, second = jax.jit(agent.play)(half, u[150:])
        np.testing.assert_array_equal(steps.action, jnp.concatenate([first.action, second.action]))
        for name in ("counts", "means", "left", "decisions", "t"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(rest, name))


def test_update_and_evaluate():
    agent = DynLin(ENVS["random"], settings(), "dynlin-ucb", 1000)
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    states = jax.jit(jax.vmap(agent.init))(keys)
    states, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: jax.vmap(agent.update)(s), s, None, 4))(states)
    result = jax.vmap(lambda s, k: agent.evaluate(s, k))(states, keys)
    np.testing.assert_allclose(result["eval/return"], metrics["train/return"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(result["eval/regret_per_step"], metrics["train/regret_last"][-1] / 400, rtol=1e-5)
    assert all(value.shape == (4, 3) for value in metrics.values())
    assert np.all(states.t == 400)


def test_requests_that_are_refused():
    env = ENVS["diagonal"]
    seen: Any = classification_bandit.linear_loss()
    for build, message in (
        (
            lambda: DynLin(seen, settings(), "linucb", 10),
            "linucb needs an environment of the family dynamical/, got LinearLoss",
        ),
        (
            lambda: DynLin(env, settings(), "ucb", 10),
            "unknown algorithm 'ucb': did you mean linucb or d-linucb",
        ),
        (lambda: DynLin(env, settings(radius=0.1), "dynlin-ucb", 10), "at least the system's spectral radius 0.2"),
        (lambda: settings(radius=1.0), r"dynlin.radius must lie in \[0, 1\), got 1.0"),
        (lambda: settings(delta=0.0), r"dynlin.delta must lie in \(0, 1\), got 0.0"),
        (lambda: settings(regularisation=0.0), "dynlin.regularisation must be positive"),
        (lambda: settings(sigma=-1.0), "dynlin.sigma must be finite and at least 0"),
        (lambda: settings(growth=0.5), "dynlin.growth must be at least 1"),
        (lambda: settings(discount=1.0), "dynlin.discount must lie in"),
        (lambda: settings(steps_per_update=0), "dynlin.steps_per_update must be at least 1"),
        (lambda: settings(confidence_scale=-1.0), "dynlin.confidence_scale must be finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            build()
        assert "\n" not in str(error.value)
