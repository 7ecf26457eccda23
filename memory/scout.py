"""SCOUT (Jafari et al. 2025): attention to checkpoints of a recurrence, beside the step itself.

A linear mixer summarises the recent past. Every `every`-th step of an episode its output is kept as a checkpoint, which
stands for the steps before it, and each step attends to the last checkpoints and to itself:

    m = mixer(x)    q, k, v = W LN(x + m)    y = m + out(attention(q; k, v of the last checkpoints and of t))

Added to x, as a stack does, these are the two residual layers of the paper's block; its feed-forward layers are left
out. The mixer of the paper is Mamba. Checkpoints come at the steps `every`, 2 `every`, ... of the episode. Old ones are
dropped, which the paper does not do: a state has one size. Positions are the numbers of checkpoints between.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.marked_scan import initial_state, marked_scan, marked_scan_step
from engram.memory.base import About, Memory, State, where_reset
from engram.memory.gla import GLA
from engram.memory.layers import Dense, GatedOutput, by_head, steps_of_episodes
from engram.memory.mamba import Mamba
from engram.memory.mamba2 import Mamba2

MIXERS: dict[str, type[Memory]] = {"gla": GLA, "mamba": Mamba, "mamba2": Mamba2}
"""Mixers by name, each with its own defaults."""


class Scout(Memory):
    """One layer. State: `(mixer's state, cache, n)`: `engram.kernels.marked_scan.State` of the checkpoints, and the
    steps since the last of them, int32 `[B]`.

    NaN: as `engram.memory.attention`.
    """

    about = About(
        group="attention",
        equation="m = mixer(x), y = m + attention of LN(x + m) to every C-th one before it and to itself",
        source="Jafari et al. 2025 (SCOUT), here with gated linear attention; option: Mamba, as published",
        home="https://arxiv.org/abs/2509.00935",
    )

    mixer: Literal["gla", "mamba", "mamba2"] = "gla"
    """Mixer that makes the checkpoints, a memory with default options: gla, mamba (published) or mamba2."""
    every: int = 8
    """Steps of an episode from checkpoint to checkpoint."""
    slots: int = 32
    """Number of checkpoints that are kept, the last ones."""
    heads: int = 4
    """Number of heads of the attention, and of gla; must divide the width, and for gla half of it."""

    def __post_init__(self) -> None:
        if min(self.every, self.slots, self.heads) < 1 or self.width % self.heads:
            raise BadRequest(f"scout: needs every and slots >= 1 and heads that divide width {self.width}")
        self.make_mixer()  # raises where it does not fit
        super().__post_init__()

    @property
    def forgets_nan_inside(self) -> bool:
        return False

    @nn.nowrap
    def make_mixer(self) -> Memory:
        """The mixer, without parameters yet."""
        options: dict[str, Any] = {"heads": self.heads} if self.mixer == "gla" else {}
        return MIXERS[self.mixer](self.width, self.param_dtype, parent=None, **options)

    def setup(self) -> None:
        dtype = self.param_dtype
        self.mix = self.make_mixer()
        self.norm = nn.LayerNorm(param_dtype=dtype)
        self.qkv = Dense(3 * self.width, use_bias=False, param_dtype=dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.heads, self.slots + 1), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        cache = initial_state(batch, self.slots, self.heads, self.width // self.heads, dtype=self.param_dtype)
        return self.make_mixer().initial_state(batch), cache, jnp.zeros(batch, jnp.int32)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        mixed, cache, begun = state
        mixed, m = self.mix(mixed, x, reset)
        n, after = steps_of_episodes(reset, begun, self.every)
        q, k, v = self.project(x + m)
        found, cache = marked_scan(q, k, v, jnp.asarray(self.bias), self.is_checkpoint(n), reset, cache)
        return (mixed, cache, after), m + self.out(found.reshape(x.shape))

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        mixed, cache, n = state
        mixed, m = self.mix.step(mixed, x, reset)
        n = where_reset(reset, jnp.zeros_like(n), n)
        q, k, v = self.project(x + m)
        cache, found = marked_scan_step(cache, q, k, v, jnp.asarray(self.bias), self.is_checkpoint(n), reset)
        return (mixed, cache, (n + 1) % self.every), m + self.out(found.reshape(x.shape))

    def is_checkpoint(self, n: jax.Array) -> jax.Array:
        """Whether a step with `n[...]` steps before it in its episode is kept."""
        return n % self.every == self.every - 1

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled queries, keys and values `[..., heads, size]`."""
        q, k, v = (by_head(part, self.heads) for part in jnp.split(self.qkv(self.norm(x)), 3, -1))
        return q * q.shape[-1] ** -0.5, k, v
