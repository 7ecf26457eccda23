"""Facts of attention to marked steps; the suite over all scans has the rest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.marked_scan import initial_state, marked_scan
from engram.kernels.window_scan import window_scan

T, B, H, D, W = 23, 3, 2, 4, 5
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def drawn() -> Any:
    """q, k, v, bias, score, mark, reset."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(T, B, H, D)) for _ in range(3)] + [rng.normal(size=(H, W + 1)), rng.normal(size=(T, B))]
    return *(jnp.asarray(a, jnp.float32) for a in arrays), rng.random((T, B)) < 0.5, rng.random((T, B)) < 0.1


def test_attention_to_marked_steps_is_window_attention_if_all_are_marked():
    q, k, v, bias, _, _, reset = drawn()
    y, last = jax.jit(marked_scan)(q, k, v, bias, jnp.ones((T, B), bool), reset)
    truth, _ = jax.jit(partial(window_scan, backend="reference"))(q, k, v, bias, reset)
    np.testing.assert_allclose(y, truth, atol=2e-6)
    since = T - np.array([max([0, *np.flatnonzero(reset[:, b])]) for b in range(B)])
    np.testing.assert_array_equal(last.length, np.minimum(since, W))


def test_without_marked_steps_each_sees_itself():
    q, k, v, bias, _, _, reset = drawn()
    y, last = jax.jit(marked_scan)(q, k, v, bias, jnp.zeros((T, B), bool), reset)
    np.testing.assert_array_equal(y, v)
    jax.tree.map(np.testing.assert_array_equal, last, initial_state(B, W, H, D))


@pytest.mark.parametrize("best", [0, 2])
def test_it_is_its_definition(best):
    """Step by step over lists of the marked steps, in float64."""
    q, k, v, bias, score, mark, reset = drawn()
    options: Any = {"score": score, "best": best}
    y, last = jax.jit(partial(marked_scan, **options))(q, k, v, bias, mark, reset)
    q, k, v, bias, score = (np.asarray(x, np.float64) for x in (q, k, v, bias, score))
    for b in range(B):
        seen = []
        for t in range(T):
            seen = [] if reset[t, b] else seen
            past = seen[-W:]
            if best:
                past = sorted(sorted(past, key=lambda r: -score[r, b])[:best])
            ages = [seen[::-1].index(r) + 1 for r in past] + [0]
            for h in range(H):
                rows = [*past, t]
                weights = np.exp(k[rows, b, h] @ q[t, b, h] + bias[h, ages] + score[rows, b])
                np.testing.assert_allclose(y[t, b, h], weights / weights.sum() @ v[rows, b, h], atol=1e-5)
            seen = [*seen, t] if mark[t, b] else seen
        kept = seen[-W:]
        assert last.length[b] == len(kept)
        np.testing.assert_allclose(last.keys[b, W - len(kept) :], k[kept, b], atol=1e-6)
        assert not last.keys[b, : W - len(kept)].any()


def test_equal_scores_are_seen_together():
    """Repeated inputs have the same score: which of them comes first does not matter."""
    q, k, v, bias, _, _, reset = drawn()
    score, mark = jnp.zeros((T, B)), jnp.ones((T, B), bool)
    run = jax.jit(marked_scan, static_argnames="best")
    np.testing.assert_array_equal(
        run(q, k, v, bias, mark, reset, score=score, best=1)[0], run(q, k, v, bias, mark, reset, score=score)[0]
    )


def test_what_does_not_fit_is_one_clear_line():
    q, k, v, bias, score, mark, reset = drawn()
    with pytest.raises(ValueError, match="marked_scan: best must be at least 0, and needs scores, got 2"):
        marked_scan(q, k, v, bias, mark, reset, best=2)
    with pytest.raises(ValueError, match="marked_scan: the state has scores where there are none, or lacks them"):
        marked_scan(q, k, v, bias, mark, reset, initial_state(B, W, H, D), score=score)
    with pytest.raises(ValueError, match="marked_scan: mark must be of dtype bool, not float32"):
        marked_scan(q, k, v, bias, score, reset)
