"""GTrXL (Parisotto et al., ICML 2020): a transformer block with gates in place of residual sums.

    x1 = G(x, relu(A(LN(x))))      A: multi-head attention and a matrix
    y = G(x1, relu(M(LN(x1))))     M: two layers with relu between them

G is a GRU's gate (`engram.memory.layers.GRUGate`), which begins near its first argument. It is a whole block: `Stack`
neither normalises its input nor adds it to its output. The published block has Transformer-XL's positions
(`positions=xl`) and keeps the inputs of each layer; here it keeps their keys and values, which is the same for fixed
parameters.
"""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.memory.attention import Attention
from engram.memory.base import About, State
from engram.memory.layers import Dense, GRUGate


class GatedBlock(nn.Module):
    """What stands around the attention."""

    width: int
    expand: int
    gate_bias: float
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        dtype = self.param_dtype
        self.norms = [nn.LayerNorm(param_dtype=dtype) for _ in range(2)]
        self.gates = [GRUGate(self.gate_bias, dtype) for _ in range(2)]
        self.hidden = Dense(self.expand * self.width, param_dtype=dtype)
        self.last = Dense(self.width, param_dtype=dtype)

    def before(self, x: jax.Array) -> jax.Array:
        """What the attention sees of the input `[..., width]`."""
        return self.norms[0](x)

    def after(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The block's output `[..., width]` from its input and what the attention made of it."""
        x = self.gates[0](x, nn.relu(y))
        return self.gates[1](x, nn.relu(self.last(nn.relu(self.hidden(self.norms[1](x))))))


class GTrXL(Attention):
    """One block. State, options and what is forgotten when are those of `Attention`."""

    about = About(
        group="attention",
        equation="x1 = G(x, relu(attention(LN x))), y = G(x1, relu(MLP(LN x1))), G a GRU's gate",
        source="Parisotto et al., ICML 2020",
        home="https://arxiv.org/abs/1910.06764",
    )
    whole: ClassVar[bool] = True
    title: ClassVar[str] = "gtrxl"

    expand: int = 4
    """Size of the hidden layer after the attention, in widths."""
    gate_bias: float = 2.0
    """Bias at the start of the gates towards their input; with a large one the block passes its input on."""

    def __post_init__(self) -> None:
        if self.expand < 1 or not math.isfinite(self.gate_bias):
            raise BadRequest("gtrxl: needs expand >= 1 and a finite gate_bias")
        super().__post_init__()

    def setup(self) -> None:
        super().setup()
        self.block = GatedBlock(self.width, self.expand, self.gate_bias, self.param_dtype)

    def make_out(self) -> nn.Module:
        return Dense(self.width, use_bias=False, param_dtype=self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = super().__call__(state, self.block.before(x), reset)
        return state, self.block.after(x, y)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = super().step(state, self.block.before(x), reset)
        return state, self.block.after(x, y)
