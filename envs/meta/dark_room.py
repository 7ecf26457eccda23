"""Dark rooms: the agent sees where it is and not where the goal is, which it finds by trying and then remembers.

The rooms of "In-context Reinforcement Learning with Algorithm Distillation" (Laskin et al. 2022, arXiv 2210.14215): a
square without walls inside, a start in the middle, actions stay, up, right, down, left. Which cells may be goals in
which split is data, in `distributions/goals.json`; what is best is known, as walking takes as many steps as the
Manhattan distance.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Info
from engram.envs.meta.splits import check_split, read
from engram.envs.meta.trials import Family
from engram.envs.spaces import Box, Discrete, uniform_below
from engram.errors import BadRequest

MOVES = np.array([[0, 0], [-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)
"""Stay, up, right, down, left as (row, column)."""


def goals(family: str, size: int, split: str) -> np.ndarray:
    """`[n, 2]`: the cells (row, column) that are goals in a split. Raises BadRequest for sizes without data."""
    check_split(split)
    sizes = read("goals", family)
    if str(size) not in sizes:
        raise BadRequest(f"size must be one of {', '.join(sizes)}, got {size}")
    return np.array(sizes[str(size)][split], np.int32)


def manhattan(a: jax.Array, b: jax.Array) -> jax.Array:
    """Fewest steps between cells `a` and `b`, `[..., 2]`."""
    return jnp.sum(jnp.abs(a - b), axis=-1)


@struct.dataclass
class GoalTask:
    goal: jax.Array
    """`[2]`: row and column."""


class SearchState(struct.PyTreeNode):
    position: jax.Array
    """`[2]`: row and column."""
    t: jax.Array
    """Steps of the inner episode, int32."""
    found: jax.Array
    """The step of the inner episode that first reached the goal, int32; the horizon while none did."""


def begin_search(start: np.ndarray, horizon: int) -> SearchState:
    return SearchState(jnp.asarray(start), jnp.int32(0), jnp.int32(horizon))


def go_on(state: SearchState, position: jax.Array, here: jax.Array, horizon: int) -> tuple[SearchState, Info]:
    """After a step to `position`, which reached the goal if `here` -> the state, and the `info` of search.

    `success`: whether the goal was reached in this inner episode; `steps_to_goal` (int32): after how many steps, the
    horizon where it was not.
    """
    t = state.t + 1
    found = jnp.where(here, jnp.minimum(state.found, t), state.found)
    # The horizon stands for "not found", so the last step asks whether the agent is there.
    return SearchState(position, t, found), {"success": here | (found < horizon), "steps_to_goal": found}


@dataclass(frozen=True)
class Room(Family):
    """What rooms share. Action: Discrete(5).

    Observation: the cell, Discrete(size * size), row by row; with `coordinates`, as in the paper, its row and column,
    Box of two numbers in [-1, 1]. What was learnt of one cell then tells something of its neighbours.
    """

    size: int = 9
    horizon: int = 20
    coordinates: bool = False

    cheap_reset = True

    def __post_init__(self):
        goals("DarkRoom", self.size, "train")
        if self.horizon < 1:
            raise BadRequest(f"horizon must be at least 1, got {self.horizon}")

    @property
    def start(self) -> np.ndarray:
        return np.full(2, self.size // 2, np.int32)

    def shown(self, position: jax.Array) -> jax.Array:
        """The observation at a cell."""
        if self.coordinates:
            return 2.0 * position / (self.size - 1) - 1.0
        return position[0] * self.size + position[1]

    def walk(self, position: jax.Array, action: jax.Array) -> jax.Array:
        """A step that would leave the room stays where it is."""
        return jnp.clip(position + jnp.asarray(MOVES)[action], 0, self.size - 1)

    def observation_space(self, params: Any) -> Box | Discrete:
        return Box(-1.0, 1.0, (2,)) if self.coordinates else Discrete(self.size**2)

    def action_space(self, params: Any) -> Discrete:
        return Discrete(len(MOVES))

    def max_steps(self, params: Any) -> int:
        return self.horizon

    def picture(self, state: Any, marks: dict[tuple[int, int, int], Any], scale: int = 24) -> np.ndarray:
        """The room with cells in the colours of `marks`, and the agent in white."""
        image = np.full((self.size, self.size, 3), 40, np.uint8)
        for colour, at in marks.items():
            image[tuple(np.asarray(at))] = colour
        image[tuple(np.asarray(state.position))] = 255
        return image.repeat(scale, 0).repeat(scale, 1)


@dataclass(frozen=True)
class DarkRoom(Room):
    """Reward 1 for every step that ends on the goal. Terminates after `horizon` steps, or at the goal if `until_goal`.

    `info`: that of `go_on`.
    """

    until_goal: bool = False

    def draw(self, key: jax.Array, split: str) -> GoalTask:
        cells = goals("DarkRoom", self.size, split)
        return GoalTask(jnp.asarray(cells)[uniform_below(key, len(cells))])

    def steps_to_goal(self, task: GoalTask) -> jax.Array:
        """The fewest steps from the start to the goal."""
        return manhattan(jnp.asarray(self.start), task.goal)

    def optimal_return(self, task: GoalTask) -> jax.Array:
        """1 for the step that arrives and, unless the episode ends there, for each that is left to stay."""
        spare = self.horizon - self.steps_to_goal(task) + 1
        return jnp.clip(spare, 0, 1 if self.until_goal else self.horizon).astype(jnp.float32)

    def reset(self, key: jax.Array, params: GoalTask) -> tuple[jax.Array, SearchState]:
        state = begin_search(self.start, self.horizon)
        return self.shown(state.position), state

    def step(
        self, key: jax.Array, state: SearchState, action: jax.Array, params: GoalTask
    ) -> tuple[jax.Array, SearchState, jax.Array, jax.Array, jax.Array, Info]:
        position = self.walk(state.position, action)
        here = jnp.all(position == params.goal)
        state, info = go_on(state, position, here, self.horizon)
        over = (state.t >= self.horizon) | (here & self.until_goal)
        return self.shown(position), state, here.astype(jnp.float32), over, jnp.bool_(False), info

    def render(self, state: SearchState, params: GoalTask) -> np.ndarray:
        return self.picture(state, {(60, 200, 90): params.goal})


@struct.dataclass
class KeyDoorTask:
    key: jax.Array
    """`[2]`: row and column."""
    door: jax.Array
    """`[2]`: another cell."""


class KeyDoorState(struct.PyTreeNode):
    position: jax.Array
    t: jax.Array
    has_key: jax.Array


@dataclass(frozen=True)
class DarkKeyToDoor(Room):
    """Reward 1 when the key is first reached, and 1 at the door with the key, which ends the inner episode.

    Without the key the door is a cell like others, and having the key is not seen. Terminates also after `horizon`
    steps. `info`: `success`, the door was opened.
    """

    horizon: int = 50

    def draw(self, key: jax.Array, split: str) -> KeyDoorTask:
        cells = goals("DarkRoom", self.size, split)
        first_key, second_key = jax.random.split(key)
        first = uniform_below(first_key, len(cells))
        second = (first + 1 + uniform_below(second_key, len(cells) - 1)) % len(cells)
        return KeyDoorTask(jnp.asarray(cells)[first], jnp.asarray(cells)[second])

    def steps_to_goal(self, task: KeyDoorTask) -> jax.Array:
        """The fewest steps from the start over the key to the door."""
        return manhattan(jnp.asarray(self.start), task.key) + manhattan(task.key, task.door)

    def optimal_return(self, task: KeyDoorTask) -> jax.Array:
        to_key = manhattan(jnp.asarray(self.start), task.key)
        return (to_key <= self.horizon).astype(jnp.float32) + (self.steps_to_goal(task) <= self.horizon)

    def reset(self, key: jax.Array, params: KeyDoorTask) -> tuple[jax.Array, KeyDoorState]:
        position = jnp.asarray(self.start)
        return self.shown(position), KeyDoorState(position, jnp.int32(0), jnp.bool_(False))

    def step(
        self, key: jax.Array, state: KeyDoorState, action: jax.Array, params: KeyDoorTask
    ) -> tuple[jax.Array, KeyDoorState, jax.Array, jax.Array, jax.Array, Info]:
        position, t = self.walk(state.position, action), state.t + 1
        picked = ~state.has_key & jnp.all(position == params.key)
        opened = state.has_key & jnp.all(position == params.door)
        reward = (picked | opened).astype(jnp.float32)
        state = KeyDoorState(position, t, state.has_key | picked)
        return self.shown(position), state, reward, opened | (t >= self.horizon), jnp.bool_(False), {"success": opened}

    def render(self, state: KeyDoorState, params: KeyDoorTask) -> np.ndarray:
        return self.picture(state, {(200, 160, 40): params.key, (60, 200, 90): params.door})
