"""AGaLiTe (Pramanik et al., TMLR 2024): gated linear attention whose feature map learns and whose sums are approximate.

Per head, with n the steps since the reset (1 at the first), w_j = linspace(-pi, pi, r), and outer products flattened:

    kappa = relu(k) x relu(p1)      gamma = sig(g) x sig(p3)      query = relu(q) x relu(p2)      beta = sig(b)
    K_j = (1 - gamma) K_j' + cos(n w_j) gamma kappa               V_j = (1 - beta) V_j' + cos(n w_j) beta v
    s = (1 - gamma) s' + gamma kappa
    y = sum_j V_j (K_j^T query) / (2 r s^T query + 1e-5)

The r cosines stand for the product of keys and values of one step with those of another: the sum over j of
cos(n w_j) cos(m w_j) is large for n = m alone. So a state of vectors takes the place of a matrix. As w is symmetric,
each cosine is there twice (published). It is a whole block with the gates of GTrXL (`engram.memory.gtrxl`).
"""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.errors import BadRequest
from engram.kernels.chunks import in_segments
from engram.kernels.gru_scan import sigmoid
from engram.kernels.linear_scan import linear_scan
from engram.memory.base import About, Memory, State, where_reset
from engram.memory.gtrxl import GatedBlock
from engram.memory.layers import Dense, by_head, steps_of_episodes


class AGaLiTe(Memory):
    """One block.

    State: `K[B, cosines, heads * eta * size]`, `V[B, cosines, heads * size]`, `s[B, heads * eta * size]`, with
    size = width / heads, and the steps since the reset, int32 `[B]`, up to whole turns of all cosines.
    """

    about = About(
        group="attention",
        equation="K_j = (1 - g) * K_j' + cos(n w_j) g * phi(k), V_j = (1 - b) * V_j' + cos(n w_j) b * v, "
        "y = sum_j V_j (K_j^T phi(q)) / (2 r s^T phi(q)), in a block as of gtrxl",
        source="Pramanik et al., TMLR 2024 (approximate gated linear transformer)",
        home="https://arxiv.org/abs/2310.15719",
    )
    whole: ClassVar[bool] = True

    heads: int = 4
    """Number of heads; must divide the width."""
    eta: int = 4
    """Factor by which the learned feature map makes keys and queries longer."""
    cosines: int = 8
    """Number of cosines, each with a state of its own, that stand for the products of keys and values."""
    expand: int = 4
    """Size of the hidden layer after the attention, in widths."""
    gate_bias: float = 2.0
    """Bias at the start of the gates towards their input; with a large one the block passes its input on."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise BadRequest(f"agalite: needs heads that divide width {self.width}")
        if min(self.eta, self.cosines, self.expand) < 1 or not math.isfinite(self.gate_bias):
            raise BadRequest("agalite: needs eta, cosines and expand >= 1 and a finite gate_bias")
        super().__post_init__()

    @property
    def period(self) -> int:
        """Steps after which all cosines are what they were."""
        return 2 * max(self.cosines - 1, 1)

    def setup(self) -> None:
        def dense(features: int) -> Dense:
            return Dense(features, use_bias=False, param_dtype=self.param_dtype)

        self.project, self.expand_features = dense(5 * self.width), dense(3 * self.heads * self.eta)
        self.out = dense(self.width)
        self.block = GatedBlock(self.width, self.expand, self.gate_bias, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        sizes = (self.cosines, self.eta * self.width), (self.cosines, self.width), (self.eta * self.width,)
        return *(jnp.zeros((batch, *size), self.param_dtype) for size in sizes), jnp.zeros(batch, jnp.int32)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        seen = self.block.before(x)
        inputs = self.project(seen), self.expand_features(seen), reset
        # The states of a step are `cosines * eta` times as large as its input.
        state, y = in_segments(self.attend, state, inputs, 128)
        return state, self.block.after(x, self.out(y))

    def attend(self, state: State, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[State, jax.Array]:
        """Projections and resets `[T, B, ...]` -> state, what was found `[T, B, width]`."""
        (K, V, s, begun), (projected, expanded, reset) = state, now
        fade_k, write_k, fade_v, write_v, query = self.features(projected, expanded)
        s, last_s = linear_scan(fade_k, write_k, reset, s, backend=self.backend)
        n, steps = steps_of_episodes(reset, begun, self.period)

        def add(total: jax.Array, now: tuple) -> tuple[jax.Array, tuple]:
            """One cosine: its states of all steps are as large as the input `eta` times, and not kept for gradients."""
            cosine, K, V = now
            c = cosine[n % self.period][..., None]
            K, last_K = linear_scan(fade_k, c * write_k, reset, K, backend=self.backend)
            V, last_V = linear_scan(fade_v, c * write_v, reset, V, backend=self.backend)
            return total + by_head(V, self.heads) * self.dot(K, query), (last_K, last_V)

        parts = self.table(projected.dtype), K.swapaxes(0, 1), V.swapaxes(0, 1)
        zeros = jnp.zeros((*reset.shape, self.heads, self.width // self.heads), projected.dtype)
        total, (last_K, last_V) = lax.scan(jax.checkpoint(add), zeros, parts)
        state = last_K.swapaxes(0, 1), last_V.swapaxes(0, 1), last_s, steps
        return state, self.read(total, s, query)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        K, V, s, n = where_reset(reset, self.initial_state(len(x)), state)
        seen = self.block.before(x)
        fade_k, write_k, fade_v, write_v, query = self.features(self.project(seen), self.expand_features(seen))
        s = fade_k * s + write_k
        c = self.table(x.dtype)[:, n % self.period].T[..., None]  # all cosines at once
        K = fade_k[:, None] * K + c * write_k[:, None]
        V = fade_v[:, None] * V + c * write_v[:, None]
        found = by_head(V, self.heads) * self.dot(K, query[:, None])
        total = found[:, 0]
        for j in range(1, self.cosines):  # in the order of `attend`: where the sum is divided by little, rounding shows
            total = total + found[:, j]
        y = self.out(self.read(total, s, query))
        return (K, V, s, (n + 1) % self.period), self.block.after(x, y)

    def features(self, projected: jax.Array, expanded: jax.Array) -> tuple[jax.Array, ...]:
        """Projections `[..., n]` -> 1 - gamma and gamma kappa, `[..., heads * eta * size]`; 1 - beta and beta v,
        `[..., width]`; queries."""
        k, q, v, b, g = (by_head(part, self.heads) for part in jnp.split(projected, 5, -1))
        p1, p2, p3 = (by_head(part, self.heads) for part in jnp.split(expanded, 3, -1))
        gamma, beta = outer(sigmoid(p3), sigmoid(g)), sigmoid(b)
        flat = (*v.shape[:-2], self.width)
        write = gamma * outer(nn.relu(p1), nn.relu(k))
        return 1 - gamma, write, (1 - beta).reshape(flat), (beta * v).reshape(flat), outer(nn.relu(p2), nn.relu(q))

    def table(self, dtype: Any) -> jax.Array:
        """Cosines of a step, `[cosines, period]`."""
        w = np.linspace(-np.pi, np.pi, self.cosines)
        return jnp.asarray(np.cos(np.outer(w, np.arange(1, self.period + 1))), dtype)

    def dot(self, keys: jax.Array, query: jax.Array) -> jax.Array:
        """Products of the vectors of each head, `[..., heads, 1]`."""
        return by_head(keys * query, self.heads).sum(-1, keepdims=True)

    def read(self, total: jax.Array, s: jax.Array, query: jax.Array) -> jax.Array:
        """Sum over the cosines `[..., heads, size]` -> `[..., width]`."""
        y = total / (2 * self.cosines * self.dot(s, query) + 1e-5)
        return y.reshape(*y.shape[:-2], self.width)


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """Outer products of `a[..., heads, n]` and `b[..., heads, m]`, one after the other -> `[..., heads * n * m]`."""
    product = a[..., None] * b[..., None, :]
    return product.reshape(*product.shape[:-3], product.shape[-3] * product.shape[-2] * product.shape[-1])
