"""DeltaNet and its relatives: a matrix of keys and values in which the new value of a key replaces the old one.

    S[t] = (I - beta k k^T) a S[t-1] + beta k v^T      y[t] = S[t]^T q      keys and queries of length 1

DeltaNet (Yang et al., NeurIPS 2024): a = 1. `decay=head`: Gated DeltaNet (Yang et al., ICLR 2025). `decay=channel`: a
is diagonal, as in Kimi delta attention (KDA, Kimi Team 2025). `negative`: beta in (0, 2), so that the transition
reflects (Grazzi et al. 2025). `updates`: several keys per step (DeltaProduct, Siems et al. 2025). With the last two,
the state can follow what a fading one cannot: parity, and the order in which things were swapped. Fast weight
programmers with the delta rule (Schlag et al., ICML 2021): `conv=1 feature=dpfp`, keys and queries that sum to 1.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.causal_conv import causal_conv, causal_conv_step
from engram.kernels.delta_scan import delta_scan, delta_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import (
    FEATURES,
    Dense,
    by_head,
    feature_count,
    head_sizes,
    init_A_log,
    init_step_bias,
    sum_to_one,
    uniform,
    unit,
)


class DeltaNet(Memory):
    """One layer. State: `(taps, S)`, the past inputs of the convolution over q, k and v `[B, conv - 1, ...]` and the
    matrices `[B, heads, keys, values]`, six times as many keys with `feature="dpfp"`.
    """

    about = About(
        group="matrix",
        equation="S = (I - beta k k^T) a S' + beta k v^T, y = S^T q",
        source="Yang et al., NeurIPS 2024; options: Gated DeltaNet, KDA, DeltaProduct",
        home="https://arxiv.org/abs/2406.06484",
    )

    heads: int = 4
    """Number of heads; must divide `expand_k * width` and `expand_v * width`."""
    expand_k: float = 1.0
    """Size of all keys in widths."""
    expand_v: float = 1.0
    """Size of all values in widths."""
    updates: int = 1
    """Keys and values that are written per step (DeltaProduct)."""
    negative: bool = False
    """Write strengths in (0, 2) in place of (0, 1), so that the transition reflects."""
    decay: Literal["none", "head", "channel"] = "none"
    """Decay of the state by factors made from the input as in Mamba-2: none, head (one a head, Gated DeltaNet) or
    channel (one for each number of a key, KDA)."""
    feature: Literal["none", "elu", "relu", "dpfp"] = "none"
    """Map of queries and keys: none, elu (elu + 1), relu or dpfp. With one they sum to 1, with none their length
    is 1."""
    conv: int = 4
    """Taps of the convolution over queries, keys and values, the current input among them."""
    chunk: int = 0
    """Updates that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.delta_scan`."""

    def __post_init__(self) -> None:
        _ = self.sizes  # raises where they do not fit
        if min(self.updates, self.conv) < 1:
            raise BadRequest("deltanet: needs updates and conv >= 1")
        super().__post_init__()

    @property
    def sizes(self) -> tuple[int, int]:
        """Size of all keys and of all values of one update."""
        return head_sizes("deltanet", self.width, self.heads, self.expand_k, self.expand_v)

    @property
    def mixed(self) -> int:
        """Number of channels of the convolution."""
        keys, values = self.sizes
        return keys + self.updates * (keys + values)

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        (keys, values), dtype = self.sizes, self.param_dtype
        small = nn.initializers.normal(math.sqrt(2 / (5 * self.width)))  # as the authors' code

        self.qkv = Dense(self.mixed, use_bias=False, param_dtype=dtype)
        self.conv_weight = self.param("conv_weight", uniform(self.conv**-0.5), (self.conv, self.mixed), dtype)
        self.beta = Dense(self.updates * self.heads, kernel_init=small, param_dtype=dtype)
        if self.decay == "head":
            self.dt = Dense(self.heads, kernel_init=small, bias_init=init_step_bias, param_dtype=dtype)
            self.A_log = self.param("A_log", init_A_log(0.0), (self.heads,), dtype)
        elif self.decay == "channel":
            self.dt_in = Dense(values // self.heads, use_bias=False, param_dtype=dtype)
            self.dt = Dense(keys * feature_count(self.feature), bias_init=init_step_bias, param_dtype=dtype)
            self.A_log = self.param("A_log", init_A_log(1.0), (self.heads,), dtype)
        self.gate = Dense(values, use_bias=False, param_dtype=dtype)
        self.norm = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.out = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        keys, values = self.sizes
        taps = jnp.zeros((batch, self.conv - 1, self.mixed), self.param_dtype)
        keys *= feature_count(self.feature)
        return taps, jnp.zeros((batch, self.heads, keys // self.heads, values // self.heads), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, S = state
        mixed, taps = causal_conv(self.qkv(x), self.conv_weight, jnp.zeros(()), reset, taps)
        q, k, v, beta, log_decay = self.write(mixed, x)
        chunk, n = self.chunk or None, self.updates
        y, S = delta_scan(q, k, v, beta, log_decay, reset, S, n_householder=n, chunk=chunk, backend=self.backend)
        return (taps, S), self.read(y, x)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        taps, S = state
        taps, mixed = causal_conv_step(taps, self.qkv(x), self.conv_weight, jnp.zeros(()), reset)
        q, k, v, beta, log_decay = self.write(mixed, x)
        S, y = delta_scan_step(S, q, k, v, beta, log_decay, reset)
        return (taps, S), self.read(y, x)

    def write(
        self, mixed: jax.Array, x: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """The convolution's output and the input -> q, k, v, beta, log decay of `delta_scan`."""
        keys, _ = self.sizes
        q, k, v = jnp.split(nn.silu(mixed), np.cumsum([keys, self.updates * keys]), -1)
        beta = nn.sigmoid(self.beta(x))
        if self.updates > 1:
            k, v, beta = (by_head(part, self.updates) for part in (k, v, beta))
        q, k, v = (by_head(part, self.heads) for part in (q, k, v))
        if self.feature == "none":
            q, k = unit(q), unit(k)
        else:
            q, k = (sum_to_one(FEATURES[self.feature](part)) for part in (q, k))
        return q, k, v, beta * (2 if self.negative else 1), self.log_decay(x)

    def log_decay(self, x: jax.Array) -> jax.Array | None:
        """`[..., heads]`, or `[..., heads, keys]` with a decay per channel."""
        if self.decay == "none":
            return None
        if self.decay == "head":
            return -jnp.exp(self.A_log) * nn.softplus(self.dt(x))
        steps = nn.softplus(self.dt(self.dt_in(x)))
        return -jnp.exp(self.A_log)[:, None] * by_head(steps, self.heads)

    def read(self, y: jax.Array, x: jax.Array) -> jax.Array:
        gate = nn.silu(self.gate(x))
        return self.out(self.norm(y).reshape(gate.shape) * gate)
