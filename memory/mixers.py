"""Mixers of the tokens of a sequence policy: any memory, token by token, or a block that takes whole steps.

A step of the environment is three tokens: return-to-go, observation, action. `reset` is True at an episode's first.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.memory import MEMORIES, make_memory, memory_options
from engram.memory.attention import Attention
from engram.memory.base import Memory, State
from engram.memory.decision_mamba import DecisionMamba
from engram.memory.stack import Stack


class TokenAttention(Attention):
    """Attention that drops weights in training, as GPT-2 does, when it has a random key named "dropout"."""

    weight_dropout: float = 0.0
    """Dropout rate of the attention weights."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight_dropout < 1:
            raise BadRequest(f"attention: weight_dropout must lie in [0, 1), got {self.weight_dropout}")
        super().__post_init__()

    def setup(self) -> None:
        super().setup()
        self.drop = nn.Dropout(self.weight_dropout)

    @property
    def drops(self) -> bool:
        return self.weight_dropout > 0 and self.has_rng("dropout")

    def dropped(self, weights: jax.Array) -> jax.Array:
        return self.drop(weights, deterministic=not self.drops)


MIXERS: dict[str, type[Memory]] = {**MEMORIES, "attention": TokenAttention, "dm": DecisionMamba}
"""Layers by name: `dm` is the block of Decision Mamba, `attention` makes a Decision Transformer."""


class TokenMixer(nn.Module):
    """A stack of memory layers over tokens, and a last RMSNorm."""

    stack: Stack

    def setup(self) -> None:
        self.norm = nn.RMSNorm(1e-5, param_dtype=self.stack.param_dtype)

    @property
    def width(self) -> int:
        return self.stack.width

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return self.stack.initial_state(batch)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """Tokens of `K` steps `x[3K, B, width]`, `reset[3K, B]` -> state, `y[3K, B, width]`."""
        state, y = self.stack(state, x, reset)
        return state, self.norm(y)

    def observe(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """The first two tokens of one step, `x[2, B, width]`, `reset[B]` -> state, `y[2, B, width]`."""
        state, to_go = self.stack.step(state, x[0], reset)
        state, obs = self.stack.step(state, x[1], jnp.zeros_like(reset))
        return state, self.norm(jnp.stack([to_go, obs]))

    def act(self, state: State, x: jax.Array) -> State:
        """The third token, the action `x[B, width]`."""
        return self.stack.step(state, x, jnp.zeros(x.shape[0], bool))[0]


class StepStack(Stack):
    """A stack of layers that take the tokens of a step in two phases."""

    def observe(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        return self.run([layer.observe for layer in self.layers], state, x, reset)

    def act(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        return self.run([layer.act for layer in self.layers], state, x, reset)


class StepMixer(TokenMixer):
    """A `TokenMixer` whose stack is a `StepStack`."""

    def observe(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, y = self.stack.observe(state, x, reset)
        return state, self.norm(y)

    def act(self, state: State, x: jax.Array) -> State:
        return self.stack.act(state, x, jnp.zeros(x.shape[0], bool))[0]


def mixer_options(name: str) -> dict[str, Any]:
    """The options of a mixer's layers and their defaults. Raises as `memory_options`."""
    return memory_options(name, MIXERS)


def make_mixer(name: str, width: int, layers: int, dropout: float = 0.0, **options: Any) -> TokenMixer:
    """`layers` layers of one kind after RMSNorm, each added to its input. Raises as `make_memory`.

    Args:
        dropout: rate, in training, at which entries of each layer's output and weights of attention are dropped.
    """
    whole_steps = name == "dm"
    if name == "attention":
        options = {"weight_dropout": dropout, **options}
    mixer: Any = StepMixer if whole_steps else TokenMixer
    stack = make_memory(
        name,
        width,
        layers,
        rms=True,
        dropout=dropout,
        kinds=MIXERS,
        stack=StepStack if whole_steps else Stack,
        **options,
    )
    return mixer(stack)
