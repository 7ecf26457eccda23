"""Advantages and returns against their definitions: sums written out step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.common.returns import generalised_advantages, lambda_returns


def advantages_by_definition(r, v, final_v, last_v, terminated, truncated, discount, lam):
    """Sum over k of (discount * lambda)^k delta[t + k] to the end of the episode (Schulman et al. 2016, eq. 16)."""
    T, B = r.shape
    out = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            weight = 1.0
            for s in range(t, T):
                following = v[s + 1, b] if s + 1 < T else last_v[b]
                following = 0.0 if terminated[s, b] else final_v[s, b] if truncated[s, b] else following
                out[t, b] += weight * (r[s, b] + discount * following - v[s, b])
                weight *= discount * lam
                if terminated[s, b] or truncated[s, b]:
                    break
    return out


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    T, B = 12, 5
    r, v, final_v = rng.normal(size=(3, T, B))
    last_v = rng.normal(size=B)
    terminated, truncated = rng.random((2, T, B)) < 0.2  # both at once happens too: terminated wins
    arguments = (r, v, final_v, last_v, terminated, truncated)
    arrays = [jnp.asarray(x) for x in arguments]
    for lam in (0.0, 0.9, 1.0):
        ours = jax.jit(generalised_advantages)(*arrays, discount=0.97, gae_lambda=lam)
        np.testing.assert_allclose(ours, advantages_by_definition(*arguments, 0.97, lam), atol=1e-5)


def test_truncation_bootstraps_from_the_final_observation_and_not_from_the_next_episode():
    r, v, final_v = jnp.zeros((2, 1)), jnp.array([[0.0], [100.0]]), jnp.array([[7.0], [0.0]])
    first, never = jnp.array([[True], [False]]), jnp.zeros((2, 1), bool)

    def advantage(terminated, truncated):
        last_v = jnp.zeros(1)
        return generalised_advantages(r, v, final_v, last_v, terminated, truncated, discount=0.5, gae_lambda=1.0)[0]

    np.testing.assert_allclose(advantage(never, first), 3.5)
    np.testing.assert_allclose(advantage(first, never), 0.0)


def lambda_returns_by_definition(r, v, continuation, discount, lam):
    """The mixture of n-step returns with weights (1 - lambda) lambda^(n - 1), the rest on the longest one (Sutton and
    Barto 2018, eq. 12.3)."""
    T, B = r.shape
    out = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            total, weight = 0.0, 1.0
            for n in range(1, T - t + 1):
                total += weight * r[t + n - 1, b]
                weight *= discount * continuation[t + n - 1, b]
                share = lam ** (n - 1) * (1.0 if t + n == T else 1.0 - lam)
                out[t, b] += share * (total + weight * v[t + n, b])
    return out


def test_lambda_returns_equal_the_definition():
    rng = np.random.default_rng(1)
    T, B = 10, 4
    r, v = rng.normal(size=(T, B)), rng.normal(size=(T + 1, B))
    continuation = (rng.random((T, B)) < 0.8).astype(float)
    arrays = [jnp.asarray(x) for x in (r, v, continuation)]
    for lam in (0.0, 0.95, 1.0):
        ours = jax.jit(lambda_returns)(*arrays, discount=0.985, lambda_=lam)
        np.testing.assert_allclose(ours, lambda_returns_by_definition(r, v, continuation, 0.985, lam), atol=1e-5)


def test_lambda_returns_of_three_steps_by_hand():
    r, v = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[10.0], [20.0], [30.0], [40.0]])
    on = jnp.ones((3, 1))
    # 4 + 0.5 * 40;  2 + 0.5 (15 + 12);  1 + 0.5 (10 + 7.75).
    np.testing.assert_allclose(lambda_returns(r, v, on, 0.5, 0.5)[:, 0], [9.875, 15.5, 24.0])
    # Biased: the value of the state itself in place of the next. 4 + 0.5 (15 + 20);  2 + 0.5 (10 + 10.75);  ...
    np.testing.assert_allclose(lambda_returns(r, v, on, 0.5, 0.5, "same")[:, 0], [6.59375, 12.375, 21.5])
    # The second step ends the episode: nothing that follows counts.
    np.testing.assert_allclose(lambda_returns(r, v, on.at[1].set(0.0), 0.5, 0.5)[:, 0], [6.5, 2.0, 24.0])
