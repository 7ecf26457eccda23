"""POPGym's Concentration: find the pairs among cards that lie face down."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.popgym.deck import CARDS, NUM_COLORS, NUM_RANKS, color, rank, shuffle
from engram.envs.spaces import Discrete, MultiDiscrete

NONE = -1


@struct.dataclass
class ConcentrationState:
    deck: jax.Array
    """`[n]` int32: the card at each position."""
    face_up: jax.Array
    """`[n]` bool: the positions already paired."""
    first: jax.Array
    """Position of the card in play, int32; `NONE` when the next flip opens a pair."""
    shown: jax.Array
    """`[2]` int32: the positions that the last observation shows besides the paired ones, or `NONE`. For pictures."""
    t: jax.Array
    """Steps taken, int32."""


@dataclass(frozen=True)
class Concentration(Environment):
    """Observation: what each of n positions shows, MultiDiscrete([m + 1] * n), m = face down. Action: Discrete(n).

    n = 52 x decks; cards of equal colour (m = 2) or rank (m = 13) match. The observation shows the paired cards and
    those in play, the one just flipped included, so a mismatched pair is seen only right after its second flip. Reward:
    a match 2 / n; a failed second flip -2 / L; flipping a paired card -(cards in play) / L, which also turns the other
    card in play back; a good first flip 0. The same card flipped twice is a failed pair. Terminates when all cards are
    up, truncates after L = ceil(2 n - n / (2 n - 1)) steps; both may be True at once, as in popgym.
    Source: popgym 1.0.7, `envs/concentration.py`.
    """

    num_decks: int
    deck_type: Literal["colors", "ranks"]

    @property
    def num_cards(self) -> int:
        return CARDS * self.num_decks

    @property
    def num_kinds(self) -> int:
        return NUM_COLORS if self.deck_type == "colors" else NUM_RANKS

    @property
    def episode_length(self) -> int:
        n = self.num_cards
        return math.ceil(2 * n - n / (2 * n - 1))

    def kind(self, card: jax.Array) -> jax.Array:
        return color(card) if self.deck_type == "colors" else rank(card)

    def state_from(self, deck: jax.Array) -> tuple[jax.Array, ConcentrationState]:
        """Opens an episode with the deck `[n]` laid out face down: `deck[i]` lies at position i."""
        n = self.num_cards
        state = ConcentrationState(
            deck=deck,
            face_up=jnp.zeros(n, bool),
            first=jnp.int32(NONE),
            shown=jnp.full(2, NONE, jnp.int32),
            t=jnp.int32(0),
        )
        return jnp.full(n, self.num_kinds, jnp.int32), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, ConcentrationState]:
        return self.state_from(shuffle(key, self.num_cards))

    def step(
        self, key: jax.Array, state: ConcentrationState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, ConcentrationState, jax.Array, jax.Array, jax.Array, Info]:
        n = self.num_cards
        success, failure = jnp.float32(2 / n), jnp.float32(-1 / self.episode_length)
        position = jnp.arange(n)
        first, action = state.first, jnp.asarray(action, jnp.int32)
        in_play = (position == first) | (position == action)
        kinds = self.kind(state.deck)
        obs = jnp.where(state.face_up | in_play, kinds, self.num_kinds)

        opens = first == NONE
        illegal = state.face_up[action]
        same_kind = kinds[jnp.maximum(first, 0)] == kinds[action]
        match = ~opens & ~illegal & same_kind & (first != action)
        missed = jnp.where(opens, jnp.where(illegal, failure, 0.0), 2 * failure)
        reward = jnp.where(match, success, missed)

        face_up = state.face_up | (match & in_play)
        t = state.t + 1
        state = ConcentrationState(
            deck=state.deck,
            face_up=face_up,
            first=jnp.where(opens & ~illegal, action, NONE),
            shown=jnp.stack([first, action]),
            t=t,
        )
        return obs, state, reward, jnp.all(face_up), t >= self.episode_length, {}

    def observation_space(self, params: NoParams) -> MultiDiscrete:
        return MultiDiscrete((self.num_kinds + 1,) * self.num_cards)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_cards)

    def max_steps(self, params: NoParams) -> int:
        return self.episode_length

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas(400, 54 + 57 * (self.num_cards // CARDS) * 4, drawing.BACKGROUND)
        drawing.caption(draw, f"Concentration: {self.deck_type}", int(state.t), self.episode_length)
        for i, card in enumerate(state.deck):
            visible = state.face_up[i] or i in state.shown
            corner = (10 + i % NUM_RANKS * 29.5, 40 + i // NUM_RANKS * 57)
            drawing.card(draw, corner, 26, int(card) if visible else None)
            if i in state.shown:
                drawing.highlight(draw, corner, 26)
        return drawing.picture(draw)
