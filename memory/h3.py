"""H3 (Fu, Dao et al., ICLR 2023): two state spaces between three projections, joined by products.

    y = W (q * SSM_diag(SSM_shift(k) * v)) + b      q, k and v linear in the input

The shift space holds the last inputs, so it is a causal convolution; the diagonal one is that of S4D. Values are
written where the last keys say so, and shown where the query does: what followed a key can be recalled.

`kind=hyena` has a short convolution on all three projections: Hyena of order 2 (Poli et al., ICML 2023) with its long
filter in modal form, a sum of exponentials (Massaroli et al., NeurIPS 2023), in place of a network that is as long as
the sequence.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_conv, causal_conv_step
from engram.memory.base import About, State
from engram.memory.layers import Dense, uniform
from engram.memory.s4d import StateSpaces


class H3(StateSpaces):
    """One layer. State: `(taps, h)`, the convolution's past inputs `[B, conv - 1, width]`, three times as wide with
    `kind="hyena"`, and the state spaces, complex `[B, width * state / 2]`."""

    about = About(
        group="diagonal",
        equation="h = exp(dt A) * h' + B (conv(k) * v), y = W (q * 2 Re(C h))",
        source="Fu, Dao et al., ICLR 2023 (H3); option: Hyena of order 2 in modal form",
        home="https://arxiv.org/abs/2212.14052",
    )

    kind: Literal["h3", "hyena"] = "h3"
    """Kind of layer: h3 (keys pass a short convolution) or hyena (queries, keys and values do)."""
    conv: int = 4
    """Taps of the short convolution, the current input among them."""

    def __post_init__(self) -> None:
        if self.conv < 1:
            raise BadRequest(f"h3: conv must be at least 1, got {self.conv}")
        super().__post_init__()

    @property
    def mixed(self) -> int:
        """Number of channels of the convolution."""
        return self.width * (3 if self.kind == "hyena" else 1)

    def setup(self) -> None:
        super().setup()
        self.inp = Dense(3 * self.width, param_dtype=self.param_dtype)
        size = (self.conv, self.mixed)
        self.conv_weight = self.param("conv_weight", uniform(self.conv**-0.5), size, self.param_dtype)
        self.out = Dense(self.width, param_dtype=self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        taps = jnp.zeros((batch, self.conv - 1, self.mixed), self.param_dtype)
        return taps, super().initial_state(batch)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, h = state
        mixed, rest = self.project(x)
        mixed, taps = causal_conv(mixed, self.conv_weight, jnp.zeros(()), reset, taps)
        q, u = self.write(mixed, rest)
        h, y = self.through(h, u, reset)
        return (taps, h), self.out(q * y)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, h = state
        mixed, rest = self.project(x)
        taps, mixed = causal_conv_step(taps, mixed, self.conv_weight, jnp.zeros(()), reset)
        q, u = self.write(mixed, rest)
        h, y = self.through_step(h, u, reset)
        return (taps, h), self.out(q * y)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Input -> k (hyena: k, q and v) for the convolution `[..., mixed]`, and what of k, q and v is left."""
        mixed, rest = jnp.split(self.inp(x), [self.mixed], -1)
        return mixed, rest

    def write(self, mixed: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The convolution's output, and what it left -> q, and the input of the state spaces, `[..., width]` each."""
        k, q, v = jnp.split(jnp.concatenate([mixed, rest], -1), 3, -1)
        return q, k * v
