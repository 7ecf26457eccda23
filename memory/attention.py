"""Sliding-window attention: every step attends to itself and the `window` steps before it in its episode.

The last `window` keys and values are the state, so the learner's chunk sees exactly what the actor saw, whatever
came before the chunk. Positions enter as a learned bias per head and distance (Raffel et al. 2020, without buckets):
distances are all that actor and learner share.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.window_scan import initial_state, window_scan, window_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, by_head


class Attention(Memory):
    """One layer of multi-head attention and a gated output.

    State: that of `engram.kernels.window_scan`: keys and values `[B, window, heads, width / heads]`, and int32 `[B]`.

    A NaN is forgotten at a reset that opens a chunk; a reset inside a chunk may not stop it from reaching later steps
    of its block of `window` steps, through the product of a zero weight and its value.
    """

    about = About(
        group="attention",
        equation="y = softmax(q K^T + bias by distance) V over the last window + 1 steps",
        source="Vaswani et al., NeurIPS 2017, in a sliding window; bias after Raffel et al. 2020",
        home="https://arxiv.org/abs/1706.03762",
    )

    window: int = 64
    """Steps in the cache: a step sees itself and this many before it."""
    heads: int = 4
    """Number of heads; must divide the width."""
    backend: str = "auto"
    """Backend of `engram.kernels.window_scan`."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.heads < 1 or self.width % self.heads:
            raise BadRequest(f"attention: needs window >= 1 and heads that divide width {self.width}")
        super().__post_init__()

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        dtype = self.param_dtype
        self.qkv = Dense(3 * self.width, use_bias=False, param_dtype=dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.heads, self.window + 1), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return initial_state(batch, self.window, self.heads, self.width // self.heads, self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        y, state = self.scan(*self.project(x), reset, state)
        return state, self.out(y.reshape(x.shape))

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = window_scan_step(state, *self.project(x), self.bias, reset, backend=self.backend)
        return state, self.out(y.reshape(x.shape))

    def scan(self, q: jax.Array, k: jax.Array, v: jax.Array, reset: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Outputs `[T, B, heads, width / heads]` of a sequence, and the state after it."""
        return window_scan(q, k, v, self.bias, reset, state, backend=self.backend)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values `[..., heads, width / heads]`."""
        q, k, v = (by_head(array, self.heads) for array in jnp.split(self.qkv(x), 3, -1))
        return q / math.sqrt(q.shape[-1]), k, v
