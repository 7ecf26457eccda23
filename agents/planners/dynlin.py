"""DynLin-UCB and its static rivals on dynamical linear bandits (Mussi et al., ICML 2023, arXiv 2211.08997).

DynLin-UCB holds its m-th action for H_m + 1 rounds, H_m = floor(log m / log(1 / rho)), and learns from the last of them
alone: by then the hidden state has all but settled. LinUCB (Abbasi-Yadkori et al. 2011) and D-LinUCB (Russac et al.
2019, arXiv 1909.09146) may change their action every round and learn from each.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.agents.common import checks
from engram.agents.planners.base import BanditPlanner
from engram.envs.bandits.dynamical import Bounds, DynamicalBandit, DynamicalState
from engram.errors import BadRequest
from engram.training.types import Key, Metrics

ALGORITHMS = ("dynlin-ucb", "linucb", "d-linucb")
LEAST_RADIUS = 1e-6  # below this radius nothing is held: the schedule's logarithm would divide by zero


@dataclass(frozen=True)
class DynLinSettings:
    """Settings of DynLin-UCB, LinUCB and D-LinUCB. A bound that is None is the tightest one, taken from the system."""

    steps_per_update: int = 1000
    """Rounds of one compiled update."""
    confidence_scale: float = 1.0
    """Factor on the width beta of the confidence set: 1 is the theory's, 0 plays greedily."""
    delta: float | None = None
    """Probability that the confidence set fails (None: 1 / T in a run of T rounds)."""
    regularisation: float | None = None
    """Weight lambda of the ridge regression's penalty (None: log T in a run of T rounds)."""
    radius: float | None = None
    """Bound on the spectral radius of A, which sets how long actions are held (None: the system's own)."""
    omega: float | None = None
    """Bound on the norm of omega; 0 leaves the transient's term c2 out of beta (None: the system's own)."""
    theta: float | None = None
    """Bound on the norm of theta (None: the system's own)."""
    gain: float | None = None
    """Bound on the spectral norm of B (None: the system's own)."""
    action: float | None = None
    """Bound on the norm of an action (None: the largest norm in the action set)."""
    growth: float | None = None
    """Bound on |A^i| / radius^i over all i (None: the system's own)."""
    sigma: float | None = None
    """Bound on the standard deviation of every noise (None: the system's own)."""
    discount: float = 0.999999
    """Forgetting factor of D-LinUCB."""

    def __post_init__(self):
        checks.require_at_least(self, "dynlin.", 1, "steps_per_update", "growth")
        checks.require_finite(self, "dynlin.", "growth")
        checks.require_not_negative(self, "dynlin.", "confidence_scale", "omega", "theta", "gain", "action", "sigma")
        checks.require_positive(self, "dynlin.", "regularisation")
        checks.require_share_below_one(self, "dynlin.", "radius")
        checks.require_inner_share(self, "dynlin.", "delta", "discount")


class DynLinState(struct.PyTreeNode):
    """Everything that a run of one seed carries. `k` is the number of actions."""

    env: DynamicalState
    key: jax.Array
    counts: jax.Array
    """`[k]`: samples taken of each action, discounted in D-LinUCB."""
    squared_counts: jax.Array
    """`[k]`: the same with the discount squared."""
    means: jax.Array
    """`[k]`: mean of each action's samples, discounted likewise."""
    action: jax.Array
    """The action being held, int32."""
    left: jax.Array
    """Rounds for which the action will still be held, int32."""
    decisions: jax.Array
    """Actions chosen so far, int32."""
    t: jax.Array
    """Rounds played so far, int32."""
    regret: jax.Array
    """Sum of J* - J(u_t) so far."""
    reward_sum: jax.Array


class DynLinStep(struct.PyTreeNode):
    """One round of a trace."""

    action: jax.Array
    reward: jax.Array
    mean: jax.Array
    """Value J of the action."""
    optimal: jax.Array
    """Largest value J of all actions."""
    chosen: jax.Array
    """Whether the action was chosen in this round, rather than held."""
    h: jax.Array
    """`[d]`: estimate of h before the round."""


@functools.cache
def hold_lengths(radius: float, decisions: int) -> np.ndarray:
    """`[M_1, M_2, ...]`: H_m = floor(log m / log(1 / radius)) reaches j at the M_j-th decision, up to `decisions`.

    A table instead of the formula, so that no rounding of a logarithm on a device can shorten a hold.
    """
    if radius < LEAST_RADIUS:
        return np.zeros(0, np.int32)
    m = np.arange(1, decisions + 1)
    # The small constant: log(25) / log(5) must count as 2 even if it comes out one rounding below.
    H = np.floor(np.log(m) / math.log(1 / radius) + 1e-9).astype(np.int64)
    return np.searchsorted(H, np.arange(1, H[-1] + 1)).astype(np.int32) + 1


def inverse(V: jax.Array) -> jax.Array:
    """Inverse of a small symmetric positive definite matrix `[d, d]`, by Gauss-Jordan without pivots.

    Unrolled, so that under `vmap` it fuses into a few loops over seeds, where LAPACK is called once for each.
    """
    d = V.shape[0]
    rows = jnp.concatenate([V, jnp.eye(d, dtype=V.dtype)], 1)
    for i in range(d):
        pivot = rows[i] / rows[i, i]
        rows = (rows - rows[:, i : i + 1] * pivot).at[i].set(pivot)
    return rows[:, d:]


def first_best(values: jax.Array) -> jax.Array:
    """Index of the largest of `values [k]`, the lowest of those that differ from it by no more than rounding."""
    best = jnp.max(values)
    return jnp.argmax(values >= best - 1e-6 * jnp.maximum(1.0, jnp.abs(best))).astype(jnp.int32)


@dataclass(frozen=True, eq=False)
class DynLin(BanditPlanner[DynLinState, DynLinStep]):
    """One algorithm on one dynamical linear bandit.

    Regret is T J* - sum J(u_t), the measure of the authors' code: what the best constant action would have earned in
    its steady state, less what the played actions would.
    """

    algorithms = ALGORITHMS
    family = "dynamical"
    env_type = DynamicalBandit

    env: DynamicalBandit
    settings: DynLinSettings

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.bounds.growth):
            raise BadRequest(
                f"dynlin.radius must be at least the system's spectral radius {self.env.bounds().radius:.6g} "
                f"(and positive unless A = 0) or dynlin.growth be given, got {self.bounds.radius}"
            )

    @property
    def bounds(self) -> Bounds:
        """The settings' bounds, completed by the system's own."""
        own, s = self.env.bounds(self.settings.radius), self.settings

        def given(name: str) -> float:
            value = getattr(s, name)
            return getattr(own, name) if value is None else value

        return Bounds(*(given(n) for n in ("radius", "omega", "theta", "gain", "action", "growth", "sigma")))

    @property
    def regularisation(self) -> float:
        """Lambda."""
        given = self.settings.regularisation
        return max(math.log(self.total_steps), 1.0) if given is None else given

    @property
    def discount(self) -> float:
        """Factor on what was learned, a round."""
        return self.settings.discount if self.algorithm == "d-linucb" else 1.0

    def init(self, key: Key) -> DynLinState:
        key, env_key = jax.random.split(key)
        _, env = self.env.reset(env_key, self.env.default_params)
        zeros = jnp.zeros_like(env.system.value)
        zero, count = jnp.zeros((), zeros.dtype), jnp.int32(0)
        return DynLinState(env, key, zeros, zeros, zeros, count, count, count, count, zero, zero)

    def beta(self, t: jax.Array, d: int) -> jax.Array:
        """Width of the confidence set after `t` rounds, in dimension `d` (theorem 4 and its counterparts)."""
        b, lam, t = self.bounds, self.regularisation, t.astype(jnp.result_type(float))
        delta = 1 / self.total_steps if self.settings.delta is None else self.settings.delta
        c1 = b.theta + b.omega * b.gain * b.growth / (1 - b.radius)
        x = b.action / (1 - b.radius)  # bound of the state's norm as in the authors' code
        c2 = b.action * b.omega * b.growth * (b.action * b.gain / (1 - b.radius) + x)
        variance = b.sigma**2 * (1 + b.omega**2 * b.growth**2 / (1 - b.radius**2))
        samples = t
        if self.algorithm == "d-linucb":
            squared = self.settings.discount**2
            samples = -jnp.expm1(t * math.log(squared)) / (1 - squared)  # sum of discount^(2 s) over s < t
        beta = c1 * lam**0.5 + jnp.sqrt(
            2 * variance * (math.log(1 / delta) + d / 2 * jnp.log1p(samples * b.action**2 / (d * lam)))
        )
        if self.algorithm == "dynlin-ucb":
            beta += c2 / lam**0.5 * (1 + jnp.log1p(t))  # log(e (t + 1)): what holding leaves of the transient
        return self.settings.confidence_scale * beta

    def estimate(self, state: DynLinState) -> tuple[jax.Array, jax.Array]:
        """Ridge estimate of h, `[d]`, and each action's norm under the inverse design, `[k]`.

        The design is rebuilt from counts, which float32 holds exactly, instead of being summed up over the run.
        """
        U = state.env.system.actions
        outer = U[:, :, None] * U[:, None, :]
        ridge = self.regularisation * jnp.eye(U.shape[1], dtype=U.dtype)
        V_inv = inverse(ridge + jnp.sum(state.counts[:, None, None] * outer, 0))
        h = jnp.sum(V_inv * jnp.sum((state.counts * state.means)[:, None] * U, 0), 1)
        z = jnp.sum(U[:, None, :] * V_inv, 2)  # rows V^-1 u
        if self.algorithm == "d-linucb":  # |u| under V^-1 V~ V^-1, V~ discounted twice as fast
            V2 = ridge + jnp.sum(state.squared_counts[:, None, None] * outer, 0)
            return h, jnp.sqrt(jnp.sum(z[:, :, None] * V2 * z[:, None, :], (1, 2)))
        return h, jnp.sqrt(jnp.sum(z * U, 1))

    def play_round(self, state: DynLinState, uniforms: jax.Array) -> tuple[DynLinState, DynLinStep]:
        U, gamma = state.env.system.actions, self.discount
        h, norms = self.estimate(state)
        ucb = jnp.sum(U * h, 1) + self.beta(state.t, U.shape[1]) * norms
        chosen = state.left == 0
        action = jnp.where(chosen, first_best(ucb), state.action)
        decisions = state.decisions + chosen
        # H_m of the m-th decision is the number of thresholds that m has reached.
        thresholds = jnp.asarray(
            hold_lengths(self.bounds.radius if self.algorithm == "dynlin-ucb" else 0.0, self.total_steps)
        )
        left = jnp.where(chosen, 1 + jnp.sum(decisions >= thresholds, dtype=jnp.int32), state.left) - 1

        _, env, reward, _, _, info = self.env.transition(state.env, action, uniforms, self.env.default_params)

        # Only the last round of a hold is learned from. Discounting leaves the means of other arms as they are.
        sample = (jnp.arange(U.shape[0]) == action) & (left == 0)
        counts = gamma * state.counts + sample
        means = state.means + jnp.where(sample, (reward - state.means) / jnp.maximum(counts, 1), 0)
        step = DynLinStep(action, reward, info["mean"], info["optimal"], chosen, h)
        state = state.replace(
            env=env,
            counts=counts,
            squared_counts=gamma**2 * state.squared_counts + sample,
            means=means,
            action=action,
            left=left,
            decisions=decisions,
            t=state.t + 1,
        )
        return state, step

    def summarise(self, state: DynLinState, trace: DynLinStep) -> tuple[DynLinState, Metrics]:
        h, _ = self.estimate(state)
        return state, {
            "train/return": jnp.mean(trace.reward),
            "train/regret_last": state.regret,
            "train/best_action": jnp.mean((trace.mean >= trace.optimal).astype(h.dtype)),
            "train/decisions_last": state.decisions,
            # Largest error of <h, u> over the actions, where the transient's bias would show.
            "train/value_error_last": jnp.max(jnp.abs(state.env.system.actions @ h - state.env.system.value)),
        }
