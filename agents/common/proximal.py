"""Proximal policy optimisation (Schulman et al. 2017): its objective and its minibatches, for whoever learns by it."""

from functools import partial

import jax
import jax.numpy as jnp


def clipped_surrogate(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The clipped objective (eq. 7) of each action, which is to be maximised.

    Args:
        log_prob: `[...]`, of the actions under the policy that learns.
        old_log_prob: `[...]`, under the policy that drew them.
        advantage: `[...]`.
        clip: range of the probability ratio around 1.

    Returns:
        objective, probability ratio, and KL(old || new) by its low-variance estimator (r - 1) - log r, each `[...]`.
    """
    log_ratio = log_prob - old_log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return jnp.minimum(ratio * advantage, clipped * advantage), ratio, ratio - 1.0 - log_ratio


def deal_minibatches(key: jax.Array, rows: int, epochs: int, minibatches: int) -> jax.Array:
    """Which rows each minibatch holds, `[epochs * minibatches, rows / minibatches]`: every epoch deals all of them."""
    shuffles = jax.vmap(partial(jax.random.permutation, x=rows))(jax.random.split(key, epochs))
    return shuffles.reshape(epochs * minibatches, -1)
