"""brax's bodies with a physics of their own in every trial: mass, friction, gravity and actuator gain are multiplied.

The multipliers are the task (`distributions/brax.json`). They reach the physics as brax's domain randomisation does, by
an environment whose `sys` is replaced, but inside the traced step, so that every environment of a batch has its own.
"""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Info
from engram.envs.meta.ranges import draw_values
from engram.envs.meta.splits import drawn_from
from engram.envs.meta.trials import Family
from engram.envs.spaces import Box
from engram.errors import BadRequest

if TYPE_CHECKING:  # brax takes seconds to import: only who uses these bodies waits for it
    from engram.envs.adapters.brax import BraxEnvironment, BraxState

BODIES = {
    "ant": "spring",
    "halfcheetah": "spring",
    "hopper": "spring",
    "walker2d": "spring",
    # Its links are light for springs: under multipliers of training, two of sixteen broke down within 32 steps.
    "reacher": "positional",
    "inverted_pendulum": "spring",
    "inverted_double_pendulum": "spring",
}
"""Bodies, and the physics backend of each."""
BACKENDS = ("spring", "positional", "generalized")
"""mjx is left out: it keeps its own copies of masses and of the quantities computed from them."""


@struct.dataclass
class Multipliers:
    """Factors of the quantities in brax's model, float32 scalars."""

    mass: jax.Array
    """Factor of the mass of every link, and so of its inertia."""
    friction: jax.Array
    gravity: jax.Array
    gain: jax.Array
    """Factor of the gain of every actuator."""


def multiplied(sys: Any, task: Multipliers) -> Any:
    """The brax `System` `sys` with another physics."""
    return sys.tree_replace(
        {
            "link.inertia.mass": sys.link.inertia.mass * task.mass,
            "link.inertia.i": sys.link.inertia.i * task.mass,
            # Inverse masses as the generalized backend's soft constraints see them.
            "link.invweight": sys.link.invweight / task.mass,
            "dof.invweight": sys.dof.invweight / task.mass,
            "geom_friction": sys.geom_friction * task.friction,
            "gravity": sys.gravity * task.gravity,
            "actuator.gain": sys.actuator.gain * task.gain,
        }
    )


@dataclass(frozen=True)
class BraxControl(Family):
    """The brax environment `body` under a physics backend, cut (truncated) after `limit` steps.

    Actions are in [-1, 1]. Returns under different backends cannot be compared.
    """

    body: str
    backend: str = "spring"
    limit: int = 200

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise BadRequest(f"brax-{self.body}: backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.limit < 1:
            raise BadRequest(f"brax-{self.body}: limit must be at least 1, got {self.limit}")

    @property
    def name(self) -> str:
        return f"brax-{self.body}?backend={self.backend}"

    @cached_property
    def env(self) -> "BraxEnvironment":
        from engram.envs.adapters.brax import BraxEnvironment

        return BraxEnvironment(self.body, self.backend, self.limit)

    @property
    def default_params(self) -> Multipliers:
        return Multipliers(*(jnp.ones(()) for _ in range(4)))

    def draw(self, key: jax.Array, split: str) -> Multipliers:
        return Multipliers(**draw_values(key, drawn_from("brax", "multipliers", split)))

    def _under(self, task: Multipliers) -> "BraxEnvironment":
        env = copy.copy(self.env)
        # A cached property is an attribute of its name: the copy finds this in place of the unmodified one.
        bare = copy.copy(self.env.env)
        bare.sys = multiplied(bare.sys, task)
        env.__dict__["env"] = bare
        return env

    def reset(self, key: jax.Array, params: Multipliers) -> "tuple[jax.Array, BraxState]":
        return self._under(params).reset(key, None)

    def step(
        self, key: jax.Array, state: "BraxState", action: jax.Array, params: Multipliers
    ) -> "tuple[jax.Array, BraxState, jax.Array, jax.Array, jax.Array, Info]":
        return self._under(params).step(key, state, action, None)

    def observation_space(self, params: Any) -> Box:
        return self.env.observation_space(None)

    def action_space(self, params: Any) -> Box:
        return self.env.action_space(None)

    def max_steps(self, params: Any) -> int:
        return self.limit

    def render(self, state: "BraxState", params: Any) -> np.ndarray:
        return self.env.render(state, None)
