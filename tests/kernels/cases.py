"""Every scan in one shape, so that each test is written once."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from engram.kernels import aaren_scan as aaren
from engram.kernels import kalman_scan as kalman
from engram.kernels import lti_scan as lti
from engram.kernels import marked_scan as marked
from engram.kernels import newton_scan as newton
from engram.kernels import slstm_scan as slstm
from engram.kernels.aaren_scan import aaren_scan, aaren_scan_step
from engram.kernels.delta_scan import delta_scan, delta_scan_step
from engram.kernels.gla_scan import gla_scan, gla_scan_step, signed_decay
from engram.kernels.gru_scan import gru_scan, gru_scan_step
from engram.kernels.linear_scan import join, linear_scan, linear_scan_planes, linear_scan_step, split
from engram.kernels.lstm_scan import lstm_scan, lstm_scan_step
from engram.kernels.lti_scan import lti_scan, lti_scan_step
from engram.kernels.marked_scan import marked_scan, marked_scan_step
from engram.kernels.newton_scan import CELLS, newton_scan, newton_scan_step
from engram.kernels.rnn_scan import rnn_scan, rnn_scan_step
from engram.kernels.selective_scan import selective_scan, selective_scan_step
from engram.kernels.slstm_scan import slstm_scan, slstm_scan_step
from engram.kernels.ttt_scan import Rule, State, ttt_scan, ttt_scan_step
from engram.kernels.window_scan import window_scan, window_scan_step

D, N = 5, 3
HEADS, KEYS, VALUES = 2, 3, 2


@dataclass(frozen=True)
class Case:
    """`inputs(key, T, B) -> weights, sequence, state0` (float32 or wider by `jax.enable_x64`, trees),
    `scan(weights, sequence, reset, state0, backend) -> y, last`, `step(weights, state, now, reset) -> state, y`,
    the backends beside "reference", how closely float32 agrees with itself where sums are taken in another order,
    the state that stands for none, and the context in which it is traced, gradients included."""

    inputs: Callable[..., Any]
    scan: Callable[..., Any]
    step: Callable[..., Any]
    backends: tuple[str, ...] = ("xla",)
    tolerance: float = 1e-6
    fresh: Callable[..., Any] = lambda state: jax.tree.map(jnp.zeros_like, state)
    where: Callable[[], AbstractContextManager[Any]] = nullcontext


def _normal(key, *shapes) -> Any:
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


def _rnn(dense, key, T, B):
    x, U, keep, gain, h0 = _normal(key, (T, B, D), (D, D) if dense else (D,), (D,), (D,), (B, D))
    return (U / 2, jax.nn.sigmoid(keep), gain), x, h0


def _rnn_case(dense, **options):
    return Case(
        partial(_rnn, dense),
        lambda w, x, reset, h0, backend="auto": rnn_scan(x, w[0], w[1], w[2], reset, h0, backend=backend, **options),
        lambda w, h, x, reset: rnn_scan_step(h, x, w[0], w[1], w[2], reset, **options),
    )


def _lstm(key, T, B):
    x, Wh, c0, h0 = _normal(key, (T, B, 4 * D), (D, 4 * D), (B, D), (B, D))
    return Wh, x, (c0, h0)


def _newton(cell, key, T, B):
    A, x, *state = _normal(key, (CELLS[cell].rows, D), (T, B, 3 * D), *CELLS[cell].parts * [(B, D)])
    return jnp.tanh(A), x, state[0] if len(state) == 1 else tuple(state)


def _newton_case(cell, where: Any = nullcontext):
    return Case(
        partial(_newton, cell),
        lambda A, x, reset, h0, backend="auto": newton_scan(x, A, reset, h0, cell=cell, backend=backend)[:2],
        lambda A, h, x, reset: newton_scan_step(h, x, A, reset, cell=cell),
        backends=("xla", "newton"),
        where=where,
    )


def _lti(matrices, key, T, B):
    A, x, h0 = _normal(key, (matrices, N, N), (T, B, 3, N), (B, 3, N))
    return A / 2, x, h0


def _lti_case(matrices, where: Any = nullcontext):
    return Case(
        partial(_lti, matrices),
        lambda A, x, reset, h0, backend="auto": lti_scan(A, x, reset, h0, backend=backend),
        lambda A, h, x, reset: lti_scan_step(h, A, x, reset),
        where=where,
    )


def _kalman(key, T, B):
    y, R, a, Q, mean, variance = _normal(key, (T, B, D), (T, B, D), (D,), (D,), (B, D), (B, D))
    variance = jax.nn.softplus(variance)
    return (jax.nn.sigmoid(a), jax.nn.softplus(Q)), (y, jax.nn.softplus(R)), kalman.Belief(mean, variance)


def _kalman_case(where: Any = nullcontext):
    return Case(
        _kalman,
        lambda w, s, reset, h0, backend="auto": kalman.kalman_scan(s[0], s[1], w[0], w[1], reset, h0, backend=backend),
        lambda w, h, s, reset: kalman.kalman_scan_step(h, s[0], s[1], w[0], w[1], reset),
        fresh=lambda state: kalman.initial_state(*state.mean.shape),
        where=where,
    )


def _slstm(key, T, B):
    x, Wh, c, n, m, h = _normal(key, (T, B, HEADS, 4 * D), (HEADS, D, 4 * D), *4 * [(B, HEADS, D)])
    return Wh, 2 * x, (c, 1 + jnp.abs(n), m, h)


def _gla(each_row, key, T, B):
    decays = (T, B, HEADS, KEYS) if each_row else (T, B, HEADS)
    q, k, v, g, h0 = _normal(
        key, (T, B, HEADS, KEYS), (T, B, HEADS, KEYS), (T, B, HEADS, VALUES), decays, (B, HEADS, KEYS, VALUES)
    )
    return (), (q, k, v, -jax.nn.softplus(4 * g)), h0


def _scan_gla(_, sequence, reset, h0, backend="auto"):
    q, k, v, log_decay = sequence
    return gla_scan(q, k, v, log_decay, reset, h0, chunk=4, backend=backend)


def _scan_signed_gla(_, sequence, reset, h0, backend="auto"):
    q, k, v, log_p = sequence
    log_decay, negative = signed_decay(log_p)
    return gla_scan(q, k, v, log_decay, reset, h0, negative=negative, chunk=4, backend=backend)


def _step_signed_gla(_, h, now, reset):
    q, k, v, log_p = now
    log_decay, negative = signed_decay(log_p)
    return gla_scan_step(h, q, k, v, log_decay, reset, negative)


def _delta(n, decays, key, T, B, read=False):
    """`decays`: axes of a decay beyond `[T, B]`, None for no decay."""
    updates = (T, B, HEADS) if n == 1 else (T, B, n, HEADS)
    q, k, p, v, beta, g, h0 = _normal(
        key,
        (T, B, HEADS, KEYS),
        *2 * [(*updates, KEYS)],
        (*updates, VALUES),
        updates,
        (T, B, *(decays or ())),
        (B, HEADS, KEYS, VALUES),
    )
    k, p = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (k, p))
    log_decay = None if decays is None else -jax.nn.softplus(4 * g)
    return (), (q, k, v, 2 * jax.nn.sigmoid(beta), log_decay, p if read else None), h0


def _scan_delta(n, _, sequence, reset, h0, backend="auto"):
    q, k, v, beta, log_decay, read = sequence
    return delta_scan(q, k, v, beta, log_decay, reset, h0, read=read, n_householder=n, chunk=4, backend=backend)


def _step_delta(_, h, now, reset):
    q, k, v, beta, log_decay, read = now
    return delta_scan_step(h, q, k, v, beta, log_decay, reset, read=read)


def _step(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, h, now, reset: step(h, *now, reset)


def side_by_side():
    """As on an accelerator: all chunks at once."""
    return mock.patch.object(jax, "default_backend", return_value="gpu")


def all_at_once(kernel):
    """With what the kernel does elsewhere than on a CPU."""
    return mock.patch.object(kernel, "on_cpu_or_not", lambda _, elsewhere, *inputs: elsewhere(*inputs))


def _aaren(key, T, B):
    s, v, m, u, w = _normal(key, (T, B, HEADS), (T, B, HEADS, VALUES), (B, HEADS), (B, HEADS), (B, HEADS, VALUES))
    return (), (3 * s, v), (m, jnp.exp(u), w)


def _scan_aaren(_, sequence, reset, h0, backend="auto"):
    s, v = sequence
    return aaren_scan(s, v, reset, h0, backend=backend)


WINDOW = 4


def _window(key, T, B):
    of_step, cache = (T, B, HEADS, VALUES), (B, WINDOW, HEADS, VALUES)
    q, k, v, bias, keys, values = _normal(key, of_step, of_step, of_step, (HEADS, WINDOW + 1), cache, cache)
    full = jnp.arange(B) % WINDOW * (WINDOW + 1) + WINDOW
    return bias, (2 * q, k, v), (keys, values, full.astype(keys.dtype))


def _place_as_number(run):
    """The place of the state is an integer, and every leaf of a case is a number that has a gradient."""

    def with_numbers(state, *arguments, **options):
        *cache, place = state
        dtype, place = place.dtype, jax.lax.stop_gradient(place).astype(jnp.int32)
        kind = jax.tree.structure(state)
        (*cache, place), y = run(jax.tree.unflatten(kind, [*cache, place]), *arguments, **options)
        return jax.tree.unflatten(kind, [*cache, place.astype(dtype)]), y

    return with_numbers


def _scan_window(bias, sequence, reset, h0, backend="auto"):
    q, k, v = sequence
    if h0 is None:
        return window_scan(q, k, v, bias, reset, backend=backend)

    def scan(state):
        y, last = window_scan(q, k, v, bias, reset, state, backend=backend)
        return last, y

    last, y = _place_as_number(scan)(h0)
    return y, last


def _step_window(bias, state, now, reset):
    q, k, v = now
    return _place_as_number(window_scan_step)(state, q, k, v, bias, reset)


def _marked(key, T, B):
    q, k, v, score, mark, bias, keys, values, scores = _normal(
        key,
        *3 * [(T, B, HEADS, VALUES)],
        *2 * [(T, B)],
        (HEADS, WINDOW + 1),
        *2 * [(B, WINDOW, HEADS, VALUES)],
        (B, WINDOW),
    )
    full = jnp.full(B, WINDOW, keys.dtype)
    return bias, (2 * q, k, v, -score, mark), marked.State(keys, values, scores, full)


def _marked_case(best=3):
    """Steps are marked where a number is large enough, about two of three."""

    def scan(bias, sequence, reset, h0, backend="auto"):
        q, k, v, score, mark = sequence

        def run(state):
            options: Any = {"score": score, "best": best, "backend": backend}
            y, last = marked_scan(q, k, v, bias, mark > -0.5, reset, state, **options)
            return last, y

        last, y = run(None) if h0 is None else _place_as_number(run)(h0)
        return y, last

    def step(bias, state, now, reset):
        q, k, v, score, mark = now

        def run(state):
            return marked_scan_step(state, q, k, v, bias, mark > -0.5, reset, score=score, best=best)

        return _place_as_number(run)(state)

    return Case(_marked, scan, step, tolerance=1e-5)


def _ttt_case(window: int, rule: Rule) -> Case:
    def draw(key, T, B):
        q, k, v, theta, eta, alpha, opens, gamma, *weights = _normal(
            key,
            *3 * [(T, B, HEADS, KEYS)],
            *3 * [(T, B, HEADS)],
            (T, B),
            (T, B, HEADS),
            *4 * [(HEADS, KEYS, D), (HEADS, D, KEYS)],
        )
        fresh, *state = zip(weights[::2], weights[1::2], strict=True)
        state = State(*(tuple(jnp.stack([(b + 1) / 2 * w for b in range(B)]) for w in leaf) for leaf in state))
        q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        theta, eta, alpha, gamma = (jax.nn.sigmoid(x) for x in (theta, eta, alpha, gamma))
        if window > 1:
            shape = (B, HEADS, window - 1)
            *past, old = _normal(jax.random.fold_in(key, 1), (*shape, KEYS), (*shape, KEYS), shape)
            state = state._replace(past=(*past, jax.nn.sigmoid(old)))
        return fresh, (q, k, v, theta, eta, alpha, opens, *([gamma] if window > 1 else [])), state

    def apart(sequence):
        q, k, v, theta, eta, alpha, opens, *gamma = sequence
        more = {"eta": eta, "alpha": alpha, "gamma": gamma[0] if gamma else None, "opens": opens > 0}
        return (q, k, v, theta), {**more, "rule": rule._replace(window=window)}

    def scan(fresh, sequence, reset, state, backend="auto"):
        args, more = apart(sequence)
        return ttt_scan(*args, fresh, reset, state, backend=backend, **more)

    def step(fresh, state, now, reset):
        args, more = apart(now)
        return ttt_scan_step(state, *args, fresh, reset, **more)

    return Case(draw, scan, step)


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
        FFI,
    ),
    "rnn, tanh": _rnn_case(True),
    "rnn, relu of units alone": _rnn_case(False, activation="relu"),
    "rnn, two rectified units": _rnn_case(True, activation="identity", rectified=2),
    "lstm": Case(
        _lstm,
        lambda w, x, reset, state, backend="auto": lstm_scan(x, w, reset, state, backend=backend),
        lambda w, state, x, r: lstm_scan_step(state, x, w, r),
        FFI,
    ),
    "kalman": _kalman_case(),
    "kalman, all at once": _kalman_case(partial(all_at_once, kalman)),
    "lti": _lti_case(3),
    "lti, one matrix": _lti_case(1),
    "lti, all at once": _lti_case(3, partial(all_at_once, lti)),
    "newton, gru": _newton_case("gru"),
    "newton, lstm": _newton_case("lstm"),
    "newton, gru, all at once": _newton_case("gru", partial(all_at_once, newton)),
    "newton, lstm, all at once": _newton_case("lstm", partial(all_at_once, newton)),
    "slstm": Case(
        _slstm,
        lambda w, x, reset, state, backend="auto": slstm_scan(x, w, reset, state, backend=backend),
        lambda w, state, x, r: slstm_scan_step(state, x, w, r),
        fresh=lambda state: slstm.initial_state(*state[0].shape),
    ),
    "gla, one decay": Case(partial(_gla, False), _scan_gla, _step(gla_scan_step), backends=FFI, tolerance=1e-5),
    "gla, decay of each row": Case(partial(_gla, True), _scan_gla, _step(gla_scan_step), backends=FFI, tolerance=1e-5),
    "gla, signed": Case(partial(_gla, True), _scan_signed_gla, _step_signed_gla, backends=FFI, tolerance=1e-5),
    "gla, side by side": Case(partial(_gla, True), _scan_gla, _step(gla_scan_step), tolerance=1e-5, where=side_by_side),
    "delta": Case(
        partial(_delta, 1, (HEADS, KEYS)), partial(_scan_delta, 1), _step_delta, backends=FFI, tolerance=1e-5
    ),
    "delta, without decay": Case(
        partial(_delta, 1, None), partial(_scan_delta, 1), _step_delta, backends=FFI, tolerance=1e-5
    ),
    "delta, two updates": Case(
        partial(_delta, 2, (HEADS,)), partial(_scan_delta, 2), _step_delta, backends=FFI, tolerance=1e-5
    ),
    "delta, read keys": Case(
        partial(_delta, 2, (HEADS, KEYS), read=True),
        partial(_scan_delta, 2),
        _step_delta,
        backends=FFI,
        tolerance=1e-5,
    ),
    "delta, side by side": Case(
        partial(_delta, 2, (HEADS,)), partial(_scan_delta, 2), _step_delta, tolerance=1e-5, where=side_by_side
    ),
    "ttt": _ttt_case(1, Rule(clip=1.0)),
    "ttt_window": _ttt_case(3, Rule(clip=1.0, retention="kl", mass=2.0)),
    "aaren": Case(
        _aaren,
        _scan_aaren,
        _step(aaren_scan_step),
        fresh=lambda state: aaren.initial_state(*state[2].shape),
    ),
    "aaren, side by side": Case(
        _aaren,
        _scan_aaren,
        _step(aaren_scan_step),
        where=side_by_side,
        fresh=lambda state: aaren.initial_state(*state[2].shape),
    ),
    "window": Case(_window, _scan_window, _step_window, FFI, tolerance=1e-5),
    "marked": _marked_case(),
}
