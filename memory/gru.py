"""Gated recurrent unit (Cho et al. 2014), with the parameters of flax's `GRUCell`, gates side by side."""

import flax.linen as nn
import jax.numpy as jnp

from kernels.gru_scan import gru_scan, gru_scan_step
from memory.base import Memory
from memory.layers import Dense, gate_orthogonal


class GRU(Memory):
    """One GRU layer. State and output: `h (B, width)`.

    Attributes:
        backend: of `kernels.gru_scan`.
    """

    backend: str = "auto"

    def setup(self):
        self.inp = Dense(3 * self.width, param_dtype=self.param_dtype)
        self.Wh = self.param("Wh", gate_orthogonal(3), (self.width, 3 * self.width), self.param_dtype)
        self.bh = self.param("bh", nn.initializers.zeros, (self.width,), self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch):
        return jnp.zeros((batch, self.width), self.param_dtype)

    def __call__(self, state, x, reset):
        y, state = gru_scan(self.inp(x), self.Wh, self.bh, reset, state, backend=self.backend)
        return state, y

    def step(self, state, x, reset):
        return gru_scan_step(state, self.inp(x), self.Wh, self.bh, reset)
