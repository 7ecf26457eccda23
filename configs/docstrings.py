"""Docstrings of the fields of dataclasses, which are the `--help` text and fill the tables of the documentation."""

import ast
import dataclasses
import inspect
import textwrap
from functools import cache
from typing import Any, cast


@cache
def of_fields(kind: Any) -> dict[str, str]:
    """The docstring of each field of a dataclass, in one line; a field without one has that of the class above."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cast(type, base)))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                texts[field.target.id] = " ".join(text.value.value.split())
    return {f.name: texts.get(f.name, "") for f in dataclasses.fields(kind)}


def words(value: Any) -> str:
    """A value as it is typed on the command line; nothing for empty text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
