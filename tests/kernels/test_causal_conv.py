"""The causal convolution against numpy, episode by episode."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.causal_conv import causal_conv, causal_conv_step

T, B, D = 11, 3, 2


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    reset = np.zeros((T, B), bool)
    reset[[0, 3, 4, 9], [0, 0, 0, 1]] = True
    return rng.normal(size=(T, B, D)).astype(np.float32), rng.normal(size=D).astype(np.float32), reset


@pytest.mark.parametrize("K", [1, 2, 4, 14])
def test_equals_numpy_convolution_of_each_episode(inputs, K):
    x, bias, reset = inputs
    weight = np.random.default_rng(K).normal(size=(K, D)).astype(np.float32)
    taps = np.random.default_rng(K + 1).normal(size=(B, K - 1, D)).astype(np.float32)
    y, after = jax.jit(causal_conv)(x, weight, bias, reset, taps)
    for b in range(B):
        starts = [0, *np.flatnonzero(reset[1:, b]) + 1, T]
        episode = taps[b]
        for start, end in pairwise(starts):
            carried = np.zeros((K - 1, D)) if reset[start, b] else taps[b]
            episode = np.concatenate([carried, x[start:end, b]])
            for d in range(D):
                want = np.convolve(episode[:, d], weight[::-1, d], "valid") + bias[d]
                np.testing.assert_allclose(y[start:end, b, d], want, atol=1e-5)
        np.testing.assert_allclose(after[b], episode[len(episode) - (K - 1) :], atol=0)


def test_steps_equal_the_sequence(inputs):
    x, bias, reset = inputs
    weight, taps = jnp.ones((4, D)) * jnp.arange(1, 5)[:, None], jnp.ones((B, 3, D))
    y, after = jax.jit(causal_conv)(x, weight, bias, reset, taps)
    step = jax.jit(causal_conv_step)
    for t in range(T):
        taps, y_t = step(taps, x[t], weight, bias, reset[t])
        np.testing.assert_allclose(y_t, y[t], atol=1e-5)
    np.testing.assert_array_equal(taps, after)


def test_taps_keep_their_dtype(inputs):
    x, bias, reset = inputs
    x, weight, taps = x.astype(jnp.bfloat16), jnp.ones((4, D)), jnp.ones((B, 3, D))
    y, after = causal_conv(x, weight, bias, reset, taps)
    after_one, y_one = causal_conv_step(taps, x[0], weight, bias, reset[0])
    assert y.dtype == y_one.dtype == after.dtype == after_one.dtype == jnp.float32


def test_shapes_are_checked(inputs):
    x, bias, reset = inputs
    weight, taps = jnp.ones((4, D)), jnp.ones((B, 3, D))
    for bad in (reset[:, :1], reset.astype(np.float32)):
        with pytest.raises(ValueError, match=r"causal_taps: reset (has shape \(11, 1\)|must be of dtype bool)"):
            causal_conv(x, weight, bias, bad, taps)
        with pytest.raises(ValueError, match=r"the mask (has shape|must be of dtype bool)"):
            causal_conv_step(taps, x[0], weight, bias, bad[0])
    with pytest.raises(ValueError, match="causal_conv: taps has shape"):
        causal_conv(x, weight, bias, reset, taps[:1])
    with pytest.raises(ValueError, match="causal_conv_step: taps has shape"):
        causal_conv_step(taps[:1], x[0], weight, bias, reset[0])


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("size", [(0, B), (T, 0)])
def test_no_steps_and_no_rows(inputs, K, size):
    x, bias, reset = inputs
    x, reset = (array[: size[0], : size[1]] for array in (x, reset))
    taps = jnp.ones((size[1], K - 1, D))
    y, after = jax.jit(causal_conv)(x, jnp.ones((K, D)), bias, reset, taps)
    assert y.shape == x.shape
    np.testing.assert_array_equal(after, taps)


def test_nan_does_not_cross_a_reset(inputs):
    x, bias, reset = inputs
    reset = reset.copy()
    reset[0], reset[6] = True, True
    x = x.copy()
    x[5] = np.nan
    y, after = causal_conv(x, jnp.ones((4, D)), bias, reset, jnp.full((B, 3, D), jnp.nan))
    assert np.isfinite(y[:5]).all()
    assert np.isnan(y[5]).all()
    assert np.isfinite(y[6:]).all()
    assert np.isfinite(after).all()
