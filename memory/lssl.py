"""Linear state spaces with dense matrices: LMU, LSSL, S4 and what else projects the past on a basis (HiPPO).

    dh/dt = A h + B u      u one channel, held or interpolated over steps of a length dt      h[t] = A' h[t-1] + B' u[t]

`h` are coefficients of the past of `u`, by the basis. For those of a window it is the last unit of time, hence `1 / dt`
steps, and `s` is the time since, in windows:

    lmu        u(t - s) = sum_n h_n P_n(2 s - 1), Legendre polynomials       Voelker, Kajic and Eliasmith, NeurIPS 2019
    legt       the same in functions of length 1, `sqrt(2 n + 1) P_n(2 s - 1)`          Gu et al., NeurIPS 2020 (HiPPO)
    fout       Fourier series on the window                                             Gu et al., ICLR 2023
    legs       polynomials of exp(-s), no window: the past fades                        Gu et al., NeurIPS 2020 (HiPPO)
    lagt       Laguerre functions exp(-s/2) L_n(s), no window                           Gu et al., NeurIPS 2020 (HiPPO)
    companion  no basis and no dt: A' shifts and its last column is learned,
               an autoregressive model of order `state`                             Zhang et al., ICLR 2023 (SpaceTime)

With `inputs` the memory has so many channels, made by a dense layer, and its output is made of all states, as in the
LMU. With 0 each feature is a channel that is read by `C h + D u`, as in LSSL and S4. The LSSL (Gu et al., NeurIPS 2021)
learns `A`, `B` and `dt`; so does S4 (Gu et al., ICLR 2022), of which this is the function without its fast algorithm
for large states. What the LMU feeds back from its output to its input is left out, as in LMUFormer (Liu et al., ICLR
2024).
"""

import math
from functools import cache
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.errors import BadRequest
from engram.kernels.lti_scan import lti_scan, lti_scan_step
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, GatedOutput, log_uniform, uniform
from engram.memory.s5 import hippo_legs

System = tuple[np.ndarray, np.ndarray]
"""`A[n, n]` and `B[n]`."""


def lmu(n: int) -> System:
    i, j = np.ogrid[:n, :n]
    signs = np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    return (2 * i + 1) * signs, (2 * i[:, 0] + 1) * (-1.0) ** i[:, 0]


def legt(n: int) -> System:
    A, B = lmu(n)
    length = np.sqrt(2 * np.arange(n) + 1)
    return A / length[:, None] * length, B / length


def fout(n: int) -> System:
    """Constant, cosines and sines by turns, for odd n: `1, sqrt(2) cos(2 pi s), sqrt(2) sin(2 pi s), ...`."""
    at_zero = np.where(np.arange(n) % 2 == 1, np.sqrt(2), 0.0)
    at_zero[0] = 1
    A = -2 * np.outer(at_zero, at_zero)  # what leaves the window: the series has the mean of its two ends there
    for k in range(1, (n + 1) // 2):
        A[2 * k - 1, 2 * k], A[2 * k, 2 * k - 1] = -2 * np.pi * k, 2 * np.pi * k
    return A, 2 * at_zero


def legs(n: int) -> System:
    return hippo_legs(n), np.sqrt(2 * np.arange(n) + 1)


def lagt(n: int) -> System:
    return np.eye(n) / 2 - np.tril(np.ones((n, n))), np.ones(n)


BASES = {"lmu": lmu, "legt": legt, "fout": fout, "legs": legs, "lagt": lagt}


@cache
def steps(basis: str, n: int, dts: tuple[float, ...], discretisation: str) -> System:
    """What a step of each length multiplies state and input by, `[len(dts), n, n]` and `[len(dts), n]`, in float64."""
    from scipy.linalg import expm  # slow to import

    A, B = BASES[basis](n)
    each = []
    for dt in dts:
        if discretisation == "zoh":
            both = expm(dt * np.block([[A, B[:, None]], [np.zeros((1, n + 1))]]))
            each.append((both[:n, :n], both[:n, n]))
        else:
            back = np.linalg.inv(np.eye(n) - dt / 2 * A)
            each.append((back @ (np.eye(n) + dt / 2 * A), back @ (dt * B)))
    return np.stack([A for A, _ in each]), np.stack([B for _, B in each])


def inverse(M: jax.Array) -> jax.Array:
    """Inverses of `M[..., n, n]`, n small, by elimination with pivots.

    LAPACK, which JAX would call, waits under `vmap` in a thread of XLA's pool for others of the same pool.
    """
    X = lax.stop_gradient(_eliminated(lax.stop_gradient(M)))
    return 2 * X - X @ M @ X  # a Newton step: its derivative is that of the inverse, -X dM X


def _eliminated(M: jax.Array) -> jax.Array:
    n = M.shape[-1]
    both = jnp.concatenate([M, jnp.broadcast_to(jnp.eye(n, dtype=M.dtype), M.shape)], -1)

    def eliminate(k, both):
        column = both[..., k]
        pivot = jnp.argmax(jnp.where(jnp.arange(n) >= k, jnp.abs(column), -1), -1)[..., None]
        rows = jnp.where(jnp.arange(n) == pivot, k, jnp.where(jnp.arange(n) == k, pivot, jnp.arange(n)))
        both = jnp.take_along_axis(both, rows[..., None], -2)
        row = both[..., k, :] / both[..., k, k, None]
        rest = both - both[..., k, None] * row[..., None, :]
        return jnp.where((jnp.arange(n) == k)[:, None], row[..., None, :], rest)

    return lax.fori_loop(0, n, eliminate, both)[..., n:]


class LSSL(Memory):
    """One layer. State: `h[B, channels, state]`."""

    about = About(
        group="recurrent",
        equation="h = A h' + B u for each channel u, A dense and fixed",
        source="Voelker, Kajic and Eliasmith, NeurIPS 2019 (LMU); options: LSSL, S4, HiPPO's bases, SpaceTime",
        home="https://proceedings.neurips.cc/paper/2019/hash/952285b9b7e7a1be5aa7849f32ffff05-Abstract.html",
    )

    basis: Literal["lmu", "legt", "fout", "legs", "lagt", "companion"] = "lmu"
    """Basis on which the state projects the past: lmu and legt (Legendre polynomials on a window), fout (Fourier series
    on a window), legs and lagt (polynomials that fade) or companion (none: an autoregressive model)."""
    state: int = 16
    """Size of the state of each channel; odd for fout."""
    inputs: int = 16
    """Number of channels, made of the input by a dense layer; 0 for each feature by itself."""
    train: Literal["none", "dt", "all"] = "none"
    """What is learned of the state spaces: none, dt (step lengths) or all (also A and B, for each channel its own).
    A companion learns its last column and B whatever this says."""
    discretisation: Literal["zoh", "bilinear"] = "zoh"
    """Rule that makes steps of the differential equation: zoh (zero-order hold; needs train=none) or bilinear."""
    dt_min: float = 1 / 64
    """Shortest step length at the start, log-uniform up to `dt_max`; a window has 1 / dt steps."""
    dt_max: float = 1 / 64
    """Longest step length at the start; where it is `dt_min` and none is learned, all channels share one matrix."""
    backend: str = "auto"
    """Backend of `engram.kernels.lti_scan`."""

    def __post_init__(self) -> None:
        if self.state < 1 or self.inputs < 0 or not 0 < self.dt_min <= self.dt_max < math.inf:
            raise BadRequest("lssl: needs state >= 1, inputs >= 0 and 0 < dt_min <= dt_max, all finite")
        if self.basis == "fout" and self.state % 2 == 0:
            raise BadRequest(f"lssl: basis=fout needs an odd state (a constant and pairs of waves), got {self.state}")
        if self.train != "none" and self.discretisation == "zoh" and self.basis != "companion":
            raise BadRequest(f"lssl: train={self.train} needs discretisation=bilinear")
        super().__post_init__()

    @property
    def channels(self) -> int:
        return self.inputs or self.width

    def setup(self) -> None:
        C, n, dtype = self.channels, self.state, self.param_dtype
        if self.inputs:
            self.inp = Dense(C, use_bias=False, param_dtype=dtype)
        if self.basis == "companion":
            self.last_column = self.param("last_column", uniform(1 / n), (C, n), dtype)
            self.B = self.param("B", uniform(1.0), (C, n), dtype)
        elif self.train != "none":
            self.log_dt = self.param("log_dt", log_uniform(self.dt_min, self.dt_max), (C,), dtype)
        if self.train == "all" and self.basis != "companion":
            A, B = BASES[self.basis](n)
            self.A = self.param("A", lambda _: jnp.broadcast_to(jnp.asarray(A, dtype), (C, n, n)))
            self.B = self.param("B", lambda _: jnp.broadcast_to(jnp.asarray(B, dtype), (C, n)))
        if not self.inputs:
            self.C = self.param("C", nn.initializers.normal(n**-0.5), (C, n), dtype)
            self.D = self.param("D", nn.initializers.normal(1.0), (C,), dtype)
        self.out = GatedOutput(self.width, dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.channels, self.state), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        u = self.channels_of(x)
        A, B = self.matrices(u.dtype)
        h, state = lti_scan(A, u[..., None] * B, reset, state, backend=self.backend)
        return state, self.read(h, u)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        u = self.channels_of(x)
        A, B = self.matrices(u.dtype)
        state, h = lti_scan_step(state, A, u[..., None] * B, reset)
        return state, self.read(h, u)

    def channels_of(self, x: jax.Array) -> jax.Array:
        """`[..., width]` -> `[..., channels]`."""
        return self.inp(x) if self.inputs else x

    def matrices(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """What a step multiplies state and input by, `[channels, n, n]` and `[channels, n]`, or `[1, ...]` of each;
        constants have the wider one of `dtype` and `param_dtype`."""
        n, dtype = self.state, jnp.promote_types(dtype, self.param_dtype)
        if self.basis == "companion":
            # Of a sum of sizes of at most 1 it is stable.
            column = self.last_column / jnp.maximum(jnp.abs(self.last_column).sum(-1, keepdims=True), 1)
            shift = jnp.broadcast_to(jnp.eye(n, k=-1, dtype=dtype), (*column.shape, n))
            return shift.at[..., -1].set(column), self.B
        if self.train == "none":
            several = 1 if self.dt_min == self.dt_max else self.channels
            dts = tuple(np.geomspace(self.dt_min, self.dt_max, several).tolist())
            A, B = steps(self.basis, n, dts, self.discretisation)
            return jnp.asarray(A, dtype), jnp.asarray(B, dtype)
        A, B = (self.A, self.B) if self.train == "all" else (jnp.asarray(M, dtype) for M in BASES[self.basis](n))
        half = jnp.exp(self.log_dt)[:, None, None] / 2 * A
        back = inverse(jnp.eye(n, dtype=dtype) - half)
        return back @ (jnp.eye(n, dtype=dtype) + half), (back @ (jnp.exp(self.log_dt)[:, None] * B)[..., None])[..., 0]

    def read(self, h: jax.Array, u: jax.Array) -> jax.Array:
        """States `[..., channels, n]` and their inputs `[..., channels]` -> output `[..., width]`."""
        if self.inputs:
            return self.out(h.reshape(*h.shape[:-2], self.channels * self.state))
        return self.out((h * self.C).sum(-1) + self.D * u)
