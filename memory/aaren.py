"""Aaren (Feng et al. 2024, "Attention as an RNN"): each head attends to all of the episode with one learned query.

    y[t] = sum_r softmax_r(s)[r] v[r] over r <= t      s = q^T Wk x / sqrt(n)      v = Wv x

A query that does not depend on the step makes the average a recurrence: its state has one size, whatever it has seen.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.aaren_scan import aaren_scan, aaren_scan_step, initial_state
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, by_head


class Aaren(Memory):
    """One layer of heads and a gated output. State: `(m, u, w)` of `engram.kernels.aaren_scan`,
    `[B, heads]`, `[B, heads]`, `[B, heads, width / heads]`.
    """

    about = About(
        group="attention",
        equation="y = softmax-weighted mean of v over the episode, weights of one learned query",
        source="Feng et al. 2024 (attention as an RNN)",
        home="https://arxiv.org/abs/2405.13956",
    )

    heads: int = 4
    """Number of heads; must divide the width."""
    backend: str = "auto"
    """Backend of `engram.kernels.aaren_scan`."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise BadRequest(f"aaren: needs heads that divide width {self.width}")
        super().__post_init__()

    def setup(self) -> None:
        size, dtype = self.width // self.heads, self.param_dtype
        self.kv = Dense(2 * self.width, use_bias=False, param_dtype=dtype)
        self.query = self.param("query", nn.initializers.normal(1.0), (self.heads, size), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return initial_state(batch, self.heads, self.width // self.heads, self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        y, state = aaren_scan(*self.write(x), reset, state, backend=self.backend)
        return state, self.read(y, x)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = aaren_scan_step(state, *self.write(x), reset)
        return state, self.read(y, x)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores `[..., heads]` and values `[..., heads, width / heads]`."""
        k, v = (by_head(part, self.heads) for part in jnp.split(self.kv(x), 2, -1))
        return (k * self.query).sum(-1) * k.shape[-1] ** -0.5, v

    def read(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return self.out(y.reshape(x.shape))
