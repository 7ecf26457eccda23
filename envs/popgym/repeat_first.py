"""POPGym's RepeatFirst: name the suit of the very first card at every step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.popgym.deck import CARDS, NUM_SUITS, DeckState, dealt, shuffle, suit
from engram.envs.spaces import Discrete


@dataclass(frozen=True)
class RepeatFirst(Environment):
    """Observation: the suit just dealt, Discrete(4). Action: a suit, Discrete(4).

    Reward +-1 / (n - 1) for naming the first card's suit, from the first step on; terminates after n - 1 steps,
    with n = 52 x decks. Source: popgym 1.0.7, `envs/repeat_first.py`.
    """

    num_decks: int

    @property
    def num_cards(self) -> int:
        return CARDS * self.num_decks

    def state_from(self, deck: jax.Array) -> tuple[jax.Array, DeckState]:
        """Opens an episode with the deck `[n]` in this order, dealt from its end."""
        state = DeckState(deck=deck, t=jnp.int32(0))
        return suit(dealt(deck, 0)), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, DeckState]:
        return self.state_from(shuffle(key, self.num_cards))

    def step(
        self, key: jax.Array, state: DeckState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, DeckState, jax.Array, jax.Array, jax.Array, Info]:
        scale = jnp.float32(1 / (self.num_cards - 1))
        reward = jnp.where(action == suit(dealt(state.deck, 0)), scale, -scale)
        t = state.t + 1
        terminated = t == self.num_cards - 1
        return suit(dealt(state.deck, t)), DeckState(state.deck, t), reward, terminated, jnp.bool_(False), {}

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(NUM_SUITS)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(NUM_SUITS)

    def max_steps(self, params: NoParams) -> int:
        return self.num_cards - 1

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas()
        drawing.caption(draw, "Repeat first", int(state.t), self.max_steps(params))
        drawing.card(draw, (24, 90), 80, int(state.deck[-1]), "first (to name)")
        drawing.card(draw, (150, 50), 130, int(dealt(state.deck, state.t)), "now")
        return drawing.picture(draw)
