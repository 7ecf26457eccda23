"""Sliding-window attention: every step attends to itself and the `window` steps before it in its episode.

The last `window` keys and values are the state, so the learner's chunk sees exactly what the actor saw, whatever
came before the chunk. Positions enter as a learned bias per head and distance (Raffel et al. 2020, without buckets):
distances are all that actor and learner share.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.errors import BadRequest
from engram.kernels.backends import check_flags
from engram.kernels.rows import clear
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput


class Attention(Memory):
    """One layer of multi-head attention and a gated output.

    State: keys and values `[B, window, heads, width / heads]`, oldest first, and how many of the newest belong to the
    current episode, int32 `[B]`.

    A chunk is handled in blocks of `window` steps, each against its own keys and the `window` before them, so the cost
    is linear in time. A NaN is forgotten at a reset that opens a chunk; a reset inside a chunk does not stop it from
    reaching later steps of its block, through the product of a zero weight and its value.
    """

    about = About(
        group="attention",
        equation="y = softmax(q K^T + bias by distance) V over the last window + 1 steps",
        source="Vaswani et al., NeurIPS 2017, in a sliding window; bias after Raffel et al. 2020",
        home="https://arxiv.org/abs/1706.03762",
    )

    window: int = 64
    """Steps in the cache: a step sees itself and this many before it."""
    heads: int = 4
    """Number of heads; must divide the width."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.heads < 1 or self.width % self.heads:
            raise BadRequest(f"attention: needs window >= 1 and heads that divide width {self.width}")
        super().__post_init__()

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    def setup(self) -> None:
        dtype = self.param_dtype
        self.qkv = Dense(3 * self.width, use_bias=False, param_dtype=dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.heads, self.window + 1), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        cache = jnp.zeros((batch, self.window, self.heads, self.width // self.heads), self.param_dtype)
        return cache, cache, jnp.zeros(batch, jnp.int32)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        T, W = x.shape[0], self.window
        check_flags("attention", reset, x.shape[:2])
        # From here on batch-major, as products over keys want it.
        q, k, v = (array.swapaxes(0, 1) for array in self.project(x))
        if not T:
            return state, self.out(x)
        block = T if T <= W + 1 else W
        old_k, old_v, length = state
        keys = jnp.concatenate([clear(reset[0], old_k), k], 1)  # keys[:, W + t] is the key of step t
        values = jnp.concatenate([clear(reset[0], old_v), v], 1)

        # Keys of the episode of step t start at opened[t]; below 0 is in the cache.
        t = jnp.arange(T, dtype=jnp.int32)[:, None]
        opened = lax.cummax(jnp.where(reset, t, -length), axis=0).T

        blocks = -(-T // block)
        pad = blocks * block - T

        def split(array):
            array = jnp.pad(array, ((0, 0), (0, pad)) + ((0, 0),) * (array.ndim - 2))
            return array.reshape(array.shape[0], blocks, block, *array.shape[2:])

        def spans(array):
            """`[B, blocks, block + W, ...]`: the keys in reach of each block."""
            if blocks == 1:
                return array[:, None]
            array = jnp.pad(array, ((0, 0), (0, pad), (0, 0), (0, 0)))
            array = array.reshape(array.shape[0], blocks + 1, W, *array.shape[2:])
            return jnp.concatenate([array[:, :-1], array[:, 1:]], 2)

        query = np.arange(block)[:, None]
        key = np.arange(block + W)[None] - W  # positions relative to the block's first step
        distance = query - key
        in_window = (distance >= 0) & (distance <= W)
        position = np.arange(blocks)[:, None, None] * block + key
        visible = in_window & (position >= split(opened)[..., None])  # [B, blocks, block, block + W]
        bias = self.bias[:, np.clip(distance, 0, W)]
        scores, mix = "bnqhd,bnkhd->bnhqk", "bnhqk,bnkhd->bnqhd"
        y = attend(scores, mix, split(q), spans(keys), spans(values), bias, visible, self.dropped)
        y = y.reshape(y.shape[0], blocks * block, self.width)[:, :T].swapaxes(0, 1)

        length = jnp.minimum(T - opened[:, -1], W)
        past = jnp.arange(W) < W - length[:, None]  # cached places from before the episode, empty as `step` leaves them
        return (clear(past, keys[:, T:]), clear(past, values[:, T:]), length), self.out(y)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        q, k, v = self.project(x)
        old_k, old_v, length = state
        length = jnp.where(reset, 0, length)
        keys = jnp.concatenate([clear(reset, old_k), k[:, None]], 1)
        values = jnp.concatenate([clear(reset, old_v), v[:, None]], 1)
        distance = np.arange(self.window, -1, -1)
        visible = distance <= length[:, None]
        y = attend("bhd,bkhd->bhk", "bhk,bkhd->bhd", q, keys, values, self.bias[:, ::-1], visible)
        length = jnp.minimum(length + 1, self.window)
        return (keys[:, 1:], values[:, 1:], length), self.out(y.reshape(x.shape))

    def dropped(self, weights: jax.Array) -> jax.Array:
        """The weights `[..., keys]` that mix the values of a sequence, for classes that drop some in training."""
        return weights

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values `[..., heads, width / heads]`."""
        shape = (*x.shape[:-1], self.heads, self.width // self.heads)
        q, k, v = (array.reshape(shape) for array in jnp.split(self.qkv(x), 3, -1))
        return q / math.sqrt(shape[-1]), k, v


def attend(
    scores: str,
    mix: str,
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    bias: jax.Array,
    visible: Any,
    dropped: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """Softmax attention: `scores` and `mix` are einsums with the heads before the queries, if any, and the keys. What
    `dropped` makes of the weights mixes the values."""
    logits = jnp.einsum(scores, q, keys) + bias
    heads_axis = -logits.ndim + scores.split("->")[1].index("h")
    logits = jnp.where(jnp.expand_dims(visible, heads_axis), logits, -jnp.inf)
    return jnp.einsum(mix, dropped(jax.nn.softmax(logits, -1)), values)
