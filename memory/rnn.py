"""Recurrent networks without gates: one layer of units `h`, read by a dense layer, in five kinds.

    elman      h[t] = phi(W x + U h[t-1] + b)                                            Elman (1990)
    indrnn     h[t] = relu(W x + u * h[t-1] + b), |u| <= 2^(1/max_steps)                 Li et al., CVPR 2018
    leaky      h[t] = (1 - 1/tau) h[t-1] + 1/tau phi(W x + U h[t-1] + b)                 after Yamashita and Tani (2008)
    alrnn      h[t] = A h[t-1] + U r(h[t-1]) + W x + b, r: relu on the last few units    Brenner et al., NeurIPS 2024
    reservoir  as leaky, with W, U, b and tau as they are drawn                          Jaeger et al. (2007)

`A`, `u` and `tau` are one number for each unit. The output is `V h + c`. In a reservoir this alone is learned; its `U`
is an orthogonal matrix times `radius`, which is its spectral radius.
"""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.rnn_scan import rnn_scan, rnn_scan_step
from engram.kernels.rows import rows_matmul
from engram.memory.base import About, Memory, State
from engram.memory.layers import Dense, log_uniform, orthogonal, uniform


@jax.custom_vjp
def bounded(u: jax.Array, limit: float) -> jax.Array:
    """`u` clipped to `[-limit, limit]`. Where it is clipped a gradient passes if descending it leads back inside."""
    return jnp.clip(u, -limit, limit)


def _bounded_forward(u, limit):
    return bounded(u, limit), (u, limit)


def _bounded_backward(residuals, g):
    u, limit = residuals
    return jnp.where((jnp.abs(u) > limit) & (u * g < 0), 0, g), None


bounded.defvjp(_bounded_forward, _bounded_backward)


class RNN(Memory):
    """One layer of units without gates and a dense layer. State: `h[B, width]`."""

    about = About(
        group="recurrent",
        equation="h = phi(W x + U h')",
        source="Elman 1990; options: IndRNN, leaky units, almost-linear RNN, reservoir",
        home="https://doi.org/10.1207/s15516709cog1402_1",
    )

    kind: Literal["elman", "indrnn", "leaky", "alrnn", "reservoir"] = "elman"
    """Kind of network: elman, indrnn (a unit sees itself alone), leaky (units with time constants of their own), alrnn
    (almost linear) or reservoir (leaky, with nothing learned but the output)."""
    activation: Literal["auto", "tanh", "relu"] = "auto"
    """Function of the new value: tanh, relu or auto (relu for indrnn, else tanh); alrnn has none."""
    max_timescale: float = 64.0
    """Longest time constant of the units of leaky, alrnn and reservoir at the start, in steps; log-uniform from 1."""
    max_steps: int = 1024
    """Steps within which a unit of indrnn at most doubles by itself."""
    rectified: int = 2
    """Number of units of alrnn that the others see through a relu; at most the width."""
    radius: float = 0.9
    """Spectral radius of the recurrent matrix of a reservoir; below 1 it forgets how it began."""
    backend: str = "auto"
    """Backend of `engram.kernels.rnn_scan`."""

    def __post_init__(self) -> None:
        if self.kind == "alrnn" and self.activation != "auto":
            raise BadRequest("rnn: kind=alrnn has no activation")
        if self.kind == "alrnn" and not 0 <= self.rectified <= self.width:
            raise BadRequest(f"rnn: rectified must lie in [0, {self.width}], the width, got {self.rectified}")
        if self.max_steps < 1 or not (1 <= self.max_timescale < math.inf and 0 < self.radius < math.inf):
            raise BadRequest("rnn: needs max_steps >= 1, a finite max_timescale >= 1 and a finite radius > 0")
        super().__post_init__()

    def setup(self) -> None:
        width, dtype = self.width, self.param_dtype
        reservoir = self.kind == "reservoir"

        def init_tau(key, shape, dtype):
            beyond_one = jnp.maximum(jnp.exp(log_uniform(1.0, self.max_timescale)(key, shape, dtype)) - 1, 1e-3)
            return beyond_one + jnp.log(-jnp.expm1(-beyond_one))  # inverse softplus

        def init_A(key, shape, dtype):
            return 1 - 1 / jnp.exp(log_uniform(1.0, self.max_timescale)(key, shape, dtype))

        def init_u(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, 0.0, self.limit)

        init_U = {"indrnn": init_u, "alrnn": nn.initializers.normal(0.01)}.get(self.kind, orthogonal())
        if self.kind == "elman" and self.activation == "relu":  # Le, Jaitly and Hinton 2015: other matrices forget
            init_U = lambda key, shape, dtype: jnp.eye(width, dtype=dtype)  # noqa: E731
        self.W = self.param("W", nn.initializers.lecun_normal(), (width, width), dtype)
        self.b = self.param("b", uniform(0.1) if reservoir else nn.initializers.zeros, (width,), dtype)
        self.U = self.param("U", init_U, (width,) if self.kind == "indrnn" else (width, width), dtype)
        if self.kind in ("leaky", "reservoir"):
            self.tau = self.param("tau", init_tau, (width,), dtype)
        if self.kind == "alrnn":
            self.A = self.param("A", init_A, (width,), dtype)
        self.out = Dense(width, param_dtype=dtype)

    @property
    def limit(self) -> float:
        return 2 ** (1 / self.max_steps)

    @property
    def functions(self) -> dict[str, Any]:
        """The kernel's options."""
        if self.kind == "alrnn":
            return {"activation": "identity", "rectified": self.rectified}
        auto = "relu" if self.kind == "indrnn" else "tanh"
        return {"activation": auto if self.activation == "auto" else self.activation}

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return jnp.zeros((batch, self.width), self.param_dtype)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        h, state = rnn_scan(*self.write(x), reset, state, backend=self.backend, **self.functions)
        return state, self.out(h)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        state, h = rnn_scan_step(state, *self.write(x), reset, **self.functions)
        return state, self.out(h)

    def write(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """-> `W x + b`, `[..., width]`; `U`; what each unit keeps and what it takes, `[width]`."""
        W, b, U = self.W, self.b, self.U
        keep, gain = jnp.zeros_like(b), jnp.ones_like(b)
        if self.kind == "indrnn":
            U = bounded(U, self.limit)
        elif self.kind == "alrnn":
            keep = self.A
        elif self.kind in ("leaky", "reservoir"):
            tau = self.tau
            if self.kind == "reservoir":
                W, b, U, tau = fixed(W), lax.stop_gradient(b), self.radius * fixed(U), lax.stop_gradient(tau)
            gain = 1 / (1 + nn.softplus(tau))
            keep = 1 - gain
        return rows_matmul(x, W) + b, U, keep, gain


def fixed(matrix: jax.Array) -> jax.Array:
    """A matrix that is not learned, scaled so that its columns have mean square length 1, as orthogonal matrices have.

    Weight decay, which needs no gradient, shrinks the parameter and leaves this as it is.
    """
    matrix = lax.stop_gradient(matrix)
    return matrix * (math.sqrt(matrix.shape[-1]) / jnp.linalg.norm(matrix))
