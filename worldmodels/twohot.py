"""Numbers of any magnitude as distributions over bins that are equally spaced in symlog space (Hafner et al. 2023)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


def symlog(x: jax.Array) -> jax.Array:
    """`sign(x) log(1 + |x|)`."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """The inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@dataclass(frozen=True)
class TwoHot:
    """`bins` bins from `low` to `high`, both in symlog space."""

    bins: int = 255
    low: float = -20.0
    high: float = 20.0

    def encode(self, x: jax.Array) -> jax.Array:
        """`x[...]` -> weights `[..., bins]`, which sum to 1: only the two bins next to symlog(x) have weight, and the
        mean bin is symlog(x). Numbers outside of the range are clipped to it."""
        place = (jnp.clip(symlog(x), self.low, self.high) - self.low) * ((self.bins - 1) / (self.high - self.low))
        return jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - np.arange(self.bins, dtype=np.float32)))

    def decode(self, logits: jax.Array) -> jax.Array:
        """`logits[..., bins]` -> numbers `[...]`, symexp of the mean bin."""
        return symexp(jax.nn.softmax(logits) @ np.linspace(self.low, self.high, self.bins, dtype=np.float32))

    def loss(self, logits: jax.Array, x: jax.Array) -> jax.Array:
        """Cross-entropy `[...]` of `logits[..., bins]` with the target `x[...]`, which gets no gradient."""
        return -jnp.sum(jax.lax.stop_gradient(self.encode(x)) * jax.nn.log_softmax(logits), axis=-1)
