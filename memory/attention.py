"""Sliding-window attention: every step attends to itself and the `window` steps before it in its episode.

The last `window` keys and values are the state, so the learner's chunk sees exactly what the actor saw, whatever
came before the chunk. Positions enter by distances alone, which are all that actor and learner share:

- bias: a learned number per head and distance is added to the scores (Raffel et al. 2020, without buckets).
- alibi: minus the distance times 2^(-8 h / heads) for head h = 1, 2, ... (Press et al., ICLR 2022).
- rope: pairs of features of queries and keys turn with the position, at rates from 1 to 1 / 10000 (Su et al. 2021).
- xl: (q + u)^T k + (q + w)^T R[distance], R a projection of sinusoids (Transformer-XL, Dai et al., ACL 2019).

Several retrievals make it a Hopfield network (Ramsauer et al., ICLR 2021): what a query finds among the keys is the
next query, and the last one mixes the values.
"""

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.window_scan import (
    by_distance,
    initial_state,
    mix,
    scan_by,
    step_by,
    weigh,
    window_scan,
    window_scan_step,
)
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, by_head

SLOWEST = 10_000
"""Steps in which the slowest pair of features turns by one radian: of sinusoids (Vaswani et al. 2017) and of RoPE."""


class Attention(Memory):
    """One layer of multi-head attention and a gated output.

    State: that of `engram.kernels.window_scan`: keys and values `[B, window, heads, width / heads]`, and int32 `[B]`.

    A NaN is forgotten at a reset that opens a chunk; a reset inside a chunk may not stop it from reaching later steps
    of its block of `window` steps, through the product of a zero weight and its value.
    """

    about = About(
        group="attention",
        equation="y = softmax(q K^T + bias by distance) V over the last window + 1 steps",
        source="Vaswani et al., NeurIPS 2017, in a window; bias: Raffel et al. 2020; options: ALiBi, RoPE, Hopfield",
        home="https://arxiv.org/abs/1706.03762",
    )

    title: ClassVar[str] = "attention"
    """How messages call this memory."""

    window: int = 64
    """Steps in the cache: a step sees itself and this many before it."""
    heads: int = 4
    """Number of heads; must divide the width."""
    positions: Literal["bias", "alibi", "rope", "xl"] = "bias"
    """Positions: learned bias by distance, ALiBi's fixed one, turned queries and keys (RoPE), or Transformer-XL's."""
    beta: float = 1.0
    """Inverse temperature of the softmax, in units of one over the root of the size of a head."""
    retrievals: int = 1
    """Retrievals of a Hopfield network: each but the last makes a new query of the keys."""
    backend: str = "auto"
    """Backend of `engram.kernels.window_scan`. Positions rope and xl and several retrievals always run on xla."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.heads < 1 or self.width % self.heads:
            raise BadRequest(f"{self.title}: needs window >= 1 and heads that divide width {self.width}")
        if self.retrievals < 1 or not (math.isfinite(self.beta) and self.beta > 0):
            raise BadRequest(f"{self.title}: needs retrievals >= 1 and a finite beta > 0")
        if self.positions == "rope" and self.size % 2:
            raise BadRequest(f"{self.title}: positions=rope needs heads of an even size, not {self.size}")
        super().__post_init__()

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.width // self.heads

    @property
    def scale(self) -> float:
        return self.beta / math.sqrt(self.size)

    def setup(self) -> None:
        dtype, zeros = self.param_dtype, nn.initializers.zeros
        self.qkv = Dense(3 * self.width, use_bias=False, param_dtype=dtype)
        if self.positions == "bias":
            self.bias = self.param("bias", zeros, (self.heads, self.window + 1), dtype)
        if self.positions == "xl":
            self.of_content = self.param("of_content", zeros, (self.heads, self.size), dtype)
            self.of_distance = self.param("of_distance", zeros, (self.heads, self.size), dtype)
            self.relative = Dense(self.width, use_bias=False, param_dtype=dtype)
        self.out = self.make_out()

    def make_out(self) -> nn.Module:
        """The layer after the heads."""
        return GatedOutput(self.width, self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return initial_state(batch, self.window, self.heads, self.size, self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        y, state = self.scan(*self.project(x), reset, state)
        return state, self.out(y.reshape(x.shape))

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        q, k, v = self.project(x)
        if self.is_plain:
            state, y = window_scan_step(state, q, k, v, self.biases(), reset, backend=self.backend)
        else:
            state, y = step_by(self.attend, state, q, k, v, reset)
        return state, self.out(y.reshape(x.shape))

    def scan(self, q: jax.Array, k: jax.Array, v: jax.Array, reset: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Outputs `[T, B, heads, size]` of a sequence of scaled queries, keys and values, and the state after it."""
        if self.is_plain and not self.drops:
            return window_scan(q, k, v, self.biases(), reset, state, backend=self.backend)
        return scan_by(self.attend, q, k, v, reset, state)

    @property
    def is_plain(self) -> bool:
        """Whether it is one softmax with a bias by distance, which the kernel does."""
        return self.retrievals == 1 and self.positions in ("bias", "alibi")

    @property
    def drops(self) -> bool:
        """Whether `dropped` changes the weights of a sequence."""
        return False

    def dropped(self, weights: jax.Array) -> jax.Array:
        """The weights `[..., q, k]` that mix the values, for classes that drop some in training."""
        return weights

    def biases(self) -> jax.Array:
        """What is added to scores, by head and distance `[heads, window + 1]`; zeros for turned queries and keys."""
        if self.positions == "bias":
            return self.bias
        slopes = 2.0 ** (-8 * np.arange(1, self.heads + 1) / self.heads) * (self.positions == "alibi")
        return jnp.asarray(-slopes[:, None] * np.arange(self.window + 1), self.param_dtype)

    def attend(
        self, q: jax.Array, keys: jax.Array, values: jax.Array, distance: np.ndarray, visible: jax.Array
    ) -> jax.Array:
        """All options, see `engram.kernels.window_scan.attend`."""
        if self.positions == "rope":
            q, keys = turned(q, distance[:, 0] - distance[0, 0]), turned(keys, -distance[0])
        for _ in range(self.retrievals - 1):
            q = self.scale * mix(self.weights(q, keys, distance, visible), keys)
        return mix(self.dropped(self.weights(q, keys, distance, visible)), values)

    def weights(self, q: jax.Array, keys: jax.Array, distance: np.ndarray, visible: jax.Array) -> jax.Array:
        """Weights `[..., heads, q, k]` of one retrieval."""
        if self.positions != "xl":
            return weigh(q, keys, by_distance(self.biases(), distance), visible)
        relative = by_head(self.relative(sinusoids(self.window + 1, self.width).astype(keys.dtype)), self.heads)
        scores = jnp.einsum("...qhd,mhd->...hqm", q + self.scale * self.of_distance, relative)
        where = np.clip(distance, 0, self.window).reshape(*[1] * (scores.ndim - 2), *distance.shape)
        added = jnp.take_along_axis(scores, jnp.asarray(where), -1)
        return weigh(q + self.scale * self.of_content, keys, added, visible)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled queries, keys and values `[..., heads, size]`."""
        q, k, v = (by_head(array, self.heads) for array in jnp.split(self.qkv(x), 3, -1))
        return q * self.scale, k, v


def rates(size: int) -> np.ndarray:
    """Radians a step of `size` sinusoids, or pairs of features: from 1 down to nearly 1 / `SLOWEST`."""
    return SLOWEST ** (-np.arange(size) / size)


def sinusoids(steps: int, width: int) -> jax.Array:
    """Sines, then cosines, of `steps` distances `[steps, width]` (Dai et al. 2019)."""
    angles = np.arange(steps)[:, None] * rates(-(-width // 2))
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], -1)[:, :width])


def turned(x: jax.Array, position: np.ndarray) -> jax.Array:
    """Feature i and i + size / 2 of `x[..., n, heads, size]` turned in their plane by the angle of `position[n]`."""
    angle = position[:, None, None] * rates(x.shape[-1] // 2)
    cos, sin = (jnp.asarray(part, x.dtype) for part in (np.cos(angle), np.sin(angle)))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
