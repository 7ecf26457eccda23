"""Bandit oracles against published indices, brute force over all histories, and each other."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from engram.experiments import bandit_oracles
from engram.experiments.bandit_oracles import (
    Prior,
    bayes_optimal_value,
    gaussian_gittins_table,
    gittins_index,
    gittins_table,
    simulate,
    simulate_gaussian,
)


@pytest.mark.parametrize(
    ("wins", "losses", "discount", "published"),
    [
        # Gittins, Glazebrook and Weber (2011), table 8.1 and the ones after it, to four digits.
        (0, 0, 0.9, 0.7029),
        (1, 1, 0.9, 0.6346),
        (2, 2, 0.9, 0.6010),
        (0, 1, 0.9, 0.5001),
        (9, 1, 0.9, 0.8695),
        (0, 0, 0.95, 0.7614),
        (0, 0, 0.99, 0.8699),
    ],
)
def test_classic_indices_are_the_published_ones(wins, losses, discount, published):
    pulls = int(np.log(1e-4) / np.log(discount))
    assert gittins_index(wins, losses, pulls, discount) == pytest.approx(published, abs=6e-5)


def test_the_last_pull_is_worth_its_mean_and_two_pulls_by_hand():
    assert gittins_index(2, 1, 1) == pytest.approx(3 / 5)
    # Two pulls of Beta(1, 1): stop after a loss. (1/2 + 1/2 * 2/3) / (1 + 1/2) = 5/9.
    assert gittins_index(0, 0, 2) == pytest.approx(5 / 9)


def test_the_table_is_the_index_of_every_arm():
    table = gittins_table(30)
    for remaining, wins, losses in [(30, 0, 0), (15, 3, 2), (10, 0, 5), (1, 2, 2), (2, 20, 8), (20, 9, 1)]:
        assert -1e-6 < table[remaining, wins, losses] - gittins_index(wins, losses, remaining) < 2e-4


@cache
def value(pulls, first, second, index):
    """Expected reward of two arms with these (wins, losses), by recursion over all histories; `index` None is optimal,
    else the arm with the larger index is pulled, the first of equals."""
    if not pulls:
        return 0.0
    values = []
    for arm, (wins, losses) in enumerate((first, second)):
        p = (1 + wins) / (2 + wins + losses)
        after = [((wins + 1, losses), 1.0, p), ((wins, losses + 1), 0.0, 1 - p)]
        pair = lambda new, arm=arm: (new, second) if arm == 0 else (first, new)  # noqa: E731
        values.append(sum(q * (r + value(pulls - 1, *pair(new), index)) for new, r, q in after))
    if index is None:
        return max(values)
    return values[int(index(pulls, *second) > index(pulls, *first))]


def test_bayes_optimal_values_by_brute_force():
    assert bayes_optimal_value(1) == 0.5
    assert bayes_optimal_value(2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)
    for pulls in (3, 9):
        assert bayes_optimal_value(pulls) == pytest.approx(value(pulls, (0, 0), (0, 0), None))


@cache
def gittins_value(pulls):
    table = gittins_table(pulls)
    return value(pulls, (0, 0), (0, 0), cache(lambda remaining, wins, losses: float(table[remaining, wins, losses])))


def test_the_index_policy_is_almost_bayes_optimal():
    best = bayes_optimal_value(16)
    assert 0.998 * best < gittins_value(16) <= best + 1e-9


def test_simulated_index_policy_earns_its_exact_value():
    means = jax.random.uniform(jax.random.key(0), (20_000, 2))
    total = np.asarray(simulate("gittins", jax.random.key(1), 16, means).reward).sum(axis=0)
    assert abs(total.mean() - gittins_value(16)) < 3.5 * stats.sem(total)


def test_policies_know_how_many_pulls_remain(monkeypatch):
    """The good arm is pulled where three remain, of five: third."""
    third = lambda key, seen, remaining: jnp.full(seen.pulls.shape[0], remaining == 3, jnp.int32)  # noqa: E731
    monkeypatch.setitem(bandit_oracles.POLICIES, "third", third)
    play = simulate("third", jax.random.key(0), 5, jnp.array([[0.0, 1.0]]))
    assert np.asarray(play.reward)[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_ucb1_as_in_numpy():
    """Where arms always or never pay, the pulls follow from the formula alone."""
    means, pulls = np.array([0.0, 1.0, 0.0]), 40
    wins, n, expected = np.zeros(3), np.zeros(3), []
    for t in range(pulls):
        arm = t if t < 3 else int(np.argmax(wins / n + np.sqrt(2 * np.log(t) / n)))
        n[arm] += 1
        wins[arm] += means[arm]
        expected.append(means[arm])
    play = simulate("ucb1", jax.random.key(0), pulls, jnp.asarray(means)[None])
    assert np.asarray(play.reward)[:, 0].tolist() == expected
    assert np.asarray(play.regret)[:, 0].tolist() == [1 - r for r in expected]


@pytest.mark.slow
def test_ten_arms_and_a_hundred_pulls_are_worth_what_duan_et_al_report():
    """Random 50, Thompson sampling 76.7. The Gittins policy they report earns 82.8; ours must not earn less."""
    means = jax.random.uniform(jax.random.key(0), (600, 10))
    total = {
        p: np.asarray(simulate(p, jax.random.key(1), 100, means).reward).sum(axis=0) for p in ("random", "thompson")
    }
    for policy, reported in (("random", 50.0), ("thompson", 76.7)):
        assert abs(total[policy].mean() - reported) < 3.5 * stats.sem(total[policy])
    total = np.asarray(simulate("gittins", jax.random.key(1), 100, means).reward).sum(axis=0)
    assert total.mean() > 82.8 - 2 * stats.sem(total)


# ------------------------------------------------------------------------------------------------------- Gaussian arms

STANDARD = Prior(mean=0.0, deviation=1.0, noise=1.0)


def gain_of_two(mean, prior_pulls):
    """What two pulls of a Gaussian arm are worth beyond nothing, in closed form: retire after the first if it pays."""
    spread = np.sqrt(1 / prior_pulls - 1 / (prior_pulls + 1))
    return mean + spread * stats.norm.pdf(mean / spread) + mean * stats.norm.cdf(mean / spread)


def gain_of_three(mean, prior_pulls):
    spread = np.sqrt(1 / prior_pulls - 1 / (prior_pulls + 1))

    def later(moved):
        return max(gain_of_two(moved, prior_pulls + 1), 0.0) * stats.norm.pdf(moved, mean, spread)

    turn: Any = optimize.brentq(gain_of_two, -5, 5, args=(prior_pulls + 1,))
    return mean + integrate.quad(later, turn, mean + 9 * spread)[0]


@pytest.mark.parametrize("prior_pulls", [1.0, 0.25])
def test_indices_of_gaussian_arms(prior_pulls):
    table = gaussian_gittins_table(12, prior_pulls)
    np.testing.assert_array_equal(table[1], 0.0)  # the last pull is worth its mean
    for n in (0, 4, 9):
        for remaining, gain in ((2, gain_of_two), (3, gain_of_three)):
            zero: Any = optimize.brentq(gain, -9, 9, args=(prior_pulls + n,))
            assert table[remaining, n] == pytest.approx(-zero, abs=1e-3), (n, remaining)
    # A prior worth one pull and one pull more are a prior worth two.
    np.testing.assert_allclose(
        table[1:9, 1:4], gaussian_gittins_table(11, prior_pulls + 1)[1:9, :3], atol=2e-3 * prior_pulls**-0.5
    )


def test_thompson_sampling_of_gaussian_arms_chooses_by_its_posterior():
    """Two pulls of two arms: the first again with the chance that a draw of N(r / 2, 1 / 2) exceeds one of N(0, 1)."""
    means = np.broadcast_to([1.5, -0.5], (20_000, 2))
    regret = np.asarray(simulate_gaussian("thompson", jax.random.key(0), 2, jnp.asarray(means), STANDARD).regret)
    good = regret == 0
    for first, mean in ((good[0], 1.5), (~good[0], -0.5)):
        again = (good[1] == good[0])[first]
        assert abs(again.mean() - stats.norm.cdf(mean / 2 / np.sqrt(1 / 2 + 1 + 1 / 4))) < 4 * 0.5 / np.sqrt(again.size)
    assert abs(good[0].mean() - 0.5) < 4 * 0.5 / np.sqrt(len(means))


def test_the_gaussian_index_policy_earns_more_than_thompson_sampling_in_its_own_units():
    """In a prior of any mean and scale, the same rewards but for these."""
    means = jax.random.normal(jax.random.key(0), (2000, 5))
    total = {
        p: np.asarray(simulate_gaussian(p, jax.random.key(1), 40, means, STANDARD).reward).sum(axis=0)
        for p in ("random", "thompson", "gittins")
    }
    assert abs(total["random"].mean()) < 4 * stats.sem(total["random"])
    gained = total["gittins"] - total["thompson"]
    assert gained.mean() > 3 * stats.sem(gained)
    scaled = simulate_gaussian("gittins", jax.random.key(1), 40, 7.0 + 3.0 * means, Prior(7.0, 3.0, 3.0)).reward
    np.testing.assert_allclose(np.asarray(scaled).sum(axis=0).mean() / 3 - 280 / 3, total["gittins"].mean(), rtol=1e-2)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: gaussian_gittins_table(bandit_oracles.MAX_PULLS + 1),
        lambda: gaussian_gittins_table(3, 0.0),
        lambda: simulate_gaussian("ucb1", jax.random.key(0), 3, jnp.zeros((1, 2)), STANDARD),
        lambda: gittins_table(bandit_oracles.MAX_PULLS + 1),
        lambda: gittins_index(0, 0, 0),
        lambda: gittins_index(0, 0, 5, 1.5),
        lambda: bayes_optimal_value(41),
        lambda: simulate("thomson", jax.random.key(0), 3, jnp.zeros((1, 2))),
    ],
)
def test_impossible_requests_are_refused(bad):
    with pytest.raises(ValueError, match=r"got|unknown"):
        bad()
