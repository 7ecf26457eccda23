"""Packages that come with an optional extra of this one: they are imported where they are used, and nowhere else."""

import importlib
from types import ModuleType

import jax

from engram.errors import MissingExtra


def needs(module: str, extra: str, what: str) -> ModuleType:
    """The module `module`, for `what` (as the message calls it).

    Raises:
        MissingExtra: the package is not installed; the message says that `extra` brings it.
    """
    package = module.partition(".")[0]
    try:
        # First imported inside a traced function, the arrays that such packages make would be tracers otherwise.
        with jax.ensure_compile_time_eval():
            importlib.import_module(package)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra.of(what, extra) from None
