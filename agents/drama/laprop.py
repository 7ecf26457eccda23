"""LaProp (Ziyin, Wang and Ueda 2020): momentum of gradients that are already divided by their root mean square."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class LaPropState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  (checkpoints know it by this name)
    momentum: Any
    square: Any
    momentum_weight: jax.Array
    square_weight: jax.Array


def laprop(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-20, warmup: int = 0
) -> optax.GradientTransformation:
    """The optimiser, whose learning rate rises linearly over the first `warmup` steps.

    v <- b2 v + (1 - b2) g^2        m <- b1 m + (1 - b1) lr g / (sqrt(v / c2) + eps)        p <- p - m lr / c1

    The bias corrections c1 and c2 are moving averages of lr and of 1, with the decay rates of m and v, so that they
    hold for a learning rate that changes.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        zero = jnp.zeros(())
        return LaPropState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), zero, jnp.zeros(()))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = state.count + 1
        rate = learning_rate * jnp.minimum(1.0, count / max(warmup, 1))
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.square, updates)
        square_weight = b2 * state.square_weight + (1 - b2)
        momentum_weight = b1 * state.momentum_weight + (1 - b1) * rate
        momentum = jax.tree.map(
            lambda m, v, g: b1 * m + (1 - b1) * rate * g / (jnp.sqrt(v / square_weight) + eps),
            state.momentum,
            square,
            updates,
        )
        step = jax.tree.map(lambda m: -m * (rate / momentum_weight), momentum)
        return step, LaPropState(count, momentum, square, momentum_weight, square_weight)

    return optax.GradientTransformation(init, update)
