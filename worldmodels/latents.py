"""Latent states that are vectors of categorical variables (Hafner et al. 2021).

A distribution is an array of log-probabilities `[..., categoricals, classes]`.
"""

import jax
import jax.numpy as jnp


def unimix(logits: jax.Array, share: float, denominator: int | None = None) -> jax.Array:
    """Log-probabilities of `(1 - share) softmax(logits) + share / classes`, which are never far below log(share).

    Args:
        denominator: in place of the number of classes. With another number this is no distribution.
    """
    uniform = share / (denominator or logits.shape[-1])
    return jnp.log((1.0 - share) * jax.nn.softmax(logits, axis=-1) + uniform)


def sample(key: jax.Array, log_probs: jax.Array) -> jax.Array:
    """One-hot samples, flattened to `[..., categoricals * classes]`, with the gradient of the probabilities (Bengio,
    Leonard and Courville 2013)."""
    classes = log_probs.shape[-1]
    hot = jax.nn.one_hot(jax.random.categorical(key, log_probs), classes, dtype=log_probs.dtype)
    probs = jnp.exp(log_probs)
    hot = hot + probs - jax.lax.stop_gradient(probs)
    return hot.reshape(*hot.shape[:-2], -1)


def kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) in nats, summed over the categoricals: `[..., categoricals, classes]` twice -> `[...]`."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=(-2, -1))
