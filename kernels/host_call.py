"""Python functions that compiled programs call, such as the step of an emulator.

On a CPU they are called by a number (`cpu/host_call.cc`), so that the program can be kept for other processes, and what
they raise can be had as it was raised. Elsewhere, and without a C++ compiler, JAX's own callbacks do the work; a
program with one of these is compiled anew by every process.
"""

import ctypes
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback

from engram.kernels.cpu import ffi

PyTree = Any
KERNEL = "host_call"
CLOSED = "a program called an emulator, or another Python function, that was closed"


class Arrays:
    """Structure, shapes and dtypes of a PyTree of arrays, and how to find them in memory."""

    def __init__(self, tree: PyTree):
        self.structs, self.structure = jax.tree.flatten(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        )
        self.bytes = [math.prod(struct.shape) * np.dtype(struct.dtype).itemsize for struct in self.structs]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and (self.structs, self.structure) == (other.structs, other.structure)

    def at(self, addresses: Any, sizes: Any) -> list[np.ndarray]:
        """The memory at these addresses. Raises RuntimeError where it has other sizes than these arrays."""
        if sizes[: len(self.bytes)] != self.bytes:
            raise RuntimeError(CLOSED)
        return [
            np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
            .view(struct.dtype)
            .reshape(struct.shape)
            if size
            else np.empty(struct.shape, struct.dtype)
            for address, size, struct in zip(addresses[: len(self.bytes)], self.bytes, self.structs, strict=True)
        ]


class HostCall:
    """`function(*arrays) -> arrays`, PyTrees of NumPy arrays, to be called from programs.

    Inputs are copies, which the function may keep. Functions have numbers, the lowest that is free, so that processes
    that make the same things in the same order build the same programs. A number is free again once its owner is
    closed or gone; programs of a closed one must not be called any more.

    Args:
        is_pure: whether a call has no effect, so that one may be left out whose results nobody uses.
    """

    def __init__(self, function: Callable[..., PyTree], is_pure: bool = False):
        self.function, self.is_pure = function, is_pure
        self.forms: list[tuple[Arrays, Arrays]] = []
        with _numbering:
            self.number = next(i for i in range(len(_functions) + 1) if i not in _functions)
            _functions[self.number] = weakref.ref(self)
        self.close = weakref.finalize(self, _functions.pop, self.number)

    def __call__(self, results: PyTree, *inputs: PyTree) -> PyTree:
        """Calls the function from the program that is being traced; `results` are `jax.ShapeDtypeStruct`s."""
        inputs = jax.tree.map(jax.numpy.asarray, inputs)
        if not ffi.is_there(KERNEL):
            return self._by_jax(results, *inputs)
        form = Arrays(inputs), Arrays(results)
        if form not in self.forms:
            self.forms.append(form)
        number, place = self.number, self.forms.index(form)

        def by_number(*inputs: PyTree) -> PyTree:
            call = jax.ffi.ffi_call(KERNEL, form[1].structs, has_side_effect=not self.is_pure)
            leaves = call(*jax.tree.leaves(inputs), function=np.int64(number), form=np.int64(place))
            return jax.tree.unflatten(form[1].structure, leaves)

        return ffi.on_cpu(by_number, lambda *inputs: self._by_jax(results, *inputs), *inputs)

    def _by_jax(self, results: PyTree, *inputs: PyTree) -> PyTree:
        if self.is_pure:
            return jax.pure_callback(self.on_host, results, *inputs)
        return io_callback(self.on_host, results, *inputs)

    def on_host(self, *inputs: PyTree) -> PyTree:
        """Calls the function now, and remembers what it raises."""
        try:
            return self.function(*jax.tree.map(np.asarray, inputs))
        except BaseException as error:
            _keep(error)
            if _words(error) == type(error).__name__:
                raise RuntimeError(_words(error)) from None
            raise


class errors_as_raised:
    """A context that raises what a `HostCall` raised within it, in place of JAX's report of it. Threads may have one
    each at a time. (It is no generator, which would not let a StopIteration pass.)"""

    def __enter__(self) -> "errors_as_raised":
        self.kept: list[BaseException] = []
        _contexts.append(self)
        return self

    def __exit__(self, kind: Any, report: BaseException | None, traceback: Any) -> None:
        _contexts.remove(self)
        if not isinstance(report, jax.errors.JaxRuntimeError):
            return
        # What another thread's program raised meanwhile is kept here too, but its words are not in this report.
        told = str(report)
        error = next((error for error in self.kept if _beginning(error) in told), None)
        if error is None:
            return
        # When the process ends, JAX asks how the last program with effects went, and would report this one again.
        nothing = HostCall(lambda x: x)
        jax.block_until_ready(jax.jit(lambda x: nothing(x, x))(np.int32(0)))
        raise error from None


_functions: dict[int, weakref.ref[HostCall]] = {}
_numbering = threading.Lock()
_contexts: list[errors_as_raised] = []
"""Those that are open, in any thread. Calls come in threads of XLA's, so each keeps the errors of all."""
MOST_KEPT = 64
"""Errors that a context keeps, the first ones: later ones may be many."""
_messages: deque[ctypes.Array[ctypes.c_char]] = deque(maxlen=64)
"""What C++ still has to read, from as many threads."""


def _keep(error: BaseException) -> None:
    for context in [*_contexts]:
        if len(context.kept) < MOST_KEPT:
            context.kept.append(error)


@ctypes.CFUNCTYPE(
    ctypes.c_void_p,
    *(ctypes.c_int64, ctypes.c_int64),
    *(ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)) * 2,
)
def _call(number: int, place: int, inputs: Any, input_bytes: Any, results: Any, result_bytes: Any) -> int | None:
    """What C++ calls: returns nothing, or the address of what went wrong."""
    try:
        owner = _functions[number]() if number in _functions else None
        if owner is None or place >= len(owner.forms):
            raise RuntimeError(CLOSED)
        given, wanted = owner.forms[place]
        arrays = [array.copy() for array in given.at(inputs, input_bytes)]
        places = wanted.at(results, result_bytes)
        made = owner.function(*jax.tree.unflatten(given.structure, arrays))
        for result, leaf in zip(places, wanted.structure.flatten_up_to(made), strict=True):
            if np.shape(leaf) != result.shape:
                raise ValueError(f"a result of shape {np.shape(leaf)} should have shape {result.shape}")
            result[...] = leaf
    except BaseException as error:
        _keep(error)
        message = ctypes.create_string_buffer(_words(error).encode())
        _messages.append(message)
        return ctypes.addressof(message)
    return None


def _words(error: BaseException) -> str:
    """What JAX reports of `error`: its type alone where the rest cannot be told or is no text, which C++ would not
    survive."""
    try:
        words = f"{type(error).__name__}: {error}"
        words.encode()
    except Exception:
        return type(error).__name__
    return words


def _beginning(error: BaseException) -> str:
    """What a report of `error` has at least: C++ ends a text at its first NUL, and reports may be cut."""
    return _words(error).partition("\0")[0][:200]


ffi.when_loaded[KERNEL] = lambda library: library.engram_call_python_by(_call)
