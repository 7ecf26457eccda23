"""Which implementation of a kernel runs, and the checks that every scan makes."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from engram.errors import BadRequest

log = logging.getLogger(__name__)


def pick_backend(backend: str, available: Sequence[str], default: str) -> str:
    """Resolve the `backend` argument of a kernel.

    Args:
        backend: name of a backend, or "auto".
        available: names of the kernel's backends.
        default: the backend that "auto" stands for on this machine.

    Raises:
        BadRequest: unknown name; the message lists the known ones.
    """
    if backend == "auto":
        return default
    if backend not in available:
        raise BadRequest(f"unknown backend {backend!r}: choose from auto, {', '.join(available)}")
    return backend


def check_shapes(kernel: str, **arrays: tuple[jax.Array | None, tuple[int, ...]]) -> None:
    """Checks shapes, which compiled kernels trust: `name=(array or None, the shape it must have)`.

    Raises:
        ValueError: an array has another shape.
    """
    for name, (array, shape) in arrays.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{kernel}: {name} has shape {array.shape}, not {shape}")


def check_flags(of: str, flags: jax.Array | None, shape: tuple[int, ...], name: str = "reset") -> None:
    """Checks shape and dtype of flags: one of shape `[T, 1]` would be broadcast, and a float be taken as true.

    Raises:
        ValueError: another shape or a dtype other than bool; the message begins with `of` and calls them `name`.
    """
    check_shapes(of, **{name: (flags, shape)})
    if flags is not None and flags.dtype != bool:
        raise ValueError(f"{of}: {name} must be of dtype bool, not {flags.dtype}")


def compiled_backend() -> str:
    """Name of the backend that is compiled for the default device: "mosaic" on a GPU, "ffi" on anything else."""
    return "mosaic" if jax.default_backend() == "gpu" else "ffi"


def switched_off() -> bool:
    """Whether compiled kernels are switched off, by `ENGRAM_KERNELS=xla` in the environment; the default is "auto"."""
    wish = os.environ.get("ENGRAM_KERNELS", "auto")
    if wish not in ("auto", "xla"):
        log.warning("ENGRAM_KERNELS=%s is neither auto nor xla: taken as auto", wish)
    return wish == "xla"


def on_cpu_or_not(on_cpu: Callable, elsewhere: Callable, *inputs: Any) -> Any:
    """`on_cpu(*inputs)` where the program is compiled for a CPU, `elsewhere(*inputs)` on other platforms.

    A process that has nothing but CPUs does not trace `elsewhere`, which would take longer than `on_cpu`. Programs that
    it exports to other platforms run `on_cpu` too.
    """
    if jax.default_backend() == "cpu":
        return on_cpu(*inputs)
    return jax.lax.platform_dependent(*inputs, cpu=on_cpu, default=elsewhere)


def state_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Dtype in which a scan computes: float32 at least (bfloat16 decays round to 1), wider or complex as the inputs."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
