"""Gated linear attention (Yang et al., ICML 2024): a matrix of keys and values, whose rows forget at their own rates.

S[t] = diag(a) S[t-1] + k v^T      y[t] = S[t]^T q      a = sigmoid(W2 W1 x + b)^(1/16)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.kernels.gla_scan import gla_scan, gla_scan_step
from engram.memory.base import Memory, State
from engram.memory.layers import Dense, head_sizes

GATE_RANK, GATE_ROOT = 16, 16
"""Rank of the gate's projection, and the root that is taken of it: decays start near 1 and move slowly."""


class GLA(Memory):
    """One layer. State: `[B, heads, keys, values]`."""

    heads: int = 4
    """Number of heads; must divide `expand_k * width` and `expand_v * width`."""
    expand_k: float = 0.5
    """Size of all keys in widths."""
    expand_v: float = 1.0
    """Size of all values in widths."""
    chunk: int = 0
    """Steps that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.gla_scan`."""

    def __post_init__(self) -> None:
        _ = self.sizes  # raises where they do not fit
        super().__post_init__()

    @property
    def sizes(self) -> tuple[int, int]:
        """Size of all keys and of all values."""
        return head_sizes("gla", self.width, self.heads, self.expand_k, self.expand_v)

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        (keys, values), dtype = self.sizes, self.param_dtype
        self.inp = Dense(2 * keys + 2 * values, use_bias=False, param_dtype=dtype)  # q, k, v, output gate
        self.gate_in = Dense(GATE_RANK, use_bias=False, param_dtype=dtype)
        self.gate_out = Dense(keys, param_dtype=dtype)
        self.norm = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.out = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        keys, values = self.sizes
        return jnp.zeros((batch, self.heads, keys // self.heads, values // self.heads), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        q, k, v, log_decay, gate = self.write(x)
        y, state = gla_scan(q, k, v, log_decay, reset, state, chunk=self.chunk or None, backend=self.backend)
        return state, self.read(y, gate)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        q, k, v, log_decay, gate = self.write(x)
        state, y = gla_scan_step(state, q, k, v, log_decay, reset)
        return state, self.read(y, gate)

    def write(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Input -> q, k, v and log decay, each `[..., heads, size]`; output gate `[..., values]`."""
        keys, values = self.sizes
        q, k, v, gate = jnp.split(self.inp(x), np.cumsum([keys, keys, values]), -1)
        log_decay = nn.log_sigmoid(self.gate_out(self.gate_in(x))) / GATE_ROOT
        q, k, v, log_decay = (part.reshape(*part.shape[:-1], self.heads, -1) for part in (q, k, v, log_decay))
        return q * q.shape[-1] ** -0.5, k, v, log_decay, gate

    def read(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        return self.out(self.norm(y).reshape(gate.shape) * nn.silu(gate))
