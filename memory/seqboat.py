"""SeqBoat (Ren et al., NeurIPS 2023): a state space that decides at each step whether to attend, and what is kept.

The state space is the damped moving average of Mega (Ma et al., ICLR 2023), for each channel with several modes:

    h[t] = alpha beta x[t] + (1 - alpha delta) h[t-1]      e = silu(eta^T h + omega x)

A step is active where w^T e + b > 0. It attends to itself and to the last `window` active steps of its episode, whose
keys and values are the state; one that is not active neither attends nor is kept:

    y = out(e + a W (u * attention(q, k, v)))      a in {0, 1}, q, k and u of e, v of x

The gradient of a is that of sigmoid(w^T e + b) ("straight through"), in place of the paper's product with the
probability of the choice. Positions are the numbers of active steps between.

The option `select` is the key selection of HAX (Zhan et al., NeurIPS 2025): of the steps that are kept, only those with
the highest learned scores are seen. Scores are added to the logits of attention, from which they learn.

Where w^T e + b, or the difference of two scores, is as small as a rounding error, a step and a sequence may decide
otherwise. Nothing can be done about it: the output jumps there.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.gru_scan import sigmoid
from engram.kernels.linear_scan import linear_scan, linear_scan_step
from engram.kernels.marked_scan import initial_state, marked_scan, marked_scan_step
from engram.memory.base import METRICS, About, Memory, State
from engram.memory.layers import Dense, GatedOutput, by_head, log_uniform

EAGER = 1.0
"""Bias of the decision at the start: most steps attend, as keys and values learn from active steps alone."""


class SeqBoat(Memory):
    """One layer. State: `(h, cache)`, the averages `[B, width * modes]` and `engram.kernels.marked_scan.State`.

    The metric `active_steps` is the share of steps that attend. NaN: as `engram.memory.attention`.
    """

    about = About(
        group="attention",
        equation="e = silu(damped averages of x), y = out(e + a W (u * attention to the last active steps)), "
        "a = 1 where w e + b > 0, else 0",
        source="Ren et al., NeurIPS 2023; averages: Ma et al., ICLR 2023 (Mega); option: key selection of HAX",
        home="https://arxiv.org/abs/2306.11197",
    )

    window: int = 64
    """Active steps in the cache: an active step sees itself and this many before it."""
    heads: int = 4
    """Number of heads; must divide the width."""
    modes: int = 4
    """Number of moving averages of each channel."""
    max_timescale: float = 64.0
    """Longest memory of a moving average at the start, in steps; log-uniform from 2."""
    select: int = 0
    """Number of steps in the cache that a step sees, those with the highest scores; 0 for all."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if min(self.window, self.heads, self.modes) < 1 or self.width % self.heads:
            raise BadRequest(f"seqboat: needs window and modes >= 1 and heads that divide width {self.width}")
        if not 2 <= self.max_timescale < math.inf:
            raise BadRequest(f"seqboat: max_timescale must be at least 2 and finite, got {self.max_timescale}")
        if not 0 <= self.select <= self.window:
            raise BadRequest(f"seqboat: select must lie in [0, window = {self.window}], got {self.select}")
        super().__post_init__()

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        width, modes, dtype = self.width, self.modes, self.param_dtype

        def init_rates(key, shape, dtype):
            """Logits of alpha and delta, both timescale^-1/2: an average of noise is then as large as the noise."""
            half = 0.5 * log_uniform(2.0, self.max_timescale)(key, shape[1:], dtype)
            return jnp.broadcast_to(-jnp.log(jnp.expm1(half)), shape)

        self.rates = self.param("rates", init_rates, (2, width, modes), dtype)
        self.beta = self.param("beta", nn.initializers.normal(1.0), (width, modes), dtype)
        self.eta = self.param("eta", nn.initializers.normal(modes**-0.5), (width, modes), dtype)
        self.omega = self.param("omega", nn.initializers.normal(1.0), (width,), dtype)
        self.qku = Dense(3 * width, use_bias=False, param_dtype=dtype)
        self.v = Dense(width, use_bias=False, param_dtype=dtype)

        def eager(_, shape, dtype):
            return jnp.zeros(shape, dtype).at[0].set(EAGER)

        self.decide = Dense(2 if self.select else 1, bias_init=eager, param_dtype=dtype)  # whether to attend, and score
        self.bias = self.param("bias", nn.initializers.zeros, (self.heads, self.window + 1), dtype)
        self.mix = Dense(width, use_bias=False, param_dtype=dtype)
        self.out = GatedOutput(width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        size = self.width // self.heads
        cache = initial_state(batch, self.window, self.heads, size, self.select > 0, self.param_dtype)
        return jnp.zeros((batch, self.width * self.modes), self.param_dtype), cache

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        h, cache = state
        averages, h = linear_scan(*self.write(x), reset, h, backend=self.backend)
        e = self.average(averages, x)
        u, a, (q, k, v), active, score = self.choose(e, x)
        found, cache = marked_scan(q, k, v, self.biases(), active, reset, cache, score=score, best=self.select)
        self.sow(METRICS, "active_steps", lax.stop_gradient(a).mean())
        return (h, cache), self.read(e, u, a, found)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        h, cache = state
        h, averages = linear_scan_step(h, *self.write(x), reset)
        e = self.average(averages, x)
        u, a, (q, k, v), active, score = self.choose(e, x)
        cache, found = marked_scan_step(cache, q, k, v, self.biases(), active, reset, score=score, best=self.select)
        return (h, cache), self.read(e, u, a, found)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Decays `[width * modes]` and drives `[..., width * modes]` of the averages."""
        alpha, delta = sigmoid(self.rates[0]), sigmoid(self.rates[1])
        drive = x[..., None] * (alpha * self.beta)
        return (1 - alpha * delta).reshape(-1), drive.reshape(*x.shape[:-1], self.width * self.modes)

    def average(self, h: jax.Array, x: jax.Array) -> jax.Array:
        """Averages `[..., width * modes]`, input `[..., width]` -> e `[..., width]`."""
        return nn.silu((h.reshape(*x.shape, self.modes) * self.eta).sum(-1) + self.omega * x)

    def choose(self, e: jax.Array, x: jax.Array) -> tuple[Any, ...]:
        """u `[..., width]`; a `[..., 1]`; queries, keys and values `[..., heads, size]`; active steps, bool `[...]`;
        scores `[...]` or None."""
        q, k, u = jnp.split(self.qku(e), 3, -1)
        q, k, v = (by_head(part, self.heads) for part in (q, k, self.v(x)))
        decision = self.decide(e)
        logit = decision[..., :1]
        p, active = sigmoid(logit), logit > 0
        a = active + (p - lax.stop_gradient(p))
        return u, a, (q * q.shape[-1] ** -0.5, k, v), active[..., 0], decision[..., 1] if self.select else None

    def biases(self) -> jax.Array:
        """What is added to logits, by head and age `[heads, window + 1]`."""
        return jnp.asarray(self.bias)

    def read(self, e: jax.Array, u: jax.Array, a: jax.Array, found: jax.Array) -> jax.Array:
        return self.out(e + a * self.mix(u * found.reshape(e.shape)))
