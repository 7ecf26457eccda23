"""A stack of memory layers is itself a memory."""

from functools import partial

import flax.linen as nn

from engram.memory.base import Memory


class Stack(Memory):
    """Pre-norm residual blocks: `x + layer(LayerNorm(x))`, one after the other. State: the tuple of the layers' states.

    Attributes:
        layers: the memories, all of this `width`.
        norm: normalise the input of each layer.
        residual: add the input of each layer to its output.
        rms: normalise by the root mean square alone (RMSNorm).
        dropout: of each layer's output, only where the module is applied with a random key named "dropout".
    """

    layers: tuple[Memory, ...] = ()
    norm: bool = True
    residual: bool = True
    rms: bool = False
    dropout: float = 0.0

    @property
    def forgets_nan_inside(self) -> bool:
        return all(layer.forgets_nan_inside for layer in self.layers)

    def setup(self):
        if self.norm:
            kind = partial(nn.RMSNorm, 1e-5) if self.rms else nn.LayerNorm
            self.norms = [kind(param_dtype=self.param_dtype) for _ in self.layers]
        if self.dropout:
            self.drop = nn.Dropout(self.dropout)

    @nn.nowrap
    def initial_state(self, batch):
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def __call__(self, state, x, reset):
        return self.run([layer.__call__ for layer in self.layers], state, x, reset)

    def step(self, state, x, reset):
        return self.run([layer.step for layer in self.layers], state, x, reset)

    def run(self, layers, state, x, reset):
        """Both faces: `layers` are the layers' `__call__` or their `step`."""
        after = []
        for i, layer in enumerate(layers):
            layer_state, y = layer(state[i], self.norms[i](x) if self.norm else x, reset)
            if self.dropout:
                y = self.drop(y, deterministic=not self.has_rng("dropout"))
            x = x + y if self.residual else y
            after.append(layer_state)
        return tuple(after), x
