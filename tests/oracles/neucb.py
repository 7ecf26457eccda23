"""NeuSquareCB, NeuFastCB, NeuralUCB and epsilon-greedy in plain NumPy float64, gradients by hand."""

import numpy as np


class Network:
    """f(theta; x) = sum_j v_j max(w_j x, 0) / sqrt(m); with m = 0, <theta, x>."""

    def __init__(self, m, d):
        self.m, self.d = m, d

    def value(self, theta, x):
        if self.m == 0:
            return theta @ x
        W, v = theta[: self.m * self.d].reshape(self.m, self.d), theta[self.m * self.d :]
        return v @ np.maximum(W @ x, 0.0) / np.sqrt(self.m)

    def gradient(self, theta, x):
        if self.m == 0:
            return x.copy()
        W, v = theta[: self.m * self.d].reshape(self.m, self.d), theta[self.m * self.d :]
        z = W @ x
        inward = np.array([v[j] * (z[j] > 0) * x for j in range(self.m)])
        return np.concatenate([inward.ravel(), np.maximum(z, 0.0)]) / np.sqrt(self.m)


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def gap_weights(y, gamma, fast):
    """SquareCB's or FastCB's distribution of predicted losses `y`."""
    K, b = len(y), int(np.argmin(y))
    p = np.zeros(K)
    for a in range(K):
        if a != b:
            p[a] = y[b] / (K * y[b] + gamma * (y[a] - y[b])) if fast else 1.0 / (K + gamma * (y[a] - y[b]))
    p[b] = 1.0 - p.sum()
    return p


def sample(p, u):
    total = 0.0
    for a, weight in enumerate(p):
        total += weight
        if total > u:
            return a
    return len(p) - 1


def classification(features, labels):
    """Contexts in blocks, loss 1 for a wrong class. -> contexts(i), loss(i, a, u), next example(u)."""
    N, D, K = len(labels), features.shape[1], labels.max() + 1

    def contexts(i):
        x = np.zeros((K, K * D))
        for a in range(K):
            x[a, a * D : (a + 1) * D] = features[i]
        return x

    return contexts, lambda i, a: float(labels[i] != a), lambda u: min(int(u * N), N - 1)


def play(kind, env, example, theta0, signs, width, gamma, s, uniforms):
    """`kind`: "square", "fast", "neuralucb" or "epsilon-greedy"; `signs [S, p]`; `s`: the other settings, a dict.

    -> actions, losses, predictions, probabilities, parameters after each round.
    """
    contexts, loss_of, next_example = env
    network = Network(width, contexts(example).shape[1])
    theta, Z = theta0.copy(), np.full(len(theta0), s["ucb_regularisation"])
    scale = s["perturbation"] / max(width, 1) ** 0.25
    trace = []
    for t, u in enumerate(uniforms):
        x = contexts(example)
        K = len(x)
        noise = np.array([scale * (theta - theta0) @ e for e in signs]) if len(signs) else np.zeros(1)
        f = np.array([network.value(theta, row) for row in x])
        perturbed = f[:, None] + noise[None]
        y = np.clip((sigmoid(perturbed) if kind == "fast" else perturbed).mean(1), 1e-6, 1 - 1e-6)
        if kind == "neuralucb":
            g = [network.gradient(theta, row) for row in x]
            p = np.eye(K)[np.argmin([f[a] - s["ucb_scale"] * np.sqrt(np.sum(g[a] ** 2 / Z)) for a in range(K)])]
        elif kind == "epsilon-greedy":
            p = s["epsilon"] / K + (1 - s["epsilon"]) * np.eye(K)[np.argmin(y)]
        else:
            p = gap_weights(y, gamma, kind == "fast")
        a = sample(p, u[0])
        loss, gf = loss_of(example, a), network.gradient(theta, x[a])
        if kind == "neuralucb":
            Z += gf**2
        gradient = np.zeros_like(theta)
        for i in range(len(noise)):
            out = perturbed[a, i]
            slope = sigmoid(out) - loss if kind == "fast" else out - loss
            gradient += slope * (gf + (scale * signs[i] if len(signs) else 0.0)) / len(noise)
        theta = theta - s["learning_rate"] / (1 + s["learning_rate_decay"] * t) * gradient
        shift = theta - theta0
        if np.linalg.norm(shift) > s["ball"]:
            theta = theta0 + shift * s["ball"] / np.linalg.norm(shift)
        trace.append((a, loss, y, p, theta))
        example = next_example(u[1])
    return [np.array(column) for column in zip(*trace, strict=True)]
