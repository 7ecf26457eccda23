"""MoM, a mixture of memories (Du et al., ICLR 2026): several matrices, of which a step writes and reads a few.

    S_m[t] = diag(a_m) S_m[t-1] + k_m v_m^T where m is chosen, else S_m[t-1]      y[t] = (S_0 + sum_m p_m S_m)^T q[t]

A router chooses the `top` memories of the largest logits, the first of equal ones; p is the softmax over them. `S_0`,
the shared memory, is chosen at every step. Each memory has projections of its own to keys, values and decays; the
query is one. A memory that is not chosen keeps its state bit for bit, so it sees its own steps of an episode as if
there were no others. All memories are computed at every step.

The rule by which a memory is written is that of `gla`, or the gated delta rule (`deltanet` with `decay=head`), as in
the paper. Both are without convolutions.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.delta_scan import delta_scan, delta_scan_step
from engram.kernels.gla_scan import gla_scan, gla_scan_step
from engram.memory.base import METRICS, About, Memory, State
from engram.memory.gla import GATE_RANK, GATE_ROOT
from engram.memory.layers import Dense, by_head, head_sizes, init_A_log, init_step_bias, unit


class MoM(Memory):
    """One layer. State: `[B, (memories + 1) * heads, keys, values]`, the shared memory last."""

    about = About(
        group="matrix",
        equation="S_m = diag(a_m) S_m' + k_m v_m^T for chosen m, y = (S_0 + sum_m p_m S_m)^T q",
        source="Du et al., ICLR 2026 (mixture of memories)",
        home="https://arxiv.org/abs/2502.13685",
    )

    memories: int = 4
    """Number of memories among which the router chooses; one more is shared by all steps."""
    top: int = 2
    """Number of memories that a step writes and reads beside the shared one, from 2 to `memories`."""
    rule: Literal["gla", "delta"] = "gla"
    """Rule of writing: gla (sums that fade at rates made from the input) or delta (the gated delta rule)."""
    heads: int = 4
    """Number of heads of each memory; must divide `expand_k * width` and `expand_v * width`."""
    expand_k: float = 0.5
    """Size of all keys of a memory in widths."""
    expand_v: float = 0.5
    """Size of all values of a memory in widths."""
    chunk: int = 0
    """Steps that the learner takes together, a power of 2; 0 for the kernel's choice."""
    backend: str = "auto"
    """Backend of `engram.kernels.gla_scan` or `engram.kernels.delta_scan`."""

    def __post_init__(self) -> None:
        _ = self.sizes  # raises where they do not fit
        # The weight of a single memory would be 1 whatever the router says: it could not learn.
        if not 2 <= self.top <= self.memories:
            raise BadRequest(f"mom: top must lie in [2, memories={self.memories}], got {self.top}")
        super().__post_init__()

    @property
    def sizes(self) -> tuple[int, int]:
        """Size of all keys and of all values of a memory."""
        return head_sizes("mom", self.width, self.heads, self.expand_k, self.expand_v)

    @property
    def matrices(self) -> int:
        """Number of matrices: the heads of all memories, the shared one among them."""
        return (self.memories + 1) * self.heads

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        (keys, values), dtype, every = self.sizes, self.param_dtype, self.memories + 1
        self.router = Dense(self.memories, use_bias=False, param_dtype=dtype)
        self.query = Dense(keys, use_bias=False, param_dtype=dtype)
        self.key = Dense(every * keys, use_bias=False, param_dtype=dtype)
        self.value = Dense(every * values, use_bias=False, param_dtype=dtype)
        if self.rule == "gla":
            self.decay_in = Dense(GATE_RANK, use_bias=False, param_dtype=dtype)
            self.decay_out = Dense(every * keys, param_dtype=dtype)
        else:
            self.beta = Dense(self.matrices, param_dtype=dtype)
            self.dt = Dense(self.matrices, bias_init=init_step_bias, param_dtype=dtype)
            self.A_log = self.param("A_log", init_A_log(0.0), (self.matrices,), dtype)
        self.gate = Dense(values, use_bias=False, param_dtype=dtype)
        self.norm = nn.RMSNorm(1e-5, param_dtype=dtype)
        self.out = Dense(self.width, use_bias=False, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.matrices, *(size // self.heads for size in self.sizes)), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        weights, chosen = self.route(x)
        written = self.write(x, chosen)
        scan: Any = gla_scan if self.rule == "gla" else delta_scan
        y, state = scan(*written, reset, state, chunk=self.chunk or None, backend=self.backend)
        return state, self.read(y, weights, x)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        weights, chosen = self.route(x)
        written = self.write(x, chosen)
        step: Any = gla_scan_step if self.rule == "gla" else delta_scan_step
        state, y = step(state, *written, reset)
        return state, self.read(y, weights, x)

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Input -> weights of all memories in the output, and whether they are chosen, `[..., memories + 1]`."""
        logits = self.router(x)
        _, best = lax.top_k(lax.stop_gradient(logits), self.top)  # the first of equal ones
        chosen = (best[..., None] == jnp.arange(self.memories)).any(-2)
        self.sow(METRICS, "memory_balance", balance(logits, chosen))
        always = jnp.ones_like(logits[..., :1])
        weights = jnp.concatenate([nn.softmax(logits, where=chosen), always], -1)
        return weights, jnp.concatenate([chosen, always > 0], -1)

    def write(self, x: jax.Array, chosen: jax.Array) -> tuple[jax.Array, ...]:
        """Input -> q, k, v `[..., matrices, size]` and log decays of `gla_scan`, or beta and log decays of
        `delta_scan`. Nothing is written and nothing fades where a memory is not chosen."""
        q = by_head(self.query(x), self.heads)
        k, v = by_head(self.key(x), self.matrices), by_head(self.value(x), self.matrices)
        chosen = jnp.repeat(chosen, self.heads, -1)
        if self.rule == "gla":
            q, k = q * q.shape[-1] ** -0.5, jnp.where(chosen[..., None], k, 0)
            fading = by_head(nn.log_sigmoid(self.decay_out(self.decay_in(x))) / GATE_ROOT, self.matrices)
            forms = (jnp.where(chosen[..., None], fading, 0),)
        else:
            q, k, v = unit(nn.silu(q)), unit(nn.silu(k)), nn.silu(v)
            fading = -jnp.exp(self.A_log) * nn.softplus(self.dt(x))
            forms = jnp.where(chosen, nn.sigmoid(self.beta(x)), 0), jnp.where(chosen, fading, 0)
        q = jnp.tile(q, (*(1,) * (q.ndim - 2), self.memories + 1, 1))
        return q, k, v, *forms

    def read(self, y: jax.Array, weights: jax.Array, x: jax.Array) -> jax.Array:
        """What the query finds in each matrix `[..., matrices, size]` -> output `[..., width]`."""
        of_memory = y.reshape(*weights.shape, self.heads, y.shape[-1])
        y = self.norm((weights[..., None, None] * of_memory).sum(-3))
        gate = nn.silu(self.gate(x))
        return self.out(y.reshape(gate.shape) * gate)


def balance(logits: jax.Array, chosen: jax.Array) -> jax.Array:
    """How evenly steps use n memories: n times the sum over memories of their share of all choices and their mean
    probability (Fedus et al. 2022, eq. 4). 1 where all are used alike, n / top where the same `top` are always chosen.

    Args:
        logits: of the router, `[..., n]`.
        chosen: bool `[..., n]`.
    """
    n = logits.shape[-1]
    probability = nn.softmax(logits).reshape(-1, n).mean(0)
    share = chosen.reshape(-1, n).mean(0)
    return n * (share / share.sum() * probability).sum()
