"""Gated recurrent unit (Cho et al. 2014), with the parameters of flax's `GRUCell`, gates side by side."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.gru_scan import gru_scan, gru_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, gate_orthogonal, log_uniform


class GRU(Memory):
    """One GRU layer. State and output: `h[B, width]`."""

    about = About(
        group="recurrent",
        equation="h = (1 - z) * n + z * h', n = tanh(W x + r * (U h'))",
        source="Cho et al., EMNLP 2014",
        home="https://arxiv.org/abs/1406.1078",
    )

    max_timescale: float = 1.0
    """Longest memory of a unit at the start, in steps; 1 starts all gates half open."""
    backend: str = "auto"
    """Backend of `engram.kernels.gru_scan`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_timescale < math.inf:
            raise BadRequest(f"gru: max_timescale must be at least 1 and finite, got {self.max_timescale}")
        super().__post_init__()

    def setup(self) -> None:
        def init_bias(key, shape, dtype):
            """Units keep `t / (1 + t)` of their state (chrono initialisation, Tallec and Ollivier 2018)."""
            log_timescale = log_uniform(1.0, self.max_timescale)(key, (self.width,), dtype)
            return jnp.zeros(shape, dtype).at[self.width : 2 * self.width].set(log_timescale)

        self.inp = Dense(3 * self.width, bias_init=init_bias, param_dtype=self.param_dtype)
        self.Wh = self.param("Wh", gate_orthogonal(3), (self.width, 3 * self.width), self.param_dtype)
        self.bh = self.param("bh", nn.initializers.zeros, (self.width,), self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.width), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        y, state = gru_scan(self.inp(x), self.Wh, self.bh, reset, state, backend=self.backend)
        return state, y

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        return gru_scan_step(state, self.inp(x), self.Wh, self.bh, reset)
