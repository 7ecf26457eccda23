"""Two-hot numbers against their definition: a point between two bins in symlog space, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from engram.worldmodels.twohot import TwoHot, symexp, symlog

BINS = np.linspace(-20.0, 20.0, 255)
VALUES = np.array([-1e8, -123456.0, -7.5, -1.0, -1e-3, 0.0, 0.01, 0.5, 1.0, 3.0, 1000.0, 4e8])


def symlog64(x):
    return np.sign(x) * np.log(1.0 + np.abs(np.asarray(x, np.float64)))


def weights64(x):
    """Each weight by its share of the gap between the bins around it."""
    place = np.clip(symlog64(x), -20.0, 20.0)
    above = np.clip(np.searchsorted(BINS, place, side="right"), 1, 254)
    share = (place - BINS[above - 1]) / (BINS[above] - BINS[above - 1])
    out = np.zeros((*np.shape(x), 255))
    np.put_along_axis(out, above[..., None] - 1, 1.0 - share[..., None], -1)
    np.put_along_axis(out, above[..., None], share[..., None], -1)
    return out


encode, decode, loss = (jax.jit(f) for f in (TwoHot().encode, TwoHot().decode, TwoHot().loss))


def test_symlog_and_symexp():
    np.testing.assert_allclose(symlog(jnp.asarray(VALUES, jnp.float32)), symlog64(VALUES), rtol=1e-6)
    np.testing.assert_allclose(symexp(symlog(jnp.asarray(VALUES, jnp.float32))), VALUES, rtol=1e-5)


def test_weights_are_two_neighbours_that_sum_to_one():
    values = np.sinh(np.random.default_rng(0).uniform(-19.0, 19.0, 500))
    out = np.asarray(encode(values))
    np.testing.assert_allclose(out.sum(-1), 1.0, atol=1e-6)
    for row in out:
        used = np.flatnonzero(row)
        assert 1 <= len(used) <= 2
        assert used[-1] - used[0] == len(used) - 1
    np.testing.assert_allclose(out, weights64(values), atol=3e-5)  # a place near 254 in float32


def test_round_trip():
    np.testing.assert_allclose(decode(jnp.log(encode(VALUES))), VALUES, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_beyond_the_range_is_the_end(sign):
    """The ends themselves are inside: a reward of exactly -symexp(20) has a two-hot form."""
    end = sign * np.expm1(20.0)
    out = np.asarray(encode(np.array([end, 2.0 * end, sign * np.inf])))
    assert np.isfinite(out).all()
    for row in out:
        assert row[0 if sign < 0 else -1] == pytest.approx(1.0, abs=1e-4)
        assert row.sum() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(decode(jnp.log(out[0])), end, rtol=1e-4)


def test_the_lower_end_in_symlog_space_is_the_first_bin():
    small = TwoHot(bins=5, low=-float(np.log(2.0)), high=float(np.log(2.0)))
    np.testing.assert_allclose(small.encode(jnp.array([-1.0, 0.0, 1.0])), np.eye(5)[[0, 2, 4]], atol=1e-6)


def test_decoding_takes_the_mean_in_symlog_space():
    assert abs(float(decode(jnp.zeros(255)))) < 1e-5
    logits = np.random.default_rng(1).normal(0.0, 3.0, (20, 255))
    mean = scipy.special.softmax(logits, axis=-1) @ BINS
    np.testing.assert_allclose(decode(logits), np.sign(mean) * np.expm1(np.abs(mean)), rtol=1e-4, atol=1e-5)


def test_loss_is_the_cross_entropy_and_minimal_at_the_target():
    logits = np.random.default_rng(2).normal(0.0, 3.0, (len(VALUES), 255))
    expected = -np.sum(weights64(VALUES) * scipy.special.log_softmax(logits, axis=-1), -1)
    np.testing.assert_allclose(loss(logits, VALUES), expected, rtol=2e-4)
    # The gradient is softmax - weights, and nothing flows into the target.
    gradients = jax.jit(jax.grad(lambda l, x: jnp.sum(TwoHot().loss(l, x)), (0, 1)))(logits, VALUES)
    np.testing.assert_allclose(gradients[0], scipy.special.softmax(logits, axis=-1) - weights64(VALUES), atol=3e-5)
    assert not np.asarray(gradients[1]).any()
