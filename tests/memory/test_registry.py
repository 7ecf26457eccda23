"""Building memories by name, as a command line does."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from engram.memory import MEMORIES, UnknownMemory, make_memory, memory_options
from engram.memory.gru import GRU
from engram.memory.mamba import Mamba
from engram.memory.s5 import S5


def test_options_and_defaults():
    assert memory_options("mamba") == {"state": 16, "expand": 2, "conv": 4, "dt_rank": 0, "backend": "auto"}
    assert memory_options("none") == {}


def test_strings_are_converted():
    memory = make_memory("s5", 8, layers=2, norm=False, state="16", blocks="2", dt_max="0.5", gate="gelu")
    assert memory.layers == (S5(8, state=16, blocks=2, dt_max=0.5, gate="gelu"),) * 2
    assert not memory.norm
    assert make_memory("mamba", 8, expand=1).layers == (Mamba(8, expand=1),)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mambo", {}, "unknown memory 'mambo': did you mean mamba or mamba2?"),
        ("xyz", {}, "unknown memory 'xyz': choose from " + ", ".join(sorted(MEMORIES))),
        ("s5", {"sate": 3}, "memory 's5' has no option 'sate': did you mean state"),
        ("none", {"state": 3}, "memory 'none' has no option 'state': it has none"),
        ("s5", {"state": "many"}, "s5.state = 'many' is not of type int"),
        ("s5", {"state": 8.5}, "s5.state = 8.5 is not of type int"),
        ("s5", {"state": True}, "s5.state = True is not of type int"),
        ("s5", {"spectrum": "flat"}, "s5.spectrum = 'flat': choose from hippo, ptd"),
        ("s5", {"state": 7}, "s5: state (7) must be a positive multiple of 2 * blocks (2)"),
        ("attention", {"heads": 3}, "attention: needs window >= 1 and heads that divide width 8"),
        ("lru", {"r_min": 2.0}, "lru: needs"),
        ("mingru", {"expand": 0}, "mingru: needs"),
        ("gru", {"max_timescale": 0.5}, "gru: max_timescale must be at least 1"),
        ("gru", {"max_timescale": float("nan")}, "gru: max_timescale must be at least 1"),
        ("mamba", {"conv": 0}, "mamba: needs"),
        ("mamba2", {"head": 5}, "mamba2: heads of 5 channels do not divide 16 channels"),
        ("gla", {"heads": 3}, "gla: heads=3 must divide keys and values of sizes (4, 8)"),
        ("deltanet", {"updates": 0}, "deltanet: needs"),
        ("aaren", {"heads": 3}, "aaren: needs heads that divide width 8"),
        ("s5", {"backend": "nope"}, "unknown backend 'nope': choose from auto, reference, xla"),
        ("gla", {"chunk": 3}, "chunk must be a power of 2, got 3"),
        ("gla", {"expand_k": float("inf")}, "gla: expand_k=inf and expand_v=1.0 must be finite"),
        ("gru", {"layers": 0}, "memory 'gru': layers (0) and width (8) must be at least 1"),
    ],
)
def test_bad_requests_are_one_clear_line(name, options, message):
    with pytest.raises(UnknownMemory) as error:
        make_memory(name, 8, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


def test_unknown_backend_is_reported():
    """A layer of one's own complains at its first use, `make_memory` at once (above)."""
    memory = GRU(8, backend="cuda")
    x, reset = jnp.ones((2, 1, 8)), jnp.ones((2, 1), bool)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        memory.init(jax.random.key(0), memory.initial_state(1), x, reset)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_stack_is_its_formula(norm, residual):
    """Two memoryless layers, by hand."""
    memory = make_memory("none", 4, layers=2, norm=norm, residual=residual)
    x = jax.random.normal(jax.random.key(0), (1, 3, 4))
    state, reset = memory.initial_state(3), jnp.ones((1, 3), bool)
    parameters = jax.jit(memory.init)(jax.random.key(1), state, x, reset)
    after, y = jax.jit(memory.apply)(parameters, state, x, reset)
    truth: Any = x
    for i in range(2):
        p = parameters["params"]
        assert (f"norms_{i}" in p) == norm
        u = (truth - truth.mean(-1, keepdims=True)) / jnp.sqrt(truth.var(-1, keepdims=True) + 1e-6) if norm else truth
        _, out = MEMORIES["none"](4).apply({"params": p[f"layers_{i}"]}, (), u, reset)
        truth = truth + out if residual else out
    assert jnp.allclose(y, truth, atol=1e-5)
    assert after == state == ((), ())
