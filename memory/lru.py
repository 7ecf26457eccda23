"""LRU, the linear recurrent unit (Orvieto et al., ICML 2023): a complex diagonal recurrence, discrete from the start.

    h[t] = lambda h[t-1] + gamma (B x)      y = Re(C h) + D x      lambda = exp(-exp(nu) + i exp(theta))

The modulus of `lambda` is below 1 whatever the parameters; `gamma = sqrt(1 - |lambda|^2)` keeps the state's variance
that of its input. As in `engram.memory.s5`, complex matrices act as one real product.

Options make its relatives:

- Linear recurrent trace units (Elelimy et al., NeurIPS 2024): `kind=rtu`, y = W relu([Re h, Im h]) + b.
- RotRNN (Biegun et al. 2024): `kind=rotrnn`, lambda = exp(-exp(nu) + i theta) with one nu for each head, and
  gamma = sqrt((1 - |lambda|^2) / |B|^2) with the Frobenius norm of a head's B. The orthogonal matrix P with which the
  authors turn each head, in A = P Theta P^T, is left out: it only turns B and C, which are learned.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.linear_scan import join, linear_scan_planes, linear_scan_step, split
from engram.kernels.rows import rows_matmul
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, log_uniform


class LRU(Memory):
    """One LRU layer: recurrence, gelu, gate. State: complex `[B, state]`.

    In `kind="rtu"` a relu and a dense layer follow the recurrence.
    """

    about = About(
        group="diagonal",
        equation="h = lambda * h' + gamma * (B x), complex, fixed lambda",
        source="Orvieto et al., ICML 2023; options: recurrent trace units, RotRNN",
        home="https://arxiv.org/abs/2303.06349",
    )

    state: int = 64
    """Size of the state, in complex numbers."""
    kind: Literal["lru", "rtu", "rotrnn"] = "lru"
    """Kind of unit: lru, rtu (linear recurrent trace units: an output from a relu of the state) or rotrnn (heads of
    rotations that fade alike, and a normalised input)."""
    heads: int = 8
    """Number of heads of rotrnn, each of which fades at one rate; must divide `state`. Other kinds have none."""
    r_min: float = 0.9
    """Inner radius of the ring on which the eigenvalues start, uniform in area (rotrnn: rates log-uniform)."""
    r_max: float = 0.999
    """Outer radius of the ring on which the eigenvalues start, at most 1."""
    max_phase: float = 2 * math.pi
    """Largest phase of an eigenvalue at the start, in radians."""
    min_phase: float = 0.003
    """Smallest phase at the start, log-uniform up to `max_phase`; 0 for uniform phases (the paper)."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if self.state < 1 or not (
            0 <= self.r_min < self.r_max <= 1 and 0 <= self.min_phase < self.max_phase < math.inf
        ):
            raise BadRequest(
                "lru: needs state >= 1, 0 <= r_min < r_max <= 1 and 0 <= min_phase < max_phase, which is finite"
            )
        if self.kind == "rotrnn":
            if self.heads < 1 or self.state % self.heads:
                raise BadRequest(f"lru: heads={self.heads} must divide state={self.state}")
            if self.r_min == 0 or self.r_max == 1:
                raise BadRequest(f"lru: kind=rotrnn needs 0 < r_min ({self.r_min}) and r_max ({self.r_max}) < 1")
        super().__post_init__()

    def setup(self) -> None:
        width, dtype = self.width, self.param_dtype

        def init_nu(key, shape, dtype):
            area = jax.random.uniform(key, shape, dtype, minval=jnp.finfo(dtype).tiny)
            return jnp.log(-0.5 * jnp.log(self.r_min**2 + area * (self.r_max**2 - self.r_min**2)))

        def phases(key, shape, dtype):
            if self.min_phase:
                return jnp.exp(log_uniform(self.min_phase, self.max_phase)(key, shape, dtype))
            return self.max_phase * jax.random.uniform(key, shape, dtype, minval=jnp.finfo(dtype).tiny)

        def normal(scale):
            return nn.initializers.normal(math.sqrt(scale))

        rotates = self.kind == "rotrnn"
        if rotates:
            slowest, fastest = (-math.log(radius) for radius in (self.r_max, self.r_min))
            self.nu = self.param("nu", log_uniform(slowest, fastest), (self.heads,), dtype)
            self.theta = self.param("theta", phases, (self.state,), dtype)
        else:
            self.nu = self.param("nu", init_nu, (self.state,), dtype)
            self.theta = self.param("theta", lambda *args: jnp.log(phases(*args)), (self.state,), dtype)
        self.B = self.param("B", normal(0.5 / width), (width, 2 * self.state), dtype)  # Re | Im
        if self.kind == "rtu":
            self.out = Dense(width, param_dtype=dtype)
        else:
            scale = 1 / (width + 2 * self.state) if rotates else 1 / self.state
            self.C = self.param("C", normal(scale), (2 * self.state, width), dtype)  # Re over -Im
            self.D = self.param("D", nn.initializers.normal(1.0), (width,), dtype)
            self.out = GatedOutput(width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.state), jnp.promote_types(self.param_dtype, jnp.complex64))

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        h, state = linear_scan_planes(*self.write(x), reset, state, backend=self.backend)
        return state, self.read(h, x)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        decay, drive = self.write(x)
        state, h = linear_scan_step(state, decay, join(drive), reset)
        return state, self.read(split(h), x)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`lambda`, complex `[state]`, and `gamma (B x)`, real `[..., 2 state]`: its real and imaginary parts."""
        neg_log_modulus, phase = jnp.exp(self.nu), self.theta
        gamma = jnp.sqrt(-jnp.expm1(-2 * neg_log_modulus))
        if self.kind == "rotrnn":
            of_head = self.state // self.heads
            gamma = gamma / jnp.sqrt((self.B**2).reshape(-1, self.heads, of_head).sum((0, 2)))
            neg_log_modulus, gamma = (jnp.repeat(a, of_head) for a in (neg_log_modulus, gamma))
        else:
            phase = jnp.exp(phase)
        decay = jnp.exp(lax.complex(-neg_log_modulus, phase))
        return decay, rows_matmul(x, self.B * jnp.tile(gamma, 2))

    def read(self, h: jax.Array, x: jax.Array) -> jax.Array:
        """State `[..., 2 state]`, real and imaginary parts, and input `[..., width]` -> output `[..., width]`."""
        if self.kind == "rtu":
            return self.out(nn.relu(h))
        return self.out(rows_matmul(h, self.C) + self.D * x)
