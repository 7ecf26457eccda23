"""What the compiled programs of an agent take as arguments: its data, and numbers such as its learning rate.

A number that is an argument is no constant of the program. So another value needs no other program: one compilation
serves a whole sweep. Classes of agents and settings name such attributes in `ARGUMENTS`; in the program the attribute
is a traced scalar, so no Python condition may depend on it.
"""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from engram.training.types import PyTree

Owner = TypeVar("Owner")


def arguments_of(owner: Any) -> dict[str, PyTree]:
    """The arguments of an agent or of settings, by the names of its attributes; those of owners within it are nested.

    Numbers stay Python's: what they meet decides the dtype of a result, as with a constant."""
    return {
        name: arguments_of(value) if hasattr(value, "ARGUMENTS") else value
        for name in getattr(owner, "ARGUMENTS", ())
        for value in [getattr(owner, name)]
    }


def with_arguments(owner: Owner, arguments: Mapping[str, PyTree]) -> Owner:
    """`owner` with `arguments` in place of its own, which may be traced."""
    if not arguments:
        return owner
    given = copy.copy(owner)  # `dataclasses.replace` would check values, which a traced number does not have
    for name, value in arguments.items():
        own = getattr(owner, name)
        object.__setattr__(given, name, with_arguments(own, value) if hasattr(own, "ARGUMENTS") else value)
    return given
