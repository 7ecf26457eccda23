"""Sequences that are run a segment at a time are as those that are run whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engram.kernels.chunks import in_segments


@pytest.mark.parametrize("steps", [0, 3, 4, 8, 11])
def test_segments_are_as_the_whole(steps):
    """Values and gradients, with segments of 4 steps: none, less than one, whole ones, and some left over."""

    def scan(state, now):
        return lax.scan(lambda h, now: (now[0] * h + now[1], {"h": h, "sum": h.sum()}), state, now)

    def in_parts(state, now):
        return in_segments(scan, state, now, 4)

    rng = np.random.default_rng(0)
    state, now = jnp.ones(3), tuple(jnp.asarray(rng.normal(size=(steps, 3)), jnp.float32) for _ in range(2))
    results = []
    for run in (scan, in_parts):

        def loss(state, now, run=run):
            last, y = run(state, now)
            return jnp.sum(last**2) + jnp.sum(y["h"] ** 3) + y["sum"].sum(), (last, y)

        results.append(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, now))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
