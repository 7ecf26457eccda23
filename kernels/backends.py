"""Which implementation of a kernel runs, and the two operations every scan with resets shares."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def pick_backend(backend: str, available: Sequence[str], default: str) -> str:
    """Resolve the `backend` argument of a kernel.

    Args:
        backend: a name in `available`, or "auto" for `default`.
        available: the kernel's backends.
        default: what "auto" means on this machine.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if backend == "auto":
        return default
    if backend not in available:
        raise ValueError(f"unknown backend {backend!r}: choose from auto, {', '.join(available)}")
    return backend


def clear(reset: jax.Array | None, h: jax.Array) -> jax.Array:
    """Zeros where `reset[...]`, else `h[..., features]`. A select: NaN and inf in `h` cannot leak, as by `0 * h`."""
    if reset is None:
        return h
    return jnp.where(reset.reshape(reset.shape + (1,) * (h.ndim - reset.ndim)), jnp.zeros_like(h), h)


def state_dtype(*arrays: jax.Array) -> jnp.dtype:
    """The dtype a scan computes in: float32 at least (bfloat16 decays round to 1), wider or complex if an input is."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
