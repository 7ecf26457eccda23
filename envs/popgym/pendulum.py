"""POPGym's two Pendulum families: swing a pendulum up while seeing its angle but not its speed.

The physics and cost are gymnasium's `PendulumEnv` in float32, the cost shifted and scaled so that an episode's return
lies in about [-1, 1]. Episodes never terminate; they are truncated at their length.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info
from engram.envs.popgym import drawing
from engram.envs.spaces import Box

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
HALF_WORST_COST = 16.2736044 / 2
"""Half of the largest cost of a step, pi^2 + 0.1 MAX_SPEED^2 + 0.001 MAX_TORQUE^2, to the package's digits."""

Scalar = jax.Array | np.float32


@struct.dataclass
class PendulumParams:
    """Physical constants, float32 scalars in SI units; all may vary between environments of a batch."""

    gravity: Scalar = np.float32(10.0)
    mass: Scalar = np.float32(1.0)
    length: Scalar = np.float32(1.0)
    dt: Scalar = np.float32(0.05)


@struct.dataclass
class PendulumState:
    physics: jax.Array
    """`[2]` float32: `(theta, theta_dot)` in radians and seconds; theta is 0 when upright and not wrapped."""
    t: jax.Array
    """Steps taken, int32."""


def pendulum_dynamics(physics: jax.Array, torque: jax.Array, params: PendulumParams) -> tuple[jax.Array, jax.Array]:
    """One semi-implicit Euler step, and gymnasium's cost of the state it leaves.

    Args:
        physics: `(theta, theta_dot)`, float32[2].
        torque: already within the limits, float32 scalar.
        params: the physical constants.

    Returns:
        The next `(theta, theta_dot)` and the cost, a float32 scalar in [0, 16.27].

    Source: gymnasium's `PendulumEnv.step`.
    """
    theta, theta_dot = physics
    wrapped = (theta + math.pi) % (2 * math.pi) - math.pi
    cost = wrapped**2 + 0.1 * theta_dot**2 + 0.001 * torque**2
    theta_acc = 1.5 * params.gravity / params.length * jnp.sin(theta) + 3.0 / (params.mass * params.length**2) * torque
    theta_dot = jnp.clip(theta_dot + theta_acc * params.dt, -MAX_SPEED, MAX_SPEED)
    return jnp.stack([theta + theta_dot * params.dt, theta_dot]), cost


@dataclass(frozen=True)
class PositionOnlyPendulum(Environment):
    """Observation `(cos theta, sin theta)`, float32[2]; action the torque, float32[1], clipped to +-2.

    Source: popgym 1.0.7, `envs/position_only_pendulum.py`.
    """

    episode_length: int

    cheap_reset = True

    @property
    def default_params(self) -> PendulumParams:
        return PendulumParams()

    def draw_noise(self, key: jax.Array) -> jax.Array:
        """The noise of one observation, float32[2]: zero where the family has none."""
        del key
        return jnp.zeros(2)

    def observe(self, physics: jax.Array, noise: jax.Array) -> jax.Array:
        """What is shown of the state, float32[2]."""
        del noise
        return jnp.stack([jnp.cos(physics[0]), jnp.sin(physics[0])])

    def state_from(self, physics: jax.Array, noise: jax.Array) -> tuple[jax.Array, PendulumState]:
        """The first observation and state of an episode.

        Args:
            physics: `(theta, theta_dot)`, float32[2].
            noise: added to the observation in the noisy family, ignored in the other; float32[2].
        """
        physics = jnp.asarray(physics, jnp.float32)
        return self.observe(physics, noise), PendulumState(physics=physics, t=jnp.int32(0))

    def reset(self, key: jax.Array, params: PendulumParams) -> tuple[jax.Array, PendulumState]:
        del params
        physics_key, noise_key = jax.random.split(key)
        high = jnp.array([math.pi, 1.0])
        physics = jax.random.uniform(physics_key, (2,), minval=-high, maxval=high)
        return self.state_from(physics, self.draw_noise(noise_key))

    def step_with_noise(
        self, noise: jax.Array, state: PendulumState, action: jax.Array, params: PendulumParams
    ) -> tuple[jax.Array, PendulumState, jax.Array, jax.Array, jax.Array, Info]:
        """`step` with given observation noise, float32[2], in place of the key."""
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
        physics, cost = pendulum_dynamics(state.physics, torque, params)
        state = PendulumState(physics=physics, t=state.t + 1)
        reward = (HALF_WORST_COST - cost) / HALF_WORST_COST / self.episode_length
        truncated = state.t >= self.episode_length
        return self.observe(physics, noise), state, reward, jnp.bool_(False), truncated, {}

    def step(
        self, key: jax.Array, state: PendulumState, action: jax.Array, params: PendulumParams
    ) -> tuple[jax.Array, PendulumState, jax.Array, jax.Array, jax.Array, Info]:
        return self.step_with_noise(self.draw_noise(key), state, action, params)

    def observation_space(self, params: Any) -> Box:
        return Box(low=-1.0, high=1.0, shape=(2,))

    def action_space(self, params: Any) -> Box:
        return Box(low=-MAX_TORQUE, high=MAX_TORQUE, shape=(1,))

    def max_steps(self, params: Any) -> int:
        return self.episode_length

    def render(self, state: PendulumState, params: PendulumParams) -> np.ndarray:
        width, height = 320, 280
        theta, theta_dot = (float(value) for value in state.physics)
        draw = drawing.canvas(width, height)
        drawing.caption(draw, "Pendulum", int(state.t), self.episode_length)
        pivot, rod = (width / 2, 140.0), 90.0 * float(params.length)
        tip = (pivot[0] - rod * math.sin(theta), pivot[1] - rod * math.cos(theta))
        draw.line((pivot[0], pivot[1] - rod - 14, pivot[0], pivot[1] - rod - 4), fill=drawing.FADED, width=3)
        draw.line((*pivot, *tip), fill=drawing.GOLD, width=11)
        draw.circle(tip, 13, fill=drawing.PAPER)
        draw.circle(pivot, 6, fill=drawing.INK)
        wrapped = math.degrees(math.remainder(theta, 2 * math.pi))
        drawing.text(draw, (width / 2, 262), f"angle {wrapped:+.0f} deg    speed {theta_dot:+.1f} rad/s")
        return drawing.picture(draw)


@dataclass(frozen=True)
class NoisyPositionOnlyPendulum(PositionOnlyPendulum):
    """Observation `(cos theta, sin theta)` plus N(0, `noise_sigma`) on both, clipped to [-1, 1], also at reset.

    Source: popgym 1.0.7, `envs/noisy_position_only_pendulum.py`.
    """

    noise_sigma: float

    def draw_noise(self, key: jax.Array) -> jax.Array:
        return self.noise_sigma * jax.random.normal(key, (2,))

    def observe(self, physics: jax.Array, noise: jax.Array) -> jax.Array:
        return jnp.clip(super().observe(physics, noise) + noise, -1.0, 1.0)
