"""TCN, a temporal convolutional network (Bai et al. 2018): each layer a causal convolution with gaps between its taps.

    y[t] = V relu(sum_k W_k x[t - k dilation] + b) + c      k = 0 ... taps - 1

Inputs from before the episode are zeros. The stack adds the residual path and, in place of the paper's weight
normalisation, normalises the input; the second convolution of the paper's block has one tap.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_taps, causal_taps_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense


class TCN(Memory):
    """One convolution, relu and a dense layer. State: the inputs before, `[B, (taps - 1) * dilation, width]`."""

    about = About(
        group="windows",
        equation="y = V relu(sum_k W_k x[t - k dilation])",
        source="Bai et al. 2018 (temporal convolutional network)",
        home="https://arxiv.org/abs/1803.01271",
    )

    taps: int = 4
    """Number of inputs that a step sees, the current one among them."""
    dilation: int = 1
    """Steps from one tap to the next."""

    def __post_init__(self) -> None:
        if self.taps < 1 or self.dilation < 1:
            raise BadRequest(f"tcn: needs taps >= 1 and dilation >= 1, got {self.taps} and {self.dilation}")
        super().__post_init__()

    @property
    def lags(self) -> range:
        return range(0, self.taps * self.dilation, self.dilation)

    def setup(self) -> None:
        self.inp = Dense(self.width, kernel_init=nn.initializers.he_normal(), param_dtype=self.param_dtype)
        self.out = Dense(self.width, param_dtype=self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, (self.taps - 1) * self.dilation, self.width), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        seen, state = causal_taps(x, self.lags, reset, state)
        return state, self.read(seen)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, seen = causal_taps_step(state, x, self.lags, reset)
        return state, self.read(seen)

    def read(self, seen: list[jax.Array]) -> jax.Array:
        """Inputs `[..., width]`, the newest first -> output `[..., width]`."""
        return self.out(nn.relu(self.inp(jnp.concatenate(seen, -1))))
