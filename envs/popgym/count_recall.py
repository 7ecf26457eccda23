"""POPGym's CountRecall: how often was the queried kind of card dealt so far?"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.popgym.deck import CARDS, NUM_COLORS, NUM_RANKS, NUM_SUITS, color, dealt, rank, shuffle, suit
from engram.envs.spaces import Discrete, MultiDiscrete

KINDS = {"colors": (NUM_COLORS, color), "suits": (NUM_SUITS, suit), "ranks": (NUM_RANKS, rank)}


@struct.dataclass
class CountRecallState:
    value_deck: jax.Array
    """`[n]` int32, dealt from its end."""
    query_deck: jax.Array
    """`[n]` int32, dealt from its end."""
    counts: jax.Array
    """`[m]` int32: how often each kind was dealt as value, the card on display included."""
    t: jax.Array
    """Steps taken, int32."""


@dataclass(frozen=True)
class CountRecall(Environment):
    """Observation: (value, query), MultiDiscrete([m, m]). Action: a count, Discrete(n / m + 1).

    Two decks of n = 52 x decks cards are shuffled independently; m is the number of colours, suits or ranks. The right
    answer is how many values of the queried kind were dealt so far, the one on display included. Reward
    +-1 / (n - 1), right or wrong: popgym's `error_clamp` argument is never read there, so it does not exist here.
    Terminates after n - 1 steps. Source: popgym 1.0.7, `envs/count_recall.py`.
    """

    num_decks: int
    deck_type: Literal["colors", "suits", "ranks"]

    @property
    def num_cards(self) -> int:
        return CARDS * self.num_decks

    @property
    def num_kinds(self) -> int:
        return KINDS[self.deck_type][0]

    def kind(self, card: jax.Array) -> jax.Array:
        return KINDS[self.deck_type][1](card)

    def _count(self, counts: jax.Array, value: jax.Array) -> jax.Array:
        return counts + (jnp.arange(self.num_kinds) == value)

    def state_from(self, value_deck: jax.Array, query_deck: jax.Array) -> tuple[jax.Array, CountRecallState]:
        """Opens an episode with these two decks `[n]`, each dealt from its end."""
        value, query = self.kind(dealt(value_deck, 0)), self.kind(dealt(query_deck, 0))
        counts = self._count(jnp.zeros(self.num_kinds, jnp.int32), value)
        return jnp.stack([value, query]), CountRecallState(value_deck, query_deck, counts, jnp.int32(0))

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, CountRecallState]:
        value_key, query_key = jax.random.split(key)
        return self.state_from(shuffle(value_key, self.num_cards), shuffle(query_key, self.num_cards))

    def step(
        self, key: jax.Array, state: CountRecallState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, CountRecallState, jax.Array, jax.Array, jax.Array, Info]:
        scale = jnp.float32(1 / (self.num_cards - 1))
        asked = self.kind(dealt(state.query_deck, state.t))
        reward = jnp.where(action == state.counts[asked], scale, -scale)
        t = state.t + 1
        value, query = self.kind(dealt(state.value_deck, t)), self.kind(dealt(state.query_deck, t))
        state = CountRecallState(state.value_deck, state.query_deck, self._count(state.counts, value), t)
        return jnp.stack([value, query]), state, reward, t == self.num_cards - 1, jnp.bool_(False), {}

    def observation_space(self, params: NoParams) -> MultiDiscrete:
        return MultiDiscrete((self.num_kinds, self.num_kinds))

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_cards // self.num_kinds + 1)

    def max_steps(self, params: NoParams) -> int:
        return self.num_cards - 1

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas()
        drawing.caption(draw, f"Count recall: {self.deck_type}", int(state.t), self.max_steps(params))
        query = dealt(state.query_deck, state.t)
        drawing.card(draw, (30, 48), 110, int(dealt(state.value_deck, state.t)), "dealt now")
        drawing.card(draw, (180, 48), 110, int(query), "query")
        names = {"colors": drawing.COLOR_NAMES, "suits": drawing.SUIT_NAMES, "ranks": drawing.RANK_NAMES}
        kind = int(self.kind(query))
        drawing.text(draw, (160, 255), f"{names[self.deck_type][kind]}: {state.counts[kind]} so far", 18, drawing.GOLD)
        return drawing.picture(draw)
