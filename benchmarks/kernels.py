"""Kernels against their alternatives, forward and forward + backward, with the error of each against float64.

    python -m benchmarks.kernels [--kernels linear selective ...] [--steps 256 1024] [--rounds 20] [--torch] [--out DIR]

Prints a Markdown table per kernel and number of steps, and writes them to `kernels.md`, with a picture `kernels.png`,
in the folder `--out`. A problem is a kernel with its sizes, or a whole layer; its contenders are the backends of the
kernel and what one would write instead. The first contender is ours (what `backend="auto"` takes).

All contenders of a problem run in one process, in rounds; in a round each runs once, in an order drawn anew, so that a
noisy machine is noisy for all. Freed memory is kept, in one arena (`engram.kernels.malloc`), for all alike.

- wall: minimum / median milliseconds. Their ratio to ours is that of medians.
- CPU: minimum milliseconds of the process, all threads.
- On a GPU both are a 20th of a program that does the work 20 times, as starting it can take longer than a scan.
- memory: what XLA plans for forward + backward, results and temporaries (`memory_analysis`), inputs not counted.
- first call: seconds to trace, compile and run forward + backward once. That call is in no other number.
- error: relative L2 distance to the "reference" backend in float64 of the value, the last state and, for random
  cotangents, the gradients of all weights, inputs and the first state; the worst of these. Checked on memory that was
  filled with garbage, so that a number which a kernel never wrote shows.
- GB/s, for the linear scan: the bytes that any implementation must move (each array of the sequence once: forward
  reads the input and a decay that varies, and writes the states; backward reads cotangents, states and decay and writes
  their gradients) by the minimum wall time. In brackets its share of what `y = x + 1` moves in the same rounds, over
  arrays far larger than the cache, on as many threads as there are cores, read and write counted once each (as in
  STREAM). Arrays that fit in the cache can exceed it.

`--torch` adds Mamba's selective scan in PyTorch, step by step as it is defined, in float32.
"""

import argparse
import ctypes
import importlib
import importlib.util
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.kernels.aaren_scan import aaren_scan
from engram.kernels.cpu import ffi
from engram.kernels.delta_scan import delta_scan
from engram.kernels.gla_scan import gla_scan
from engram.kernels.gpu import mosaic
from engram.kernels.gru_scan import gru_scan
from engram.kernels.linear_scan import linear_scan
from engram.kernels.lstm_scan import lstm_scan
from engram.kernels.malloc import keep_freed_memory
from engram.kernels.newton_scan import CELLS, newton_scan
from engram.kernels.selective_scan import selective_scan
from engram.memory.mamba import Mamba

LABELS = {"ffi": "ffi (C++)", "xla": "xla", "mosaic": "mosaic", "newton": "newton", "reference": "reference (lax.scan)"}
RESET_RATE = 0.02
SEGMENT = 32
"""Steps between the states that the checkpointed scans keep."""
COPY_BYTES = 2**28
SMALL = 4
"""Largest value of each size of a problem with `--small`."""

Scan = Callable[..., tuple[Any, Any]]
"""`scan(weights, sequence, reset, state) -> y, last`. Weights, sequence and state are trees; time comes first."""


@dataclass(frozen=True)
class Problem:
    """A kernel at one size.

    Attributes:
        title: what the table is called.
        sizes: keyword arguments of `inputs`.
        inputs: `inputs(keys, steps, **sizes) -> weights, sequence, state` in float32; `keys` yields random keys.
        scan: the kernel, with a further argument `backend`.
        backends: those to time, ours first.
        others: alternatives to the kernel.
        cpp: name of the C++ kernel, for the backend "ffi".
        passes: arrays like the sequence's input that forward, and forward + backward, must read or write.
        torch: the same in PyTorch, `(torch, weights, sequence, reset, state) -> y, last`.
    """

    title: str
    sizes: dict[str, int]
    inputs: Callable[..., tuple[Any, Any, Any]]
    scan: Scan
    backends: tuple[str, ...]
    others: dict[str, Scan] = field(default_factory=dict)
    cpp: str = ""
    passes: tuple[int, int] | None = None
    torch: Callable[..., tuple[Any, Any]] | None = None

    def scans(self) -> dict[str, Scan]:
        """Contenders by label. A kernel that cannot be had here would be "xla" under another name: it is left out."""
        had = {
            "ffi": lambda: jax.default_backend() == "cpu" and ffi.load(self.cpp),
            "mosaic": lambda: jax.default_backend() == "gpu" and mosaic.available(self.cpp.removesuffix("_scan")),
        }
        here = [b for b in self.backends if b not in had or had[b]()]
        return {LABELS[b]: partial(self.scan, backend=b) for b in here} | self.others


def checkpointed(scan: Scan) -> Scan:
    """The same scan, keeping only the states between segments of at most `SEGMENT` steps and recomputing the others."""

    def run(weights, sequence, reset, state):
        steps = len(reset)
        size = max(n for n in range(1, SEGMENT + 1) if steps % n == 0)
        segments = jax.tree.map(lambda x: x.reshape(steps // size, size, *x.shape[1:]), (sequence, reset))

        @jax.checkpoint
        def segment(state, now):
            y, last = scan(weights, *now, state)
            return last, y

        last, y = lax.scan(segment, state, segments)
        return jax.tree.map(lambda x: x.reshape(steps, *x.shape[2:]), y), last

    return run


# ----------------------------------------------------------------------------------------------------------- problems


Inputs = tuple[Any, Any, Any]
"""Weights, sequence and state."""


def normal(keys: Iterator[jax.Array], *shape: int) -> jax.Array:
    return jax.random.normal(next(keys), shape)


def linear_inputs(keys: Iterator[jax.Array], steps: int, batch: int, state: int) -> Inputs:
    def numbers(*shape):
        return lax.complex(normal(keys, *shape), normal(keys, *shape)) / math.sqrt(2)

    # Decays as S5 and LRU have them: close to the unit circle.
    a = jnp.exp(lax.complex(-0.1 * jax.random.uniform(next(keys), (state,)), normal(keys, state)))
    return a, numbers(steps, batch, state), numbers(batch, state)


def linear_real_inputs(keys: Iterator[jax.Array], steps: int, batch: int, channels: int) -> Inputs:
    a = jax.nn.sigmoid(normal(keys, steps, batch, channels) + 2)
    return (), (a, normal(keys, steps, batch, channels)), normal(keys, batch, channels)


def linear(weights: Any, sequence: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    a, x = sequence if isinstance(sequence, tuple) else (weights, sequence)
    return linear_scan(a, x, reset, state, backend=backend)


def associative_folded(weights: Any, sequence: Any, reset: Any, state: Any) -> tuple[Any, Any]:
    """`lax.associative_scan` over `(a, b)`, a reset being `a = 0`: a product, through which NaN leaks."""
    a, x = sequence if isinstance(sequence, tuple) else (weights, sequence)
    a = jnp.where(reset[..., None], 0, a)

    def combine(first, second):
        (a_i, b_i), (a_j, b_j) = first, second
        return a_j * a_i, a_j * b_i + b_j

    _, h = lax.associative_scan(combine, (a, x.at[0].add(a[0] * state)))
    return h, h[-1]


def associative_resets(weights: Any, sequence: Any, reset: Any, state: Any) -> tuple[Any, Any]:
    """`lax.associative_scan` over `(a, b, reset)`: an operator that knows resets (Lu et al. 2023), here by select. The
    state is handed in as a first element."""
    a, x = sequence if isinstance(sequence, tuple) else (weights, sequence)

    def combine(first, second):
        (a_i, b_i, reset_i), (a_j, b_j, reset_j) = first, second
        return jnp.where(reset_j, a_j, a_j * a_i), jnp.where(reset_j, b_j, a_j * b_i + b_j), reset_i | reset_j

    a = jnp.concatenate([jnp.ones_like(state)[None], jnp.broadcast_to(a, x.shape)])
    b = jnp.concatenate([state[None], x])
    resets = jnp.concatenate([jnp.zeros_like(reset[:1]), reset])[..., None]
    _, h, _ = lax.associative_scan(combine, (a, b, resets))
    return h[1:], h[-1]


ASSOCIATIVE = {"associative_scan, a = 0": associative_folded, "associative_scan, resets": associative_resets}


def selective_inputs(keys: Iterator[jax.Array], steps: int, batch: int, channels: int, state: int) -> Inputs:
    A = -jnp.exp(normal(keys, state, channels))
    dt = jax.nn.softplus(normal(keys, steps, batch, channels) - 3)  # Mamba's steps begin between 0.001 and 0.1
    u, B, C = (normal(keys, steps, batch, size) for size in (channels, state, state))
    return (A, normal(keys, channels)), (u, dt, B, C), normal(keys, batch, state, channels)


def selective(weights: Any, sequence: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    (A, skip), (u, dt, B, C) = weights, sequence
    return selective_scan(u, dt, A, B, C, skip, reset, state, backend=backend)


def torch_selective(torch: Any, weights: Any, sequence: Any, reset: Any, state: Any) -> tuple[Any, Any]:
    (A, skip), (u, dt, B, C) = weights, sequence
    outputs = []
    # Parts of one `unbind`: the gradient of an index per step would be an array of all steps, T times.
    for u_t, dt_t, B_t, C_t, reset_t in zip(*(x.unbind() for x in (u, dt, B, C, reset)), strict=True):
        kept = torch.where(reset_t[:, None, None], 0.0, state)
        state = torch.exp(dt_t[:, None] * A) * kept + (dt_t * u_t)[:, None] * B_t[:, :, None]
        outputs.append((C_t[:, :, None] * state).sum(1))
    return torch.stack(outputs) + skip * u, state


def gla_inputs(
    keys: Iterator[jax.Array], steps: int, batch: int, heads: int, size: int, per_row: bool = False
) -> Inputs:
    rows = (steps, batch, heads, size)
    q, k, v = (normal(keys, *rows) / scale for scale in (math.sqrt(size), 1, 1))
    log_decay = jax.nn.log_sigmoid(normal(keys, *(rows if per_row else rows[:3])) + 3)
    return (), (q, k, v, log_decay), normal(keys, batch, heads, size, size)


def gla(_: Any, sequence: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    q, k, v, log_decay = sequence
    return gla_scan(q, k, v, log_decay, reset, state, backend=backend)


def delta_inputs(keys: Iterator[jax.Array], steps: int, batch: int, heads: int, size: int) -> Inputs:
    q, k, v = (normal(keys, steps, batch, heads, size) for _ in range(3))
    k /= jnp.linalg.norm(k, axis=-1, keepdims=True)  # the recurrence is stable for keys of length 1
    beta = jax.nn.sigmoid(normal(keys, steps, batch, heads))
    return (), (q / math.sqrt(size), k, v, beta), normal(keys, batch, heads, size, size)


def delta(_: Any, sequence: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    q, k, v, beta = sequence
    return delta_scan(q, k, v, beta, None, reset, state, backend=backend)


def cell_inputs(keys: Iterator[jax.Array], steps: int, batch: int, units: int, gates: int) -> Inputs:
    weights = normal(keys, units, gates * units) / math.sqrt(units), normal(keys, units)
    return weights, normal(keys, steps, batch, gates * units), normal(keys, batch, units)


def lstm_inputs(keys: Iterator[jax.Array], steps: int, batch: int, units: int) -> Inputs:
    weights, x, c = cell_inputs(keys, steps, batch, units, gates=4)
    return weights[0], x, (c, jnp.tanh(c))


def gru(weights: Any, x: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    Wh, bh = weights
    return gru_scan(x, Wh, bh, reset, state, backend=backend)


def lstm(Wh: Any, x: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    return lstm_scan(x, Wh, reset, state, backend=backend)


def aaren_inputs(keys: Iterator[jax.Array], steps: int, batch: int, heads: int, size: int) -> Inputs:
    state = normal(keys, batch, heads), 1 + jax.random.uniform(next(keys), (batch, heads))
    sequence = normal(keys, steps, batch, heads), normal(keys, steps, batch, heads, size)
    return (), sequence, (*state, normal(keys, batch, heads, size))


def aaren(_: Any, sequence: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    scores, v = sequence
    return aaren_scan(scores, v, reset, state, backend=backend)


def newton_inputs(keys: Iterator[jax.Array], steps: int, batch: int, channels: int, cell: str) -> Inputs:
    A = jnp.tanh(normal(keys, CELLS[cell].rows, channels))
    state = tuple(jnp.tanh(normal(keys, batch, channels)) for _ in range(CELLS[cell].parts))
    return A, normal(keys, steps, batch, 3 * channels), state if cell == "lstm" else state[0]


def newton(A: Any, x: Any, reset: Any, state: Any, backend: str, cell: str) -> tuple[Any, Any]:
    return newton_scan(x, A, reset, state, cell=cell, backend=backend)[:2]


def layer_inputs(keys: Iterator[jax.Array], steps: int, batch: int, width: int) -> Inputs:
    mamba, x = Mamba(width), normal(keys, steps, batch, width)
    state = mamba.initial_state(batch)
    parameters = jax.jit(mamba.init)(next(keys), state, x, jnp.zeros((steps, batch), bool))
    return parameters, x, state


def layer(parameters: Any, x: Any, reset: Any, state: Any, backend: str) -> tuple[Any, Any]:
    last, y = Mamba(x.shape[-1], backend=backend).apply(parameters, state, x, reset)  # type: ignore[misc]
    return y, last


HEADS = {"batch": 16, "heads": 4, "size": 64}
UNITS = {"batch": 16, "units": 64}
CPP = ("ffi", "xla", "reference")
COMPILED = ("mosaic", *CPP)
PROBLEMS = {
    "linear": Problem(
        "linear_scan, complex64, constant decay",
        {"batch": 32, "state": 128},
        linear_inputs,
        linear,
        COMPILED,
        ASSOCIATIVE,
        cpp="linear_scan",
        passes=(2, 5),  # x, h; and g, h, dx
    ),
    "linear-real": Problem(
        "linear_scan, float32, varying decay",
        {"batch": 32, "channels": 256},
        linear_real_inputs,
        linear,
        COMPILED,
        ASSOCIATIVE,
        cpp="linear_scan",
        passes=(3, 8),  # a, x, h; and g, h, a, dx, da
    ),
    "selective": Problem(
        "selective_scan (Mamba)",
        {"batch": 16, "channels": 256, "state": 16},
        selective_inputs,
        selective,
        COMPILED,
        {f"lax.scan, checkpoint per {SEGMENT}": checkpointed(partial(selective, backend="reference"))},
        cpp="selective_scan",
        torch=torch_selective,
    ),
    "gla": Problem("gla_scan, a decay per head", HEADS, gla_inputs, gla, CPP, cpp="gla_scan"),
    "gla-rows": Problem(
        "gla_scan, a decay per row of the state",
        HEADS,
        partial(gla_inputs, per_row=True),
        gla,
        CPP,
        cpp="gla_scan",
    ),
    "delta": Problem("delta_scan", HEADS, delta_inputs, delta, CPP, cpp="delta_scan"),
    "gru": Problem("gru_scan", UNITS, partial(cell_inputs, gates=3), gru, CPP, cpp="recurrent_scan"),
    "lstm": Problem("lstm_scan", UNITS, lstm_inputs, lstm, CPP, cpp="recurrent_scan"),
    "aaren": Problem("aaren_scan", HEADS, aaren_inputs, aaren, ("xla", "reference")),
    **{
        f"newton-{cell}": Problem(
            f"newton_scan, {cell.upper()}",
            {"batch": 32, "channels": 128},
            partial(newton_inputs, cell=cell),
            partial(newton, cell=cell),
            ("xla", "newton", "reference"),
        )
        for cell in CELLS
    },
    "layer": Problem(
        "Mamba layer, projections included",
        {"batch": 16, "width": 128},
        layer_inputs,
        layer,
        COMPILED,
        cpp="selective_scan",
    ),
}


# -------------------------------------------------------------------------------------------------------- measurement


@dataclass
class Timing:
    """Seconds of each call."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, call: Callable[[], Any], times: int = 1) -> None:
        """Times a call that does its work `times` times."""
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        self.wall.append((time.perf_counter() - wall) / times)
        self.cpu.append((time.process_time() - cpu) / times)

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.wall)

    def __str__(self) -> str:
        return f"{figure(1e3 * min(self.wall))} / {figure(self.median_ms)} | {figure(1e3 * min(self.cpu))}"


@dataclass
class Contender:
    """Calls without arguments, warm; the seconds of the first call of `both`; what XLA plans in bytes; the error."""

    forward: Callable[[], Any]
    both: Callable[[], Any]
    first_call: float
    memory: int | None
    error: float
    forward_timing: Timing = field(default_factory=Timing)
    both_timing: Timing = field(default_factory=Timing)


@dataclass
class Measured:
    """One table: a problem at a number of steps. `itemsize * elements` bytes is one pass over the input."""

    problem: Problem
    sizes: dict[str, int]
    steps: int
    contenders: dict[str, Contender]
    copy_timing: Timing
    copied_bytes: int
    pass_bytes: int

    @property
    def ours(self) -> Contender:
        return next(iter(self.contenders.values()))

    def slowdown(self, contender: Contender) -> float:
        return contender.both_timing.median_ms / self.ours.both_timing.median_ms


def figure(x: float) -> str:
    """Three significant digits at most, never fewer than those before the point."""
    return f"{x:.{max(0, 2 - math.floor(math.log10(x)))}f}" if x > 0 else "0"


def forward_and_backward(scan: Scan) -> Callable[..., Any]:
    def run(inputs, reset, cotangents):
        values, back = jax.vjp(lambda weights, sequence, state: scan(weights, sequence, reset, state), *inputs)
        return values, back(cotangents)

    return run


@contextmanager
def garbage_in_new_memory() -> Iterator[None]:
    """glibc fills what it hands out with the byte 0xfe (float32 -1.7e38) and what is freed with 0x01."""
    fills = platform.libc_ver()[0] == "glibc"
    m_perturb = -6  # <malloc.h>
    if fills:
        ctypes.CDLL(None).mallopt(m_perturb, 1)
    try:
        yield
    finally:
        if fills:
            ctypes.CDLL(None).mallopt(m_perturb, 0)


def worst_error(result: Any, truth: Any) -> float:
    def error(x, true):
        distance, size = (float(np.linalg.norm(np.ravel(y))) for y in (np.asarray(x, true.dtype) - true, true))
        return distance / size if size else distance

    return float(np.max(jax.tree.leaves(jax.tree.map(error, result, truth))))


def to_double(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float64)), tree)


def in_double(scan: Scan, inputs: Any, reset: jax.Array, cotangents: Any) -> Any:
    """Value, last state and gradients in float64."""
    with jax.enable_x64(True):
        run = jax.jit(forward_and_backward(checkpointed(scan)))  # the same numbers in a fraction of the memory
        return jax.tree.map(np.asarray, run(to_double(inputs), reset, to_double(cotangents)))


def repeats() -> int:
    """Number of times that a timed call does its work. Starting a program on a GPU can take longer than the work."""
    return 20 if jax.default_backend() == "gpu" else 1


def repeated(call: Callable[..., Any], times: int, *fed: Any) -> Callable[[], Any]:
    """`call(*fed)` where that is to be timed by itself (`times` is 1), else one program that does it `times` times.

    What is fed to a round depends on the results of the round before, or XLA would compute only one.
    """
    if times == 1:
        return lambda: call(*fed)

    def again(_, fed):
        results = jax.tree.leaves(lax.optimization_barrier(call(*fed)))
        first = [jnp.real(x.reshape(-1)[0]).astype(jnp.float32) for x in results]
        zero = 0.0 * jnp.stack(first).sum()  # NaN for all that XLA knows
        return jax.tree.map(lambda x: x + zero.astype(x.dtype), fed)

    program = jax.jit(lambda *fed: lax.fori_loop(0, times, again, fed))
    jax.block_until_ready(program(*fed))
    return lambda: program(*fed)


def compiled(scan: Scan, inputs: Any, reset: Any, cotangents: Any, truth: Any) -> Contender:
    start = time.perf_counter()
    both = jax.jit(forward_and_backward(scan)).lower(inputs, reset, cotangents).compile()
    jax.block_until_ready(both(inputs, reset, cotangents))
    first_call = time.perf_counter() - start
    plan = both.memory_analysis()
    memory = plan and plan.temp_size_in_bytes + plan.output_size_in_bytes
    weights, sequence, state = inputs
    forward = jax.jit(scan)
    jax.block_until_ready(forward(weights, sequence, reset, state))
    with garbage_in_new_memory():
        error = worst_error(
            (forward(weights, sequence, reset, state), both(inputs, reset, cotangents)), (truth[0], truth)
        )
    again, times = jax.jit(forward_and_backward(scan)), repeats()
    timed = (
        repeated(lambda weights, state: forward(weights, sequence, reset, state), times, weights, state),
        repeated(lambda weights, state: again((weights, sequence, state), reset, cotangents), times, weights, state),
    )
    return Contender(*timed, first_call, memory, error)


def in_torch(scan: Callable, inputs: Any, reset: Any, cotangents: Any, truth: Any) -> Contender:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(cores())
    inputs, reset, cotangents = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), (inputs, reset, cotangents))
    leaves, tree = jax.tree.flatten(inputs)

    def forward():
        with torch.no_grad():
            weights, sequence, state = inputs
            return scan(torch, weights, sequence, reset, state)

    def both():
        parts = [x.detach().requires_grad_() for x in leaves]
        weights, sequence, state = jax.tree.unflatten(tree, parts)
        values = scan(torch, weights, sequence, reset, state)
        gradients = torch.autograd.grad(values, parts, cotangents)
        return jax.tree.map(lambda x: x.detach(), values), jax.tree.unflatten(tree, gradients)

    start = time.perf_counter()
    both()
    first_call = time.perf_counter() - start
    forward()
    with garbage_in_new_memory():
        error = worst_error((forward(), both()), (truth[0], truth))
    return Contender(forward, both, first_call, None, error)


def copying(size: int) -> tuple[Callable[[], Any], int]:
    """A call that reads one array of `size` bytes and writes another, on all cores, and the bytes it moves. The arrays
    are there before: what XLA returns is memory that may be new, and page faults are not bandwidth. On a GPU it is one
    program which adds 1 `repeats()` times."""
    if jax.default_backend() == "gpu":
        array = jnp.ones(size // 4, jnp.float32)
        add = jax.jit(lambda x: lax.fori_loop(0, repeats(), lambda _, x: x + 1, x))
        return lambda: add(array), 2 * array.nbytes
    x, y = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)
    parts = list(zip(np.array_split(x, cores()), np.array_split(y, cores()), strict=True))
    threads = ThreadPoolExecutor(cores())

    def copy():
        list(threads.map(lambda part: np.add(part[0], 1, out=part[1]), parts))  # NumPy frees the interpreter's lock

    copy()
    return copy, x.nbytes + y.nbytes


def measure(problem: Problem, steps: int, rounds: int, small: bool, with_torch: bool) -> Measured:
    sizes = {name: min(size, SMALL) if small else size for name, size in problem.sizes.items()}
    keys = iter(jax.random.split(jax.random.key(0), 64))
    inputs = problem.inputs(keys, steps, **sizes)
    reset = jax.random.bernoulli(next(keys), RESET_RATE, (steps, sizes["batch"]))
    weights, sequence, state = inputs
    reference = partial(problem.scan, backend="reference")
    values = jax.eval_shape(reference, weights, sequence, reset, state)
    cotangents = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, x.dtype), values)
    truth = in_double(reference, inputs, reset, cotangents)

    contenders = {label: compiled(s, inputs, reset, cotangents, truth) for label, s in problem.scans().items()}
    if with_torch and problem.torch:
        contenders["PyTorch, a step at a time"] = in_torch(problem.torch, inputs, reset, cotangents, truth)

    copy_timing, copied_bytes = Timing(), 0
    calls = [call for c in contenders.values() for call in ((c.forward_timing, c.forward), (c.both_timing, c.both))]
    if problem.passes:
        copy, copied_bytes = copying(COPY_BYTES >> (8 if small else 0))
        calls.append((copy_timing, copy))
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(calls)
        for timing, call in calls:
            timing.add(call, repeats())
    pass_bytes = max(x.nbytes for x in jax.tree.leaves(sequence))
    return Measured(problem, sizes, steps, contenders, copy_timing, copied_bytes, pass_bytes)


# -------------------------------------------------------------------------------------------------------------- report


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(kept: bool, with_torch: bool) -> str:
    """Machine and versions, on which the numbers depend."""
    packages = ["jax", "jaxlib", "numpy", *(["torch"] if with_torch else [])]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    names = ("MALLOC_", "GLIBC_TUNABLES", "XLA_FLAGS", "OMP_", "ENGRAM_KERNELS")
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(names)]
    malloc = "keeps freed memory (engram.kernels.malloc)" if kept else "as the system or the environment sets it"
    device = jax.devices()[0]
    lines = [
        f"{versions}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"device {device.platform}: {device.device_kind}; {cores()} CPU cores; {processor()}",
        f"malloc {malloc}; environment: {', '.join(settings) or 'nothing set'}",
        load(),
    ]
    return "\n".join(f"- {line}" for line in lines)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def load() -> str:
    return "load average " + ", ".join(f"{x:.1f}" for x in os.getloadavg())


def table(measured: Measured) -> str:
    passes = measured.problem.passes
    sizes = ", ".join(f"{name} {size}" for name, size in measured.sizes.items())
    columns = ["contender", "forward, wall ms", "CPU ms", "forward + backward, wall ms", "CPU ms", "to ours"]
    columns += ["memory, MB", "first call, s", "error"]
    lines = [f"### {measured.problem.title}: {measured.steps} steps, {sizes}", ""]
    copy = measured.copied_bytes / min(measured.copy_timing.wall) if passes else 0.0
    if passes:
        lines += [f"This machine copies {copy / 1e9:.1f} GB/s.", ""]
        columns += ["forward, GB/s", "forward + backward, GB/s"]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for label, c in measured.contenders.items():
        memory = "" if c.memory is None else f"{figure(c.memory / 1e6)}"
        cells = [label, str(c.forward_timing), str(c.both_timing), f"{figure(measured.slowdown(c))}x"]
        cells += [memory, f"{c.first_call:.1f}", f"{c.error:.1e}"]
        if passes:
            for times, timing in zip(passes, (c.forward_timing, c.both_timing), strict=True):
                rate = times * measured.pass_bytes / min(timing.wall)
                cells.append(f"{rate / 1e9:.1f} ({rate / copy:.0%})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: Sequence[Measured], out: Path) -> None:
    """A panel per problem: time of forward + backward relative to ours, a bar per number of steps."""
    import matplotlib.pyplot as plt  # slow to import
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullLocator

    plt.switch_backend("Agg")
    panels = {m.problem.title: [n for n in results if n.problem is m.problem] for m in results}
    rows = [len(group[0].contenders) for group in panels.values()]
    height = 0.8 + 0.45 * len(panels) + 0.3 * sum(rows)
    picture, axes = plt.subplots(
        len(panels), figsize=(8.5, height), height_ratios=[n + 0.3 for n in rows], sharex=True, squeeze=False
    )
    lengths = sorted({m.steps for m in results})
    thickness = 0.8 / len(lengths)
    widest = max(m.slowdown(c) for m in results for c in m.contenders.values())
    narrowest = min(m.slowdown(c) for m in results for c in m.contenders.values())
    for ax, (title, group) in zip(axes[:, 0], panels.items(), strict=True):
        for measured in group:
            color = lengths.index(measured.steps)
            for row, contender in enumerate(measured.contenders.values()):
                at, ratio = row - 0.4 + thickness * (color + 0.5), measured.slowdown(contender)
                # Bars start at ours: the length is the logarithm of the ratio.
                ax.barh(at, ratio - 1, thickness * 0.9, left=1, color=f"C{color}")
                ms = figure(contender.both_timing.median_ms)
                text = f"{ms} ms" if contender is measured.ours else f"{figure(ratio)}x, {ms} ms"
                ax.annotate(
                    text, (max(ratio, 1), at), (3, 0), textcoords="offset points", va="center", fontsize=7, color="0.25"
                )
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_yticks(range(len(group[0].contenders)), list(group[0].contenders), fontsize=8)
        ax.set_ylim(len(group[0].contenders) - 0.5, -0.5)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}x")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", labelsize=8)
        ax.axvline(1, color="0.3", linewidth=0.8)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_xlim(min(0.8, narrowest / 1.2), 3.5 * max(widest, 2))  # room for the last label
    axes[-1, 0].set_xlabel("forward + backward, median wall time relative to ours (logarithmic)", fontsize=9)
    keys = [Patch(color=f"C{i}", label=f"{n} steps") for i, n in enumerate(lengths)]
    picture.legend(handles=keys, loc="upper right", ncols=len(lengths), fontsize=8, frameon=False)
    picture.tight_layout(h_pad=0.4)
    picture.savefig(out, dpi=110)
    plt.close(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--steps", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=20, help="rounds, in each of which every contender runs once")
    parser.add_argument("--small", action="store_true", help=f"no size above {SMALL}: only to see that all runs")
    parser.add_argument("--torch", action="store_true", help="also Mamba's scan in PyTorch, where it is installed")
    parser.add_argument("--out", type=Path, default=Path("results/kernels"), help="where kernels.md, kernels.png go")
    options = parser.parse_args(arguments)
    if min(options.rounds, *options.steps) < 1:
        parser.error("--rounds and --steps must be at least 1")
    if options.torch and not importlib.util.find_spec("torch"):
        sys.exit("error: --torch needs PyTorch (python -m pip install torch)")

    kept = keep_freed_memory(one_arena=True)  # the arrays of 1024 steps are larger than 64 MiB
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "kernels.md").open("w") as file:

        def say(text: str) -> None:
            print(text, end="\n\n", flush=True)
            print(text, end="\n\n", file=file, flush=True)

        say(environment(kept, options.torch))
        results = []
        for name in dict.fromkeys(options.kernels):
            for steps in dict.fromkeys(options.steps):
                results.append(measure(PROBLEMS[name], steps, options.rounds, options.small, options.torch))
                say(table(results[-1]))
        say(f"Wall ms: minimum / median of {options.rounds} rounds; CPU ms: minimum. At the end: {load()}.")
    draw(results, options.out / "kernels.png")
    print(f"wrote {options.out / 'kernels.md'} and {options.out / 'kernels.png'}")


if __name__ == "__main__":
    main()
