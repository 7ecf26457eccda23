"""Restarted Bayesian online change-point detection of multinomial streams (Alami et al. 2023, arXiv 2304.00232).

A forecaster that starts at sample s predicts with the Laplace rule from the samples since s. Its evidence is compared
with that of the base forecaster, which starts at the last restart r: with L the cumulative log losses,

    log w_s(t) = log eta - L_{r:s-1} - L_{s:t},     log w_r(t) = -L_{r:t},     alarm if max_{r<s<=t} log w_s > log w_r.

Detectors keep only the differences log w_s(t) - log w_r(t) without eta, which stay small and thus accurate in float32.
Positions are counted from the restart: j = s - r samples lie before s. After an alarm a detector starts afresh.

`Exact` keeps a forecaster for every sample since the restart, `Grid` one for each of O(log) ages. Samples are symbols
0 .. O - 1. All arrays belong to one detector (`vmap` for more); a bank holds many detectors, of which a step updates
one.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.errors import BadRequest

EtaKind = Literal["paper", "squared", "certified"]
Forecasters = Literal["exact", "grid"]
ETAS: tuple[EtaKind, ...] = get_args(EtaKind)
FORECASTERS: tuple[Forecasters, ...] = get_args(Forecasters)
AGES = np.unique(np.floor(1.25 ** np.arange(93)))
"""Bounds of the classes of ages of a grid, floor(1.25^i), up to 8e8."""


class Eta(NamedTuple):
    """Prior of a change: eta(N, j) after N samples, for a change that has j samples before it.

    `paper`: 1 / N. `squared`: 1 / N^2. `certified`: delta / (C(N+O-1, O-1) j (j+1)), for which the probability that a
    stationary stream ever raises an alarm is at most delta. For every law theta of the samples,
    exp(-L_{r:s-1} - L_{s:t}) / P_theta is a nonnegative martingale in t of mean one, the base is at least
    P_theta / C(N+O-1, O-1), and by Ville's inequality the martingale of s exceeds j (j+1) / delta with probability at
    most delta / (j (j+1)), which sums to delta over j.
    """

    kind: EtaKind
    delta: float

    def log(self, total: jax.Array, before: jax.Array, symbols: int) -> jax.Array:
        """log eta(total, before); broadcasts. Meaningless where `before` < 1."""
        if self.kind == "paper":
            return -jnp.log(total)
        if self.kind == "squared":
            return -2 * jnp.log(total)
        # log C(N + O - 1, O - 1) = sum over i < O of log((N + i) / i)
        choose = sum(jnp.log((total + i) / i) for i in range(1, symbols))
        before = jnp.maximum(before, 1)
        return math.log(self.delta) - choose - jnp.log(before * (before + 1))


def make_eta(kind: EtaKind, delta: float) -> Eta:
    """Raises BadRequest for an unknown kind, or for a delta outside (0, 1) where it is used."""
    if kind not in ETAS:
        raise BadRequest(f"eta must be one of {', '.join(ETAS)}, got {kind!r}")
    if kind == "certified" and not 0 < delta < 1:
        raise BadRequest(f"eta_delta must lie in (0, 1), got {delta}")
    return Eta(kind, delta)


class Verdict(NamedTuple):
    """Result of an update."""

    alarm: jax.Array
    """bool: the evidence for a change exceeds that for none."""
    excess: jax.Array
    """max_s log w_s - log w_r; -inf while there is no candidate."""


def advance(
    excess: jax.Array, age: jax.Array, seen: jax.Array, n: jax.Array, ever: jax.Array, symbols: int
) -> jax.Array:
    """log w_s - log w_r without eta after one more sample x, for forecasters of these ages.

    Args:
        excess: the same before the sample, 0 for a forecaster that starts with it.
        age: samples that a forecaster has seen.
        seen: how many of them were x.
        n, ever: the same for the base.
    """
    base = (ever + 1) / (n + symbols)
    return excess + jnp.log((seen + 1) / ((age + symbols) * base))


# -------------------------------------------------------------------------------------------------- every sample


class Exact(struct.PyTreeNode):
    """Forecasters for each of the first `cap` samples since the restart."""

    counts: Any
    """`[O]`: how often each symbol came since the restart, a float; None in a bank."""
    excess: jax.Array
    """`[cap]`: log w_s - log w_r by j, without eta; only entries j < N mean anything."""
    before: jax.Array
    """`[O, cap]`: how often each symbol came in the first j samples."""
    overflow: jax.Array
    """bool: a sample came for which there was no room; changes near it can no longer be placed."""


def init(symbols: int, cap: int) -> Exact:
    """An empty detector. Raises BadRequest if there is no room for a single candidate."""
    if symbols < 2:
        raise BadRequest(f"a detector needs at least 2 symbols, got {symbols}")
    if cap < 2:
        raise BadRequest(f"cap must be at least 2 (a base and one candidate), got {cap}")
    dtype = jnp.result_type(float)
    return Exact(jnp.zeros(symbols, dtype), jnp.zeros(cap, dtype), jnp.zeros((symbols, cap), dtype), jnp.bool_(False))


def update(det: Exact, x: jax.Array, eta: Eta) -> tuple[Exact, Verdict]:
    """Takes the sample `x`, int32."""
    symbols, cap = det.before.shape
    n = jnp.sum(det.counts)
    j = jnp.arange(cap, dtype=n.dtype)
    before = jnp.where(j == n, det.counts[:, None], det.before)
    excess = exact_rows(det.excess, before[x], j, n, det.counts[x], symbols)
    verdict = compare(excess, j, n + 1, (j >= 1) & (j <= n), eta, symbols)
    return Exact(det.counts.at[x].add(1), excess, before, det.overflow | (n >= cap)), verdict


def exact_rows(
    excess: jax.Array, before: jax.Array, j: jax.Array, n: jax.Array, ever: jax.Array, symbols: int
) -> jax.Array:
    """`excess` after a sample x, for the forecasters `j` (all or some of them); 0 for those that do not exist yet.

    Args:
        before: how often x came in the first j samples.
        n, ever: samples, and samples that were x, before this one.
    """
    # Entries beyond j = n may be left from before a restart; they must not reach the logarithm.
    age = jnp.maximum(n - j, 0)
    seen = jnp.where(j <= n, ever - before, 0)
    return jnp.where(j <= n, advance(jnp.where(j < n, excess, 0), age, seen, n, ever, symbols), 0)


def compare(excess: jax.Array, j: jax.Array, total: jax.Array, candidate: jax.Array, eta: Eta, symbols: int) -> Verdict:
    """Compares the forecasters that are a `candidate` with the base, after `total` samples."""
    # The barrier keeps logarithms out of the loop of the maximum, which XLA does not vectorise on a CPU.
    weight = jax.lax.optimization_barrier(jnp.where(candidate, excess + eta.log(total, j, symbols), -jnp.inf))
    best = jnp.max(weight)
    return Verdict(is_alarm(best), best)


def is_alarm(excess: jax.Array) -> jax.Array:
    """Whether the evidence for a change exceeds that for none. The ratio is a rational number: ties occur, and are no
    alarm."""
    return excess > 1e3 * jnp.finfo(excess.dtype).eps


BLOCK = 128
"""Forecasters in a block of an exact bank."""


def exact_bank(pairs: int, symbols: int, cap: int) -> Exact:
    """`pairs` detectors whose counts are kept elsewhere, their forecasters in blocks: `excess [P, blocks, size]`,
    `before [P, O, blocks, size]`, one `overflow` for all. A `cap` above 128 is rounded up to a multiple of 128."""
    one = init(symbols, cap)
    blocks, size = -(-cap // BLOCK), min(cap, BLOCK)
    excess = jnp.zeros((pairs, blocks, size), one.excess.dtype)
    return Exact(None, excess, jnp.zeros((pairs, symbols, blocks, size), excess.dtype), one.overflow)


def update_exact_bank(
    bank: Exact, counts: jax.Array, pair: jax.Array, x: jax.Array, active: jax.Array, eta: Eta
) -> tuple[Exact, jax.Array]:
    """One sample for one detector in the bank of each of L lanes; no other is read or written.

    Args:
        bank: arrays `[L, P, ...]` as `exact_bank` makes them.
        counts: `[L, O]` of the detectors `pair [L]` before the samples `x [L]`.
        active: `[L]` lanes that have a sample at all.

    Returns:
        bank, alarm `[L]`.
    """
    lanes, _, symbols, blocks, size = bank.before.shape
    cap, lane = blocks * size, jnp.arange(lanes)
    n, ever = jnp.sum(counts, axis=-1), counts[lane, x]
    column = jnp.where(active & (n < cap), n, cap).astype(jnp.int32)  # a block out of range is dropped
    before = bank.before.at[lane, pair, :, column // size, column % size].set(counts, mode="drop")

    # The blocks that hold forecasters, of all lanes in a row, are updated `lanes` at a time: a long stream in one lane
    # does not make the others read blocks that they do not use.
    used = jnp.where(active, jnp.minimum(n + size, cap), 0).astype(jnp.int32) // size
    end = jnp.cumsum(used)

    def some_blocks(carry):
        done, excess, best = carry
        item = done + jnp.arange(lanes)
        of = jnp.sum(end <= item[:, None], axis=-1)  # `lanes`, out of range, past the last
        at = jnp.minimum(of, lanes - 1)
        block = item - end[at] + used[at]
        j = (block[:, None] * size + jnp.arange(size)).astype(n.dtype)
        old, seen = excess[at, pair[at], block], before[at, pair[at], x[at], block]
        new = jax.vmap(exact_rows, (0, 0, 0, 0, 0, None))(old, seen, j, n[at], ever[at], symbols)
        verdict = jax.vmap(lambda e, j, n: compare(e, j, n + 1, (j >= 1) & (j <= n), eta, symbols))(new, j, n[at])
        excess = excess.at[of, pair[at], block].set(new, mode="drop")
        return done + lanes, excess, best.at[of].max(verdict.excess, mode="drop")

    start = (jnp.int32(0), bank.excess, jnp.full(lanes, -jnp.inf, n.dtype))
    _, excess, best = jax.lax.while_loop(lambda carry: carry[0] < end[-1], some_blocks, start)
    overflow = bank.overflow | (active & (n >= cap))
    return Exact(bank.counts, excess, before, overflow), active & is_alarm(best)


# --------------------------------------------------------------------------------------------------- a grid of ages


class Grid(struct.PyTreeNode):
    """At most one forecaster in each class of ages a_i <= age < a_{i+1}, a_i = floor(1.25^i); never overflows."""

    counts: Any
    """`[O]`: how often each symbol came since the restart, a float; None in a bank."""
    excess: jax.Array
    """`[M]`: log w_s - log w_r of each class's forecaster, without eta."""
    before: jax.Array
    """`[O, M]`: how often each symbol came before the forecaster's first sample."""
    age: jax.Array
    """`[M]`: samples that the forecaster has seen, a float; 0 where the class is empty."""


def init_grid(symbols: int, cap: int) -> Grid:
    """An empty detector, which drops forecasters older than about `cap`. Raises BadRequest as `init`."""
    init(symbols, cap)
    size, dtype = int(np.searchsorted(AGES, cap, side="right")), jnp.result_type(float)
    return Grid(
        jnp.zeros(symbols, dtype), jnp.zeros(size, dtype), jnp.zeros((symbols, size), dtype), jnp.zeros(size, dtype)
    )


def update_grid(det: Grid, x: jax.Array, eta: Eta) -> tuple[Grid, Verdict]:
    """Takes the sample `x`, int32. A forecaster that outgrows its class moves to the next if that is free, else it is
    dropped."""
    symbols, size = det.before.shape
    n, ever = jnp.sum(det.counts), det.counts[x]
    alive = det.age > 0
    seen = jnp.where(alive, ever - det.before[x], 0)
    excess = advance(det.excess, det.age, seen, n, ever, symbols)
    age = det.age + alive
    moves = alive & (age == jnp.asarray(AGES[1 : size + 1], age.dtype))
    # A new forecaster starts with this sample. The first sample after a restart creates the base alone.
    newborn = n > 0
    zero = jnp.zeros((), n.dtype)
    first = advance(zero, zero, zero, n, ever, symbols)

    def onward(new, old):
        """Class i takes the forecaster that leaves class i - 1, or keeps its own."""
        shifted = jnp.concatenate([jnp.expand_dims(new, -1), old[..., :-1]], axis=-1)
        return jnp.where(alive & ~moves, old, shifted)

    arrives = jnp.concatenate([newborn[None], moves[:-1]])
    age = jnp.where(alive & ~moves | arrives, onward(jnp.ones((), n.dtype), age), 0)
    excess, before = onward(first, excess), onward(det.counts, det.before)
    verdict = compare(excess, n + 1 - age, n + 1, age > 0, eta, symbols)
    return Grid(det.counts.at[x].add(1), excess, before, age), verdict


def grid_bank(pairs: int, symbols: int, cap: int) -> Grid:
    """`pairs` detectors `[P, ...]` whose counts are kept elsewhere."""
    return jax.tree.map(lambda x: jnp.zeros((pairs, *x.shape), x.dtype), init_grid(symbols, cap).replace(counts=None))


def update_grid_bank(
    bank: Grid, counts: jax.Array, pair: jax.Array, x: jax.Array, active: jax.Array, eta: Eta
) -> tuple[Grid, jax.Array]:
    """As `update_exact_bank`. A detector without samples is empty, whatever its arrays hold from before a restart."""
    lane = jnp.arange(pair.shape[0])
    old = [part[lane, pair] for part in (bank.excess, bank.before, bank.age)]
    fresh = jnp.sum(counts, axis=-1, keepdims=True) == 0
    det = Grid(counts, old[0], old[1], jnp.where(fresh, 0, old[2]))
    det, verdict = jax.vmap(lambda d, s: update_grid(d, s, eta))(det, x)

    def write(part, new, old):
        return part.at[lane, pair].set(jnp.where(jnp.expand_dims(active, range(1, new.ndim)), new, old))

    new = [
        write(*parts)
        for parts in zip((bank.excess, bank.before, bank.age), (det.excess, det.before, det.age), old, strict=True)
    ]
    return Grid(bank.counts, *new), active & verdict.alarm
