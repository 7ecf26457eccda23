"""POPGym's Autoencode: watch a whole deck, then recite it backwards."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.popgym.deck import CARDS, NUM_SUITS, DeckState, dealt, shuffle, suit
from engram.envs.spaces import Discrete, Tuple

PLAY, WATCH = 0, 1


@dataclass(frozen=True)
class Autoencode(Environment):
    """Observation: (mode, suit), (Discrete(2), Discrete(4)), mode 1 = WATCH, 0 = PLAY. Action: a suit, Discrete(4).

    n - 1 WATCH steps show the deck (n = 52 x decks), actions ignored, reward 0. The observation with the last card
    already says PLAY; n PLAY steps follow, each +-1 / n for the suits in reverse order, the last card first. After a
    PLAY step the observation is (0, 0). Terminates after 2 n - 1 steps. Source: popgym 1.0.7, `envs/autoencode.py`.
    """

    num_decks: int

    @property
    def num_cards(self) -> int:
        return CARDS * self.num_decks

    def state_from(self, deck: jax.Array) -> tuple[tuple[jax.Array, jax.Array], DeckState]:
        """Opens an episode with the deck `[n]` in this order, dealt from its end."""
        state = DeckState(deck=deck, t=jnp.int32(0))
        return (jnp.int32(WATCH), suit(dealt(deck, 0))), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[tuple[jax.Array, jax.Array], DeckState]:
        return self.state_from(shuffle(key, self.num_cards))

    def step(
        self, key: jax.Array, state: DeckState, action: jax.Array, params: NoParams
    ) -> tuple[tuple[jax.Array, jax.Array], DeckState, jax.Array, jax.Array, jax.Array, Info]:
        n = self.num_cards
        scale = jnp.float32(1 / n)
        t = state.t + 1
        watching = state.t < n - 1
        # The card this step is about: the one it shows while watching, the one it asks for while playing.
        card = suit(dealt(state.deck, jnp.where(watching, t, 2 * (n - 1) - state.t)))
        mode = jnp.where(t < n - 1, WATCH, PLAY).astype(jnp.int32)
        reward = jnp.where(watching, 0.0, jnp.where(action == card, scale, -scale))
        obs = (mode, jnp.where(watching, card, 0))
        return obs, DeckState(state.deck, t), reward, t == 2 * n - 1, jnp.bool_(False), {}

    def observation_space(self, params: NoParams) -> Tuple:
        return Tuple((Discrete(2), Discrete(NUM_SUITS)))

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(NUM_SUITS)

    def max_steps(self, params: NoParams) -> int:
        return 2 * self.num_cards - 1

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas()
        n, t = self.num_cards, int(state.t)
        drawing.caption(draw, "Autoencode", t, self.max_steps(params))
        if t < n - 1:
            drawing.card(draw, (95, 50), 130, int(dealt(state.deck, t)), f"watch: card {t + 1} of {n}")
        else:
            asked = 2 * (n - 1) - t
            recited = f"recite: {n - 1 - asked} of {n} done"
            drawing.card(draw, (24, 90), 80, int(dealt(state.deck, asked)) if asked >= 0 else None, "to name")
            drawing.card(draw, (150, 50), 130, int(dealt(state.deck, t)) if t == n - 1 else None, recited)
        return drawing.picture(draw)
