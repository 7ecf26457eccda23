"""S4D: a diagonal state space for each channel (Gu, Gupta, Goel and Re, NeurIPS 2022), and its relatives.

    dh/dt = A h + B u      y = 2 Re(C h) + D u      u one channel, held over steps of a length dt that it learns

`A` is diagonal with half of `state` complex numbers per channel, `2 Re` stands for their conjugates. What the state
remembers at the start is the choice of `A`. Options make its relatives:

- DSS (Gupta et al., NeurIPS 2022; the form without softmax, which needs no length): `input_weights=one`.
- S4-PTD (Yu et al., ICLR 2024): `spectrum=ptd`, HiPPO-LegS itself, perturbed until it can be diagonalised.
- GSS (Mehta et al., ICLR 2023): `gate=gss`.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.errors import BadRequest
from engram.kernels.chunks import in_segments
from engram.kernels.linear_scan import join, linear_scan_planes, linear_scan_step, split
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, log_uniform
from engram.memory.s5 import diagonalised_hippo, perturbed_hippo


def legs(n: int) -> np.ndarray:
    """S4D-LegS: the half of HiPPO-N's eigenvalues with positive imaginary part, `[n/2]`; the same for those below."""
    return diagonalised_hippo(n)[0]


def inverse(n: int) -> np.ndarray:
    """S4D-Inv: how HiPPO-N's eigenvalues are distributed for large `n`."""
    return -0.5 + 1j * n / np.pi * (n / (2 * np.arange(n // 2) + 1) - 1)


def linear(n: int) -> np.ndarray:
    """S4D-Lin: the frequencies of a Fourier series."""
    return -0.5 + 1j * np.pi * np.arange(n // 2)


def real(n: int) -> np.ndarray:
    """S4D-Real: the eigenvalues of HiPPO-LegS, of size `n/2`."""
    return -(np.arange(n // 2) + 1.0 + 0j)


SPECTRA = {"legs": legs, "inv": inverse, "lin": linear, "real": real}


class StateSpaces(Memory):
    """A diagonal state space for each channel, and what a layer around them needs. State: complex
    `[B, width * state / 2]`."""

    state: int = 16
    """Size of the real state of each channel, even; half as many complex numbers, by conjugate symmetry."""
    spectrum: Literal["legs", "inv", "lin", "real", "ptd"] = "legs"
    """Eigenvalues at the start: legs (HiPPO-N), inv (inverse law), lin (Fourier), real or ptd (perturbed LegS)."""
    input_weights: Literal["learned", "one"] = "learned"
    """Weights of a channel's input to its states: "learned" (from 1 on) or "one" (1 for good, as in DSS)."""
    discretisation: Literal["zoh", "bilinear"] = "zoh"
    """Rule that makes steps of the differential equation: "zoh" (zero-order hold) or "bilinear"."""
    dt_min: float = 1e-3
    """Shortest step length at the start, log-uniform up to `dt_max`."""
    dt_max: float = 1.0
    """Longest step length at the start. The paper has 0.1; longer ones learn sooner what asks for the last few
    inputs."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.state < 2 or self.state % 2:
            raise BadRequest(f"{name}: state ({self.state}) must be even and at least 2")
        if not 0 < self.dt_min < self.dt_max < math.inf:
            raise BadRequest(f"{name}: needs 0 < dt_min ({self.dt_min}) < dt_max ({self.dt_max}), all finite")
        super().__post_init__()

    def setup(self) -> None:
        width, half, dtype = self.width, self.state // 2, self.param_dtype
        learned = self.input_weights == "learned"
        if self.spectrum == "ptd":
            # Inputs and outputs come from the basis of HiPPO-LegS, where inputs have weights of sqrt(2n + 1).
            modes, V, V_inverse = perturbed_hippo(self.state)
            weights = V_inverse @ np.sqrt(2 * np.arange(half) + 1)
            to_modes = V if learned else V * weights
        else:
            modes, weights, to_modes = SPECTRA[self.spectrum](self.state), np.ones(half), None

        def each_channel(values):
            """Initialiser `[..., width, half]`: every channel has the same `values[..., half]`."""
            row = np.asarray(values)[..., None, :]
            return lambda _: jnp.broadcast_to(jnp.asarray(row, dtype), (*row.shape[:-2], width, half))

        def init_C(key):
            """Real and imaginary parts `[2, width, half]`, normal with a variance of 1 together."""
            if to_modes is None:
                return jax.random.normal(key, (2, width, half), dtype) * 0.5**0.5
            normal = jax.random.normal(key, (width, half), dtype)
            return jnp.stack([normal @ jnp.asarray(plane, dtype) for plane in (to_modes.real, to_modes.imag)])

        # -exp keeps the real parts negative, hence the system stable, whatever the optimiser does.
        self.log_neg_re = self.param("log_neg_re", each_channel(np.log(-np.real(modes))))
        self.im = self.param("im", each_channel(np.imag(modes)))
        self.log_dt = self.param("log_dt", log_uniform(self.dt_min, self.dt_max), (width,), dtype)
        if learned:
            self.B = self.param("B", each_channel([weights.real, weights.imag]))
        self.C = self.param("C", init_C)
        self.D = self.param("D", nn.initializers.normal(1.0), (width,), dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        size = (batch, self.width * self.state // 2)
        return jnp.zeros(size, jnp.promote_types(self.param_dtype, jnp.complex64))

    def through(self, state: State, u: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """A whole sequence through the state spaces: `u[T, B, width]`, `reset[T, B]` -> state, `y[T, B, width]`."""

        def scan(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            u, reset = now
            decay, drive = self.discretise(u)
            h, state = linear_scan_planes(decay, drive, reset, state, backend=self.backend)
            return state, self.observe(h, u)

        # The states of a step are `state` times as large as its input.
        return in_segments(scan, state, (u, reset), 128)

    def through_step(self, state: State, u: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """One step of `through`: `u[B, width]`, `reset[B]`."""
        decay, drive = self.discretise(u)
        state, h = linear_scan_step(state, decay, join(drive), reset)
        return state, self.observe(split(h), u)

    def discretise(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`u[..., width]` -> factors of a step, complex `[width * half]`; what is added to the state, real
        `[..., 2 * width * half]`: its real and imaginary parts."""
        eigenvalues = lax.complex(-jnp.exp(self.log_neg_re), self.im)
        dt = jnp.exp(self.log_dt)[:, None]
        if self.discretisation == "zoh":
            decay, gain = jnp.exp(eigenvalues * dt), jnp.expm1(eigenvalues * dt) / eigenvalues
        else:
            decay, gain = (1 + eigenvalues * dt / 2) / (1 - eigenvalues * dt / 2), dt / (1 - eigenvalues * dt / 2)
        if self.input_weights == "learned":
            gain = gain * lax.complex(self.B[0], self.B[1])
        drive = u[..., None, :, None] * jnp.stack([gain.real, gain.imag])
        return decay.reshape(-1), drive.reshape(*u.shape[:-1], 2 * decay.size)

    def observe(self, h: jax.Array, u: jax.Array) -> jax.Array:
        """States `[..., 2 * width * half]`, real and imaginary parts, and inputs `[..., width]` -> y `[..., width]`."""
        weights = jnp.stack([2 * self.C[0], -2 * self.C[1]])
        return (h.reshape(*u.shape[:-1], *weights.shape) * weights).sum((-3, -1)) + self.D * u


class S4D(StateSpaces):
    """One S4D layer: a state space per channel, then the output function."""

    about = About(
        group="diagonal",
        equation="h = exp(dt A) * h' + B u for each channel u, complex, fixed dt",
        source="Gu, Gupta, Goel and Re, NeurIPS 2022; options: DSS, S4-PTD, GSS",
        home="https://arxiv.org/abs/2206.11893",
    )

    gate: Literal["full_glu", "gelu", "gss"] = "full_glu"
    """Output function: "full_glu" (`W1 u * sigmoid(W2 u)`, `u = gelu(y)`), "gelu" (`u` alone) or "gss" (the block of
    gated state spaces, all of whose products have `width` channels)."""

    def setup(self) -> None:
        super().setup()
        width, dtype = self.width, self.param_dtype
        if self.gate == "gss":
            self.inp = Dense(2 * width, use_bias=False, param_dtype=dtype)
            self.mix = Dense(width, use_bias=False, param_dtype=dtype)
            self.down = Dense(width, use_bias=False, param_dtype=dtype)
        elif self.gate == "full_glu":
            self.out = GatedOutput(width, dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        u, gate = self.write(x)
        state, y = self.through(state, u, reset)
        return state, self.read(y, gate)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        u, gate = self.write(x)
        state, y = self.through_step(state, u, reset)
        return state, self.read(y, gate)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Input -> what the state spaces see, and the gate of GSS, each `[..., width]`."""
        if self.gate != "gss":
            return x, None
        u, gate = jnp.split(nn.gelu(self.inp(x)), 2, -1)
        return u, gate

    def read(self, y: jax.Array, gate: jax.Array | None) -> jax.Array:
        """`[..., width]` each -> output `[..., width]`."""
        if gate is not None:
            return self.down(self.mix(y) * gate)
        return self.out(y) if self.gate == "full_glu" else nn.gelu(y)
