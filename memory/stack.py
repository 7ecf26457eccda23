"""A stack of memory layers is itself a memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from engram.kernels.backends import check_flags
from engram.memory.base import Memory, State


class Stack(Memory):
    """Pre-norm residual blocks, one after the other: `x + layer(LayerNorm(x))`; `layer(x)` for whole blocks
    (`Memory.whole`).

    State: the tuple of the layers' states. Raises ValueError for a `reset` of another shape, or that is not bool.
    """

    layers: tuple[Memory, ...] = ()
    """Memory layers, all of this `width`."""
    norm: bool = True
    """Normalisation of the input of each layer."""
    residual: bool = True
    """Addition of the input of each layer to its output."""
    rms: bool = False
    """Normalisation by the root mean square alone (RMSNorm)."""
    dropout: float = 0.0
    """Dropout rate of each layer's output, only where the module is applied with a random key named "dropout"."""

    @property
    def forgets_nan_inside(self) -> bool:
        return all(layer.forgets_nan_inside for layer in self.layers)

    def setup(self) -> None:
        if self.norm:
            kind = partial(nn.RMSNorm, 1e-5) if self.rms else nn.LayerNorm
            self.norms = [kind(param_dtype=self.param_dtype) for _ in self.layers]
        if self.dropout:
            self.drop = nn.Dropout(self.dropout)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        check_flags("memory", reset, x.shape[:2])
        return self.run([layer.__call__ for layer in self.layers], state, x, reset)

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        check_flags("memory", reset, x.shape[:1])
        return self.run([layer.step for layer in self.layers], state, x, reset)

    def run(
        self, layers: Sequence[Callable[..., Any]], state: State, x: jax.Array, reset: jax.Array
    ) -> tuple[State, jax.Array]:
        """Sequence or step: `layers` are the layers' `__call__` or their `step`."""
        after = []
        for i, layer in enumerate(layers):
            whole = self.layers[i].whole
            layer_state, y = layer(state[i], self.norms[i](x) if self.norm and not whole else x, reset)
            if self.dropout:
                y = self.drop(y, deterministic=not self.has_rng("dropout"))
            x = x + y if self.residual and not whole else y
            after.append(layer_state)
        return tuple(after), x
