"""The multinomial detector against the definition of its evidence, its certificate and the theorem on its delay."""

from functools import cache, partial
from itertools import product
from math import log
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from engram.agents.planners import change_points as rbocpd
from tests.oracles import rbocpd as mirror

UPDATES = {"exact": (rbocpd.init, rbocpd.update), "grid": (rbocpd.init_grid, rbocpd.update_grid)}
MIRRORS = {"exact": mirror.Exact, "grid": mirror.Grid}


def change_point(det, eta):
    """The most likely change: samples before it since the restart. Needs at least two samples."""
    total = jnp.sum(det.counts)
    if isinstance(det, rbocpd.Grid):
        j, candidate = total - det.age, det.age > 0
    else:
        j = jnp.arange(det.excess.shape[0], dtype=total.dtype)
        candidate = (j >= 1) & (j < total)
    weight = jnp.where(candidate, det.excess + eta.log(total, j, det.counts.shape[0]), -jnp.inf)
    return j[jnp.argmax(weight)].astype(jnp.int32)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def watch(streams, symbols, cap, forecasters, kind, delta):
    """Alarm, excess and change point `[streams, n]` after every sample, without restarts."""
    eta, (init, update) = rbocpd.make_eta(kind, delta), UPDATES[forecasters]

    def one(det, x):
        det, verdict = update(det, x, eta)
        return det, (verdict.alarm, verdict.excess, change_point(det, eta))

    return jax.vmap(lambda xs: jax.lax.scan(one, init(symbols, cap), xs)[1])(streams)


def draw(rng, theta, shape):
    return np.searchsorted(np.cumsum(theta)[:-1], rng.uniform(size=shape), side="right").astype(np.int32)


def first_alarms(alarms):
    """Index of each stream's first alarm; its length where there is none."""
    return np.where(alarms.any(1), alarms.argmax(1), alarms.shape[1])


def segment_evidence(x, symbols):
    """-L_{i:j} as closed form for all i <= j of one stream, `[n + 1, n + 1]`, rows by start."""
    counts = np.r_[np.zeros((1, symbols)), np.cumsum(np.eye(symbols)[x], axis=0)]
    return mirror.closed_form(np.maximum(counts[None] - counts[:, None], 0))


@pytest.mark.parametrize("symbols", [2, 4])
def test_recursion_is_the_closed_form(symbols):
    """The excess after every sample, float64, 1e-9, for every eta; the definition itself against the closed form."""
    rng = np.random.default_rng(symbols)
    xs = np.r_[draw(rng, np.full(symbols, 1 / symbols), 60), draw(rng, np.eye(symbols)[1] * 0.96 + 0.04 / symbols, 60)]
    evidence = segment_evidence(xs, symbols)
    for i, j in ((0, 120), (17, 90), (119, 120), (30, 30)):
        assert abs(evidence[i, j] - mirror.log_evidence(xs[i:j], symbols)) < 1e-9
    for kind in rbocpd.ETAS:
        with jax.enable_x64(True):
            alarm, excess, point = (np.asarray(v[0]) for v in watch(xs[None], symbols, 120, "exact", kind, 0.05))
        for n in range(2, 121):
            j = np.arange(1, n)
            weights = evidence[0, j] + evidence[j, n] + mirror.log_eta(kind, 0.05, n, j, symbols) - evidence[0, n]
            assert abs(excess[n - 1] - weights.max()) < 1e-9
            assert alarm[n - 1] == (weights.max() > 0)
            assert weights[point[n - 1] - 1] > weights.max() - 1e-9
        assert alarm.any() or kind == "certified"
        assert not alarm[0]


def test_grid_is_the_closed_form_at_its_ages():
    """The best candidate of the grid is one of the exact candidates with its exact weight; no gap above 1.25^3."""
    rng = np.random.default_rng(0)
    xs = draw(rng, [0.5, 0.3, 0.2], 400)
    evidence, det = segment_evidence(xs, 3), mirror.Grid(3, 400, "squared", 0.05)
    with jax.enable_x64(True):
        excess = np.asarray(watch(xs[None], 3, 400, "grid", "squared", 0.05)[1])
    for n in range(1, 401):
        det.update(xs[n - 1])
        if n == 1:
            continue
        j = det.candidates()
        weights = evidence[0, j] + evidence[j, n] - evidence[0, n]
        np.testing.assert_allclose(det.weights(), weights, atol=1e-9)
        assert abs(excess[0, n - 1] - (weights.max() - 2 * np.log(n))) < 1e-9
        held = np.sort(n - j)
        assert held[0] == 1
        assert (held[1:] <= np.maximum(held[:-1] + 2, 1.25**3 * held[:-1])).all()
        assert held[-1] >= (n - 1) / 1.25**3 - 2  # nothing is lost at the old end
    assert len(det.start) == rbocpd.init_grid(3, 400).age.size == 23  # distinct floor(1.25^i) up to 400


def test_exchangeable_and_normalised():
    """The evidence depends on counts alone and sums to 1 over all strings of a length."""
    for symbols, n in ((2, 8), (3, 5)):
        strings = np.array(list(product(range(symbols), repeat=n)))
        values = np.array([mirror.log_evidence(s, symbols) for s in strings])
        assert abs(np.exp(values).sum() - 1) < 1e-12
        counts = np.eye(symbols)[strings].sum(1)
        np.testing.assert_allclose(values, mirror.closed_form(counts), atol=1e-12)
        # The detector's excess is a difference of evidences, so it sees no order within the parts either.
        with jax.enable_x64(True):
            excess = np.asarray(watch(strings[:64].astype(np.int32), symbols, n, "exact", "squared", 0.05)[1])
        for s, e in zip(strings[:64], excess[:, -1], strict=True):
            parts = [
                mirror.closed_form(np.eye(symbols)[s[a:b]].sum(0)) for j in range(1, n) for a, b in ((0, j), (j, n))
            ]
            whole = mirror.closed_form(np.eye(symbols)[s].sum(0))
            assert abs(e - (np.add(parts[::2], parts[1::2]).max() - whole - 2 * log(n))) < 1e-9


STREAMS, LENGTH = 200, 1000
THETAS = {"fair": [0.5, 0.5], "skewed": [0.9, 0.1], "sure": [1.0, 0.0], "four": [0.7, 0.1, 0.1, 0.1]}


@cache
def stationary(name, kind):
    rng = np.random.default_rng(len(name))
    theta = THETAS[name]
    alarms = watch(draw(rng, theta, (STREAMS, LENGTH)), len(theta), LENGTH, "exact", kind, 0.05)[0]
    return int(np.asarray(alarms).any(1).sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", THETAS)
def test_certified_eta_keeps_its_word(name):
    """Null: a false alarm within 1000 samples has probability <= 0.05. 200 streams; rejected below 0.001."""
    assert binom.sf(stationary(name, "certified") - 1, STREAMS, 0.05) > 1e-3


@pytest.mark.slow
def test_the_printed_eta_raises_false_alarms():
    """1 / N: in more than 0.3 of fair streams of 1000 samples (null: <= 0.3; rejected at 0.001); 1 / N^2: in few."""
    assert binom.sf(stationary("fair", "paper") - 1, STREAMS, 0.3) < 1e-3
    assert binom.sf(stationary("fair", "squared") - 1, STREAMS, 0.05) > 1e-3


def changing(rng, theta, after, before, n, streams):
    return np.concatenate([draw(rng, theta, (streams, before)), draw(rng, after, (streams, n))], axis=1)


@pytest.mark.slow
def test_delay():
    """Median delay of 100 streams after 200 samples: within [0.5, 2] of -log eta / KL, falling with the gap; the change
    is placed within 3 samples in the median."""
    rng, delays = np.random.default_rng(0), []
    for theta in ([0.7, 0.3], [0.8, 0.2], [0.9, 0.1], [0.55, 0.25, 0.1, 0.1]):
        after = np.array(theta)[::-1]
        xs = changing(rng, theta, after, 200, 400, 100)
        alarm, _, point = map(np.asarray, watch(xs, len(theta), 600, "exact", "squared", 0.05))
        first = first_alarms(alarm)
        found = first >= 200
        assert found.mean() > 0.9
        delay = np.median(first[found] - 199)
        delays.append(delay)
        divergence = np.sum(after * np.log(after / theta))
        expected = 2 * np.log(200 + delay) / divergence
        assert 0.5 <= delay / expected <= 2
        assert np.median(np.abs(point[np.flatnonzero(found), first[found]] - 200)) <= 3
    assert delays[0] > delays[1] > delays[2]


def test_delay_is_within_the_theorem():
    """Theorem 4.8 with delta = 0.05 on 40 streams: all delays within the bound (null: each fails with <= 0.05)."""
    theta, after, before = [0.9, 0.1], [0.1, 0.9], 1000
    bound = mirror.delay_bound(theta, after, before, lambda total, j: total**-2.0, 0.05)
    assert bound < 200
    xs = changing(np.random.default_rng(3), theta, after, before, 200, 40)
    first = first_alarms(np.asarray(watch(xs, 2, 1200, "exact", "squared", 0.05)[0]))
    late = int((first - 999 > bound).sum())
    assert binom.sf(late - 1, 40, 0.05) > 1e-3


def test_names_of_symbols_do_not_matter():
    rng = np.random.default_rng(5)
    xs = changing(rng, [0.6, 0.3, 0.1], [0.1, 0.3, 0.6], 100, 100, 20)
    for forecasters in rbocpd.FORECASTERS:
        with jax.enable_x64(True):
            alarms = [
                np.asarray(watch(x, 3, 200, forecasters, "squared", 0.05)[0])
                for x in (xs, np.array([2, 0, 1], np.int32)[xs])
            ]
        assert alarms[0].any()
        np.testing.assert_array_equal(alarms[0], alarms[1])


@pytest.mark.parametrize("forecasters", rbocpd.FORECASTERS)
def test_float32_alarms_when_float64_does(forecasters):
    """First alarms of 30 streams, against the mirror, on forecasters that is too short for half of them."""
    rng = np.random.default_rng(7)
    xs = changing(rng, [0.7, 0.2, 0.1], [0.2, 0.2, 0.6], 200, 200, 30)
    first = first_alarms(np.asarray(watch(xs, 3, 256, forecasters, "squared", 0.05)[0]))
    for x, found in zip(xs, first, strict=True):
        det = MIRRORS[forecasters](3, 256, "squared", 0.05)
        assert found == next((i for i, symbol in enumerate(x) if det.update(symbol)), len(x))


def test_overflow():
    """Ten samples fill a forecasters of ten; the next one sets the flag, and older candidates still count."""
    eta = rbocpd.make_eta("squared", 0.05)

    def one(det, x):
        det, verdict = rbocpd.update(det, x, eta)
        return det, (det.overflow, verdict.alarm)

    xs = jnp.array([0] * 9 + [1] * 30)
    overflow, alarm = jax.lax.scan(one, rbocpd.init(2, 10), xs)[1]
    assert not overflow[:10].any()
    assert overflow[10:].all()
    assert alarm[10:].any()


def test_requests_that_cannot_be_met():
    with pytest.raises(ValueError, match="cap must be at least 2"):
        rbocpd.init(3, 1)
    with pytest.raises(ValueError, match="cap must be at least 2"):
        rbocpd.init_grid(3, 1)
    with pytest.raises(ValueError, match="at least 2 symbols"):
        rbocpd.init(1, 10)
    with pytest.raises(ValueError, match="eta must be one of paper, squared, certified, got 'half'"):
        rbocpd.make_eta(cast(Any, "half"), 0.1)
    with pytest.raises(ValueError, match=r"eta_delta must lie in \(0, 1\), got 0"):
        rbocpd.make_eta("certified", 0.0)
