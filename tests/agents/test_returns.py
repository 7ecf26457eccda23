"""Advantages against the definition: discounted sums written out step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from agents.returns import generalised_advantages


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
