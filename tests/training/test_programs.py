"""Programs that are compiled side by side: what they compute, what users decide, what a failure looks like."""

import json
import threading
from concurrent.futures import Future
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.cpu import ffi
from engram.kernels.host_call import HostCall
from engram.kernels.linear_scan import linear_scan
from engram.training import compile_times, programs
from engram.training.programs import EVALUATION, QUICK, QUICKEST, THOROUGH, Program, compile_agent, options, seed_keys


class Counter:
    """An agent that counts its updates from a number drawn for its seed."""

    def init(self, key):
        return {"count": jax.random.uniform(key)}

    def update(self, state):
        return {"count": state["count"] + 1.0}, {"count": state["count"]}

    def evaluate(self, state, key, axis_name=None):
        return {"eval/return": state["count"] + jax.random.uniform(key)}


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_three_programs_are_the_agents_functions(seeds):
    agent: Any = Counter()
    keys = seed_keys(3, seeds)
    made = compile_agent(agent, seeds, updates_per_chunk=4)
    states = made.init(keys)
    first = states["count"]
    assert first.tolist() == jax.vmap(agent.init)(keys)["count"].tolist()
    states, metrics = made.chunk(states)
    assert metrics["count"].shape == (4, seeds)
    assert states["count"].tolist() == pytest.approx((metrics["count"][0] + 4).tolist())
    own = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, EVALUATION), 7))(keys)
    expected = jax.vmap(agent.evaluate)(states, own)["eval/return"]
    assert made.evaluate(states, keys, np.uint32(7))["eval/return"].tolist() == pytest.approx(expected.tolist())
    assert made.seconds > 0
    assert all(program.is_there for program in made.all)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 2])
def test_keys_of_seeds_are_those_of_jax(seed):
    keys = [jax.random.key(np.uint32(seed + i)) for i in range(2)]
    assert jnp.array_equal(jax.random.key_data(seed_keys(seed, 2)), jax.random.key_data(jnp.stack(keys)))
    assert seed_keys(seed, 2).dtype == keys[0].dtype


def test_nothing_is_compiled_in_the_thread_that_asked(monkeypatch):
    threads = set()
    compile_ = jax.stages.Lowered.compile

    def watched(self, *args, **kwargs):
        threads.add(threading.current_thread())
        return compile_(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", watched)
    made = compile_agent(cast(Any, Counter()), 1, 2)
    assert made.seconds > 0
    assert threads
    assert threading.main_thread() not in threads


class Summing(Counter):
    """One whose update runs a kernel."""

    def update(self, state):
        h, last = linear_scan(jnp.full(1, 0.5), jnp.ones((3, 1, 1)) * state["count"])
        return {"count": last[0, 0]}, {"count": h.sum()}


@pytest.fixture
def forgetful():
    """Kernels are looked for anew inside the test, and again after it."""
    ffi._load.cache_clear()
    yield
    ffi._load.cache_clear()


def test_a_kernel_that_cannot_be_built_is_done_without(forgetful, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ffi, "COMPILERS", ("no-such-compiler",))
    made = compile_agent(cast(Any, Summing()), 1, 2)
    assert "linear_scan_forward" not in str(made.chunk.compiled.as_text())
    states = made.init(seed_keys(0, 1))
    expected = 1.75**2 * states["count"]  # 1, then 1.5, then 1.75 times the input
    np.testing.assert_allclose(made.chunk(states)[0]["count"], expected, rtol=1e-6)


def test_a_failure_to_compile_is_raised_where_the_program_is_needed():
    failing: Future = Future()
    program, called = Program("chunk", None, failing), []
    program.when_there(lambda: called.append(True))
    assert not program.is_there
    failing.set_exception(MemoryError("no room"))
    assert called
    for use in (program, program.wait):
        with pytest.raises(MemoryError, match="no room"):
            use()


def test_users_own_flags_take_precedence(monkeypatch):
    jax.config.update("jax_disable_most_optimizations", False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert options(QUICK) == QUICK
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert options(QUICK) == {}
    assert options(QUICKEST) == {name: value for name, value in QUICKEST.items() if name not in QUICK}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert options(QUICK) is None
    monkeypatch.undo()
    jax.config.update("jax_disable_most_optimizations", True)
    assert options(QUICK) is None


def test_a_long_run_is_compiled_to_be_fast_and_a_short_one_to_begin_soon(monkeypatch):
    for thread in threading.enumerate():  # of earlier tests, whose programs are not meant
        if thread.name.startswith("compile"):
            thread.join()
    wanted, compile_ = [], jax.stages.Lowered.compile

    def watched(self, compiler_options=None):
        wanted.append(compiler_options)
        return compile_(self)

    monkeypatch.setattr(jax.stages.Lowered, "compile", watched)
    monkeypatch.setattr(programs, "options", lambda wanted: wanted)
    agent, options_of = cast(Any, Counter()), {}
    for chunks in (1, 10**12):
        made = compile_agent(agent, 1, 2, True, chunks)
        assert made.seconds > 0
        options_of[chunks] = sorted(map(str, wanted))
        wanted.clear()
    assert options_of[1] == sorted(map(str, (QUICK, QUICKEST, QUICK)))
    assert options_of[10**12] == sorted(map(str, (THOROUGH, QUICKEST, QUICK)))


def test_every_option_is_one_that_xla_knows():
    for wanted in (QUICK, QUICKEST):
        compiled = jax.jit(lambda x: x + 1, compiler_options=wanted)
        assert compiled(jnp.ones(())) == 2


def test_times_are_kept_where_there_is_a_place_and_bad_files_are_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = compile_times.key_of("a", "b")
    assert key != compile_times.key_of("ab")
    assert compile_times.recall(key) is None
    compile_times.remember(key, 12.34)
    assert compile_times.recall(key) == 12.3
    monkeypatch.setattr(compile_times, "MOST", 2)
    for name in ("x", "y"):
        compile_times.remember(name, 1.0)
    file = tmp_path / "engram" / "compile_times.json"
    assert list(json.loads(file.read_text())) == ["x", "y"]
    for damaged in ("", "[1]", '{"x": "long"}', "\0"):
        file.write_text(damaged)
        assert compile_times.recall("x") is None
    file.unlink()
    file.mkdir()
    compile_times.remember("x", 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    compile_times.remember("x", 1.0)
    assert compile_times.recall("x") is None


def test_what_an_emulator_raises_in_a_program_of_its_own_is_raised_as_it_is():
    def step(x):
        raise KeyError("a fault of the user's own")

    call = HostCall(step)
    with pytest.raises(KeyError, match="own") as error:
        programs.jit(lambda x: call(x, x))(np.int32(0))
    assert error.traceback[-1].name == "step"


def test_arguments_of_the_agent_are_those_of_the_program():
    program = Program("init", {"data": 5}, Future())
    program._compiling.set_result((lambda x, arguments: x + arguments["data"], 0.0))
    assert program(1) == 6
