"""Dynamical bandits: J by matrix inverse and by simulation, the noise's distribution, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.bandits import dynamical as dynamical_bandit
from engram.envs.bandits.dynamical import NAMES, budgets, from_arrays, growth, normal
from engram.envs.spaces import Discrete

KEY = jax.random.key(0)
SYSTEMS = [
    dynamical_bandit.diagonal(sigma=0.0),
    dynamical_bandit.advertising(sigma=0.0),
    dynamical_bandit.random(sigma=0.0, radius=0.8),
]


def arrays(env, key=KEY):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, env.reset(key, env.default_params)[1].system)


@pytest.mark.parametrize("env", SYSTEMS)
def test_value_by_matrix_inverse(env):
    s = arrays(env)
    h = s.theta + s.B.T @ np.linalg.inv(np.eye(len(s.A)) - s.A.T) @ s.omega
    np.testing.assert_allclose(s.value, s.actions @ h, rtol=1e-12)


def test_value_of_the_papers_system():
    value = np.sort(arrays(dynamical_bandit.diagonal()).value)
    np.testing.assert_allclose(value[-2:], [0.78125, 0.8125], atol=1e-3)
    # By hand: h = (0.45 / 0.8, 0.5, 0.1 + 0.01 / 0.9) and the best action is (1, 0.5, 0).
    np.testing.assert_allclose(value[-1], 0.5625 + 0.25, rtol=1e-12)


@pytest.mark.parametrize("env", SYSTEMS)
def test_a_held_action_comes_to_pay_its_value(env):
    with jax.enable_x64(True):
        _, start = env.reset(KEY, env.default_params)
        half = jnp.full(env.num_uniforms, 0.5)

        def held(action):
            def step(state, _):
                _, state, reward, *_ = env.transition(state, action, half, env.default_params)
                return state, reward

            return jax.lax.scan(step, start, None, length=300)[1]

        rewards = jax.jit(jax.vmap(held))(jnp.arange(len(start.system.value)))
        np.testing.assert_allclose(rewards[:, -1], start.system.value, rtol=1e-10)
        np.testing.assert_allclose(rewards[:, 0], start.system.actions @ start.system.theta, rtol=1e-10, atol=1e-12)


def test_noise_is_normal():
    """Moments of n = 2e5 draws: tolerances are five standard errors of each."""
    n = 200_000
    x = np.asarray(normal(jax.random.uniform(KEY, (n,))), np.float64)
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert -6 < normal(jnp.zeros(())) < -5


def test_noise_of_a_reward():
    """The first reward is <theta, u> plus output noise alone, the next also carries omega' eps."""
    env = dynamical_bandit.diagonal(sigma=0.1)
    _, start = env.reset(KEY, env.default_params)

    def two(key):
        u = jax.random.uniform(key, (2, env.num_uniforms))
        _, state, first, *_ = env.transition(start, 0, u[0], env.default_params)
        return jnp.stack([first, env.transition(state, 0, u[1], env.default_params)[2]])

    n = 100_000
    rewards = np.asarray(jax.jit(jax.vmap(two))(jax.random.split(KEY, n)), np.float64)
    expected = np.array([3 * 0.01, 3 * 0.01 + (1 + 0.01) * 0.01])
    np.testing.assert_allclose(rewards.var(0), expected, rtol=5 * (2 / n) ** 0.5)


def test_random_instances_keep_their_bounds():
    env = dynamical_bandit.random(radius=0.7)
    bounds = env.bounds()
    for seed in range(5):
        s = arrays(env, jax.random.key(seed))
        np.testing.assert_allclose(dynamical_bandit.spectral_radius(s.A), 0.7, rtol=1e-6)
        np.testing.assert_allclose(growth(s.A, 0.7), 1.0, rtol=1e-5)
        assert np.linalg.norm(s.omega) <= bounds.omega + 1e-6
        assert np.linalg.norm(s.theta) <= bounds.theta + 1e-6
        assert np.linalg.norm(s.B, 2) <= bounds.gain + 1e-6
        assert np.linalg.norm(s.actions, axis=1).max() <= bounds.action + 1e-6


def test_instances_differ_by_key_unless_fixed():
    other = jax.random.key(1)
    free, fixed = dynamical_bandit.random(), dynamical_bandit.random(instance_seed=3)
    assert np.any(arrays(free).A != arrays(free, other).A)
    np.testing.assert_array_equal(arrays(fixed).A, arrays(fixed, other).A)


def test_growth_of_a_jordan_block():
    """|A^i| / r^i for A = r (I + N) is the norm of [[1, i], [0, 1]], unbounded; over a larger radius it is not."""
    A = np.array([[0.5, 0.5], [0.0, 0.5]])
    i = np.arange(1, 200)
    exact = max(np.linalg.norm([[1.0, k], [0.0, 1.0]], 2) * (0.5 / 0.6) ** k for k in i)
    np.testing.assert_allclose(growth(A, 0.6), exact, rtol=1e-12)
    assert growth(A, 0.4) == np.inf
    assert growth(np.zeros((2, 2)), 0.0) == 1.0
    assert growth(np.array([[0.0, 1.0], [0.0, 0.0]]), 0.0) == np.inf


def test_systems_that_are_refused():
    good = {
        "A": np.eye(2) * 0.5, "B": np.eye(2), "omega": np.ones(2), "theta": np.ones(2),
        "actions": budgets((1.0, 0.0)), "state_sigma": 0.1, "output_sigma": 0.1,
    }  # fmt: skip

    def make(name, value):
        return lambda: from_arrays(**(good | {name: value}))

    for build, message in (
        (make("A", np.eye(2)), "spectral radius below 1, got 1"),
        (make("A", np.array([[0.0, 4.0], [1.0, 0.0]])), "spectral radius below 1, got 2"),
        (make("B", np.eye(3)), r"B must have shape \(2, 2\)"),
        (make("omega", np.array([1.0, np.nan])), "omega must hold finite numbers"),
        (make("actions", np.zeros((0, 2))), "actions must have shape"),
        (make("state_sigma", -1.0), "state_sigma must be a number from 0"),
        (lambda: dynamical_bandit.random(radius=1.0), r"radius must lie in \[0, 1\)"),
        (lambda: dynamical_bandit.random(actions=0), "num_actions must be at least 1"),
        (lambda: dynamical_bandit.diagonal(sigma=-0.1), "state_sigma"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            build()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_interface(name):
    env = NAMES[name]()
    obs, state = env.reset(KEY, env.default_params)
    obs, _, reward, terminated, truncated, _ = jax.jit(env.step)(KEY, state, jnp.int32(1), env.default_params)
    assert (obs.dtype, reward.dtype, reward.shape) == (jnp.int32, jnp.float32, ())
    assert not (terminated | truncated)
    assert env.action_space(env.default_params) == Discrete(len(state.system.value))
