"""Memories that train as they act, with resets: the state is the weights of a small network, and each step descends.

With `M', A', S' = select(reset[t], fresh, (M, A, S)[t-1])`, per head, and a loss of the network F's answer to a key:
    A = M' where `opens[t]`, else A'              g = clip(gradient by A of loss(F(A; k) - v))
    S = eta S' - theta (1 - eta) g                M = (1 - alpha) M' + S                y[t] = F(M; q)

F is a matrix, `F(M; k) = k M`, or `F(M; k) = k + gelu(k M1) M2`. TTT (Sun et al. 2024) has no momentum S and no decay
alpha, and takes the gradients of a chunk of steps at the weights A before it. Titans (Behrouz et al. 2025, eq. 13 and
14) have both; there S loses `theta g` and nothing is clipped, with which weights diverge for large theta. With F a
matrix, unit keys and an anchor at each step this is the delta rule (`delta_scan`).

Two more options. The Omega rule (ATLAS, Behrouz et al. 2025): the loss is the sum over the last `window` pairs of the
episode, each times its own gamma. Retention "kl" (Memora of Miras, Behrouz et al. 2025): M are logarithms, and the
weights are mass times softmax(M) over each row, so that a step multiplies them by exp(-theta g) and they sum to mass.

States hold M and A less the fresh weights, so that a fresh state is zeros. Steps are sequential; the backward pass
computes `SEGMENT` of them at a time again, as the states of all steps would fill the memory.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.chunks import in_segments
from engram.kernels.rows import clear, select_rows

BACKENDS = ("reference", "xla")
SEGMENT = 32
"""Steps that the backward pass of "xla" computes again at a time."""
LOSSES = ("l2", "huber", "l3")
RETENTIONS = ("l2", "kl")

Weights = tuple[jax.Array, ...]


class Rule(NamedTuple):
    """How a step descends."""

    loss: Literal["l2", "huber", "l3"] = "l2"
    """Loss of the error e, summed over its entries: e^2 / 2, Huber's, or |e|^3 / 3."""
    delta: float = 1.0
    """Error beyond which Huber's loss is linear."""
    clip: float = 0.0
    """Largest norm of a gradient, over all weights of a head; 0 for any."""
    window: int = 1
    """Pairs of key and value, the current one among them, whose losses a step descends."""
    retention: Literal["l2", "kl"] = "l2"
    """What M are: weights, or logarithms of weights that are positive and sum to `mass` in each row."""
    mass: float = 1.0
    """Sum of a row's weights with retention "kl"."""


PLAIN = Rule()


class State(NamedTuple):
    """Weights `[B, H, ...]` less the fresh ones."""

    M: Weights
    """The weights."""
    A: Weights | None
    """The weights at which gradients are taken; None where these are M."""
    S: Weights | None
    """The momentum; None without."""
    past: tuple[jax.Array, ...] | None = None
    """Keys `[B, H, window - 1, D]`, values and gammas `[B, H, window - 1]` of the steps before, the oldest first; None
    where the window is one step."""


def initial_state(fresh: Weights, batch: int, anchored: bool, momentum: bool, window: int = 1) -> State:
    """The state before anything was seen, for fresh weights `[H, ...]`."""
    zeros = tuple(jnp.zeros((batch, *w.shape), w.dtype) for w in fresh)
    past = None
    if window > 1:
        (H, D, _), V = fresh[0].shape, fresh[-1].shape[-1]
        past = tuple(jnp.zeros((batch, H, window - 1, *size), fresh[0].dtype) for size in ((D,), (V,), ()))
    return State(zeros, zeros if anchored else None, zeros if momentum else None, past)


def ttt_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    theta: jax.Array,
    fresh: Weights,
    reset: jax.Array | None = None,
    state0: State | None = None,
    *,
    eta: jax.Array | None = None,
    alpha: jax.Array | None = None,
    gamma: jax.Array | None = None,
    opens: jax.Array | None = None,
    rule: Rule = PLAIN,
    backend: str = "auto",
) -> tuple[jax.Array, State]:
    """Scan over a sequence.

    Args:
        q, k: queries and keys `[T, B, H, D]`; of length 1 for stable weights.
        v: values `[T, B, H, V]`.
        theta: step sizes `[T, B, H]`.
        fresh: weights that an episode begins with, `([H, D, V],)` or `([H, D, F], [H, F, V])`; with the latter V is at
            most D, and what is added to the network's output is the first V numbers of a key.
        reset: bool `[T, B]`, True where step t opens an episode; None for no reset.
        state0: state before the sequence; None for `initial_state`.
        eta: momentum `[T, B, H]`; None for none.
        alpha: decay `[T, B, H]`; None for none.
        gamma: weight of each step's pair in the loss `[T, B, H]`; None where the window is one step.
        opens: bool `[T, B]`, True where step t opens a chunk, at whose weights its gradients are taken; None for each.
        rule: how a step descends.
        backend: "reference" (plain scan, plain autodiff), "xla" (segments of steps that are computed again in the
            backward pass) or "auto".

    Returns:
        `y[T, B, H, V]` in the dtype of `v`, and the last state in float32 or wider.

    Raises:
        BadRequest: unknown backend or loss.
        ValueError: shapes that do not fit.
    """
    (T, B, H, D), V = k.shape, v.shape[-1]
    backend = pick_backend(backend, BACKENDS, default="xla")
    if rule.loss not in LOSSES:
        raise BadRequest(f"unknown loss {rule.loss!r}: choose from {', '.join(LOSSES)}")
    if rule.retention not in RETENTIONS:
        raise BadRequest(f"unknown retention {rule.retention!r}: choose from {', '.join(RETENTIONS)}")
    if (rule.window > 1) != (gamma is not None):
        raise ValueError("ttt_scan: a window of several steps and gamma come together")
    check_shapes("ttt_scan", q=(q, k.shape), v=(v, (T, B, H, V if len(fresh) == 1 else min(V, D))))
    rates = {"theta": theta, "eta": eta, "alpha": alpha, "gamma": gamma}
    check_shapes("ttt_scan", **{name: (x, (T, B, H)) for name, x in rates.items()})
    check_shapes("ttt_scan", **_shapes(fresh, H, D, V))
    check_flags("ttt_scan", reset, (T, B))
    check_flags("ttt_scan", opens, (T, B), "opens")
    dtype = state_dtype(q, k, v, theta, *fresh)
    wide: Any = partial(jax.tree.map, lambda x: x.astype(dtype))
    fresh = wide(fresh)
    if state0 is None:
        state0 = initial_state(fresh, B, opens is not None, eta is not None, rule.window)
    check_shapes("ttt_scan", **_state_shapes(state0, fresh, B, opens, eta, rule.window))
    sequence = (*wide((q, k, v, theta, eta, alpha, gamma)), opens, reset)
    scan = _scan if backend == "reference" or not q.size else _scan_xla
    last, y = scan(fresh, rule, wide(state0), sequence)
    return y.astype(v.dtype), last


def ttt_scan_step(
    state: State,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    theta: jax.Array,
    fresh: Weights,
    reset: jax.Array | None = None,
    *,
    eta: jax.Array | None = None,
    alpha: jax.Array | None = None,
    gamma: jax.Array | None = None,
    opens: jax.Array | None = None,
    rule: Rule = PLAIN,
) -> tuple[State, jax.Array]:
    """One step of `ttt_scan`: its arguments without the axis of time -> state, output `[B, H, V]`."""
    check_shapes("ttt_scan_step", **_state_shapes(state, fresh, len(q), opens, eta, rule.window))
    dtype = state_dtype(q, k, v, theta, *fresh)
    wide: Any = partial(jax.tree.map, lambda x: x.astype(dtype))
    now = (*wide((q, k, v, theta, eta, alpha, gamma)), opens, reset)
    state, y = _tick(wide(fresh), rule, wide(state), now)
    return state, y.astype(v.dtype)


def _shapes(fresh, H, D, V):
    if len(fresh) == 1:
        return {"fresh_M": (fresh[0], (H, D, V))}
    hidden = fresh[0].shape[-1]
    return {"fresh_M1": (fresh[0], (H, D, hidden)), "fresh_M2": (fresh[1], (H, hidden, V))}


def _state_shapes(state, fresh, B, opens, eta, window):
    wanted = {"M": True, "A": opens is not None, "S": eta is not None, "past": window > 1}
    for name, there in wanted.items():
        if (getattr(state, name) is not None) != there:
            raise ValueError(f"ttt_scan: the state has {name} where it is not used, or lacks it where it is")
    leaves = [(f"{name}{i}", x) for name in "MAS" for i, x in enumerate(getattr(state, name) or ())]
    shapes = {name: (x, (B, *fresh[int(name[1])].shape)) for name, x in leaves}
    if state.past is not None:
        (H, D, _), V = fresh[0].shape, fresh[-1].shape[-1]
        sizes = zip(("keys", "values", "gammas"), state.past, ((D,), (V,), ()), strict=True)
        shapes |= {f"past_{name}": (x, (B, H, window - 1, *size)) for name, x, size in sizes}
    return shapes


def _product(x, W):
    """`x[B, H, (window,) n]`, `W[B, H, n, m]` -> `[B, H, (window,) m]`."""
    return (x[..., None] * (W if x.ndim < W.ndim else W[..., None, :, :])).sum(-2)


def answer(M: Weights, k: jax.Array) -> jax.Array:
    """F(M; k): weights `[B, H, ...]`, keys `[B, H, (window,) D]` -> `[B, H, (window,) V]`."""
    if len(M) == 1:
        return _product(k, M[0])
    return k[..., : M[1].shape[-1]] + _product(jax.nn.gelu(_product(k, M[0])), M[1])


def weights(rule: Rule, fresh: Weights, M: Weights) -> Weights:
    """The weights of F for M `[B, H, ...]` less the fresh ones."""
    M = tuple(w + m for w, m in zip(fresh, M, strict=True))
    return M if rule.retention == "l2" else tuple(rule.mass * jax.nn.softmax(m, -1) for m in M)


def gradient(rule: Rule, M: Weights, k: jax.Array, v: jax.Array, gamma: jax.Array | None = None) -> Weights:
    """Gradient of the loss by the weights `[B, H, ...]` of each row and head, clipped; of several pairs
    `[B, H, window, ...]` with gamma `[B, H, window]`."""

    def loss(M):
        e = answer(M, k) - v
        if rule.loss == "l2":
            each = e**2 / 2
        elif rule.loss == "huber":
            each = jnp.where(jnp.abs(e) <= rule.delta, e**2 / 2, rule.delta * (jnp.abs(e) - rule.delta / 2))
        else:
            each = jnp.abs(e) * e**2 / 3
        if gamma is not None:
            each = gamma[..., None] * each
        return each.sum()  # rows and heads have weights of their own

    g = jax.grad(loss)(M)
    if not rule.clip:
        return g
    squares = sum((x**2).sum((-2, -1), keepdims=True) for x in g)
    scale = rule.clip * lax.rsqrt(jnp.maximum(squares, rule.clip**2))
    return tuple(scale * x for x in g)


def _tick(fresh, rule, state, now):
    q, k, v, theta, eta, alpha, gamma, opens, reset = now
    M, A, S, past = jax.tree.map(partial(clear, reset), state)
    if A is not None:
        A = select_rows(opens, M, A)
    pairs = k, v, gamma
    if past is not None:  # gammas from before the episode are 0
        pairs = tuple(jnp.concatenate([old, new[:, :, None]], 2) for old, new in zip(past, pairs, strict=True))
        past = tuple(part[:, :, 1:] for part in pairs)
    theta = theta[..., None, None]
    g = gradient(rule, weights(rule, fresh, M if A is None else A), *pairs)
    if S is None:
        moved = tuple(-theta * x for x in g)
    else:
        eta = eta[..., None, None]
        S = moved = tuple(eta * s - theta * (1 - eta) * x for s, x in zip(S, g, strict=True))
    if alpha is not None:  # of the weights, not of what they differ by
        alpha = alpha[..., None, None]
        M = tuple((1 - alpha) * m - alpha * w for w, m in zip(fresh, M, strict=True))
    M = tuple(m + s for m, s in zip(M, moved, strict=True))
    return State(M, A, S, past), answer(weights(rule, fresh, M), q)


def _scan(fresh, rule, state0, sequence):
    return lax.scan(partial(_tick, fresh, rule), state0, sequence)


def _scan_xla(fresh, rule, state0, sequence):
    return in_segments(partial(_scan, fresh, rule), state0, sequence, SEGMENT)
