"""mLSTM, the matrix memory of xLSTM (Beck et al., NeurIPS 2024): keys and values with exponential input gates.

Per head:  C[t] = f C[t-1] + i k v^T      n[t] = f n[t-1] + i k      y[t] = C[t]^T q / max(|n[t]^T q|, 1)
           f = sigmoid(f~)      i = exp(i~)

and, with the option `negative`, f = 2 sigmoid(f~) - 1 (after Grazzi et al., ICLR 2025).

Products of exponentials overflow, so `C` and `n` are kept divided by exp(m), with m = max(m + log f, i~, 0) (the floor
of 0 is ours: with it nothing overflows however small all gates are). `y` does not depend on `m`, which therefore has no
gradient. `n` is one more column of `C`, and the whole is a gated linear attention (`engram.kernels.gla_scan`).
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_conv, causal_conv_step
from engram.kernels.gla_scan import gla_scan, gla_scan_step, signed_decay
from engram.kernels.max_plus_scan import max_plus_scan, max_plus_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, by_head, normalised_heads, uniform


def _forget_bias(key, shape, dtype):
    """Heads remember for 20 steps (sigmoid of 3) to 400 (sigmoid of 6) at the start."""
    return jnp.linspace(3.0, 6.0, shape[0], dtype=dtype)


class MLSTM(Memory):
    """One mLSTM block. State: `(taps, C, m)`, the convolution's past inputs `[B, conv - 1, expand * width]`, keys times
    values and their normaliser `[B, heads, keys, values + 1]`, and the exponent by which they are divided `[B, heads]`.
    With `input_gate="sigmoid"` the last two are `[B, heads, keys, values]` and zeros.
    """

    about = About(
        group="matrix",
        equation="C = f C' + exp(i~) k v^T, n = f n' + exp(i~) k, y = C^T q / max(abs(n^T q), 1)",
        source="Beck et al., NeurIPS 2024 (xLSTM); option: TFLA's gate",
        home="https://arxiv.org/abs/2405.04517",
    )

    heads: int = 4
    """Number of heads; must divide `expand * width`."""
    expand: int = 2
    """Number of channels in widths."""
    conv: int = 4
    """Taps of the convolution before queries and keys, the current input among them."""
    block: int = 4
    """Channels that queries, keys and values mix, in blocks; must divide `expand * width`."""
    input_gate: Literal["exp", "sigmoid"] = "exp"
    """Input gate: exp (xLSTM) or sigmoid, which needs no normaliser (TFLA, Beck et al. 2025)."""
    gate_cap: float = 0.0
    """Bound of both gates' logits, as cap * tanh(logit / cap) (15 in xLSTM 7B); 0 for none."""
    negative: bool = False
    """Forget gates `2 sigmoid(f~) - 1` in (-1, 1) in place of `sigmoid(f~)`; memories start half as long."""
    chunk: int = 0
    """Steps that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.gla_scan`."""

    def __post_init__(self) -> None:
        if min(self.heads, self.expand, self.conv, self.block) < 1 or not 0 <= self.gate_cap < math.inf:
            raise BadRequest("mlstm: needs heads, expand, conv and block >= 1 and a finite gate_cap >= 0")
        if self.channels % self.heads or self.channels % self.block:
            raise BadRequest(
                f"mlstm: heads={self.heads} and block={self.block} must divide the {self.channels} channels"
            )
        super().__post_init__()

    @property
    def channels(self) -> int:
        return self.expand * self.width

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        channels, dtype = self.channels, self.param_dtype
        small = nn.initializers.normal(math.sqrt(2 / (5 * self.width)))
        mixers = (3, channels // self.block, self.block, self.block)
        self.up = Dense(2 * channels, use_bias=False, kernel_init=small, param_dtype=dtype)
        self.conv_weight = self.param("conv_weight", uniform(self.conv**-0.5), (self.conv, channels), dtype)
        self.conv_bias = self.param("conv_bias", uniform(self.conv**-0.5), (channels,), dtype)
        self.qkv = self.param("qkv", small, mixers, dtype)
        zeros = nn.initializers.zeros
        self.input = Dense(self.heads, kernel_init=zeros, bias_init=nn.initializers.normal(0.1), param_dtype=dtype)
        self.forget = Dense(self.heads, kernel_init=zeros, bias_init=_forget_bias, param_dtype=dtype)
        self.norm_scale = self.param("norm_scale", nn.initializers.ones, (channels,), dtype)
        self.skip = self.param("skip", nn.initializers.ones, (channels,), dtype)
        out = nn.initializers.normal(2 / math.sqrt(channels))
        self.down = Dense(self.width, use_bias=False, kernel_init=out, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        size = self.channels // self.heads
        taps = jnp.zeros((batch, self.conv - 1, self.channels), self.param_dtype)
        C = jnp.zeros((batch, self.heads, size, size + (self.input_gate == "exp")), self.param_dtype)
        return taps, C, jnp.zeros((batch, self.heads), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, C, m = state
        u, z = jnp.split(self.up(x), 2, -1)
        mixed, taps = causal_conv(u, self.conv_weight, self.conv_bias, reset, taps)
        mixed = nn.silu(mixed)
        q, k, v, log_i, log_f, negative = self.write(u, mixed)
        found, now = None, None
        if self.input_gate == "exp":
            found, now, m = max_plus_scan(log_f, log_i, reset, m)
        k, v, log_decay = self.gated(k, v, log_i, log_f, found, now)
        chunk = self.chunk or None
        y, C = gla_scan(q, k, v, log_decay, reset, C, negative=negative, chunk=chunk, backend=self.backend)
        return (taps, C, m), self.read(y, now, mixed, z)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, C, m = state
        u, z = jnp.split(self.up(x), 2, -1)
        taps, mixed = causal_conv_step(taps, u, self.conv_weight, self.conv_bias, reset)
        mixed = nn.silu(mixed)
        q, k, v, log_i, log_f, negative = self.write(u, mixed)
        found, now = None, None
        if self.input_gate == "exp":
            found, now = max_plus_scan_step(m, log_f, log_i, reset)
            m = now
        k, v, log_decay = self.gated(k, v, log_i, log_f, found, now)
        C, y = gla_scan_step(C, q, k, v, log_decay, reset, negative)
        return (taps, C, m), self.read(y, now, mixed, z)

    def write(self, u: jax.Array, mixed: jax.Array) -> tuple[Any, ...]:
        """Channels and the convolution's output, `[..., channels]` -> q, k, v `[..., heads, size]`, i~, log |f| and
        where f is negative, or None, `[..., heads]`."""
        blocks = self.channels // self.block
        q, k = jnp.einsum("...gi,pgij->p...gj", by_head(mixed, blocks), self.qkv[:2]).reshape(2, *u.shape)
        v = jnp.einsum("...gi,gij->...gj", by_head(u, blocks), self.qkv[2]).reshape(u.shape)
        qkv = jnp.concatenate([q, k, v], -1)
        logits = (self.input(qkv), self.forget(qkv))
        if self.gate_cap:
            logits = (self.gate_cap * jnp.tanh(x / self.gate_cap) for x in logits)
        log_i, forget = logits
        q, k, v = (by_head(a, self.heads) for a in (q, k, v))
        log_f = nn.log_sigmoid(forget)
        decays = signed_decay(log_f) if self.negative else (log_f, None)
        return q, k * k.shape[-1] ** -0.5, v, log_i, *decays

    def gated(
        self,
        k: jax.Array,
        v: jax.Array,
        log_i: jax.Array,
        log_f: jax.Array,
        found: jax.Array | None,
        m: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """-> keys times their gates, values with a 1 for the normaliser, log decay: all relative to exp(m), where
        `found` is the m of the step before. Without m: gates that are sigmoids, and no normaliser."""
        if found is None or m is None:
            return k * nn.sigmoid(log_i)[..., None], v, log_f
        k = k * jnp.exp(log_i - m)[..., None]
        return k, jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1), log_f + found - m

    def read(self, y: jax.Array, m: jax.Array | None, mixed: jax.Array, z: jax.Array) -> jax.Array:
        """What the queries found `[..., heads, size (+ 1)]`; m `[..., heads]` or None -> output `[..., width]`."""
        if m is not None:
            y = y[..., :-1] / jnp.maximum(jnp.abs(y[..., -1]), jnp.exp(-m))[..., None]
        y = normalised_heads(y, self.norm_scale)
        return self.down((y + self.skip * mixed) * nn.silu(z))
