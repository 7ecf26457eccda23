"""TCN, a temporal convolutional network (Bai et al. 2018): each layer a causal convolution with gaps between its taps.

    y[t] = V relu(sum_k W_k x[t - k dilation] + b) + c      k = 0 ... taps - 1

Inputs from before the episode are zeros. The stack adds the residual path and, in place of the paper's weight
normalisation, normalises the input; the second convolution of the paper's block has one tap.

- `positions=learned` (DCLS, Khalfaoui-Hassani et al., ICLR 2023): a tap sees each channel p steps back, learned and not
  always a whole number: the sum over the window of `max(0, 1 - |lag - p|) x[t - lag]`.
- `weights=channel` and `squash` (simple long convolutions, Fu et al., ICML 2023): `W_k` is one number for each channel,
  and of each only what exceeds a threshold counts, `sign(w) max(|w| - squash, 0)`.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_taps, causal_taps_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, uniform
from engram.memory.rnn import bounded


class TCN(Memory):
    """One convolution, relu and a dense layer. State: the inputs before, `[B, (taps - 1) * dilation, width]`."""

    about = About(
        group="windows",
        equation="y = V relu(sum_k W_k x[t - k dilation])",
        source="Bai et al. 2018 (temporal convolutional network); options: DCLS, simple long convolutions",
        home="https://arxiv.org/abs/1803.01271",
    )

    taps: int = 4
    """Number of inputs that a step sees, the current one among them."""
    dilation: int = 1
    """Steps from one tap to the next."""
    positions: Literal["fixed", "learned"] = "fixed"
    """Positions of the taps: fixed, or learned for each channel from there on, within the same window."""
    weights: Literal["dense", "channel"] = "dense"
    """Weights of a tap: dense (a matrix) or channel (a number for each channel)."""
    squash: float = 0.0
    """Threshold that is taken from the size of each weight; smaller weights count as 0. Above 0 it needs
    weights=channel."""

    def __post_init__(self) -> None:
        if self.taps < 1 or self.dilation < 1:
            raise BadRequest(f"tcn: needs taps >= 1 and dilation >= 1, got {self.taps} and {self.dilation}")
        if not 0 <= self.squash < math.inf or (self.squash and self.weights == "dense"):
            raise BadRequest(f"tcn: squash must be finite, at least 0, and 0 with weights=dense, got {self.squash}")
        super().__post_init__()

    @property
    def reach(self) -> int:
        """Largest number of steps that a tap looks back."""
        return (self.taps - 1) * self.dilation

    @property
    def lags(self) -> range:
        """Steps back of the inputs that are looked at: those of the taps, or all of the window."""
        return range(0, self.reach + 1, 1 if self.positions == "learned" else self.dilation)

    def setup(self) -> None:
        size, dtype = (self.taps, self.width), self.param_dtype
        if self.positions == "learned":
            start = np.arange(self.taps)[:, None] * self.dilation
            self.position = self.param("position", lambda _: jnp.broadcast_to(jnp.asarray(start, dtype), size))
        if self.weights == "dense":
            self.inp = Dense(self.width, kernel_init=nn.initializers.he_normal(), param_dtype=dtype)
        else:
            self.weight = self.param("weight", uniform(self.taps**-0.5), size, dtype)
            self.bias = self.param("bias", nn.initializers.zeros, (self.width,), dtype)
        self.out = Dense(self.width, param_dtype=self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.reach, self.width), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        seen, state = causal_taps(x, self.lags, reset, state)
        return state, self.read(seen)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, seen = causal_taps_step(state, x, self.lags, reset)
        return state, self.read(seen)

    def read(self, seen: list[jax.Array]) -> jax.Array:
        """Inputs `[..., width]` at each of `lags` -> output `[..., width]`."""
        if self.positions == "learned":
            seen = self.at_positions(seen)
        if self.weights == "dense":
            return self.out(nn.relu(self.inp(jnp.concatenate(seen, -1))))
        weight = jnp.sign(self.weight) * nn.relu(jnp.abs(self.weight) - self.squash)
        return self.out(nn.relu(sum((w * x for w, x in zip(weight, seen, strict=True)), self.bias)))

    def at_positions(self, seen: list[jax.Array]) -> list[jax.Array]:
        """Inputs `[..., width]` at each step of the window -> at the position of each tap, between two steps their
        mean, weighed by closeness."""
        middle = self.reach / 2
        position = middle + bounded(self.position - middle, middle)
        lags = jnp.arange(self.reach + 1, dtype=position.dtype)[:, None, None]
        # `maximum` has half a gradient where both are equal: so neighbours on both sides pull at a whole position.
        closeness = jnp.maximum(1 - jnp.maximum(lags - position, position - lags), 0)  # [window, taps, width]
        nothing = jnp.zeros_like(position[0])
        return [sum((c[k] * x for c, x in zip(closeness, seen, strict=True)), nothing) for k in range(self.taps)]
