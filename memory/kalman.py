"""A Kalman filter for each unit: a belief with a mean and a variance, both of which the output sees.

    y = W_y x + c      R = softplus(W_r x + b) + 1e-4      belief[t] = the filter of `engram.kernels.kalman_scan`

The input gives what a unit sees, and how much that is to be trusted. A unit's number fades by a learned factor and
gains uncertainty at a learned rate, so its variance says how long ago something certain was seen. The output is a gated
layer over means and logarithms of variances. After Becker et al., ICML 2019 (recurrent Kalman networks), with units of
one number.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.errors import BadRequest
from engram.kernels.kalman_scan import initial_state, kalman_scan, kalman_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, log_uniform

LEAST_NOISE = 1e-4
"""Least variance of the noise of what is seen, which keeps variances of beliefs above 0."""


class Kalman(Memory):
    """One layer. State: `Belief(mean, variance)`, each `[B, width]`."""

    about = About(
        group="diagonal",
        equation="m = a m' + G (y - a m'), P = (1 - G) p, G = p / (p + R), p = a^2 P' + Q",
        source="Kalman 1960; units as in Becker et al., ICML 2019",
        home="https://arxiv.org/abs/1905.07357",
    )

    max_timescale: float = 64.0
    """Longest memory of a unit at the start, in steps; log-uniform from 1."""
    backend: str = "auto"
    """Backend of `engram.kernels.kalman_scan`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_timescale < math.inf:
            raise BadRequest(f"kalman: max_timescale must be at least 1 and finite, got {self.max_timescale}")
        super().__post_init__()

    def setup(self) -> None:
        width, dtype = self.width, self.param_dtype
        self.inp = Dense(2 * width, param_dtype=dtype)
        # a = t / (1 + t) for time constants t. Q begins as 1 - a^2: without observations a variance stays at 1.
        self.logit_a = self.param("logit_a", log_uniform(1.0, self.max_timescale), (width,), dtype)
        self.log_noise = self.param("log_noise", nn.initializers.zeros, (width,), dtype)
        self.out = GatedOutput(width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return initial_state(batch, self.width, self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        belief, state = kalman_scan(*self.filters(x), reset, state, backend=self.backend)
        return state, self.read(belief)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, belief = kalman_scan_step(state, *self.filters(x), reset)
        return state, self.read(belief)

    def filters(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Input `[..., width]` -> what is seen and the variance of its noise `[..., width]`; factor of a step and the
        variance of its noise `[width]`."""
        seen, noise = jnp.split(self.inp(x), 2, -1)
        a = nn.sigmoid(self.logit_a)
        return seen, nn.softplus(noise) + LEAST_NOISE, a, jnp.exp(self.log_noise) * (1 - a * a)

    def read(self, belief: jax.Array) -> jax.Array:
        """Means and variances `[..., 2 width]` -> output `[..., width]`."""
        mean, variance = jnp.split(belief, 2, -1)
        return self.out(jnp.concatenate([mean, jnp.log(variance)], -1))
