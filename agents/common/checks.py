"""Range checks of settings, with one wording for each kind of fault.

Each function checks the named fields of `settings` in the order given and raises BadRequest at the first fault. The
message calls a field `prefix` and its name, such as `ppo.num_envs`, or as it is typed where the prefix is `--`. A field
that is None is not set and passes; NaN passes no check of a number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from engram.errors import BadRequest


def require_at_least(settings: object, prefix: str, low: float, *names: str) -> None:
    """Numbers from `low` on."""
    _require(settings, prefix, names, f"be at least {low}", lambda value: value >= low)


def require_above(settings: object, prefix: str, low: float, *names: str) -> None:
    """Numbers above `low`, infinity too, for limits that infinity switches off."""
    _require(settings, prefix, names, f"be above {low}", lambda value: value > low)


def require_positive(settings: object, prefix: str, *names: str) -> None:
    """Numbers in (0, infinity)."""
    _require(settings, prefix, names, "be positive and finite", lambda value: 0 < value < math.inf)


def require_not_negative(settings: object, prefix: str, *names: str) -> None:
    """Numbers in [0, infinity)."""
    _require(settings, prefix, names, "be finite and at least 0", lambda value: 0 <= value < math.inf)


def require_finite(settings: object, prefix: str, *names: str) -> None:
    """Numbers of either sign, but neither NaN nor infinite."""
    _require(settings, prefix, names, "be finite", math.isfinite)


def require_share(settings: object, prefix: str, *names: str) -> None:
    """Numbers in [0, 1], such as probabilities."""
    _require(settings, prefix, names, "lie in [0, 1]", lambda value: 0 <= value <= 1)


def require_share_below_one(settings: object, prefix: str, *names: str) -> None:
    """Numbers in [0, 1), such as dropout rates."""
    _require(settings, prefix, names, "lie in [0, 1)", lambda value: 0 <= value < 1)


def require_inner_share(settings: object, prefix: str, *names: str) -> None:
    """Numbers in (0, 1), such as confidence levels."""
    _require(settings, prefix, names, "lie in (0, 1)", lambda value: 0 < value < 1)


def require_sizes(settings: object, prefix: str, *names: str) -> None:
    """Tuples of sizes of at least 1, such as those of hidden layers. An empty tuple passes."""
    _require(settings, prefix, names, "hold sizes of at least 1", lambda value: all(size >= 1 for size in value))


def require_some(settings: object, prefix: str, *names: str) -> None:
    """Tuples that are not empty."""
    _require(settings, prefix, names, "name at least one", bool)


def require_seed(settings: object, prefix: str, *names: str) -> None:
    """Seeds, from which those of other seeds, lanes and splits are counted up within 32 bits."""
    _require(settings, prefix, names, "lie in [0, 2^31)", lambda value: 0 <= value < 2**31)


def require_one_of(settings: object, prefix: str, known: Sequence[str], *names: str) -> None:
    """Words among `known`."""
    _require(settings, prefix, names, f"be one of {', '.join(known)}", lambda value: value in known)


def _require(settings: object, prefix: str, names: Sequence[str], demand: str, holds: Callable[[Any], bool]) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not holds(value):
            shown = name.replace("_", "-") if prefix == "--" else name
            raise BadRequest(f"{prefix}{shown} must {demand}, got {value!r}")
