"""Every scan in one shape, so that each test is written once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.gru_scan import gru_scan, gru_scan_step
from kernels.linear_scan import join, linear_scan, linear_scan_planes, linear_scan_step, split
from kernels.lstm_scan import lstm_scan, lstm_scan_step
from kernels.selective_scan import selective_scan, selective_scan_step

D, N = 5, 3


@dataclass(frozen=True)
class Case:
    """`inputs(key, T, B) -> weights, sequence, state0` (float32 or wider by `jax.enable_x64`, trees),
    `scan(weights, sequence, reset, state0, backend) -> y, last`, `step(weights, state, now, reset) -> state, y`,
    the backends beside "reference"."""

    inputs: Callable[..., Any]
    scan: Callable[..., Any]
    step: Callable[..., Any]
    backends: tuple[str, ...] = ("xla",)


def _normal(key, *shapes):
    dtype = jnp.result_type(float)
    return [jax.random.normal(k, s, dtype) for k, s in zip(jax.random.split(key, len(shapes)), shapes, strict=True)]


def _constant_real(key, T, B):
    a, x, h0 = _normal(key, (D,), (T, B, D), (B, D))
    return jax.nn.sigmoid(a), x, h0


def _constant_complex(key, T, B):
    a, re, im, h_re, h_im = _normal(key, (2, D), (T, B, D), (T, B, D), (B, D), (B, D))
    return jax.nn.sigmoid(a[0]) * jnp.exp(1j * a[1]), re + 1j * im, h_re + 1j * h_im


def _planes(key, T, B):
    a, x, h0 = _constant_complex(key, T, B)
    return a, split(x), h0


def _step_planes(a, h, x, reset):
    h, y = linear_scan_step(h, a, join(x), reset)
    return h, split(y)


def _varying(key, T, B):
    a, x, h0 = _normal(key, (T, B, D), (T, B, D), (B, D))
    return (), (jax.nn.sigmoid(a), x), h0


def _selective(key, T, B):
    u, dt, A, b, c, skip, h0 = _normal(key, (T, B, D), (T, B, D), (N, D), (T, B, N), (T, B, N), (D,), (B, N, D))
    return (-jnp.exp(A), skip), (u, jax.nn.softplus(dt), b, c), h0


def _gru(key, T, B):
    x, Wh, bh, h0 = _normal(key, (T, B, 3 * D), (D, 3 * D), (D,), (B, D))
    return (Wh, bh), x, h0


def _lstm(key, T, B):
    x, Wh, c0, h0 = _normal(key, (T, B, 4 * D), (D, 4 * D), (B, D), (B, D))
    return Wh, x, (c0, h0)


def _scan_constant(a, x, reset, h0, backend="auto"):
    return linear_scan(a, x, reset, h0, backend=backend)


def _scan_selective(weights, sequence, reset, h0, backend="auto"):
    (A, skip), (u, dt, b, c) = weights, sequence
    return selective_scan(u, dt, A, b, c, skip, reset, h0, chunk=4, backend=backend)


def _step_selective(weights, h, now, reset):
    (A, skip), (u, dt, b, c) = weights, now
    return selective_scan_step(h, u, dt, A, b, c, skip, reset)


FFI = ("xla", "ffi")
CASES = {
    "linear, constant real": Case(_constant_real, _scan_constant, lambda a, h, x, r: linear_scan_step(h, a, x, r), FFI),
    "linear, constant complex": Case(
        _constant_complex, _scan_constant, lambda a, h, x, r: linear_scan_step(h, a, x, r), FFI
    ),
    "linear, planes": Case(
        _planes,
        lambda a, x, reset, h0, backend="auto": linear_scan_planes(a, x, reset, h0, backend=backend),
        _step_planes,
        FFI,
    ),
    "linear, varying": Case(
        _varying,
        lambda _, ax, reset, h0, backend="auto": linear_scan(ax[0], ax[1], reset, h0, backend=backend),
        lambda _, h, ax, r: linear_scan_step(h, ax[0], ax[1], r),
        FFI,
    ),
    "selective": Case(_selective, _scan_selective, _step_selective, FFI),
    "gru": Case(
        _gru,
        lambda w, x, reset, h0, backend="auto": gru_scan(x, w[0], w[1], reset, h0, backend=backend),
        lambda w, h, x, r: gru_scan_step(h, x, w[0], w[1], r),
    ),
    "lstm": Case(
        _lstm,
        lambda w, x, reset, state, backend="auto": lstm_scan(x, w, reset, state, backend=backend),
        lambda w, state, x, r: lstm_scan_step(state, x, w, r),
    ),
}
