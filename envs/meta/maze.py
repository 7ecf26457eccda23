"""gymnax's MetaMaze (after Miconi et al. 2019) as a family of tasks: a maze of pillars and a goal that cannot be seen.

The agent sees the walls of the nine cells around it. Finding the goal pays and moves the agent to a random free cell,
so that it must find the goal again from elsewhere: what there is to learn in a trial is where the goal is. The previous
action and reward and the time, which gymnax appends to the observation, are left to `Trials`; and gymnax ends an
episode when the agent by chance lands on the goal again, which is not done here: only the horizon ends one. Which cells
may be goals in which split is data, in `distributions/goals.json`.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Info
from engram.envs.meta.dark_room import GoalTask, SearchState, begin_search, go_on, goals
from engram.envs.meta.trials import Family
from engram.envs.spaces import Box, Discrete, uniform_below
from engram.errors import BadRequest

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)
"""Up, right, down, left as (row, column)."""
GOAL_REWARD = 10.0
"""That of gymnax."""


@dataclass(frozen=True)
class MetaMaze(Family):
    """Observation: walls (1) around the agent, Box(9). Action: Discrete(4). Terminates after `horizon` steps.

    Cells are counted with the outer wall. `info`: that of `engram.envs.meta.dark_room.go_on`.
    """

    size: int = 9
    horizon: int = 200

    cheap_reset = True

    def __post_init__(self):
        goals("MetaMaze", self.size, "train")
        if self.horizon < 1:
            raise BadRequest(f"horizon must be at least 1, got {self.horizon}")

    @cached_property
    def free(self) -> np.ndarray:
        """`[size + 2, size + 2]` bool: where one can walk."""
        # First asked for inside a traced function, what gymnax makes when it is imported would be tracers otherwise.
        with jax.ensure_compile_time_eval():
            from gymnax.environments.misc.meta_maze import generate_maze_layout  # takes seconds to import

            return np.asarray(generate_maze_layout(self.size, 3))

    @property
    def start(self) -> np.ndarray:
        return np.full(2, (self.size + 1) // 2, np.int32)

    def draw(self, key: jax.Array, split: str) -> GoalTask:
        cells = goals("MetaMaze", self.size, split)
        return GoalTask(jnp.asarray(cells)[uniform_below(key, len(cells))])

    def observe(self, position: jax.Array) -> jax.Array:
        walls = jnp.asarray(~self.free, jnp.float32)
        return jax.lax.dynamic_slice(walls, (position[0] - 1, position[1] - 1), (3, 3)).reshape(-1)

    def reset(self, key: jax.Array, params: GoalTask) -> tuple[jax.Array, SearchState]:
        state = begin_search(self.start, self.horizon)
        return self.observe(state.position), state

    def step(
        self, key: jax.Array, state: SearchState, action: jax.Array, params: GoalTask
    ) -> tuple[jax.Array, SearchState, jax.Array, jax.Array, jax.Array, Info]:
        ahead = state.position + jnp.asarray(MOVES)[action]
        position = jnp.where(jnp.asarray(self.free)[ahead[0], ahead[1]], ahead, state.position)
        here = jnp.all(position == params.goal)
        cells = np.argwhere(self.free).astype(np.int32)
        position = jnp.where(here, jnp.asarray(cells)[uniform_below(key, len(cells))], position)
        state, info = go_on(state, position, here, self.horizon)
        return self.observe(position), state, GOAL_REWARD * here, state.t >= self.horizon, jnp.bool_(False), info

    def observation_space(self, params: GoalTask) -> Box:
        return Box(0.0, 1.0, (9,))

    def action_space(self, params: GoalTask) -> Discrete:
        return Discrete(len(MOVES))

    def max_steps(self, params: GoalTask) -> int:
        return self.horizon

    def render(self, state: SearchState, params: GoalTask) -> np.ndarray:
        image = np.where(self.free[..., None], np.uint8(40), np.uint8(110)).repeat(3, -1)
        image[tuple(np.asarray(params.goal))] = (60, 200, 90)
        image[tuple(np.asarray(state.position))] = 255
        return image.repeat(24, 0).repeat(24, 1)
