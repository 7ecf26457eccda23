"""Layers and initialisers that several networks share."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.convolution import convolve, convolve_transposed
from engram.kernels.gru_scan import sigmoid


class Dense(nn.Dense):
    """flax's layer with all rows in one plain product, which halves its gradient's time (`engram.kernels.rows`)."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[..., n]` -> `[..., features]`."""
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return y.reshape(*inputs.shape[:-1], self.features)


class Convolution(nn.Module):
    """A convolution with a bias, over any leading axes."""

    features: int
    """Number of channels of the output."""
    size: int
    """Width and height of the kernel."""
    stride: int = 1
    """Stride of the kernel, or, where `transposed`, the factor by which the picture grows."""
    padding: int = 0
    """Zeros around the picture; without effect where `transposed`."""
    transposed: bool = False
    """Transposed convolution, see `engram.kernels.convolution`."""
    kernel_init: Any = nn.initializers.lecun_normal()
    """Initialiser of the kernel."""
    dtype: Any = jnp.float32
    """Dtype of the arithmetic and the result; parameters are float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., height, width, c]` -> `[..., height', width', features]`."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        picture = x.reshape(-1, *x.shape[-3:]).astype(self.dtype)
        if self.transposed:
            y = convolve_transposed(picture, kernel, self.stride)
        else:
            y = convolve(picture, kernel, self.stride, self.padding)
        return (y + bias).reshape(*x.shape[:-3], *y.shape[1:])


class GatedOutput(nn.Module):
    """`W1 u * sigmoid(W2 u)` with `u = gelu(y)`: the output of S5 ("full_glu", Smith et al. 2023) and of the LRU.

    One matrix product makes both halves.
    """

    width: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """`y[..., n]` -> `[..., width]`."""
        both = Dense(2 * self.width, param_dtype=self.param_dtype, name="out")(nn.gelu(y))
        value, gate = jnp.split(both, 2, -1)
        return value * sigmoid(gate)


class GRUGate(nn.Module):
    """A gated sum (Parisotto et al. 2020): `(1 - z) x + z tanh(Wg y + Ug (r x))` with `r = sigmoid(Wr y + Ur x)` and
    `z = sigmoid(Wz y + Uz x - bias)`."""

    bias: float
    """Where the learned bias begins."""
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """`x[..., width]`, `y[..., width]` -> `[..., width]`."""
        width = x.shape[-1]

        def dense(gates: int, name: str) -> Dense:
            return Dense(gates * width, use_bias=False, param_dtype=self.param_dtype, name=name)

        bias = self.param("bias", nn.initializers.constant(self.bias), (width,), self.param_dtype)
        r, z, candidate = jnp.split(dense(3, "of_y")(y), 3, -1)
        r_x, z_x = jnp.split(dense(2, "of_x")(x), 2, -1)
        r, z = sigmoid(r + r_x), sigmoid(z + z_x - bias)
        return (1 - z) * x + z * jnp.tanh(candidate + dense(1, "of_reset_x")(r * x))


def normalised_heads(y: jax.Array, scale: jax.Array) -> jax.Array:
    """LayerNorm of each head of `y[..., heads, size]`, times `scale[heads * size]` -> `[..., heads * size]`."""
    mean = y.mean(-1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(((y - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
    return y.reshape(*y.shape[:-2], *scale.shape) * scale


def unit(x: jax.Array) -> jax.Array:
    """Vectors `[..., n]` of length 1; smooth at 0."""
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)


ROLLS = 3
"""Products that dpfp makes of each number, of either sign."""
NO_WEIGHT = 1e-6
"""What keeps a sum of weights from 0, as in the authors' code."""


def _dpfp(x: jax.Array) -> jax.Array:
    """The deterministic parameter-free projection (Schlag et al. 2021, eq. 37), `[..., n]` -> `[..., 2 n ROLLS]`."""
    both = nn.relu(jnp.concatenate([x, -x], -1))
    return jnp.concatenate([both * jnp.roll(both, i, -1) for i in range(1, ROLLS + 1)], -1)


FEATURES = {"none": lambda x: x, "elu": lambda x: nn.elu(x) + 1, "relu": nn.relu, "dpfp": _dpfp}
"""Maps of keys and queries; all but none make numbers that are not negative."""


def feature_count(feature: str) -> int:
    """How many features `FEATURES[feature]` makes of each number."""
    return 2 * ROLLS if feature == "dpfp" else 1


def sum_to_one(x: jax.Array) -> jax.Array:
    """Weights that are not negative, divided by their sum."""
    return x / (x.sum(-1, keepdims=True) + NO_WEIGHT)


def orthogonal(scale: float = 1.0) -> Callable:
    """Orthogonal matrices times `scale`: the matrices of flax's initialiser, to rounding.

    LAPACK's factorisation, which flax calls, takes an import of SciPy and more time to compile than to run, and under
    `vmap` it waits in a thread of XLA's pool for others of the same pool, which may all be waiting.
    """

    def initialise(key, shape, dtype=jnp.float32):
        columns, rows = shape[-1], math.prod(shape[:-1])
        a = jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype)
        q = _orthonormal(a) if rows >= columns else _orthonormal(a).T
        return scale * q.reshape(shape)

    return initialise


BLOCK = 64
"""Most columns that are made orthogonal one by one; blocks of them meet in matrix products."""


def orthonormal(a: jax.Array) -> jax.Array:
    """Factor Q of the factorisation of `a[n, m]`, n >= m, whose R has a positive diagonal, by Gram-Schmidt.

    Everything is done twice, which leaves products of columns at the size of rounding errors (Giraud, Langou and
    Rozloznik 2005).
    """
    m = a.shape[1]
    width = max(size for size in range(1, min(m, BLOCK) + 1) if m % size == 0)

    def column(i, v):
        j = i % width
        before = jnp.where(jnp.arange(width) < j, v, 0.0)
        x = v[:, j] - before @ (before.T @ v[:, j])
        return v.at[:, j].set(x / jnp.linalg.norm(x))

    if width == m:
        return jax.lax.fori_loop(0, 2 * m, column, a)

    def block(i, q):
        """Columns `i width, ...`; `q[n, m]` holds those before them, and zeros."""

        def once(_, v):
            return jax.lax.fori_loop(0, width, column, v - q @ (q.T @ v))

        v = jax.lax.fori_loop(0, 2, once, jax.lax.dynamic_slice_in_dim(a, i * width, width, 1))
        return jax.lax.dynamic_update_slice_in_dim(q, v, i * width, 1)

    return jax.lax.fori_loop(0, m // width, block, jnp.zeros_like(a))


_orthonormal = jax.jit(orthonormal)  # traced once for all matrices of a shape


def gate_orthogonal(gates: int) -> Callable:
    """Initialiser of recurrent weights `[H, gates * H]`: the square block of each gate is orthogonal."""

    def init(key, shape, dtype=jnp.float32):
        hidden = shape[0]
        blocks = jax.vmap(lambda k: orthogonal()(k, (hidden, hidden), dtype))(jax.random.split(key, gates))
        return blocks.transpose(1, 0, 2).reshape(shape)

    return init


def uniform(scale: float) -> Callable:
    """Initialiser: uniform in `[-scale, scale]`."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


def step_bias(low: float, high: float) -> Callable:
    """Initialiser of Mamba's step sizes: their inverse softplus, log-uniform in `[low, high]`."""

    def init(key, shape, dtype=jnp.float32):
        dt = jnp.exp(log_uniform(low, high)(key, shape, dtype))
        return dt + jnp.log(-jnp.expm1(-dt))

    return init


init_step_bias = step_bias(1e-3, 1e-1)
"""The published one."""


def init_A_log(low: float, high: float = 16.0) -> Callable:
    """Initialiser of decay rates per head: the logarithm of numbers uniform in `[low, high]`; `low` is 1 in Mamba-2 and
    0 in Gated DeltaNet."""

    def init(key, shape, dtype=jnp.float32):
        return jnp.log(jax.random.uniform(key, shape, dtype, max(low, jnp.finfo(dtype).tiny), high))

    return init


def head_sizes(name: str, width: int, heads: int, expand_k: float, expand_v: float) -> tuple[int, int]:
    """Size of all keys and of all values.

    Raises:
        BadRequest: `heads` does not divide them; the message begins with `name`, the name of the memory.
    """
    if not (math.isfinite(expand_k) and math.isfinite(expand_v)):
        raise BadRequest(f"{name}: expand_k={expand_k} and expand_v={expand_v} must be finite")
    sizes = int(expand_k * width), int(expand_v * width)
    if heads < 1 or any(size < 1 or size % heads for size in sizes):
        raise BadRequest(f"{name}: heads={heads} must divide keys and values of sizes {sizes}")
    return sizes


def heads_of(name: str, channels: int, head: int) -> int:
    """Number of heads of `head` channels, or one of fewer. Raises BadRequest where they do not divide all channels."""
    heads = max(1, channels // head)
    if channels % heads or channels > heads * head:
        raise BadRequest(f"{name}: heads of {head} channels do not divide {channels} channels")
    return heads


def steps_of_episodes(reset: jax.Array, begun: jax.Array, period: int) -> tuple[jax.Array, jax.Array]:
    """Steps before each one in its episode, up to whole periods `[T, B]`, and those before the step that follows.

    Args:
        reset: bool `[T, B]`, True where step t opens an episode.
        begun: steps before step 0 in its episode, int32 `[B]`.
        period: what the last result is counted modulo, so that it never overflows.
    """
    t = jnp.arange(len(reset), dtype=jnp.int32)[:, None]
    n = t - lax.cummax(jnp.where(reset, t, -begun), axis=0)
    return n, (n[-1] + 1) % period if len(n) else begun


def by_head(x: jax.Array, heads: int) -> jax.Array:
    """`[..., n]` -> `[..., heads, n / heads]`; the last size is not left to `reshape`, which has none for no rows."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def log_uniform(low: float, high: float) -> Callable:
    """Initialiser: the logarithm of numbers uniform in log `[low, high]`."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, math.log(low), math.log(high))

    return init
