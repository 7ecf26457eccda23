"""Matrix products over all rows of a sequence at once, as products of two plain matrices.

The gradient of `W` in `x[T, B, n] @ W` contracts two axes. XLA's CPU compiler makes a transposed copy of one side for
that and takes twice as long as for the same numbers as `[T * B, n]`.
"""

import jax


def rows_matmul(x: jax.Array, W: jax.Array) -> jax.Array:
    """`x[..., n] @ W[n, m]` -> `[..., m]`."""
    return (x.reshape(-1, x.shape[-1]) @ W).reshape(*x.shape[:-1], W.shape[-1])


def rows_outer(x: jax.Array, g: jax.Array) -> jax.Array:
    """Outer products of `x[..., n]` and `g[..., m]`, summed over rows -> `[n, m]`: the gradient of `W` above."""
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])
