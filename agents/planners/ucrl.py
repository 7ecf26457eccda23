"""UCRL2 for MDPs that change, above all R-BOCPD-UCRL2 (Alami et al. 2023, arXiv 2304.00232).

An episode of the algorithm plans once, by extended value iteration over all MDPs that the counts allow, and follows
that policy until some pair of state and action has been visited as often as in all the time before. R-BOCPD-UCRL2 gives
the next states of every pair to a change-point detector (`agents/planners/change_points.py`) and forgets everything at
an alarm.

| algorithm | forgets |
|---|---|
| `rbocpd-ucrl2` | everything, when a detector raises an alarm |
| `ucrl2` | nothing (Jaksch et al. 2010) |
| `restarted-ucrl2` | everything at the steps ceil(i^3 / K^2), with K changes known (Jaksch et al. 2010, section 6) |
| `sw-ucrl2` | what is older than a window (Gajane et al. 2018, arXiv 1805.10066) |
| `sw-ucrl2-cw` | the same, with widened confidence sets (Cheung et al. 2020, arXiv 2006.14389) |
| `oracle` | everything at the true changes |

The seeds of a run are lanes of one program: in each round of its loop a lane that plans does one sweep of value
iteration and a lane that acts takes one step, so no lane waits until another has planned. Each lane takes its uniforms
by its own count of steps, so what a seed does depends on no other seed.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from engram.agents.common import checks
from engram.agents.common.control_flow import when
from engram.agents.planners import change_points as rbocpd
from engram.agents.planners.base import Planner
from engram.envs.tabular.switching import SwitchingMDP, SwitchingState, optimal_gain
from engram.training.types import Key, Metrics

ALGORITHMS = ("rbocpd-ucrl2", "ucrl2", "restarted-ucrl2", "sw-ucrl2", "sw-ucrl2-cw", "oracle")
EpisodeTest = Literal["pre", "post"]


@dataclass(frozen=True)
class UCRLSettings:
    """Settings of UCRL2 and its variants; those of the variants that are not chosen are ignored."""

    steps_per_update: int = 500
    """Environment steps of one update."""
    delta: float = 0.05
    """Probability (about) that the confidence bounds fail."""
    conf_scale: float = 0.1
    """Factor on the widths of the confidence sets; the theorems need 1."""
    episode_test: EpisodeTest = "post"
    """Test that ends an episode: `pre`, before a pair would be visited more often than in all episodes before (UCRL2);
    `post`, after the step that reached that number (as R-BOCPD-UCRL2 is printed)."""
    evi_iterations: int = 2000
    """Most sweeps of one extended value iteration; `train/unconverged` counts the plans that needed more."""
    eta: rbocpd.EtaKind = "squared"
    """Prior of a change in the detectors: `squared` (1/N^2), `certified` (see eta_delta), or `paper` (1/N, with many
    false alarms)."""
    eta_delta: float = 0.05
    """Probability of any false alarm with the certified eta, shared by all detectors."""
    forecasters: rbocpd.Forecasters = "grid"
    """Forecasters that a detector keeps: `exact`, one for each of the first `cap` samples; `grid`, one for each of
    O(log cap) ages."""
    cap: int = 50_000
    """Samples that an exact detector holds after a restart, rounded up to a multiple of 128 above 128
    (`train/overflow` tells if they were too few), or the age of the oldest forecaster of a grid."""
    known_changes: int = 3
    """Number of changes K that restarted-ucrl2 and sw-ucrl2 are given."""
    window: int = 0
    """Steps in the window of the sliding-window algorithms (0: as their theory says, from the settings below)."""
    diameter: float = 4.0
    """Diameter of the MDPs, for the window of sw-ucrl2."""
    reward_variation: float = 1.0
    """Total variation of the mean rewards over the run, for the window of sw-ucrl2-cw."""
    transition_variation: float = 1.0
    """Total variation of the kernels over the run, for the window and the widening of sw-ucrl2-cw."""

    def __post_init__(self):
        checks.require_at_least(self, "ucrl.", 1, "steps_per_update", "evi_iterations", "known_changes")
        checks.require_at_least(self, "ucrl.", 2, "cap")  # the base and one candidate
        checks.require_inner_share(self, "ucrl.", "delta", "eta_delta")
        checks.require_positive(self, "ucrl.", "diameter")
        checks.require_not_negative(self, "ucrl.", "conf_scale", "window", "reward_variation", "transition_variation")
        checks.require_one_of(self, "ucrl.", get_args(EpisodeTest), "episode_test")
        checks.require_one_of(self, "ucrl.", rbocpd.ETAS, "eta")
        checks.require_one_of(self, "ucrl.", rbocpd.FORECASTERS, "forecasters")


class Window(struct.PyTreeNode):
    """The last W steps in a ring, step t at t mod W."""

    pair: jax.Array
    """`[W]` int32: pairs of state and action."""
    reward: jax.Array
    """`[W]`: rewards."""
    next: jax.Array
    """`[W]` int32: next states."""


class UCRLState(struct.PyTreeNode):
    """Everything that a run of one seed carries. O states, A actions; pairs are numbered o A + a."""

    env: SwitchingState
    key: jax.Array
    t: jax.Array
    """Steps taken, int32."""
    since: jax.Array
    """Steps taken before the last restart of the whole algorithm, clock included, int32."""
    counts: jax.Array
    """`[O A, O]`: transitions since the restart (in the window)."""
    reward_sums: jax.Array
    """`[O A]`: sums of rewards, likewise."""
    before_episode: jax.Array
    """`[O A]`: visits N when the episode began."""
    in_episode: jax.Array
    """`[O A]`: visits V in this episode."""
    detectors: rbocpd.Exact | rbocpd.Grid | None
    """Detectors of all pairs, in R-BOCPD-UCRL2; their own counts are None, for these are `counts`."""
    window: Window | None
    """Window of the sliding-window algorithms."""
    planning: jax.Array
    """bool: a sweep comes next, not a step."""
    sweeps: jax.Array
    """Sweeps of this plan so far, int32."""
    values: jax.Array
    """`[O]`: u of extended value iteration."""
    policy: jax.Array
    """`[O]` int32: action of every state."""
    alarms: jax.Array
    """Alarms so far, int32."""
    last_alarm: jax.Array
    """Steps taken at the latest alarm, -1 before the first; int32."""
    plans: jax.Array
    """Plans so far, int32."""
    unconverged: jax.Array
    """Plans so far that the bound on sweeps cut off, int32."""
    gains: jax.Array
    """`[segments]`: best gain of each MDP."""
    reward_total: jax.Array
    regret_total: jax.Array


class UCRLStep(struct.PyTreeNode):
    """One step of a trace."""

    action: jax.Array
    next: jax.Array
    """Next state, int32."""
    reward: jax.Array
    regret: jax.Array
    """Best gain in force less the reward."""
    alarm: jax.Array
    """bool: a detector raised an alarm."""


PLANNED = ("values", "policy", "sweeps", "planning", "before_episode", "in_episode", "plans", "unconverged")
"""Fields of the state that a sweep changes."""


def extended_q(
    u: jax.Array, rewards: jax.Array, kernel: jax.Array, reward_width: jax.Array, kernel_width: jax.Array
) -> jax.Array:
    """One sweep of extended value iteration: the best value of each pair over all MDPs that the widths allow.

    Args:
        u: `[O]`.
        rewards, reward_width, kernel_width: `[O A]`.
        kernel: `[O A, O]`.

    Returns:
        `[O A]`: min(1, r + dr) + max of p . u over the kernels p with |p - kernel|_1 <= dp.

    The inner maximum (Jaksch et al. 2010, figure 2) puts dp / 2 more on the best state and takes it from the worst.
    With the states in descending order of u and F the cumulative sums of a row in that order, the maximiser has the
    cumulative sums min(1, F + dp / 2), and p . u follows by summation by parts, without moving the rows.
    """
    states = jnp.arange(u.shape[0])
    ahead = (u[:, None] > u) | ((u[:, None] == u) & (states[:, None] < states))
    rank = jnp.sum(ahead, axis=0)
    cumulative = jnp.matmul(kernel, (rank[:, None] <= states).astype(u.dtype), precision="highest")
    ordered = jnp.sum(jnp.where(rank[:, None] == states, u[:, None], 0), axis=0)
    steps = ordered[:-1] - ordered[1:]
    mass = jnp.minimum(1, cumulative[:, :-1] + kernel_width[:, None] / 2)
    return jnp.minimum(1, rewards + reward_width) + ordered[-1] + jnp.sum(mass * steps, axis=-1)


def greedy(q: jax.Array) -> jax.Array:
    """`[O, A] -> [O]`: the lowest of the best actions; values that differ by rounding alone count as equal."""
    tie = 1e3 * jnp.finfo(q.dtype).eps
    return jnp.argmax(q >= jnp.max(q, axis=-1, keepdims=True) - tie, axis=-1).astype(jnp.int32)


@dataclass(frozen=True, eq=False)
class UCRL(Planner[UCRLState, UCRLStep]):
    """One algorithm on one MDP that changes. Regret is against the best gain in force."""

    algorithms = ALGORITHMS
    family = "switching"
    env_type = SwitchingMDP

    env: SwitchingMDP
    settings: UCRLSettings

    @property
    def window_length(self) -> int:
        """W, at most the length of the run (Gajane et al. 2018, theorem 1; Cheung et al. 2020, theorem 1)."""
        s, T, O, A = self.settings, self.total_steps, self.env.num_states, self.env.num_actions
        if s.window:
            w = s.window
        elif self.algorithm == "sw-ucrl2":
            w = (16.53 / s.known_changes * T * s.diameter * O * math.sqrt(A * math.log(T / s.delta))) ** (2 / 3)
        else:
            w = 3 * O ** (2 / 3) * math.sqrt(A * T / (s.reward_variation + s.transition_variation + 1))
        return max(1, min(T, math.ceil(w)))

    @property
    def widening(self) -> float:
        """Added to the width of the kernels' confidence sets."""
        if self.algorithm != "sw-ucrl2-cw":
            return 0.0
        return math.sqrt((self.settings.transition_variation + 1) * self.window_length / self.total_steps)

    @property
    def eta(self) -> rbocpd.Eta:
        """Prior of a change in each detector."""
        pairs = self.env.num_states * self.env.num_actions
        return rbocpd.make_eta(self.settings.eta, self.settings.eta_delta / pairs)

    @property
    def restarts(self) -> tuple[int, ...]:
        """Steps ceil(i^3 / K^2) at which Restarted-UCRL2 starts afresh."""
        square, times = self.settings.known_changes**2, []
        while not times or times[-1] < self.total_steps:
            times.append(-(-((len(times) + 1) ** 3) // square))
        return tuple(times)

    def init(self, key: Key) -> UCRLState:
        s, O, pairs = self.settings, self.env.num_states, self.env.num_states * self.env.num_actions
        key, env_key = jax.random.split(key)
        _, env = self.env.reset(env_key, self.env.default_params)
        dtype = jnp.result_type(float)
        detectors = window = None
        if self.algorithm == "rbocpd-ucrl2":
            bank = rbocpd.exact_bank if s.forecasters == "exact" else rbocpd.grid_bank
            detectors = bank(pairs, O, s.cap)
        if self.algorithm.startswith("sw-"):
            w = self.window_length
            window = Window(jnp.zeros(w, jnp.int32), jnp.zeros(w, dtype), jnp.zeros(w, jnp.int32))
        zero = jnp.int32(0)
        return UCRLState(
            env=env,
            key=key,
            t=zero,
            since=zero,
            counts=jnp.zeros((pairs, O), dtype),
            reward_sums=jnp.zeros(pairs, dtype),
            before_episode=jnp.zeros(pairs, dtype),
            in_episode=jnp.zeros(pairs, dtype),
            detectors=detectors,
            window=window,
            planning=jnp.bool_(True),
            sweeps=zero,
            values=jnp.zeros(O, dtype),
            policy=jnp.zeros(O, jnp.int32),
            alarms=zero,
            last_alarm=jnp.int32(-1),
            plans=zero,
            unconverged=zero,
            gains=jax.vmap(optimal_gain)(env.kernels, env.means),
            reward_total=jnp.zeros((), dtype),
            regret_total=jnp.zeros((), dtype),
        )

    # ------------------------------------------------------------------------------------------------- planning

    def widths(self, n: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """dr, dp of pairs with max(1, visits) `n`, at the 1-based step `time` (Jaksch et al. 2010, eqs. 3 and 4)."""
        s, O, A = self.settings, self.env.num_states, self.env.num_actions
        reward = s.conf_scale * jnp.sqrt(7 * jnp.log(2 * O * A * time / s.delta) / (2 * n))
        kernel = s.conf_scale * jnp.sqrt(14 * O * jnp.log(2 * A * time / s.delta) / n)
        return reward, kernel + self.widening

    def q_values(self, u: jax.Array, counts: jax.Array, reward_sums: jax.Array, time: jax.Array) -> jax.Array:
        """`[O, A]`: values of one sweep from the counts; a pair never seen may do anything."""
        visits = jnp.sum(counts, axis=-1)
        n = jnp.maximum(visits, 1)
        kernel = jnp.where(visits[:, None] > 0, counts / n[:, None], 1 / self.env.num_states)
        q = extended_q(u, reward_sums / n, kernel, *self.widths(n, time))
        return q.reshape(self.env.num_states, self.env.num_actions)

    def _sweep(self, state: UCRLState) -> dict[str, jax.Array]:
        """One sweep for some of the lanes that plan, arrays `[L, ...]`; lanes whose plan is done begin their episode.

        Returns:
            the fields `PLANNED` of the state.
        """
        lanes = state.t.shape[0]
        # Few lanes plan at a time; more than this number wait a round. Indices out of range are dropped.
        at = jnp.nonzero(state.planning, size=max(lanes // 8, min(lanes, 8)), fill_value=lanes)[0]
        take = lambda x: x.at[at].get(mode="clip")  # noqa: E731
        put = lambda x, new: x.at[at].set(new, mode="drop")  # noqa: E731

        counts, u, sweeps = take(state.counts), take(state.values), take(state.sweeps) + 1
        time = (take(state.t) - take(state.since) + 1).astype(u.dtype)
        q = jax.vmap(self.q_values)(u, counts, take(state.reward_sums), time)
        new = jnp.max(q, axis=-1)
        converged = jnp.max(new - u, axis=-1) - jnp.min(new - u, axis=-1) < 1 / jnp.sqrt(time)
        done = converged | (sweeps >= self.settings.evi_iterations)
        here = done[:, None]
        return {
            "values": put(state.values, jnp.where(here, 0, new - jnp.min(new, axis=-1, keepdims=True))),
            "policy": put(state.policy, jnp.where(here, jax.vmap(greedy)(q), take(state.policy))),
            "sweeps": put(state.sweeps, jnp.where(done, 0, sweeps)),
            "planning": put(state.planning, ~done),
            "before_episode": put(
                state.before_episode, jnp.where(here, jnp.sum(counts, -1), take(state.before_episode))
            ),
            "in_episode": put(state.in_episode, jnp.where(here, 0, take(state.in_episode))),
            "plans": put(state.plans, take(state.plans) + done),
            "unconverged": put(state.unconverged, take(state.unconverged) + (done & ~converged)),
        }

    # --------------------------------------------------------------------------------------------------- acting

    def _step(self, state: UCRLState, acting: jax.Array, uniforms: jax.Array) -> tuple[UCRLState, UCRLStep]:
        """One step of the lanes that act, from `uniforms [L, n]`. Arrays `[L, ...]`; large ones change at one pair."""
        env, A = self.env, self.env.num_actions
        lane = jnp.arange(acting.shape[0])
        action = state.policy[lane, state.env.position]
        pair = state.env.position * A + action
        params = env.default_params
        next, stepped, reward, _, _, info = jax.vmap(lambda s, a, u: env.transition(s, a, u, params))(
            state.env, action, uniforms
        )
        t = state.t + acting
        one = acting.astype(state.counts.dtype)
        reward = reward * one
        seen = state.counts[lane, pair]
        counts = state.counts.at[lane, pair, next].add(one)
        reward_sums = state.reward_sums.at[lane, pair].add(reward)
        in_episode = state.in_episode.at[lane, pair].add(one)

        window = state.window
        if window is not None:
            slot = state.t % self.window_length
            leaves = one * (state.t >= self.window_length)
            old = jax.tree.map(lambda x: x[lane, slot], window)
            counts = counts.at[lane, old.pair, old.next].add(-leaves)
            reward_sums = reward_sums.at[lane, old.pair].add(-leaves * old.reward)
            # A lane that plans keeps its oldest step.
            new = jax.tree.map(lambda x, y: jnp.where(acting, x, y), Window(pair, reward, next), old)
            window = jax.tree.map(lambda x, y: x.at[lane, slot].set(y), window, new)

        detectors, alarm = state.detectors, jnp.zeros_like(acting)
        if isinstance(detectors, rbocpd.Exact):
            detectors, alarm = rbocpd.update_exact_bank(detectors, seen, pair, next, acting, self.eta)
        elif detectors is not None:
            detectors, alarm = rbocpd.update_grid_bank(detectors, seen, pair, next, acting, self.eta)

        restart = jnp.zeros_like(acting)
        if self.algorithm == "oracle":
            restart = acting & jnp.any(state.env.starts == t[:, None], axis=-1)
        elif self.algorithm == "restarted-ucrl2":
            restart = acting & jnp.any(jnp.asarray(self.restarts) == t[:, None], axis=-1)
        forget = alarm | restart

        def clear():
            # Detectors without samples are empty, so clearing the counts clears them too.
            return jnp.where(forget[:, None, None], 0, counts), jnp.where(forget[:, None], 0, reward_sums)

        counts, reward_sums = when(jnp.any(forget), clear, (counts, reward_sums))

        tested = pair if self.settings.episode_test == "post" else next * A + state.policy[lane, next]
        ends = in_episode[lane, tested] >= jnp.maximum(1, state.before_episode[lane, tested])
        state = state.replace(
            env=state.env.replace(
                position=jnp.where(acting, stepped.position, state.env.position),
                t=jnp.where(acting, stepped.t, state.env.t),
            ),
            t=t,
            since=jnp.where(restart, t, state.since),
            counts=counts,
            reward_sums=reward_sums,
            in_episode=in_episode,
            detectors=detectors,
            window=window,
            planning=state.planning | (acting & (ends | forget)),
            alarms=state.alarms + alarm,
            last_alarm=jnp.where(alarm, t, state.last_alarm),
        )
        regret = jnp.where(acting, state.gains[lane, info["segment"]] - reward, 0)
        return state, UCRLStep(action, next, reward, regret, alarm)

    def _play_lanes(self, state: UCRLState, uniforms: jax.Array) -> tuple[UCRLState, UCRLStep]:
        """`play` for the states `[L, ...]` and uniforms `[L, steps, n]` of all lanes."""
        lanes, steps, _ = uniforms.shape
        lane = jnp.arange(lanes)

        def one_round(carry):
            state, taken, outputs = carry
            planned = {name: getattr(state, name) for name in PLANNED}
            state = state.replace(**when(jnp.any(state.planning), lambda: self._sweep(state), planned))
            acting = ~state.planning & (taken < steps)
            state, output = self._step(state, acting, uniforms[lane, jnp.minimum(taken, steps - 1)])
            at = jnp.where(acting, taken, steps)
            outputs = jax.tree.map(lambda x, y: x.at[lane, at].set(y, mode="drop"), outputs, output)
            return state, taken + acting, outputs

        shapes = jax.eval_shape(self._step, state, state.planning, uniforms[:, 0])[1]
        outputs = jax.tree.map(lambda x: jnp.zeros((lanes, steps), x.dtype), shapes)
        carry = (state, jnp.zeros(lanes, jnp.int32), outputs)
        state, _, outputs = jax.lax.while_loop(lambda c: jnp.any(c[1] < steps), one_round, carry)
        return state, outputs

    def play(self, state: UCRLState, uniforms: jax.Array) -> tuple[UCRLState, UCRLStep]:
        """As `Planner.play`: one step for each row of uniforms. Sums are left to `summarise`."""

        # The loop's condition must be one for all lanes: were it left to `vmap`, it would select between the old and
        # the new of every array in every round. So the batched program is written by hand.
        @jax.custom_batching.custom_vmap
        def lanes(state, uniforms):
            batch = jax.tree.map(lambda x: x[None], (state, uniforms))
            return jax.tree.map(lambda x: x[0], self._play_lanes(*batch))

        @lanes.def_vmap
        def all_lanes(size, batched, state, uniforms):
            spread = jax.tree.map(
                lambda x, b: x if b else jnp.broadcast_to(x, (size, *x.shape)), (state, uniforms), tuple(batched)
            )
            out = self._play_lanes(*spread)
            return out, jax.tree.map(lambda _: True, out)

        key = state.key
        state, outputs = lanes(state.replace(key=None), uniforms)
        return state.replace(key=key), outputs

    def summarise(self, state: UCRLState, trace: UCRLStep) -> tuple[UCRLState, Metrics]:
        # Sums of an update are small, so the totals of long runs stay accurate in float32.
        reward, regret = jnp.sum(trace.reward), jnp.sum(trace.regret)
        state = state.replace(reward_total=state.reward_total + reward, regret_total=state.regret_total + regret)
        detectors = state.detectors
        overflow = detectors.overflow if isinstance(detectors, rbocpd.Exact) else jnp.bool_(False)
        return state, {
            "train/return": reward / self.steps_per_update,
            "train/regret_last": state.regret_total,
            "train/alarms_last": state.alarms,
            "train/last_alarm_last": state.last_alarm,
            "train/last_change_last": state.env.starts[state.env.segment],
            "train/plans_last": state.plans,
            "train/unconverged_last": state.unconverged,
            "train/overflow_last": overflow.astype(jnp.int32),
        }

    def evaluate(self, state: UCRLState, key: Key, axis_name: str | None = None) -> Metrics:
        """So far, per step: `eval/return` earned, `eval/regret`; and `eval/gain`, the best gain now in force."""
        steps = jnp.maximum(state.t, 1)
        return {
            "eval/return": state.reward_total / steps,
            "eval/regret": state.regret_total / steps,
            "eval/gain": state.gains[state.env.segment],
        }
