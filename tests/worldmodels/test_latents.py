"""Categorical latents against scipy in float64, where categoricals and classes differ in number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from engram.worldmodels import latents

pytestmark = pytest.mark.usefixtures("quickly_compiled")
K, C = 3, 5
LOGITS = np.random.default_rng(0).normal(0.0, 2.0, (7, K, C))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_unimix_is_a_distribution_with_a_floor(shape):
    logits = np.random.default_rng(1).normal(0.0, 30.0, (6, *shape))
    probs = np.exp(np.asarray(latents.unimix(jnp.asarray(logits), 0.01)))
    np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(probs, 0.99 * scipy.special.softmax(logits, -1) + 0.01 / shape[1], rtol=1e-5)
    assert probs.min() >= 0.01 / shape[1] * (1 - 1e-5)


def test_dividing_by_the_number_of_categoricals_is_no_distribution_unless_they_are_as_many_as_the_classes():
    total = np.exp(np.asarray(latents.unimix(jnp.asarray(LOGITS), 0.01, K))).sum(-1)
    np.testing.assert_allclose(total, 0.99 + 0.01 * C / K, rtol=1e-5)
    square = jnp.asarray(LOGITS[..., :K])
    np.testing.assert_array_equal(latents.unimix(square, 0.01, K), latents.unimix(square, 0.01))


def test_kl_is_the_sum_of_relative_entropies():
    p, q = (scipy.special.log_softmax(x, -1) for x in (LOGITS, np.roll(LOGITS, 1, 0)))
    expected = scipy.stats.entropy(np.exp(p), np.exp(q), axis=-1).sum(-1)
    np.testing.assert_allclose(latents.kl(jnp.asarray(p), jnp.asarray(q)), expected, rtol=1e-5)
    np.testing.assert_allclose(latents.kl(jnp.asarray(p), jnp.asarray(p)), 0.0, atol=1e-6)


def test_samples_carry_the_gradient_of_the_probabilities():
    weight = np.random.default_rng(2).normal(size=(7, K * C))

    def through_samples(logits):
        z = latents.sample(jax.random.key(0), latents.unimix(logits, 0.01))
        return jnp.sum(weight * z)

    # Of p = softmax(l): dp_i / dl_j = p_i (1[i = j] - p_j), times the share that is not uniform.
    p, w = scipy.special.softmax(LOGITS, -1), weight.reshape(7, K, C)
    expected = 0.99 * p * (w - np.sum(p * w, -1, keepdims=True))
    np.testing.assert_allclose(jax.grad(through_samples)(jnp.asarray(LOGITS)), expected, atol=1e-6)


def test_samples_are_independent_one_hot_vectors_with_the_right_frequencies():
    log_probs = scipy.special.log_softmax(LOGITS[0], -1)
    n = 20_000
    z = np.asarray(latents.sample(jax.random.key(3), jnp.broadcast_to(log_probs, (n, K, C))))
    assert z.shape == (n, K * C)
    hot = z.reshape(n, K, C)
    np.testing.assert_allclose(np.sort(hot, -1), np.broadcast_to([0, 0, 0, 0, 1], hot.shape), atol=1e-6)
    probs = np.exp(log_probs)
    error = 5 * np.sqrt(probs * (1 - probs) / n)
    assert (np.abs(hot.mean(0) - probs) < error + 1e-6).all()
    both = np.einsum("na,nb->ab", hot[:, 0], hot[:, 1]) / n
    joint = np.outer(probs[0], probs[1])
    assert (np.abs(both - joint) < 5 * np.sqrt(joint * (1 - joint) / n) + 1e-6).all()
