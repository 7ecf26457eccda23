"""What a bandit's trial is worth: index policies by dynamic programming, Bayes-optimal values, and simple baselines.

Bernoulli arms pay 1 with unknown probabilities and have the prior Beta(1, 1), so an arm is known by its counts of wins
and losses. Gaussian arms pay an unknown mean with a normal prior and normal noise of known deviations, so an arm is
known by its posterior mean and its count. Two Gittins indices are meant by the name, and both are a supremum over
stopping times tau >= 1:

    sup_tau E[sum_{t < tau} discount^t r_t] / E[sum_{t < tau} discount^t]

- the classic one, tau unbounded and discount < 1: the index policy is then exactly optimal (Gittins 1979);
- the finite-horizon one, undiscounted, tau at most the pulls that remain in the trial: what is called the Gittins
  policy for the total reward of a trial (Kaufmann 2018; Lattimore 2016). It is optimal where all arms but one are
  known, and close to the Bayes-optimal policy otherwise.

The indices are float64 on the host; the policies play thousands of bandits at once in one compiled scan.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest

MAX_PULLS = 400
"""Longest trial for which the table of indices is made: its size grows with the cube of the pulls."""


# ----------------------------------------------------------------------------------------------------------- indices


def gittins_index(wins: float, losses: float, pulls: int, discount: float = 1.0) -> float:
    """The index of an arm with a Beta(1 + wins, 1 + losses) posterior, by bisection on the sure reward of retiring.

    Args:
        pulls: bound of the stopping time. For the classic index, one with discount^pulls negligible.
        discount: of each further pull.

    Raises:
        BadRequest: no pull is left, or the discount is not in (0, 1].
    """
    if pulls < 1 or not 0 < discount <= 1:
        raise BadRequest(f"an index needs at least 1 pull and a discount in (0, 1], got {pulls} and {discount}")
    a, b = 1.0 + wins, 1.0 + losses

    def gain_of_pulling(sure: float) -> float:
        # Backwards over how many more pulls were made; entry w after w wins in them.
        pull = later = np.zeros(pulls + 1)
        for made in range(pulls - 1, -1, -1):
            w = np.arange(made + 1)
            p = (a + w) / (a + b + made)
            pull = p - sure + discount * (p * later[1 : made + 2] + (1 - p) * later[: made + 1])
            later = np.maximum(pull, 0.0)
        return float(pull[0])  # before retiring is allowed: the first pull is made in any case

    low, high = a / (a + b), 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if gain_of_pulling(middle) > 0 else (low, middle)
    return (low + high) / 2


@cache
def gittins_table(pulls: int) -> np.ndarray:
    """Finite-horizon indices of all arms that a trial of `pulls` pulls can meet.

    The gain of pulling is convex and piecewise linear in the sure reward of retiring. It is computed on a grid, and its
    zero found between two grid points: never too low, and too high by some 1e-4 in trials of 100 pulls (6e-4 at most of
    what was compared with `gittins_index`). Longer trials have a coarser grid: with 400 pulls it is up to 7e-3 for arms
    that were pulled hundreds of times.

    Returns:
        `[pulls + 1, pulls, pulls]` float32 by remaining pulls, wins, losses; 0 where that cannot occur. It is kept: the
        caller leaves it as it is.

    Raises:
        BadRequest: more than MAX_PULLS pulls, or none.
    """
    if not 1 <= pulls <= MAX_PULLS:
        raise BadRequest(f"indices are computed for trials of 1 to {MAX_PULLS} pulls, got {pulls}")
    table = np.zeros((pulls + 1, pulls, pulls), np.float32)
    levels = max(64, min(256, 25_600 // pulls))
    # Denser towards 0 and 1, where arms that always or never paid lie close to each other.
    sure = np.sin(np.linspace(0.0, np.pi / 2, levels + 1))[:, None, None] ** 2
    width = np.diff(sure, axis=0)
    later = np.zeros((levels + 1, pulls + 1, pulls + 1))
    for remaining in range(1, pulls + 1):
        n = pulls - remaining + 1  # counts below n can be met with so many pulls left
        wins, losses = np.arange(n)[:, None], np.arange(n)[None, :]
        p = (1.0 + wins) / (2.0 + wins + losses)
        pull = p - sure + p * later[:, 1 : n + 1, :n] + (1 - p) * later[:, :n, 1 : n + 1]
        # A cell of the grid lies below the index with all of its width, a part of it, or none.
        above, below = pull[:-1], pull[1:]
        share = np.clip(above / np.maximum(above - below, 1e-300), 0.0, 1.0)
        table[remaining, :n, :n] = np.sum(share * width, axis=0)
        later = np.maximum(pull, 0.0)
    return table


def bayes_optimal_value(pulls: int) -> float:
    """The largest expected total reward of a trial with two arms and `pulls` pulls, over all policies.

    Raises:
        BadRequest: more than 40 pulls, or none: the states are four counts.
    """
    if not 1 <= pulls <= 40:
        raise BadRequest(f"the exact value is computed for 1 to 40 pulls, got {pulls}")
    value = np.zeros((pulls + 1,) * 4)  # wins and losses of the first arm, then of the second
    for remaining in range(1, pulls + 1):
        n = pulls - remaining + 1
        counts = np.arange(n)
        p = (1.0 + counts[:, None]) / (2.0 + counts[:, None] + counts)
        now, more = slice(0, n), slice(1, n + 1)
        first, second = p[:, :, None, None], p[None, None]
        value = np.maximum(
            first * (1 + value[more, now, now, now]) + (1 - first) * value[now, more, now, now],
            second * (1 + value[now, now, more, now]) + (1 - second) * value[now, now, now, more],
        )
    return float(value[0, 0, 0, 0])


# ---------------------------------------------------------------------------------------------------------- policies


class Seen(NamedTuple):
    """A policy's statistics of a batch of bandits, `[B, arms]` float32."""

    total: jax.Array
    """Sum of the rewards: of a Bernoulli arm, its wins."""
    pulls: jax.Array
    """Number of the pulls."""


Policy = Callable[[jax.Array, Seen, jax.Array], jax.Array]
"""key, what was seen, pulls that remain (this one included, int32) -> arms `[B]` int32."""


def random_policy(key: jax.Array, seen: Seen, remaining: jax.Array) -> jax.Array:
    """Any arm, with equal chances."""
    del remaining
    return jax.random.randint(key, seen.pulls.shape[:1], 0, seen.pulls.shape[1])


def thompson_sampling(key: jax.Array, seen: Seen, remaining: jax.Array) -> jax.Array:
    """The best arm of a draw from the posterior (Thompson 1933)."""
    del remaining
    return jnp.argmax(jax.random.beta(key, 1.0 + seen.total, 1.0 + seen.pulls - seen.total), axis=-1).astype(jnp.int32)


def ucb1(key: jax.Array, seen: Seen, remaining: jax.Array) -> jax.Array:
    """Each arm once, then the largest mean + sqrt(2 log t / n) (Auer et al. 2002)."""
    del key, remaining
    n = seen.pulls
    t = jnp.sum(n, axis=-1, keepdims=True)
    bound = seen.total / jnp.maximum(n, 1.0) + jnp.sqrt(2 * jnp.log(jnp.maximum(t, 1.0)) / jnp.maximum(n, 1.0))
    return jnp.argmax(jnp.where(n == 0, jnp.inf, bound), axis=-1).astype(jnp.int32)


def gittins_policy(table: jax.Array, key: jax.Array, seen: Seen, remaining: jax.Array) -> jax.Array:
    """The arm with the largest index of a `gittins_table`; the first of equals."""
    del key
    at = (remaining, seen.total.astype(jnp.int32), (seen.pulls - seen.total).astype(jnp.int32))
    return jnp.argmax(table[at], axis=-1).astype(jnp.int32)


class Play(NamedTuple):
    """Rows `[pulls, B]` of a simulation."""

    reward: jax.Array
    regret: jax.Array
    """Mean of the best arm less that of the pulled one."""


@partial(jax.jit, static_argnums=(0, 2))
def _play(policy: Any, key: jax.Array, pulls: int, means: jax.Array, noise: Any = None) -> Play:
    """`noise`: deviation of Gaussian rewards; None for Bernoulli ones."""
    lanes = jnp.arange(means.shape[0])

    def pull(seen: Seen, step: tuple[jax.Array, jax.Array]):
        t, key = step
        policy_key, reward_key = jax.random.split(key)
        arm = policy(policy_key, seen, pulls - t)
        mean = means[lanes, arm]
        if noise is None:
            reward = (jax.random.uniform(reward_key, mean.shape) < mean).astype(jnp.float32)
        else:
            reward = mean + noise * jax.random.normal(reward_key, mean.shape)
        seen = Seen(seen.total.at[lanes, arm].add(reward), seen.pulls.at[lanes, arm].add(1.0))
        return seen, Play(reward, jnp.max(means, axis=-1) - mean)

    nothing = Seen(jnp.zeros(means.shape), jnp.zeros(means.shape))
    return jax.lax.scan(pull, nothing, (jnp.arange(pulls), jax.random.split(key, pulls)))[1]


POLICIES: dict[str, Policy] = {"random": random_policy, "ucb1": ucb1, "thompson": thompson_sampling}
"""Policies of any length of trial; `gittins` is the fourth name of `simulate`."""


def simulate(policy: str, key: jax.Array, pulls: int, means: jax.Array) -> Play:
    """Plays a policy, one trial in each of the bandits `means [B, arms]`, compiled.

    Args:
        policy: random, ucb1, thompson, or gittins (the finite-horizon index, undiscounted).

    Raises:
        BadRequest: an unknown policy, or a trial too long for the table of `gittins`.
    """
    if policy == "gittins":
        table = jnp.asarray(gittins_table(pulls))
        return _play_gittins(table, key, pulls, means)
    if policy not in POLICIES:
        raise BadRequest(f"unknown bandit policy {policy!r}: known are {', '.join(POLICIES)}, gittins")
    return _play(POLICIES[policy], key, pulls, means)


@partial(jax.jit, static_argnums=2)
def _play_gittins(table: jax.Array, key: jax.Array, pulls: int, means: jax.Array) -> Play:
    return _play(partial(gittins_policy, table), key, pulls, means)


# ----------------------------------------------------------------------------------------------------- Gaussian arms


@cache
def gaussian_gittins_table(pulls: int, prior_pulls: float = 1.0) -> np.ndarray:
    """Finite-horizon, undiscounted indices of Gaussian arms, above their posterior means, in deviations of the noise.

    An arm's index is its posterior mean plus what is here: shifting all rewards shifts it (Gittins, Glazebrook and
    Weber 2011, section 7). The gain of pulling is computed on a grid of posterior means less the sure reward, and taken
    as linear between its points, which makes the normal expectation exact; the zero is interpolated.

    Args:
        prior_pulls: what the prior is worth in pulls, (deviation of noise / deviation of prior)^2.

    Returns:
        `[pulls + 1, pulls]` float32 by remaining pulls and pulls of the arm; 0 where that cannot occur. It is kept: the
        caller leaves it as it is.

    Raises:
        BadRequest: more than MAX_PULLS pulls, or none; or prior_pulls not positive.
    """
    if not 1 <= pulls <= MAX_PULLS or not 0 < prior_pulls < np.inf:
        raise BadRequest(f"indices need 1 to {MAX_PULLS} pulls and a positive prior_pulls, got {pulls}, {prior_pulls}")
    from scipy.special import ndtr  # slow to import

    table = np.zeros((pulls + 1, pulls), np.float32)
    # Dense about zero, where the gain bends, the more so the more often the arm was pulled.
    above = prior_pulls**-0.5 * np.geomspace(1e-3, 8.0, 180)
    mean = np.concatenate([-above[::-1], [0.0], above])
    later = np.zeros((pulls + 1, len(mean)))  # gain by remaining pulls, of an arm that was pulled once more
    for n in range(pulls - 1, -1, -1):
        known, most = prior_pulls + n, pulls - n
        spread = np.sqrt(1 / known - 1 / (known + 1))
        z = (mean[:, None] - mean[:-1]) / spread
        # E[(mean' - corner)+], exact for a gain that is linear between the points of the grid.
        beyond = spread * (np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + z * ndtr(z))
        bends = np.diff(np.diff(later[:most], axis=1) / np.diff(mean), axis=1, prepend=0.0)
        pull = mean + later[:most, :1] + bends @ beyond.T
        table[1 : most + 1, n] = [-np.interp(0.0, gain, mean) for gain in pull]
        later = np.zeros_like(later)
        later[1 : most + 1] = np.maximum(pull, 0.0)
    return table


class Prior(NamedTuple):
    """Prior of Gaussian arms."""

    mean: float
    deviation: float
    """Mean of the arms' means."""
    noise: float
    """Deviation of rewards."""

    @property
    def pulls(self) -> Any:
        """Number of pulls that the prior is worth."""
        return (self.noise / self.deviation) ** 2

    def posterior(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation of each arm's mean."""
        known = self.pulls + seen.pulls
        return (self.pulls * self.mean + seen.total) / known, self.noise * jax.lax.rsqrt(known)


def gaussian_thompson_sampling(prior: Prior, key: jax.Array, seen: Seen, remaining: jax.Array) -> jax.Array:
    """The best arm of a draw from the posterior."""
    del remaining
    mean, deviation = prior.posterior(seen)
    return jnp.argmax(mean + deviation * jax.random.normal(key, mean.shape), axis=-1).astype(jnp.int32)


def gaussian_gittins_policy(
    prior: Prior, table: jax.Array, key: jax.Array, seen: Seen, remaining: jax.Array
) -> jax.Array:
    """The arm with the largest index of a `gaussian_gittins_table`; the first of equals."""
    del key
    above = table[remaining, seen.pulls.astype(jnp.int32)]
    return jnp.argmax(prior.posterior(seen)[0] + prior.noise * above, axis=-1).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 2))
def _play_gaussian(
    policy: str, key: jax.Array, pulls: int, means: jax.Array, prior: Prior, table: jax.Array | None
) -> Play:
    policies: dict[str, Policy] = {"random": random_policy, "thompson": partial(gaussian_thompson_sampling, prior)}
    if table is not None:
        policies["gittins"] = partial(gaussian_gittins_policy, prior, table)
    return _play(policies[policy], key, pulls, means, prior.noise)


GAUSSIAN_POLICIES = ("random", "thompson")
"""Policies of any length of trial; `gittins` is the third name of `simulate_gaussian`."""


def simulate_gaussian(policy: str, key: jax.Array, pulls: int, means: jax.Array, prior: Prior) -> Play:
    """As `simulate`, for Gaussian arms.

    Args:
        policy: random, thompson, or gittins (the finite-horizon index, undiscounted).
        prior: what policies know; its noise is also that of the rewards.

    Raises:
        BadRequest: an unknown policy, or a trial too long for the table of `gittins`.
    """
    if policy not in (*GAUSSIAN_POLICIES, "gittins"):
        known = ", ".join(GAUSSIAN_POLICIES)
        raise BadRequest(f"unknown policy {policy!r} of Gaussian bandits: known are {known}, gittins")
    table = jnp.asarray(gaussian_gittins_table(pulls, prior.pulls)) if policy == "gittins" else None
    return _play_gaussian(policy, key, pulls, means, prior, table)
