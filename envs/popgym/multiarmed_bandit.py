"""POPGym's MultiarmedBandit: find and use the arms that pay best."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.spaces import Discrete


@struct.dataclass
class BanditState:
    probabilities: jax.Array
    """`[num_bandits]` float32: probability that each arm pays."""
    last: jax.Array
    """The arm pulled last, int32, -1 at the start. For pictures only."""
    paid: jax.Array
    """Whether that arm paid, bool. For pictures only."""
    t: jax.Array
    """Steps taken, int32."""


@dataclass(frozen=True)
class MultiarmedBandit(Environment):
    """Observation: did the arm pay, Discrete(2), 0 at reset. Action: an arm, Discrete(num_bandits).

    Each episode draws the arms' probabilities from U[0, 1). A step draws one `uniform(key)` and pays when it lies below
    the pulled arm's: reward +1 / length, else -1 / length. Truncates after `episode_length` steps, never terminates.
    Source: popgym 1.0.7, `envs/multiarmed_bandit.py`.
    """

    num_bandits: int
    episode_length: int

    def state_from(self, probabilities: jax.Array) -> tuple[jax.Array, BanditState]:
        """Opens an episode with arms that pay with these `probabilities`, `(num_bandits,)` float32."""
        state = BanditState(probabilities, last=jnp.int32(-1), paid=jnp.bool_(False), t=jnp.int32(0))
        return jnp.int32(0), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, BanditState]:
        return self.state_from(jax.random.uniform(key, (self.num_bandits,)))

    def step(
        self, key: jax.Array, state: BanditState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, BanditState, jax.Array, jax.Array, jax.Array, Info]:
        paid = jax.random.uniform(key) < state.probabilities[action]
        scale = jnp.float32(1 / self.episode_length)
        t = state.t + 1
        state = BanditState(state.probabilities, jnp.asarray(action, jnp.int32), paid, t)
        reward = jnp.where(paid, scale, -scale)
        return paid.astype(jnp.int32), state, reward, jnp.bool_(False), t >= self.episode_length, {}

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(2)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_bandits)

    def max_steps(self, params: NoParams) -> int:
        return self.episode_length

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas(340, 280, drawing.INK)
        drawing.caption(draw, "Multi-armed bandit", int(state.t), self.episode_length)
        width = 320 / self.num_bandits
        for i, probability in enumerate(np.asarray(state.probabilities)):
            left, right = 10 + i * width, 10 + (i + 0.8) * width
            pulled = i == int(state.last)
            fill = (drawing.GOLD if state.paid else drawing.RED) if pulled else drawing.WATER
            draw.rectangle((left, 240 - 190 * float(probability), right, 240), fill=fill)
        if int(state.last) >= 0:
            outcome = "paid" if state.paid else "did not pay"
            drawing.text(draw, (170, 260), f"arm {int(state.last)} {outcome}", 16, drawing.PAPER)
        return drawing.picture(draw)
