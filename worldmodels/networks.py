"""Encoders and decoders of observations, and the small networks on top of a world model's states.

Pictures are `[..., height, width, channels]`; all modules take any leading axes.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.memory.layers import Convolution, Dense, orthogonal

trunc_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "truncated_normal")
"""Variance 2 / (fan_in + fan_out), cut at two deviations and rescaled."""
fan_in_uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
"""Uniform within 1 / sqrt(fan_in)."""


class Norm(nn.Module):
    """The normalisation of one layer. Batch normalisation uses the batch in training, running statistics elsewhere.

    Means and variances are float32; `dtype` is that of the result, and so of what is kept for the backward pass.
    """

    kind: Literal["batch", "rms", "layer"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`x[n, ..., channels]`."""
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
        kind = nn.RMSNorm if self.kind == "rms" else nn.LayerNorm
        return kind(1e-5, dtype=self.dtype)(x)


def hidden(x: jax.Array, sizes: tuple[int, ...], kernel_init: Any) -> jax.Array:
    """Dense, RMSNorm, SiLU, `sizes` times; in a compact method, whose layers they become."""
    for size in sizes:
        x = nn.silu(nn.RMSNorm(1e-5)(Dense(size, kernel_init=kernel_init)(x)))
    return x


class MLP(nn.Module):
    """Dense, RMSNorm, SiLU, `sizes` times, and then a dense layer of `out` outputs."""

    sizes: tuple[int, ...]
    out: int
    kernel_init: Any = trunc_normal
    out_init: Any = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = hidden(x, self.sizes, self.kernel_init)
        return Dense(self.out, kernel_init=self.out_init)(x)


def behaviour_mlp(sizes: tuple[int, ...], out: int) -> MLP:
    """The networks of policy and value: orthogonal layers, and a last one so small that they begin at zero."""
    return MLP(sizes, out, orthogonal(math.sqrt(2)), orthogonal(1e-3))


class VectorEncoder(nn.Module):
    """Vectors `[..., n]` to features: dense layers."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        return hidden(x, self.sizes, trunc_normal)


class VectorDecoder(nn.Module):
    """Latents to vectors `[..., out]`."""

    sizes: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        del train
        return MLP(self.sizes, self.out)(z)


class PictureEncoder(nn.Module):
    """Pictures to features `[..., n]`: convolutions, each with a norm and SiLU.

    Attributes:
        channels, strides: of each convolution.
        kernel: width of the kernels, odd.
        norm: of each layer.
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
    convolution for each convolution, the last without norm.

    Attributes:
        picture: height, width, channels.
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
        height, width, colours = self.picture
        shrink = math.prod(self.strides)
        grid = (height // shrink, width // shrink, self.channels[-1])
        x = Dense(math.prod(grid), kernel_init=trunc_normal)(z).reshape(-1, *grid).astype(self.dtype)
        x = nn.silu(Norm(self.norm, self.dtype)(x, train))
        last = len(self.channels) - 1
        for layer in range(last, -1, -1):
            grow = Convolution(
                (colours, *self.channels)[layer],
                self.kernel,
                self.strides[layer],
                transposed=True,
                kernel_init=trunc_normal,
                dtype=self.dtype,
                name=f"ConvTranspose_{last - layer}",
            )
            x = grow(x)
            if layer:
                x = nn.silu(Norm(self.norm, self.dtype)(x, train))
        return x.reshape(*leading, *self.picture).astype(jnp.float32)
