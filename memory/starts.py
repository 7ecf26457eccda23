"""Where the rates, steps and skip connection of Mamba and Mamba-2 begin.

A step of length dt keeps exp(-dt |A|) of the state and adds dt B x to it. So a state that begins with short steps, in
order to forget slowly, is also hardly written.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest
from engram.memory.base import Memory


class Start(NamedTuple):
    """Values at the start."""

    a_min: float
    """Slowest rate |A|."""
    a_max: float
    """Fastest rate |A|."""
    a_spacing: str
    """How rates lie between them."""
    dt_min: float
    """Shortest step, log-uniform up to `dt_max`."""
    dt_max: float
    """Longest step."""
    skip: float
    """D, the weight at which the input of the state space is added to its output."""


LONG = Start(0.003, 0.3, "log", 0.3, 0.7, 0.0)
"""Steps write what they are given, rates keep it for 5 to 700 steps, and the output is what the state holds."""


class Started(Memory):
    """A memory that has these options, and `a_spacing` with choices of its own."""

    start: Literal["long", "published"] = "long"
    """Rates, steps and skip at the start: "published", or "long", with which states are written at once and kept for
    hundreds of steps. The options `a_min` to `skip` change single values."""
    a_min: float | None = None
    """Slowest rate |A| at the start; none for that of `start`."""
    a_max: float | None = None
    """Fastest rate |A| at the start; none for that of `start`."""
    a_spacing: str = "start"
    dt_min: float | None = None
    """Shortest step at the start, log-uniform up to `dt_max`; none for that of `start`."""
    dt_max: float | None = None
    """Longest step at the start; none for that of `start`."""
    skip: float | None = None
    """Weight D at the start, at which the state space's input is added to its output; none for that of `start`."""

    @property
    def published(self) -> Start:
        """The published values."""
        raise NotImplementedError

    @property
    def begin(self) -> Start:
        """The values at the start: those of `start` with the memory's own in their place.

        Raises:
            BadRequest: a value is out of range.
        """
        named, own = LONG if self.start == "long" else self.published, {f: getattr(self, f) for f in Start._fields}
        start = named._replace(**{field: value for field, value in own.items() if value not in (None, "start")})
        name = type(self).__name__.lower()
        for low, high in ((start.a_min, start.a_max), (start.dt_min, start.dt_max)):
            if not 0 < low <= high < math.inf:
                raise BadRequest(
                    f"{name}: needs 0 < a_min ({start.a_min}) <= a_max ({start.a_max}) and 0 < dt_min "
                    f"({start.dt_min}) <= dt_max ({start.dt_max}), all finite"
                )
        if not math.isfinite(start.skip):
            raise BadRequest(f"{name}: skip ({start.skip}) must be finite")
        return start


def log_spaced(low: float, high: float, n: int) -> np.ndarray:
    """`n` numbers from `low` to `high` of equal ratios; their geometric mean where n = 1."""
    return np.geomspace(low, high, n) if n > 1 else np.full(n, math.sqrt(low * high))


def log_of(rates: np.ndarray, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The logarithm of rates `[n]`, the same in each channel, of shape `[n, ...]`."""
    return jnp.broadcast_to(jnp.log(jnp.asarray(rates, dtype)).reshape(-1, *[1] * (len(shape) - 1)), shape)
