"""Distributions over actions, as pytrees. A policy head returns one.

Leading axes are batch axes. Every class has `sample(key)`, `mode()`, `log_prob(action)` and `entropy()`. The last two
return one number for each batch entry, the sum over the components of an action.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.spaces import EXACT, Box, Discrete, MultiDiscrete, Space
from engram.envs.vector import action_scale
from engram.errors import BadRequest


@struct.dataclass
class Categorical:
    """One integer in [0, n), from unnormalised `logits[..., n]`."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.logits)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        # A product with a one-hot vector: XLA on CPU makes one fused loop of its gradient, but a scatter of a gather's.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=self.logits.dtype)
        return jnp.sum(jax.nn.log_softmax(self.logits) * chosen, axis=-1)

    def entropy(self) -> jax.Array:
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


@struct.dataclass
class MultiCategorical:
    """Independent integers `[..., len(nvec)]`. `logits[..., sum(nvec)]` holds the logits of all components, one after
    another."""

    logits: jax.Array
    nvec: tuple[int, ...] = struct.field(pytree_node=False)

    def components(self) -> list[Categorical]:
        bounds = [sum(self.nvec[:i]) for i in range(len(self.nvec) + 1)]
        return [Categorical(self.logits[..., a:b]) for a, b in itertools.pairwise(bounds)]

    def sample(self, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(self.nvec))
        return jnp.stack([c.sample(k) for c, k in zip(self.components(), keys, strict=True)], axis=-1)

    def mode(self) -> jax.Array:
        return jnp.stack([c.mode() for c in self.components()], axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return sum((c.log_prob(action[..., i]) for i, c in enumerate(self.components())), jnp.zeros(()))

    def entropy(self) -> jax.Array:
        return sum((c.entropy() for c in self.components()), jnp.zeros(()))


@struct.dataclass
class DiagonalGaussian:
    """A real vector `[..., d]` from `mean[..., d]` and `log_std`, which is broadcast to it. Not squashed: environments
    clip actions to their bounds."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * z**2 + self.log_std + 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        per_component = self.log_std + 0.5 * (1 + math.log(2 * math.pi))
        return jnp.sum(jnp.broadcast_to(per_component, self.mean.shape), axis=-1)


def gaussian(space: Box, mean: jax.Array, log_std: jax.Array) -> DiagonalGaussian:
    """The policy over `space` whose `mean[..., d]` and deviation count in half widths of the bounds, from their middle,
    so that a new policy covers them whatever they are (see `engram.envs.vector.action_scale`)."""
    scale = action_scale(space)
    if scale is None:
        return DiagonalGaussian(mean, log_std)
    middle, half = map(jnp.asarray, scale)
    return DiagonalGaussian(middle + half * mean, log_std + jnp.log(half))


Distribution = Categorical | MultiCategorical | DiagonalGaussian

FORBIDDEN = float(np.finfo(np.float32).min) / 2
"""Logit of what is forbidden. Its probability is 0 in float32, and yet the logarithm of that stays a number."""


def allowed(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`logits[..., n]` of a categorical policy, or of several one after another, where `mask[..., n]` (bool; None: all)
    forbids some actions: these have probability 0, count for nothing in the entropy, and pass no gradient.

    Where a mask allows no action at all, all are equally likely.
    """
    return logits if mask is None else jnp.where(mask, logits, FORBIDDEN)


def head_size(space: Space) -> int:
    """The number of outputs that a policy head needs for actions in `space`.

    Raises:
        BadRequest: the actions are neither integers nor a vector, or there are more than 2^24 of them.
    """
    match space:
        case Discrete(n) if n <= EXACT:
            return n
        case MultiDiscrete(nvec) if sum(nvec) <= EXACT:
            return sum(nvec)
        case Box(shape=(size,)):
            return size
    raise BadRequest(
        f"no policy for the action space {space}: Discrete and MultiDiscrete (of up to 2^24 integers) and one-axis Box "
        "are supported"
    )
