"""Random numbers in C++: the published values, JAX's bits, and the programs that use them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core.primitives import threefry2x32_p

from engram.kernels import threefry
from engram.kernels.cpu import ffi
from engram.training.programs import compile_agent, jit

needs_compiler = pytest.mark.skipif(not ffi.load(threefry.KERNEL), reason="the C++ kernel cannot be built here")
pytestmark = needs_compiler


def lowered(function, *inputs, **how):
    """A program with our kernel. (The function is new, so that nothing lowered before is found.)"""
    with threefry.in_cpp():
        return jax.jit(lambda *inputs: function(*inputs)).trace(*inputs).lower(**how)


def hashed(*words):
    return threefry2x32_p.bind(*map(jnp.asarray, words))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_values_published_with_random123(counter, key, expected):
    words = tuple(np.uint32(word) for word in (*key, *counter))
    program = lowered(hashed, *words)
    assert threefry.TARGET in program.as_text()
    assert tuple(int(word) for word in program.compile()(*words)) == expected


@pytest.mark.parametrize(
    ("keys", "counters"),
    [
        ((), (7,)),  # a scalar and a vector do not broadcast in JAX, so the key gets an axis below
        ((3, 1), (1, 5)),
        ((3, 5), (1, 5)),
        ((2, 1, 4), (2, 3, 1)),
        ((1,), (50_000,)),  # a row in several tasks
        ((300, 1), (300, 100)),  # tasks of several rows, the last with fewer
        ((0, 1), (0, 5)),
    ],
)
def test_shapes_that_broadcast_give_jaxs_bits(keys, counters):
    rng = np.random.default_rng(0)
    keys = keys or (1,)
    words = [rng.integers(0, 2**32, shape, np.uint32) for shape in (keys, keys, counters, counters)]
    ours = lowered(hashed, *words).compile()(*words)
    theirs = jax.jit(hashed)(*words)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == np.broadcast_shapes(keys, counters)
        np.testing.assert_array_equal(one, other)


def draws(key):
    keys = jax.random.split(key, 5)
    return (
        jax.random.key_data(keys),
        jax.random.bits(key, (3, 5), "uint8"),
        jax.random.uniform(key),
        jax.vmap(lambda key: jax.random.normal(key, (4, 33)))(keys),
        jax.vmap(lambda key: jax.random.permutation(key, 13))(keys),
        jax.vmap(lambda key: jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(jnp.arange(6)))(keys),
        jax.lax.scan(lambda key, _: (jax.random.fold_in(key, 1), jax.random.randint(key, (2,), 0, 9)), key, None, 7)[1],
    )


def test_everything_that_is_drawn_is_the_same():
    key = jax.random.key(3)
    program = lowered(draws, key)
    assert "shift_left" not in program.as_text()  # nothing is left of JAX's own
    for ours, theirs in zip(program.compile()(key), jax.jit(draws)(key), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_programs_for_cpus_that_ask_for_it_call_it(monkeypatch):
    key = jax.random.key(0)
    assert threefry.TARGET not in lowered(jax.random.split, key, lowering_platforms=("cuda",)).as_text()
    assert threefry.TARGET not in jax.jit(lambda key: jax.random.split(key)).lower(key).as_text()
    assert threefry.TARGET in lowered(jax.random.split, key).as_text()
    with threefry.in_cpp():
        lowered(jax.random.split, key)
        assert threefry.TARGET in jax.jit(lambda key: jax.random.split(key, 3)).lower(key).as_text()  # still
    monkeypatch.setenv("ENGRAM_KERNELS", "xla")
    assert threefry.TARGET not in lowered(jax.random.split, key).as_text()


class Drawing:
    """An agent that draws."""

    def init(self, key):
        return {"key": key, "x": jax.random.uniform(key)}

    def update(self, state):
        key, draw = jax.random.split(state["key"])
        return {"key": key, "x": jax.random.uniform(draw)}, {"x": state["x"]}

    def evaluate(self, state, key, axis_name=None):
        return {"eval/return": jax.random.uniform(key)}


def test_the_programs_of_a_run_call_it(monkeypatch):
    texts = []
    compiling = jax.stages.Lowered.compile

    def seen(self, *args, **options):
        texts.append(self.as_text())
        return compiling(self, *args, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", seen)
    agent: Any = Drawing()
    programs = compile_agent(agent, 2, 3)
    programs.evaluate.wait()
    assert len(texts) == 3
    assert all(threefry.TARGET in text for text in texts)
    key = jax.random.key(1)
    assert jit(lambda key: jax.random.uniform(key))(key) == jax.random.uniform(key)
