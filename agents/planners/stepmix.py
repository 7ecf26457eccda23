"""StepMix and EpsMix: exploring an episodic MDP no worse than a baseline (Li, Huang, Shen and Yang, ICML 2023).

Source: "Near-optimal Conservative Exploration in Reinforcement Learning under Episode-wise Constraints", arXiv
2306.06265.

The learner knows the rewards and a safe baseline policy, not the kernels, and has to keep the value of the policy of
*every* episode at or above a threshold with probability 1 - delta. Before each episode it bounds the values of H + 1
candidates (the baseline for the first j steps, the optimistic policy after) from both sides. StepMix plays the most
optimistic candidate whose lower bound passes, mixed at one step with its neighbour until the bound is just met. EpsMix
tosses a coin between the optimistic policy and the baseline for the whole episode. `bpi-ucbvi` always plays the
optimistic policy of the same bounds (Ménard et al. 2021, arXiv 2007.13442), `baseline` always the baseline.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.agents.common import checks
from engram.agents.planners.base import Planner
from engram.envs.tabular.episodic import (
    START,
    EpisodicMDP,
    EpisodicState,
    Instance,
    boltzmann,
    inverse_cdf,
    optimal_values,
    policy_values,
    second_best,
    total,
)
from engram.errors import BadRequest
from engram.training.types import Key, Metrics

ALGORITHMS = ("stepmix", "epsmix", "bpi-ucbvi", "baseline")
Baseline = Literal["boltzmann", "deterministic", "data-bc", "data-pessimistic"]
TOLERANCE = 1e-5
"""How far below the threshold a value may lie by rounding and still count as safe."""
EXACT_COUNTS = 1 << 24
"""Up to here float32 counts are exact."""


@dataclass(frozen=True)
class StepMixSettings:
    """Settings of StepMix, EpsMix, BPI-UCBVI and the baseline alone."""

    episodes_per_update: int = 100
    """Episodes of one compiled update."""
    baseline: Baseline = "boltzmann"
    """Safe policy: "boltzmann" (proportional to exp(eta Q*)), "deterministic" (the second best action of Q*), "data-bc"
    or "data-pessimistic" (learned from episodes of the Boltzmann policy, by counting actions or by lower bounds)."""
    eta: float = 5.0
    """Inverse temperature of the Boltzmann policy; 0 is uniform, a large value is near optimal."""
    data_episodes: int = 0
    """Episodes of the Boltzmann policy from which a "data-..." baseline is learned: half shape the baseline, half are
    counted."""
    alpha: float = 0.2
    """Share of the baseline's exact value that may be lost: the threshold is (1 - alpha) times that value (with a
    "data-..." baseline, times the value of the policy that made the data)."""
    gamma: float | None = None
    """Threshold itself, as the value of a whole episode (None: the one that alpha gives)."""
    delta: float = 0.1
    """Probability with which some episode may fall below the threshold."""
    bonus_scale: float = 0.002
    """Factor on the bonuses; the guarantee needs 1."""

    def __post_init__(self):
        checks.require_at_least(self, "stepmix.", 1, "episodes_per_update")
        checks.require_one_of(self, "stepmix.", get_args(Baseline), "baseline")
        checks.require_share(self, "stepmix.", "alpha")
        checks.require_inner_share(self, "stepmix.", "delta")
        checks.require_not_negative(self, "stepmix.", "bonus_scale")
        if not 0.0 <= self.eta <= 1e6:  # beyond, the Boltzmann policy is greedy, and float32 not far from its end
            raise BadRequest(f"stepmix.eta must lie in [0, 1e6], got {self.eta}")
        checks.require_at_least(self, "stepmix.", 2 if self.learns_baseline else 0, "data_episodes")
        checks.require_finite(self, "stepmix.", "gamma")

    @property
    def learns_baseline(self) -> bool:
        """Whether the baseline is learned from data."""
        return self.baseline.startswith("data-")


class StepMixState(struct.PyTreeNode):
    """Everything that a run of one seed carries."""

    key: jax.Array
    env: EpisodicState
    """The opening state of every episode, with the instance."""
    counts: jax.Array
    """`[H, S, A, S]`: transitions seen, as floats."""
    baseline: jax.Array
    """`[H, S, A]`: the baseline's probabilities."""
    baseline_value: jax.Array
    """Exact value of the baseline."""
    certificate: jax.Array
    """Value that the baseline is known to have beforehand: its exact value, or the data's lower bound of it."""
    optimal_value: jax.Array
    threshold: jax.Array
    episodes: jax.Array
    """Episodes so far, int32."""
    return_sum: jax.Array
    """Sum of the exact values of the policies played."""
    regret: jax.Array
    """Sum of the optimal value less these values."""
    violations: jax.Array
    """Episodes whose policy was worth less than the threshold, int32."""


class Trace(struct.PyTreeNode):
    """Episodes played, rows `[episodes, ...]`."""

    lower: jax.Array
    """`[H + 1]`: lower bounds of the candidates' values."""
    upper: jax.Array
    """`[H + 1]`: upper bounds."""
    greedy: jax.Array
    """`[H, S]`: the optimistic policy's actions."""
    switch: jax.Array
    """Steps j* of the baseline, the mixed one included; H where the baseline plays the whole episode."""
    weight: jax.Array
    """`[H]`: weight of the optimistic policy at each step."""
    state: jax.Array
    """`[H]` int32"""
    action: jax.Array
    """`[H]` int32"""
    reward: jax.Array
    """`[H]`"""
    value: jax.Array
    """Exact value of the policy played, in expectation over the coin of EpsMix."""


@dataclass(frozen=True, eq=False)
class StepMix(Planner[StepMixState, Trace]):
    """One algorithm on one episodic MDP. Loops over the H steps of an episode are unrolled, because the candidates of a
    step differ in number.

    Regret is against the optimal value of the instance. A row of uniforms is an episode, in this order: the coin, one
    for each step and action (the largest among tied actions wins), one for each step's action, one for each transition.
    """

    algorithms = ALGORITHMS
    family = "episodic"
    env_type = EpisodicMDP

    env: EpisodicMDP
    settings: StepMixSettings

    def __post_init__(self):
        super().__post_init__()
        gamma, horizon = self.settings.gamma, self.env.horizon
        if gamma is not None and not 0.0 <= gamma <= horizon:
            raise BadRequest(f"stepmix.gamma must lie in [0, {horizon}] with {horizon} steps an episode, got {gamma}")
        episodes = self.total_steps // horizon + (self.settings.data_episodes if self.settings.learns_baseline else 0)
        if episodes > EXACT_COUNTS:
            raise BadRequest(f"{self.algorithm} counts exactly up to {EXACT_COUNTS} episodes, got {episodes}")

    @property
    def rounds_per_update(self) -> int:
        """Episodes of an update."""
        return self.settings.episodes_per_update

    @property
    def steps_per_update(self) -> int:
        return self.rounds_per_update * self.env.horizon

    @property
    def num_uniforms(self) -> int:
        """Uniforms of one episode."""
        return 1 + self.env.horizon * (self.env.num_actions + 1 + self.env.num_uniforms)

    # ------------------------------------------------------------------------------------------------- before playing

    def init(self, key: Key) -> StepMixState:
        key, env_key, data_key = jax.random.split(key, 3)
        _, env_state = self.env.reset(env_key, self.env.default_params)
        instance = env_state.instance
        q, v = optimal_values(instance)
        safe = second_best(q) if self.settings.baseline == "deterministic" else boltzmann(q, self.settings.eta)
        safe_value = policy_values(instance, safe)[0, START]
        baseline, baseline_value, certificate = safe, safe_value, safe_value
        counts = jnp.zeros_like(instance.transition)
        if self.settings.learns_baseline:
            uniforms = jax.random.uniform(data_key, (self.settings.data_episodes, self.num_uniforms))
            # The bounds need a baseline that does not depend on the counted transitions, hence two halves.
            half = self.settings.data_episodes // 2
            baseline = self.imitate(instance, self.count_episodes(env_state, safe, uniforms[:half]))
            counts = self.count_episodes(env_state, safe, uniforms[half:])
            baseline_value = policy_values(instance, baseline)[0, START]
            certificate = self.bounds(instance, counts, baseline, jnp.zeros_like(instance.reward[:, 0]))[0][-1]
        gamma = self.settings.gamma
        zero = jnp.zeros_like(baseline_value)
        return StepMixState(
            key=key,
            env=env_state,
            counts=counts,
            baseline=baseline,
            baseline_value=baseline_value,
            certificate=certificate,
            optimal_value=v[0, START],
            threshold=(1.0 - self.settings.alpha) * safe_value if gamma is None else jnp.full_like(zero, gamma),
            episodes=jnp.zeros((), jnp.int32),
            return_sum=zero,
            regret=zero,
            violations=jnp.zeros((), jnp.int32),
        )

    def check(self, state: StepMixState) -> None:
        """Refuses a run whose baseline is not known to be safe. Runs on the host, after `init`.

        Args:
            state: of one seed, or of many along a leading axis.

        Raises:
            BadRequest: the baseline is worth less than the threshold, or the data do not show that it is worth that
                much. `bpi-ucbvi` and `baseline` promise nothing and pass.
        """
        if self.algorithm not in ("stepmix", "epsmix"):
            return
        certificate, threshold = (np.atleast_1d(np.asarray(x)) for x in (state.certificate, state.threshold))
        unsafe = np.flatnonzero(~(certificate >= threshold - TOLERANCE))  # NaN is unsafe
        if unsafe.size:
            i = unsafe[0]
            known = (
                "the data's lower bound of the baseline's value"
                if self.settings.learns_baseline
                else "the baseline's value"
            )
            others = f" and {unsafe.size - 1} more of {certificate.size} seeds" if unsafe.size > 1 else ""
            raise BadRequest(
                f"{self.algorithm} needs a safe baseline: {known} is below the threshold gamma in seed {i}"
                f" ({certificate[i]:.6g} < {threshold[i]:.6g}){others}"
            )

    def count_episodes(self, env_state: EpisodicState, policy: jax.Array, uniforms: jax.Array) -> jax.Array:
        """Transitions `[H, S, A, S]` in episodes of `policy [H, S, A]`, from `uniforms [episodes, num_uniforms]`."""
        opening, policy = jax.tree.map(lambda x: x[None], env_state), policy[..., None]

        def one(counts, row):
            return self._roll_out(opening, policy, counts, row[:, None])[0], None

        counts = jnp.zeros_like(env_state.instance.transition)[..., None]
        return jax.lax.scan(one, counts, uniforms)[0][..., 0]

    def imitate(self, instance: Instance, counts: jax.Array) -> jax.Array:
        """A policy `[H, S, A]` from transitions of a safe one: frequencies of its actions, uniform in states that it
        did not visit ("data-bc"), or the actions with the best lower bounds ("data-pessimistic")."""
        if self.settings.baseline == "data-bc":
            taken = jnp.sum(counts, axis=3)
            visits = jnp.sum(taken, axis=2, keepdims=True)
            return jnp.where(visits > 0, taken / jnp.maximum(visits, 1.0), 1.0 / taken.shape[2])
        policy = []
        up = lo = jnp.zeros_like(instance.reward[0, None, :, 0])
        for h in reversed(range(self.env.horizon)):
            q_up, q_lo = self._backup(h, instance.reward[h], counts[h], up, lo)
            policy.append(jax.nn.one_hot(jnp.argmax(q_lo[0], axis=1), q_lo.shape[2], dtype=q_lo.dtype))
            up, lo = jnp.sum(policy[-1] * q_up, axis=2), jnp.sum(policy[-1] * q_lo, axis=2)
        return jnp.stack(policy[::-1])

    # -------------------------------------------------------------------------------------------------------- bounds
    # Arrays may have seeds as further, trailing axes.

    def _backup(
        self, h: int, reward: jax.Array, counts: jax.Array, up: jax.Array, lo: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Bounds of Q at step `h` (from 0), `[m, S, A]` each, from those of m values at the next step, `[m, S]` each.

        `reward [S, A]`, `counts [S, A, S]`. Bonuses after Ménard et al. 2021, on both sides.
        """
        mdp, horizon = self.env, self.env.horizon
        visits = total(counts, 2)
        n = jnp.maximum(visits, 1.0)
        kernel = counts / n[:, :, None]
        # A share of delta for each of the H + 1 policies that the bounds compare with, and for either side.
        share = self.settings.delta / (2.0 * (horizon + 1))
        log_union = math.log(3.0 * mdp.num_states * mdp.num_actions * horizon / share)
        log_visits = jnp.log(8.0 * math.e * (visits + 1.0))
        b_star = log_union + log_visits
        b = log_union + mdp.num_states * log_visits

        up, lo = up[:, None, None], lo[:, None, None]
        mean_up, mean_lo = total(kernel * up, 3), total(kernel * lo, 3)
        variance = total(kernel * (up - mean_up[:, :, :, None]) ** 2, 3)
        bonus = self.settings.bonus_scale * (
            3.0 * jnp.sqrt(variance * b_star / n) + 14.0 * horizon**2 * b / n + (mean_up - mean_lo) / horizon
        )
        most = float(horizon - h)  # what H - h steps can pay
        q_up = jnp.where(visits > 0, jnp.minimum(most, reward + mean_up + bonus), most)
        q_lo = jnp.where(visits > 0, jnp.maximum(0.0, reward + mean_lo - bonus), 0.0)
        return q_up, q_lo

    def bounds(
        self, instance: Instance, counts: jax.Array, baseline: jax.Array, priorities: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Bounds of the candidates' values and the optimistic policy.

        Args:
            counts: `[H, S, A, S]`.
            baseline: `[H, S, A]`.
            priorities: `[H, A]` in [0, 1); of tied actions the one with the largest is taken.

        Returns:
            lower and upper bounds `[H + 1]`, entry j of the baseline for j steps and then the optimistic policy; the
            latter's actions `[H, S]`.
        """
        up = lo = jnp.zeros_like(instance.reward[0, None, :, 0])
        greedy = []
        for h in reversed(range(self.env.horizon)):
            # Row 0 of `up` and `lo` belongs to the optimistic policy, row i to the candidate that switches at i steps
            # from here: all candidates that have switched by now are one.
            q_up, q_lo = self._backup(h, instance.reward[h], counts[h], up, lo)
            tied = q_up[0] == jnp.max(q_up[0], axis=1, keepdims=True)
            greedy.append(jnp.argmax(jnp.where(tied, priorities[h], -1.0), axis=1))
            take = jax.nn.one_hot(greedy[-1], q_up.shape[2], dtype=q_up.dtype, axis=1)
            up, lo = (jnp.concatenate([total(take * q[:1], 2), total(baseline[h] * q, 2)]) for q in (q_up, q_lo))
        return lo[:, START], up[:, START], jnp.stack(greedy[::-1])

    # ------------------------------------------------------------------------------------------------------- playing

    def mix(self, lower: jax.Array, threshold: jax.Array, coin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mixture to play, given `lower [H + 1]`.

        Returns:
            weight `[H]` of the optimistic policy at each step; j*; the weight of the optimistic policy's value in the
            value in expectation over the coin (EpsMix only, else 0).
        """
        horizon = self.env.horizon
        steps = jnp.arange(horizon)
        always, zero = jnp.ones(horizon, lower.dtype), jnp.zeros((), lower.dtype)
        if self.algorithm == "bpi-ucbvi":
            return always, jnp.int32(0), zero
        if self.algorithm == "baseline":
            return 0.0 * always, jnp.int32(horizon), zero
        safe = lower >= threshold
        if self.algorithm == "epsmix":
            gap = jnp.where(safe[-1], lower[-1] - lower[0], 1.0)
            rho = jnp.where(safe[0], 1.0, jnp.where(safe[-1], (lower[-1] - threshold) / gap, 0.0))
            optimistic = coin < rho
            return optimistic * always, jnp.where(optimistic, 0, horizon), rho
        switch = jnp.where(jnp.any(safe), jnp.argmax(safe), horizon)  # the smallest that is safe
        at, before = lower[switch], lower[jnp.maximum(switch - 1, 0)]
        mixed = safe[switch] & (switch > 0)
        rho = jnp.where(mixed, (at - threshold) / jnp.where(mixed, at - before, 1.0), 0.0)
        # Steps (from 0) below j* - 1: baseline; j* - 1: mixed; from j* on: optimistic.
        weight = jnp.where(steps >= switch, 1.0, jnp.where(steps == switch - 1, rho, 0.0))
        return weight, switch, zero

    def _roll_out(self, env_state: EpisodicState, policy: jax.Array, counts: jax.Array, uniforms: jax.Array):
        """One episode of each of N seeds: `counts` with its transitions; states, actions, rewards `[H, N]`.

        `env_state` has seeds first; `policy [H, S, A, N]`, `counts [H, S, A, S, N]`, `uniforms [num_uniforms, N]`.
        """
        mdp, seeds = self.env, jnp.arange(uniforms.shape[1])
        step = jax.vmap(mdp.transition, in_axes=(0, 0, -1, None))
        action_uniforms, env_uniforms = jnp.split(uniforms[-mdp.horizon * (1 + mdp.num_uniforms) :], [mdp.horizon])
        env_uniforms = env_uniforms.reshape(mdp.horizon, mdp.num_uniforms, -1)
        rows = []
        for h in range(mdp.horizon):
            state = env_state.state
            action = inverse_cdf(policy[h, state, :, seeds].T, action_uniforms[h])
            _, env_state, reward, _, _, _ = step(env_state, action, env_uniforms[h], self.env.default_params)
            rows.append((state, action, reward, env_state.state))
        states, actions, rewards, following = (jnp.stack(column) for column in zip(*rows, strict=True))
        counts = counts.at[jnp.arange(mdp.horizon)[:, None], states, actions, following, seeds].add(1.0)
        return counts, (states, actions, rewards)

    def play(self, state: StepMixState, uniforms: jax.Array) -> tuple[StepMixState, Trace]:
        """As `Planner.play`, a row being an episode; only the counts of the state change."""

        @jax.custom_batching.custom_vmap
        def play(state, uniforms):
            return jax.tree.map(lambda x: x[0], self._play_seeds(*jax.tree.map(lambda x: x[None], (state, uniforms))))

        @play.def_vmap
        def _(seeds, batched, state, uniforms):
            arguments = jax.tree.map(
                lambda x, along: x if along else jnp.broadcast_to(x, (seeds, *x.shape)),
                (state, uniforms),
                tuple(batched),
            )
            out = self._play_seeds(*arguments)
            return out, jax.tree.map(lambda _: True, out)

        return play(state, uniforms)

    def _play_seeds(self, state: StepMixState, uniforms: jax.Array) -> tuple[StepMixState, Trace]:
        """`play` for states and uniforms with a leading axis of seeds.

        States and actions are few, so seeds go last, where the processor works on many at once.
        """
        mdp = self.env
        ties = 1 + mdp.horizon * mdp.num_actions
        instance, counts, baseline = jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, -1), (state.env.instance, state.counts, state.baseline)
        )
        mix = jax.vmap(self.mix, in_axes=-1, out_axes=-1)

        def one(counts, row):
            coin, priorities = row[0], row[1:ties].reshape(mdp.horizon, mdp.num_actions, -1)
            lower, upper, greedy = self.bounds(instance, counts, baseline, priorities)
            weight, switch, rho = mix(lower, state.threshold, coin)
            optimistic = jax.nn.one_hot(greedy, mdp.num_actions, dtype=baseline.dtype, axis=2)
            policy = baseline + weight[:, None, None] * (optimistic - baseline)
            if self.algorithm == "epsmix":
                value = policy_values(instance, optimistic)[0, START]
                value = state.baseline_value + rho * (value - state.baseline_value)
            else:
                value = policy_values(instance, policy)[0, START]
            counts, (states, actions, rewards) = self._roll_out(state.env, policy, counts, row)
            return counts, Trace(lower, upper, greedy, switch, weight, states, actions, rewards, value)

        counts, trace = jax.lax.scan(one, counts, jnp.moveaxis(uniforms, 0, -1))
        counts, trace = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (counts, trace))
        return state.replace(counts=counts), trace

    def summarise(self, state: StepMixState, trace: Trace) -> tuple[StepMixState, Metrics]:
        violated = ~(trace.value >= state.threshold - TOLERANCE)
        state = state.replace(
            episodes=state.episodes + self.rounds_per_update,
            return_sum=state.return_sum + jnp.sum(trace.value),
            regret=state.regret + jnp.sum(state.optimal_value - trace.value),
            violations=state.violations + jnp.sum(violated, dtype=jnp.int32),
        )
        return state, {
            "train/return": jnp.mean(trace.value),
            "train/margin_min": jnp.min(trace.value) - state.threshold,
            "train/violations_last": state.violations,
            "train/threshold": state.threshold,
            "train/regret_last": state.regret,
            "train/switch_step": jnp.mean(trace.switch.astype(trace.value.dtype)),
            "train/baseline_fraction": jnp.mean(1.0 - trace.weight),
        }

    def evaluate(self, state: StepMixState, key: Key, axis_name: str | None = None) -> Metrics:
        """Return of an episode so far, beside the exact values that bound it."""
        return {
            "eval/return": state.return_sum / jnp.maximum(state.episodes, 1),
            "eval/optimal": state.optimal_value,
            "eval/baseline": state.baseline_value,
        }
