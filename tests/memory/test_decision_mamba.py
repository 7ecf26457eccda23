"""Decision Mamba's block: against a float64 computation in NumPy, a token at a time; as it trains and as it acts."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.errors import UnknownName
from engram.memory import make_memory
from engram.memory.decision_mamba import DecisionMamba
from engram.memory.mixers import MIXERS, make_mixer, mixer_options
from engram.testing import with_nan

STEPS, B, WIDTH, STATE = 5, 2, 4, 3
KEY = jax.random.key(0, impl="unsafe_rbg")


def silu(x):
    return x / (1 + np.exp(-x))


def tokens_of(steps: np.ndarray) -> np.ndarray:
    """Resets of steps as resets of tokens: of each step's first alone."""
    tokens = np.zeros((len(steps), 3, steps.shape[1]), bool)
    tokens[:, 0] = steps
    return tokens.reshape(-1, steps.shape[1])


@cache
def case() -> SimpleNamespace:
    """Float64 parameters, inputs and outputs of one block; row 0 opens an episode at steps 0 and 2, row 1 never."""
    rng = np.random.default_rng(0)
    x, reset = rng.normal(size=(3 * STEPS, B, WIDTH)), np.zeros((STEPS, B), bool)
    reset[[0, 2], 0] = True
    with jax.enable_x64(True):
        block = DecisionMamba(WIDTH, state=STATE, param_dtype=jnp.float64)
        state = block.initial_state(B)
        parameters = jax.jit(block.init)(KEY, state, x, tokens_of(reset))
        parameters = jax.tree.map(lambda p: np.asarray(p) + 0.3 * rng.normal(size=p.shape), parameters)
        apply: Any = jax.jit(block.apply)
        _, y = apply(parameters, state, x, tokens_of(reset))
    return SimpleNamespace(parameters=parameters, x=x, reset=reset, y=np.asarray(y), apply=apply, block=block)


def selective_space(p, inputs):
    """Mamba's state space in float64, `inputs[T, channels]`."""
    h, out = np.zeros(p["A_log"].shape), []
    for u in silu(inputs):
        low_rank, B_t, C_t = np.split(u @ p["x_proj"]["kernel"], [1, 1 + STATE])
        dt = np.log1p(np.exp(low_rank @ p["dt_proj"]["kernel"] + p["dt_proj"]["bias"]))
        h = np.exp(-np.exp(p["A_log"]) * dt) * h + np.outer(B_t, dt * u)
        out.append(C_t @ h + p["D"] * u)
    return np.array(out)


def test_block_is_that_of_figure_1():
    c = case()
    p = c.parameters["params"]
    expected = np.zeros_like(c.x)
    for b, start, end in ((0, 0, 2), (0, 2, STEPS), (1, 0, STEPS)):
        n = c.x[3 * start : 3 * end, b]
        projected, gate = np.split(n @ p["in_proj"]["kernel"], 2, -1)
        padded = np.concatenate([np.zeros((3, projected.shape[1])), projected])
        convolved = [(padded[t : t + 4] * p["conv_weight"]).sum(0) + p["conv_bias"] for t in range(len(n))]
        coarse = selective_space(p, np.array(convolved))
        groups = [
            np.concatenate([n[3 * k - 1] if k else np.zeros(WIDTH), n[3 * k], n[3 * k + 1]]) for k in range(len(n) // 3)
        ]
        fine = selective_space(p["fine"], np.array(groups) @ p["group_proj"]["kernel"])
        both = [coarse[t] + fine[t // 3] for t in range(len(n))]
        expected[3 * start : 3 * end, b] = (np.array(both) * silu(gate)) @ p["out_proj"]["kernel"]
    np.testing.assert_allclose(c.y, expected, rtol=1e-9, atol=1e-9)


def test_without_its_fine_branch_it_is_mamba():
    rng = np.random.default_rng(1)
    x, reset = jnp.asarray(rng.normal(size=(3 * STEPS, B, WIDTH)), jnp.float32), tokens_of(case().reset)
    ours = make_mixer("dm", WIDTH, 2).stack
    mamba = make_memory("mamba", WIDTH, 2, rms=True)
    parameters = jax.tree.map(np.asarray, jax.jit(ours.init)(KEY, ours.initial_state(B), x, reset))
    blocks = [name for name in parameters["params"] if "fine" in parameters["params"][name]]
    assert len(blocks) == 2
    apply: Any = jax.jit(ours.apply)
    full = apply(parameters, ours.initial_state(B), x, reset)[1]
    plain = dict(parameters["params"])
    for name in blocks:
        parameters["params"][name]["group_proj"]["kernel"] = np.zeros((3 * WIDTH, 2 * WIDTH), np.float32)
        plain[name] = {k: v for k, v in plain[name].items() if k not in ("fine", "group_proj")}
    off = apply(parameters, ours.initial_state(B), x, reset)[1]
    truth = jax.jit(mamba.apply)({"params": plain}, mamba.initial_state(B), x, reset)[1]
    np.testing.assert_allclose(off, truth, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(np.asarray(full) - np.asarray(off))) > 1e-2


def test_sequences_cut_anywhere_equal_the_whole():
    c = case()
    with jax.enable_x64(True):
        for cut in (3, 6, 12):
            state, first = c.apply(c.parameters, c.block.initial_state(B), c.x[:cut], tokens_of(c.reset)[:cut])
            _, second = c.apply(c.parameters, state, c.x[cut:], tokens_of(c.reset)[cut:])
            np.testing.assert_allclose(np.concatenate([first, second]), c.y, atol=1e-12)


def test_a_reset_forgets_a_nan_in_the_state():
    c = case()
    opened = tokens_of(c.reset | (np.arange(STEPS) == 0)[:, None])
    with jax.enable_x64(True):
        fresh = c.block.initial_state(B)
        _, clean = c.apply(c.parameters, fresh, c.x, opened)
        _, y = c.apply(c.parameters, with_nan(fresh), c.x, opened)
        np.testing.assert_array_equal(y, clean)
        observe = jax.jit(lambda *args: c.block.apply(c.parameters, *args, method="observe"))
        _, y = observe(with_nan(fresh), c.x[:2], np.ones(B, bool))
        np.testing.assert_allclose(y, clean[:2], atol=1e-12)


def test_mixers_are_all_memories_and_dm():
    from engram.memory import MEMORIES

    assert set(MIXERS) == {*MEMORIES, "dm"}
    assert mixer_options("dm") == mixer_options("mamba") | {"start": "published"}
    with pytest.raises(UnknownName, match="did you mean dm"):
        make_mixer("dmm", 8, 1)
    with pytest.raises(UnknownName, match="unknown memory 'dm'"):
        make_memory("dm", 8)
