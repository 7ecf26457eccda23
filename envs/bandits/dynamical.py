"""Dynamical linear bandits: an action acts on a hidden linear system, which pays later as well as now.

Mussi, Metelli and Restelli, "Dynamical Linear Bandits" (ICML 2023, arXiv 2211.08997):

    y_t = <omega, x_t> + <theta, u_t> + eta_t,      x_{t+1} = A x_t + B u_t + eps_t,      spectral radius of A < 1

Only the reward y_t is seen. An action u that is held for ever pays J(u) = <h, u> a round, with
h = theta + B' (I - A')^{-1} omega.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtri
from numpy.typing import ArrayLike

from engram.envs.base import Environment, Info, NoParams, UniformEnvironment
from engram.envs.spaces import Discrete
from engram.errors import BadRequest

Matrix = tuple[tuple[float, ...], ...]
Vector = tuple[float, ...]


@struct.dataclass
class System:
    """One instance: a hidden state of `n` numbers, actions of `d` numbers, `k` actions."""

    A: jax.Array
    """`[n, n]`: transition matrix of the hidden state."""
    B: jax.Array
    """`[n, d]`: effect of an action on the hidden state."""
    omega: jax.Array
    """`[n]`: weights of the hidden state in the reward."""
    theta: jax.Array
    """`[d]`: weights of the action in the reward."""
    actions: jax.Array
    """`[k, d]`: the actions, one a row."""
    value: jax.Array
    """`[k]`: J of every action."""


@struct.dataclass
class DynamicalState:
    """State of a `DynamicalBandit`."""

    system: System
    x: jax.Array
    """`[n]`: the hidden state."""


@dataclass(frozen=True)
class Bounds:
    """Bounds on a system that a learner may know; every instance keeps within them."""

    radius: float
    """Bound on the spectral radius of A, in [0, 1)."""
    omega: float
    """Bound on the norm of omega."""
    theta: float
    """Bound on the norm of theta."""
    gain: float
    """Bound on the spectral norm of B."""
    action: float
    """Bound on the norm of an action."""
    growth: float
    """Bound on the spectral norm of A^i / radius^i over i = 0, 1, ..."""
    sigma: float
    """Bound on the standard deviation of eta and of every component of eps."""


def normal(uniforms: jax.Array) -> jax.Array:
    """Standard normal numbers by the inverse distribution function; a uniform of 0 counts as half the least positive
    one."""
    return ndtri(jnp.maximum(uniforms, jnp.finfo(uniforms.dtype).eps / 2))


def growth(A: np.ndarray, radius: float) -> float:
    """`sup_i |A^i| / radius^i`, infinite where `radius` is below A's spectral radius (or both are 0 and A is not)."""
    if radius == 0:
        return np.inf if np.any(A) else 1.0
    power, largest = np.eye(len(A)), 1.0
    for _ in range(1000):
        power = power @ A / radius
        largest = max(largest, float(np.linalg.norm(power, 2)))
    return largest if largest < 1e12 else np.inf


class DynamicalBandit(UniformEnvironment):
    """Observation: nothing, Discrete(1). Action: a row of the action set, Discrete(k). Reward: y_t. Never ends.

    A step uses the uniforms `[eps_1, ..., eps_n, eta]`, as normal numbers. `info` holds `mean` = J of the action and
    `optimal` = the largest J.
    """

    cheap_reset = True
    state_sigma: float
    """Standard deviation of every component of eps."""
    output_sigma: float
    """Standard deviation of eta."""

    def instance(self, key: jax.Array) -> System:
        """The system that a reset with this key opens."""
        raise NotImplementedError

    def bounds(self, radius: float | None = None) -> Bounds:
        """The tightest bounds that hold for every instance, with the `growth` that goes with `radius` if given."""
        raise NotImplementedError

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, DynamicalState]:
        system = self.instance(key)
        return jnp.int32(0), DynamicalState(system, jnp.zeros_like(system.omega))

    def transition(
        self, state: DynamicalState, action: jax.Array | int, uniforms: jax.Array, params: NoParams
    ) -> tuple[jax.Array, DynamicalState, jax.Array, jax.Array, jax.Array, Info]:
        system, noise = state.system, normal(uniforms)
        u = system.actions[action]
        # Sums of products instead of `@`: under `vmap` they fuse, which tiny batched matrix products do not.
        reward = jnp.sum(system.omega * state.x) + jnp.sum(system.theta * u) + self.output_sigma * noise[-1]
        x = jnp.sum(system.A * state.x, 1) + jnp.sum(system.B * u, 1) + self.state_sigma * noise[:-1]
        info = {"mean": system.value[action], "optimal": jnp.max(system.value)}
        return jnp.int32(0), DynamicalState(system, x), reward, jnp.bool_(False), jnp.bool_(False), info

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(1)

    def max_steps(self, params: NoParams) -> None:
        return None


@dataclass(frozen=True)
class FixedSystem(DynamicalBandit):
    """A system given by its arrays, the same for every key. Made by `from_arrays`, which checks it."""

    A: Matrix
    B: Matrix
    omega: Vector
    theta: Vector
    actions: Matrix
    state_sigma: float
    output_sigma: float

    @property
    def num_uniforms(self) -> int:
        return len(self.omega) + 1

    @property
    def h(self) -> np.ndarray:
        """`[d]` float64: reward a round of a unit of each component of an action held for ever."""
        A, B = np.array(self.A), np.array(self.B)
        return np.array(self.theta) + B.T @ np.linalg.solve(np.eye(len(A)) - A.T, np.array(self.omega))

    def instance(self, key: jax.Array) -> System:
        dtype = jnp.result_type(float)
        arrays = (self.A, self.B, self.omega, self.theta, self.actions, np.array(self.actions) @ self.h)
        return System(*(jnp.asarray(a, dtype) for a in arrays))

    def bounds(self, radius: float | None = None) -> Bounds:
        A = np.array(self.A)
        own = spectral_radius(A)
        radius = own if radius is None else radius
        return Bounds(
            radius=radius,
            omega=float(np.linalg.norm(self.omega)),
            theta=float(np.linalg.norm(self.theta)),
            gain=float(np.linalg.norm(self.B, 2)),
            action=float(np.max(np.linalg.norm(self.actions, axis=1))),
            growth=growth(A, radius),
            sigma=max(self.state_sigma, self.output_sigma),
        )

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(len(self.actions))


@dataclass(frozen=True)
class RandomSystem(DynamicalBandit):
    """A drawn system: A is `radius` times a random rotation, |omega| = |theta| = |B| = 1, actions on the unit sphere.

    All its bounds are the same whatever the instance: 1, and the spectral radius.
    """

    states: int
    dimension: int
    num_actions: int
    radius: float
    state_sigma: float
    output_sigma: float
    instance_seed: int | None

    def __post_init__(self):
        for name in ("states", "dimension", "num_actions"):
            if getattr(self, name) < 1:
                raise BadRequest(f"dynamical/Random: {name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.radius < 1.0:
            raise BadRequest(f"dynamical/Random: radius must lie in [0, 1), got {self.radius}")
        _check_sigma("dynamical/Random", self.state_sigma, self.output_sigma)

    @property
    def num_uniforms(self) -> int:
        return self.states + 1

    def instance(self, key: jax.Array) -> System:
        key = key if self.instance_seed is None else jax.random.key(self.instance_seed)
        n, d, dtype = self.states, self.dimension, jnp.result_type(float)
        keys = jax.random.split(key, 5)
        A = self.radius * jnp.linalg.qr(jax.random.normal(keys[0], (n, n), dtype))[0]
        B = jax.random.normal(keys[1], (n, d), dtype)
        B = B / jnp.linalg.norm(B, 2)
        omega, theta = jax.random.normal(keys[2], (n,), dtype), jax.random.normal(keys[3], (d,), dtype)
        omega, theta = omega / jnp.linalg.norm(omega), theta / jnp.linalg.norm(theta)
        actions = jax.random.normal(keys[4], (self.num_actions, d), dtype)
        actions = actions / jnp.linalg.norm(actions, axis=1, keepdims=True)
        h = theta + B.T @ jnp.linalg.solve(jnp.eye(n, dtype=dtype) - A.T, omega)
        return System(A, B, omega, theta, actions, actions @ h)

    def bounds(self, radius: float | None = None) -> Bounds:
        radius = self.radius if radius is None else radius
        growth = 1.0 if radius >= self.radius else np.inf
        sigma = max(self.state_sigma, self.output_sigma)
        return Bounds(radius, omega=1.0, theta=1.0, gain=1.0, action=1.0, growth=growth, sigma=sigma)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_actions)


def spectral_radius(A: np.ndarray) -> float:
    """Largest absolute eigenvalue."""
    return float(np.max(np.abs(np.linalg.eigvals(A))))


def _check_sigma(name: str, state_sigma: float, output_sigma: float) -> None:
    for field, value in (("state_sigma", state_sigma), ("output_sigma", output_sigma)):
        if not 0.0 <= value < np.inf:
            raise BadRequest(f"{name}: {field} must be a number from 0, got {value}")


def from_arrays(
    A: ArrayLike,
    B: ArrayLike,
    omega: ArrayLike,
    theta: ArrayLike,
    actions: ArrayLike,
    state_sigma: float,
    output_sigma: float,
) -> FixedSystem:
    """A system from arrays `[n, n], [n, d], [n], [d], [k, d]`.

    Raises:
        BadRequest: shapes do not fit, a number is not finite, or A's spectral radius is not below 1.
    """
    arrays = [np.asarray(a, np.float64) for a in (A, B, omega, theta, actions)]
    n, d = arrays[2].size, arrays[3].size
    k = arrays[4].shape[0] if arrays[4].ndim else 0
    for name, array, shape in zip(
        ("A", "B", "omega", "theta", "actions"), arrays, ((n, n), (n, d), (n,), (d,), (k, d)), strict=True
    ):
        if array.shape != shape or array.size == 0:
            raise BadRequest(f"dynamical bandit: {name} must have shape {shape} and not be empty, got {array.shape}")
        if not np.all(np.isfinite(array)):
            raise BadRequest(f"dynamical bandit: {name} must hold finite numbers")
    radius = spectral_radius(arrays[0])
    if not radius < 1.0:
        raise BadRequest(f"dynamical bandit: A must have a spectral radius below 1, got {radius:.6g}")
    _check_sigma("dynamical bandit", state_sigma, output_sigma)

    def rows(matrix: np.ndarray) -> Matrix:
        return tuple(tuple(map(float, row)) for row in matrix)

    def numbers(vector: np.ndarray) -> Vector:
        return tuple(map(float, vector))

    return FixedSystem(
        rows(arrays[0]), rows(arrays[1]), numbers(arrays[2]), numbers(arrays[3]), rows(arrays[4]),
        float(state_sigma), float(output_sigma),
    )  # fmt: skip


def budgets(components: Sequence[float]) -> np.ndarray:
    """All orders of `components`, sorted, `[k, d]`: every way to spread a budget over channels."""
    return np.array(sorted(set(itertools.permutations(components))))


def diagonal(*, sigma: float = 0.01) -> FixedSystem:
    """The paper's synthetic system; three outputs are added up, so the noise of their sum is sqrt(3) sigma.

    Source: arXiv 2211.08997, section 7 (numbers as in the authors' configuration). J = .8125 at best, .78125 second.
    """
    A, B = np.diag([0.2, 0.0, 0.1]), np.diag([0.45, 0.0, 0.1])
    omega, theta = np.array([1.0, 0.0, 0.1]), np.array([0.0, 0.5, 0.1])
    return from_arrays(A, B, omega, theta, budgets((1.0, 0.5, 0.0)), sigma, sigma * 3**0.5)


def advertising(*, sigma: float = 0.01) -> FixedSystem:
    """The paper's second system, fitted by its authors to the budgets and sales of three advertising channels.

    Source: as above; its spectral radius is about .79. Columns of C and D are summed over the three outputs.
    """
    A = [[0.38, 0.33, 0.6], [0.07, 0.76, -0.54], [0.18, 0.34, 0.05]]
    B = [[0.14, 0.34, -0.05], [-0.17, 0.03, -0.01], [0.04, -0.09, 0.17]]
    C = np.array([[0.25, -0.14, 0.01], [-0.55, 0.2, -0.13], [-0.31, -0.1, -0.01]])
    D = np.array([[0.11, 0.1, 0.01], [0.01, 0.36, 0.01], [0.01, -0.05, 0.0]])
    return from_arrays(A, B, C.sum(0), D.sum(0), budgets((1.0, 0.5, 0.0)), sigma, sigma * 3**0.5)


def random(
    *,
    states: int = 3,
    dimension: int = 3,
    actions: int = 10,
    radius: float = 0.6,
    sigma: float = 0.1,
    instance_seed: int | None = None,
) -> RandomSystem:
    """A system drawn at reset, or from `instance_seed`."""
    return RandomSystem(states, dimension, actions, radius, sigma, sigma, instance_seed)


NAMES: dict[str, Callable[..., Environment]] = {"Diagonal": diagonal, "Advertising": advertising, "Random": random}
"""Public names of the family `dynamical`."""
