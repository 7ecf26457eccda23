"""Planning and learning in bandits whose payoffs depend on the last switch (Foussoul et al. 2023, arXiv 2306.00338).

Optimal planning is NP-hard. The relaxation lets every arm repeat one cycle (b idle rounds, then a plays) and bounds the
plays of all arms together by one a round on average; its value LP bounds every policy's average reward. Rounding draws
a cycle and an offset for each arm independently; where several arms are due, the best of them is played. It earns at
least (1 - 1/e) LP a round.

    relax      the relaxation, solved exactly
    LSD        planning (payoffs known), learning (payoffs unknown), and simple policies to compare with

The relaxation and its rounding follow the paper's abstract; statement and proof of what they guarantee are in
docs/lsd.md.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from engram.agents.common import checks
from engram.agents.common.control_flow import when
from engram.agents.planners.base import Planner
from engram.envs.bandits.last_switch import LSDBandit, LSDState, after, column
from engram.errors import BadRequest
from engram.training.types import Key, Metrics

ALGORITHMS = ("planner", "explore-then-commit", "epoch-ucb", "isi-combucb1", "greedy", "round-robin")
LEARNERS = ("explore-then-commit", "epoch-ucb", "isi-combucb1")
NEED_MONOTONE = ("planner", "explore-then-commit", "epoch-ucb")
ALPHA = 1 - np.exp(-1)
"""Fraction of LP that rounding guarantees."""
BLOCKS = 1 << 16
"""Most blocks (arms ** block_length) that ISI-CombUCB1 compares."""


# ------------------------------------------------------------------------------------------------------- the relaxation


@functools.cache
def cycles(played_limit: int, idle_limit: int) -> tuple[np.ndarray, np.ndarray]:
    """All cycle types: idle and played rounds `[Q]` of each, a <= M, b <= N; first "never play", last "always play".

    "Never" is one idle round over and over, "always" one played round.
    """
    pairs = [(1, 0), *((b, a) for a in range(1, played_limit + 1) for b in range(1, idle_limit + 1)), (0, 1)]
    idle, played = np.array(pairs, np.int32).T
    return idle, played


class Relaxation(struct.PyTreeNode):
    """An optimum of the relaxation."""

    value: jax.Array
    """Value LP of the relaxation, in reward a round."""
    bound: jax.Array
    """Value of the dual program, which no policy exceeds; equal to `value` but for rounding."""
    fractions: jax.Array
    """`[k, Q]`: share of its time that an arm spends in each type of `cycles`; rows sum to 1."""


def cycle_rewards(payoffs: jax.Array, played_limit: int) -> jax.Array:
    """Reward a round of every arm in every cycle, `[k, Q]`: (p(b) + p(-1) + ... + p(-(a - 1))) / (a + b)."""
    k, columns = payoffs.shape
    idle_limit = columns - played_limit
    down = payoffs[:, played_limit - 1 :: -1] if played_limit > 1 else payoffs[:, :1]  # p(-1), p(-2), ..., p(-M)
    again = jnp.cumsum(down, 1) - down  # of a plays in a row, all but the first
    total = payoffs[:, None, played_limit:] + again[:, :, None]  # [arm, a, b]
    idle, played = cycles(played_limit, idle_limit)
    ends = jnp.zeros((k, 1), payoffs.dtype), payoffs[:, :1]
    rewards = jnp.concatenate([ends[0], total.reshape(k, -1), ends[1]], axis=1)
    return rewards / jnp.asarray(idle + played, payoffs.dtype)


def relax(payoffs: jax.Array, played_limit: int) -> Relaxation:
    """Solves max sum_i <g_i, w_i> over rows w_i of probabilities with sum_i <f, w_i> <= 1.

    Here g are the rewards a round of cycles and f their plays a round. One constraint joins the arms, so the dual has
    one multiplier: D(m) = m + sum_i max_q (g[i, q] - m f[q]), convex and piecewise linear. Of two tangents of D, one
    falling and one not, one is replaced by the tangent at their crossing until D passes through the crossing; bisection
    in every fourth round bounds the number of rounds. The choices of cycles that give the two tangents are then both
    optimal, and the mixture of them that plays once a round is the primal optimum, ties or not.

    Args:
        payoffs: `[k, M + N]`, columns in the order of tau. Need not be monotone.
        played_limit: M.
    """
    dtype = payoffs.dtype
    idle, played = cycles(played_limit, payoffs.shape[1] - played_limit)
    # [Q, k] and [Q, 1]: compilers turn maxima over the first axis into vector instructions.
    g = cycle_rewards(payoffs, played_limit).T
    f = jnp.asarray(played / (idle + played), dtype)[:, None]
    steps, precision = (128, 1e-14) if dtype == jnp.float64 else (80, 1e-7)
    tiny = jnp.finfo(dtype).tiny
    largest = jnp.max(jnp.abs(g))

    def bound(m):
        score = g - m * f
        best = jnp.max(score, axis=0)
        # Compilers may round the scores differently in the maximum and in the comparison: then none would equal it.
        rounding = 4 * jnp.finfo(dtype).eps * (largest + m)
        return m + jnp.sum(best), score >= best - rounding

    def tangent(m):
        """A tangent of D: the point m, D there, each arm's plays a round (the least among equal choices)."""
        value, best = bound(m)
        return m, value, jnp.min(jnp.where(best, f, 2), axis=0)

    def slope(line):
        return 1 - jnp.sum(line[2])

    def crossing(low, high):
        (m_low, d_low, _), (m_high, d_high, _) = low, high
        falls, rises = slope(low), slope(high)
        m = (d_low - d_high + m_high * rises - m_low * falls) / jnp.maximum(rises - falls, tiny)
        return m, d_high + (m - m_high) * rises

    def unfinished(carry):
        i, done, *_ = carry
        return (i < steps) & ~done

    def narrow(carry):
        i, _, low, high = carry
        m, value = crossing(low, high)
        new = tangent(jnp.where(i % 4 < 3, m, (low[0] + high[0]) / 2))
        done = (i % 4 < 3) & (new[1] <= value + precision * jnp.maximum(value, 1))
        pick = functools.partial(jax.tree.map, lambda a, b: jnp.where(slope(new) < 0, a, b))
        return i + 1, done, pick(new, low), pick(high, new)

    zero = jnp.zeros((), dtype)
    low, high = tangent(zero), tangent(jnp.max(payoffs) + 1)  # no play is worth that: every arm rests
    free = slope(low) >= 0  # the constraint does not bind
    _, _, low, high = lax.while_loop(unfinished, narrow, (jnp.int32(0), free, low, high))
    m = jnp.where(free, 0, crossing(low, high)[0])
    share = jnp.where(free, 1, slope(high) / jnp.maximum(slope(high) - slope(low), tiny))

    def choice(line):
        """One-hot `[Q, k]`: among the cycles that play as often, the one that pays most, the first of equals."""
        pays = jnp.where(f == line[2], g, -1)
        index = jnp.arange(len(idle), dtype=jnp.int32)[:, None]  # argmax is slow where maxima are fast
        return index == jnp.min(jnp.where(pays == jnp.max(pays, axis=0), index, len(idle)), axis=0)

    fractions = share * choice(low) + (1 - share) * choice(high)
    return Relaxation(jnp.sum(g * fractions), bound(m)[0], fractions.T)


# ------------------------------------------------------------------------------------------------------------- rounding


class Cycle(struct.PyTreeNode):
    """Position of every arm in the cycle that it drew; all `[k]` int32."""

    idle: jax.Array
    length: jax.Array
    phase: jax.Array

    def due(self) -> jax.Array:
        """Arms that are due: their idle rounds are over."""
        return self.phase >= self.idle

    def next(self) -> "Cycle":
        return self.replace(phase=jnp.where(self.phase + 1 == self.length, 0, self.phase + 1))


def draw_cycles(fractions: jax.Array, uniforms: jax.Array, played_limit: int) -> Cycle:
    """A cycle and an offset for each arm from `uniforms [2, k]`, all independent, else the guarantee is lost."""
    idle, played = cycles(played_limit, (fractions.shape[1] - 2) // played_limit)
    below = jnp.cumsum(fractions, axis=1) <= uniforms[0][:, None]
    # Rounding can leave the cumulative sum below 1; a cycle of share 0 must never be drawn.
    last = fractions.shape[1] - 1 - jnp.argmax(fractions[:, ::-1] > 0, axis=1)
    drawn = jnp.minimum(jnp.sum(below, axis=1), last)
    length = jnp.asarray(idle + played)[drawn]
    offset = jnp.minimum((uniforms[1] * length).astype(jnp.int32), length - 1)
    return Cycle(jnp.asarray(idle)[drawn], length, offset)


def best_due(due: jax.Array, worth: jax.Array) -> jax.Array:
    """The arm of largest `worth [k]` among those that are `due [k]` (the first of equals), or k if none is."""
    return jnp.where(jnp.any(due), jnp.argmax(jnp.where(due, worth, -1)), len(worth))


def at_states(table: jax.Array, tau: jax.Array, played_limit: int) -> jax.Array:
    """`table [k, M + N]` at the arms' states, `[k]`."""
    return jnp.take_along_axis(table, column(tau, played_limit)[:, None], axis=1, mode="clip")[:, 0]


# ------------------------------------------------------------------------------------------------------------- learning


def exploration(arms: int, played_limit: int, idle_limit: int) -> np.ndarray:
    """Actions of one repetition: for each arm and b = N .. 1, b rounds without a play (action k), then M + 1 plays.

    That samples every state of every arm once: p(b), p(-1) .. p(-M). The longest rest comes first, because an arm that
    waited for its turn is fully rested.
    """
    rest = [([arms] * b, [arm] * (played_limit + 1)) for arm in range(arms) for b in range(idle_limit, 0, -1)]
    return np.concatenate([np.concatenate(part) for part in rest]).astype(np.int32)


def optimistic(means: jax.Array, counts: jax.Array, t: jax.Array) -> jax.Array:
    """Upper confidence bounds `[k, M + N]` on the payoffs at round t (from 1), monotone as payoffs are.

    Valid bounds stay valid when each is replaced by the least over all larger tau. The largest over all smaller tau
    would be monotone too, but looser than necessary.
    """
    radius = jnp.sqrt(0.5 * jnp.log(means.size * t.astype(means.dtype)) / jnp.maximum(counts, 1))
    bounds = jnp.where(counts > 0, jnp.minimum(1, means + radius), 1)
    return lax.cummin(bounds, axis=1, reverse=True)


def blocks(arms: int, length: int, played_limit: int, idle_limit: int) -> tuple[np.ndarray, np.ndarray]:
    """All sequences of `length` plays, `[arms ** length, length]`, and the states in which they play.

    A state is a flat index into `[k, M + N]`, or -1 where it depends on what came before the block: at an arm's first
    play, and until M plays in the run of plays that a block begins with, which may have begun before it.
    """
    actions = np.array(list(itertools.product(range(arms), repeat=length)), np.int32)
    states = np.full_like(actions, -1)
    rows = np.arange(len(actions))
    tau = np.full((len(actions), arms), idle_limit)
    plays = np.zeros((len(actions), arms), int)
    rested = np.zeros((len(actions), arms), bool)
    for i in range(length):
        arm = actions[:, i]
        now = tau[rows, arm]
        at = arm * (played_limit + idle_limit) + np.where(now < 0, now + played_limit, now + played_limit - 1)
        known = (plays > 0) & (rested | (plays >= played_limit))
        states[:, i] = np.where(known[rows, arm], at, -1)
        played = np.arange(arms) == arm[:, None]
        plays += played
        rested |= ~played
        tau = after(tau, played, played_limit, idle_limit)
    return actions, states


# ------------------------------------------------------------------------------------------------------------ the agent


Select = Literal["actual", "virtual"]


@dataclass(frozen=True)
class LSDSettings:
    """Settings of planners and learners for last-switch-dependent bandits."""

    steps_per_update: int = 50
    """Rounds of one compiled update; learners make new plans between updates only."""
    select: Select = "actual"
    """States whose payoffs decide between arms that are due: the actual ones, or the virtual ones, in which the arms
    would be if each had been played whenever it was due. The guarantee covers both."""
    explore: float = 0.5
    """Constant c of explore-then-commit, which explores for c T^(2/3) of T rounds."""
    first_epoch: int = 16
    """Rounds of the first epoch of epoch-ucb; epochs last for whole updates."""
    epoch_growth: float = 1.5
    """Factor by which each epoch of epoch-ucb is longer than the one before, above 1."""
    block_length: int = 4
    """Rounds that isi-combucb1 plans at a time; it compares arms ** block_length plans. First plays in a block do not
    count, so a payoff at a delay of d rounds needs blocks of d + 1."""

    def __post_init__(self):
        checks.require_at_least(self, "lsd.", 1, "steps_per_update", "first_epoch", "block_length")
        checks.require_one_of(self, "lsd.", get_args(Select), "select")
        checks.require_positive(self, "lsd.", "explore")
        if not 1 < self.epoch_growth < np.inf:
            raise BadRequest(f"lsd.epoch_growth must be above 1 and finite, got {self.epoch_growth}")


class LSDAgentState(struct.PyTreeNode):
    """Everything that a run of one seed carries."""

    key: jax.Array
    env: LSDState
    lp: jax.Array
    """Value of the relaxation of the true payoffs."""
    t: jax.Array
    """Rounds played, int32."""
    worth: jax.Array
    """`[k, M + N]`: payoffs as the policy believes them."""
    cycle: Cycle
    virtual: jax.Array
    """`[k]` int32: states of the arms if each had been played whenever it was due."""
    epoch: jax.Array
    """Plans made so far, int32."""
    replan: jax.Array
    """Round from which the next plan is due, int32."""
    counts: jax.Array
    """`[k, M + N]`: plays in each state (learners only)."""
    sums: jax.Array
    """`[k, M + N]`: reward of these plays."""
    block: jax.Array
    """`[block_length]` int32: the block being played."""
    reward: jax.Array
    """Reward so far."""


class LSDStep(struct.PyTreeNode):
    """One round of a trace."""

    action: jax.Array
    reward: jax.Array
    mean: jax.Array
    """Mean reward of the action."""
    tau: jax.Array
    """`[k]` int32: states of the arms before the round."""
    virtual: jax.Array
    """`[k]` int32: their virtual states."""


@dataclass(frozen=True, eq=False)
class LSD(Planner[LSDAgentState, LSDStep]):
    """One policy on one bandit. `algorithm`, with what it knows in brackets:

    - planner (payoffs): relaxation and rounding. 1 - 1/e of LP.
    - explore-then-commit (T): samples every state, then plans on the means. Its regret against the planner is of order
      T^(2/3).
    - epoch-ucb: plans anew on optimistic payoffs in epochs of growing length.
    - isi-combucb1: the original algorithm (Laforgue et al. 2022), optimistic over blocks, first plays left out.
    - greedy (payoffs): the arm that pays most now. round-robin: one arm after another.

    `train/regret_last` is regret against the guarantee, (1 - 1/e) LP a round; it is negative for a good plan.
    """

    algorithms = ALGORITHMS
    family = "lsd"
    env_type = LSDBandit

    env: LSDBandit
    settings: LSDSettings

    def __post_init__(self):
        super().__post_init__()
        if self.algorithm in NEED_MONOTONE and not self.env.monotone:
            raise BadRequest(f"{self.algorithm} needs payoffs that never fall with tau, and those of this bandit do")
        if self.algorithm == "explore-then-commit" and self.explored > self.total_steps:
            raise BadRequest(f"exploring takes {self.explored} rounds and the run has {self.total_steps}")
        if self.algorithm == "isi-combucb1" and self.env.arms**self.settings.block_length > BLOCKS:
            raise BadRequest(
                f"lsd.block_length = {self.settings.block_length}: more than {BLOCKS} blocks of {self.env.arms} arms"
            )

    @property
    def explored(self) -> int:
        """Rounds of exploration of explore-then-commit: whole repetitions, at least one (and whole updates)."""
        repetition = len(exploration(self.env.arms, self.env.played_limit, self.env.idle_limit))
        return repetition * max(1, int(np.ceil(self.settings.explore * self.total_steps ** (2 / 3) / repetition)))

    def init(self, key: Key) -> LSDAgentState:
        key, env_key = jax.random.split(key)
        _, env = self.env.reset(env_key, self.env.default_params)
        rest = jnp.zeros(self.env.arms, jnp.int32)
        first = self.explored if self.algorithm == "explore-then-commit" else 0
        state = LSDAgentState(
            key=key,
            env=env,
            lp=relax(env.payoffs, self.env.played_limit).value,
            t=jnp.int32(0),
            worth=env.payoffs,
            cycle=Cycle(rest + 1, rest + 1, rest),
            virtual=env.tau,
            epoch=jnp.int32(0),
            replan=jnp.int32(first),
            counts=jnp.zeros_like(env.payoffs),
            sums=jnp.zeros_like(env.payoffs),
            block=jnp.zeros(self.settings.block_length, jnp.int32),
            reward=jnp.zeros((), env.payoffs.dtype),
        )
        return self.plan(state) if self.algorithm == "planner" else state

    def plan(self, state: LSDAgentState) -> LSDAgentState:
        """A new plan at the beginning of round `state.t`."""
        means = state.sums / jnp.maximum(state.counts, 1)
        epoch = state.epoch + 1
        never = jnp.int32(np.iinfo(np.int32).max)
        if self.algorithm == "isi-combucb1":
            actions, states = blocks(self.env.arms, len(state.block), self.env.played_limit, self.env.idle_limit)
            log = jnp.log(jnp.maximum(state.t, 1).astype(means.dtype))
            bound = means + jnp.sqrt(1.5 * log / jnp.maximum(state.counts, 1))
            bound = jnp.where(state.counts > 0, bound, 1e6).ravel()
            value = jnp.sum(jnp.where(states >= 0, bound[np.maximum(states, 0)], 0), axis=1)
            block = jnp.asarray(actions)[jnp.argmax(value)]
            return state.replace(block=block, epoch=epoch, replan=state.t + len(state.block))
        if self.algorithm == "planner":
            worth, replan = state.worth, never
        elif self.algorithm == "explore-then-commit":
            worth, replan = lax.cummax(means, axis=1), never
        else:
            worth = optimistic(means, state.counts, state.t + 1)
            length = self.settings.first_epoch * self.settings.epoch_growth ** state.epoch.astype(means.dtype)
            replan = state.t + jnp.floor(jnp.minimum(length, self.total_steps)).astype(jnp.int32)
        fractions = relax(worth, self.env.played_limit).fractions
        uniforms = jax.random.uniform(jax.random.fold_in(state.key, state.epoch), (2, self.env.arms), means.dtype)
        cycle = draw_cycles(fractions, uniforms, self.env.played_limit)
        return state.replace(worth=worth, cycle=cycle, virtual=state.env.tau, epoch=epoch, replan=replan)

    def _act(self, state: LSDAgentState) -> jax.Array:
        M = self.env.played_limit
        if self.algorithm == "greedy":
            return jnp.argmax(at_states(state.worth, state.env.tau, M))
        if self.algorithm == "round-robin":
            return state.t % self.env.arms
        if self.algorithm == "isi-combucb1":
            return state.block[state.t - (state.replan - len(state.block))]
        states = state.env.tau if self.settings.select == "actual" else state.virtual
        planned = best_due(state.cycle.due(), at_states(state.worth, states, M))
        if self.algorithm == "explore-then-commit":
            schedule = exploration(self.env.arms, M, self.env.idle_limit)
            return jnp.where(state.epoch == 0, jnp.asarray(schedule)[state.t % len(schedule)], planned)
        return planned

    def _learn(self, state: LSDAgentState, action: jax.Array, tau: jax.Array, reward: jax.Array) -> LSDAgentState:
        M, N = self.env.played_limit, self.env.idle_limit
        met = (jnp.arange(self.env.arms) == action)[:, None] & (jnp.arange(M + N) == column(tau, M)[:, None])
        if self.algorithm == "isi-combucb1":  # an arm's first play in a block does not count
            i = state.t - (state.replan - len(state.block))
            met &= jnp.any((state.block == action) & (jnp.arange(len(state.block)) < i))
        return state.replace(counts=state.counts + met, sums=state.sums + jnp.where(met, reward, 0))

    def _round(self, state: LSDAgentState, uniform: jax.Array) -> tuple[LSDAgentState, LSDStep]:
        if self.algorithm == "isi-combucb1":
            state = when(state.t == state.replan, lambda: self.plan(state), state)
        action = self._act(state)
        before, M, N = state.env, self.env.played_limit, self.env.idle_limit
        _, env, reward, _, _, info = self.env.transition(before, action, uniform, self.env.default_params)
        if self.algorithm in LEARNERS:
            state = self._learn(state, action, before.tau, reward)
        step = LSDStep(action, reward, info["mean"], before.tau, state.virtual)
        state = state.replace(
            env=env,
            t=state.t + 1,
            cycle=state.cycle.next(),
            virtual=after(state.virtual, state.cycle.due(), M, N),
        )
        return state, step

    def play(self, state: LSDAgentState, uniforms: jax.Array) -> tuple[LSDAgentState, LSDStep]:
        """As `Planner.play`, after a new plan if one is due."""
        if self.algorithm in ("explore-then-commit", "epoch-ucb"):
            state = when(state.t >= state.replan, lambda: self.plan(state), state)
        return lax.scan(self._round, state, uniforms)

    def draw_uniforms(self, state: LSDAgentState) -> tuple[LSDAgentState, jax.Array]:
        # Plans fold their number, 0 and up, into the same key; no run makes so many that they meet this one.
        key = jax.random.fold_in(jax.random.fold_in(state.key, np.iinfo(np.int32).max), state.t)
        return state, jax.random.uniform(key, (self.rounds_per_update, self.num_uniforms))

    def summarise(self, state: LSDAgentState, trace: LSDStep) -> tuple[LSDAgentState, Metrics]:
        earned = jnp.sum(trace.reward).astype(state.reward.dtype)
        state = state.replace(reward=state.reward + earned)
        return state, {
            "train/return": earned / self.steps_per_update,
            "train/regret_last": ALPHA * state.lp * state.t - state.reward,
            "train/reward_last": state.reward,
            "train/lp_last": state.lp,
            "train/plans_last": state.epoch,
        }

    def evaluate(self, state: LSDAgentState, key: Key, axis_name: str | None = None) -> Metrics:
        """`eval/return`: reward a round so far; `eval/ratio`: the same as a share of LP (1 where nothing pays). Only
        luck and the first rounds, from rest, can lift a policy above LP."""
        mean = state.reward / jnp.maximum(state.t, 1)
        return {"eval/return": mean, "eval/ratio": jnp.where(state.lp > 0, mean / state.lp, 1)}
