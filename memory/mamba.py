"""Mamba (Gu and Dao 2023): a short causal convolution and a state space whose step, input and output depend on x."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_conv, causal_conv_step
from engram.kernels.selective_scan import selective_scan, selective_scan_step
from engram.memory.base import About, State
from engram.memory.layers import Dense, step_bias, uniform
from engram.memory.starts import Start, Started, log_of, log_spaced


class SelectiveSpace(nn.Module):
    """The selective state space after an activation. Step sizes, input and output matrices are made from `u` itself."""

    channels: int
    """Number of channels of input and output."""
    state: int
    """Size of the state of each channel."""
    rank: int
    """Rank of the projection that makes the step sizes."""
    begin: Start
    """Rates, steps and skip at the start."""
    backend: str = "auto"
    """Backend of `engram.kernels.selective_scan`."""
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        channels, dtype, begin = self.channels, self.param_dtype, self.begin
        spaced = log_spaced if begin.a_spacing == "log" else np.linspace

        def init_A_log(_, shape, dtype):
            return log_of(spaced(begin.a_min, begin.a_max, shape[0]), shape, dtype)

        self.x_proj = Dense(self.rank + 2 * self.state, use_bias=False, param_dtype=dtype)
        steps = step_bias(begin.dt_min, begin.dt_max)
        self.dt_proj = Dense(channels, kernel_init=uniform(self.rank**-0.5), bias_init=steps, param_dtype=dtype)
        self.A_log = self.param("A_log", init_A_log, (self.state, channels), dtype)
        self.D = self.param("D", nn.initializers.constant(begin.skip), (channels,), dtype)

    def __call__(self, h: jax.Array, u: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`u[T, B, channels]`, `reset[T, B]` -> state after it, `y[T, B, channels]`."""
        u, dt, A, B, C = self.select(u)
        y, h = selective_scan(u, dt, A, B, C, self.D, reset, h, backend=self.backend)
        return h, y

    def step(self, h: jax.Array, u: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`u[B, channels]`, `reset[B]` -> state after it, `y[B, channels]`."""
        u, dt, A, B, C = self.select(u)
        return selective_scan_step(h, u, dt, A, B, C, self.D, reset)

    def select(self, u: jax.Array) -> tuple[jax.Array, ...]:
        """`u[..., channels]` -> `u, dt, A, B, C` of the selective scan."""
        u = nn.silu(u)
        projected = self.x_proj(u)
        low_rank, B, C = jnp.split(
            projected, [projected.shape[-1] - 2 * self.state, projected.shape[-1] - self.state], -1
        )
        return u, nn.softplus(self.dt_proj(low_rank)), -jnp.exp(self.A_log), B, C


class Mamba(Started):
    """One Mamba-1 block. State: `(taps, h)`, the convolution's past inputs `[B, conv - 1, expand * width]` and the
    state space `[B, state, expand * width]`.
    """

    about = About(
        group="diagonal",
        equation="h = exp(dt A) * h' + dt B u for each channel u; dt, B, C of the input",
        source="Gu and Dao 2023 (Mamba-1)",
        home="https://arxiv.org/abs/2312.00752",
    )

    state: int = 16
    """Size of the state of each channel."""
    expand: int = 2
    """Number of channels in widths."""
    conv: int = 4
    """Taps of the convolution, the current input among them."""
    dt_rank: int = 0
    """Rank of the projection that makes the step sizes; 0 for width / 16, rounded up."""
    a_spacing: Literal["start", "linear", "log"] = "start"
    """Spacing of the rates at the start, from `a_min` to `a_max`: "linear" (equal differences), "log" (equal
    ratios) or "start" (that of `start`)."""
    backend: str = "auto"
    """Backend of `engram.kernels.selective_scan`."""

    def __post_init__(self) -> None:
        if min(self.state, self.expand, self.conv) < 1 or self.dt_rank < 0:
            raise BadRequest("mamba: needs state, expand and conv >= 1, dt_rank >= 0")
        _ = self.begin  # raises where a value is out of range
        super().__post_init__()

    @property
    def published(self) -> Start:
        # The rates 1, 2, ... of the paper ("S4D-Real") are as many as a channel has numbers in its state.
        return Start(1.0, max(1.0, self.state), "linear", 1e-3, 0.1, 1.0)

    @nn.nowrap
    def space(self) -> SelectiveSpace:
        """A state space of the block's size."""
        rank = self.dt_rank or math.ceil(self.width / 16)
        return SelectiveSpace(self.expand * self.width, self.state, rank, self.begin, self.backend, self.param_dtype)

    def setup(self) -> None:
        channels, dtype = self.expand * self.width, self.param_dtype
        self.in_proj = Dense(2 * channels, use_bias=False, param_dtype=dtype)
        conv_scale = 1 / np.sqrt(self.conv)
        self.conv_weight = self.param("conv_weight", uniform(conv_scale), (self.conv, channels), dtype)
        self.conv_bias = self.param("conv_bias", uniform(conv_scale), (channels,), dtype)
        self.ssm = self.space()
        nn.share_scope(self, self.ssm)
        self.out_proj = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        channels = self.expand * self.width
        taps = jnp.zeros((batch, self.conv - 1, channels), self.param_dtype)
        return taps, jnp.zeros((batch, self.state, channels), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y, gate = self.mix(state, x, reset)
        return state, self.out_proj(y * gate)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y, gate = self.mix_step(state, x, reset)
        return state, self.out_proj(y * gate)

    def mix(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        """All but the last product: the state space's output and its gate, `[T, B, expand * width]`."""
        taps, h = state
        u, z = jnp.split(self.in_proj(x), 2, -1)
        u, taps = causal_conv(u, self.conv_weight, self.conv_bias, reset, taps)
        h, y = self.ssm(h, u, reset)
        return (taps, h), y, nn.silu(z)

    def mix_step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        """`mix` of one step."""
        taps, h = state
        u, z = jnp.split(self.in_proj(x), 2, -1)
        taps, u = causal_conv_step(taps, u, self.conv_weight, self.conv_bias, reset)
        h, y = self.ssm.step(h, u, reset)
        return (taps, h), y, nn.silu(z)
