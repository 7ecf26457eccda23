"""The id of an environment in parts, and the checks of the options that it gives."""

import inspect
import json
import math
import types
import typing
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engram.errors import BadRequest, UnknownName, close_matches


class UnknownEnvironment(UnknownName):
    """There is no environment of this id, or it has no such option; the message offers close matches."""


@dataclass(frozen=True)
class EnvSpec:
    """What an environment id says. `str(spec)` is the id: `<family>/<name>?<option>=<value>&...`.

    A value is written as JSON (`?steps=50`, `?scaled=true`, `?time_limit=[50,200]`); text that could not be read as
    anything else needs no quotes (`?split=heldout`). `&` and `%` in a value are written `%26` and `%25`.
    """

    family: str
    """Name before the first slash; empty for `module:Name`, an environment in a module of the user's own."""
    name: str
    """Name within the family, or `module:Name`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options by name, in the order of the id."""

    @classmethod
    def parse(cls, env_id: str) -> "EnvSpec":
        """The parts of `env_id`. Raises UnknownEnvironment for a text that has none."""
        base, _, query = env_id.partition("?")
        family, slash, name = base.partition("/")
        if ":" in family:
            family, slash, name = "", ":", base
        if not slash or not name:
            raise UnknownEnvironment(f"unknown environment {env_id!r}: ids are <family>/<name> or <module>:<name>")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        return cls(family, name, {urllib.parse.unquote(key): _value(urllib.parse.unquote(v)) for key, _, v in pairs})

    def __str__(self) -> str:
        query = "&".join(f"{_escaped(key)}={_escaped(_text(key, value))}" for key, value in self.options.items())
        return (f"{self.family}/" if self.family else "") + self.name + (f"?{query}" if query else "")


_PYTHON_WORDS = {"True": True, "False": False}
"""Booleans may be spelled as in Python."""


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return _PYTHON_WORDS.get(text, text)


def _text(option: str, value: Any) -> str:
    if isinstance(value, str) and isinstance(_value(value), str) and not value.startswith('"'):
        return value
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=lambda x: x.tolist())
    except (TypeError, AttributeError):
        raise BadRequest(f"option {option!r} cannot be written into an id: {value!r}") from None


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("&", "%26")


def check_options(what: str, options: Mapping[str, Any], constructor: Callable) -> None:
    """Checks that `constructor(**options)` has the arguments that it needs and no others.

    Where an argument is annotated with plain types, the value must be of one of them.

    Args:
        what: what messages call the environment.

    Raises:
        UnknownEnvironment: `constructor` has no such argument.
        BadRequest: a wrong type, or an argument is missing.
    """
    signature = inspect.signature(constructor)
    known = {name: p for name, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option, value in options.items():
        if option in known:
            _check_option(f"{what}?{option}", value, known[option].annotation)
        elif not open_ended:
            hint = close_matches(option, known) if known else ": it takes none"
            raise UnknownEnvironment(f"{what} has no option {option!r}{hint}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if missing:
        raise BadRequest(f"{what} needs the option {' and '.join(missing)}")


_WORDS: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str", tuple: "list", types.NoneType: "null"}
"""What values of an id may be, and what messages call them."""


def _check_option(option: str, value: Any, annotation: Any) -> None:
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds = {typing.get_origin(part) or part for part in parts}
    if not kinds <= {*_WORDS}:
        return  # not annotated, or with what an id cannot spell: the constructor knows
    kind = type(value)
    fits = kind in kinds or (kind is int and float in kinds)
    if isinstance(value, int | float) and not isinstance(value, bool):
        fits &= math.isfinite(value) and abs(value) < 2**32
    if not fits:
        words = " or ".join(sorted(_WORDS[kind] for kind in kinds))
        raise BadRequest(f"{option} must be {words} (numbers finite and below 2^32), got {value!r}")
