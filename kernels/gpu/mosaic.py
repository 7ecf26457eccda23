"""Loading and calling the GPU kernels (Pallas Mosaic GPU, for Hopper GPUs and newer).

Pallas is imported only where there is such a GPU. If anything goes wrong, kernels run on their "xla" backend and one
line in the log says why. `ENGRAM_KERNELS=xla` in the environment switches these kernels off, as it does those in C++.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from engram.kernels.backends import switched_off

OLDEST = 9.0
"""Compute capability of Hopper, the oldest GPU that has these kernels."""

log = logging.getLogger(__name__)


@cache
def available(name: str) -> bool:
    """Whether kernel `name` (the module `<name>_scan`) runs on the GPUs of this process; compiles it once to see.

    A failure is logged once; the answer is remembered.
    """
    if switched_off():
        return False
    try:
        devices = jax.local_devices(backend="gpu")
        oldest = min(float(device.compute_capability) for device in devices)  # AMD's are not numbers
        if oldest < OLDEST:
            raise RuntimeError(f"the GPU has compute capability {oldest}, these kernels need {OLDEST}")
        with jax.default_device(devices[0]):
            load(name).trial()
    except Exception as error:  # whatever an unstable interface may raise: there is always another backend
        reason = str(error).strip() or type(error).__name__
        log.warning("%s_scan runs without its GPU kernel: %s", name, reason.splitlines()[0])
        return False
    return True


def if_available(name: str, dtype: jnp.dtype, dtypes: tuple[Any, ...], *inputs: jax.Array) -> str:
    """Backend that serves "mosaic": "mosaic" if kernel `name` is available, computes in `dtype` (one of
    `dtypes`) and has something to do (no empty `inputs`), else "xla"."""
    return "mosaic" if dtype in dtypes and all(x.size for x in inputs) and available(name) else "xla"


def load(name: str) -> Any:
    """The module `<name>_scan`. It imports Pallas, which takes a while and has no use without a GPU."""
    return importlib.import_module(f"engram.kernels.gpu.{name}_scan")


def on_cuda(kernel: Callable, otherwise: Callable, *inputs: Any) -> Any:
    """`kernel(*inputs)` where the program is compiled for an NVIDIA GPU, `otherwise(*inputs)` elsewhere."""
    return jax.lax.platform_dependent(*inputs, cuda=kernel, default=otherwise)
