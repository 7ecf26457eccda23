"""Last-switch-dependent bandits and their policies in plain NumPy float64, one arm and one round at a time.

Payoffs are a list of dicts {tau: payoff}; linear programs are scipy's (HiGHS). Uniforms come from outside: `coins[t]`
for the payoff of round t, `draws(plan) -> [2, k]` for cycles and offsets.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_array

TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def dicts(payoffs: np.ndarray, M: int) -> list[dict[int, float]]:
    taus = [*range(-M, 0), *range(1, payoffs.shape[1] - M + 1)]
    return [dict(zip(taus, map(float, row), strict=True)) for row in payoffs]


def step(tau: int, play: bool, M: int, N: int) -> int:
    if play:
        return -1 if tau > 0 else max(tau - 1, -M)
    return 1 if tau < 0 else min(tau + 1, N)


class Bandit:
    def __init__(self, p: list[dict[int, float]]):
        self.p, self.k = p, len(p)
        self.M, self.N = -min(p[0]), max(p[0])
        self.tau = [self.N] * self.k

    def play(self, arm: int, coin: float) -> tuple[int, float]:
        """Reward and its mean; arm k is nobody."""
        mean = self.p[arm][self.tau[arm]] if arm < self.k else 0.0
        self.tau = [step(tau, i == arm, self.M, self.N) for i, tau in enumerate(self.tau)]
        return int(coin < mean), mean


# -------------------------------------------------------------------------------------------------- linear programs


def cycle_types(M: int, N: int) -> list[tuple[int, int]]:
    """(plays, idle rounds) of REST, of the cycles, of LOOP."""
    return [(0, 1), *itertools.product(range(1, M + 1), range(1, N + 1)), (1, 0)]


def cycle_reward(p: dict[int, float], a: int, b: int) -> float:
    if b == 0:
        return p[min(p)]
    return 0.0 if a == 0 else p[b] + sum(p[-m] for m in range(1, a))


def cycle_lp(p: list[dict[int, float]]):
    """(rewards, time rows and budget row) of the program over cycles started a round."""
    types = cycle_types(-min(p[0]), max(p[0]))
    reward = np.array([cycle_reward(arm, a, b) for arm in p for a, b in types])
    times = np.kron(np.eye(len(p)), [a + b for a, b in types])
    budget = np.tile([float(a) for a, _ in types], len(p))
    return reward, np.vstack([times, budget]), np.ones(len(p) + 1)


def solve_cycles(p: list[dict[int, float]]) -> tuple[float, np.ndarray]:
    """LP and the shares of time (k, types)."""
    reward, A, b = cycle_lp(p)
    result = linprog(-reward, A_ub=A, b_ub=b, options=TIGHT)
    lengths = [a + b for a, b in cycle_types(-min(p[0]), max(p[0]))]
    shares = result.x.reshape(len(p), -1) * lengths
    shares[:, 0] = np.maximum(1 - shares[:, 1:].sum(1), 0)  # time in no cycle is rest
    return -result.fun, shares


def occupancy_lp(p: list[dict[int, float]]):
    """(rewards, flow rows with right sides, budget row): variables y[arm, tau, play]."""
    M, N, taus = -min(p[0]), max(p[0]), sorted(p[0])
    where = {tau: i for i, tau in enumerate(taus)}
    flow = np.zeros((len(taus) + 1, len(taus) * 2))
    for tau, play in itertools.product(taus, (0, 1)):
        y = 2 * where[tau] + play
        flow[where[tau], y] += 1
        flow[where[step(tau, bool(play), M, N)], y] -= 1
    flow[-1] = 1
    sides = np.append(np.zeros(len(taus)), 1.0)
    reward = np.array([arm[tau] * play for arm in p for tau in taus for play in (0, 1)])
    return reward, np.kron(np.eye(len(p)), flow), np.tile(sides, len(p)), np.tile([0.0, 1.0], len(p) * len(taus))


def values(instances: list[list[dict[int, float]]], form: str) -> np.ndarray:
    """LP of every instance, all in one program of blocks that nothing joins: `form` is "cycles" or "occupancy"."""
    if form == "cycles":
        parts = [cycle_lp(p) for p in instances]
        A, b = block_diag([A for _, A, _ in parts], "csr"), np.concatenate([b for *_, b in parts])
        constraints = {"A_ub": A, "b_ub": b}
    else:
        parts = [occupancy_lp(p) for p in instances]
        budget = block_diag([csr_array(row[None]) for *_, row in parts], "csr")
        flow, sides = block_diag([part[1] for part in parts], "csr"), np.concatenate([part[2] for part in parts])
        constraints = {"A_ub": budget, "b_ub": np.ones(len(parts)), "A_eq": flow, "b_eq": sides}
    rewards = [part[0] for part in parts]
    x = linprog(-np.concatenate(rewards), **constraints, options=TIGHT).x
    cuts = np.cumsum([len(r) for r in rewards])[:-1]
    return np.array([r @ y for r, y in zip(rewards, np.split(x, cuts), strict=True)])


# --------------------------------------------------------------------------------------------------------- policies


Solve = Callable[[list[dict[int, float]]], np.ndarray]


class Plan:
    """A cycle and an offset drawn for each arm, followed from round `start` on."""

    def __init__(self, worth: list[dict[int, float]], solve: Solve, uniforms: np.ndarray, start: int, tau: list[int]):
        M, N = -min(worth[0]), max(worth[0])
        self.worth, self.start, self.virtual, self.M, self.N = worth, start, list(tau), M, N
        self.cycles = []
        for shares, u, v in zip(solve(worth), *uniforms, strict=True):
            cumulative = np.cumsum(shares)
            drawn = min(int(np.sum(cumulative <= u)), max(np.flatnonzero(shares > 0)))
            a, b = cycle_types(M, N)[drawn]
            self.cycles.append((a, b, int(v * (a + b))))

    def act(self, t: int, tau: list[int], select: str) -> int:
        """The arm to play, k for nobody. Moves the virtual states on."""
        wants = [(t - self.start + o) % (a + b) >= b for a, b, o in self.cycles]
        states = tau if select == "actual" else self.virtual
        best = (
            max((self.worth[i][states[i]], -i) for i in np.flatnonzero(wants).tolist())
            if any(wants)
            else (0, -len(wants))
        )
        self.virtual = [step(x, w, self.M, self.N) for x, w in zip(self.virtual, wants, strict=True)]
        return -best[1]


def rounding(bandit: Bandit, coins, draws, select: str, solve: Solve):
    plan, trace = Plan(bandit.p, solve, draws(0), 0, bandit.tau), []
    for t, coin in enumerate(coins):
        tau, virtual = list(bandit.tau), list(plan.virtual)
        arm = plan.act(t, bandit.tau, select)
        trace.append((arm, *bandit.play(arm, coin), tau, virtual))
    return trace


def explore_then_commit(bandit: Bandit, coins, draws, select: str, solve: Solve, explore: float, T: int, update: int):
    """`update`: rounds between the moments at which exploration may end."""
    k, M, N = bandit.k, bandit.M, bandit.N
    C = k * N * ((N + 1) / 2 + M + 1)
    n = max(1, math.ceil(explore * T ** (2 / 3) / C))
    schedule = []
    for _ in range(n + math.ceil(update / C)):
        for arm in range(k):
            for b in range(N, 0, -1):
                schedule += [k] * b + [arm] * (M + 1)
    samples = [{tau: [] for tau in arm} for arm in bandit.p]
    plan, trace = None, []
    for t, coin in enumerate(coins):
        if plan is None and t >= n * C and t % update == 0:
            phat = []
            for arm in samples:
                means = {tau: np.mean(seen) for tau, seen in arm.items()}
                phat.append({tau: max(means[s] for s in means if s <= tau) for tau in means})
            plan = Plan(phat, solve, draws(0), t, bandit.tau)
        tau = list(bandit.tau)
        arm = schedule[t] if plan is None else plan.act(t, tau, select)
        reward, mean = bandit.play(arm, coin)
        if arm < k:
            samples[arm][tau[arm]].append(reward)
        trace.append((arm, reward, mean, tau))
    return trace


def epoch_ucb(bandit: Bandit, coins, draws, select: str, solve: Solve, first: int, growth: float, update: int):
    n = [dict.fromkeys(arm, 0) for arm in bandit.p]
    total = [dict.fromkeys(arm, 0) for arm in bandit.p]
    size = bandit.k * (bandit.M + bandit.N)
    plans, due, plan, trace = 0, 0, None, []
    for t, coin in enumerate(coins):
        if t % update == 0 and t >= due:
            u = []
            for seen, paid in zip(n, total, strict=True):
                raw = {x: min(1, paid[x] / m + math.sqrt(0.5 * math.log(size * (t + 1)) / m)) if m else 1.0
                       for x, m in seen.items()}  # fmt: skip
                u.append({x: min(raw[y] for y in raw if y >= x) for x in raw})
            plan = Plan(u, solve, draws(plans), t, bandit.tau)
            due, plans = t + math.floor(first * growth**plans), plans + 1
        assert plan
        tau = list(bandit.tau)
        arm = plan.act(t, tau, select)
        reward, mean = bandit.play(arm, coin)
        if arm < bandit.k:
            n[arm][tau[arm]] += 1
            total[arm][tau[arm]] += reward
        trace.append((arm, reward, mean, tau))
    return trace


def isi_combucb1(bandit: Bandit, coins, length: int):
    """A play counts in a block's value if not its arm's first and in the same state wherever the block began."""
    k, M, N = bandit.k, bandit.M, bandit.N

    def met(block):
        """The counting plays (arm, tau) of a block."""
        paths = []
        for start in bandit.p[0]:
            tau, path = [start] * k, []
            for arm in block:
                path.append(tau[arm])
                tau = [step(x, i == arm, M, N) for i, x in enumerate(tau)]
            paths.append(path)
        same = [len(set(states)) == 1 for states in zip(*paths, strict=True)]
        return [(a, paths[0][i]) for i, a in enumerate(block) if a in block[:i] and same[i]]

    blocks = [(block, met(block)) for block in itertools.product(range(k), repeat=length)]
    n = [dict.fromkeys(arm, 0) for arm in bandit.p]
    total = [dict.fromkeys(arm, 0) for arm in bandit.p]
    block, trace = (), []
    for t, coin in enumerate(coins):
        if t % length == 0:
            bound = [
                {
                    x: total[i][x] / n[i][x] + math.sqrt(1.5 * math.log(max(t, 1)) / n[i][x]) if n[i][x] else 1e6
                    for x in arm
                }
                for i, arm in enumerate(bandit.p)
            ]
            worth = [sum(bound[i][x] for i, x in plays) for _, plays in blocks]
            block = blocks[int(np.argmax(worth))][0]
        tau, arm = list(bandit.tau), block[t % length]
        reward, mean = bandit.play(arm, coin)
        if arm in block[: t % length]:
            n[arm][tau[arm]] += 1
            total[arm][tau[arm]] += reward
        trace.append((arm, reward, mean, tau))
    return trace


def greedy(bandit: Bandit, coins):
    trace = []
    for coin in coins:
        tau = list(bandit.tau)
        arm = int(np.argmax([bandit.p[i][tau[i]] for i in range(bandit.k)]))
        trace.append((arm, *bandit.play(arm, coin), tau))
    return trace


def round_robin(bandit: Bandit, coins):
    trace = []
    for t, coin in enumerate(coins):
        tau = list(bandit.tau)
        trace.append((t % bandit.k, *bandit.play(t % bandit.k, coin), tau))
    return trace


# ------------------------------------------------------------------------------------- recharging arms on their own


def recharging_rounding(payoff: list[list[float]], periods: list[int], offsets: list[int], rounds: int):
    """Rounding of a delay-only bandit: `payoff[i][d - 1]` d rounds after arm i's last play, arm i wants to play in
    every `periods[i]`-th round (0: never), `offsets[i]` rounds into its period at the beginning. Actions and means."""
    k, longest = len(payoff), len(payoff[0])
    delay, out = [longest] * k, []
    for t in range(rounds):
        wants = [i for i in range(k) if periods[i] and (t + offsets[i] + 1) % periods[i] == 0]
        now = [payoff[i][min(delay[i], longest) - 1] for i in range(k)]
        arm = max(wants, key=lambda i: now[i]) if wants else k
        out.append((arm, now[arm] if arm < k else 0.0))
        delay = [1 if i == arm else d + 1 for i, d in enumerate(delay)]
    return out
