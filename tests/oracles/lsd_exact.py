"""Exact values of small last-switch-dependent bandits, NumPy float64: the truth for `engram.agents.planners.lsd`."""

from dataclasses import dataclass

import numpy as np

from engram.agents.planners.lsd import cycles
from engram.envs.bandits.last_switch import after

CHAIN = 1 << 18
"""Most joint states, (M + N) ** k, whose optimum is looked for."""


@dataclass(frozen=True)
class Optimum:
    """The best average reward a round, from whatever states."""

    gain: float
    error: float
    """`gain` is off by no more than this."""


def optimum(payoffs: np.ndarray, played_limit: int, tolerance: float = 1e-10, sweeps: int = 100_000) -> Optimum:
    """OPT by relative value iteration on the product of the arms' states (Puterman 1994, section 8.5.5).

    Every round counts as half a round of standing still, which keeps iteration from going round in circles where the
    best policy is periodic and leaves the average unchanged. Resting everybody leads to one state from all others, so
    the optimum is the same from everywhere.

    Args:
        payoffs: `[k, M + N]`, columns in the order of tau. Need not be monotone.
        tolerance: the `error` to reach.

    Raises:
        ValueError: more than `CHAIN` joint states, or the tolerance not reached after so many sweeps.
    """
    payoffs = np.asarray(payoffs, float)
    k, columns = payoffs.shape
    if columns**k > CHAIN:
        raise ValueError(f"lsd: (M + N) ** k = {columns} ** {k} joint states are too many, at most {CHAIN}")
    tau = np.array([*range(-played_limit, 0), *range(1, columns - played_limit + 1)])
    at = np.stack(np.unravel_index(np.arange(columns**k), (columns,) * k), axis=1)  # (joint states, k)
    successors, rewards = [], []
    for action in range(k + 1):
        then = after(tau[at], np.arange(k) == action, played_limit, columns - played_limit)
        successors.append(np.ravel_multi_index(tuple(np.searchsorted(tau, then).T), (columns,) * k))
        rewards.append(payoffs[action, at[:, action]] if action < k else np.zeros(len(at)))
    successors, rewards = np.stack(successors), np.stack(rewards)  # (k + 1, joint states)

    value, low, high = np.zeros(columns**k), 0.0, np.inf
    for _ in range(sweeps):
        new = (np.max(rewards + value[successors], axis=0) + value) / 2
        change = new - value  # its least and largest entry hold half the optimum between them
        low, high = 2 * np.min(change), 2 * np.max(change)
        if high - low <= 2 * tolerance:
            return Optimum(float(low + high) / 2, float(high - low) / 2)
        value = new - new[0]
    raise ValueError(f"lsd: the optimum is only known to within {high - low:.3g} after {sweeps} sweeps")


def rounding_floor(payoffs: np.ndarray, fractions: np.ndarray, played_limit: int) -> float:
    """E max over the arms that want to play of p(virtual state), which rounding earns a round, or more, once warm.

    A drawn offset makes all phases of a drawn cycle equally likely, in every round; so an arm's payoff, counted as 0
    while it rests, has a fixed distribution, independent of the other arms'. Rounding earns exactly this where real
    states pay what virtual ones do.

    Args:
        payoffs: `[k, M + N]`, not falling with tau.
        fractions: `[k, Q]`, shares of time in the types of `engram.agents.planners.lsd.cycles`.
    """
    payoffs, fractions = np.asarray(payoffs, float), np.asarray(fractions, float)
    idle, played = cycles(played_limit, payoffs.shape[1] - played_limit)
    levels = np.unique(np.append(payoffs, 0.0))
    below = np.ones(len(levels))  # P(every arm's payoff <= level)
    for p, shares in zip(payoffs, fractions, strict=True):
        more = np.zeros(len(levels))
        for b, a, share in zip(idle, played, shares, strict=True):
            down = p[played_limit - np.arange(1, a)]  # p(-1) .. p(-(a - 1))
            paid = np.append(p[played_limit + b - 1], down) if b and a else p[:a]
            more += share / (a + b) * np.sum(paid[:, None] > levels, axis=0)
        below *= 1 - more
    return float(np.sum(np.diff(levels) * (1 - below[:-1])))
