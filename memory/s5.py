"""S5: one multi-input multi-output diagonal state space (Smith, Warrington and Linderman, ICLR 2023).

    dx/dt = Lambda x + B u      y = 2 Re(C x) + D u      u held over a step of learned length dt (zero-order hold)

`Lambda`, `B` and `C` are half of a complex diagonal system; the other half is its conjugate, hence the 2 Re. Complex
matrices act as one real product on real and imaginary parts side by side, which CPUs do much faster.
"""

import math
from functools import cache
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engram.errors import BadRequest
from engram.kernels.linear_scan import join, linear_scan_planes, linear_scan_step, split
from engram.kernels.rows import rows_matmul
from engram.memory.base import About, Memory, State
from engram.memory.layers import GatedOutput, log_uniform

PERTURBATION = 0.1
BLOCK = 16
"""Size of a HiPPO block, where the number of blocks is not given."""
Complex = npt.NDArray[np.complex128]


def hippo_legs(n: int) -> np.ndarray:
    """The HiPPO-LegS matrix `[n, n]` (Gu et al. 2020), negated so that it is stable."""
    q = np.sqrt(2 * np.arange(n) + 1.0)
    return np.diag(np.arange(n)) - np.tril(np.outer(q, q))


@cache
def diagonalised_hippo(n: int) -> tuple[Complex, Complex, Complex]:
    """Half of the eigensystem of HiPPO-N, the normal part of HiPPO-LegS, of even size `n`.

    HiPPO-N = LegS + p p^T with p = sqrt(k + 1/2) is skew-symmetric minus 1/2, so its eigenvectors are orthonormal.

    Returns:
        eigenvalues `[n/2]` of positive imaginary part, V `[n, n/2]`, V^-1 `[n/2, n]`; complex128.
    """
    p = np.sqrt(np.arange(n) + 0.5)
    normal = hippo_legs(n) + np.outer(p, p)
    skew = normal + 0.5 * np.eye(n)
    frequencies, V = np.linalg.eigh(-1j * skew)
    half = slice(n // 2, None)
    return -0.5 + 1j * frequencies[half], V[:, half], V[:, half].conj().T


@cache
def perturbed_hippo(n: int) -> tuple[Complex, Complex, Complex]:
    """Eigensystem of HiPPO-LegS itself, of size `n/2`, perturbed until it can be diagonalised (Yu et al., ICLR 2024).

    LegS is so far from normal that its eigenvectors are useless in floating point. A random perturbation of a tenth
    of its norm makes them well conditioned; taken skew-Hermitian, it keeps every eigenvalue's real part <= -1/2.
    The perturbed matrix is complex, without conjugate pairs: all its `n/2` eigenvalues stay. The real part of its
    output is half of `2 Re(C x)`, so `V` comes halved.

    Returns:
        eigenvalues `[n/2]`, V / 2 `[n/2, n/2]`, V^-1 `[n/2, n/2]`; complex128.
    """
    size = n // 2
    A = hippo_legs(size)
    noise = np.random.default_rng(0).normal(size=(2, size, size))
    G = noise[0] + 1j * noise[1]
    E = G - G.conj().T
    E *= PERTURBATION * np.linalg.norm(A, 2) / np.linalg.norm(E, 2)
    eigenvalues, V = np.linalg.eig(A + E)
    system = eigenvalues, V / 2, np.linalg.inv(V)
    eigenvalues, half_V, V_inverse = (np.asarray(part, np.complex128) for part in system)
    return eigenvalues, half_V, V_inverse


SPECTRA = {"hippo": diagonalised_hippo, "ptd": perturbed_hippo}


class S5(Memory):
    """One S5 layer: state space, gelu, gate. State: complex `[B, state / 2]`."""

    about = About(
        group="diagonal",
        equation="h = exp(dt Lambda) * h' + B x, complex, fixed dt",
        source="Smith, Warrington and Linderman, ICLR 2023",
        home="https://arxiv.org/abs/2208.04933",
    )

    state: int = 64
    """Size of the real state; half as many complex numbers, by conjugate symmetry."""
    blocks: int = 0
    """Number of independent HiPPO blocks that the state starts from; `state` must be a multiple of `2 * blocks`. 0 for
    blocks of 16, or a single one where `state` is no multiple of 16: small blocks have more slow modes."""
    spectrum: Literal["hippo", "ptd"] = "hippo"
    """Eigenvalues at the start: "hippo" (HiPPO-N, the paper) or "ptd" (perturb-then-diagonalise HiPPO-LegS)."""
    dt_min: float = 1e-3
    """Shortest step length at the start, log-uniform up to `dt_max`."""
    dt_max: float = 1.0
    """Longest step length at the start. The paper has 0.1; with 1, tasks that ask for the last few inputs are learned
    several times faster."""
    gain: Literal["zoh", "unit"] = "unit"
    """Size of what an input adds to a mode: "unit" (that with which white noise makes states of variance 1, whatever
    the step, as in the LRU) or "zoh" (the paper; a mode of short steps is hardly written)."""
    gate: Literal["full_glu", "gelu"] = "full_glu"
    """Output function: "full_glu" (`W1 u * sigmoid(W2 u)`, `u = gelu(y)`, the paper) or "gelu" (`u` alone)."""
    backend: str = "auto"
    """Backend of `engram.kernels.linear_scan`."""

    def __post_init__(self) -> None:
        if self.blocks < 0 or self.state < 2 or self.state % (2 * self.block_count):
            raise BadRequest(
                f"s5: state ({self.state}) must be a positive multiple of 2 * blocks ({2 * self.block_count})"
            )
        if not 0 < self.dt_min < self.dt_max < math.inf:
            raise BadRequest(f"s5: needs 0 < dt_min ({self.dt_min}) < dt_max ({self.dt_max}), all finite")
        super().__post_init__()

    @property
    def block_count(self) -> int:
        """Number of blocks, whoever chose it."""
        return self.blocks or (1 if self.state % BLOCK else self.state // BLOCK)

    def setup(self) -> None:
        half, width, dtype, blocks = self.state // 2, self.width, self.param_dtype, self.block_count
        eigenvalues, V, V_inverse = SPECTRA[self.spectrum](self.state // blocks)
        rows = V.shape[0]  # of one block, before it is diagonalised
        eigenvalues = np.tile(eigenvalues, blocks)

        def init_B(key):
            """Real normal B of variance `1 / state`, as the authors', each block multiplied by V^-1 ->
            `[width, 2 * half]`: Re | Im."""
            B = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)(key, (width, blocks * rows), dtype)
            planes = jnp.asarray(np.stack([V_inverse.real, V_inverse.imag]), dtype)
            return jnp.einsum("cpq,wjq->wcjp", planes, B.reshape(width, blocks, rows)).reshape(width, 2 * half)

        def init_C(key):
            """Complex lecun-normal C, each block multiplied by V -> `[2 * half, width]`: Re over -Im."""
            parts = nn.initializers.lecun_normal(batch_axis=0)(key, (2, blocks * rows, width), dtype)
            re, im = parts.reshape(2, blocks, rows, width)
            V_re, V_im = jnp.asarray(V.real, dtype), jnp.asarray(V.imag, dtype)
            C_re = jnp.einsum("qp,jqw->jpw", V_re, re) - jnp.einsum("qp,jqw->jpw", V_im, im)
            C_im = jnp.einsum("qp,jqw->jpw", V_im, re) + jnp.einsum("qp,jqw->jpw", V_re, im)
            return jnp.stack([C_re, -C_im]).reshape(2 * half, width)

        # -exp keeps the real parts negative, hence the system stable, whatever the optimiser does.
        self.log_neg_re = self.param("log_neg_re", lambda _: jnp.asarray(np.log(-eigenvalues.real), dtype))
        self.im = self.param("im", lambda _: jnp.asarray(eigenvalues.imag, dtype))
        self.log_dt = self.param("log_dt", log_uniform(self.dt_min, self.dt_max), (half,), dtype)
        self.B = self.param("B", init_B)
        self.C = self.param("C", init_C)
        self.D = self.param("D", nn.initializers.normal(1.0), (width,), dtype)
        self.out = GatedOutput(width, dtype) if self.gate == "full_glu" else nn.gelu

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.state // 2), jnp.promote_types(self.param_dtype, jnp.complex64))

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        decay, drive = self.discretise(x)
        h, state = linear_scan_planes(decay, drive, reset, state, backend=self.backend)
        return state, self.read(h, x)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        decay, drive = self.discretise(x)
        state, h = linear_scan_step(state, decay, join(drive), reset)
        return state, self.read(split(h), x)

    def discretise(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Zero-order hold: `exp(Lambda dt)`, complex `[P]`; `Lambda^-1 (exp(Lambda dt) - 1) B x`, or that of unit gain,
        real `[..., 2 P]`: its real and imaginary parts."""
        eigenvalues = lax.complex(-jnp.exp(self.log_neg_re), self.im)
        exponent = eigenvalues * jnp.exp(self.log_dt)
        gain = jnp.expm1(exponent) / eigenvalues
        if self.gain == "unit":
            gain = gain / jnp.abs(gain) * jnp.sqrt(-jnp.expm1(2 * exponent.real))
        B_re, B_im = jnp.split(self.B, 2, -1)
        B_bar = jnp.concatenate([B_re * gain.real - B_im * gain.imag, B_re * gain.imag + B_im * gain.real], -1)
        return jnp.exp(exponent), rows_matmul(x, B_bar)

    def read(self, h: jax.Array, x: jax.Array) -> jax.Array:
        """State `[..., 2 P]`, real and imaginary parts, and input `[..., width]` -> output `[..., width]`."""
        return self.out(2 * rows_matmul(h, self.C) + self.D * x)
