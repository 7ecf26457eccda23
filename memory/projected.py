"""A memory of another width than what is around it."""

from typing import Any

import flax.linen as nn
import jax

from engram.memory.base import Memory, State
from engram.memory.layers import Dense


class Projected(Memory):
    """`memory` between two linear maps: from `width` to its own width, and back.

    Around it nothing changes with the width of the memory, so memories of one size can be compared in the same network.
    State: that of the memory.
    """

    memory: Any = None
    """The memory within."""

    @property
    def forgets_nan_inside(self) -> bool:
        return self.memory.forgets_nan_inside

    def setup(self) -> None:
        self.enter = Dense(self.memory.width, param_dtype=self.param_dtype)
        self.leave = Dense(self.width, param_dtype=self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return self.memory.initial_state(batch)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = self.memory(state, self.enter(x), reset)
        return state, self.leave(y)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = self.memory.step(state, self.enter(x), reset)
        return state, self.leave(y)
