"""Latent states that are vectors of categorical variables (Hafner et al. 2021).

A distribution is an array of log-probabilities `[..., categoricals, classes]`.
"""

import jax
import jax.numpy as jnp


def unimix(logits: jax.Array, share: float, denominator: int | None = None) -> jax.Array:
    """Log-probabilities of a mixture with the uniform distribution, `(1 - share) softmax(logits) + share / classes`.

    Args:
        logits: `[..., classes]`.
        share: weight of the uniform distribution, in [0, 1].
        denominator: number in place of the number of classes. With another one the result is not normalised.
    """
    uniform = share / (denominator or logits.shape[-1])
    return jnp.log((1.0 - share) * jax.nn.softmax(logits, axis=-1) + uniform)


def sample(key: jax.Array, log_probs: jax.Array) -> jax.Array:
    """One-hot samples, flattened to `[..., categoricals * classes]`. Their gradient is that of the probabilities (the
    straight-through estimator of Bengio, Leonard and Courville 2013)."""
    classes = log_probs.shape[-1]
    one_hot = jax.nn.one_hot(jax.random.categorical(key, log_probs), classes, dtype=log_probs.dtype)
    probs = jnp.exp(log_probs)
    one_hot = one_hot + probs - jax.lax.stop_gradient(probs)
    return one_hot.reshape(*one_hot.shape[:-2], -1)


def kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) in nats, summed over the categoricals: `p`, `q` `[..., categoricals, classes]` -> `[...]`."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=(-2, -1))
