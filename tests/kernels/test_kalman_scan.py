"""The filters against facts of filtering: Bayes' rule over all steps at once, limits, the steady state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.kalman_scan import kalman_scan
from tests.kernels.cases import CASES

BOTH = pytest.mark.parametrize("case", [CASES["kalman"], CASES["kalman, all at once"]], ids=["in turn", "all at once"])
T = 40
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def run(case, y, R, a, Q):
    """Means and variances `[T]` of one filter, float64."""
    with jax.enable_x64(True):
        weights = jnp.array([a], float), jnp.array([Q], float)
        sequence = jnp.asarray(y)[:, None, None], jnp.broadcast_to(jnp.asarray(R, float), (T,))[:, None, None]
        with case.where():
            both, _ = jax.jit(lambda w, s: case.scan(w, s, None, None, "xla"))(weights, sequence)
        return np.asarray(both[:, 0]).T


@BOTH
def test_a_filter_is_bayes_rule(case):
    """The hidden numbers of all steps are jointly normal: condition the last one on all that was seen so far."""
    rng = np.random.default_rng(0)
    y, R, a, Q = rng.normal(size=T), rng.uniform(0.1, 2, T), 0.9, 0.3
    mean, variance = run(case, y, R, a, Q)
    prior = [a**2 + Q]  # variances of the hidden numbers, from one of variance 1 before the first step
    for _ in range(T - 1):
        prior.append(a**2 * prior[-1] + Q)
    i, j = np.ogrid[:T, :T]
    covariance = np.array(prior)[np.minimum(i, j)] * a ** np.abs(i - j)
    for t in (0, 1, T - 1):
        now, seen = covariance[t, : t + 1], covariance[: t + 1, : t + 1] + np.diag(R[: t + 1])
        weights = np.linalg.solve(seen, now)
        np.testing.assert_allclose(mean[t], weights @ y[: t + 1], rtol=1e-10)
        np.testing.assert_allclose(variance[t], covariance[t, t] - weights @ now, rtol=1e-10)


@BOTH
def test_without_noise_the_mean_is_what_is_seen(case):
    y = np.random.default_rng(0).normal(size=T)
    mean, variance = run(case, y, 1e-12, 0.9, 0.3)
    np.testing.assert_allclose(mean, y, atol=1e-10)
    assert variance.max() < 1e-11


@BOTH
def test_the_variance_becomes_the_root_of_riccatis_equation(case):
    a, Q, R = 0.9, 0.3, 2.0
    b = Q + R - a**2 * R  # a^2 P^2 + b P = Q R
    root = (np.sqrt(b**2 + 4 * a**2 * Q * R) - b) / (2 * a**2)
    np.testing.assert_allclose(run(case, np.zeros(T), R, a, Q)[1, -1], root, rtol=1e-9)


def test_nothing_known_is_the_fresh_state():
    y, R, weights = jnp.ones((3, 2, 1)), jnp.ones((3, 2, 1)), jnp.full(1, 0.5)
    reset = jnp.zeros((3, 2), bool).at[2].set(True)
    both, _ = kalman_scan(y, R, weights, weights, reset)
    np.testing.assert_array_equal(both[2], both[0])
