"""No memory: the baseline that tells what a task needs memory for."""

import flax.linen as nn

from engram.memory.base import Memory
from engram.memory.layers import Dense, GatedOutput


class NoMemory(Memory):
    """A gated feed-forward of the current input alone, of the same shape as the other layers' outputs."""

    def setup(self):
        self.inp = Dense(self.width, param_dtype=self.param_dtype)
        self.out = GatedOutput(self.width, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch):
        return ()

    def __call__(self, state, x, reset):
        return state, self.out(self.inp(x))

    def step(self, state, x, reset):
        return self(state, x, reset)
