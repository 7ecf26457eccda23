"""Rows are selected as NumPy's loop selects them; products over rows against its contraction of the axes themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.rows import clear, masked_mean, rows_matmul, rows_outer, select_rows


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


@pytest.mark.parametrize("leading", [(3,), (5, 3)])
def test_rows_are_selected_leaf_by_leaf(leading):
    rng = np.random.default_rng(1)
    mask = rng.random(leading) < 0.5
    assert 0 < mask.sum() < mask.size
    new, old = ({"a": rng.normal(size=leading), "b": rng.normal(size=(*leading, 4, 2))} for _ in range(2))
    new["b"][~mask], old["b"][mask] = np.nan, np.nan  # what is not taken leaves no trace
    selected = select_rows(jnp.asarray(mask), new, old)
    cleared = clear(jnp.asarray(mask), jnp.asarray(old["b"]))
    for row in np.ndindex(leading):
        for name, leaf in selected.items():
            np.testing.assert_allclose(leaf[row], (new if mask[row] else old)[name][row], rtol=1e-6)
        np.testing.assert_allclose(cleared[row], np.zeros((4, 2)) if mask[row] else old["b"][row], rtol=1e-6)
    assert clear(None, old["b"]) is old["b"]


def test_mean_of_a_mask_without_entries_is_zero():
    x = jnp.asarray([1.0, jnp.nan, 3.0])
    assert masked_mean(x, jnp.asarray([True, False, True])) == 2
    assert masked_mean(x, jnp.zeros(3, bool)) == 0


def test_a_mask_of_another_kind_is_one_clear_error():
    """One that would be broadcast over rows, and one whose numbers would all be taken as true."""
    rows = {"a": jnp.ones((3, 2)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"the mask has shape \(1,\), not \(3,\)"):
        select_rows(jnp.ones(1, bool), rows, rows)
    with pytest.raises(ValueError, match=r"the mask has shape \(3, 2\), not \(3,\)"):
        select_rows(jnp.ones((3, 2), bool), rows, rows)
    with pytest.raises(ValueError, match="the mask must be of dtype bool, not float32"):
        select_rows(jnp.ones(3), rows, rows)
