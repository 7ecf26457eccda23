"""Parts of the suite that stand outside of it: `module:Name`, and entry points of installed packages."""

import importlib
import importlib.metadata
import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

from engram.errors import UnknownName


@cache
def entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """What installed packages declare under `group`, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def load(kind: str, name: str) -> Any:
    """The object that `name`, of the form `module:Name`, stands for.

    The module may lie in the working directory. An error inside the module is not ours to hide and shows as it is.

    Args:
        kind: what messages call it, such as "memory".

    Raises:
        UnknownName: there is no such module, or nothing of this name in it.
    """
    module_name, _, attribute = name.partition(":")
    module = import_module(kind, name, module_name)
    if not hasattr(module, attribute):
        where = getattr(module, "__file__", None)  # another module of that name may come before the one that is meant
        found = f" (it is {where})" if where else ""
        raise UnknownName(f"unknown {kind} {name!r}: module {module_name!r} has no {attribute!r}{found}")
    return getattr(module, attribute)


def import_module(kind: str, name: str, module_name: str) -> ModuleType:
    """The module `module_name`, which `name` asks for, as `load` finds it. Raises UnknownName."""
    if not all(module_name.split(".")):
        raise UnknownName(f"unknown {kind} {name!r}: there is no module {module_name!r}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # a script has only its own folder there
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):  # what the module itself imports
            raise
        places = "in the working directory or where Python finds modules (PYTHONPATH)"
        raise UnknownName(f"unknown {kind} {name!r}: there is no module {module_name!r} {places}") from None
