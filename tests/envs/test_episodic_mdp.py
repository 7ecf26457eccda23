"""Episodic MDPs: the step against NumPy, the instances as described, dynamic programming against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.spaces import Discrete, MultiDiscrete
from engram.envs.tabular import episodic as episodic_mdp
from engram.envs.tabular.episodic import EpisodicMDP
from engram.envs.vector import Vectorised
from tests.oracles.stepmix import occupancies


def float64(instance):
    return np.asarray(instance.transition, np.float64), np.asarray(instance.reward, np.float64)


def value_by_paths(P, r, policy):
    """Expected reward summed over every path of states and actions, one by one."""
    H, S, A, _ = P.shape
    total = 0.0
    for actions in itertools.product(range(A), repeat=H):
        for following in itertools.product(range(S), repeat=H):
            s, probability, reward = 0, 1.0, 0.0
            for h, (a, x) in enumerate(zip(actions, following, strict=True)):
                probability *= policy[h, s, a] * P[h, s, a, x]
                reward += r[h, s, a]
                s = x
            total += probability * reward
    return total


@pytest.fixture(scope="module")
def tiny():
    with jax.enable_x64(True):
        instance = jax.jit(episodic_mdp.random(horizon=3, states=2, actions=2).draw)(jax.random.key(1))
        policy = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(2), (3, 2)))
    return instance, policy


def test_values_are_those_of_all_paths(tiny):
    instance, policy = tiny
    P, r = float64(instance)
    with jax.enable_x64(True):
        value = float(jax.jit(episodic_mdp.policy_values)(instance, policy)[0, 0])
    assert value == pytest.approx(value_by_paths(P, r, np.asarray(policy)), abs=1e-12)
    assert float(np.sum(occupancies(P, np.asarray(policy)) * r)) == pytest.approx(value, abs=1e-12)


def test_the_optimal_value_is_the_best_of_all_deterministic_policies(tiny):
    instance, _ = tiny
    P, r = float64(instance)
    values = [
        value_by_paths(P, r, np.eye(2)[np.array(actions).reshape(3, 2)])
        for actions in itertools.product((0, 1), repeat=6)
    ]
    with jax.enable_x64(True):
        q, v = (np.asarray(x) for x in jax.jit(episodic_mdp.optimal_values)(instance))
    assert float(v[0, 0]) == pytest.approx(max(values), abs=1e-12)
    assert q.shape == (3, 2, 2)
    np.testing.assert_array_equal(v[:3], np.max(q, axis=2))
    assert np.all(v[3] == 0.0)


def test_exact_answers_carry_further_axes_through():
    instances = jax.vmap(episodic_mdp.random().draw)(jax.random.split(jax.random.key(0), 3))
    optimal = jax.jit(lambda instance: episodic_mdp.optimal_values(instance)[0])
    apart = jax.vmap(optimal)(instances)
    last = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), instances)
    np.testing.assert_allclose(jnp.moveaxis(optimal(last), -1, 0), apart, rtol=1e-6)


@pytest.mark.parametrize("name", episodic_mdp.NAMES)
@pytest.mark.parametrize("show_step", [False, True])
def test_an_episode_is_the_one_that_numpy_plays(name, show_step):
    env = episodic_mdp.NAMES[name](horizon=4, states=3, actions=2, show_step=show_step)
    obs, state = env.reset(jax.random.key(3), env.default_params)
    P, r = float64(state.instance)
    space = env.observation_space(env.default_params)
    assert space == (MultiDiscrete((3, 5)) if show_step else Discrete(3))
    transition = jax.jit(env.transition)
    rng = np.random.default_rng(0)
    for _ in range(20):
        s, now, seen = 0, state, obs
        for h in range(4):
            np.testing.assert_array_equal(seen, [s, h] if show_step else s)
            a, u = int(rng.integers(2)), rng.random(1).astype(np.float32)
            seen, now, reward, terminated, truncated, _ = transition(now, a, u, env.default_params)
            assert float(reward) == np.float32(r[h, s, a])
            assert (bool(terminated), bool(truncated)) == (h == 3, False)
            s = int(np.searchsorted(np.cumsum(P[h, s, a])[:-1], u[0], side="right"))


def test_a_batch_restarts_after_the_horizon():
    env = Vectorised(episodic_mdp.random(horizon=3), 4)
    _, state = jax.jit(env.reset)(jax.random.key(0), env.default_params)
    step = jax.jit(env.step)
    for t in range(7):
        obs, state, _, terminated, _, info = step(jax.random.key(t), state, jnp.zeros(4, jnp.int32), env.default_params)
        opened = t % 3 == 2
        assert np.all(np.asarray(terminated) == opened)
        assert np.all(np.asarray(info["reset"]) == opened)
        if opened:
            assert np.all(np.asarray(obs) == episodic_mdp.START)


def test_instances_follow_the_key_unless_their_seed_is_fixed():
    def rewards(env, seed):
        return np.asarray(env.reset(jax.random.key(seed), env.default_params)[1].instance.reward)

    free, fixed, other = (episodic_mdp.random(instance_seed=seed) for seed in (None, 7, 8))
    assert not np.array_equal(rewards(free, 0), rewards(free, 1))
    np.testing.assert_array_equal(rewards(fixed, 0), rewards(fixed, 1))
    np.testing.assert_array_equal(rewards(fixed, 0), rewards(free, 7))
    assert not np.array_equal(rewards(fixed, 0), rewards(other, 0))


def test_random_kernels_are_uniform_on_the_simplex():
    """Null: rows Dirichlet(1, ..., 1) over S = 4 with mean 1/4 and variance 3/80; 9,000 rows, 4 standard errors."""
    instance = jax.jit(episodic_mdp.random(horizon=10, states=4, actions=225).draw)(jax.random.key(0))
    P, r = float64(instance)
    rows = P.reshape(-1, 4)
    np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-6)
    n = len(rows)
    assert np.abs(rows.mean(0) - 0.25).max() < 4 * np.sqrt(3 / 80 / n)
    squares = (rows[:, 0] - 0.25) ** 2
    assert abs(squares.mean() - 3 / 80) < 4 * squares.std() / np.sqrt(n)
    assert abs(r.mean() - 0.5) < 4 * np.sqrt(1 / 12 / r.size)
    assert r.min() >= 0.0
    assert r.max() < 1.0


def test_the_bad_action_pays_nothing_ever_after():
    env = episodic_mdp.bad_action(horizon=3, states=4, actions=3)
    instance = jax.jit(env.draw)(jax.random.key(0))
    P, r = float64(instance)
    np.testing.assert_allclose(P.sum(-1), 1.0, atol=1e-6)
    always = np.zeros((3, 4, 3), np.float32)
    always[:, :, 0] = 1.0
    assert float(episodic_mdp.policy_values(instance, jnp.asarray(always))[0, 0]) == 0.0
    assert np.all(P[:, :, 0, 3] == 1.0)
    assert np.all(P[:, 3, :, 3] == 1.0)
    assert np.all(P[:, :3, 1:, 3] == 0.0)
    assert np.all(r[:, 3] == 0.0)
    assert r[:, :3, 1:].min() >= 0.5


def test_the_chain_is_worth_what_a_hand_computes():
    instance = jax.jit(episodic_mdp.chain(horizon=3, states=2, actions=2).draw)(jax.random.key(0))
    P, r = float64(instance)
    stay, on, end, p = r[0, 0, 0], r[0, 0, 1], r[0, 1].max(), P[0, 0, 1, 1]
    assert (0.4 <= stay < 0.6, 0.0 <= on < 0.2, 0.8 <= end < 1.0, 0.8 <= p < 1.0) == (True,) * 4
    one = stay  # best with one step left, then two, then three
    two = max(stay + one, on + p * end + (1 - p) * one)
    three = max(stay + two, on + p * 2 * end + (1 - p) * two)
    assert float(episodic_mdp.optimal_values(instance)[1][0, 0]) == pytest.approx(three, abs=1e-6)


def test_policies():
    q = jnp.asarray([[[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]]])
    np.testing.assert_array_equal(episodic_mdp.second_best(q), [[[0, 0, 1], [0, 0, 1]]])
    np.testing.assert_array_equal(episodic_mdp.second_best(q[:, :, :1]), jnp.ones((1, 2, 1)))
    np.testing.assert_allclose(episodic_mdp.boltzmann(q, 0.0), 1 / 3, rtol=1e-6)
    ratio = episodic_mdp.boltzmann(q, 2.0)
    assert float(ratio[0, 0, 1] / ratio[0, 0, 2]) == pytest.approx(np.exp(0.8), rel=1e-5)


def test_arrays_become_an_environment():
    P, r = np.full((2, 3, 2, 3), 1 / 3), np.full((2, 3, 2), 0.5)
    env = EpisodicMDP.from_arrays(P, r, show_step=True)
    obs, state = env.reset(jax.random.key(0), env.default_params)
    assert (env.horizon, env.num_states, env.num_actions, env.max_steps(env.default_params)) == (2, 3, 2, 2)
    np.testing.assert_array_equal(obs, [0, 0])
    np.testing.assert_allclose(state.instance.transition, P, rtol=1e-6)


def spoilt(index, value):
    P = np.full((2, 2, 2, 2), 0.5)
    P[index] = value
    return P


@pytest.mark.parametrize(
    ("transition", "reward", "message"),
    [
        (
            spoilt((1, 0, 1, 0), 0.6),
            np.zeros((2, 2, 2)),
            r"transition must hold distributions, got rows like \[1, 0, 1\]",
        ),
        (
            spoilt((0, 1, 0), (1.5, -0.5)),
            np.zeros((2, 2, 2)),
            r"distributions, got rows like \[0, 1, 0\] = \[ 1.5 -0.5\]",
        ),
        (spoilt((0, 0, 0, 0), np.nan), np.zeros((2, 2, 2)), r"distributions, got rows like \[0, 0, 0\]"),
        (
            spoilt((0, 0, 0, 0), 0.5),
            np.full((2, 2, 2), 1.1),
            r"reward must lie in \[0, 1\], got values from 1.1 to 1.1",
        ),
        (spoilt((0, 0, 0, 0), 0.5), np.full((2, 2, 2), np.nan), r"reward must lie in \[0, 1\]"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), r"transition must be \[H, S, A, S\] and reward \[H, S, A\]"),
    ],
)
def test_arrays_that_are_no_mdp_are_refused(transition, reward, message):
    with pytest.raises(ValueError, match=message) as error:
        EpisodicMDP.from_arrays(transition, reward)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Random", {"horizon": 0}),
        ("Random", {"states": 2.5}),
        ("BadAction", {"states": 1}),
        ("BadAction", {"actions": 1}),
        ("Chain", {"actions": True}),
        ("Chain", {"instance_seed": -1}),
    ],
)
def test_impossible_options_are_refused(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"episodic/{name}: {option} must be an integer"):
        episodic_mdp.NAMES[name](**options)
