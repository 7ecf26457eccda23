"""POPGym's Battleship: sink hidden ships, told only whether the last shot hit."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams
from engram.envs.popgym import drawing
from engram.envs.spaces import Discrete, MultiDiscrete, uniform_below

WATER, SHIP, MISS, HIT = 0, 1, 2, 3


@struct.dataclass
class BattleshipState:
    cells: jax.Array
    """`[size, size]` int32 of WATER, SHIP (both not shot at), MISS, HIT."""
    afloat: jax.Array
    """Ship cells not hit so far, int32."""
    t: jax.Array
    """Steps taken, int32."""


def place_ship(key: jax.Array, board: jax.Array, length: int) -> jax.Array:
    """Adds a ship of `length` >= 2 cells to `board` `[size, size]` bool, uniformly among the placements that fit.

    This is the distribution of popgym's sampler, which draws (start cell, axis, sign) uniformly from a fixed finite set
    until the segment lies on the board and over no ship. (1) Draws are independent and a rejected one changes nothing,
    so the accepted triple is uniform among the valid triples. (2) Validity depends on the segment alone, and each
    segment of at least two cells comes from exactly two triples: from either end, towards the other. So the accepted
    segment is uniform among the valid segments. (3) Ships are placed one after the other, each given the earlier ones,
    as here.
    """
    size = board.shape[0]
    positions = size - length + 1
    # free[axis, i, j]: the segment whose first cell is (line i, position j along the axis) covers no ship.
    lines = jnp.stack([board, board.T])
    free = ~jnp.any(jnp.stack([lines[:, :, k : k + positions] for k in range(length)]), axis=0)
    # Of all free segments the `chosen`-th in reading order: first its line, then its place there. XLA's cumulative sum
    # takes quadratic time, so two short ones are many times faster than one over all segments.
    free = free.reshape(2 * size, positions)
    seen = jnp.cumsum(jnp.sum(free, 1, dtype=jnp.int32))
    chosen = uniform_below(key, seen[-1])
    row = jnp.sum(seen <= chosen)
    left = jnp.max(jnp.where(seen <= chosen, seen, 0))  # free segments on the lines before
    start = jnp.sum(jnp.cumsum(free[row], dtype=jnp.int32) <= chosen - left)
    axis, line = row // size, row % size
    index = jnp.arange(size)
    ship = (index[:, None] == line) & (index >= start) & (index < start + length)
    return board | jnp.where(axis == 0, ship, ship.T)


@dataclass(frozen=True)
class Battleship(Environment):
    """Observation: did the last shot hit, Discrete(2), 0 at reset. Action: (row, column), MultiDiscrete([size, size]).

    Ships may touch, never overlap. Reward, with H ship cells: a hit +1 / H; a miss or a cell shot at before
    -1 / (size^2 - H). Terminates when every ship cell is hit, truncates after size^2 steps; both may be True at once,
    as in popgym. Source: popgym 1.0.7, `envs/battleship.py`.
    """

    size: int
    ship_sizes: tuple[int, ...] = (2, 3, 3, 4)

    @property
    def num_ship_cells(self) -> int:
        return sum(self.ship_sizes)

    def state_from(self, board: jax.Array) -> tuple[jax.Array, BattleshipState]:
        """Opens an episode with ships where `board`, `[size, size]` bool, says."""
        cells = jnp.where(board, SHIP, WATER).astype(jnp.int32)
        return jnp.int32(0), BattleshipState(cells=cells, afloat=jnp.int32(self.num_ship_cells), t=jnp.int32(0))

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, BattleshipState]:
        board = jnp.zeros((self.size, self.size), bool)
        for ship_key, length in zip(jax.random.split(key, len(self.ship_sizes)), self.ship_sizes, strict=True):
            board = place_ship(ship_key, board, length)
        return self.state_from(board)

    def step(
        self, key: jax.Array, state: BattleshipState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, BattleshipState, jax.Array, jax.Array, jax.Array, Info]:
        row, column = action[0], action[1]
        cell = state.cells[row, column]
        hit = cell == SHIP
        reward = jnp.where(hit, 1 / self.num_ship_cells, -1 / (self.size**2 - self.num_ship_cells)).astype(jnp.float32)

        t = state.t + 1
        afloat = state.afloat - hit
        # WATER becomes MISS, SHIP becomes HIT, cells shot at before stay.
        cells = state.cells.at[row, column].set(cell | 2)
        return hit.astype(jnp.int32), BattleshipState(cells, afloat, t), reward, afloat == 0, t >= self.size**2, {}

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(2)

    def action_space(self, params: NoParams) -> MultiDiscrete:
        return MultiDiscrete((self.size, self.size))

    def max_steps(self, params: NoParams) -> int:
        return self.size**2

    def render(self, state: Any, params: NoParams) -> np.ndarray:
        draw = drawing.canvas(300, 330, drawing.INK)
        drawing.caption(draw, f"Battleship: {int(state.afloat)} afloat", int(state.t), self.size**2)
        looks = {
            WATER: (drawing.WATER, ""),
            SHIP: (drawing.FADED, ""),
            MISS: (drawing.BACK, "·"),
            HIT: (drawing.RED, "x"),
        }
        fills = [[looks[int(cell)][0] for cell in row] for row in state.cells]
        labels = [[looks[int(cell)][1] for cell in row] for row in state.cells]
        drawing.grid(draw, (15, 40), 270, fills, labels)
        return drawing.picture(draw)
