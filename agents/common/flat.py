"""Trees of parameters as single vectors: an optimiser then is a few operations instead of a few for every leaf, which
XLA compiles several times faster. (`optax.flatten` keeps its state as vectors too, which stored runs do not know.)"""

from collections.abc import Callable

import jax
from jax.flatten_util import ravel_pytree

from engram.training.types import Params, PyTree


def flattening(params: Params) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """Functions between trees and vectors.

    Args:
        params: tree of at least two real parameters, of one dtype.

    Returns:
        flatten: replaces every part of a tree that has the structure of `params`, such as the moments in an optimiser's
            state, by one vector.
        unflatten: the way back; other leaves, such as counters, pass both ways as they are.
    """
    structure = jax.tree.structure(params)
    vector, unravel = ravel_pytree(params)

    def is_like_params(x: PyTree) -> bool:
        return jax.tree.structure(x) == structure

    def flatten(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: ravel_pytree(x)[0] if is_like_params(x) else x, tree, is_leaf=is_like_params)

    def unflatten(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: unravel(x) if x.shape == vector.shape else x, tree)

    return flatten, unflatten
