"""Action distributions against scipy and exhaustive enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engram.agents.common.distributions import (
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    allowed,
    head_size,
)
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


@pytest.mark.slow
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


MASK = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1]], bool)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e6])
def test_a_masked_categorical_is_the_one_over_what_is_allowed(scale):
    """Against softmax over the allowed logits alone, in float64, and its gradients by hand."""
    logits = np.asarray(scale * LOGITS, np.float32)
    policy = Categorical(allowed(jnp.asarray(logits), jnp.asarray(MASK)))
    x = np.where(MASK, logits.astype(float), -np.inf)
    log_p = x - x.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    p = np.exp(log_p)
    np.testing.assert_allclose(policy.entropy(), stats.entropy(p, axis=-1), rtol=1e-5, atol=1e-6)
    for action in range(6):
        ours = np.asarray(policy.log_prob(jnp.full(4, action)))
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours[MASK[:, action]], log_p[MASK[:, action], action], rtol=1e-5, atol=1e-6)
        assert (np.exp(ours)[~MASK[:, action]] == 0).all()
    np.testing.assert_array_equal(policy.mode(), p.argmax(-1))

    def both(logits, action):
        policy = Categorical(allowed(logits, jnp.asarray(MASK)))
        return policy.log_prob(action).sum(), policy.entropy().sum()

    action = policy.mode()
    score, spread = jax.jacrev(both)(jnp.asarray(logits), action)
    np.testing.assert_allclose(score, np.eye(6)[action] - p, atol=1e-6)
    safe = np.where(p > 0, log_p, 0)
    entropy = -(p * safe).sum(-1, keepdims=True)
    np.testing.assert_allclose(spread, -p * (safe + entropy), atol=1e-5)
    assert (np.asarray(score)[~MASK] == 0).all()
    assert (np.asarray(spread)[~MASK] == 0).all()


def test_a_masked_categorical_draws_what_is_allowed_alone():
    logits = np.where(MASK, LOGITS, 1e4).astype(np.float32)  # as much as can be for what is forbidden
    policy = Categorical(allowed(jnp.asarray(logits), jnp.asarray(MASK)))
    draws = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20_000)))
    for row in range(4):
        p = np.where(MASK[row], np.exp(LOGITS[row].astype(float)), 0)
        counts = np.bincount(draws[:, row], minlength=6)
        assert counts[~MASK[row]].sum() == 0
        if MASK[row].sum() > 1:
            expected = 20_000 * (p / p.sum())[MASK[row]]
            assert stats.chisquare(counts[MASK[row]], expected).pvalue > 1e-4


def test_masks_of_components_are_their_own():
    policy = MultiCategorical(allowed(jnp.asarray(LOGITS[0]), jnp.asarray(MASK[3])), (2, 4))
    actions = [(i, j) for i in range(2) for j in range(4)]
    p = np.array([np.exp(policy.log_prob(jnp.array(a))) for a in actions])
    first = np.exp(LOGITS[0].astype(float)) * MASK[3]
    want = np.outer(first[:2] / first[:2].sum(), first[2:] / first[2:].sum()).ravel()
    np.testing.assert_allclose(p, want, atol=1e-6)
    assert (p[want == 0] == 0).all()
    np.testing.assert_allclose(policy.entropy(), stats.entropy(want), rtol=1e-5)


def test_no_mask_changes_nothing_and_one_that_allows_nothing_is_none_of_the_policys():
    logits = jnp.asarray(LOGITS)
    assert allowed(logits, None) is logits
    nothing = Categorical(allowed(logits, jnp.zeros(LOGITS.shape, bool)))
    np.testing.assert_allclose(nothing.log_prob(jnp.arange(4)), -np.log(6), rtol=1e-6)
    assert not jax.grad(lambda x: Categorical(allowed(x, jnp.zeros(x.shape, bool))).entropy().sum())(logits).any()


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
