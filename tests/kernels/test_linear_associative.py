"""The linear scan as plain JAX runs it on a GPU: associative scans, called here on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.linear_scan import _backward_associative, _scan, _scan_associative
from tests.kernels.cases import CASES
from tests.kernels.test_scans import PATTERNS, B, T, relative, resets

NAMES = ("linear, constant real", "linear, constant complex", "linear, varying")
EACH = pytest.mark.parametrize("name", NAMES)


@jax.jit
def associative(a, x, reset, h0):
    return gradients_by(_scan_associative, _backward_associative, a, x, reset, h0)


@jax.jit
def reference(a, x, reset, h0):
    def backward(a, reset, h0, h, *cotangents):
        return jax.vjp(lambda a, x, h0: _scan(a, x, reset, h0), a, x, h0)[1](cotangents)

    return gradients_by(_scan, backward, a, x, reset, h0)


def gradients_by(forward, backward, a, x, reset, h0):
    h, last = forward(a, x, reset, h0)
    g, g_last = (jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype) for y in (h, last))
    return (h, last), backward(a, reset, h0, h, g, g_last)


def arrays(name, key, T=T, B=B):
    weights, sequence, h0 = CASES[name].inputs(jax.random.key(key), T, B)
    a, x = (weights, sequence) if "constant" in name else sequence
    return a, x, h0


@EACH
def test_values_and_gradients_equal_float64_autodiff(name):
    with jax.enable_x64(True):
        a, x, h0 = arrays(name, 0)
        for pattern in PATTERNS:
            reset = resets(pattern)
            assert relative(associative(a, x, reset, h0), reference(a, x, reset, h0)) < 1e-12, pattern
        a, x, h0 = arrays(name, 1, 1, 1)
        assert relative(associative(a, x, None, h0), reference(a, x, None, h0)) < 1e-12


@EACH
def test_float32_close_to_float64(name):
    with jax.enable_x64(True):
        exact = arrays(name, 2)
        truth = reference(*exact[:2], resets("scattered"), exact[2])
        a, x, h0 = (x.astype(jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32) for x in exact)
        ours = associative(a, x, resets("scattered"), h0)
        assert {x.dtype for x in jax.tree.leaves(ours)} <= {jnp.dtype("float32"), jnp.dtype("complex64")}
        assert relative(ours, truth) < 1e-5


@EACH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_bad_survives_a_reset(name, bad):
    a, x, h0 = arrays(name, 3)
    first = resets("first")
    assert relative(associative(a, x, first, jnp.full_like(h0, bad)), associative(a, x, first, h0)) == 0

    reset = resets("absent")
    reset[8] = True
    (h, last), (da, dx, _) = associative(a, x.at[5].set(bad), reset, h0)
    (h_clean, last_clean), (da_clean, dx_clean, _) = associative(a, x, reset, h0)
    assert not np.isfinite(h[5]).any()
    ours, clean = (h[8:], last, dx), (h_clean[8:], last_clean, dx_clean)
    if a.ndim == 3:  # a decay shared by all steps collects the bad one
        ours, clean = (*ours, da[8:]), (*clean, da_clean[8:])
    assert relative(ours, clean) == 0


@EACH
def test_no_gradient_crosses_a_reset(name):
    a, x, h0 = arrays(name, 4)
    reset = resets("absent")
    reset[8, 1] = True
    h, last = jax.jit(_scan)(a, x, reset, h0)
    g = jnp.zeros_like(h).at[8:].set(1)
    _, dx, dh0 = jax.jit(_backward_associative)(a, reset, h0, h, g, jnp.ones_like(last))
    assert (np.asarray(dx[:8, 1]) == 0).all()
    assert (np.asarray(dh0[1]) == 0).all()
    assert np.abs(dx[7, [0, 2]]).sum() > 0
