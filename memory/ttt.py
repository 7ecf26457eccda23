"""TTT (Sun et al. 2024), test-time training: the state is a small network, which each step trains by a step of descent.

    M[t] = M[t-1] - theta gradient of loss(F(M; k) - v)      y = F(M[t]; q)      F(M; k) = k + gelu(k M1) M2

An episode begins with weights that are learned. Options make its relatives:

- Titans (Behrouz et al. 2025): `momentum` and `decay`, S[t] = eta S[t-1] - theta (1 - eta) g and
  M[t] = (1 - alpha) M[t-1] + S[t].
- Yaad and Moneta's losses (Miras, Behrouz et al. 2025): `loss=huber` and `l3`; Memora: `retention=kl`, weights that are
  positive, with rows that sum to `mass`, and that a step multiplies by exp(-theta g).
- ATLAS (Behrouz et al. 2025), its Omega rule: `window`, the loss is that of the last pairs of key and value, each times
  a factor made from its own input; and its polynomial keys: `feature=quadratic`. Plain descent in place of Muon.
- A delta rule: `hidden=0`, F(M; k) = k M.

`theta`, `eta` and `alpha` come from the input, keys and queries have length 1. Gradients are clipped, step sizes
bounded and multiplied by 1 - eta, which the papers do not do: it keeps long descents from diverging.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels import ttt_scan as kernel
from engram.kernels.ttt_scan import ttt_scan, ttt_scan_step
from engram.memory.base import About, Memory, State, where_reset
from engram.memory.layers import Dense, GatedOutput, by_head, normalised_heads, steps_of_episodes, unit

FORGETTING = -4.0
"""Bias of the decay's logit: weights fade by 2 % a step at the start."""


def _quadratic(x: jax.Array) -> jax.Array:
    """The numbers of `x[..., n]` and their products of two, `[..., n + n (n + 1) / 2]`; of length 1 where x is.

    The product of two such vectors is `((x y) + (x y)^2) / 2`.
    """
    i, j = np.triu_indices(x.shape[-1])
    products = x[..., i] * x[..., j] * np.where(i == j, 1, math.sqrt(2)).astype(x.dtype)
    return jnp.concatenate([x, products], -1) * math.sqrt(0.5)


class TTT(Memory):
    """One layer. State: `((M, A, S), n)`: weights less those of an episode's start `[B, heads, ...]`, the same at the
    start of the chunk, the momentum, and the steps of the chunk so far, int32 `[B]`. `A` and `n` are None where a chunk
    is one step, `S` without momentum. With a window there is `past` beside them: keys, values and factors of the steps
    before.
    """

    about = About(
        group="matrix",
        equation="M = M' - theta grad loss(F(M'; k) - v), y = F(M; q), F(M; k) = k + gelu(k M1) M2",
        source="Sun et al. 2024 (test-time training); options: Titans, ATLAS, Miras",
        home="https://arxiv.org/abs/2407.04620",
    )

    heads: int = 4
    """Number of heads, each a network of its own."""
    key: int = 16
    """Size of the keys, queries and values of a head."""
    hidden: int = 32
    """Number of hidden units of a head's network; 0 for a matrix, which makes a delta rule."""
    chunk: int = 1
    """Steps of an episode whose gradients are taken at the weights before them (TTT has 16)."""
    momentum: bool = False
    """Momentum of the descent, by a factor per head and step (Titans)."""
    decay: bool = False
    """Decay of the weights towards 0 by a factor per head and step (Titans); near 0 a network with hidden units no
    longer learns."""
    loss: Literal["l2", "huber", "l3"] = "l2"
    """Loss of an answer: "l2", "huber" (Yaad) or "l3" (Moneta; the third power of the error)."""
    delta: float = 1.0
    """Error beyond which the loss huber is linear."""
    retention: Literal["l2", "kl"] = "l2"
    """Weights of a head's network: any (l2), or positive with rows of a given sum (kl, Memora)."""
    mass: float = 1.0
    """Sum of each row of weights with retention=kl."""
    window: int = 1
    """Pairs of key and value, the current one among them, whose losses a step descends (ATLAS)."""
    feature: Literal["none", "quadratic"] = "none"
    """Features of queries and keys: none, or quadratic (their numbers and all products of two, ATLAS)."""
    step_max: float = 0.2
    """Bound of the step size of the descent."""
    clip: float = 1.0
    """Bound of the norm of a gradient, over all weights of a head; 0 for none."""
    backend: str = "auto"
    """Backend of `engram.kernels.ttt_scan`."""

    def __post_init__(self) -> None:
        if min(self.heads, self.key, self.chunk, self.window) < 1 or self.hidden < 0:
            raise BadRequest("ttt: needs heads, key, chunk and window >= 1 and hidden >= 0")
        for name in ("delta", "step_max", "mass"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadRequest(f"ttt: {name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.clip < math.inf:
            raise BadRequest(f"ttt: clip must be finite and at least 0, got {self.clip}")
        super().__post_init__()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of a head's weights."""
        keys = self.key + (self.key * (self.key + 1) // 2 if self.feature == "quadratic" else 0)
        return ((keys, self.hidden), (self.hidden, self.key)) if self.hidden else ((keys, self.key),)

    @property
    def rule(self) -> kernel.Rule:
        return kernel.Rule(self.loss, self.delta, self.clip, self.window, self.retention, self.mass)

    @property
    def gates(self) -> tuple[str, ...]:
        """What the input makes of each head and step."""
        wanted = {"theta": True, "eta": self.momentum, "gamma": self.window > 1, "alpha": self.decay}
        return tuple(name for name, made in wanted.items() if made)

    def setup(self) -> None:
        dtype, size = self.param_dtype, self.heads * self.key
        self.qkv = Dense(3 * size, use_bias=False, param_dtype=dtype)

        def bias(_, shape, dtype):
            fade = jnp.zeros(shape, dtype)
            return fade.at[-self.heads :].set(FORGETTING) if self.decay else fade

        self.rates = Dense(len(self.gates) * self.heads, bias_init=bias, name="gates", param_dtype=dtype)
        # A fresh network answers with the key, a fresh matrix with 0: the last weights are zeros, or the logarithms of
        # weights that are all alike.
        inits = [nn.initializers.lecun_normal(batch_axis=0)] * (len(self.shapes) - 1) + [nn.initializers.zeros]
        self.fresh = tuple(
            self.param(f"M{i + 1}", init, (self.heads, *shape), dtype)
            for i, (init, shape) in enumerate(zip(inits, self.shapes, strict=True))
        )
        self.norm_scale = self.param("norm_scale", nn.initializers.ones, (size,), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        fresh = tuple(jnp.zeros((self.heads, *shape), self.param_dtype) for shape in self.shapes)
        weights = kernel.initial_state(fresh, batch, self.chunk > 1, self.momentum, self.window)
        return weights, jnp.zeros(batch, jnp.int32) if self.chunk > 1 else None

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        weights, begun = state
        opens, after = None, begun
        if self.chunk > 1:
            n, after = steps_of_episodes(reset, begun, self.chunk)
            opens = n % self.chunk == 0
        q, k, v, rates = self.write(x)
        fresh = tuple(jnp.asarray(w) for w in self.fresh)
        more: Any = {"fresh": fresh, "reset": reset, "opens": opens, "rule": self.rule, **rates}
        y, weights = ttt_scan(q, k, v, state0=weights, backend=self.backend, **more)
        return (weights, after), self.read(y)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        weights, n = state
        opens = None
        if self.chunk > 1:
            n = where_reset(reset, jnp.zeros_like(n), n)
            opens, n = n == 0, (n + 1) % self.chunk
        q, k, v, rates = self.write(x)
        fresh = tuple(jnp.asarray(w) for w in self.fresh)
        more: Any = {"fresh": fresh, "reset": reset, "opens": opens, "rule": self.rule, **rates}
        weights, y = ttt_scan_step(weights, q, k, v, **more)
        return (weights, n), self.read(y)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Input -> q, k `[..., heads, features]`, v `[..., heads, key]`, and theta, eta, gamma and alpha
        `[..., heads]` by name, where they are used."""
        q, k, v = (by_head(part, self.heads) for part in jnp.split(self.qkv(x), 3, -1))
        q, k = unit(q), unit(k)
        if self.feature == "quadratic":
            q, k = _quadratic(q), _quadratic(k)
        rates = dict(zip(self.gates, jnp.split(nn.sigmoid(self.rates(x)), len(self.gates), -1), strict=True))
        return q, k, v, rates | {"theta": self.step_max * rates["theta"]}

    def read(self, y: jax.Array) -> jax.Array:
        return self.out(normalised_heads(y, self.norm_scale))
