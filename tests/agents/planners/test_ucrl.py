"""UCRL2 and R-BOCPD-UCRL2 against NumPy mirrors on shared uniforms, linear programs and exact dynamic programming."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom

from engram.agents.planners.ucrl import ALGORITHMS, UCRL, UCRLSettings, extended_q
from engram.envs.tabular.switching import RandomMDP, from_arrays, optimal_gain
from tests.oracles import ucrl as mirror

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SETTINGS = UCRLSettings(
    episode_test="pre",
    evi_iterations=1000,
    forecasters="exact",
    cap=512,
    known_changes=2,
    window=300,
    diameter=5.0,
    reward_variation=2.0,
    transition_variation=2.0,
)
CHANGES = (500, 1000)
STEPS = 1500


@cache
def instance(segments=3, states=4, actions=3, seed=0):
    rng = np.random.default_rng(seed)
    kernels = rng.dirichlet(np.full(states, 0.3), (segments, states, actions))
    return kernels, rng.uniform(size=(segments, states, actions))


def agent_on(kernels, means, changes, algorithm, settings, total_steps=STEPS, rewards="bernoulli"):
    return UCRL(from_arrays(kernels, means, changes, rewards), settings, algorithm, total_steps)


def play(agent, uniforms):
    """Traces `[seeds, steps]` and final states in float64, for uniforms `[seeds, steps, 2]`."""
    with jax.enable_x64(True):
        keys = jax.vmap(jax.random.key)(np.arange(len(uniforms)))
        run = jax.jit(lambda keys, u: jax.vmap(agent.play)(jax.vmap(agent.init)(keys), u))
        state, outputs = run(keys, jnp.asarray(uniforms))
        return jax.device_get((state.replace(key=None), outputs))


def uniforms(seeds=2, steps=STEPS, seed=0):
    return np.random.default_rng(seed).uniform(size=(seeds, steps, 2))


CASES = [(algorithm, {}, "bernoulli") for algorithm in ALGORITHMS] + [
    ("rbocpd-ucrl2", {"forecasters": "grid"}, "mean"),
    ("rbocpd-ucrl2", {"forecasters": "grid", "cap": 100, "episode_test": "post"}, "bernoulli"),
    ("rbocpd-ucrl2", {"eta": "certified", "episode_test": "post"}, "bernoulli"),
    ("rbocpd-ucrl2", {"eta": "paper"}, "mean"),
    ("rbocpd-ucrl2", {"cap": 40}, "bernoulli"),
    ("ucrl2", {"episode_test": "post", "conf_scale": 1.0}, "bernoulli"),
    ("sw-ucrl2", {"window": 100}, "mean"),
    ("sw-ucrl2-cw", {"window": 0}, "bernoulli"),
    ("restarted-ucrl2", {"evi_iterations": 3}, "bernoulli"),
]


@pytest.mark.parametrize(
    ("algorithm", "changed", "rewards"),
    [pytest.param(*case, marks=pytest.mark.slow if case[1] else ()) for case in CASES],
)
def test_step_by_step_as_the_mirror(algorithm, changed, rewards):
    """Actions, states, rewards and alarms of every step, with two seeds whose plans interleave."""
    settings, (kernels, means) = replace(SETTINGS, **changed), instance()
    agent = agent_on(kernels, means, CHANGES, algorithm, settings, rewards=rewards)
    drawn = uniforms()
    state, outputs = play(agent, drawn)
    for lane, u in enumerate(drawn):
        window = agent.window_length if algorithm.startswith("sw") else None
        starts = np.array([0, *CHANGES])
        expected = mirror.run(
            kernels, means, starts, u, algorithm, settings, rewards == "bernoulli", window, agent.widening
        )
        for name in ("action", "next", "alarm"):
            np.testing.assert_array_equal(getattr(outputs, name)[lane], expected[name], err_msg=name)
        np.testing.assert_allclose(outputs.reward[lane], expected["reward"], rtol=0, atol=1e-15)
        assert state.plans[lane] == expected["plans"]
        assert state.t[lane] == STEPS
        if algorithm == "rbocpd-ucrl2" and settings.forecasters == "exact":
            assert state.detectors.overflow[lane] == expected["overflow"] == (settings.cap == 40)
    if algorithm == "rbocpd-ucrl2" and settings.eta != "certified" and settings.cap > 40:
        assert (state.alarms >= 2).all()  # the comparison covers restarts


def test_lanes_and_cuts_do_not_change_a_trace():
    """Alone, beside 20 others (of which not all may plan at once) and in two halves: the same steps."""
    kernels, means = instance()
    agent, drawn = agent_on(kernels, means, CHANGES, "rbocpd-ucrl2", SETTINGS), uniforms(21, 600)
    together, all_outputs = play(agent, drawn)
    alone, outputs = play(agent, drawn[13:14])
    with jax.enable_x64(True):
        state = jax.jit(agent.init)(jax.random.key(0))
        halves = []
        for part in (drawn[13, :300], drawn[13, 300:]):
            state, half = jax.jit(agent.play)(state, jnp.asarray(part))
            halves.append(half)
    for values, among_all, first, second in zip(*map(jax.tree.leaves, (outputs, all_outputs, *halves)), strict=True):
        np.testing.assert_array_equal(values[0], among_all[13])
        np.testing.assert_array_equal(values[0], np.concatenate([first, second]))
    np.testing.assert_array_equal(alone.counts[0], together.counts[13])
    np.testing.assert_array_equal(alone.counts[0], state.counts)


def test_inner_maximum_is_that_of_the_linear_program():
    """max p . u over the L1 ball around a row, by scipy's HiGHS, float64."""
    rng = np.random.default_rng(1)
    for O in (2, 3, 5):
        u, rows, widths = rng.uniform(size=O), rng.dirichlet(np.ones(O), 6), np.array([0, 0.1, 0.5, 1.0, 1.9, 3.0])
        u[-1] = u[0]  # a tie
        best = []
        for row, width in zip(rows, widths, strict=True):
            # p = row + plus - minus
            ball = linprog(
                np.r_[-u, u],
                A_ub=np.r_[[np.ones(2 * O)], np.c_[-np.eye(O), np.eye(O)]],
                b_ub=np.r_[width, row],
                A_eq=[np.r_[np.ones(O), -np.ones(O)]],
                b_eq=[0],
                bounds=(0, None),
            )
            best.append(row @ u - ball.fun)
        with jax.enable_x64(True):
            q = extended_q(*map(jnp.asarray, (u, np.full(6, 0.2), rows, np.full(6, 0.1), widths)))
        np.testing.assert_allclose(q, 0.3 + np.array(best), atol=1e-12)
        np.testing.assert_allclose(mirror.inner_maximum(u, rows, widths), best, atol=1e-12)


def gain_of_policies(kernel, means):
    """The best gain by enumeration: stationary law of every deterministic policy."""
    O, A, _ = kernel.shape
    best = -np.inf
    for policy in np.ndindex(*[A] * O):
        P = kernel[np.arange(O), policy]
        law = np.linalg.lstsq(np.r_[P.T - np.eye(O), [np.ones(O)]], np.r_[np.zeros(O), 1], rcond=None)[0]
        best = max(best, law @ means[np.arange(O), policy])
    return best


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_gains(seed):
    """Plain and extended value iteration without widths give the best policy's gain; wide sets the best reward."""
    kernels, means = instance(1, seed=seed)
    expected = gain_of_policies(kernels[0], means[0])
    with jax.enable_x64(True):
        np.testing.assert_allclose(optimal_gain(jnp.asarray(kernels[0]), jnp.asarray(means[0])), expected, atol=1e-10)
        for width, gain in ((0.0, expected), (2.0, means.max())):
            u = change = jnp.zeros(4)
            for _ in range(300):
                q = extended_q(u, means[0].ravel(), kernels[0].reshape(12, 4), jnp.zeros(12), jnp.full(12, width))
                change = q.reshape(4, 3).max(-1) - u
                u = u + change - change.min()
            np.testing.assert_allclose(change, np.full(4, gain), atol=1e-9)


def plain_ucrl2(kernels, means, changes, drawn, settings):
    return [mirror.run(kernels, means, np.array([0, *changes]), u, "ucrl2", settings) for u in drawn]


def test_without_alarms_it_is_ucrl2():
    """Bit for bit, in a world that changes, when no detector can find enough evidence."""
    kernels, means = instance()
    never = replace(SETTINGS, eta="certified", eta_delta=1e-300)
    drawn = uniforms(2, seed=1)
    state, quiet = play(agent_on(kernels, means, CHANGES, "rbocpd-ucrl2", never), drawn)
    assert (state.alarms == 0).all()
    for lane, plain in enumerate(plain_ucrl2(kernels, means, CHANGES, drawn, never)):
        for name in ("action", "next", "reward"):
            np.testing.assert_array_equal(getattr(quiet, name)[lane], plain[name])


def test_a_stationary_world_raises_no_alarm():
    """Certified at 0.05 in all, 20 seeds of 1500 steps: more than 4 seeds with an alarm have probability < 0.003."""
    kernels, means = instance(1)
    settings = replace(SETTINGS, eta="certified", cap=1500)
    drawn = uniforms(20)
    state, outputs = play(agent_on(kernels, means, (), "rbocpd-ucrl2", settings), drawn)
    assert binom.sf(4, 20, 0.05) < 0.003
    assert (state.alarms > 0).sum() <= 4
    for lane in np.flatnonzero(state.alarms == 0)[:4]:
        (plain,) = plain_ucrl2(kernels, means, (), drawn[lane : lane + 1], settings)
        np.testing.assert_array_equal(outputs.action[lane], plain["action"])


def test_the_oracle_is_ucrl2_on_every_segment():
    kernels, means = instance()
    drawn = uniforms(1)
    _, oracle = play(agent_on(kernels, means, CHANGES, "oracle", SETTINGS), drawn)
    agent = agent_on(kernels[:1], means[:1], (), "ucrl2", SETTINGS)
    with jax.enable_x64(True):
        fresh, run, position = jax.jit(agent.init)(jax.random.key(0)), jax.jit(agent.play), 0
        for segment, start in enumerate((0, *CHANGES)):
            env = fresh.env.replace(
                means=jnp.asarray(means[segment : segment + 1]),
                cumulative=jnp.cumsum(jnp.asarray(kernels[segment : segment + 1]), axis=-1),
                position=jnp.int32(position),
            )
            end = start + 500
            _, alone = run(fresh.replace(env=env), jnp.asarray(drawn[0, start:end]))
            for name in ("action", "next", "reward"):
                np.testing.assert_array_equal(getattr(oracle, name)[0, start:end], getattr(alone, name))
            position = int(alone.next[-1])


@cache
def long_run(algorithm, seeds=8):
    """Total rewards `[seeds]` and final states of 16,000 steps with changes at 4000, 8000 and 12,000, float32."""
    settings = replace(SETTINGS, forecasters="grid", cap=4096, steps_per_update=2000)
    env = RandomMDP(4, 3, 0.3, changes="4000,8000,12000")
    agent = UCRL(env, settings, algorithm, 16_000)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))

    @jax.jit
    def run(keys):
        states = jax.vmap(agent.init)(keys)
        return jax.lax.scan(lambda s, _: jax.vmap(agent.update)(s), states, None, length=8)

    state, metrics = run(keys)
    return jax.device_get((state.replace(key=None), metrics))


@pytest.mark.slow
def test_restarts_pay():
    """Mean over 8 seeds: the detector earns more than UCRL2 and at least 0.97 of what the oracle earns."""
    found, plain, oracle = (long_run(a)[0].reward_total for a in ("rbocpd-ucrl2", "ucrl2", "oracle"))
    assert found.mean() > plain.mean() + 500
    assert found.mean() >= 0.97 * oracle.mean()


def test_metrics():
    state, metrics = long_run("rbocpd-ucrl2")
    assert (state.t == 16_000).all()
    assert (
        metrics["train/last_change_last"] == np.array([0, 4000, 4000, 8000, 8000, 12000, 12000, 12000])[:, None]
    ).all()
    np.testing.assert_allclose(metrics["train/return"].sum(0) * 2000, state.reward_total, rtol=1e-5)
    earned = 4000 * state.gains.sum(-1) - state.reward_total  # four segments of 4000 steps
    np.testing.assert_allclose(metrics["train/regret_last"][-1], earned, rtol=1e-3, atol=0.5)
    assert (metrics["train/alarms_last"][-1] == state.alarms).all()
    assert (state.last_alarm >= 12_000).all()
    assert (state.last_alarm < 12_300).all()
    assert (metrics["train/unconverged_last"] == 0).all()
    agent = UCRL(RandomMDP(4, 3), SETTINGS, "ucrl2", 100)
    evaluation = agent.evaluate(jax.tree.map(lambda x: jnp.asarray(x[0]), state), jax.random.key(0))
    np.testing.assert_allclose(evaluation["eval/return"], state.reward_total[0] / 16_000, rtol=1e-6)


def test_windows_and_restarts_of_theory():
    kernels, means = instance()
    settings = replace(SETTINGS, window=0, known_changes=15, delta=0.05)
    agent = agent_on(kernels, means, CHANGES, "sw-ucrl2", settings, total_steps=10**9)
    w = (16.53 / 15 * 1e9 * 5 * 4 * np.sqrt(3 * np.log(1e9 / 0.05))) ** (2 / 3)
    assert agent.window_length == np.ceil(w)
    agent = agent_on(kernels, means, CHANGES, "sw-ucrl2-cw", settings, total_steps=50_000)
    w = np.ceil(3 * 4 ** (2 / 3) * np.sqrt(3) * np.sqrt(50_000) / np.sqrt(5))
    assert agent.window_length == w
    np.testing.assert_allclose(agent.widening, np.sqrt(3 * w / 50_000))
    assert agent_on(kernels, means, CHANGES, "restarted-ucrl2", SETTINGS, 16).restarts == (1, 2, 7, 16)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps_per_update", 0),
        ("delta", 0.0),
        ("conf_scale", -1.0),
        ("episode_test", "mid"),
        ("eta", "cubed"),
        ("eta_delta", 1.0),
        ("forecasters", "all"),
        ("cap", 1),
        ("diameter", 0.0),
        ("known_changes", 0),
    ],
)
def test_impossible_settings(name, value):
    with pytest.raises(ValueError, match=rf"^ucrl\.{name} must .*, got .*{value}"):
        replace(SETTINGS, **{name: value})


def test_unknown_algorithms_are_named():
    with pytest.raises(ValueError, match=r"unknown algorithm 'ucrl3': did you mean .*ucrl2"):
        UCRL(RandomMDP(), SETTINGS, "ucrl3", 100)
