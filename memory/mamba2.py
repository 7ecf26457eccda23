"""Mamba-2 (Dao and Gu 2024): heads with one decay rate each, which makes the state space a linear attention.

Per head: h[t] = exp(dt A) h[t-1] + B (dt x)^T      y[t] = h[t]^T C + D x
with input matrix B and output matrix C shared by all heads, as keys and queries are. The option `negative` has
`2 exp(dt A) - 1` in place of `exp(dt A)` (Grazzi et al., ICLR 2025).
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_conv, causal_conv_step
from engram.kernels.gla_scan import gla_scan, gla_scan_step, signed_decay
from engram.memory.base import About, State
from engram.memory.layers import Dense, by_head, heads_of, init_A_log, step_bias, uniform
from engram.memory.starts import Start, Started, log_of, log_spaced


class Mamba2(Started):
    """One Mamba-2 block. State: `(taps, h)`, the convolution's past inputs `[B, conv - 1, expand * width + 2 state]`
    and the state space `[B, heads, state, expand * width / heads]`.
    """

    about = About(
        group="matrix",
        equation="S = exp(dt A) S' + B (dt x)^T, y = S^T C",
        source="Dao and Gu, ICML 2024 (Mamba-2)",
        home="https://arxiv.org/abs/2405.21060",
    )

    state: int = 16
    """Size of the state of each channel, which are the rows of a head's matrix."""
    expand: int = 2
    """Number of channels in widths."""
    head: int = 64
    """Channels of a head; must divide all channels. A block with fewer channels has one head."""
    conv: int = 4
    """Taps of the convolution, the current input among them."""
    negative: bool = False
    """Decays `2 exp(dt A) - 1` in (-1, 1) in place of `exp(dt A)`."""
    a_spacing: Literal["start", "uniform", "log"] = "start"
    """Spacing of the rates at the start, from `a_min` to `a_max`: "uniform" (drawn), "log" (equal
    ratios) or "start" (that of `start`)."""
    chunk: int = 0
    """Steps that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.gla_scan`."""

    def __post_init__(self) -> None:
        if min(self.state, self.expand, self.head, self.conv) < 1:
            raise BadRequest("mamba2: needs state, expand, head and conv >= 1")
        _ = self.heads  # raises where they do not fit
        _ = self.begin  # raises where a value is out of range
        super().__post_init__()

    @property
    def published(self) -> Start:
        return Start(1.0, 16.0, "uniform", 1e-3, 0.1, 1.0)

    @property
    def channels(self) -> int:
        return self.expand * self.width

    @property
    def heads(self) -> int:
        return heads_of("mamba2", self.channels, self.head)

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        channels, heads, dtype, begin = self.channels, self.heads, self.param_dtype, self.begin
        mixed = channels + 2 * self.state

        self.in_proj = Dense(channels + mixed + heads, use_bias=False, param_dtype=dtype)
        self.conv_weight = self.param("conv_weight", uniform(self.conv**-0.5), (self.conv, mixed), dtype)
        self.conv_bias = self.param("conv_bias", uniform(self.conv**-0.5), (mixed,), dtype)

        def log_rates(_, shape, dtype):
            return log_of(log_spaced(begin.a_min, begin.a_max, heads), shape, dtype)

        drawn = begin.a_spacing == "uniform"
        self.dt_bias = self.param("dt_bias", step_bias(begin.dt_min, begin.dt_max), (heads,), dtype)
        self.A_log = self.param("A_log", init_A_log(begin.a_min, begin.a_max) if drawn else log_rates, (heads,), dtype)
        self.D = self.param("D", nn.initializers.constant(begin.skip), (heads,), dtype)
        self.norm = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.out_proj = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        taps = jnp.zeros((batch, self.conv - 1, self.channels + 2 * self.state), self.param_dtype)
        size = (batch, self.heads, self.state, self.channels // self.heads)
        return taps, jnp.zeros(size, self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, h = state
        z, mixed, dt = self.project(x)
        mixed, taps = causal_conv(mixed, self.conv_weight, self.conv_bias, reset, taps)
        C, B, u, drive, log_decay, negative = self.select(mixed, dt)
        chunk = self.chunk or None
        y, h = gla_scan(C, B, drive, log_decay, reset, h, negative=negative, chunk=chunk, backend=self.backend)
        return (taps, h), self.read(y, u, z)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, h = state
        z, mixed, dt = self.project(x)
        taps, mixed = causal_conv_step(taps, mixed, self.conv_weight, self.conv_bias, reset)
        C, B, u, drive, log_decay, negative = self.select(mixed, dt)
        h, y = gla_scan_step(h, C, B, drive, log_decay, reset, negative)
        return (taps, h), self.read(y, u, z)

    def project(self, x: jax.Array) -> list[jax.Array]:
        """-> gate `[..., channels]`, the convolution's input `[..., channels + 2 state]`, steps `[..., heads]`."""
        return jnp.split(self.in_proj(x), np.array([self.channels, 2 * (self.channels + self.state)]), -1)

    def select(self, mixed: jax.Array, dt: jax.Array) -> tuple[Any, ...]:
        """-> C and B `[..., 1, state]`, x and dt x `[..., heads, channels / heads]`, log decay `[..., heads]` and where
        it is negative, or None."""
        u, B, C = jnp.split(nn.silu(mixed), np.array([self.channels, self.channels + self.state]), -1)
        u = by_head(u, self.heads)
        dt = nn.softplus(dt + self.dt_bias)
        log_decay = -jnp.exp(self.A_log) * dt
        decays = signed_decay(log_decay) if self.negative else (log_decay, None)
        return C[..., None, :], B[..., None, :], u, dt[..., None] * u, *decays

    def read(self, y: jax.Array, u: jax.Array, z: jax.Array) -> jax.Array:
        y = (y + self.D[:, None] * u).reshape(z.shape)
        return self.out_proj(self.norm(y * nn.silu(z)))
