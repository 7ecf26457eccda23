"""Action distributions against scipy and exhaustive enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engram.agents.common.distributions import Categorical, DiagonalGaussian, MultiCategorical, head_size
from engram.envs.spaces import Box, Discrete, MultiDiscrete, Tuple

LOGITS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def test_categorical_equals_scipy():
    policy = Categorical(jnp.asarray(LOGITS))
    p = np.exp(LOGITS.astype(float))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(policy.entropy(), stats.entropy(p, axis=-1), rtol=1e-5)
    for action in range(6):
        np.testing.assert_allclose(policy.log_prob(jnp.full(4, action)), np.log(p[:, action]), rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), p.argmax(-1))
    draws = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20_000)))
    for row in range(4):
        counts = np.bincount(draws[:, row], minlength=6)
        assert stats.chisquare(counts, 20_000 * p[row]).pvalue > 1e-4


def test_multi_categorical_sums_over_all_actions():
    policy = MultiCategorical(jnp.asarray(LOGITS), (2, 4))
    actions = jnp.array([(i, j) for i in range(2) for j in range(4)])
    log_p = jax.vmap(lambda a: policy.log_prob(jnp.broadcast_to(a, (4, 2))))(actions)
    np.testing.assert_allclose(jnp.exp(log_p).sum(0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), -(jnp.exp(log_p) * log_p).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), actions[log_p.argmax(0)])
    sample = policy.sample(jax.random.key(1))
    assert sample.shape == (4, 2)
    assert (sample < jnp.array([2, 4])).all()


def test_gaussian_equals_scipy():
    mean, log_std = jnp.asarray(LOGITS), jnp.linspace(-1.0, 1.0, 6)
    policy = DiagonalGaussian(mean, log_std)
    action = mean + 0.3
    scale = np.exp(log_std)
    np.testing.assert_allclose(policy.log_prob(action), stats.norm.logpdf(action, mean, scale).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(policy.entropy(), stats.norm.entropy(mean, scale).sum(-1), rtol=1e-5)
    draws = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose(draws.std(0), np.broadcast_to(np.exp(log_std), (4, 6)), rtol=0.03)


def test_head_sizes():
    assert head_size(Discrete(5)) == 5
    assert head_size(MultiDiscrete((3, 4))) == 7
    assert head_size(Box(-1.0, 1.0, (2,))) == 2
    with pytest.raises(ValueError, match="no policy"):
        head_size(Tuple((Discrete(2), Discrete(2))))
