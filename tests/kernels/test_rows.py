"""Products over rows against numpy's contraction of the axes themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.rows import rows_matmul, rows_outer


@pytest.mark.parametrize("rows", [(), (3,), (5, 3), (2, 5, 3)])
def test_rows_products_in_float64(rows):
    rng = np.random.default_rng(0)
    x, W, g = rng.normal(size=(*rows, 4)), rng.normal(size=(4, 6)), rng.normal(size=(*rows, 6))
    axes = tuple(range(len(rows)))
    with jax.enable_x64(True):
        y, pull = jax.vjp(rows_matmul, x, W)
        dx, dW = pull(jnp.asarray(g))
        np.testing.assert_allclose(y, np.tensordot(x, W, 1), atol=1e-12)
        np.testing.assert_allclose(dx, np.tensordot(g, W.T, 1), atol=1e-12)
        np.testing.assert_allclose(dW, np.tensordot(x, g, (axes, axes)), atol=1e-12)
        np.testing.assert_allclose(
            rows_outer(jnp.asarray(x), jnp.asarray(g)), np.tensordot(x, g, (axes, axes)), atol=1e-12
        )
