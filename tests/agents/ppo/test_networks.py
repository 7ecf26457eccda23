"""Networks for pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.ppo.networks import Encoder, NatureCNN


@pytest.mark.parametrize(("side", "channels", "grid"), [(64, 3, 4), (84, 4, 7)])
def test_sizes_of_the_published_network(side, channels, grid):
    """Mnih et al. (2015): 32 8x8 stride 4, 64 4x4 stride 2, 64 3x3 stride 1, 512; 84 x 84 pictures become 7 x 7."""
    network = NatureCNN()
    picture = jax.ShapeDtypeStruct((2, 5, side, side, channels), jnp.uint8)
    features, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), picture)
    assert features.shape == (2, 5, 512)
    shapes = sorted(x.shape for x in jax.tree.leaves(variables) if len(x.shape) > 1)
    assert shapes == sorted([(8, 8, channels, 32), (4, 4, 32, 64), (3, 3, 64, 64), (grid * grid * 64, 512)])


def test_pictures_are_divided_by_a_constant_and_seen_alone():

    network = NatureCNN()
    pictures = jax.random.randint(jax.random.key(2), (6, 36, 36, 1), 0, 256).astype(jnp.uint8)
    params = network.init(jax.random.key(3), pictures)
    apply = jax.jit(network.apply)
    together = apply(params, pictures)
    np.testing.assert_allclose(apply(params, pictures[2:3]), together[2:3], rtol=1e-4, atol=1e-5)
    # Without biases the network is positively homogeneous, so 51 / 255 of white gives a fifth of white's features.
    white = apply(params, jnp.full((1, 36, 36, 1), 255, jnp.uint8))
    np.testing.assert_allclose(apply(params, jnp.full((1, 36, 36, 1), 51, jnp.uint8)), white / 5, rtol=1e-4, atol=1e-6)
    assert (white > 0).any()


@pytest.mark.parametrize("shape", [(7, 7, 3), (35, 64, 3), (1, 1, 1)])
def test_small_pictures_are_convolved(shape):
    encoder = Encoder((8,), "relu")
    params = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((2, *shape), jnp.uint8))["params"]
    assert params["SmallCNN_0"]["Convolution_0"]["kernel"].shape == (3, 3, shape[-1], 32)
    assert (
        "NatureCNN_0" in jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((2, 36, 36, 3), jnp.uint8))["params"]
    )
