"""DynLin-UCB: step by step against NumPy in float64, and what theory says of it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.planners.dynlin import DynLin, DynLinSettings, hold_lengths, inverse
from engram.envs.bandits import classification as classification_bandit
from engram.envs.bandits import dynamical as dynamical_bandit
from engram.envs.bandits.dynamical import from_arrays
from engram.errors import BadRequest
from tests.agents.planners.programs import quick
from tests.oracles import dynlin as mirror

BOUNDS = ("radius", "omega", "theta", "gain", "action", "growth", "sigma")


settings = partial(DynLinSettings, steps_per_update=100, discount=0.98)


def play(agent, rounds, cuts=1, seed=0):
    """In float64, of one seed: its system, the uniforms, the last state and the trace, played in `cuts` calls."""

    @quick
    def run(key, uniforms):
        start = agent.init(key)
        end, steps = jax.lax.scan(agent.play, start, uniforms.reshape(cuts, -1, uniforms.shape[-1]))
        return start.env.system, end.replace(key=None), jax.tree.map(lambda x: x.reshape(rounds, *x.shape[2:]), steps)

    uniforms = np.random.default_rng(seed).random((rounds, agent.num_uniforms))
    with jax.enable_x64(True):
        system, end, steps = jax.device_get(run(jax.random.key(seed), uniforms))
    return system, uniforms, end, steps


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
GIVEN: dict[str, Any] = {
    "delta": 0.2, "regularisation": 2.0, "radius": 0.5, "omega": 0.3, "theta": 0.7,
    "gain": 0.2, "action": 1.3, "growth": 1.5, "sigma": 0.4,
}  # fmt: skip


@pytest.mark.parametrize(
    "given", [pytest.param({}, id="own-bounds"), pytest.param(GIVEN, id="given-bounds", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("dynlin-ucb", "advertising"), ("dynlin-ucb", "random"), ("linucb", "diagonal"), ("d-linucb", "advertising")],
)
def test_step_by_step_against_the_mirror(algorithm, name, given):
    """Five calls, some of which end amid a hold, are the mirror's uncut run: the state carries everything."""
    agent = DynLin(ENVS[name], settings(**given), algorithm, 1000)
    system, uniforms, end, steps = play(agent, 1000, cuts=5)
    actions, rewards, hs = by_mirror(agent, system, uniforms)
    np.testing.assert_array_equal(steps.action, actions)
    np.testing.assert_allclose(steps.reward, rewards, atol=1e-10)
    np.testing.assert_allclose(steps.h, hs, atol=1e-9)
    assert len(set(actions)) > 2
    assert end.t == 1000
    np.testing.assert_allclose(end.regret, 1000 * system.value.max() - system.value[actions].sum(), rtol=1e-12)
    np.testing.assert_allclose(end.reward_sum, rewards.sum(), rtol=1e-12)


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


@pytest.mark.slow
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
    a factor 2 in 4 seeds is far beyond the spread of a few per cent.
    """
    env = from_arrays([[0.9]], [[-0.1, 0.1]], [1.0], [0.9, 0.0], np.eye(2), 0.01, 0.01)
    np.testing.assert_allclose(env.h, [-0.1, 1.0])
    ours = final_regret(env, 5000, 4, confidence_scale=0.05)
    static = final_regret(env, 5000, 4, "linucb", confidence_scale=0.05)
    assert static.min() > 2 * ours.max(), (ours, static)


def test_update_and_evaluate():
    agent = DynLin(ENVS["diagonal"], settings(), "dynlin-ucb", 1000)

    @quick
    def run(keys):
        states = jax.vmap(agent.init)(keys)
        states, metrics = jax.lax.scan(lambda s, _: jax.vmap(agent.update)(s), states, None, 3)
        return states.t, metrics, jax.vmap(agent.evaluate)(states, keys)

    t, metrics, result = run(jax.vmap(jax.random.key)(jnp.arange(2)))
    np.testing.assert_allclose(result["eval/return"], metrics["train/return"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(result["eval/regret_per_step"], metrics["train/regret_last"][-1] / 300, rtol=1e-5)
    assert all(value.shape == (3, 2) for value in metrics.values())
    assert np.all(t == 300)


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
        with pytest.raises(BadRequest, match=message) as error:
            build()
        assert "\n" not in str(error.value)
