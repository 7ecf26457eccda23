"""Memories by name.

A new memory is one file and one line in `MEMORIES`; that line also enrols it in the contract tests. Outside of this
repository a memory is `module:Class`, or an entry point of the group `engram.memories`.
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any

import jax
import jax.numpy as jnp

from engram import plugins
from engram.errors import BadRequest, UnknownName, close_matches
from engram.memory.aaren import Aaren
from engram.memory.agalite import AGaLiTe
from engram.memory.attention import Attention
from engram.memory.base import Memory
from engram.memory.deltanet import DeltaNet
from engram.memory.ffm import FFM
from engram.memory.framestack import FrameStack
from engram.memory.gla import GLA
from engram.memory.gru import GRU
from engram.memory.gtrxl import GTrXL
from engram.memory.h3 import H3
from engram.memory.kalman import Kalman
from engram.memory.lru import LRU
from engram.memory.lssl import LSSL
from engram.memory.lstm import LSTM
from engram.memory.mamba import Mamba
from engram.memory.mamba2 import Mamba2
from engram.memory.mamba3 import Mamba3
from engram.memory.mingru import MinGRU
from engram.memory.mlstm import MLSTM
from engram.memory.mom import MoM
from engram.memory.none import NoMemory
from engram.memory.para import Para
from engram.memory.rnn import RNN
from engram.memory.rwkv7 import RWKV7
from engram.memory.s4d import S4D
from engram.memory.s5 import S5
from engram.memory.scout import Scout
from engram.memory.seqboat import SeqBoat
from engram.memory.shm import SHM
from engram.memory.slstm import SLSTM
from engram.memory.stack import Stack
from engram.memory.tcn import TCN
from engram.memory.ttt import TTT

MEMORIES: dict[str, type[Memory]] = {
    "aaren": Aaren,
    "agalite": AGaLiTe,
    "attention": Attention,
    "deltanet": DeltaNet,
    "ffm": FFM,
    "framestack": FrameStack,
    "gla": GLA,
    "gru": GRU,
    "gtrxl": GTrXL,
    "h3": H3,
    "kalman": Kalman,
    "lru": LRU,
    "lssl": LSSL,
    "lstm": LSTM,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mamba3": Mamba3,
    "mingru": MinGRU,
    "mlstm": MLSTM,
    "mom": MoM,
    "none": NoMemory,
    "para": Para,
    "rnn": RNN,
    "rwkv7": RWKV7,
    "s4d": S4D,
    "s5": S5,
    "scout": Scout,
    "seqboat": SeqBoat,
    "shm": SHM,
    "slstm": SLSTM,
    "tcn": TCN,
    "ttt": TTT,
}

GROUP = "engram.memories"
"""Entry points by which installed packages bring memories."""

MIXTURE = re.compile(r"[,*]")
"""What the name of a mixed stack has and that of a memory has not."""

# Not options of one memory: set for all layers alike, or flax's own.
_SHARED = {"width", "param_dtype", "parent", "name"}


def find_memory(name: str, kinds: dict[str, type[Memory]] = MEMORIES) -> type[Memory]:
    """The class of a memory.

    Args:
        name: a key of `kinds`, `module:Class`, or the name of an entry point of the group `engram.memories`. The module
            may lie in the working directory.
        kinds: classes by name, before all others.

    Raises:
        UnknownName: no such memory, module or class.
        BadRequest: the class is no `Memory`.
    """
    if name in kinds:
        return kinds[name]
    installed = plugins.entry_points(GROUP)
    if name in installed:
        found = installed[name].load()
    elif ":" in name:
        found = plugins.load("memory", name)
    else:
        raise UnknownName.among("memory", name, {*kinds, *installed})
    if not (isinstance(found, type) and issubclass(found, Memory)):
        raise BadRequest(f"memory {name!r}: {found!r} is no subclass of engram.memory.Memory")
    return found


def layer_names(name: str) -> list[str]:
    """The memories of a stack, one name for each layer: `mamba2*2,attention` -> mamba2, mamba2, attention.

    Raises:
        BadRequest: a count that is not a whole number of at least 1.
    """
    if not MIXTURE.search(name):
        return [name]
    names = []
    for part in name.split(","):
        memory, times, count = part.partition("*")
        if times and not (count.isascii() and count.isdigit() and int(count) >= 1):
            raise BadRequest(f"memory {name!r}: {part!r} is not of the form memory*layers, such as mamba2*3")
        names += [memory] * int(count or 1)
    return names


def memory_options(name: str, kinds: dict[str, type[Memory]] = MEMORIES) -> dict[str, Any]:
    """The options of a memory and their defaults. `name`, `kinds` and errors are those of `find_memory`."""
    fields = dataclasses.fields(find_memory(name, kinds))
    return {field.name: field.default for field in fields if field.name not in _SHARED}


def options_of(
    memory: str, entries: Sequence[str], known: Callable[[str], dict[str, Any]] = memory_options
) -> dict[str, Any]:
    """The entries that concern one memory, as options by name with values as they are written.

    Args:
        memory: name of the memory. For a mixed stack the options are by `memory.option`.
        entries: of the form `memory.option=value`, such as `s5.state=128` or `my_module:Leaky.rate=0.5`, for this
            memory and for others.
        known: the options that a memory has, by its name.

    Raises:
        BadRequest: an entry is not of that form, or names no memory or no option of it.
    """
    chosen, mixed = {}, MIXTURE.search(memory) is not None
    names = layer_names(memory)
    for entry in entries:
        target, equals, value = entry.partition("=")
        name, dot, option = target.rpartition(".")  # names of modules have dots, names of options have none
        if not (dot and equals):
            raise BadRequest(f"memory option {entry!r} is not of the form memory.option=value, such as s5.state=128")
        _check_option(name, option, known(name))
        if name in names:
            chosen[target if mixed else option] = value
    return chosen


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
    """Build a stack of memory layers: `layers` of one kind, or `layers` times those of a mixture.

    Args:
        name: name of the memory, see `find_memory`, or a mixture such as `mamba2*3,attention`, see `layer_names`.
        width: number of features of input and output.
        layers, norm, residual, rms, dropout: see `Stack`.
        param_dtype: dtype of parameters and states; computation follows the parameters and the input.
        kinds, stack: classes of layers by name, and the class that holds the layers.
        options: fields of the layer, see `memory_options`; strings, as from a command line, are converted. Those of a
            mixture have the memory's name before them: `{"attention.window": 16}`.

    Raises:
        UnknownName: unknown name or option.
        BadRequest: a value that does not fit.
    """
    if layers < 1 or width < 1:
        raise BadRequest(f"memory {name!r}: layers ({layers}) and width ({width}) must be at least 1")
    names, own = layer_names(name), {}
    if MIXTURE.search(name):
        for target, value in options.items():
            memory, _, option = target.rpartition(".")
            if memory not in names:
                raise BadRequest(f"memory {name!r}: {target!r} is not an option of one of its memories")
            own.setdefault(memory, {})[option] = value
    else:
        own[name] = options
    made = {
        memory: _make_layer(memory, width, param_dtype, kinds, own.get(memory, {})) for memory in dict.fromkeys(names)
    }
    return stack(
        width=width,
        layers=tuple(made[memory].clone() for _ in range(layers) for memory in names),  # each has parameters of its own
        norm=norm,
        residual=residual,
        rms=rms,
        dropout=dropout,
        param_dtype=param_dtype,
    )


def _make_layer(name: str, width: int, param_dtype: Any, kinds: dict[str, type[Memory]], options: dict) -> Memory:
    cls = find_memory(name, kinds)
    known, hints = memory_options(name, kinds), typing.get_type_hints(cls)
    for option in options:
        _check_option(name, option, known)
    values = {option: _cast(f"{name}.{option}", value, hints[option]) for option, value in options.items()}
    layer = cls(width=width, param_dtype=param_dtype, **values)
    if options:  # the kernels' own complaints (backend, chunk) come here too, from shapes alone
        _try(layer)
    return layer


def _try(layer: Memory) -> None:
    """Traces a few steps. Raises BadRequest where an option does not fit."""
    x, opened = jnp.zeros((3, 1, layer.width), layer.param_dtype), jnp.ones((3, 1), bool)
    jax.eval_shape(layer.init, jax.random.key(0), layer.initial_state(1), x, opened)


def _check_option(name: str, option: str, known: dict[str, Any]) -> None:
    if option not in known:
        raise UnknownName(f"memory {name!r} has no option {option!r}{close_matches(option, known)}")


def _cast(label: str, value: Any, kind: Any) -> Any:
    """`value` as the type of the field it is for."""
    if isinstance(kind, UnionType) and NoneType in typing.get_args(kind):
        if value is None or str(value).lower() == "none":
            return None
        (kind,) = (part for part in typing.get_args(kind) if part is not NoneType)
    if typing.get_origin(kind) is typing.Literal:
        choices = {str(choice): choice for choice in typing.get_args(kind)}
        if str(value) not in choices:
            raise BadRequest(f"{label} = {value!r}: choose from {', '.join(choices)}")
        return choices[str(value)]
    if kind not in (bool, int, float, str):
        return _literal(value)
    if isinstance(value, str) and kind is not str:
        words = {"true": True, "1": True, "false": False, "0": False}
        try:
            return words[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise BadRequest(f"{label} = {value!r} is not of type {kind.__name__}") from None
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise BadRequest(f"{label} = {value!r} is not of type {kind.__name__}")
    return value


def _literal(value: Any) -> Any:
    """A field of another type than the registered memories have: written as a Python literal, checked by its memory."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
