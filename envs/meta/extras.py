"""Packages that come with an optional extra of this one: most users need none of them."""

import importlib
from types import ModuleType

import jax

from engram.errors import BadRequest


def extra(module: str, name: str, needed_by: str) -> ModuleType:
    """The module `module`, which the extra `name` installs. Raises BadRequest that says how, where it is missing."""
    package = module.partition(".")[0]
    try:
        # First imported inside a traced function, the arrays that such packages make would be tracers otherwise.
        with jax.ensure_compile_time_eval():
            importlib.import_module(package)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise BadRequest(f'{needed_by} needs the package {package}: pip install -e ".[{name}]"') from None
