"""No memory: the baseline that shows how much of a task needs one."""

import flax.linen as nn
import jax

from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput


class NoMemory(Memory):
    """A gated feed-forward layer of the current input alone, with the output layer that other memories have."""

    about = About(
        group="windows",
        equation="y = V (gelu(u) * sigmoid(W gelu(u))), u = U x",
        source="baseline without memory",
    )

    def setup(self) -> None:
        self.inp = Dense(self.width, param_dtype=self.param_dtype)
        self.out = GatedOutput(self.width, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return ()

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        return state, self.out(self.inp(x))

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        return self(state, x, reset)
