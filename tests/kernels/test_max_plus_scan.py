"""The running maximum against a loop in NumPy, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels import max_plus_scan as module
from engram.kernels.max_plus_scan import max_plus_scan, max_plus_scan_step

T, B, H = 23, 3, 2


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    log_decay, x = -rng.exponential(3.0, (T, B, H)), rng.normal(0, 8, (T, B, H))
    reset = rng.random((T, B)) < 0.2
    reset[0] = [True, False, False]
    return (*(a.astype(np.float32) for a in (log_decay, x)), reset, np.full((B, H), 5, np.float32))


@pytest.mark.parametrize("form", [module._sequential, module._associative])
def test_both_forms_are_the_loop(form, inputs, monkeypatch):
    monkeypatch.setattr(module, "on_cpu_or_not", lambda on_cpu, elsewhere, *inputs: form(*inputs))
    log_decay, x, reset, m = inputs
    found, now, last = max_plus_scan(*inputs)
    for t in range(T):
        before = np.where(reset[t][:, None], 0, m)
        m = np.maximum(np.maximum(before + log_decay[t], x[t]), 0)
        np.testing.assert_allclose(found[t], before, atol=1e-4)
        np.testing.assert_allclose(now[t], m, atol=1e-4)
    np.testing.assert_array_equal(last, now[-1])


@pytest.mark.parametrize("form", [module._sequential, module._associative])
def test_a_nan_before_a_reset_stays_there(form, inputs, monkeypatch):
    monkeypatch.setattr(module, "on_cpu_or_not", lambda on_cpu, elsewhere, *inputs: form(*inputs))
    log_decay, x, reset, m0 = inputs
    reset[7] = True
    x[6], log_decay[5] = np.nan, np.nan
    found, now, _ = max_plus_scan(log_decay, x, reset, np.full_like(m0, np.nan))
    assert np.isfinite(now[7:]).all()
    assert np.isfinite(found[7:]).all()
    assert np.isnan(now[6]).all()


def test_steps_are_the_scan_and_have_no_gradient(inputs):
    log_decay, x, reset, m = (jnp.asarray(a) for a in inputs)
    found, now, _ = max_plus_scan(log_decay, x, reset, m)
    for t in range(T):
        before, m = max_plus_scan_step(m, log_decay[t], x[t], reset[t])
        np.testing.assert_array_equal(before, found[t])
        np.testing.assert_array_equal(m, now[t])
    assert not jax.grad(lambda x: max_plus_scan(log_decay, x, reset, m)[1].sum())(x).any()


def test_shapes_are_checked_and_no_steps_are_none(inputs):
    log_decay, x, reset, m = inputs
    with pytest.raises(ValueError, match=r"max_plus_scan: reset has shape \(23, 1\), not \(23, 3\)"):
        max_plus_scan(log_decay, x, reset[:, :1], m)
    with pytest.raises(ValueError, match="max_plus_scan: reset must be of dtype bool, not float32"):
        max_plus_scan(log_decay, x, reset.astype(np.float32), m)
    with pytest.raises(ValueError, match="max_plus_scan_step: m has shape"):
        max_plus_scan_step(m[:1], log_decay[0], x[0], reset[0])
    found, now, last = max_plus_scan(log_decay[:0], x[:0], reset[:0], m)
    assert found.shape == now.shape == (0, B, H)
    np.testing.assert_array_equal(last, m)
