"""DynLin-UCB, LinUCB and D-LinUCB in plain NumPy float64, as their papers write them: V, b and explicit inverses."""

import numpy as np
from scipy.special import ndtri


def argmax(values):
    """The first of those that tie to within rounding."""
    best = values.max()
    return int(np.argmax(values >= best - 1e-6 * max(1.0, abs(best))))


class Environment:
    """y = <omega, x> + <theta, u> + eta;  x <- A x + B u + eps."""

    def __init__(self, A, B, omega, theta, state_sigma, output_sigma):
        self.A, self.B, self.omega, self.theta = A, B, omega, theta
        self.state_sigma, self.output_sigma = state_sigma, output_sigma
        self.x = np.zeros(len(omega))

    def step(self, u, uniforms):
        noise = ndtri(np.maximum(uniforms, np.finfo(float).eps / 2))
        y = self.omega @ self.x + self.theta @ u + self.output_sigma * noise[-1]
        self.x = self.A @ self.x + self.B @ u + self.state_sigma * noise[:-1]
        return y


def constants(b):
    """c1, c2 and sigma-bar squared from the bounds (a dict)."""
    c1 = b["theta"] + b["omega"] * b["gain"] * b["growth"] / (1 - b["radius"])
    X = b["action"] / (1 - b["radius"])
    c2 = b["action"] * b["omega"] * b["growth"] * (b["action"] * b["gain"] / (1 - b["radius"]) + X)
    return c1, c2, b["sigma"] ** 2 * (1 + b["omega"] ** 2 * b["growth"] ** 2 / (1 - b["radius"] ** 2))


def dynlin_ucb(env, U, b, lam, delta, uniforms):
    """-> actions, rewards, estimates of h on entering each round."""
    d, T = U.shape[1], len(uniforms)
    c1, c2, s2 = constants(b)
    V, vec, t, m = lam * np.eye(d), np.zeros(d), 0, 0
    actions, rewards, hs = [], [], []
    while t < T:
        m += 1
        H = 0 if b["radius"] < 1e-6 else int(np.floor(np.log(m) / np.log(1 / b["radius"])))
        beta = c1 * np.sqrt(lam) + c2 / np.sqrt(lam) * np.log(np.e * (t + 1))
        beta += np.sqrt(2 * s2 * (np.log(1 / delta) + d / 2 * np.log(1 + t * b["action"] ** 2 / (d * lam))))
        W = np.linalg.inv(V)
        h = W @ vec
        a = argmax(np.array([h @ u + beta * np.sqrt(u @ W @ u) for u in U]))
        for _ in range(min(H + 1, T - t)):
            actions, hs = [*actions, a], [*hs, h]
            rewards.append(env.step(U[a], uniforms[t]))
            t += 1
        V += np.outer(U[a], U[a])
        vec += U[a] * rewards[-1]
    return np.array(actions), np.array(rewards), np.array(hs)


def linucb(env, U, b, lam, delta, uniforms, gamma=None):
    """LinUCB, or with a discount `gamma` D-LinUCB (Russac et al. 2019, algorithm 1)."""
    d, T = U.shape[1], len(uniforms)
    c1, _, s2 = constants(b)
    g = 1.0 if gamma is None else gamma
    V, Vt, vec = lam * np.eye(d), lam * np.eye(d), np.zeros(d)
    actions, rewards, hs = [], [], []
    for t in range(T):
        weight = t if gamma is None else (1 - g ** (2 * t)) / (1 - g**2)
        width = np.log(1 / delta) + d / 2 * np.log(1 + b["action"] ** 2 * weight / (d * lam))
        beta = c1 * np.sqrt(lam) + np.sqrt(2 * s2 * width)
        W = np.linalg.inv(V)
        norm = W if gamma is None else W @ Vt @ W
        h = W @ vec
        a = argmax(np.array([h @ u + beta * np.sqrt(u @ norm @ u) for u in U]))
        y = env.step(U[a], uniforms[t])
        V = g * V + np.outer(U[a], U[a]) + (1 - g) * lam * np.eye(d)
        Vt = g**2 * Vt + np.outer(U[a], U[a]) + (1 - g**2) * lam * np.eye(d)
        vec = g * vec + U[a] * y
        actions, rewards, hs = [*actions, a], [*rewards, y], [*hs, h]
    return np.array(actions), np.array(rewards), np.array(hs)
