"""Mamba-3 (Lahoti et al., ICLR 2026), with one input and one output a head: a state space that rotates.

Per head, with keys k and queries q that the paper calls B and C:

    S[t] = a (R S[t-1] + (1 - lambda) dt R k[t-1] v[t-1]^T) + lambda dt k v^T      y = S^T q + D v
    a = exp(dt A)      A = -softplus(.)      dt = softplus(.)      lambda = sigmoid(.)

The trapezoidal rule, of which `lambda` is the share of the step's end, writes the input of the step before once more:
there is no convolution. `R` turns pairs of rows of the state by the angles `dt phi`; here keys and queries turn
instead, by the sum of all angles since the episode began. `A`, `dt`, `lambda`, `phi`, k, q and v come from the input.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.angle_scan import angle_scan
from engram.kernels.gla_scan import gla_scan
from engram.kernels.rows import clear
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, by_head, heads_of, step_bias

SLOWEST = 1e-4
"""Smallest rate of decay, as in the authors' code."""


class Mamba3(Memory):
    """One Mamba-3 block. State: `(S, k, v, n)`: the state space `[B, heads, state, expand * width / heads]`, the last
    step's turned keys `[B, heads, state]` and values `[B, heads, expand * width / heads]`, and the angles so far in
    turns `[B, heads, pairs]`.
    """

    about = About(
        group="matrix",
        equation="S = a (S' + (1 - l) dt k' v'^T) + l dt k v^T, y = S^T q; k and q turned",
        source="Lahoti et al., ICLR 2026 (Mamba-3, one input and one output a head)",
        home="https://arxiv.org/abs/2603.15569",
    )

    state: int = 16
    """Size of the state of each channel, which are the rows of a head's matrix."""
    expand: int = 2
    """Number of channels in widths."""
    head: int = 64
    """Channels of a head; must divide all channels. A block with fewer channels has one head."""
    turning: Literal["half", "all", "none"] = "half"
    """Share of the state's rows that turn in pairs: half (published), all or none."""
    dt_min: float = 1e-3
    """Shortest step length at the start, log-uniform up to `dt_max`."""
    dt_max: float = 0.1
    """Longest step length at the start; the state turns and forgets by it, and is written by it."""
    chunk: int = 0
    """Steps that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.gla_scan`."""

    def __post_init__(self) -> None:
        if min(self.state, self.expand, self.head) < 1:
            raise BadRequest("mamba3: needs state, expand and head >= 1")
        _ = self.heads  # raises where they do not fit
        multiple = {"none": 1, "all": 2, "half": 4}[self.turning]
        if self.state % multiple:
            raise BadRequest(f"mamba3: turning={self.turning} needs a state that is a multiple of {multiple}")
        if not 0 < self.dt_min < self.dt_max < math.inf:
            raise BadRequest(f"mamba3: needs 0 < dt_min ({self.dt_min}) < dt_max ({self.dt_max}), all finite")
        super().__post_init__()

    @property
    def channels(self) -> int:
        return self.expand * self.width

    @property
    def heads(self) -> int:
        return heads_of("mamba3", self.channels, self.head)

    @property
    def pairs(self) -> int:
        return {"none": 0, "all": self.state // 2, "half": self.state // 4}[self.turning]

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        channels, heads, dtype = self.channels, self.heads, self.param_dtype
        ones = nn.initializers.ones
        # Gate and values, keys and queries, then what each head has one of, and angles.
        sizes = 2 * channels + 2 * self.state + 3 * heads + self.pairs
        self.in_proj = Dense(sizes, use_bias=False, param_dtype=dtype)
        self.norm_k = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.norm_q = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.bias_k = self.param("bias_k", ones, (heads, self.state), dtype)
        self.bias_q = self.param("bias_q", ones, (heads, self.state), dtype)
        self.dt_bias = self.param("dt_bias", step_bias(self.dt_min, self.dt_max), (heads,), dtype)
        self.D = self.param("D", ones, (heads,), dtype)
        self.out_proj = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        sizes = (
            (self.state, self.channels // self.heads),
            (self.state,),
            (self.channels // self.heads,),
            (self.pairs,),
        )
        return tuple(jnp.zeros((batch, self.heads, *size), self.param_dtype) for size in sizes)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        S, last_k, last_v, n = state
        z, v, k, q, dt, rate, share, angle = self.project(x)
        n, last_n = angle_scan(dt[..., None] * angle, reset, n)
        k, q = turned(k, n), turned(q, n)
        # With U = S - lambda dt k v^T, the state without the last write, a step writes one key, that of the one before:
        # U = a (U' + (lambda' dt' + (1 - lambda) dt) k' v'^T). Across a cut S is handed on: there U' = S', lambda' = 0.
        ends, starts = share * dt, (1 - share) * dt
        (k0, last_k), (v0, last_v) = delayed(last_k, k), delayed(last_v, v)
        ends0, last_ends = delayed(jnp.zeros(k0.shape[1:3], dt.dtype), ends)
        k0, v0, ends0 = (clear(reset, a) for a in (k0, v0, ends0))
        write = (jnp.exp(rate) * (ends0 + starts))[..., None] * v0
        y, U = gla_scan(q, k0, write, rate, reset, S, chunk=self.chunk or None, backend=self.backend)
        y = y + (ends * (q * k).sum(-1))[..., None] * v
        S = U + (last_ends[..., None] * last_k)[..., None] * last_v[..., None, :]
        y = (y + self.D[:, None] * v).reshape(z.shape) * nn.silu(z)
        return (S, last_k, last_v, last_n), self.out_proj(y)

    def project(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Input -> gate `[..., channels]`, v, k and q `[..., heads, size]`, dt, log decay and lambda `[..., heads]`,
        and turns in a unit of time `[..., 1, pairs]`."""
        sizes = [self.channels] * 2 + [self.state] * 2 + [self.heads] * 3
        z, v, k, q, dt, rate, share, angle = jnp.split(self.in_proj(x), np.cumsum(sizes), -1)
        k = self.norm_k(k)[..., None, :] + self.bias_k
        q = self.norm_q(q)[..., None, :] + self.bias_q
        dt = nn.softplus(dt + self.dt_bias)
        rate = jnp.maximum(nn.softplus(rate), SLOWEST)
        turns = angle[..., None, :] / (2 * math.pi)
        return z, by_head(v, self.heads), k, q, dt, -rate * dt, nn.sigmoid(share), turns


def delayed(before: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each step's value of the step before, where the first finds `before`; and the last value."""
    both = jnp.concatenate([before[None], x])
    return both[:-1], both[-1]


def turned(x: jax.Array, n: jax.Array) -> jax.Array:
    """The first pairs of `x[..., size]` turned by `n[..., pairs]` turns: the i-th number with the (pairs + i)-th."""
    pairs = n.shape[-1]
    a, b, rest = jnp.split(x, [pairs, 2 * pairs], -1)
    cos, sin = jnp.cos(2 * math.pi * n), jnp.sin(2 * math.pi * n)
    return jnp.concatenate([cos * a - sin * b, sin * a + cos * b, rest], -1)
