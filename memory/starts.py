"""Where the rates, steps and skip connection of Mamba and Mamba-2 begin.

A step of length dt keeps exp(-dt |A|) of the state and adds dt B x to it. So a state that begins with short steps, in
order to forget slowly, is also hardly written.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engram.errors import BadRequest


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


LONG = Start(0.003, 0.3, "log", 0.3, 0.7, 1.0)
"""Steps write what they are given, and rates keep it for 5 to 700 steps."""


def start_of(name: str, memory: Any, named: Start) -> Start:
    """`named` with the fields that `memory`, of the name `name`, has of its own.

    Raises:
        BadRequest: a value is out of range.
    """
    own = {field: getattr(memory, field) for field in Start._fields}
    start = named._replace(**{field: value for field, value in own.items() if value not in (None, "start")})
    for low, high in ((start.a_min, start.a_max), (start.dt_min, start.dt_max)):
        if not 0 < low <= high < math.inf:
            raise BadRequest(
                f"{name}: needs 0 < a_min ({start.a_min}) <= a_max ({start.a_max}) and 0 < dt_min ({start.dt_min}) <= "
                f"dt_max ({start.dt_max}), all finite"
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
