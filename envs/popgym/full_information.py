"""POPGym's tasks with nothing hidden: beside the observation stands what a perfect memory would make of the episode.

The best that an agent without memory does here is what knowing everything is worth. A score between that of `none` in
the task itself and that of `none` here says how much of it a memory keeps.

The package has a wrapper of the same kind (`Markovian`), which shows the state as its program holds it: a whole deck
and a position in it, from which a network would have to learn to count. Here the answer that such a state gives is
shown, where there is one. Labyrinths have none of either: the package defines no state for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Environment, Info
from engram.envs.popgym.autoencode import Autoencode
from engram.envs.popgym.battleship import Battleship
from engram.envs.popgym.cartpole import NoisyPositionOnlyCartPole, PositionOnlyCartPole, VelocityOnlyCartpole
from engram.envs.popgym.concentration import NONE, Concentration
from engram.envs.popgym.count_recall import CountRecall
from engram.envs.popgym.deck import NUM_RANKS, NUM_SUITS, dealt, rank, suit
from engram.envs.popgym.higher_lower import HigherLower
from engram.envs.popgym.mine_sweeper import MineSweeper
from engram.envs.popgym.multiarmed_bandit import MultiarmedBandit
from engram.envs.popgym.pendulum import NoisyPositionOnlyPendulum, PositionOnlyPendulum
from engram.envs.popgym.repeat_first import RepeatFirst
from engram.envs.popgym.repeat_previous import RepeatPrevious
from engram.envs.spaces import Box, Discrete, MultiDiscrete, Space, Tuple

NOTHING = NUM_SUITS
"""In place of a suit: none is asked for."""
FACE_UP, FACE_DOWN, PARTNER = 0, 1, 2
"""A position of Concentration: not to be flipped; face down; face down and a pair with the card in play."""

UNBOUNDED = float("inf")


@dataclass(frozen=True)
class Shown:
    """What is shown of a state."""

    space: Callable[[Any], Space]
    """Of a task, the space of what is shown."""
    of: Callable[[Any, Any], jax.Array]
    """Of a task and its state, what is shown."""


def _first_suit(task: RepeatFirst, state: Any) -> jax.Array:
    return suit(dealt(state.deck, 0))


def _previous_suit(task: RepeatPrevious, state: Any) -> jax.Array:
    asked = state.t + 1 - task.k
    return jnp.where(asked >= 0, suit(dealt(state.deck, jnp.maximum(asked, 0))), NOTHING)


def _suit_to_recite(task: Autoencode, state: Any) -> jax.Array:
    last = task.num_cards - 1
    asked = jnp.clip(2 * last - state.t, 0, last)
    return jnp.where((state.t < last) | (state.t > 2 * last), NOTHING, suit(dealt(state.deck, asked)))


def _count(task: CountRecall, state: Any) -> jax.Array:
    return state.counts[task.kind(dealt(state.query_deck, state.t))]


def _dealt_ranks(task: HigherLower, state: Any) -> jax.Array:
    """How much of each rank was dealt, of 1, the card on display included."""
    n = task.num_cards
    ranks = rank(state.deck[::-1])
    seen = (ranks == jnp.arange(NUM_RANKS)[:, None]) & (jnp.arange(n) <= state.t)
    return jnp.sum(seen, axis=1) / (n / NUM_RANKS)


def _cards_to_flip(task: Concentration, state: Any) -> jax.Array:
    kinds, first = task.kind(state.deck), state.first
    closed = ~state.face_up & (jnp.arange(task.num_cards) != first)
    pairs = (first != NONE) & (kinds == kinds[jnp.maximum(first, 0)])
    return jnp.where(closed, jnp.where(pairs, PARTNER, FACE_DOWN), FACE_UP)


SHOWN: dict[type[Environment], Shown] = {
    RepeatFirst: Shown(lambda task: Discrete(NUM_SUITS), _first_suit),
    RepeatPrevious: Shown(lambda task: Discrete(NUM_SUITS + 1), _previous_suit),
    Autoencode: Shown(lambda task: Discrete(NUM_SUITS + 1), _suit_to_recite),
    CountRecall: Shown(lambda task: Discrete(task.num_cards // task.num_kinds + 1), _count),
    HigherLower: Shown(lambda task: Box(0.0, 1.0, (NUM_RANKS,)), _dealt_ranks),
    Concentration: Shown(lambda task: MultiDiscrete((3,) * task.num_cards), _cards_to_flip),
    MineSweeper: Shown(
        lambda task: MultiDiscrete((3,) * task.size**2), lambda task, state: state.cells[1:-1, 1:-1].reshape(-1)
    ),
    Battleship: Shown(lambda task: MultiDiscrete((4,) * task.size**2), lambda task, state: state.cells.reshape(-1)),
    MultiarmedBandit: Shown(lambda task: Box(0.0, 1.0, (task.num_bandits,)), lambda task, state: state.probabilities),
    **dict.fromkeys(
        (PositionOnlyCartPole, VelocityOnlyCartpole, NoisyPositionOnlyCartPole),
        Shown(lambda task: Box(-UNBOUNDED, UNBOUNDED, (4,)), lambda task, state: state.physics),
    ),
    **dict.fromkeys(
        (PositionOnlyPendulum, NoisyPositionOnlyPendulum),
        Shown(
            lambda task: Box(-UNBOUNDED, UNBOUNDED, (3,)),
            lambda task, state: jnp.stack([jnp.cos(state.physics[0]), jnp.sin(state.physics[0]), state.physics[1]]),
        ),
    ),
}
"""What each family shows.

- RepeatFirst, RepeatPrevious, Autoencode: the suit that is asked for, or `NOTHING`; CountRecall: the count.
- HigherLower: how much of each rank was dealt. The next card stays unknown, as it is drawn by chance.
- Concentration: which positions are worth a flip. MineSweeper, Battleship: the whole board.
- MultiarmedBandit: the probabilities of the arms.
- CartPole: `(x, x_dot, theta, theta_dot)`. Pendulum: `(cos theta, sin theta, theta_dot)`. Both without noise.
"""


@dataclass(frozen=True)
class FullInformation(Environment):
    """A POPGym task that hides nothing: observations are `(the task's, what SHOWN has of its state)`.

    Steps, rewards, actions and ends are the task's own.
    """

    task: Environment

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def cheap_reset(self) -> bool:
        return self.task.cheap_reset

    @property
    def default_params(self) -> Any:
        return self.task.default_params

    def _shown(self, state: Any) -> jax.Array:
        return SHOWN[type(self.task)].of(self.task, state)

    def reset(self, key: jax.Array, params: Any) -> tuple[tuple[Any, jax.Array], Any]:
        obs, state = self.task.reset(key, params)
        return (obs, self._shown(state)), state

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[tuple[Any, jax.Array], Any, jax.Array, jax.Array, jax.Array, Info]:
        obs, state, reward, terminated, truncated, info = self.task.step(key, state, action, params)
        return (obs, self._shown(state)), state, reward, terminated, truncated, info

    def observation_space(self, params: Any) -> Tuple:
        return Tuple((self.task.observation_space(params), SHOWN[type(self.task)].space(self.task)))

    def action_space(self, params: Any) -> Space:
        return self.task.action_space(params)

    def max_steps(self, params: Any) -> int | None:
        return self.task.max_steps(params)

    def render(self, state: Any, params: Any) -> np.ndarray:
        return self.task.render(state, params)
