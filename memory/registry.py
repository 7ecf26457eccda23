"""Memories: one contract (`engram.memory.base`), one file each, one registry.

A new memory is one file and one line in `MEMORIES`; that line also enrols it in the contract tests.
"""

import dataclasses
import difflib
import typing
from typing import Any

import jax
import jax.numpy as jnp

from engram.errors import UnknownName
from engram.memory.aaren import Aaren
from engram.memory.attention import Attention
from engram.memory.base import Memory
from engram.memory.deltanet import DeltaNet
from engram.memory.gla import GLA
from engram.memory.gru import GRU
from engram.memory.lru import LRU
from engram.memory.lstm import LSTM
from engram.memory.mamba import Mamba
from engram.memory.mamba2 import Mamba2
from engram.memory.mingru import MinGRU
from engram.memory.none import NoMemory
from engram.memory.s5 import S5
from engram.memory.stack import Stack

MEMORIES: dict[str, type[Memory]] = {
    "aaren": Aaren,
    "attention": Attention,
    "deltanet": DeltaNet,
    "gla": GLA,
    "gru": GRU,
    "lru": LRU,
    "lstm": LSTM,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mingru": MinGRU,
    "none": NoMemory,
    "s5": S5,
}

# Not options of one memory: set for all layers alike, or flax's own.
_SHARED = {"width", "param_dtype", "parent", "name"}


class UnknownMemory(UnknownName):
    """No memory of that name, or it has no such option or value. One line, with close matches."""


def memory_options(name: str, kinds: dict[str, type[Memory]] = MEMORIES) -> dict[str, Any]:
    """The options of a memory, one of `kinds`, and their defaults.

    Raises:
        UnknownMemory: no such memory.
    """
    return {field.name: field.default for field in dataclasses.fields(_find(name, kinds)) if field.name not in _SHARED}


def make_memory(
    name: str,
    width: int,
    layers: int = 1,
    norm: bool = True,
    residual: bool = True,
    rms: bool = False,
    dropout: float = 0.0,
    param_dtype: Any = jnp.float32,
    kinds: dict[str, type[Memory]] = MEMORIES,
    stack: type[Stack] = Stack,
    **options: Any,
) -> Stack:
    """Build a stack of `layers` memory layers of one kind.

    Args:
        name: a key of `kinds`.
        width: features of input and output.
        layers, norm, residual, rms, dropout: see `Stack`.
        param_dtype: of parameters and states; computation follows the parameters and the input.
        kinds, stack: other layers than the registered memories, and what holds them.
        options: fields of the layer, see `memory_options`; strings, as from a command line, are converted.

    Raises:
        UnknownMemory: unknown name or option, or a value that does not fit.
    """
    cls = _find(name, kinds)
    known = memory_options(name, kinds)
    types = typing.get_type_hints(cls)
    for option in options:
        if option not in known:
            raise UnknownMemory(f"memory {name!r} has no option {option!r}{_close(option, known)}")
    values = {option: _cast(f"{name}.{option}", value, types[option]) for option, value in options.items()}
    if layers < 1 or width < 1:
        raise UnknownMemory(f"memory {name!r}: layers ({layers}) and width ({width}) must be at least 1")
    try:
        stacked = tuple(cls(width=width, param_dtype=param_dtype, **values) for _ in range(layers))
        if options:  # the kernels' own complaints (backend, chunk) come here too, from shapes alone
            _try(stacked[0])
    except ValueError as error:
        raise UnknownMemory(str(error)) from error
    return stack(
        width=width,
        layers=stacked,
        norm=norm,
        residual=residual,
        rms=rms,
        dropout=dropout,
        param_dtype=param_dtype,
    )


def _try(layer: Memory) -> None:
    """Traces a few steps; raises ValueError where an option does not fit."""
    x, opened = jnp.zeros((3, 1, layer.width), layer.param_dtype), jnp.ones((3, 1), bool)
    jax.eval_shape(layer.init, jax.random.key(0), layer.initial_state(1), x, opened)


def _find(name: str, kinds: dict[str, type[Memory]]) -> type[Memory]:
    if name not in kinds:
        raise UnknownMemory(f"unknown memory {name!r}{_close(name, kinds)}")
    return kinds[name]


def _close(word: str, known) -> str:
    """`: did you mean ...?`, or all there is when nothing is close."""
    if not known:
        return ": it has none"
    matches = difflib.get_close_matches(word, known)
    return f": did you mean {' or '.join(matches)}?" if matches else f": choose from {', '.join(sorted(known))}"


def _cast(label: str, value: Any, kind: Any) -> Any:
    """`value` as the type of the field it is for."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UnknownMemory(f"{label} = {value!r}: choose from {', '.join(choices)}")
        return value
    if isinstance(value, str) and kind is not str:
        words = {"true": True, "1": True, "false": False, "0": False}
        try:
            return words[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UnknownMemory(f"{label} = {value!r} is not of type {kind.__name__}") from None
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise UnknownMemory(f"{label} = {value!r} is not of type {kind.__name__}")
    return value
