"""Facts of weights that learn as they act; the suite over all scans has the rest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.errors import BadRequest
from engram.kernels.delta_scan import delta_scan
from engram.kernels.ttt_scan import SEGMENT, Rule, answer, gradient, initial_state, ttt_scan

T, B, H, D, F = 2 * SEGMENT + 7, 2, 2, 3, 4
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def drawn(*shapes, seed=0) -> Any:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def resets():
    return jnp.asarray(np.random.default_rng(1).random((T, B)) < 0.1)


def test_a_matrix_that_descends_at_each_step_is_the_delta_rule(resets):
    with jax.enable_x64(True):
        q, k, v, beta = drawn(*3 * [(T, B, H, D)], (T, B, H))
        k, beta = unit(k), jax.nn.sigmoid(beta)
        y, last = jax.jit(ttt_scan)(q, k, v, beta, (jnp.zeros((H, D, D)),), resets)
        truth, S = jax.jit(delta_scan)(q, k, v, beta, reset=resets)
        np.testing.assert_allclose(y, truth, atol=1e-12)
        np.testing.assert_allclose(last.M[0], S, atol=1e-12)


def test_segments_are_the_plain_scan(resets):
    """Two whole ones and a part of one: values and gradients."""
    with jax.enable_x64(True):
        q, k, v, theta, eta, alpha = drawn(*3 * [(T, B, H, D)], *3 * [(T, B, H)])
        q, k, eta, alpha = unit(q), unit(k), jax.nn.sigmoid(eta), jax.nn.sigmoid(alpha)
        fresh = tuple(drawn((H, D, F), (H, F, D)))

        @partial(jax.jit, static_argnums=2)
        def run(fresh, v, backend):
            options: Any = {"eta": eta, "alpha": alpha, "opens": jnp.arange(T)[:, None] % 5 == jnp.zeros(B)}
            y, last = ttt_scan(
                q, k, v, jax.nn.sigmoid(theta), fresh, resets, rule=Rule(clip=1.0), backend=backend, **options
            )
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(last.M[0])), y

        (_, ours), gradients = jax.value_and_grad(run, (0, 1), has_aux=True)(fresh, v, "xla")
        (_, truth), expected = jax.value_and_grad(run, (0, 1), has_aux=True)(fresh, v, "reference")
        np.testing.assert_allclose(ours, truth, atol=1e-12)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), gradients, expected)


@pytest.mark.parametrize("loss", ["l2", "huber", "l3"])
def test_gradients_are_finite_differences(loss):
    rule = Rule(loss, delta=0.5)
    with jax.enable_x64(True):
        M, (k, v) = tuple(drawn((1, 1, D, F), (1, 1, F, D))), drawn((1, 1, D), (1, 1, D), seed=1)
        g = gradient(rule, M, k, v)

        def value(M):
            e = np.abs(answer(M, k) - v)
            return {"l2": e**2 / 2, "huber": np.where(e < 0.5, e**2 / 2, (e - 0.25) / 2), "l3": e**3 / 3}[loss].sum()

        for i, w in enumerate(M):
            for at in np.ndindex(w.shape):
                up, down = (tuple(m.at[at].add(s) if j == i else m for j, m in enumerate(M)) for s in (1e-6, -1e-6))
                np.testing.assert_allclose(g[i][at], (value(up) - value(down)) / 2e-6, atol=1e-7)


def test_clipped_gradients_have_at_most_that_norm_and_the_same_direction():
    M, (k, v) = tuple(drawn((B, H, D, F), (B, H, F, D))), drawn((B, H, D), (B, H, D), seed=1)
    plain = gradient(Rule(), M, k, v)
    size = np.sqrt(sum((g**2).sum((-2, -1)) for g in plain))
    limit = float(np.median(size))
    clipped = gradient(Rule(clip=limit), M, k, v)
    for a, b in zip(clipped, plain, strict=True):
        np.testing.assert_allclose(a, b * np.minimum(1, limit / size)[..., None, None], rtol=1e-5)
    nothing = jax.grad(lambda k: sum(g.sum() for g in gradient(Rule(clip=1.0), M, k, k)))(jnp.zeros_like(k))
    assert jnp.isfinite(nothing).all()


def test_a_huber_loss_that_is_never_linear_is_l2():
    with jax.enable_x64(True):
        M, (k, v) = (drawn((B, H, D, D))[0],), drawn((B, H, D), (B, H, D), seed=1)
        pair = gradient(Rule("huber", delta=1e6), M, k, v), gradient(Rule(), M, k, v)
        np.testing.assert_array_equal(pair[0][0], pair[1][0])


def test_what_does_not_fit_is_one_clear_line(resets):
    q, theta = jnp.zeros((T, B, H, D)), jnp.zeros((T, B, H))
    fresh = (jnp.zeros((H, D, D)),)
    with pytest.raises(BadRequest, match="unknown loss 'l1': choose from l2, huber, l3"):
        ttt_scan(q, q, q, theta, fresh, resets, rule=Rule("l1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the state has S where it is not used, or lacks it where it is"):
        ttt_scan(q, q, q, theta, fresh, resets, initial_state(fresh, B, False, True))
    with pytest.raises(ValueError, match="ttt_scan: opens must be of dtype bool, not float32"):
        ttt_scan(q, q, q, theta, fresh, resets, opens=theta[..., 0])
