"""Memory layers, forward and forward + backward, as ratios to the GRU and of S5 to S5 by associative scan.

    python -m benchmarks.memory [--steps 128 1024] [--batch 16] [--width 64] [--rounds 10] [--memories s5 gru ...]
    python -m benchmarks.memory --plan [--steps 1024] [--batch 64] [--width 128] [--memories s5 gru ...]

Prints a Markdown table per number of steps. All layers run in one process, in interleaved rounds; a cell is the
median wall-clock milliseconds of a round, with its ratio to the GRU's in brackets. The first call (trace, compile and
one run) of forward + backward is reported apart. Freed memory is kept (`engram.kernels.malloc`), as in the scripts.

With `--plan` nothing runs: forward + backward is compiled, and the table has the bytes that the compiler sets aside for
what it computes in between (inputs, parameters and gradients come on top), and the CPU-seconds of the compilation.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kernels import associative_resets
from engram.errors import BadRequest
from engram.kernels.linear_scan import join, split
from engram.kernels.malloc import keep_freed_memory
from engram.memory import MEMORIES, Memory, State, make_memory
from engram.memory.s5 import S5

BASELINE = "gru"
ASSOCIATIVE = "s5, associative"


class AssociativeS5(S5):
    """The named alternative: the same layer, its recurrence by `lax.associative_scan` over `(a, b, reset)` elements
    (Lu et al. 2023)."""

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        decay, planes = self.discretise(x)
        h, last = associative_resets(decay, join(planes), reset, state)
        return last, self.read(split(h), x)


def build(name: str, width: int) -> Memory:
    if name == ASSOCIATIVE:
        return AssociativeS5(width)
    return make_memory(name, width, norm=False, residual=False).layers[0]


def gradients(memory: Memory) -> Any:
    """Forward + backward, compiled: parameters, initial state, x `[T, B, width]`, reset `[T, B]` -> gradients of
    parameters and x."""

    def loss(parameters, state, x, reset):
        y: Any = memory.apply(parameters, state, x, reset)[1]
        return jnp.sum(y**2)

    return jax.jit(jax.grad(loss, argnums=(0, 2)))


def prepare(memory: Memory, steps: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any], float, jax.Array]:
    """Compiled forward, and forward + backward (gradients of parameters and input), as calls without arguments; the
    first-call seconds of the latter; the output."""
    x = jax.random.normal(jax.random.key(0), (steps, batch, memory.width))
    reset = jax.random.bernoulli(jax.random.key(1), 0.02, (steps, batch))
    state = memory.initial_state(batch)
    parameters = jax.jit(memory.init)(jax.random.key(2), state, x, reset)

    forward, backward = jax.jit(memory.apply), gradients(memory)
    start = time.perf_counter()
    jax.block_until_ready(backward(parameters, state, x, reset))
    compile_s = time.perf_counter() - start
    _, y = jax.block_until_ready(forward(parameters, state, x, reset))
    call = (parameters, state, x, reset)
    return (lambda: forward(*call)), (lambda: backward(*call)), compile_s, y


def planned(memory: Memory, steps: int, batch: int) -> tuple[int, float]:
    """Bytes that forward + backward needs beside its inputs and results, and CPU-seconds to compile it."""
    x = jax.ShapeDtypeStruct((steps, batch, memory.width), jnp.float32)
    reset = jax.ShapeDtypeStruct((steps, batch), bool)
    state = memory.initial_state(batch)
    parameters = jax.eval_shape(memory.init, jax.random.key(0), state, x, reset)
    lowered = gradients(memory).lower(parameters, state, x, reset)
    start = time.process_time()
    compiled = lowered.compile()
    return compiled.memory_analysis().temp_size_in_bytes, time.process_time() - start


def table_of_plans(names: list[str], steps: int, batch: int, width: int) -> None:
    print(f"\n### {steps} steps, batch {batch}, width {width}\n")
    print("| layer | forward + backward, MB | compilation, CPU-s |\n|---|---|---|")
    for name in names:
        size, seconds = planned(build(name, width), steps, batch)
        print(f"| {name} | {size / 1e6:,.0f} | {seconds:.1f} |", flush=True)


def median_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median wall-clock milliseconds of each call over interleaved rounds."""
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def table(names: list[str], steps: int, batch: int, width: int, rounds: int) -> None:
    prepared = {name: prepare(build(name, width), steps, batch) for name in names}
    forward = median_ms({name: p[0] for name, p in prepared.items()}, rounds)
    backward = median_ms({name: p[1] for name, p in prepared.items()}, rounds)

    print(f"\n### {steps} steps, batch {batch}, width {width}\n")
    print("| layer | forward, ms | forward + backward, ms | first call, s |\n|---|---|---|---|")
    for name, (_, _, compile_s, _) in prepared.items():
        cells = [f"{ms[name]:.2f} ({ms[name] / ms[BASELINE]:.2f}x)" for ms in (forward, backward)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {compile_s:.1f} |")
    if {"s5", ASSOCIATIVE} <= prepared.keys():
        ratios = [ms[ASSOCIATIVE] / ms["s5"] for ms in (forward, backward)]
        error = float(jnp.abs(prepared["s5"][3] - prepared[ASSOCIATIVE][3]).max())
        print(f"\nS5 by `linear_scan` against the same layer by `associative_scan`: {ratios[0]:.1f}x faster forward,")
        print(f"{ratios[1]:.1f}x forward + backward; outputs differ by at most {error:.1g}.")


def main() -> None:
    names = [*sorted(MEMORIES), ASSOCIATIVE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--plan", action="store_true", help="compile only: memory that is needed, and seconds")
    parser.add_argument(
        "--memories", nargs="+", default=names, metavar="NAME", help=f"{', '.join(names)}, module:Class"
    )
    options = parser.parse_args()
    try:
        for name in options.memories:
            build(name, options.width)
    except BadRequest as error:
        parser.error(str(error))
    keep_freed_memory()
    chosen = list(dict.fromkeys([BASELINE, *options.memories]))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, load {load}")
    for steps in options.steps:
        if options.plan:
            table_of_plans(list(dict.fromkeys(options.memories)), steps, options.batch, options.width)
            continue
        table(chosen, steps, options.batch, options.width, options.rounds)


if __name__ == "__main__":
    main()
