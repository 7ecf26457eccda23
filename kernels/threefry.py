"""JAX's random numbers, the same bits, from a C++ kernel on CPUs.

JAX lowers every use of a key there to a loop of some eight small kernels, and a training program uses a dozen or two: a
fourth or more of what XLA compiles. A call of C++ needs no compilation.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
from jax.extend.core.primitives import threefry2x32_p
from jax.interpreters import mlir

from engram.kernels.cpu import ffi

KERNEL = "threefry2x32"
TARGET = "engram_threefry2x32"

_thread = threading.local()


@contextmanager
def in_cpp() -> Iterator[None]:
    """Has the programs that this thread lowers within it draw their random numbers in C++, where they are for a CPU.

    Other programs of the process stay as they are: those with our call in them cannot be exported.
    """
    before = _is_wanted()
    _thread.wanted = _can_be_chosen() and ffi.is_there(KERNEL)
    try:
        yield
    finally:
        _thread.wanted = before


def _is_wanted() -> bool:
    return getattr(_thread, "wanted", False)


@cache
def _can_be_chosen() -> bool:
    """Puts a rule that chooses in front of JAX's own for this primitive, once; whether this JAX lets us."""
    jaxs = _rule_for_cpus()
    if jaxs is None:
        return False
    ours = jax.ffi.ffi_lowering(TARGET)

    def rule(context: Any, *inputs: Any) -> Any:
        return (ours if _is_wanted() else jaxs)(context, *inputs)

    mlir.register_lowering(threefry2x32_p, rule, platform="cpu")
    return True


def _rule_for_cpus() -> Callable | None:
    """JAX's own rule, which no public name gives."""
    try:
        from jax._src.interpreters.mlir import _platform_specific_lowerings

        return _platform_specific_lowerings["cpu"][threefry2x32_p].rule
    except (ImportError, KeyError, AttributeError):
        return None
