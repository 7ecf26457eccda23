"""H3 and Hyena against their published matrices, and what they are for: recalling what followed a key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.memory.h3 import H3
from tests.memory.test_layers import WIDTH, check, convolved, linear, s4d_parts

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def projections(p, x):
    return np.split(x @ p["inp"]["kernel"] + p["inp"]["bias"], 3, -1)


def shifted(k, C):
    """A state space with a shift matrix (Fu, Dao et al. 2023, section 3.1): `C[t, width]` reads the last inputs."""
    n = len(C)
    shift, s, y = np.eye(n, k=-1), np.zeros((n, k.shape[1])), []
    for k_t in k:
        s = shift @ s + np.eye(n)[:, :1] * k_t
        y.append((C * s).sum(0))
    return np.stack(y)


def test_h3():
    def recurrence(p):
        A, dt, B, C = s4d_parts(p)

        def of_episode(x):
            k, q, v = projections(p, x)
            u = shifted(k, p["conv_weight"][::-1]) * v
            h = linear(np.exp(A * dt), u[..., None] * (np.exp(A * dt) - 1) / A * B)
            return (q * (2 * (h * C).sum(-1).real + p["D"] * u)) @ p["out"]["kernel"] + p["out"]["bias"]

        return of_episode

    check(H3(WIDTH, state=6, conv=3, param_dtype=jnp.float64), recurrence)


def test_hyena():
    """One matrix from values to outputs for each channel: diag(q) Toeplitz(filter) diag(k)."""

    def recurrence(p):
        A, dt, B, C = s4d_parts(p)

        def of_episode(x):
            k, q, v = np.split(convolved(np.concatenate(projections(p, x), -1), p["conv_weight"]), 3, -1)
            lag = np.arange(len(x))[:, None] - np.arange(len(x))
            y = np.zeros_like(v)
            for c in range(WIDTH):
                modes = (C * B * (np.exp(A * dt) - 1) / A)[c]
                powers = np.exp(A[c] * dt[c]) ** np.maximum(lag, 0)[..., None]
                long = np.where(lag >= 0, 2 * np.real(powers @ modes), 0) + p["D"][c] * (lag == 0)
                y[:, c] = np.diag(q[:, c]) @ long @ np.diag(k[:, c]) @ v[:, c]
            return y @ p["out"]["kernel"] + p["out"]["bias"]

        return of_episode

    check(H3(WIDTH, state=6, conv=3, kind="hyena", param_dtype=jnp.float64), recurrence)


def test_h3_recalls_the_value_that_followed_a_key():
    """Weights set by hand: the shift moves a key to the step of its value, and the diagonal space adds up."""
    keys, width = 3, 4  # a channel for each key, and one in which values come
    memory = H3(width, state=2, conv=2)
    one_hot, value = np.diag([1.0, 1.0, 1.0, 0.0]), np.zeros((width, width))
    value[3, :keys] = 1
    first = np.zeros((2, width, 1))
    first[0] = 0.5
    p = {
        "inp": {"kernel": np.concatenate([one_hot, one_hot, value], 1), "bias": np.zeros(3 * width)},
        "conv_weight": np.stack([np.ones(width), np.zeros(width)]),
        "log_neg_re": np.full((width, 1), -20.0),  # fades in a billion steps
        "im": np.zeros((width, 1)),
        **{name: np.zeros(width) for name in ("log_dt", "D")},
        **{"B": 2 * first, "C": first},
        "out": {"kernel": np.ones((width, 1)) * np.eye(1, width), "bias": np.zeros(width)},
    }
    # key 0, its value; key 2, its value; key 1, its value; keys 2, 1, 0 again; a new episode: key 2
    steps = [(0, 0.0), (3, 0.7), (2, 0.0), (3, -1.5), (1, 0.0), (3, 0.4), (2, 0.0), (1, 0.0), (0, 0.0), (2, 0.0)]
    x = np.zeros((len(steps), 1, width), np.float32)
    for t, (channel, number) in enumerate(steps):
        x[t, 0, channel] = number or 1.0
    reset = (np.arange(len(steps)) == 9)[:, None]
    y: Any = jax.jit(memory.apply)({"params": p}, memory.initial_state(1), x, reset)[1]
    np.testing.assert_allclose(y[6:, 0, 0], [-1.5, 0.4, 0.7, 0], atol=1e-5)
