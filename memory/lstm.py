"""Long short-term memory, with the parameters of flax's `OptimizedLSTMCell`, gates side by side."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.kernels.lstm_scan import lstm_scan, lstm_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, gate_orthogonal


def _forget_bias(key, shape, dtype=jnp.float32):
    """1 for the forget gate, 0 for the others: a new LSTM remembers (Jozefowicz et al. 2015)."""
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class LSTM(Memory):
    """One LSTM layer. State: `(c, h)`, each `[B, width]`; output: `h`."""

    about = About(
        group="recurrent",
        equation="c = f * c' + i * tanh(W x + U h'), h = o * tanh(c)",
        source="Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000",
        home="https://doi.org/10.1162/neco.1997.9.8.1735",
    )

    backend: str = "auto"
    """Backend of `engram.kernels.lstm_scan`."""

    def setup(self) -> None:
        self.inp = Dense(4 * self.width, bias_init=_forget_bias, param_dtype=self.param_dtype)
        self.Wh = self.param("Wh", gate_orthogonal(4), (self.width, 4 * self.width), self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        zeros = jnp.zeros((batch, self.width), self.param_dtype)
        return zeros, zeros

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        y, state = lstm_scan(self.inp(x), self.Wh, reset, state, backend=self.backend)
        return state, y

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        return lstm_scan_step(state, self.inp(x), self.Wh, reset)
