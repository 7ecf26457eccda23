"""minGRU (Feng et al. 2024, "Were RNNs all we needed?"): a GRU whose gates do not look at the state.

    h[t] = (1 - z) h[t-1] + z n      z = sigmoid(Wz x)      n = Wn x

A linear recurrence with decay `1 - z` in (0, 1): computed as it stands, without the logarithms of the paper.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.linear_scan import linear_scan, linear_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, log_uniform


class MinGRU(Memory):
    """One minGRU layer and a gated output. State: `h[B, width * expand]`."""

    about = About(
        group="diagonal",
        equation="h = (1 - z) * h' + z * (W x), z = sigmoid(U x)",
        source="Feng et al. 2024 (minGRU)",
        home="https://arxiv.org/abs/2410.01201",
    )

    expand: int = 1
    """Size of the state in widths."""
    max_timescale: float = 64.0
    """Longest memory of a unit at the start, in steps."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if self.expand < 1 or not 1 < self.max_timescale < math.inf:
            raise BadRequest("mingru: needs expand >= 1 and a finite max_timescale > 1")
        super().__post_init__()

    def setup(self) -> None:
        size = self.expand * self.width

        def init_bias(key, shape, dtype):
            """Gates of `1 / timescale` (chrono initialisation, Tallec and Ollivier 2018): a half-open one forgets."""
            timescale = jnp.exp(log_uniform(1.0, self.max_timescale)(key, (size,), dtype))
            return jnp.concatenate([-jnp.log(timescale), jnp.zeros(shape[0] - size, dtype)])

        self.inp = Dense(2 * size, bias_init=init_bias, param_dtype=self.param_dtype)
        self.out = GatedOutput(self.width, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.expand * self.width), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        h, state = linear_scan(*self.write(x), reset, state, backend=self.backend)
        return state, self.out(h)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, h = linear_scan_step(state, *self.write(x), reset)
        return state, self.out(h)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Decay `1 - z` and drive `z n`, each `[..., expand * width]`."""
        gate, candidate = jnp.split(self.inp(x), 2, -1)
        # sigmoid(-gate), not 1 - sigmoid(gate): exact where the gate is nearly open.
        return jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate) * candidate
