"""ParaRNN (Danieli et al. 2025): a GRU or an LSTM whose units see only themselves, then the gated output.

The cells are those of `engram.kernels.newton_scan`, whose weights `a` and `p` are kept in `(-limit, limit)`. On
anything but a CPU a sequence is solved at once by Newton's method, to the rounding of its numbers; a CPU takes its
steps in turn. The number of iterations is the metric `newton_iterations`: 0 without them, `max_iterations + 1` where
they were given up.

Units do not mix, so one layer follows no group whose elements do not commute. A unit whose limit is above 1 can turn
its sign for good, which parity needs.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.newton_scan import CELLS, newton_scan, newton_scan_step
from engram.memory.base import METRICS, About, Memory, State
from engram.memory.layers import Dense, GatedOutput, log_uniform, uniform


class Para(Memory):
    """One layer. State: `h[B, width]`, or `(c, h)` of the LSTM."""

    about = About(
        group="recurrent",
        equation="h = (1 - z) * h' + z * tanh(W x + a * r * h'), z and r from W x and a * h'",
        source="Danieli et al. 2025 (ParaRNN: ParaGRU; option: ParaLSTM)",
        home="https://arxiv.org/abs/2510.21450",
    )

    cell: Literal["gru", "lstm"] = "gru"
    """Cell: gru or lstm (with peepholes, and input gates that are one minus the forget gates)."""
    limit: float = 1.0
    """Bound of what a unit sees of itself. Above 1 a sequence may need many iterations of Newton's method, or all steps
    in turn."""
    max_timescale: float = 64.0
    """Longest memory of a unit at the start, in steps; log-uniform from 1."""
    max_iterations: int = 12
    """Iterations of Newton's method after which the steps are taken in turn."""
    backend: str = "auto"
    """Backend of `engram.kernels.newton_scan`."""

    def __post_init__(self) -> None:
        if not (0 < self.limit < math.inf and 1 <= self.max_timescale < math.inf) or self.max_iterations < 1:
            raise BadRequest("para: needs a finite limit > 0, a finite max_timescale >= 1 and max_iterations >= 1")
        super().__post_init__()

    def setup(self) -> None:
        width, dtype = self.width, self.param_dtype

        def init_bias(key, shape, dtype):
            """Units keep `t / (1 + t)` of their state (chrono initialisation, Tallec and Ollivier 2018)."""
            log_timescale = log_uniform(1.0, self.max_timescale)(key, (width,), dtype)
            return jnp.zeros(shape, dtype).at[:width].set(log_timescale if self.cell == "lstm" else -log_timescale)

        self.inp = Dense(3 * width, bias_init=init_bias, param_dtype=dtype)
        self.A = self.param("A", uniform(width**-0.5), (CELLS[self.cell].rows, width), dtype)
        self.out = GatedOutput(width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        h = jnp.zeros((batch, self.width), self.param_dtype)
        return (h, h) if self.cell == "lstm" else h

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        h, state, count = newton_scan(
            self.inp(x),
            self.weights(),
            reset,
            state,
            cell=self.cell,
            max_iterations=self.max_iterations,
            backend=self.backend,
        )
        self.sow(METRICS, "newton_iterations", count)
        return state, self.out(h)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, h = newton_scan_step(state, self.inp(x), self.weights(), reset, cell=self.cell)
        return state, self.out(h)

    def weights(self) -> jax.Array:
        """What units see of themselves, within the bounds, `[rows, width]`."""
        return self.limit * jnp.tanh(self.A)
