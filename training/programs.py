"""The compiled programs of a run: all seeds side by side, a chunk of updates in one program."""

import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from engram.kernels import threefry
from engram.kernels.cpu import ffi
from engram.kernels.host_call import errors_as_raised
from engram.kernels.malloc import give_back_freed_memory, no_search_for_garbage
from engram.training import compile_times, work
from engram.training.arguments import arguments_of, with_arguments
from engram.training.devices import BY_SEED, GROUPS_OVER_DEVICES, SEEDS, by_group, on_every_device, placed, spread
from engram.training.feed import Ahead, Feed, Pieces, learn
from engram.training.types import Agent, Key, PyTree

QUICK = {"xla_backend_optimization_level": 1}
"""XLA's options for programs that run for seconds: on a CPU they compile faster than by default. Most run as fast,
attention a tenth to a fifth slower (measured in docs/compiling.md)."""
THOROUGH: dict[str, Any] = {}
"""XLA's options for programs that run long: its own."""
LONG = 15.0
"""Estimated seconds of training from which on its program is compiled thoroughly. Quick compilation saves one to two,
which is a tenth of this, and a tenth is what the slowest memories lose by it."""
QUICKEST: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""XLA's options for programs that run for less time than they compile: these compile several times faster on a CPU."""
if jaxlib.version.__version_info__ < (0, 11):  # later ones do not know it
    QUICKEST["xla_cpu_use_fusion_emitters"] = False


EVALUATION = 0x5EED
"""What distinguishes the keys of a run's own evaluations from those of its training."""
AFTERWARDS = 0xAF7E4
"""What distinguishes the keys of what a trained run does (evaluations, dreams, trials, acting) from those of training,
where the seeds are the same number."""


def options(wanted: dict[str, Any]) -> dict[str, Any] | None:
    """`wanted` as `compiler_options` of `jax.jit`: on a CPU, as far as nobody decided otherwise in XLA_FLAGS."""
    if jax.default_backend() != "cpu" or jax.config.values["jax_disable_most_optimizations"]:
        return None
    decided = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in wanted.items() if name not in decided}


def jit(function: Callable, **how: Any) -> Any:
    """`jax.jit`, for programs that run long, with the options that serve them. Calls return when the results are
    there, and what an emulator raises is raised as it is."""
    program = jax.jit(function, compiler_options=options(QUICK), **how)

    def call(*args: Any) -> Any:
        with threefry.in_cpp(), errors_as_raised():
            return jax.block_until_ready(program(*args))

    return call


def seed_keys(seed: int, seeds: int) -> Key:
    """One key per seed, `[seeds]`: the i-th of a run with `seed` is the only one of a run with `seed + i`."""
    numbers = np.arange(seed, seed + seeds, dtype=np.uint32)
    if jax.config.values["jax_default_prng_impl"] != "threefry2x32":
        return jax.vmap(jax.random.key)(numbers)
    # The same without a program to compile: the two halves of a number of 64 bits.
    return jax.random.wrap_key_data(jnp.asarray(np.stack([np.zeros_like(numbers), numbers], axis=-1)))


def keys_afterwards(seed: int, seeds: int) -> Key:
    """One key per seed, `[seeds]`, for what is done with a trained run; no key of the training of any run."""
    return jax.vmap(jax.random.fold_in, (0, None))(seed_keys(seed, seeds), AFTERWARDS)


def over_seeds(f: Callable, seeds: int) -> Callable:
    """`f` of one seed as a function of all: arguments and results get a leading axis `[seeds, ...]`, named "seeds".

    A single seed is not batched: programs of many small products are three times slower with an axis of one.
    """
    if seeds > 1:
        return jax.vmap(f, axis_name="seeds")

    def alone(*args):
        return jax.tree.map(lambda x: x[None], f(*jax.tree.map(lambda x: x[0], args)))

    return alone


def evaluation(agent: Agent, seeds: int) -> Callable:
    """`agent.evaluate` for all seeds: states and keys `[seeds, ...]` -> metrics `[seeds]`."""
    return over_seeds(functools.partial(agent.evaluate, axis_name="seeds" if seeds > 1 else None), seeds)


class Program:
    """A program that is compiled in a thread of its own. Who calls it waits until it is there."""

    def __init__(self, name: str, arguments: PyTree, compiling: "Future[tuple[Any, float]]"):
        self.name, self.arguments, self._compiling = name, arguments, compiling

    @property
    def compiled(self) -> jax.stages.Compiled:
        """The program itself, which also takes `arguments`."""
        return self._compiling.result()[0]

    @property
    def finished(self) -> float:
        """When it was there, by `time.perf_counter`."""
        return self._compiling.result()[1]

    def wait(self) -> float:
        """Waits until it is there; returns the seconds that this took."""
        started = time.perf_counter()
        self._compiling.result()
        return time.perf_counter() - started

    @property
    def is_there(self) -> bool:
        """Whether it is compiled, or will never be."""
        return self._compiling.done()

    def when_there(self, call: Callable[[], None]) -> None:
        """Has `call` called once the program is there, in any thread."""
        self._compiling.add_done_callback(lambda _: call())

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args, arguments=self.arguments)


class FedProgram(Program):
    """A chunk that gets what it draws from the host, in pieces (see `engram.training.feed`)."""

    def __init__(self, program: Program, feed: Feed, pieces: Pieces):
        super().__init__(program.name, program.arguments, program._compiling)
        self._ahead = Ahead(feed, pieces)

    def __call__(self, *args: Any) -> Any:
        (states,) = args
        return self._ahead.run(self.compiled, states, self.arguments)


@dataclass(frozen=True)
class Compiled:
    """The three programs of a run, compiled ahead of time for all seeds, side by side."""

    init: Program
    """Keys `[seeds]` -> states `[seeds, ...]`."""
    chunk: Program
    """States -> states, metrics `[updates, seeds, ...]`. Consumes the states that it is given."""
    evaluate: Program
    """States, keys, number of the chunk -> metrics `[seeds]`. What it draws is its own, and new after every chunk."""
    template: PyTree
    """Structure, shapes and dtypes of the states, and where they lie if that is on several devices."""
    keys: PyTree
    """Shape and dtype of the keys of all seeds, and where they lie if that is on several devices."""
    action: jax.ShapeDtypeStruct | None
    """Shape and dtype of one update's actions, `[seeds, T, B, ...]`; None unless they are logged."""
    started: float
    """When compilation began, by `time.perf_counter`."""
    key: str
    """Name of the programs in `engram.training.compile_times`."""

    @property
    def all(self) -> tuple[Program, ...]:
        return self.init, self.chunk, self.evaluate

    @property
    def seconds(self) -> float:
        """Seconds that compilation took, the three programs side by side."""
        return max(program.finished for program in self.all) - self.started


def compile_agent(
    agent: Agent,
    seeds: int,
    updates_per_chunk: int,
    evaluates_first: bool = True,
    chunks: int = 1,
    mesh: Mesh | None = None,
) -> Compiled:
    """Compiles `init`, one chunk of updates, and `evaluate`, for all seeds together.

    It returns once all three are traced. XLA works on them in threads, as it needs no Python.

    Args:
        evaluates_first: whether the first chunk is evaluated. If not, `evaluate` is compiled while that chunk runs.
        chunks: chunks of the whole run. A long one is compiled to be fast, a short one to begin soon.
        mesh: devices that share out the seeds, and the groups of environments of an agent that has several (see
            `engram.training.devices`).
    """
    started = time.perf_counter()
    arguments = on_every_device(arguments_of(agent), mesh)
    feed: Feed | None = getattr(agent, "feed", None)
    share, here, lies, in_rows = seeds, agent, BY_SEED, PartitionSpec(None, SEEDS)
    if mesh is not None:
        share //= mesh.shape[SEEDS]
        if mesh.shape[GROUPS_OVER_DEVICES] > 1:
            grouped: Any = agent
            lies = by_group(grouped.layout(jax.eval_shape(over_seeds(agent.init, seeds), seed_keys(0, seeds))))
            here = grouped.over((GROUPS_OVER_DEVICES,))

    def init_all(keys, arguments):
        return over_seeds(with_arguments(here, arguments).init, share)(keys)

    def chunk(states, arguments):
        update_all = over_seeds(with_arguments(here, arguments).update, share)
        return jax.lax.scan(lambda s, _: update_all(s), states, None, length=updates_per_chunk)

    def fed_chunk(states, numbers, arguments):
        agent_arguments, count = arguments
        update_all = over_seeds(with_arguments(agent, agent_arguments).update, share)
        return learn(update_all, states, numbers.swapaxes(0, 1), count)

    def evaluate_all(states, keys, arguments):
        return evaluation(with_arguments(agent, arguments), share)(states, keys)

    def evaluate_after(states, keys, chunk, arguments):
        fold_in = jax.vmap(jax.random.fold_in, (0, None))
        keys = fold_in(fold_in(keys, EVALUATION), chunk)
        return spread(evaluate_all, mesh, (lies, BY_SEED), BY_SEED)(states, keys, arguments=arguments)

    threads = ThreadPoolExecutor(3, thread_name_prefix="compile")
    with no_search_for_garbage(), ffi.built_beside() as built, threefry.in_cpp():

        def compiling(
            name: str, lowered: Any, lower: Callable[[], Any], wanted: dict[str, Any], after: Program | None = None
        ) -> Program:
            """A program that is `lowered`, or would be anew by `lower`."""

            def compile_it() -> tuple[Any, float]:
                if after is not None:
                    after.wait()
                program = lowered if built() else lower()  # a kernel that was counted on cannot be had
                compiled = program.compile(compiler_options=options(wanted))
                give_back_freed_memory()
                return compiled, time.perf_counter()

            return Program(name, arguments, threads.submit(compile_it))

        def trace_init() -> Any:
            # A new function, which is traced anew; so are those below.
            return jax.jit(functools.partial(spread(init_all, mesh, (BY_SEED,), lies))).trace(keys, arguments=arguments)

        def trace_chunk() -> Any:
            if pieces is not None:
                spread_chunk = functools.partial(spread(fed_chunk, mesh, (lies, BY_SEED), (lies, in_rows)))
                fed = jax.jit(spread_chunk, donate_argnums=0)
                numbers = placed(pieces.numbers, mesh, BY_SEED)
                return fed.trace(template, numbers, arguments=pieces.arguments(arguments))
            return trace_unfed(arguments)

        def trace_unfed(arguments: PyTree) -> Any:
            spread_chunk = functools.partial(spread(chunk, mesh, (lies,), (lies, in_rows)))
            return jax.jit(spread_chunk, donate_argnums=0).trace(template, arguments=arguments)

        def lower_evaluate() -> Any:
            return jax.jit(functools.partial(evaluate_after)).lower(template, keys, np.uint32(0), arguments=arguments)

        keys = placed(jax.eval_shape(lambda: seed_keys(0, seeds)), mesh, BY_SEED)
        first = trace_init()
        template = placed(first.out_info, mesh, lies)
        pieces = None if feed is None else Pieces.of(feed, updates_per_chunk, first.out_info.key)
        # The chunk takes longest, so XLA gets it first. Of init it only needs to know what comes out.
        traced = trace_chunk()
        lowered = traced.lower()
        # Data on the host are learned from by what is compiled as if they were on the device, which keeps their bits.
        weighed = traced if feed is None else trace_unfed({**arguments, "data": feed.on_device})
        is_long = work.seconds(weighed.jaxpr.jaxpr) * chunks > LONG
        update = compiling("chunk", lowered, lambda: trace_chunk().lower(), THOROUGH if is_long else QUICK)
        init = compiling("init", first.lower(), lambda: trace_init().lower(), QUICKEST)
        after = None if evaluates_first else update
        evaluate = compiling("evaluation", lower_evaluate(), lower_evaluate, QUICK, after)
    threads.shutdown(wait=False)
    action = lowered.out_info[1].get("replay/action")
    return Compiled(
        init=init,
        chunk=update if feed is None or pieces is None else FedProgram(update, feed, pieces),
        evaluate=evaluate,
        template=template,
        keys=keys,
        action=None if action is None else jax.ShapeDtypeStruct(action.shape[1:], action.dtype),
        started=started,
        key=compile_times.key_of(lowered.as_text()),
    )
