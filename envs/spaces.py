"""Action and observation spaces, hashable descriptions with no arrays on a device.

gymnax's own spaces lack `MultiDiscrete` and are not comparable, so the suite keeps these four. Samples are
drawn for one environment; `vmap` over keys for a batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

FLOAT32_MAX = np.finfo(np.float32).max
"""Bounds of this size are none."""


def uniform_below(key: jax.Array, n: int | np.ndarray | jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Random integers 0 .. n - 1 of `shape`, int32, for `n` up to 2^16; probabilities are 1 / n to within 2^-32.

    `floor(n r / 2^32)` of one random word `r` each, where `jax.random.randint` splits the key and draws two: in an
    environment's step or reset that is a large part of the work.
    """
    if not isinstance(n, jax.Array) and not (np.all(np.asarray(n) >= 1) and np.all(np.asarray(n) <= 1 << 16)):
        raise ValueError(f"uniform_below: n must lie in 1 .. 65536, got {n}")
    words, n = jax.random.bits(key, shape, jnp.uint32), jnp.asarray(n, jnp.uint32)
    low = (words & 0xFFFF) * n  # both products fit in 32 bits
    return (((words >> 16) * n + (low >> 16)) >> 16).astype(jnp.int32)


@dataclass(frozen=True)
class Discrete:
    """Integers 0 .. n - 1, shape `()`, int32."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, key: jax.Array) -> jax.Array:
        return uniform_below(key, self.n) if self.n <= 1 << 16 else jax.random.randint(key, (), 0, self.n)


@dataclass(frozen=True)
class MultiDiscrete:
    """A vector of integers, entry `i` in 0 .. nvec[i] - 1, shape `(len(nvec),)`, int32."""

    nvec: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)

    def sample(self, key: jax.Array) -> jax.Array:
        if max(self.nvec, default=1) <= 1 << 16:
            return uniform_below(key, np.asarray(self.nvec), self.shape)
        return jax.random.randint(key, self.shape, 0, jnp.asarray(self.nvec))


@dataclass(frozen=True)
class Box:
    """Real (or uint8) arrays between `low` and `high`, given as nested tuples or scalars; bounds may be infinite.

    Samples are uniform between two bounds, exponential from a single one, normal where there is none, as gymnasium's.
    """

    low: float | tuple
    high: float | tuple
    shape: tuple[int, ...]
    dtype: str = "float32"

    def sample(self, key: jax.Array) -> jax.Array:
        low, high = (np.broadcast_to(np.asarray(bound, np.float32), self.shape) for bound in (self.low, self.high))
        below, above = low > -FLOAT32_MAX, high < FLOAT32_MAX
        first, last = np.where(below & above, low, 0), np.where(below & above, high, 1)
        uniform = jax.random.uniform(key, self.shape, minval=first, maxval=last)
        if (below & above).all():
            return uniform.astype(self.dtype)
        normal, far = jax.random.normal(key, self.shape), -jnp.log1p(-uniform)
        beyond_one = jnp.where(below, low + far, jnp.where(above, high - far, normal))
        return jnp.where(below & above, uniform, beyond_one).astype(self.dtype)


@dataclass(frozen=True)
class Tuple:
    """A product of spaces; samples are Python tuples."""

    spaces: tuple["Space", ...]

    def sample(self, key: jax.Array) -> tuple:
        keys = jax.random.split(key, len(self.spaces))
        return tuple(space.sample(k) for space, k in zip(self.spaces, keys, strict=True))


@dataclass(frozen=True)
class Dict:
    """Named spaces, as sorted `(name, space)` pairs; samples are dicts."""

    spaces: tuple[tuple[str, "Space"], ...]

    def sample(self, key: jax.Array) -> dict:
        keys = jax.random.split(key, len(self.spaces))
        return {name: space.sample(k) for (name, space), k in zip(self.spaces, keys, strict=True)}


Space = Discrete | MultiDiscrete | Box | Tuple | Dict

EXACT = 2**24
"""Whole numbers up to which each has a float32 of its own."""

MASK, REST = "action_mask", "observation"
"""Names of parts of observations: which actions are allowed, and what else there is to see."""


def has_mask(space: Space) -> bool:
    """Whether observations in `space` say which actions are allowed."""
    return isinstance(space, Dict) and MASK in dict(space.spaces)


def allows_nothing(space: Space, mask: np.ndarray) -> np.ndarray:
    """Whether `mask[B, n]` leaves no choice in an action of `space`, or in one of its components, bool `[B]`. Never of
    masks that do not fit the space."""
    sizes = space.nvec if isinstance(space, MultiDiscrete) else (space.n,) if isinstance(space, Discrete) else ()
    if mask.shape[1] != sum(sizes):
        return np.zeros(len(mask), bool)
    some = np.logical_or.reduceat(mask != 0, np.cumsum((0, *sizes[:-1])), axis=1)  # of each component
    return np.any(~some, axis=1)
