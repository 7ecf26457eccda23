"""Contextual bandits: contexts in blocks, losses by label, draws with replacement, instances with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.bandits import classification as classification_bandit
from engram.envs.bandits.classification import DATA_SETS, NAMES, ClassificationBandit, ClassificationState

KEY = jax.random.key(0)
SMALL = ClassificationBandit(np.array([[0.6, 0.8], [1.0, 0.0], [0.0, -1.0]]), np.array([2, 0, 1]))


def test_contexts_and_losses_by_hand():
    state = ClassificationState(jnp.int32(2))
    obs, state, reward, *_ = SMALL.transition(state, 1, jnp.array([0.1]), SMALL.default_params)
    assert reward == 1  # example 2 is of class 1
    assert state.example == 0
    np.testing.assert_allclose(obs, [[0.6, 0.8, 0, 0, 0, 0], [0, 0, 0.6, 0.8, 0, 0], [0, 0, 0, 0, 0.6, 0.8]], atol=1e-7)
    rewards = [SMALL.transition(state, a, jnp.array([0.1]), SMALL.default_params)[2] for a in range(3)]
    np.testing.assert_array_equal(rewards, [0, 0, 1])


def test_examples_are_drawn_with_replacement():
    drawn = [int(SMALL._draw(jnp.float32(u))) for u in (0.0, 0.333, 0.334, 0.666, 0.667, 0.99999994)]
    assert drawn == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", DATA_SETS)
def test_bundled_data_sets(name):
    env = classification_bandit.bundled(name)
    sizes = {"iris": (150, 4, 3), "wine": (178, 13, 3), "breast_cancer": (569, 30, 2), "digits": (1797, 64, 10)}
    assert (*env.features.shape, env.num_arms) == sizes[name]
    np.testing.assert_allclose(np.linalg.norm(env.features, axis=1), 1.0, rtol=1e-12)
    obs, state = env.reset(KEY, env.default_params)
    assert obs.shape == env.observation_space(env.default_params).shape
    # The right arm of every example pays 1 and its context holds the example where the label says.
    i = int(state.example)
    label = int(env.labels[i])
    d = env.features.shape[1]
    np.testing.assert_allclose(obs[label, label * d : (label + 1) * d], env.features[i], atol=1e-6)
    assert np.count_nonzero(obs) <= env.num_arms * d


def played(env, key, rounds=2000):
    """The last state; contexts, arms, mean, best and realised losses of rounds with uniform arms, `[rounds, ...]`."""

    def step(carry, key):
        obs, state = carry
        arm_key, key = jax.random.split(key)
        arm = env.action_space(env.default_params).sample(arm_key)
        next_obs, state, reward, _, _, info = env.step(key, state, arm, env.default_params)
        return (next_obs, state), (obs, arm, 1 - info["mean"], 1 - info["optimal"], 1 - reward)

    start = env.reset(key, env.default_params)
    (_, state), trace = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(key, rounds)))()
    return state, *map(np.asarray, trace)


def test_linear_losses():
    """The realised losses' mean is that of their means: a binomial test, five standard errors of 2000 rounds."""
    env = NAMES["LinearLoss"](arms=4, dimension=3)
    state, contexts, arms, mean, best, loss = played(env, KEY)
    losses = contexts @ np.asarray(state.weights)
    np.testing.assert_allclose(mean, losses[np.arange(2000), arms], atol=1e-6)
    np.testing.assert_allclose(best, losses.min(1), atol=1e-6)
    assert 0 <= losses.min() < losses.max() <= 1
    assert np.linalg.norm(contexts, axis=2).max() <= 1 + 1e-6
    assert set(np.unique(loss)) == {0.0, 1.0}
    assert abs(loss.mean() - mean.mean()) < 5 * 0.5 / 2000**0.5


def test_zero_loss_has_one_good_arm_a_round():
    env = NAMES["ZeroLoss"](arms=4, dimension=3)
    state, contexts, arms, mean, best, loss = played(env, KEY)
    losses = contexts @ np.asarray(state.weights)
    np.testing.assert_allclose(np.sort(losses, axis=1), np.tile([0, 1, 1, 1], (2000, 1)), atol=1e-6)
    np.testing.assert_allclose(loss, losses[np.arange(2000), arms], atol=1e-6)
    np.testing.assert_array_equal(best, 0.0)
    np.testing.assert_allclose(mean, loss, atol=1e-6)
    good = np.bincount(losses.argmin(1), minlength=4) / 2000
    np.testing.assert_allclose(good, 0.25, atol=5 * (0.1875 / 2000) ** 0.5)


def test_instances_differ_by_key_unless_fixed():
    def weights(env, seed):
        return np.asarray(env.reset(jax.random.key(seed), env.default_params)[1].weights)

    free, fixed = NAMES["LinearLoss"](), NAMES["LinearLoss"](instance_seed=1)
    assert np.any(weights(free, 0) != weights(free, 1))
    np.testing.assert_array_equal(weights(fixed, 0), weights(fixed, 1))


def test_what_is_refused():
    for build, message in (
        (lambda: classification_bandit.linear_loss(arms=1), "arms and dimension must be at least 2, got 1, 5"),
        (lambda: classification_bandit.zero_loss(dimension=1), "got 5, 1"),
        (lambda: ClassificationBandit(np.zeros((3, 2)), np.zeros(2, int)), r"got \(3, 2\) and \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
