"""C++ kernels for CPUs, called through XLA's foreign-function interface.

A kernel `name` is the file `name.cc` beside this one. It is compiled on first use with the C++ compiler of the machine,
for the very CPU it runs on, and kept in the user's cache folder (`$XDG_CACHE_HOME/engram`, by default
`~/.cache/engram`) under a hash of everything the result depends on. Without a compiler, or if anything
goes wrong, kernels run on their "xla" backend and one line in the log says why.

`ENGRAM_KERNELS=xla` in the environment switches these kernels off.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

COMPILERS = ("g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
SOURCES = Path(__file__).parent

log = logging.getLogger(__name__)


@cache
def load(name: str) -> bool:
    """Makes the targets of kernel `name` known to XLA; compiles them if this machine has not yet.

    The targets are the handlers that `name.cc` defines. A failure is logged once; the answer is remembered.

    Returns:
        whether they can be called.
    """
    if os.environ.get("ENGRAM_KERNELS", "auto") == "xla":
        return False
    try:
        library = ctypes.CDLL(str(_compiled(name)))
        for target in _targets(name):
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, subprocess.SubprocessError, AttributeError, RuntimeError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        log.warning("%s runs without its C++ kernel: %s", name, reason.strip().splitlines()[0])
        return False
    return True


def if_loaded(name: str, dtype: jnp.dtype) -> str:
    """The backend that answers to "ffi": "ffi" if kernel `name` can be called with arrays of `dtype`, else "xla"."""
    return "ffi" if dtype in (jnp.float32, jnp.complex64) and load(name) else "xla"


def on_cpu(kernel: Callable, otherwise: Callable, *inputs: Any) -> Any:
    """`kernel(*inputs)` where the program is compiled for a CPU, `otherwise(*inputs)` elsewhere."""
    return jax.lax.platform_dependent(*inputs, cpu=kernel, default=otherwise)


def call(target: str, results: Any, *inputs: jax.Array, **attributes: int) -> Any:
    """Calls a loaded target. Under `vmap` all inputs get the new leading axis."""
    return jax.ffi.ffi_call(target, results, vmap_method="broadcast_all")(*inputs, **attributes)


def like(*arrays: jax.Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Results of the shapes and dtypes of `arrays`."""
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)


def flags(reset: jax.Array | None, x: jax.Array) -> jax.Array:
    """`reset`, or the bool `(T, B)` that means the same as None for a sequence `x (T, B, D)`."""
    return jnp.zeros(x.shape[:2], bool) if reset is None else reset


def _targets(name: str) -> list[str]:
    """The handlers that the source defines."""
    marker = "XLA_FFI_DEFINE_HANDLER_SYMBOL("
    lines = (SOURCES / f"{name}.cc").read_text().splitlines()
    return [line.removeprefix(marker).partition(",")[0] for line in lines if line.startswith(marker)]


def _compiled(name: str) -> Path:
    """The path of the shared library, built if it is not there."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise OSError(f"no C++ compiler here (looked for {', '.join(COMPILERS)})")
    source = SOURCES / f"{name}.cc"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    headers = (SOURCES / "ffi.h").read_text(), metadata.version("jaxlib")
    digest = _hash("\0".join((source.read_text(), *headers, version, *FLAGS, _cpu())).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "engram"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = Path(tempfile.mkdtemp(prefix="engram-"))
    # The name also holds a hash of the content: loading a file that a full disk cut short would kill the process.
    for library in folder.glob(f"{name}-{digest}-*.so"):
        if library.stem.endswith(_hash(library.read_bytes())):
            return library
        library.unlink(missing_ok=True)
    log.info("compiling %s for this CPU, once", source.name)
    # Built aside and moved: another process that looks at the same time sees a whole file or none.
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        built = Path(aside) / "library.so"
        command = [compiler, *FLAGS, f"-isystem{jax.ffi.include_dir()}", "-o", str(built), str(source)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return built.replace(folder / f"{name}-{digest}-{_hash(built.read_bytes())}.so")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
