"""StepMix, EpsMix and BPI-UCBVI in plain NumPy float64: every candidate is evaluated by itself, as the papers say."""

import numpy as np


def draw(p, u):
    return min(int(np.sum(np.cumsum(p) <= u)), len(p) - 1)


def exact(P, r, pi):
    """Value at state 0 of policy `pi [H, S, A]` under kernels `P [H, S, A, S]`."""
    v = np.zeros(P.shape[1])
    for h in range(len(P) - 1, -1, -1):
        v = np.sum(pi[h] * (r[h] + P[h] @ v), axis=1)
    return v[0]


def occupancies(P, pi):
    """`[H, S, A]`: probability that `pi` is in a state and takes an action at a step, from the start."""
    at, out = np.eye(P.shape[1])[0], []
    for kernel, policy in zip(P, pi, strict=True):
        out.append(at[:, None] * policy)
        at = np.einsum("sa,sax->x", out[-1], kernel)
    return np.array(out)


class Mirror:
    def __init__(self, P, r, pib, gamma, delta, c, algorithm, counts=None):
        self.P, self.r, self.pib, self.gamma, self.c, self.algorithm = P, r, pib, gamma, c, algorithm
        self.H, self.S, self.A = r.shape
        self.n = np.zeros(P.shape) if counts is None else np.array(counts, float)
        self.L = np.log(3 * self.S * self.A * self.H * 2 * (self.H + 1) / delta)

    def q_bounds(self, h, up, lo):
        n = self.n[h].sum(-1)
        n1 = np.maximum(n, 1)
        ph = self.n[h] / n1[..., None]
        mean = ph @ up
        var = np.sum(ph * (up - mean[..., None]) ** 2, axis=-1)
        b_star, b = self.L + np.log(8 * np.e * (n + 1)), self.L + self.S * np.log(8 * np.e * (n + 1))
        bon = self.c * (3 * np.sqrt(var * b_star / n1) + 14 * self.H**2 * b / n1 + ph @ (up - lo) / self.H)
        q_up = np.minimum(self.H - h, self.r[h] + mean + bon)
        q_lo = np.maximum(0, self.r[h] + ph @ lo - bon)
        return np.where(n == 0, self.H - h, q_up), np.where(n == 0, 0, q_lo)

    def evaluate(self, pi):
        """PolicyEva: lower and upper bound of the value of `pi` at the start."""
        up, lo = np.zeros(self.S), np.zeros(self.S)
        for h in range(self.H - 1, -1, -1):
            q_up, q_lo = self.q_bounds(h, up, lo)
            up, lo = np.sum(pi[h] * q_up, 1), np.sum(pi[h] * q_lo, 1)
        return lo[0], up[0]

    def optimistic(self, priorities):
        pi = np.zeros((self.H, self.S, self.A))
        up, lo = np.zeros(self.S), np.zeros(self.S)
        for h in range(self.H - 1, -1, -1):
            q_up, q_lo = self.q_bounds(h, up, lo)
            for s in range(self.S):
                best = np.flatnonzero(q_up[s] == q_up[s].max())
                pi[h, s, best[np.argmax(priorities[h, best])]] = 1
            up, lo = np.sum(pi[h] * q_up, 1), np.sum(pi[h] * q_lo, 1)
        return pi

    def episode(self, u):
        """`u`: coin, H * A priorities, H for actions, H for transitions. Returns what was played, as a dict."""
        H, A = self.H, self.A
        pibar = self.optimistic(u[1 : 1 + H * A].reshape(H, A))
        cand = [np.concatenate([self.pib[:j], pibar[j:]]) for j in range(H + 1)]
        bounds = [self.evaluate(pi) for pi in cand]
        low = [lo for lo, _ in bounds]
        safe = [j for j in range(H + 1) if low[j] >= self.gamma]
        switch, rho = H, None
        if self.algorithm == "bpi-ucbvi" or (self.algorithm == "stepmix" and safe and safe[0] == 0):
            switch, policy = 0, pibar
        elif self.algorithm == "baseline" or not safe:
            policy = self.pib
        elif self.algorithm == "stepmix":
            switch = safe[0]
            rho = (low[switch] - self.gamma) / (low[switch] - low[switch - 1])
            policy = cand[switch].copy()
            policy[switch - 1] = (1 - rho) * self.pib[switch - 1] + rho * pibar[switch - 1]
        else:
            rho = (
                1 if low[0] >= self.gamma else (low[H] - self.gamma) / (low[H] - low[0]) if low[H] >= self.gamma else 0
            )
            switch, policy = (0, pibar) if u[0] < rho else (H, self.pib)
        value = exact(self.P, self.r, policy)
        if self.algorithm == "epsmix" and rho is not None:
            value = rho * exact(self.P, self.r, pibar) + (1 - rho) * exact(self.P, self.r, self.pib)
        s, states, actions, rewards = 0, [], [], []
        for h in range(H):
            a = draw(policy[h, s], u[1 + H * A + h])
            x = draw(self.P[h, s, a], u[1 + H * A + H + h])
            self.n[h, s, a, x] += 1
            states, actions, rewards, s = [*states, s], [*actions, a], [*rewards, self.r[h, s, a]], x
        return {"lower": low, "upper": [up for _, up in bounds], "greedy": pibar.argmax(-1), "switch": switch,
                "state": states, "action": actions, "reward": rewards, "value": value}  # fmt: skip
