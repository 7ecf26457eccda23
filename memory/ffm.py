"""FFM, fast and forgetful memory (Morad et al., NeurIPS 2023): traces that fade, seen through oscillations.

    S[t] = exp(-a) exp(i b)^T * S[t-1] + u 1^T      u = (W1 x + b1) * sigmoid(W2 x + b2)
    y = LayerNorm(W5 [Re S, Im S] + b5) * g + (W3 x + b3) * (1 - g)      g = sigmoid(W4 x + b4)

Rows of `S` are traces with decay rates `a`, columns contexts with frequencies `b`: what happened is in the rows, when
it happened in the phases.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.linear_scan import join, linear_scan_planes, linear_scan_step, split
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense

SHORTEST = 0.673
"""Largest decay rate at the start, the published one: it halves a trace at each step."""
REMAINING = 0.01
"""What is left of the slowest trace after `max_period` steps at the start."""


class FFM(Memory):
    """One FFM layer. State: complex `[B, traces * contexts]`."""

    about = About(
        group="diagonal",
        equation="S = (exp(-a) exp(i b)^T) * S' + u 1^T, complex",
        source="Morad et al., NeurIPS 2023 (fast and forgetful memory)",
        home="https://arxiv.org/abs/2310.04128",
    )

    traces: int = 32
    """Number of traces, which fade at rates of their own."""
    contexts: int = 4
    """Number of contexts, which oscillate at frequencies of their own."""
    max_period: float = 1024.0
    """Longest period of a context at the start, in steps; the slowest trace fades within it."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if min(self.traces, self.contexts) < 1 or not 7 <= self.max_period < math.inf:
            raise BadRequest("ffm: needs traces and contexts >= 1 and a finite max_period of at least 7 steps")
        super().__post_init__()

    def setup(self) -> None:
        width, dtype = self.width, self.param_dtype

        def init_log_rate(key, shape, dtype):
            return jnp.log(jnp.linspace(SHORTEST, -math.log(REMAINING) / self.max_period, *shape, dtype=dtype))

        def init_frequency(key, shape, dtype):
            return 2 * jnp.pi / jnp.linspace(1.0, self.max_period, *shape, dtype=dtype)

        self.log_rate = self.param("log_rate", init_log_rate, (self.traces,), dtype)
        self.frequency = self.param("frequency", init_frequency, (self.contexts,), dtype)
        self.inp = Dense(2 * self.traces + 2 * width, param_dtype=dtype)  # traces, their gate, skip, output gate
        self.mix = Dense(width, param_dtype=dtype)
        self.norm = nn.LayerNorm(1e-5, use_bias=False, use_scale=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.traces * self.contexts), jnp.promote_types(self.param_dtype, jnp.complex64))

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        drive, skip, gate = self.write(x)
        h, state = linear_scan_planes(self.decay(), drive, reset, state, backend=self.backend)
        return state, self.read(h, skip, gate)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        drive, skip, gate = self.write(x)
        state, h = linear_scan_step(state, self.decay(), join(drive), reset)
        return state, self.read(split(h), skip, gate)

    def decay(self) -> jax.Array:
        """Factor of every trace in every context, complex `[traces * contexts]`."""
        exponent = lax.complex(*jnp.broadcast_arrays(-jnp.exp(self.log_rate)[:, None], self.frequency))
        return jnp.exp(exponent).reshape(-1)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """-> real and imaginary parts of what is added `[..., 2 traces * contexts]`; skip and gate `[..., width]`."""
        m = self.traces
        u, open_, skip, gate = jnp.split(self.inp(x), (m, 2 * m, 2 * m + self.width), -1)
        u = jnp.repeat(u * nn.sigmoid(open_), self.contexts, -1)
        return jnp.concatenate([u, jnp.zeros_like(u)], -1), skip, nn.sigmoid(gate)

    def read(self, h: jax.Array, skip: jax.Array, gate: jax.Array) -> jax.Array:
        """Real and imaginary parts of the state `[..., 2 traces * contexts]` -> output `[..., width]`."""
        return self.norm(self.mix(h)) * gate + skip * (1 - gate)
