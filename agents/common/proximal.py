"""The clipped objective and the minibatches of proximal policy optimisation (Schulman et al. 2017)."""

from functools import partial

import jax
import jax.numpy as jnp

from engram.training.types import Key


def clipped_surrogate(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The clipped objective (eq. 7) of each action, to be maximised.

    Args:
        log_prob: `[...]`, log-probabilities of the actions under the policy that learns.
        old_log_prob: `[...]`, log-probabilities of the actions under the policy that drew them.
        advantage: `[...]`, advantages of the actions.
        clip: range of the probability ratio around 1.

    Returns:
        objective, probability ratio, and KL(old || new) by its low-variance estimator (r - 1) - log r, each `[...]`.
    """
    log_ratio = log_prob - old_log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return jnp.minimum(ratio * advantage, clipped * advantage), ratio, ratio - 1.0 - log_ratio


def deal_minibatches(key: Key, rows: int, epochs: int, minibatches: int) -> jax.Array:
    """The rows of each minibatch, `[epochs * minibatches, rows / minibatches]`. Every epoch deals every row once."""
    shuffles = jax.vmap(partial(jax.random.permutation, x=rows))(jax.random.split(key, epochs))
    return shuffles.reshape(epochs * minibatches, -1)
