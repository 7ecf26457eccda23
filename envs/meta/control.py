"""Classic control whose physics is the task: gymnax's environments with some of their parameters drawn.

A task is a vector of these parameters. `distributions/control.json` says which ones, and from what ranges they come for
each split; held-out ranges lie outside those of training. What follows from them (the total mass, a centre of mass) is
set to fit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Info
from engram.envs.meta.ranges import draw_values
from engram.envs.meta.splits import check_split, drawn_from, read
from engram.envs.meta.trials import Family
from engram.envs.spaces import Box, Space
from engram.errors import BadRequest

if TYPE_CHECKING:  # gymnax takes seconds to import: only who uses these environments waits for it
    from engram.envs.adapters.gymnax import GymnaxEnvironment


def _cartpole(task: Any) -> dict[str, Any]:
    return {"total_mass": task.masscart + task.masspole, "polemass_length": task.masspole * task.length}


def _acrobot(task: Any) -> dict[str, Any]:
    return {"link_com_pos_1": 0.5 * task.link_length_1, "link_com_pos_2": 0.5 * task.link_length_2}


@dataclass(frozen=True)
class Body:
    """What is fixed about one of the environments."""

    gymnax: str
    """Name of the environment in gymnax."""
    positions: tuple[int, ...]
    """Entries of the observation that are not velocities."""
    scale: tuple[float, ...]
    """Divisor of each entry of the observation, which makes it about 1 at most."""
    derived: Callable[[Any], Mapping[str, Any]] = lambda task: {}
    """Function from a task to the parameters that follow from others."""


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
    """Whether tasks vary in their parameters; if not, all have gymnax's own, and trials differ only by what `Trials`
    changes."""
    velocities: bool = True
    """Whether the observation holds velocities."""
    scaled: bool = False
    """Whether observations are divided by fixed numbers that make them about 1 at most."""

    def __post_init__(self):
        if self.limit < 1:
            raise BadRequest(f"{self.body}: limit must be at least 1, got {self.limit}")

    @property
    def name(self) -> str:
        return self.body

    @cached_property
    def env(self) -> "GymnaxEnvironment":
        # First asked for inside a traced function, its parameters, and what gymnax makes when it is imported, would be
        # tracers otherwise.
        with jax.ensure_compile_time_eval():
            from engram.envs.adapters.gymnax import GymnaxEnvironment

            return GymnaxEnvironment(BODIES[self.body].gymnax)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The names of the drawn parameters, in the order of a task's entries."""
        return tuple(read("control", self.body)["train"])

    @property
    def default_params(self) -> jax.Array:
        """gymnax's own values of the drawn parameters, `[len(drawn)]`."""
        return jnp.asarray([getattr(self.env.default_params, name) for name in self.drawn], jnp.float32)

    def draw(self, key: jax.Array, split: str) -> jax.Array:
        check_split(split)
        if not self.vary:
            return self.default_params
        values = draw_values(key, drawn_from("control", self.body, split))
        return jnp.stack([values[name] for name in self.drawn])

    def physics(self, task: jax.Array) -> Any:
        """gymnax's parameters of a task."""
        params = self.env.default_params.replace(max_steps_in_episode=self.limit)
        if not self.vary:
            return params
        params = params.replace(**{name: task[i] for i, name in enumerate(self.drawn)})
        return params.replace(**BODIES[self.body].derived(params))

    @property
    def _kept(self) -> np.ndarray:
        body = BODIES[self.body]
        return np.asarray(range(len(body.scale)) if self.velocities else body.positions)

    def _observe(self, obs: jax.Array) -> jax.Array:
        obs = obs[self._kept]
        return obs / np.asarray(BODIES[self.body].scale, np.float32)[self._kept] if self.scaled else obs

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        obs, state = self.env.reset(key, self.physics(params))
        return self._observe(obs), state

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, Info]:
        # Only Acrobot uses the key, for a torque noise that is zero: a constant saves hashing at every step.
        step = self.env.step(jax.random.key(0), state, action, self.physics(params))
        obs, state, reward, terminated, truncated, _ = step
        return self._observe(obs), state, reward, terminated, truncated, {}

    def observation_space(self, params: Any) -> Space:
        return Box(-np.inf, np.inf, (len(self._kept),))

    def action_space(self, params: Any) -> Space:
        return self.env.action_space(self.env.default_params)

    def max_steps(self, params: Any) -> int:
        return self.limit
