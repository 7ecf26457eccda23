"""POPGym's three CartPole families: balance a pole while seeing only half of the state.

The physics are gymnasium's `CartPoleEnv` (Euler, 0.02 s) in float32. `PositionOnlyCartPole` shows the cart's position
and the pole's angle, `VelocityOnlyCartpole` (the package's spelling) their derivatives, and
`NoisyPositionOnlyCartPole` the positions under Gaussian noise. Every step pays 1 / episode length, the falling one
included. An episode terminates on a fall and is truncated at its length; both flags may be True at once.
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
from engram.envs.spaces import Box, Discrete

X_THRESHOLD = 2.4
THETA_THRESHOLD = 12 * math.pi / 180
POSITION_BOUNDS = (2 * X_THRESHOLD, 2 * THETA_THRESHOLD)
"""Bounds of an observed (x, theta): twice the failure thresholds, so that a falling observation is still inside."""

Scalar = jax.Array | np.float32


@struct.dataclass
class CartPoleParams:
    """Physical constants, float32 scalars in SI units; all may vary between environments of a batch."""

    gravity: Scalar = np.float32(9.8)
    masscart: Scalar = np.float32(1.0)
    masspole: Scalar = np.float32(0.1)
    length: Scalar = np.float32(0.5)
    """Half of the pole's length, as in gymnasium."""
    force_mag: Scalar = np.float32(10.0)
    tau: Scalar = np.float32(0.02)


@struct.dataclass
class CartPoleState:
    physics: jax.Array
    """`[4]` float32: `(x, x_dot, theta, theta_dot)` in metres, radians and seconds."""
    t: jax.Array
    """Steps taken, int32."""


def cartpole_dynamics(physics: jax.Array, action: jax.Array, params: CartPoleParams) -> jax.Array:
    """One Euler step of the cart and pole.

    Args:
        physics: `(x, x_dot, theta, theta_dot)`, float32[4].
        action: 0 pushes left, 1 pushes right; int32 scalar.
        params: the physical constants.

    Returns:
        The next `(x, x_dot, theta, theta_dot)`.

    Source: gymnasium's `CartPoleEnv.step`, after Florian, "Correct equations for the dynamics of the cart-pole
    system" (2007).
    """
    _, x_dot, theta, theta_dot = physics
    force = jnp.where(action == 1, params.force_mag, -params.force_mag)
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    total_mass = params.masscart + params.masspole
    polemass_length = params.masspole * params.length
    push = (force + polemass_length * theta_dot**2 * sin) / total_mass
    theta_acc = (params.gravity * sin - cos * push) / (
        params.length * (4.0 / 3.0 - params.masspole * cos**2 / total_mass)
    )
    x_acc = push - polemass_length * theta_acc * cos / total_mass
    return physics + params.tau * jnp.stack([x_dot, x_acc, theta_dot, theta_acc])


def has_fallen(physics: jax.Array) -> jax.Array:
    """Whether the cart left its track or the pole its cone, bool scalar."""
    return (jnp.abs(physics[0]) > X_THRESHOLD) | (jnp.abs(physics[2]) > THETA_THRESHOLD)


@dataclass(frozen=True)
class PositionOnlyCartPole(Environment):
    """Observation `(x, theta)`, float32[2]; action 0 pushes left and 1 right; at most `episode_length` steps.

    Source: popgym 1.0.7, `envs/position_only_cartpole.py`.
    """

    episode_length: int

    cheap_reset = True

    @property
    def default_params(self) -> CartPoleParams:
        return CartPoleParams()

    def draw_noise(self, key: jax.Array) -> jax.Array:
        """The noise of one observation, float32[2]: zero where the family has none."""
        del key
        return jnp.zeros(2)

    def observe(self, physics: jax.Array, noise: jax.Array) -> jax.Array:
        """What a step shows of the state, float32[2]."""
        del noise
        return physics[jnp.array([0, 2])]

    def state_from(self, physics: jax.Array, noise: jax.Array) -> tuple[jax.Array, CartPoleState]:
        """The first observation and state of an episode.

        Args:
            physics: `(x, x_dot, theta, theta_dot)`, float32[4].
            noise: added to the observation in the noisy family, ignored in the others; float32[2].
        """
        physics = jnp.asarray(physics, jnp.float32)
        return self.observe(physics, noise), CartPoleState(physics=physics, t=jnp.int32(0))

    def reset(self, key: jax.Array, params: CartPoleParams) -> tuple[jax.Array, CartPoleState]:
        del params
        physics_key, noise_key = jax.random.split(key)
        physics = jax.random.uniform(physics_key, (4,), minval=-0.05, maxval=0.05)
        return self.state_from(physics, self.draw_noise(noise_key))

    def step_with_noise(
        self, noise: jax.Array, state: CartPoleState, action: jax.Array, params: CartPoleParams
    ) -> tuple[jax.Array, CartPoleState, jax.Array, jax.Array, jax.Array, Info]:
        """`step` with given observation noise, float32[2], in place of the key."""
        physics = cartpole_dynamics(state.physics, action, params)
        state = CartPoleState(physics=physics, t=state.t + 1)
        reward = jnp.float32(1.0 / self.episode_length)
        truncated = state.t >= self.episode_length
        return self.observe(physics, noise), state, reward, has_fallen(physics), truncated, {}

    def step(
        self, key: jax.Array, state: CartPoleState, action: jax.Array, params: CartPoleParams
    ) -> tuple[jax.Array, CartPoleState, jax.Array, jax.Array, jax.Array, Info]:
        return self.step_with_noise(self.draw_noise(key), state, action, params)

    def observation_space(self, params: Any) -> Box:
        return Box(low=tuple(-bound for bound in POSITION_BOUNDS), high=POSITION_BOUNDS, shape=(2,))

    def action_space(self, params: Any) -> Discrete:
        return Discrete(2)

    def max_steps(self, params: Any) -> int:
        return self.episode_length

    def render(self, state: CartPoleState, params: CartPoleParams) -> np.ndarray:
        width, height, meter = 320, 280, 60.0
        x, _, theta, _ = (float(value) for value in state.physics)
        draw = drawing.canvas(width, height)
        drawing.caption(draw, "Cart and pole", int(state.t), self.episode_length)
        ground, center = 220.0, width / 2 + meter * x
        draw.line((0, ground, width, ground), fill=drawing.FADED, width=2)
        for limit in (-X_THRESHOLD, X_THRESHOLD):
            edge = width / 2 + meter * limit
            draw.line((edge, ground - 10, edge, ground + 10), fill=drawing.RED, width=3)
        draw.rounded_rectangle((center - 28, ground - 30, center + 28, ground - 4), 5, fill=drawing.PAPER)
        hinge, pole = (center, ground - 26), 2 * float(params.length) * 2 * meter
        tip = (hinge[0] + pole * math.sin(theta), hinge[1] - pole * math.cos(theta))
        draw.line((*hinge, *tip), fill=drawing.GOLD, width=9)
        draw.circle(hinge, 5, fill=drawing.INK)
        drawing.text(draw, (width / 2, 252), f"x {x:+.2f} m    angle {math.degrees(theta):+.1f} deg")
        return drawing.picture(draw)


@dataclass(frozen=True)
class VelocityOnlyCartpole(PositionOnlyCartPole):
    """Observation `(x_dot, theta_dot)`, float32[2], unbounded.

    Package oddity, kept: the first observation of an episode shows the positions `(x, theta)` instead.
    Source: popgym 1.0.7, `envs/velocity_only_cartpole.py`.
    """

    def observe(self, physics: jax.Array, noise: jax.Array) -> jax.Array:
        del noise
        return physics[jnp.array([1, 3])]

    def state_from(self, physics: jax.Array, noise: jax.Array) -> tuple[jax.Array, CartPoleState]:
        _, state = super().state_from(physics, noise)
        return state.physics[jnp.array([0, 2])], state

    def observation_space(self, params: Any) -> Box:
        return Box(low=-math.inf, high=math.inf, shape=(2,))


@dataclass(frozen=True)
class NoisyPositionOnlyCartPole(PositionOnlyCartPole):
    """Observation `(x, theta)` plus N(0, `noise_sigma`) on both, clipped to the observation space.

    The noise is also on the first observation, and the same size for metres and radians.
    Source: popgym 1.0.7, `envs/noisy_position_only_cartpole.py`.
    """

    noise_sigma: float

    def draw_noise(self, key: jax.Array) -> jax.Array:
        return self.noise_sigma * jax.random.normal(key, (2,))

    def observe(self, physics: jax.Array, noise: jax.Array) -> jax.Array:
        bounds = jnp.array(POSITION_BOUNDS)
        return jnp.clip(super().observe(physics, noise) + noise, -bounds, bounds)
