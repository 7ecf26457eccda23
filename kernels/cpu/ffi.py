"""C++ kernels for CPUs, called through XLA's foreign-function interface.

A kernel `name` is the file `name.cc` beside this one. It is compiled on first use, or by `python -m
engram.kernels.cpu`, with the C++ compiler of the machine,
for this very CPU, and kept in the user's cache folder (`engram.kernels.cache`) under a hash of everything the result
depends on. Without a compiler, or if anything goes wrong, kernels run on their "xla" backend and one line in the log
says why.

`ENGRAM_KERNELS=xla` in the environment switches these kernels off, and those for GPUs too.
"""

import ctypes
import hashlib
import logging
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from engram.kernels.backends import switched_off
from engram.kernels.cache import is_own_file, processor, user_folder

COMPILERS = ("g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
BUILD_SECONDS = 120
SOURCES = Path(__file__).parent

log = logging.getLogger(__name__)


when_loaded: dict[str, Callable[[ctypes.CDLL], Any]] = {}
"""What to do with the library of a kernel before it is used, by name."""

_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""One thread at a time loads a kernel, by name: where the cache cannot be used each would build a library of its own,
and XLA takes one."""


def load(name: str) -> bool:
    """Makes the targets of kernel `name` known to XLA; compiles them if this machine has not yet.

    The targets are the handlers that `name.cc` defines. A failure is logged once; the answer is remembered.

    Returns:
        whether they can be called.
    """
    with _turns[name]:
        return _load(name)


@cache
def _load(name: str) -> bool:
    if switched_off():
        return False
    try:
        library = _library(name)
        if name in when_loaded:
            when_loaded[name](library)
        for target in _targets(name):
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, subprocess.SubprocessError, AttributeError, RuntimeError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip() or type(error).__name__
        log.warning("%s runs without its C++ kernel: %s", name, reason.splitlines()[0])
        return False
    return True


_tracing = threading.local()


@contextmanager
def built_beside() -> Iterator[Callable[[], bool]]:
    """Builds the kernels that are asked for within it in threads, so that tracing a program does not wait for them.

    Yields:
        a function that waits for these kernels and says whether all can be called. If not, what was traced with them
        has to be traced again, outside.
    """
    promised: dict[str, Future[bool]] = {}
    _tracing.promised = promised
    try:
        yield lambda: sum(not kernel.result() for kernel in list(promised.values())) == 0  # waits for every one
    finally:
        _tracing.promised = None


def if_loaded(name: str, dtype: jnp.dtype, dtypes: tuple[Any, ...]) -> str:
    """Backend that serves "ffi": "ffi" if `dtype` is one of `dtypes` and kernel `name` loads, else "xla"."""
    return "ffi" if dtype in dtypes and is_there(name) else "xla"


def is_there(name: str) -> bool:
    """Whether kernel `name` loads, or within `built_beside` whether it is expected to."""
    if switched_off():
        return False
    promised = getattr(_tracing, "promised", None)
    if promised is None:
        return load(name)
    if name not in promised:
        promised[name] = kernel = Future()

        def build() -> None:
            try:
                kernel.set_result(load(name))
            except BaseException as error:  # raised again where the kernel is waited for
                kernel.set_exception(error)

        threading.Thread(target=build, daemon=True).start()
    return True


def on_cpu(kernel: Callable, otherwise: Callable, *inputs: Any) -> Any:
    """`kernel(*inputs)` where the program is compiled for a CPU, `otherwise(*inputs)` elsewhere."""
    return jax.lax.platform_dependent(*inputs, cpu=kernel, default=otherwise)


def call(
    target: str, results: Any, *inputs: jax.Array, in_place: dict[int, int] | None = None, **attributes: int
) -> Any:
    """Calls a loaded target. Under `vmap` all inputs get the new leading axis.

    Args:
        in_place: inputs whose buffers results take, by their numbers. XLA copies an input first that is needed still.
    """
    function = jax.ffi.ffi_call(target, results, vmap_method="broadcast_all", input_output_aliases=in_place)
    return function(*inputs, **attributes)


def like(*arrays: jax.Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Results of the shapes and dtypes of `arrays`."""
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)


def flags(reset: jax.Array | None, x: jax.Array) -> jax.Array:
    """`reset`, or where it is None the bool `[T, B]` that means the same for a sequence `x[T, B, D]`."""
    return jnp.zeros(x.shape[:2], bool) if reset is None else reset


def _targets(name: str) -> list[str]:
    """The handlers that the source defines."""
    marker = "XLA_FFI_DEFINE_HANDLER_SYMBOL("
    lines = (SOURCES / f"{name}.cc").read_text().splitlines()
    return [line.removeprefix(marker).partition(",")[0] for line in lines if line.startswith(marker)]


def _library(name: str) -> ctypes.CDLL:
    """The shared library of kernel `name` in the user's cache folder, or for this process alone in a temporary one
    where that cannot be used: it is others', full, or mounted so that nothing in it may run."""
    cached = user_folder()
    if cached is not None:
        try:
            return ctypes.CDLL(str(_compiled(name, cached)))
        except OSError as error:
            log.info("%s is built for this process alone: %s", name, error)
    with tempfile.TemporaryDirectory(prefix="engram-") as moment:  # a library stays loaded when its file is gone
        return ctypes.CDLL(str(_compiled(name, Path(moment))))


def _compiled(name: str, folder: Path) -> Path:
    """The path of the shared library in `folder`, built if it is not there."""
    failure: Exception = OSError(f"no C++ compiler here (looked for {', '.join(COMPILERS)})")
    for compiler in filter(None, map(shutil.which, COMPILERS)):
        try:
            return _built_by(compiler, name, folder)
        except (OSError, subprocess.SubprocessError) as error:  # the former also where it cannot be executed
            failure = error
    raise failure


def _built_by(compiler: str, name: str, folder: Path) -> Path:
    source = SOURCES / f"{name}.cc"
    version = _run(compiler, "--version")
    headers = (SOURCES / "ffi.h").read_text(), metadata.version("jaxlib")
    digest = _hash("\0".join((source.read_text(), *headers, version, *FLAGS, processor())).encode())
    # The name also holds a hash of the content: loading a file that a full disk cut short would kill the process.
    for library in folder.glob(f"{name}-{digest}-*.so"):
        if is_own_file(library) and library.stem.endswith(_hash(library.read_bytes())):
            return library
        library.unlink(missing_ok=True)
    log.info("compiling %s for this CPU, once", source.name)
    # Built aside and moved: another process that looks at the same time sees a whole file or none.
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        built = Path(aside) / "library.so"
        _run(compiler, *FLAGS, f"-isystem{jax.ffi.include_dir()}", "-o", str(built), str(source))
        built.chmod(0o700)
        return built.replace(folder / f"{name}-{digest}-{_hash(built.read_bytes())}.so")


def _run(*command: str) -> str:
    """Output of a command that succeeds within `BUILD_SECONDS`."""
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=BUILD_SECONDS
    ).stdout


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
