"""Control flow of compiled programs that `vmap` does not make dearer."""

from typing import Any

import jax
import jax.numpy as jnp


def when(condition: jax.Array, compute, otherwise: Any) -> Any:
    """`compute()` if the scalar `condition` holds, else `otherwise` (same shapes and dtypes).

    A loop of at most one round instead of `lax.cond`: under `vmap` a `cond` turns into a select that always pays for
    both branches, a loop still runs only if some batch entry needs it.
    """

    def body(carry):
        return jnp.zeros((), bool), compute()

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, otherwise))[1]
