"""Trees of parameters as vectors: there and back, and the same steps of an optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engram.agents.common.flat import flattening

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.array(7.0), "d": jnp.arange(8.0, 10.0)}}


def test_moments_become_vectors_and_counters_stay():
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    state = optimiser.init(PARAMS)
    flatten, unflatten = flattening(PARAMS)
    params, vectors = flatten((PARAMS, state))
    np.testing.assert_array_equal(params, np.arange(10.0)[[0, 1, 2, 3, 4, 5, 7, 8, 9]])
    assert vectors[1].mu.shape == vectors[1].nu.shape == (9,)
    assert vectors[1].count.shape == ()
    jax.tree.map(np.testing.assert_array_equal, unflatten((params, vectors)), (PARAMS, state))


@pytest.mark.slow
def test_steps_are_those_of_the_leaves():
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    state = optimiser.init(PARAMS)
    flatten, unflatten = flattening(PARAMS)
    vectors = flatten(state)
    for scale in (1.0, -0.3, 5.0):
        gradient = jax.tree.map(lambda x, scale=scale: scale * jnp.sin(x + 1.0), PARAMS)
        step, state = optimiser.update(gradient, state)
        flat_step, vectors = optimiser.update(flatten(gradient), vectors)
        ours = unflatten((flat_step, vectors))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), (step, state), ours)
