"""Encoders and decoders: published shapes, and every layer written out in NumPy on a small case."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.worldmodels.networks import Norm, PictureDecoder, PictureEncoder

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CHANNELS, STRIDES = (16, 32, 48, 64, 64), (1, 2, 2, 2, 2)


def noisy(shapes, seed=0):
    """Random parameters, biases and scales among them, so that no layer hides."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), p.dtype), shapes)


def test_shapes_of_the_published_sizes():
    encoder = PictureEncoder(CHANNELS, STRIDES, 5, "batch")
    decoder = PictureDecoder((64, 64, 3), CHANNELS, STRIDES, 5, "batch")
    out, variables = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, True), jnp.zeros((2, 3, 64, 64, 3))
    )
    assert out.shape == (2, 3, 4 * 4 * 64)
    assert [variables["params"][f"Conv_{i}"]["kernel"].shape for i in range(5)] == [
        (5, 5, a, b) for a, b in zip((3, 16, 32, 48, 64), CHANNELS, strict=True)
    ]
    out, variables = jax.eval_shape(
        lambda z: decoder.init_with_output(jax.random.key(0), z, True), jnp.zeros((2, 3, 1024))
    )
    assert out.shape == (2, 3, 64, 64, 3)
    assert variables["params"]["Dense_0"]["kernel"].shape == (1024, 4 * 4 * 64)
    assert [variables["params"][f"ConvTranspose_{i}"]["kernel"].shape for i in range(5)] == [
        (5, 5, a, b) for a, b in zip((64, 64, 48, 32, 16), (64, 48, 32, 16, 3), strict=True)
    ]
    # The dense layer and four of the five transposed convolutions are normalised, the picture itself is not.
    assert [variables["params"][f"Norm_{i}"]["BatchNorm_0"]["scale"].shape[0] for i in range(5)] == [64, 64, 48, 32, 16]
    assert "Norm_5" not in variables["params"]


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * scale


def convolution(x, kernel, bias, stride):
    """Cross-correlation, zeros around: the sum over each output's own window."""
    k, pad = kernel.shape[0], kernel.shape[0] // 2
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    size = [(x.shape[i] - k) // stride + 1 for i in (0, 1)]
    out = np.zeros((*size, kernel.shape[-1]))
    for i, j in np.ndindex(*size):
        window = x[i * stride : i * stride + k, j * stride : j * stride + k]
        out[i, j] = np.einsum("abc,abcd->d", window, kernel)
    return out + bias


def transposed(x, kernel, bias, stride):
    """What PyTorch calls a transposed convolution, padding k // 2, output padding stride - 1: every input adds its
    kernel to the output. The kernel here is stored turned by 180 degrees."""
    k, pad = kernel.shape[0], kernel.shape[0] // 2
    full = np.zeros(((x.shape[0] + 1) * stride + k, (x.shape[1] + 1) * stride + k, kernel.shape[-1]))
    turned = kernel[::-1, ::-1]
    for i, j in np.ndindex(*x.shape[:2]):
        full[i * stride : i * stride + k, j * stride : j * stride + k] += np.einsum("c,abcd->abd", x[i, j], turned)
    return full[pad : pad + x.shape[0] * stride, pad : pad + x.shape[1] * stride] + bias


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_encoder_layer_by_layer(kernel):
    encoder = PictureEncoder((2, 3), (1, 2), kernel, "rms")
    x = np.random.default_rng(1).normal(size=(2, 8, 6, 3))
    params = noisy(jax.eval_shape(lambda: encoder.init(jax.random.key(0), x, True)))["params"]
    y: Any = jax.jit(lambda params: encoder.apply({"params": params}, x, False))(params)
    for picture, ours in zip(x, np.asarray(y), strict=True):
        for layer, stride in enumerate((1, 2)):
            conv = params[f"Conv_{layer}"]
            picture = convolution(picture, np.asarray(conv["kernel"]), np.asarray(conv["bias"]), stride)
            picture = silu(rms_norm(picture, np.asarray(params[f"Norm_{layer}"]["RMSNorm_0"]["scale"])))
        np.testing.assert_allclose(ours, picture.reshape(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_decoder_layer_by_layer(kernel):
    decoder = PictureDecoder((8, 12, 3), (2, 4), (2, 2), kernel, "rms")
    z = np.random.default_rng(1).normal(size=(2, 5))
    params = noisy(jax.eval_shape(lambda: decoder.init(jax.random.key(0), z, True)))["params"]
    y: Any = jax.jit(lambda params: decoder.apply({"params": params}, z, False))(params)
    assert y.shape == (2, 8, 12, 3)
    for row, ours in zip(z, np.asarray(y), strict=True):
        dense = params["Dense_0"]
        x = (row @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])).reshape(2, 3, 4)
        for layer in range(2):
            x = silu(rms_norm(x, np.asarray(params[f"Norm_{layer}"]["RMSNorm_0"]["scale"])))
            conv = params[f"ConvTranspose_{layer}"]
            x = transposed(x, np.asarray(conv["kernel"]), np.asarray(conv["bias"]), 2)
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-4)


def test_batch_statistics_move_in_training_alone():
    norm = Norm("batch")
    x = np.random.default_rng(2).normal(3.0, 2.0, (50, 4, 3)).astype(np.float32)
    variables = norm.init(jax.random.key(0), x, True)
    inference, same = norm.apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(inference, x / np.sqrt(1 + 1e-5), rtol=1e-5)  # statistics begin at mean 0, variance 1
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(variables["batch_stats"]), strict=True):
        np.testing.assert_array_equal(a, b)

    rows = x.reshape(-1, 3).astype(np.float64)
    training, moved = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        np.asarray(training).reshape(-1, 3), (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-4
    )
    statistics: Any = moved["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * rows.var(0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["batch", "rms", "layer"])
def test_norms_of_half_the_precision_count_in_float32(kind):
    """Sums of 40,000 bfloat16 numbers would stop growing early."""
    x = jnp.asarray(np.random.default_rng(3).normal(3.0, 2.0, (10_000, 4, 3)), jnp.bfloat16)
    norm = Norm(kind, jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, True)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y, moved = jax.jit(lambda v, x: norm.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    assert y.dtype == jnp.bfloat16

    exact = np.asarray(x, np.float64)
    axes = (0, 1) if kind == "batch" else -1
    mean = 0.0 if kind == "rms" else exact.mean(axes, keepdims=True)
    deviation = np.sqrt(((exact - mean) ** 2).mean(axes, keepdims=True) + 1e-5)
    # Results have 8 bits.
    np.testing.assert_allclose(np.asarray(y, np.float64), (exact - mean) / deviation, rtol=2**-7, atol=2**-9)
    if kind == "batch":
        statistics: Any = moved["batch_stats"]["BatchNorm_0"]
        assert statistics["mean"].dtype == statistics["var"].dtype == jnp.float32
        np.testing.assert_allclose(statistics["mean"], 0.1 * np.ravel(mean), rtol=1e-4)
        np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * deviation.reshape(-1) ** 2, rtol=1e-4)
