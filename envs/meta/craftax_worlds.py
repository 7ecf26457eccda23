"""Craftax (Matthews et al. 2024, arXiv 2402.16801) as a family: all episodes of a trial are played in one world.

The task is a generated world, so that what was seen of it in one episode tells where things are in the next. What
creatures do is up to chance. Which seeds make worlds of which split, and how long a day is there, is data, in
`distributions/craftax.json`. The game is that of the package `craftax`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from engram.envs.base import Info
from engram.envs.extras import needs
from engram.envs.meta.ranges import draw_values
from engram.envs.meta.splits import drawn_from
from engram.envs.meta.trials import Family
from engram.envs.spaces import Box, Discrete
from engram.errors import BadRequest

GAMES = {"Craftax": "Craftax-Symbolic-v1", "CraftaxClassic": "Craftax-Classic-Symbolic-v1"}
"""The package's names of them."""


def raw(key: jax.Array) -> jax.Array:
    """The package keeps a key in its state: as numbers it can be saved and compared like the rest of it."""
    return jax.random.key_data(key)


@struct.dataclass
class World:
    opening: Any
    """The package's state in which every episode opens. To generate it costs as much as many steps."""
    day_length: jax.Array
    """Length of a day in steps, float32; nights are dark and bring out what attacks."""
    seed: jax.Array
    """int32."""


@dataclass(frozen=True)
class CraftaxWorlds(Family):
    """The game `game`, cut (truncated) after `limit` steps.

    Observation: the package's symbolic one, Box. Reward: 1 for an achievement, once an episode (in Craftax, more for
    harder ones), and 0.1 for a point of health. Terminates with the death of the player, and where Craftax is won.
    """

    game: str
    limit: int = 500

    def __post_init__(self):
        if self.limit < 1:
            raise BadRequest(f"{self.game}: limit must be at least 1, got {self.limit}")
        _ = self.env  # here and not when it is first asked for: a missing package is told at once

    @property
    def name(self) -> str:
        return self.game

    @cached_property
    def env(self) -> Any:
        package = needs("craftax.craftax_env", "craftax", f"meta/{self.game}")
        return package.make_craftax_env_from_name(GAMES[self.game], auto_reset=False)

    def parameters(self, day_length: jax.Array) -> Any:
        # The package does not tell the end of time from death, so that its own limit is put out of reach.
        return self.env.default_params.replace(max_timesteps=2**30, day_length=day_length)

    def draw(self, key: jax.Array, split: str) -> World:
        seed_key, day_key = jax.random.split(key)
        distribution = drawn_from("craftax", self.game, split)
        low, high = distribution["seeds"]
        seed = jax.random.randint(seed_key, (), low, high)
        day_length = draw_values(day_key, {"day_length": distribution["day_length"]})["day_length"]
        return self.world(seed, day_length)

    def world(self, seed: jax.Array, day_length: jax.Array) -> World:
        """The world that the package makes from `jax.random.key(seed)`."""
        _, opening = self.env.reset(raw(jax.random.key(seed)), self.parameters(day_length))
        # Python numbers here and there would be weakly typed, and would not carry through a loop.
        opening = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.asarray(x).dtype), opening)
        return World(opening, day_length, seed)

    def reset(self, key: jax.Array, params: World) -> tuple[jax.Array, Any]:
        return self.env.get_obs(params.opening).astype(jnp.float32), params.opening

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: World
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, Info]:
        step = self.env.step(raw(key), state, action, self.parameters(params.day_length))
        obs, after, reward, over, _ = step
        after = jax.tree.map(lambda x, old: jnp.asarray(x).astype(old.dtype), after, state)
        return obs.astype(jnp.float32), after, reward, over, after.timestep >= self.limit, {}

    def observation_space(self, params: Any) -> Box:
        return Box(0.0, 1.0, self.env.observation_space(self.env.default_params).shape)

    def action_space(self, params: Any) -> Discrete:
        return Discrete(self.env.num_actions)

    def max_steps(self, params: Any) -> int:
        return self.limit
