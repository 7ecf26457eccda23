"""sLSTM, the scalar memory of xLSTM (Beck et al., NeurIPS 2024): an LSTM with exponential input gates, normalised.

The recurrence is that of `engram.kernels.slstm_scan`. As published, input and forget gates see the input through a
short convolution, all weights mix within heads, and each head is normalised; after it stands this project's gated
output in place of the published feed-forward layer.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_conv, causal_conv_step
from engram.kernels.slstm_scan import initial_state, slstm_scan, slstm_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import GatedOutput, by_head, normalised_heads, uniform


def _bias(key, shape, dtype):
    """Zeros, but for the forget gates `[heads, 4 D]`: from 5, which remembers, down to -7 along the units of a head."""
    size = shape[1] // 4
    forget = 5 - 12 * (jnp.arange(size, dtype=dtype) / max(size - 1, 1)) ** 0.3
    return jnp.zeros(shape, dtype).at[:, size : 2 * size].set(forget)


class SLSTM(Memory):
    """One sLSTM layer. State: `(taps, (c, n, m, h))`, the convolution's past inputs `[B, conv - 1, width]`, and cell,
    normaliser, exponent and output, each `[B, heads, width / heads]`.
    """

    about = About(
        group="recurrent",
        equation="c = f * c' + exp(i~) * tanh(z~), n = f * n' + exp(i~), h = o * c / n",
        source="Beck et al., NeurIPS 2024 (xLSTM)",
        home="https://arxiv.org/abs/2405.04517",
    )

    heads: int = 4
    """Number of heads, within which units see each other; must divide the width."""
    conv: int = 4
    """Taps of the convolution before input and forget gates, the current input among them."""
    backend: str = "auto"
    """Backend of `engram.kernels.slstm_scan`."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.conv < 1 or self.width % self.heads:
            raise BadRequest(f"slstm: heads={self.heads} must divide the width {self.width}, and conv be at least 1")
        super().__post_init__()

    def setup(self) -> None:
        size, dtype = self.width // self.heads, self.param_dtype
        small = nn.initializers.normal(math.sqrt(2 / (5 * self.width)))
        self.conv_weight = self.param("conv_weight", uniform(self.conv**-0.5), (self.conv, self.width), dtype)
        self.conv_bias = self.param("conv_bias", uniform(self.conv**-0.5), (self.width,), dtype)
        self.Wx = self.param("Wx", small, (self.heads, size, 4 * size), dtype)
        self.Wh = self.param("Wh", nn.initializers.zeros, (self.heads, size, 4 * size), dtype)
        self.bias = self.param("bias", _bias, (self.heads, 4 * size), dtype)
        self.norm_scale = self.param("norm_scale", nn.initializers.ones, (self.width,), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        taps = jnp.zeros((batch, self.conv - 1, self.width), self.param_dtype)
        return taps, initial_state(batch, self.heads, self.width // self.heads, jnp.dtype(self.param_dtype))

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, cell = state
        mixed, taps = causal_conv(x, self.conv_weight, self.conv_bias, reset, taps)
        h, cell = slstm_scan(self.project(x, mixed), self.Wh, reset, cell, backend=self.backend)
        return (taps, cell), self.read(h)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, cell = state
        taps, mixed = causal_conv_step(taps, x, self.conv_weight, self.conv_bias, reset)
        cell, h = slstm_scan_step(cell, self.project(x, mixed), self.Wh, reset)
        return (taps, cell), self.read(h)

    def project(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """Input and the convolution's output, `[..., width]` -> the gates' logits `[..., heads, 4 width / heads]`."""
        x, mixed = (by_head(a, self.heads) for a in (x, nn.silu(mixed)))
        Wx = jnp.split(self.Wx, 2, -1)  # input and forget gates, the rest
        parts = [jnp.einsum("...hd,hde->...he", a, W) for a, W in zip((mixed, x), Wx, strict=True)]
        return jnp.concatenate(parts, -1) + self.bias

    def read(self, h: jax.Array) -> jax.Array:
        """Output of the heads `[..., heads, width / heads]` -> output `[..., width]`."""
        return self.out(normalised_heads(h, self.norm_scale))
