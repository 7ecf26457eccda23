"""Gated linear attention (Yang et al., ICML 2024): a matrix of keys and values, whose rows forget at their own rates.

S[t] = diag(a) S[t-1] + k v^T      y[t] = S[t]^T q      a = sigmoid(W2 W1 x + b)^(1/16)

Options make its relatives:

- RetNet (Sun et al. 2023): `decay=fixed`, a = 1 - 2^(-5 - h) for the h-th head.
- Linear transformer (Katharopoulos et al., ICML 2020; "FART" in POPGym): `decay=none feature=elu
  normalise=running`.
- Fast weight programmers (Schlag et al., ICML 2021; "FWP"): `decay=none feature=dpfp normalise=sum`.
- Signed decays, after Grazzi et al. (ICLR 2025): `negative`, a = 2 sigmoid(W2 W1 x + b) - 1.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.gla_scan import gla_scan, gla_scan_step, signed_decay
from engram.memory.base import About, Memory, State
from engram.memory.layers import FEATURES, NO_WEIGHT, Dense, by_head, feature_count, head_sizes, sum_to_one

GATE_RANK, GATE_ROOT = 16, 16
"""Rank of the gate's projection, and the root that is taken of it: decays start near 1 and move slowly."""
SIGNED_START = 2 * math.atanh(2 ** (-1 / GATE_ROOT))
"""Bias with which signed decays, which have no root, start where the others do."""


class GLA(Memory):
    """One layer. State: `[B, heads, keys, values]`; six times as many keys with `feature="dpfp"`, one value more with
    `normalise="running"`.
    """

    about = About(
        group="matrix",
        equation="S = diag(a) S' + k v^T, y = S^T q",
        source="Yang et al., ICML 2024; options: RetNet, linear transformer, fast weight programmers",
        home="https://arxiv.org/abs/2312.06635",
    )

    heads: int = 4
    """Number of heads; must divide `expand_k * width` and `expand_v * width`."""
    expand_k: float = 0.5
    """Size of all keys in widths."""
    expand_v: float = 1.0
    """Size of all values in widths."""
    decay: Literal["data", "fixed", "none"] = "data"
    """Forgetting: data (each key at a rate that depends on the input), fixed (one rate for each head) or none."""
    feature: Literal["none", "elu", "relu", "dpfp"] = "none"
    """Map of queries and keys: none, elu (elu + 1), relu or dpfp. Sums without decay grow with an episode."""
    normalise: Literal["none", "running", "sum"] = "none"
    """Normalisation: none, running (by the sum of weights so far) or sum (queries and keys sum to 1). The last two need
    a feature that is not negative."""
    negative: bool = False
    """Decays `2 sigmoid(.) - 1` in (-1, 1), which start where the others do. Needs decay=data."""
    chunk: int = 0
    """Steps that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.gla_scan`."""

    def __post_init__(self) -> None:
        _ = self.sizes  # raises where they do not fit
        if self.normalise != "none" and self.feature == "none":
            raise BadRequest(f"gla: normalise={self.normalise} needs a feature that is not negative: elu, relu or dpfp")
        if self.negative and self.decay != "data":
            raise BadRequest(f"gla: negative needs decay=data, not {self.decay}")
        super().__post_init__()

    @property
    def sizes(self) -> tuple[int, int]:
        """Size of all keys and of all values."""
        return head_sizes("gla", self.width, self.heads, self.expand_k, self.expand_v)

    @property
    def features(self) -> int:
        """Features of a key for each of its numbers."""
        return feature_count(self.feature)

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        (keys, values), dtype = self.sizes, self.param_dtype
        self.inp = Dense(2 * keys + 2 * values, use_bias=False, param_dtype=dtype)  # q, k, v, output gate
        if self.decay == "data":
            self.gate_in = Dense(GATE_RANK, use_bias=False, param_dtype=dtype)
            start = nn.initializers.constant(SIGNED_START if self.negative else 0.0)
            self.gate_out = Dense(keys * self.features, bias_init=start, param_dtype=dtype)
        self.norm = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.out = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        keys, values = (size // self.heads for size in self.sizes)
        size = (batch, self.heads, keys * self.features, values + (self.normalise == "running"))
        return jnp.zeros(size, self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        q, k, v, log_decay, negative, gate = self.write(x)
        chunk = self.chunk or None
        y, state = gla_scan(q, k, v, log_decay, reset, state, negative=negative, chunk=chunk, backend=self.backend)
        return state, self.read(y, gate)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        q, k, v, log_decay, negative, gate = self.write(x)
        state, y = gla_scan_step(state, q, k, v, log_decay, reset, negative)
        return state, self.read(y, gate)

    def write(self, x: jax.Array) -> tuple[Any, ...]:
        """Input -> q, k, v `[..., heads, size]`, log decay `[..., heads (, keys)]` and where it is negative, or None;
        output gate `[..., values]`."""
        keys, values = self.sizes
        q, k, v, gate = jnp.split(self.inp(x), np.cumsum([keys, keys, values]), -1)
        q, k, v = (by_head(part, self.heads) for part in (q, k, v))
        scale = q.shape[-1] ** -0.5 if self.normalise == "none" else 1.0
        q, k = FEATURES[self.feature](q * scale), FEATURES[self.feature](k)
        if self.normalise == "sum":
            q, k = sum_to_one(q), sum_to_one(k)
        if self.normalise == "running":
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        negative = None
        if self.decay == "data":
            log_decay = nn.log_sigmoid(self.gate_out(self.gate_in(x))).reshape(k.shape)
            log_decay, negative = signed_decay(log_decay) if self.negative else (log_decay / GATE_ROOT, None)
        else:
            rates = jnp.log1p(-(2.0 ** (-5 - jnp.arange(self.heads, dtype=k.dtype)))) if self.decay == "fixed" else 0
            log_decay = jnp.broadcast_to(jnp.asarray(rates, k.dtype), k.shape[:-1])
        return q, k, v, log_decay, negative, gate

    def read(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        if self.normalise == "running":
            y = y[..., :-1] / (y[..., -1:] + NO_WEIGHT)
        return self.out(self.norm(y).reshape(gate.shape) * nn.silu(gate))
