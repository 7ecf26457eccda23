"""gymnasium's spaces, and arrays that live in them, in the suite's own terms."""

from typing import Any

import jax
import numpy as np
from gymnasium import spaces as gymnasium_spaces

from engram.envs.spaces import EXACT, Box, Dict, Discrete, MultiDiscrete, Space, Tuple
from engram.errors import BadRequest

FLOAT32 = np.finfo(np.float32)


def _nested_tuple(values: Any) -> Any:
    return tuple(_nested_tuple(value) for value in values) if isinstance(values, list) else values


def _bound(values: np.ndarray, missing: float) -> float | tuple:
    """Bounds as a hashable value, one number when all agree. Packages write 'no bound' as the largest number of the
    type, some a lower one as the smallest positive number."""
    values = np.asarray(values, np.float64)
    values = np.where((np.abs(values) >= FLOAT32.max) | ((values > 0) & (values <= FLOAT32.tiny)), missing, values)
    same = values.size > 0 and (values == values.flat[0]).all()
    return float(values.flat[0]) if same else _nested_tuple(values.tolist())


def convert(space: Any) -> Space:
    """A gymnasium space as one of ours: boxes become float32 unless uint8, `MultiBinary` is flattened to
    `MultiDiscrete`. Raises BadRequest for spaces with no fixed shape (text, sequences, graphs)."""
    match space:
        case gymnasium_spaces.Discrete():
            return Discrete(int(space.n))
        case gymnasium_spaces.MultiDiscrete() if len(space.shape) == 1:
            return MultiDiscrete(tuple(int(n) for n in space.nvec))
        case gymnasium_spaces.MultiBinary():
            return MultiDiscrete((2,) * int(np.prod(space.shape)))
        case gymnasium_spaces.Box():
            dtype = "uint8" if space.dtype == np.uint8 else "float32"
            return Box(_bound(space.low, -np.inf), _bound(space.high, np.inf), tuple(space.shape), dtype)
        case gymnasium_spaces.Tuple():
            return Tuple(tuple(convert(part) for part in space.spaces))
        case gymnasium_spaces.Dict():
            return Dict(tuple(sorted((name, convert(part)) for name, part in space.spaces.items())))
    raise BadRequest(f"spaces like {space!r} are not supported")


def may_lose_digits(space: Any) -> bool:
    """Whether a gymnasium space has whole numbers of which float32 does not hold the last digits."""
    match space:
        case gymnasium_spaces.Tuple() | gymnasium_spaces.Dict():
            return any(map(may_lose_digits, _parts(space)))
        case gymnasium_spaces.Box() if np.issubdtype(space.dtype, np.integer):
            return max(-float(np.min(space.low, initial=0)), float(np.max(space.high, initial=0))) > EXACT
    return False


def lost_digits(space: Any, x: Any) -> np.ndarray | None:
    """Members `x[B, ...]` of a gymnasium space -> the first whole number that float32 does not hold, of each of the
    `B`, as `[B]` of integers, and 0 where there is none; None where there is none at all."""
    match space:
        case gymnasium_spaces.Tuple() | gymnasium_spaces.Dict():
            values = x if isinstance(space, gymnasium_spaces.Tuple) else [x[name] for name in space.spaces]
            found = (lost_digits(part, y) for part, y in zip(_parts(space), values, strict=True))
            return next((lost for lost in found if lost is not None), None)
        case gymnasium_spaces.Box() if np.issubdtype(x.dtype, np.integer) and x.dtype.itemsize > 2:
            flat = x.reshape(len(x), -1)
            if not flat.size or (flat.max() <= EXACT and flat.min() >= -EXACT):
                return None
            with np.errstate(invalid="ignore"):  # what is rounded to 2^63 is none of its integers
                lost = flat.astype(np.float32).astype(x.dtype) != flat
            return np.where(lost.any(axis=1), flat[np.arange(len(x)), lost.argmax(axis=1)], 0) if lost.any() else None
    return None


def from_gymnasium(space: Any, x: Any) -> Any:
    """Members `x` of a gymnasium space, `[B, ...]` NumPy or JAX arrays, as members of `convert(space)`."""
    match space:
        case gymnasium_spaces.Discrete() | gymnasium_spaces.MultiDiscrete():
            return (x - space.start.astype(x.dtype)).astype(np.int32)
        case gymnasium_spaces.MultiBinary():
            return x.reshape(x.shape[0], -1).astype(np.int32)
        case gymnasium_spaces.Tuple():
            return tuple(from_gymnasium(part, y) for part, y in zip(space.spaces, x, strict=True))
        case gymnasium_spaces.Dict():
            return {name: from_gymnasium(part, x[name]) for name, part in sorted(space.spaces.items())}
    if isinstance(x, np.ndarray):
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            return x if x.dtype == np.uint8 else x.astype(np.float32)
    return x if x.dtype == np.uint8 else x.astype(np.float32)


def to_gymnasium(space: Any, x: Any) -> Any:
    """Members `x` of `convert(space)`, `[B, ...]`, as members of `space`: the inverse of `from_gymnasium`."""
    match space:
        case gymnasium_spaces.Discrete() | gymnasium_spaces.MultiDiscrete():
            return x + space.start.astype(x.dtype)
        case gymnasium_spaces.MultiBinary():
            return x.reshape(x.shape[0], *space.shape).astype(space.dtype)
        case gymnasium_spaces.Tuple():
            return tuple(to_gymnasium(part, y) for part, y in zip(space.spaces, x, strict=True))
        case gymnasium_spaces.Dict():
            return {name: to_gymnasium(part, x[name]) for name, part in space.spaces.items()}
    return x.astype(space.dtype)


def convert_action(space: Any) -> Space:
    """A gymnasium space of actions as one that policies cover, as far as there is one: boxes of any shape and type as
    vectors of float32, tuples and dicts of boxes as one vector, those of integers as one `MultiDiscrete`. Otherwise as
    `convert`."""
    match space:
        case gymnasium_spaces.Box():
            low, high = (_bound(np.ravel(x), missing) for x, missing in ((space.low, -np.inf), (space.high, np.inf)))
            return Box(low, high, (int(np.prod(space.shape)),))
        case gymnasium_spaces.MultiDiscrete():
            return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        case gymnasium_spaces.Tuple() | gymnasium_spaces.Dict():
            parts: list[Any] = [convert_action(part) for part in _parts(space)]
            if parts and all(isinstance(part, Box) for part in parts):
                low, high = (
                    np.concatenate([np.broadcast_to(getattr(part, bound), part.shape) for part in parts])
                    for bound in ("low", "high")
                )
                return Box(_bound(low, -np.inf), _bound(high, np.inf), (len(low),))
            if parts and all(isinstance(part, Discrete | MultiDiscrete) for part in parts):
                return MultiDiscrete(sum(((p.n,) if isinstance(p, Discrete) else p.nvec for p in parts), ()))
    return convert(space)


def _parts(space: Any) -> list[Any]:
    return [*space.spaces.values()] if isinstance(space, gymnasium_spaces.Dict) else [*space.spaces]


def action_to_gymnasium(space: Any, x: Any) -> Any:
    """Members `x[B, ...]` of `convert_action(space)` as members of `space`, rounded where it has whole numbers."""
    match space:
        case gymnasium_spaces.Box():
            x = x.reshape(x.shape[0], *space.shape)
            return (x.round() if np.issubdtype(space.dtype, np.integer) else x).astype(space.dtype)
        case gymnasium_spaces.MultiDiscrete():
            return to_gymnasium(space, x.reshape(x.shape[0], *space.shape))
        case gymnasium_spaces.Tuple() | gymnasium_spaces.Dict() if not isinstance(x, tuple | dict):
            members, start = [], 0
            for part in _parts(space):
                flat: Any = convert_action(part)
                width = flat.shape[0] if flat.shape else 1
                member = x[:, start : start + width]
                members.append(action_to_gymnasium(part, member if flat.shape else member[:, 0]))
                start += width
            return dict(zip(space.spaces, members, strict=True)) if isinstance(space.spaces, dict) else tuple(members)
    return to_gymnasium(space, x)


def whole_numbers(space: Any) -> np.ndarray | bool:
    """Which entries of `convert_action(space)` are rounded, where it is a `Box`."""
    match space:
        case gymnasium_spaces.Box():
            return np.full(int(np.prod(space.shape)), np.issubdtype(space.dtype, np.integer))
        case gymnasium_spaces.Tuple() | gymnasium_spaces.Dict():
            return np.concatenate([np.atleast_1d(whole_numbers(part)) for part in _parts(space)])
    return False


def structs(space: Space, batch: int) -> Any:
    """The shapes and dtypes of a batch of members of `space`."""
    match space:
        case Tuple():
            return tuple(structs(part, batch) for part in space.spaces)
        case Dict():
            return {name: structs(part, batch) for name, part in space.spaces}
        case Box():
            return jax.ShapeDtypeStruct((batch, *space.shape), np.dtype(space.dtype))
    return jax.ShapeDtypeStruct((batch, *space.shape), np.int32)
