"""Classic control whose physics is the task: gymnax's environments with some of their parameters drawn.

A task is the parameters of the gymnax environment. `distributions/control.json` says which of them are drawn, and from
what ranges for each split; held-out ranges lie outside those of training. What follows from the drawn ones (the total
mass, a centre of mass) is set to fit them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Info
from envs.gymnax_adapter import GymnaxEnvironment
from envs.meta.ranges import draw_values
from envs.meta.splits import check_split, read
from envs.meta.trials import Family
from envs.spaces import Box, Space


def _cartpole(task: Any) -> dict[str, Any]:
    return {"total_mass": task.masscart + task.masspole, "polemass_length": task.masspole * task.length}


def _acrobot(task: Any) -> dict[str, Any]:
    return {"link_com_pos_1": 0.5 * task.link_length_1, "link_com_pos_2": 0.5 * task.link_length_2}


@dataclass(frozen=True)
class Body:
    """What is fixed about one of the environments."""

    gymnax: str
    """gymnax's name of it."""
    positions: tuple[int, ...]
    """Entries of the observation that are not velocities."""
    scale: tuple[float, ...]
    """What each entry of the observation is divided by to be about 1 at most."""
    derived: Callable[[Any], Mapping[str, Any]] = lambda task: {}
    """Parameters that follow from others."""


BODIES = {
    "CartPole": Body("CartPole-v1", (0, 2), (2.4, 3.0, 0.2, 3.0), _cartpole),
    "Acrobot": Body("Acrobot-v1", (0, 1, 2, 3), (1.0, 1.0, 1.0, 1.0, 4 * np.pi, 9 * np.pi), _acrobot),
    "Pendulum": Body("Pendulum-v1", (0, 1), (1.0, 1.0, 8.0)),
    "MountainCar": Body("MountainCar-v0", (0,), (1.2, 0.07)),
    "MountainCarContinuous": Body("MountainCarContinuous-v0", (0,), (1.2, 0.07)),
}


@dataclass(frozen=True)
class Control(Family):
    """The environment `body`, cut (truncated) after `limit` steps."""

    body: str
    limit: int = 200
    vary: bool = True
    """False: every task has gymnax's own parameters, and trials differ by what `Trials` changes alone."""
    velocities: bool = True
    """False leaves velocities out of the observation."""
    scaled: bool = False
    """Divide observations by fixed numbers that make them about 1 at most."""

    def __post_init__(self):
        if self.limit < 1:
            raise ValueError(f"{self.body}: limit must be at least 1, got {self.limit}")

    cheap_reset = True

    @property
    def name(self) -> str:
        return self.body

    @cached_property
    def env(self) -> GymnaxEnvironment:
        # First asked for inside a traced function, its parameters would be tracers otherwise.
        with jax.ensure_compile_time_eval():
            return GymnaxEnvironment(BODIES[self.body].gymnax)

    @property
    def default_params(self) -> Any:
        """gymnax's own parameters but for the limit, as arrays: integers int32, the others float32."""
        params = self.env.default_params.replace(max_steps_in_episode=self.limit)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if isinstance(x, int) else jnp.float32), params)

    def draw(self, key: jax.Array, split: str) -> Any:
        check_split(split)
        task = self.default_params
        if not self.vary:
            return task
        task = task.replace(**draw_values(key, read("control", self.body)[split]))
        return task.replace(**BODIES[self.body].derived(task))

    @property
    def _kept(self) -> np.ndarray:
        body = BODIES[self.body]
        return np.asarray(range(len(body.scale)) if self.velocities else body.positions)

    def _observe(self, obs: jax.Array) -> jax.Array:
        obs = obs[self._kept]
        return obs / np.asarray(BODIES[self.body].scale, np.float32)[self._kept] if self.scaled else obs

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        obs, state = self.env.reset(key, params)
        return self._observe(obs), state

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, Info]:
        obs, state, reward, terminated, truncated, _ = self.env.step(key, state, action, params)
        return self._observe(obs), state, reward, terminated, truncated, {}

    def observation_space(self, params: Any) -> Space:
        return Box(-np.inf, np.inf, (len(self._kept),))

    def action_space(self, params: Any) -> Space:
        return self.env.action_space(self.env.default_params)

    def max_steps(self, params: Any) -> int:
        return self.limit
