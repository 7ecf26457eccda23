"""The time mixing of RWKV-7 (Peng et al. 2025): a matrix of keys and values with rates of its own for every row.

    S[t] = (diag(w) - (a * kap) kap^T) S[t-1] + kt v^T      y[t] = norm(S[t]^T r) + (sum r * u * kt) v

kap has length 1 and the direction of `k * kk`; `kt = k * (1 + (a - 1) * ka)`. w in (0.545, 1) is how fast a row decays
and a in (0, 1) how much of what kap holds is removed. r, k, v, w, a and the output gate see the input mixed with the
one before ("token shift").

Left out are what goes from layer to layer (the first layer's values) and the channel mixing, which stands for the
feed-forward layer of a transformer.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_taps, causal_taps_step
from engram.kernels.delta_scan import delta_scan, delta_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, by_head, head_sizes, normalised_heads, unit

MIXED = ("r", "w", "k", "v", "a", "g")
"""What the mixtures of the input with the one before make."""


def init_mix(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Shares of the input before, more for the first channels: one row for each of `MIXED`."""
    powers = jnp.asarray([0.2, 0.9, 0.7, 0.7, 0.9, 0.2], dtype)
    return 1 - (jnp.arange(shape[1], dtype=dtype) / shape[1]) ** powers[:, None]


def init_decay(key: jax.Array, shape: tuple[int], dtype=jnp.float32) -> jax.Array:
    """Logits of the decays: from -6, which keeps a row for 670 steps, to 0."""
    return 6 * jnp.linspace(0, 1, shape[0], dtype=dtype) ** 0.85 - 6


class RWKV7(Memory):
    """One layer. State: `(past, S)`, the input before `[B, 1, width]` and the matrices `[B, heads, keys, values]`."""

    about = About(
        group="matrix",
        equation="S = (diag(w) - (a * kap) kap^T) S' + kt v^T, y = S^T r",
        source="Peng et al. 2025 (RWKV-7)",
        home="https://arxiv.org/abs/2503.14456",
    )

    heads: int = 4
    """Number of heads; must divide `width`."""
    rank: int = 32
    """Rank of the projections to decays, removal rates and the output gate."""
    chunk: int = 0
    """Updates that the learner takes together, two a step, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.delta_scan`."""

    def __post_init__(self) -> None:
        head_sizes("rwkv7", self.width, self.heads, 1.0, 1.0)  # raises where they do not fit
        if self.rank < 1:
            raise BadRequest("rwkv7: needs rank >= 1")
        super().__post_init__()

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        width, dtype = self.width, self.param_dtype
        ones, zeros = nn.initializers.ones, nn.initializers.zeros

        def dense(features: int, **options: Any) -> Dense:
            return Dense(features, use_bias="bias_init" in options, param_dtype=dtype, **options)

        self.mix = self.param("mix", init_mix, (len(MIXED), width), dtype)
        self.receptance, self.key, self.value, self.out = (dense(width) for _ in range(4))
        # Rates depend on the input only as far as they learn to.
        self.decay_in, self.decay_out = dense(self.rank, kernel_init=zeros), dense(width, bias_init=init_decay)
        self.rate_in, self.rate_out = dense(self.rank, kernel_init=zeros), dense(width, bias_init=zeros)
        self.gate_in, self.gate_out = dense(self.rank), dense(width)
        self.removal = self.param("removal", ones, (width,), dtype)  # kk
        self.replacement = self.param("replacement", ones, (width,), dtype)  # ka
        self.bonus = self.param("bonus", zeros, (width,), dtype)  # u
        self.norm = self.param("norm", ones, (width,), dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        size = self.width // self.heads
        past = jnp.zeros((batch, 1, self.width), self.param_dtype)
        return past, jnp.zeros((batch, self.heads, size, size), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        past, S = state
        (before,), past = causal_taps(x, (1,), reset, past)
        (r, k, v, beta, log_w, read), *rest = self.write(x, before)
        options = {"n_householder": 2, "chunk": self.chunk or None, "backend": self.backend}
        y, S = delta_scan(r, k, v, beta, log_w, reset, S, read=read, **options)
        return (past, S), self.read(y, *rest)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        past, S = state
        past, (before,) = causal_taps_step(past, x, (1,), reset)
        (r, k, v, beta, log_w, read), *rest = self.write(x, before)
        S, y = delta_scan_step(S, r, k, v, beta, log_w, reset, read=read)
        return (past, S), self.read(y, *rest)

    def write(self, x: jax.Array, before: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
        """The input and the one before -> r, keys, values, beta, log decay and read keys of `delta_scan`, two updates
        a step; then the bonus `[..., heads, values]` and the output gate `[..., width]`."""
        mixed = dict(zip(MIXED, (x + (before - x) * share for share in self.mix), strict=True))
        r, k, v = self.receptance(mixed["r"]), self.key(mixed["k"]), self.value(mixed["v"])
        log_w = -math.exp(-0.5) * nn.sigmoid(self.decay_out(nn.tanh(self.decay_in(mixed["w"]))))
        a = nn.sigmoid(self.rate_out(self.rate_in(mixed["a"])))
        gate = self.gate_out(nn.sigmoid(self.gate_in(mixed["g"])))
        removed, written = k * self.removal, k * (1 + (a - 1) * self.replacement)
        r, v, log_w, a, removed, written, bonus = (
            by_head(part, self.heads) for part in (r, v, log_w, a, removed, written, r * self.bonus * written)
        )
        removed = unit(removed)
        # What kap held before the decay: read under kap / w after it, and removed. Then the new value is written.
        keys, reads = (
            jnp.stack(pair, -3) for pair in ((a * removed, written), (removed * jnp.exp(-log_w), jnp.zeros_like(r)))
        )
        values = jnp.stack([jnp.zeros_like(v), v], -3)
        return (r, keys, values, jnp.ones_like(keys[..., 0]), log_w, reads), bonus.sum(-1, keepdims=True) * v, gate

    def read(self, y: jax.Array, bonus: jax.Array, gate: jax.Array) -> jax.Array:
        return self.out((normalised_heads(y, self.norm) + bonus.reshape(gate.shape)) * gate)
