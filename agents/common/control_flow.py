"""Control flow in compiled programs that stays cheap under `vmap`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from engram.training.types import PyTree


def when(condition: jax.Array, compute: Callable[[], PyTree], otherwise: PyTree) -> PyTree:
    """`compute()` if the scalar `condition` holds, else `otherwise` (same shapes and dtypes).

    It is a loop of at most one round. Under `vmap` a `lax.cond` would become a select, which always computes both
    branches; a loop still runs only if some batch entry needs it.
    """

    def body(carry):
        return jnp.zeros((), bool), compute()

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, otherwise))[1]
