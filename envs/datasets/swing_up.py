"""Pendulum episodes of a scripted controller whose actions are partly random: from poor to good without training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.adapters.gymnax import GymnaxEnvironment
from engram.envs.datasets.episodes import Episodes, Origin
from engram.envs.datasets.recorder import Recorder, Step, Tape
from engram.envs.vector import Vectorised
from engram.envs.wrappers import FlattenObservation

ENV = "gymnax/Pendulum-v1"
NOISE = (0.0, 0.3, 0.6, 0.8, 1.0)
"""Probabilities of a uniform action in place of the controller's."""
STEPS = 200
"""Steps of an episode."""
JITTER = 0.05
"""Standard deviation of the Gaussian noise on the controller's torque."""
REFERENCE_EPISODES = 1000
UPRIGHT_ENERGY = 5.0
"""m g l / 2 of the rod at rest on top, with gymnax's mass 1, length 1 and gravity 10."""


def torque(obs: jax.Array) -> jax.Array:
    """Torque `[B]` for observations `(cos, sin, velocity)[B, 3]`, where the angle is 0 when upright.

    Drives the energy to that of rest on top, and near the top holds it there by proportional and derivative terms.
    """
    cos, sin, velocity = obs[:, 0], obs[:, 1], obs[:, 2]
    energy = velocity**2 / 6 + UPRIGHT_ENERGY * cos  # the rod's moment of inertia is m l^2 / 3
    direction = jnp.where(velocity >= 0, 1.0, -1.0)
    pump = 3.0 * (UPRIGHT_ENERGY - energy) * direction
    hold = -12.0 * jnp.arctan2(sin, cos) - 3.0 * velocity
    return jnp.clip(jnp.where(cos > 0.9, hold, pump), -2.0, 2.0)


@jax.jit
def play(key: jax.Array, noise: jax.Array) -> Step:
    """One episode for each entry of `noise[B]`, the probability of a uniform action: steps `[T, B, ...]`."""
    lanes = len(noise)
    env = Recorder(FlattenObservation(Vectorised(GymnaxEnvironment("Pendulum-v1"), lanes)))
    params = env.default_params
    start_key, key = jax.random.split(key)

    def one_step(carry, key):
        obs, state = carry
        jitter_key, which_key, uniform_key, env_key = jax.random.split(key, 4)
        own = torque(obs) + JITTER * jax.random.normal(jitter_key, (lanes,))
        uniform = jax.random.uniform(uniform_key, (lanes,), minval=-2.0, maxval=2.0)
        action = jnp.where(jax.random.uniform(which_key, (lanes,)) < noise, uniform, own)
        obs, state, _, _, _, info = env.step(env_key, state, action[:, None], params)
        return (obs, state), info["record"]

    return jax.lax.scan(one_step, env.reset(start_key, params), jax.random.split(key, STEPS))[1]


def noisy(episodes: int, seed: int, mask_velocity: bool = False, versions: str = "") -> Episodes:
    """`episodes` episodes at each level of `NOISE`, from the controller alone to uniform actions alone.

    Reference returns are means over `REFERENCE_EPISODES` others: of uniform actions, and of the controller.

    Args:
        mask_velocity: leaves the angular velocity out of the observations.
    """
    made = episodes * len(NOISE)
    noise = np.concatenate([np.repeat(NOISE, episodes), np.repeat([NOISE[0], NOISE[-1]], REFERENCE_EPISODES)])
    tape = Tape.of(jax.device_get(play(jax.random.key(seed), jnp.asarray(noise))))
    returns = tape.reward.sum(axis=0, dtype=np.float64)
    controller, uniform = returns[made:].reshape(2, REFERENCE_EPISODES).mean(axis=1)
    origin = Origin(
        env=ENV,
        keep=(0, 1) if mask_velocity else (),
        tier="noise",
        algorithm=f"swing-up controller, {episodes} episodes each with uniform actions at probability {NOISE}",
        seed=seed,
        ref_min=float(uniform),
        ref_max=float(controller),
        versions=versions,
    )
    actions = GymnaxEnvironment("Pendulum-v1").action_space(None)
    recorded = tape.episodes(origin, actions, each=np.arange(len(noise)) < made)
    return replace(recorded, obs=recorded.obs[:, :2].copy()) if mask_velocity else recorded
