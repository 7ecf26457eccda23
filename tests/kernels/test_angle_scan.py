"""Sums of angles against a loop in float64, in both of their forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels import angle_scan as module
from engram.kernels.angle_scan import angle_scan, angle_scan_step

T, B, N = 23, 3, 2
FORMS = pytest.mark.parametrize("form", [module._sequential, module._associative])


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    reset = rng.random((T, B)) < 0.2
    reset[0] = [True, False, False]
    return rng.normal(0, 2, (T, B, N)).astype(np.float32), reset, np.full((B, N), 0.4, np.float32)


@FORMS
def test_both_forms_are_the_loop(form, inputs, monkeypatch):
    monkeypatch.setattr(module, "on_cpu_or_not", lambda on_cpu, elsewhere, *inputs: form(*inputs))
    x, reset, n = inputs
    turns, last = angle_scan(*inputs)
    assert np.abs(turns).max() <= 0.5
    for t in range(T):
        n = np.where(reset[t][:, None], 0, n).astype(np.float64) + x[t]
        np.testing.assert_allclose(np.exp(2j * np.pi * turns[t]), np.exp(2j * np.pi * n), atol=1e-5)
    np.testing.assert_array_equal(last, turns[-1])
    later = jax.grad(lambda x: angle_scan(x, reset, inputs[2])[0].sum())(x)[..., 0]
    for b in range(B):  # each term counts until the next reset
        ends = np.append(np.flatnonzero(reset[:, b]), T)
        np.testing.assert_array_equal(later[:, b], [ends[ends > t][0] - t for t in range(T)])


@pytest.mark.slow
@FORMS
def test_long_sums_stay_exact(form, monkeypatch):
    """Ten thousand terms: a plain sum in float32 is wrong by more than a tenth of a turn."""
    monkeypatch.setattr(module, "on_cpu_or_not", lambda on_cpu, elsewhere, *inputs: form(*inputs))
    x = jnp.full((10_000, 1, 1), 0.3)
    turns, _ = angle_scan(x, jnp.zeros((10_000, 1), bool), jnp.zeros((1, 1)))
    truth = float(np.float32(0.3)) * np.arange(1, 10_001)
    off = np.asarray(turns, np.float64)[:, 0, 0] - truth
    np.testing.assert_allclose(off, np.round(off), atol=1e-3)


@FORMS
def test_a_nan_before_a_reset_stays_there(form, inputs, monkeypatch):
    monkeypatch.setattr(module, "on_cpu_or_not", lambda on_cpu, elsewhere, *inputs: form(*inputs))
    x, reset, n0 = inputs
    reset[7] = True
    x[6] = np.nan
    turns, _ = angle_scan(x, reset, np.full_like(n0, np.nan))
    assert np.isfinite(turns[7:]).all()
    assert np.isnan(turns[6]).all()


def test_steps_are_the_scan_and_shapes_are_checked(inputs):
    x, reset, n = (jnp.asarray(a) for a in inputs)
    turns, _ = angle_scan(x, reset, n)
    for t in range(T):
        n = angle_scan_step(n, x[t], reset[t])
        np.testing.assert_array_equal(n, turns[t])
    with pytest.raises(ValueError, match=r"angle_scan: reset has shape \(23, 1\), not \(23, 3\)"):
        angle_scan(x, reset[:, :1], n)
    with pytest.raises(ValueError, match="angle_scan_step: n has shape"):
        angle_scan_step(n[:1], x[0], reset[0])
    empty, last = angle_scan(x[:0], reset[:0], n)
    assert empty.shape == (0, B, N)
    np.testing.assert_array_equal(last, n)
