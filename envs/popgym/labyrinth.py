"""POPGym's two Labyrinth families: walk a random maze while seeing the nine cells around, explore all of it or escape.

A maze of `size` blocks is a grid of `(size + 1)^2` cells: rooms at odd coordinates, walls or passages between them.
`generate_maze` draws from the same distribution as mazelib's hunt-and-kill generator, which the package uses; start
and goal lie on opposite outer walls. The package's authors warn that these mazes are solvable without memory.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info
from engram.envs.popgym import drawing
from engram.envs.spaces import Discrete, MultiDiscrete

FREE, OBSTACLE, START, GOAL, HIDDEN = range(5)
NO_ACTION = 4
EPISODE_LENGTH = 1024
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""(row, column) offset of the actions left, right, up, down."""


def _select_true(mask: jax.Array, uniform: jax.Array) -> jax.Array:
    """The index of one True entry of `mask[n]`, each equally likely, given a uniform number in [0, 1)."""
    count = jnp.cumsum(mask, dtype=jnp.int32)
    return jnp.argmax(count > jnp.floor(uniform * count[-1]))


def generate_maze(key: jax.Array, side: int, max_trials: int) -> jax.Array:
    """A random hunt-and-kill maze of `side` x `side` rooms, int32[2 side + 1, 2 side + 1] of FREE and OBSTACLE.

    The algorithm of mazelib's `HuntAndKill` with its default random hunt: from a random room walk to random unvisited
    rooms, opening the passages, until stuck; then draw rooms, one a trial, and walk on from each that was visited; stop
    after `max_trials` trials. With the package's (2 side + 1)^2 a room hardly ever stays closed.

    Trials that draw an unvisited room or one without unvisited neighbours change nothing. So instead of playing them,
    a hunt draws their number from its geometric distribution and then one of the useful rooms uniformly, which is the
    same distribution. What is left is at most one step for each room, with all random numbers drawn beforehand.
    """
    rooms = side**2
    # A border of visited rooms spares every bounds check; rooms are indexed in the flattened bordered array.
    stride = side + 2
    border = np.pad(np.zeros((side, side), bool), 1, constant_values=True).reshape(-1)
    offsets = np.array([row * stride + column for row, column in MOVES])
    index = np.arange(stride**2)

    def open_passage(carry, uniforms):
        visited, room, trials = carry
        useful = visited & ~border & jnp.any(jnp.stack([jnp.roll(~visited, -offset) for offset in offsets]), axis=0)
        stuck = ~useful[room]
        failures = jnp.floor(jnp.log1p(-uniforms[0]) / jnp.log1p(-jnp.sum(useful) / rooms))
        trials = trials + jnp.where(stuck, 1.0 + failures, 0.0)
        room = jnp.where(stuck, _select_true(useful, uniforms[1]), room)
        neighbours = room + offsets
        chosen = neighbours[_select_true(~visited[neighbours], uniforms[2])]
        opened = trials <= max_trials
        visited = visited | ((index == chosen) & opened)
        next_room = jnp.where(opened, chosen, room)
        return (visited, next_room, trials), (room, next_room)

    start_key, walk_key = jax.random.split(key)
    row, column = jax.random.randint(start_key, (2,), 1, side + 1)
    room = row * stride + column
    carry = (jnp.asarray(border) | (index == room), room, jnp.float32(0.0))
    (visited, _, _), (rooms_from, rooms_to) = jax.lax.scan(
        open_passage, carry, jax.random.uniform(walk_key, (rooms - 1, 3))
    )

    maze = jnp.full((2 * side + 1, 2 * side + 1), OBSTACLE, jnp.int32)
    # Room (r, c), counted from 1, is cell (2r - 1, 2c - 1); a passage lies halfway between its rooms. Where no passage
    # was opened both ends are the same visited room, which is free anyway.
    maze = maze.at[rooms_from // stride + rooms_to // stride - 1, rooms_from % stride + rooms_to % stride - 1].set(FREE)
    closed = ~visited.reshape(stride, stride)[1:-1, 1:-1]
    return maze.at[1::2, 1::2].set(jnp.where(closed, OBSTACLE, FREE))


def draw_entrances(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Start and goal `(row, column)`, int32[2] each, at rooms' heights on opposite outer walls of a random side."""
    side_key, cells_key = jax.random.split(key)
    outer_wall = jax.random.randint(side_key, (), 0, 4)  # north, south, west, east
    start_along, goal_along = 2 * jax.random.randint(cells_key, (2,), 0, size // 2) + 1
    start_across = jnp.where(outer_wall % 2 == 0, 0, size)
    horizontal = outer_wall < 2
    start = jnp.stack([start_across, start_along])
    goal = jnp.stack([size - start_across, goal_along])
    return jnp.where(horizontal, start, start[::-1]), jnp.where(horizontal, goal, goal[::-1])


def local_view(grid: jax.Array, position: jax.Array) -> jax.Array:
    """The nine cells around `position`, int32[3, 3].

    Package oddity, kept: at the borders the view is not centred on the agent but moved to the top left and filled
    with OBSTACLE at its end, e.g. in column 0 the agent stands in the first column of the view and the last is filled.
    """
    last = grid.shape[0] - 1
    rows, columns = jnp.maximum(position - 1, 0)[:, None] + jnp.arange(3)
    row_end, column_end = jnp.minimum(position + 1, last)
    view = grid[jnp.minimum(rows, last)[:, None], jnp.minimum(columns, last)]
    return jnp.where((rows <= row_end)[:, None] & (columns <= column_end), view, OBSTACLE)


@struct.dataclass
class LabyrinthState:
    grid: jax.Array
    """`[size + 1, size + 1]` int32 of FREE, OBSTACLE, START and GOAL."""
    position: jax.Array
    """`[2]` int32: row and column of the agent."""
    visited: jax.Array
    """`[size + 1, size + 1]` bool: cells the agent has been to."""
    free_cells: jax.Array
    """Number of FREE cells in the grid (the start is not one of them), int32."""
    unvisited: jax.Array
    """Number of cells other than OBSTACLE not yet visited, int32."""
    t: jax.Array
    """Steps taken, int32."""


class Labyrinth(Environment):
    """What both families share: mazes, moves and observations.

    Observation int32[10]: `local_view` row by row, then the last action (4 at the start). Actions 0 left, 1 right,
    2 up, 3 down; walking into a wall leaves the agent in place. Truncated after `EPISODE_LENGTH - 1` steps (the
    package's limit is one less than it says).
    """

    size: int
    shows_goal: bool
    """Whether the goal is marked in the grid; unmarked it is a piece of the outer wall."""

    def state_from(self, maze: jax.Array, start: jax.Array, goal: jax.Array) -> tuple[jax.Array, LabyrinthState]:
        """The first observation and state of an episode.

        Args:
            maze: FREE and OBSTACLE, int32[size + 1, size + 1]; what it holds at `start` and `goal` is overwritten.
            start: `(row, column)`, int32[2].
            goal: `(row, column)`, int32[2].
        """
        start = jnp.asarray(start, jnp.int32)
        grid = jnp.asarray(maze, jnp.int32).at[tuple(start)].set(START)
        grid = grid.at[tuple(goal)].set(GOAL if self.shows_goal else OBSTACLE)
        state = LabyrinthState(
            grid=grid,
            position=start,
            visited=jnp.zeros(grid.shape, bool).at[tuple(start)].set(True),
            free_cells=jnp.sum(grid == FREE),
            unvisited=jnp.sum(grid != OBSTACLE) - 1,
            t=jnp.int32(0),
        )
        return self._observe(state, jnp.int32(NO_ACTION)), state

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, LabyrinthState]:
        del params
        maze_key, entrances_key = jax.random.split(key)
        maze = generate_maze(maze_key, self.size // 2, max_trials=(self.size + 1) ** 2)
        return self.state_from(maze, *draw_entrances(entrances_key, self.size))

    def _observe(self, state: LabyrinthState, action: jax.Array) -> jax.Array:
        return jnp.append(local_view(state.grid, state.position).reshape(9), action)

    def _move(self, state: LabyrinthState, action: jax.Array) -> tuple[LabyrinthState, jax.Array]:
        """The state after one step, and whether it opened a new cell, bool scalar."""
        target = jnp.clip(state.position + jnp.array(MOVES)[action], 0, self.size)
        position = jnp.where(state.grid[tuple(target)] == OBSTACLE, state.position, target)
        new_cell = ~state.visited[tuple(position)]
        state = replace(
            state,
            position=position,
            visited=state.visited.at[tuple(position)].set(True),
            unvisited=state.unvisited - new_cell,
            t=state.t + 1,
        )
        return state, new_cell

    def observation_space(self, params: Any) -> MultiDiscrete:
        return MultiDiscrete((HIDDEN + 1,) * 9 + (NO_ACTION + 1,))

    def action_space(self, params: Any) -> Discrete:
        return Discrete(len(MOVES))

    def max_steps(self, params: Any) -> int:
        return EPISODE_LENGTH - 1

    def render(self, state: LabyrinthState, params: Any) -> np.ndarray:
        colors = {FREE: drawing.PAPER, OBSTACLE: drawing.INK, START: drawing.BACK, GOAL: drawing.RED}
        fills = [
            [drawing.FADED if seen and cell == FREE else colors[int(cell)] for cell, seen in zip(*row, strict=True)]
            for row in zip(np.asarray(state.grid), np.asarray(state.visited), strict=True)
        ]
        draw = drawing.canvas(320, 360)
        drawing.caption(draw, "Labyrinth", int(state.t), self.max_steps(params))
        left, top, width = 10, 34, 300
        drawing.grid(draw, (left, top), width, fills)
        cell = width / (self.size + 1)
        row, column = (int(value) for value in state.position)
        draw.circle((left + (column + 0.5) * cell - 1, top + (row + 0.5) * cell - 1), 0.36 * cell, fill=drawing.GOLD)
        drawing.text(draw, (160, 347), f"{int(state.unvisited)} cells not visited yet")
        return drawing.picture(draw)


@dataclass(frozen=True)
class LabyrinthExplore(Labyrinth):
    """Visit every cell: a new cell pays 1 / number of FREE cells, any other step costs 1 / `EPISODE_LENGTH`.

    Terminates when every free cell is visited. The goal's cell stays a wall.
    Source: popgym 1.0.7, `envs/labyrinth_explore.py`.
    """

    size: int

    shows_goal = False

    def step(
        self, key: jax.Array, state: LabyrinthState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, LabyrinthState, jax.Array, jax.Array, jax.Array, Info]:
        del key, params
        state, new_cell = self._move(state, action)
        reward = jnp.where(new_cell, 1.0 / state.free_cells, -1.0 / EPISODE_LENGTH)
        truncated = state.t >= EPISODE_LENGTH - 1
        return self._observe(state, action), state, reward, state.unvisited == 0, truncated, {}


@dataclass(frozen=True)
class LabyrinthEscape(Labyrinth):
    """Reach the goal in the outer wall: it pays 1 and terminates; every step costs 1 / `EPISODE_LENGTH`.

    Source: popgym 1.0.7, `envs/labyrinth_escape.py`.
    """

    size: int

    shows_goal = True

    def step(
        self, key: jax.Array, state: LabyrinthState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, LabyrinthState, jax.Array, jax.Array, jax.Array, Info]:
        del key, params
        state, _ = self._move(state, action)
        escaped = state.grid[tuple(state.position)] == GOAL
        reward = escaped - 1.0 / EPISODE_LENGTH
        truncated = state.t >= EPISODE_LENGTH - 1
        return self._observe(state, action), state, reward, escaped, truncated, {}
