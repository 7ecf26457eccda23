"""POPGym's HigherLower: will the next card be higher or lower?"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.popgym.deck import CARDS, NUM_RANKS, DeckState, dealt, rank, shuffle
from engram.envs.spaces import Discrete

HIGHER = 0


@dataclass(frozen=True)
class HigherLower(Environment):
    """Observation: the rank just dealt, Discrete(13). Action: 0 higher, 1 lower, Discrete(2).

    Reward +-1 / n for a right or wrong guess, 0 when both ranks are equal; terminates after n - 1 steps, with
    n = 52 x decks. The scale is popgym's 1 / n although only n - 1 guesses are made, so the best return stays below
    (n - 1) / n. Source: popgym 1.0.7, `envs/higher_lower.py`.
    """

    num_decks: int

    @property
    def num_cards(self) -> int:
        return CARDS * self.num_decks

    def state_from(self, deck: jax.Array) -> tuple[jax.Array, DeckState]:
        """Opens an episode with the deck `[n]` in this order, dealt from its end."""
        state = DeckState(deck=deck, t=jnp.int32(0))
        return rank(dealt(deck, 0)), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, DeckState]:
        return self.state_from(shuffle(key, self.num_cards))

    def step(
        self, key: jax.Array, state: DeckState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, DeckState, jax.Array, jax.Array, jax.Array, Info]:
        scale = jnp.float32(1 / self.num_cards)
        t = state.t + 1
        current, following = rank(dealt(state.deck, state.t)), rank(dealt(state.deck, t))
        right = (following > current) == (action == HIGHER)
        reward = jnp.where(following == current, 0.0, jnp.where(right, scale, -scale))
        return following, DeckState(state.deck, t), reward, t == self.num_cards - 1, jnp.bool_(False), {}

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(NUM_RANKS)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(2)

    def max_steps(self, params: NoParams) -> int:
        return self.num_cards - 1

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas()
        t = int(state.t)
        drawing.caption(draw, "Higher or lower", t, self.max_steps(params))
        drawing.card(draw, (24, 90), 80, int(dealt(state.deck, t - 1)) if t else None, "before")
        drawing.card(draw, (150, 50), 130, int(dealt(state.deck, t)), "now")
        return drawing.picture(draw)
