"""Frame stacking (Mnih et al. 2015): a layer that sees the last inputs side by side.

    y[t] = out(W [x[t], x[t-1], ..., x[t-frames+1]] + b)

Inputs from before the episode are zeros. With one frame this is the layer without memory (`engram.memory.none`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_taps, causal_taps_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput


class FrameStack(Memory):
    """One dense layer of the last inputs and a gated output. State: the inputs before, `[B, frames - 1, width]`."""

    about = About(
        group="windows",
        equation="y = out(W [x[t], x[t-1], ..., x[t-frames+1]])",
        source="Mnih et al., Nature 2015",
        home="https://doi.org/10.1038/nature14236",
    )

    frames: int = 4
    """Number of inputs that a step sees, the current one among them."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise BadRequest(f"framestack: frames must be at least 1, got {self.frames}")
        super().__post_init__()

    def setup(self) -> None:
        self.inp = Dense(self.width, param_dtype=self.param_dtype)
        self.out = GatedOutput(self.width, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.frames - 1, self.width), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        frames, state = causal_taps(x, range(self.frames), reset, state)
        return state, self.read(frames)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, frames = causal_taps_step(state, x, range(self.frames), reset)
        return state, self.read(frames)

    def read(self, frames: list[jax.Array]) -> jax.Array:
        """Inputs `[..., width]`, the newest first -> output `[..., width]`."""
        return self.out(self.inp(jnp.concatenate(frames, -1)))
