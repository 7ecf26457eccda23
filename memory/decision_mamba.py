"""The block of Decision Mamba (Lv et al. 2024, Figure 1): Mamba over tokens beside a state space over whole steps.

A step of the environment is three tokens: return-to-go, observation, action. The fine-grained branch reads them as
groups `(previous action, return-to-go, observation)`, so what it adds to the tokens of a step does not depend on the
action of that step, which is to be predicted from them. A group holds two tokens of one step, so the block acts in two
phases (`observe`, `act`) and not token by token. That is why it is a mixer (`engram.memory.mixers`) and not a
registered memory.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from engram.kernels.rows import clear
from engram.memory.base import State
from engram.memory.layers import Dense
from engram.memory.mamba import Mamba


class DecisionState(struct.PyTreeNode):
    """State of the block; leaves are `[B, ...]`."""

    coarse: Any
    """State of the Mamba block over tokens."""
    fine: jax.Array
    """State of the state space over groups."""
    detail: jax.Array
    """Last output of the state space over groups, which the step's action receives too."""
    action: jax.Array
    """Token of the last action, as the block received it."""


class DecisionMamba(Mamba):
    """One block on tokens `x[3K, B, width]`, `reset[3K, B]`: a Mamba block with all its options. The output of the
    fine-grained branch is added to its own before gate and projection."""

    start: Literal["long", "published"] = "published"
    """Rates, steps and skip at the start, as for `mamba`, but by default "published"."""

    def setup(self) -> None:
        super().setup()
        self.group_proj = Dense(self.expand * self.width, use_bias=False, param_dtype=self.param_dtype)
        self.fine = self.space()

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        coarse = super().initial_state(batch)
        h = jnp.zeros_like(coarse[1])
        return DecisionState(coarse, h, h[:, 0], jnp.zeros((batch, self.width), self.param_dtype))

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        coarse, y, gate = self.mix(state.coarse, x, reset)
        to_go, obs, action = x.reshape(len(x) // 3, 3, *x.shape[1:]).swapaxes(0, 1)
        before = clear(reset[::3], jnp.concatenate([state.action[None], action[:-1]]))
        groups = jnp.concatenate([before, to_go, obs], -1)
        fine, detail = self.fine(state.fine, self.group_proj(groups), reset[::3])
        y = (y.reshape(len(y) // 3, 3, *y.shape[1:]) + detail[:, None]).reshape(y.shape)
        return DecisionState(coarse, fine, detail[-1], action[-1]), self.out_proj(y * gate)

    def observe(self, state: DecisionState, x: jax.Array, reset: jax.Array) -> tuple[DecisionState, jax.Array]:
        """First phase of a step: return-to-go and observation `x[2, B, width]`, `reset[B]` -> state,
        `y[2, B, width]`."""
        group = jnp.concatenate([clear(reset, state.action), x[0], x[1]], -1)
        fine, detail = self.fine.step(state.fine, self.group_proj(group), reset)
        coarse, y, gate = self.mix_step(state.coarse, x[0], reset)
        coarse, y2, gate2 = self.mix_step(coarse, x[1], jnp.zeros_like(reset))
        y, gate = jnp.stack([y, y2]), jnp.stack([gate, gate2])
        return DecisionState(coarse, fine, detail, state.action), self.out_proj((y + detail) * gate)

    def act(self, state: DecisionState, x: jax.Array, reset: jax.Array) -> tuple[DecisionState, jax.Array]:
        """Second phase: the action `x[B, width]` that was taken (`reset` is False) -> state, `y[B, width]`."""
        coarse, y, gate = self.mix_step(state.coarse, x, reset)
        return state.replace(coarse=coarse, action=x), self.out_proj((y + state.detail) * gate)
