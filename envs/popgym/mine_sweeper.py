"""POPGym's MineSweeper: clear a board of which only the last answer is seen."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.popgym.deck import shuffle
from engram.envs.spaces import Discrete, MultiDiscrete

CLEAR, MINE, VIEWED = 0, 1, 2


@struct.dataclass
class MineSweeperState:
    cells: jax.Array
    """`[size + 2, size + 2]` int32 of CLEAR, MINE, VIEWED; the border is CLEAR and belongs to no cell."""
    unopened: jax.Array
    """Cells without a mine not viewed so far, int32."""
    last: jax.Array
    """`[2]` int32: the cell clicked last, (-1, -1) at the start. For pictures only."""
    t: jax.Array
    """Steps taken, int32."""


@dataclass(frozen=True)
class MineSweeper(Environment):
    """Observation: mines in the 3 x 3 cells around the click and itself, 0 at reset, Discrete(min(mines + 1, 10)).

    Action: (row, column), MultiDiscrete([size, size]). With M = size^2 - mines, reward: a new clear cell +1 / M, one
    viewed before -0.5 / (M - 2), a mine -0.5 - 1 / M. Terminates on a mine or when all M cells are viewed (mines stay
    closed); truncates after M steps if not terminated. Source: popgym 1.0.7, `envs/minesweeper.py`.
    """

    size: int
    num_mines: int

    @property
    def num_clear(self) -> int:
        return self.size**2 - self.num_mines

    def state_from(self, mines: jax.Array) -> tuple[jax.Array, MineSweeperState]:
        """Opens an episode with mines where `mines`, `[size, size]` bool with `num_mines` True, says."""
        cells = jnp.pad(jnp.where(mines, MINE, CLEAR).astype(jnp.int32), 1, constant_values=CLEAR)
        state = MineSweeperState(
            cells=cells, unopened=jnp.int32(self.num_clear), last=jnp.full(2, -1, jnp.int32), t=jnp.int32(0)
        )
        return jnp.int32(0), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, MineSweeperState]:
        # The cells that a uniform permutation sends below `num_mines` are a uniform subset of that size.
        mines = shuffle(key, self.size**2) < self.num_mines
        return self.state_from(mines.reshape(self.size, self.size))

    def step(
        self, key: jax.Array, state: MineSweeperState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, MineSweeperState, jax.Array, jax.Array, jax.Array, Info]:
        m = self.num_clear
        action = jnp.asarray(action, jnp.int32)
        around = jax.lax.dynamic_slice(state.cells, (action[0], action[1]), (3, 3))
        clicked = around[1, 1]
        obs = jnp.sum(around == MINE, dtype=jnp.int32)
        opened = clicked == CLEAR
        reward = jnp.array([1 / m, -0.5 - 1 / m, -0.5 / (m - 2)], jnp.float32)[clicked]

        t = state.t + 1
        unopened = state.unopened - opened
        cells = state.cells.at[action[0] + 1, action[1] + 1].set(jnp.where(opened, VIEWED, clicked))
        terminated = (clicked == MINE) | (unopened == 0)
        truncated = (t == m) & ~terminated
        return obs, MineSweeperState(cells, unopened, action, t), reward, terminated, truncated, {}

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(min(self.num_mines + 1, 10))

    def action_space(self, params: NoParams) -> MultiDiscrete:
        return MultiDiscrete((self.size, self.size))

    def max_steps(self, params: NoParams) -> int:
        return self.num_clear

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas(300, 330)
        drawing.caption(draw, "Mine sweeper", int(state.t), self.num_clear)
        cells = np.asarray(state.cells)
        size, mines = self.size, cells == MINE
        fills = [[drawing.FADED] * size for _ in range(size)]
        labels = [[""] * size for _ in range(size)]
        for i in range(size):
            for j in range(size):
                clicked = (i, j) == tuple(state.last)
                if mines[i + 1, j + 1]:
                    labels[i][j] = "x"
                    fills[i][j] = drawing.RED if clicked else drawing.FADED
                elif cells[i + 1, j + 1] == VIEWED:
                    labels[i][j] = str(mines[i : i + 3, j : j + 3].sum())
                    fills[i][j] = drawing.GOLD if clicked else drawing.PAPER
        drawing.grid(draw, (15, 40), 270, fills, labels)
        return drawing.picture(draw)
