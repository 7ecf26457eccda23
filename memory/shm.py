"""SHM, the stable Hadamard memory (Le et al., ICLR 2025): a matrix whose entries fade or grow at rates of their own.

    M[t] = (1 + tanh(theta c^T)) * M[t-1] + (e v) k^T      y = W (M[t] q + U x) + b      e = sigmoid(w x)

`x` is normalised, `k` and `q` are not negative and sum to 1, and `theta` is a row of a learned table. The authors draw
the row at random at each step. Actor and learner must see the same one, so here rows come in turn, from the first step
of an episode on; as all rows begin alike at random, no order is better than another.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.kernels.linear_scan import linear_scan, linear_scan_step
from engram.memory.base import About, Memory, State, where_reset
from engram.memory.layers import Dense, steps_of_episodes, uniform

EPSILON = 1e-5
"""What keeps the sum of a key from 0, the published one."""
PUBLISHED_THETAS = 128
"""Rows of the published table, by which the first values are scaled whatever the number of ours."""


class SHM(Memory):
    """One SHM layer. State: `(M, n)`, the matrix `[B, size * size]`, values times keys, and the row of theta that
    the next step takes, int32 `[B]`.
    """

    about = About(
        group="diagonal",
        equation="M = (1 + tanh(theta c^T)) * M' + (e v) k^T, y = M q",
        source="Le et al., ICLR 2025 (stable Hadamard memory)",
        home="https://arxiv.org/abs/2410.10132",
    )

    size: int = 24
    """Size of keys and of values; the matrix has their product."""
    thetas: int = 128
    """Rows of the table of theta, which the steps of an episode take in turn; with 1 all steps have the same."""
    decay_max: float = 2.0
    """Bound of an entry's factor of a step. The published 2 lets entries grow, in long episodes beyond all numbers; 1
    does not."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if min(self.size, self.thetas) < 1 or not 0 < self.decay_max <= 2:
            raise BadRequest("shm: needs size and thetas >= 1 and 0 < decay_max <= 2")
        super().__post_init__()

    def setup(self) -> None:
        dtype = self.param_dtype
        self.norm = nn.LayerNorm(1e-5, param_dtype=dtype)
        self.inp = Dense(4 * self.size + 1, use_bias=False, param_dtype=dtype)  # k, q, v, c, e
        scale = math.sqrt(6 / (PUBLISHED_THETAS + self.size))
        self.theta = self.param("theta", uniform(scale), (self.thetas, self.size), dtype)
        self.shortcut = Dense(self.size, param_dtype=dtype)
        self.out = Dense(self.width, param_dtype=dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.size**2), self.param_dtype), jnp.zeros(batch, jnp.int32)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        M, begun = state
        n, after = steps_of_episodes(reset, begun, self.thetas)
        x = self.norm(x)
        decay, write, q = self.write(x, n)
        y, M = linear_scan(decay, write, reset, M, backend=self.backend)
        return (M, after), self.read(y, q, x)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        M, n = state
        n = where_reset(reset, jnp.zeros_like(n), n)
        x = self.norm(x)
        decay, write, q = self.write(x, n)
        M, y = linear_scan_step(M, decay, write, reset)
        return (M, (n + 1) % self.thetas), self.read(y, q, x)

    def write(self, x: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised input and steps so far -> factors, what is added `[..., size * size]`; queries `[..., size]`."""
        k, q, v, c, e = jnp.split(self.inp(x), np.cumsum([self.size] * 4), -1)
        k, q = (nn.relu(part) / (EPSILON + nn.relu(part).sum(-1, keepdims=True)) for part in (k, q))
        theta = jnp.take(self.theta, n % self.thetas, axis=0)
        decay = jnp.minimum(1 + jnp.tanh(theta[..., :, None] * c[..., None, :]), self.decay_max)
        write = (nn.sigmoid(e) * v)[..., :, None] * k[..., None, :]
        size = (*x.shape[:-1], self.size**2)
        return decay.reshape(size), write.reshape(size), q

    def read(self, M: jax.Array, q: jax.Array, x: jax.Array) -> jax.Array:
        """States `[..., size * size]`, queries and normalised input -> output `[..., width]`."""
        found = (M.reshape(*q.shape, self.size) * q[..., None, :]).sum(-1)
        return self.out(found + self.shortcut(x))
