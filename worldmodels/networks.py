"""Encoders and decoders of observations, and the small networks that read a world model's states.

Pictures are `[..., height, width, channels]`. All modules accept any leading axes.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.memory.layers import Convolution, Dense, orthogonal

trunc_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "truncated_normal")
"""Initialiser: normal with variance 2 / (fan_in + fan_out), truncated at two standard deviations and rescaled."""
fan_in_uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
"""Initialiser: uniform in [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]."""


class Norm(nn.Module):
    """The normalisation of one layer. Batch normalisation uses the batch in training, running statistics elsewhere.

    Attributes:
        kind: batch, RMS or layer normalisation.
        dtype: of the result, and so of what the backward pass keeps; means and variances are float32.
    """

    kind: Literal["batch", "rms", "layer"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`x[n, ..., channels]` -> the same shape."""
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
        kind = nn.RMSNorm if self.kind == "rms" else nn.LayerNorm
        return kind(1e-5, dtype=self.dtype)(x)


def hidden(x: jax.Array, sizes: tuple[int, ...], kernel_init: Any) -> jax.Array:
    """A dense layer, RMSNorm and SiLU for each of `sizes`; to be called in a compact method, which owns the layers."""
    for size in sizes:
        x = nn.silu(nn.RMSNorm(1e-5)(Dense(size, kernel_init=kernel_init)(x)))
    return x


class MLP(nn.Module):
    """A dense layer, RMSNorm and SiLU for each of `sizes`, and a dense layer of `out` outputs: `[..., n]` ->
    `[..., out]`."""

    sizes: tuple[int, ...]
    out: int
    kernel_init: Any = trunc_normal
    out_init: Any = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = hidden(x, self.sizes, self.kernel_init)
        return Dense(self.out, kernel_init=self.out_init)(x)


def behaviour_mlp(sizes: tuple[int, ...], out: int) -> MLP:
    """The network of the policy or the value: orthogonal layers, the last one so small that outputs begin near 0."""
    return MLP(sizes, out, orthogonal(math.sqrt(2)), orthogonal(1e-3))


class VectorEncoder(nn.Module):
    """Vectors `[..., n]` to features `[..., sizes[-1]]`, by dense layers."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        return hidden(x, self.sizes, trunc_normal)


class VectorDecoder(nn.Module):
    """Latents `[..., n]` to vectors `[..., out]`, by dense layers."""

    sizes: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        del train
        return MLP(self.sizes, self.out)(z)


class PictureEncoder(nn.Module):
    """Pictures to features `[..., n]`, by convolutions, each with a normalisation and SiLU.

    Attributes:
        channels: output channels of each convolution.
        strides: stride of each convolution.
        kernel: width of all kernels, odd.
        norm: kind of normalisation after each convolution.
        dtype: of the convolutions' arithmetic.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kernel: int
    norm: Literal["batch", "rms", "layer"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        leading, pad = x.shape[:-3], self.kernel // 2
        x = x.reshape(-1, *x.shape[-3:])
        for i, (channels, stride) in enumerate(zip(self.channels, self.strides, strict=True)):
            convolution = Convolution(
                channels, self.kernel, stride, pad, kernel_init=trunc_normal, dtype=self.dtype, name=f"Conv_{i}"
            )
            x = convolution(x)
            x = nn.silu(Norm(self.norm, self.dtype)(x, train))
        return x.reshape(*leading, -1).astype(jnp.float32)


class PictureDecoder(nn.Module):
    """Latents to pictures, the mirror of `PictureEncoder`: a dense layer to the smallest grid, and one transposed
    convolution for each convolution, the last one without normalisation.

    Attributes:
        picture: shape of a picture: height, width, channels.
        channels, strides, kernel, norm, dtype: those of the encoder.
    """

    picture: tuple[int, int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kernel: int
    norm: Literal["batch", "rms", "layer"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        leading = z.shape[:-1]
        height, width, picture_channels = self.picture
        scale = math.prod(self.strides)
        grid = (height // scale, width // scale, self.channels[-1])
        x = Dense(math.prod(grid), kernel_init=trunc_normal)(z).reshape(-1, *grid).astype(self.dtype)
        x = nn.silu(Norm(self.norm, self.dtype)(x, train))
        last = len(self.channels) - 1
        for layer in range(last, -1, -1):
            convolution = Convolution(
                (picture_channels, *self.channels)[layer],
                self.kernel,
                self.strides[layer],
                transposed=True,
                kernel_init=trunc_normal,
                dtype=self.dtype,
                name=f"ConvTranspose_{last - layer}",
            )
            x = convolution(x)
            if layer:
                x = nn.silu(Norm(self.norm, self.dtype)(x, train))
        return x.reshape(*leading, *self.picture).astype(jnp.float32)
