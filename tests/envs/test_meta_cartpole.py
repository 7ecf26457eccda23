"""What CartPole without velocities, projected anew in every trial, tells within its first episode.

Inner products of observations are those of the positions, whatever the projection; they and the known forces fix the
state in which the episode opened, hence the projection, hence the velocities. So who reasons exactly balances through
the first episode: in this task there is nothing left to learn for later ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize

from engram.envs import registry

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
PROBES = (1, 0, 0, 1, 1)
"""Pushes before anything is known."""


def move(state, action):
    """CartPole's equations (Barto, Sutton and Anderson 1983, as gym integrates them), in float64."""
    _, x_speed, angle, angle_speed = state
    push = (FORCE if action else -FORCE) + POLE * HALF_LENGTH * angle_speed**2 * np.sin(angle)
    push /= CART + POLE
    turn = GRAVITY * np.sin(angle) - np.cos(angle) * push
    turn /= HALF_LENGTH * (4 / 3 - POLE * np.cos(angle) ** 2 / (CART + POLE))
    accelerate = push - POLE * HALF_LENGTH * turn * np.cos(angle) / (CART + POLE)
    return np.array(state) + TAU * np.array([x_speed, accelerate, angle_speed, turn])


def positions(start, actions):
    states = [start]
    for action in actions:
        states.append(move(states[-1], action))
    return np.array(states)[:, [0, 2]]


@functools.cache
def gain():
    """Linear-quadratic control about the upright position."""
    small = 1e-6 * np.eye(4)
    A = np.array([sum(move(e, a) - move(-e, a) for a in (0, 1)) for e in small]).T / 4e-6
    B = (move(np.zeros(4), 1) - move(np.zeros(4), 0))[:, None] / (2 * FORCE)
    P = scipy.linalg.solve_discrete_are(A, B, np.diag([1.0, 0.1, 10.0, 0.1]), np.array([[0.01]]))
    return np.linalg.solve(B.T @ P @ B + 0.01, B.T @ P @ A)[0]


def projection_of(seen, actions):
    """The projection `(2, width)` that explains the observations `seen` after `actions`."""
    gram, upper = seen @ seen.T / 2, np.triu_indices(len(seen))

    def mismatch(start):
        p = positions(start, actions)
        return 1e3 * (p @ p.T - gram)[upper]

    starts = np.random.default_rng(0).uniform(-0.05, 0.05, (6, 4))
    fits = [scipy.optimize.least_squares(mismatch, start, xtol=1e-14, ftol=1e-14, gtol=1e-14) for start in starts]
    best = min(fits, key=lambda fit: fit.cost)
    return np.linalg.lstsq(positions(best.x, actions), seen, rcond=None)[0]


def test_the_first_episode_tells_all():
    env = registry.make(
        "meta/CartPole?vary=false&velocities=false&limit=200&episodes=16&same_start=true"
        "&project_observations=4&gain=1.4142135&split=heldout"
    )
    reset, step = jax.jit(env.reset), jax.jit(env.step)

    def first_episode(key, projection=None):
        obs, state = reset(key, None)
        seen, actions = [np.asarray(obs[:4], float)], []
        while True:
            if len(actions) == len(PROBES) and projection is None:
                projection = projection_of(np.array(seen), actions)
            if projection is None or not actions:
                action = PROBES[len(actions)]
            else:
                now, before = np.array([seen[-1], seen[-2]]) @ np.linalg.pinv(projection)
                (x, angle), (x_speed, angle_speed) = before, (now - before) / TAU
                action = int(-gain() @ move((x, x_speed, angle, angle_speed), actions[-1]) > 0)
            actions.append(action)
            obs, state, _, _, _, info = step(key, state, jnp.int32(action), None)
            seen.append(np.asarray(obs[:4], float))
            if info["inner_done"]:
                return len(actions), projection

    played = [first_episode(jax.random.key(i)) for i in range(6)]
    assert [length for length, _ in played] == [200] * 6
    # The projection of another trial is no use.
    assert np.mean([first_episode(jax.random.key(i), played[i - 1][1])[0] for i in range(6)]) < 100
