"""Convolutions as products of patches, against flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels import convolution
from engram.kernels.convolution import convolve, convolve_transposed

X = jax.random.normal(jax.random.key(0), (3, 21, 18, 5))


def value_and_gradients(function, kernel: jax.Array):
    value, pull = jax.vjp(function, X, kernel)
    return value, pull(jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape))


def check(ours, layer: nn.Module, size: int) -> None:
    kernel = jax.random.normal(jax.random.key(1), (size, size, 5, 7))
    flax = lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)  # noqa: E731
    compute = jax.jit(value_and_gradients, static_argnums=0)
    for x, y in zip(jax.tree.leaves(compute(ours, kernel)), jax.tree.leaves(compute(flax, kernel)), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("largest", [convolution.LARGEST_PATCHES, 0])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(8, 4, 0), (4, 2, 0), (3, 1, 0), (3, 2, 0), (5, 3, 0), (1, 1, 0), (5, 2, 2)]
)
def test_convolutions(monkeypatch, size, stride, padding, largest):
    """Values and both gradients, for sides that the stride does not divide; with patches and without."""
    monkeypatch.setattr(convolution, "LARGEST_PATCHES", largest)
    layer = nn.Conv(7, (size, size), (stride, stride), padding=padding, use_bias=False)
    check(lambda x, kernel: convolve(x, kernel, stride, padding), layer, size)


@pytest.mark.parametrize(("size", "stride"), [(5, 2), (5, 1), (3, 2), (3, 3), (5, 3), (1, 2)])
def test_transposed_convolutions(size, stride):
    low, high = size // 2, size // 2 + stride - 1  # of the picture with zeros after each pixel but the last
    layer = nn.ConvTranspose(7, (size, size), (stride, stride), padding=((low, high), (low, high)), use_bias=False)
    check(lambda x, kernel: convolve_transposed(x, kernel, stride), layer, size)
