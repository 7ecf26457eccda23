"""Python functions called from compiled programs: values, failures, and programs that other processes use again."""

import gc
import os
import subprocess
import sys
import threading
from functools import partial

import jax
import numpy as np
import pytest

from engram.kernels import host_call
from engram.kernels.cpu import ffi
from engram.kernels.host_call import HostCall, errors_as_raised

needs_compiler = pytest.mark.skipif(not ffi.load(host_call.KERNEL), reason="the C++ kernel cannot be built here")
NUMBER = jax.ShapeDtypeStruct((), np.int32)


@pytest.fixture(params=["by number", "by JAX"])
def either_way(request, monkeypatch):
    """Both ways from a program to Python."""
    if request.param == "by JAX":
        monkeypatch.setattr(ffi, "is_there", lambda name: False)
    elif not ffi.load(host_call.KERNEL):
        pytest.skip("the C++ kernel cannot be built here")


@pytest.mark.usefixtures("either_way")
def test_values_of_all_kinds_arrive_and_return():
    seen = []

    def function(tree, flag):
        seen.append((tree, flag))
        return {
            "sum": tree["x"].sum(0) + tree["n"],
            "not": ~flag,
            "none": np.zeros((0, 3), np.float32),
            "u": np.uint8(7),
        }

    results = {
        "sum": jax.ShapeDtypeStruct((3,), np.float32),
        "not": jax.ShapeDtypeStruct((2,), np.bool_),
        "none": jax.ShapeDtypeStruct((0, 3), np.float32),
        "u": jax.ShapeDtypeStruct((), np.uint8),
    }
    call = HostCall(function)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = jax.jit(partial(call, results))({"x": x, "n": np.int32(2)}, np.array([True, False]))
    assert out["sum"].tolist() == [5, 7, 9]
    assert out["not"].tolist() == [False, True]
    assert out["none"].shape == (0, 3)
    assert int(out["u"]) == 7
    (tree, flag) = seen[0]
    assert (tree["x"].dtype, tree["n"].dtype, flag.dtype) == (np.float32, np.int32, np.bool_)
    gc.collect()
    assert tree["x"].tolist() == x.tolist()  # what the function keeps stays as it was


@pytest.mark.usefixtures("either_way")
def test_a_scan_calls_in_order_and_calls_without_effect_may_be_left_out():
    calls = []
    step = HostCall(lambda token: calls.append(int(token)) or np.int32(token + 1))
    look = HostCall(lambda token: calls.append("looked") or token, is_pure=True)

    @jax.jit
    def run(token):
        look(NUMBER, token)
        return jax.lax.scan(lambda token, _: (step(NUMBER, token), token), token, None, length=20)

    last, tokens = run(3)
    assert int(last) == 23
    assert calls == tokens.tolist() == [*range(3, 23)]


@pytest.mark.usefixtures("either_way")
def test_what_a_function_raises_is_raised_and_the_next_call_works():
    class Mine(Exception):
        pass

    def function(x):
        if x < 0:
            raise Mine("below zero")
        return x

    run = jax.jit(partial(HostCall(function), NUMBER))
    with pytest.raises(Mine, match="below zero") as caught, errors_as_raised():
        jax.block_until_ready(run(-1))
    assert caught.value.__cause__ is None
    assert caught.traceback[-1].name == "function"
    assert int(run(4)) == 4
    with pytest.raises(jax.errors.JaxRuntimeError, match="below zero"):
        jax.block_until_ready(run(-1))
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"), errors_as_raised():  # not the one before
        raise jax.errors.JaxRuntimeError("another")


class Speechless(Exception):
    def __str__(self):
        raise KeyError("no words")


@pytest.mark.usefixtures("either_way")
def test_each_thread_gets_its_own_error():
    """Two programs at once: each begins before the other has raised, and each ends after it."""
    both_called, both_raised, caught = threading.Barrier(2), threading.Barrier(2), {}

    def run(name):
        def function(x):
            both_called.wait(60)
            raise ValueError(f"of {name}")

        program = jax.jit(partial(HostCall(function), NUMBER))
        try:
            with errors_as_raised():
                try:
                    jax.block_until_ready(program(0))
                finally:
                    both_raised.wait(60)
        except ValueError as error:
            caught[name] = str(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caught == {"A": "of A", "B": "of B"}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    "error",
    [
        *(OSError("no file \udcff"), ValueError("caf\u00e9 \0 end"), ValueError("x" * 10**6)),
        *(Speechless(), SystemExit(3), StopIteration("the end")),
    ],
    ids=["surrogate", "nul", "long", "speechless", "exit", "stop"],
)
def test_whatever_is_raised_arrives_whatever_it_says(error):
    def function(x):
        raise error

    with pytest.raises(type(error)) as caught, errors_as_raised():
        jax.block_until_ready(jax.jit(partial(HostCall(function), NUMBER))(0))
    assert caught.value is error


@pytest.mark.usefixtures("either_way")
def test_errors_that_nobody_asks_for_are_not_collected(monkeypatch):
    monkeypatch.setattr(host_call, "MOST_KEPT", 2)

    def function(x):
        raise ValueError(int(x))

    run = jax.jit(partial(HostCall(function), NUMBER))
    with errors_as_raised() as context:
        for i in range(3):
            with pytest.raises(jax.errors.JaxRuntimeError):
                jax.block_until_ready(run(i))
        assert [str(error) for error in context.kept] == ["0", "1"]
    assert not host_call._contexts


@needs_compiler
def test_a_result_of_another_shape_is_refused():
    call = HostCall(lambda x: np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) should have shape \(2, 3\)"), errors_as_raised():
        jax.block_until_ready(jax.jit(partial(call, jax.ShapeDtypeStruct((2, 3), np.float32)))(0))


@needs_compiler
def test_numbers_are_used_again_and_a_closed_function_is_not_called():
    first, second = HostCall(lambda x: x), HostCall(lambda x: x + 1)
    assert second.number != first.number
    run = jax.jit(partial(first, NUMBER))
    assert int(run(1)) == 1
    first.close()
    with pytest.raises(RuntimeError, match="was closed"), errors_as_raised():
        jax.block_until_ready(run(1))
    kept = [HostCall(lambda x: np.zeros(5, np.float32))]  # with other numbers, where tests before left lower ones
    while kept[-1].number != first.number:
        kept.append(HostCall(kept[-1].function))
    third = kept[-1]
    jax.jit(partial(third, jax.ShapeDtypeStruct((5,), np.float32))).lower(0)
    with pytest.raises(RuntimeError, match="was closed"), errors_as_raised():  # not third's, into too little memory
        jax.block_until_ready(run(1))
    number = second.number
    del second
    gc.collect()
    fourth = HostCall(lambda x: x)
    while fourth.number != number:
        kept.append(fourth)
        fourth = HostCall(lambda x: x)
    assert int(jax.jit(partial(fourth, NUMBER))(9)) == 9
    del first  # does not free the number again
    gc.collect()
    assert HostCall(lambda x: x).number not in (third.number, fourth.number)


@needs_compiler
def test_other_platforms_use_jaxs_callbacks():
    call = HostCall(lambda x: x)
    traced = jax.jit(partial(call, NUMBER)).trace(0)
    assert "io_callback" in str(traced.jaxpr)  # only a machine that has a GPU could lower it for one
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "@host_call" in on_cpu
    assert "callback" not in on_cpu


FAILING = """
import jax, numpy as np
from engram.kernels.host_call import HostCall, errors_as_raised
call = HostCall(lambda x: 1 / 0)
with errors_as_raised():
    jax.block_until_ready(jax.jit(lambda x: call(x, x))(np.float32(1)))
"""


def test_a_process_that_ends_by_an_error_shows_it_once():
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False)
    assert done.stderr.count("ZeroDivisionError") == done.stderr.count("Traceback") == 1, done.stderr


PROGRAM = """
import jax, numpy as np
from engram.kernels.cache import keep_compiled_programs
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_enable_compilation_cache", True)
from engram.envs.registry import make_vector
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
env = make_vector("gymnasium/CartPole-v1", 2, seed=SEED)
key = jax.random.key(0)

@jax.jit
def play(key):
    _, state = env.reset(key, env.default_params)
    step = lambda state, _: env.step(key, state, np.ones(2, np.int32), env.default_params)[1:3]
    return jax.lax.scan(step, state, None, length=5)

program = play.lower(key)
hits.clear()
program = program.compile()
print(sum(hits), program(key)[1].sum())
"""


@needs_compiler
def test_the_program_of_an_emulator_is_used_again_by_other_processes(tmp_path):
    def run(seed):
        others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment = {**others, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
        code = PROGRAM.replace("SEED", str(seed))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert run(0) == ["0", "10.0"]
    assert run(1) == ["1", "10.0"]  # another seed is the same program too
