"""R-BOCPD for multinomial streams in NumPy, float64: the forecasters' losses as the paper defines them."""

import math
from itertools import pairwise

import numpy as np
from scipy.special import gammaln

TIE = 1e3 * np.finfo(float).eps  # weights are rational numbers; where two are equal, rounding must not decide


def log_evidence(x, symbols):
    """-L of the samples `x`: the sum of the log predictions of the Laplace rule, one sample after another."""
    counts, total = np.zeros(symbols), 0.0
    for n, symbol in enumerate(x):
        total += np.log((counts[symbol] + 1) / (n + symbols))
        counts[symbol] += 1
    return total


def closed_form(counts):
    """-L from the counts `[..., O]` alone."""
    symbols = counts.shape[-1]
    return gammaln(symbols) + gammaln(counts + 1).sum(-1) - gammaln(counts.sum(-1) + symbols)


def log_eta(kind, delta, total, before, symbols):
    if kind == "paper":
        return -np.log(total) * np.ones_like(before, float)
    if kind == "squared":
        return -2 * np.log(total) * np.ones_like(before, float)
    choose = gammaln(total + symbols) - gammaln(total + 1) - gammaln(symbols)
    return math.log(delta) - choose - np.log(before * (before + 1.0))


class Exact:
    """Counts and log weights of every forecaster; lw[0] is the base. `weights()` leaves eta out."""

    def __init__(self, symbols, cap, kind, delta):
        self.symbols, self.cap, self.kind, self.delta = symbols, cap, kind, delta
        self.counts, self.lw = np.zeros((symbols, cap)), np.zeros(cap)
        self.overflow = False
        self.clear()

    def clear(self):
        self.t = self.used = 0

    def update(self, x):
        t, used = self.t, self.used
        if used < self.cap:  # the forecaster born with this sample: the base's evidence, nothing seen
            self.lw[used] = self.lw[0] if t else 0.0
            self.counts[:, used] = 0
            self.used = used = used + 1
        else:
            self.overflow = True
        self.lw[:used] += np.log((self.counts[x, :used] + 1) / (t - np.arange(used) + self.symbols))
        self.counts[x, :used] += 1
        self.t += 1
        if used < 2:
            return False
        before = np.arange(1, used)
        etas = log_eta(self.kind, self.delta, self.t, before, self.symbols)
        return bool(np.max(self.lw[1:used] + etas) - self.lw[0] > TIE)

    def candidates(self):
        return np.arange(1, self.used)

    def weights(self):
        return self.lw[1 : self.used] - self.lw[0]


class Grid:
    """One forecaster for each class of ages floor(1.25^i) <= age < next; who outgrows a class moves on if it can."""

    overflow = False

    def __init__(self, symbols, cap, kind, delta):
        self.symbols, self.kind, self.delta = symbols, kind, delta
        bounds = sorted({math.floor(1.25**i) for i in range(80)})
        self.upper = [b for a, b in pairwise(bounds) if a <= cap]
        self.clear()

    def clear(self):
        self.t, self.base, self.total = 0, 0.0, np.zeros(self.symbols)
        self.start, self.lw = np.full(len(self.upper), -1), np.zeros(len(self.upper))
        self.counts = np.zeros((len(self.upper), self.symbols))

    def update(self, x):
        alive = self.start >= 0
        self.lw[alive] += np.log((self.counts[alive, x] + 1) / (self.t - self.start[alive] + self.symbols))
        self.counts[alive, x] += 1
        born = self.base - math.log(self.symbols)
        self.base += math.log((self.total[x] + 1) / (self.t + self.symbols))
        self.total[x] += 1
        self.t += 1
        for i in np.flatnonzero(alive & (self.t - self.start == self.upper))[::-1]:
            if i + 1 < len(self.upper) and self.start[i + 1] < 0:
                self.start[i + 1], self.lw[i + 1], self.counts[i + 1] = self.start[i], self.lw[i], self.counts[i]
            self.start[i] = -1
        if self.t < 2:
            return False
        self.start[0], self.lw[0], self.counts[0] = self.t - 1, born, np.eye(self.symbols)[x]
        etas = log_eta(self.kind, self.delta, self.t, self.candidates(), self.symbols)
        return bool(np.max(self.lw[self.start >= 0] + etas) - self.base > TIE)

    def candidates(self):
        return self.start[self.start >= 0]

    def weights(self):
        return self.lw[self.start >= 0] - self.base


def delay_bound(theta, after, before, eta, delta, longest=100_000):
    """The delay that theorem 4.8 grants for a change from `theta` to `after` when `before` samples precede it.

    Args:
        eta: function of (N, j).

    Returns:
        the least d that fulfils the theorem's condition; inf if there is none up to `longest`.
    """
    gap, symbols, n = np.abs(np.asarray(theta) - after), len(theta), before
    i = np.arange(1, symbols)
    for d in range(1, longest):
        total = n + d
        f = (
            np.log(n + i).sum()
            + np.log((d + i) / (total + i)).sum()
            - (symbols - 1) / 2 * np.log(d / n)
            - gammaln(symbols)
        )
        first = np.sqrt((1 + 1 / n) / n * np.log(2 * np.sqrt(n + 1) / delta))
        tail = 2 * total * np.sqrt(d + 1) * np.log(total) ** 2 / (np.log(2) * delta)
        width = np.sqrt(2) / 2 * (first + np.sqrt((1 + 1 / d) / d * np.log(tail)))
        square = np.sum(np.maximum(gap - width, 0) ** 2)  # a gap below the width says nothing
        if square == 0:
            continue
        cost = f - np.log(eta(total, n))
        slack = 1 - 2 * cost / (n * square)
        if slack > 0 and d > 2 / square * cost / slack:
            return d
    return math.inf
