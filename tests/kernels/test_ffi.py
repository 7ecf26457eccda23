"""The C++ kernels: shapes that need padding, `vmap`, other platforms, and machines where they cannot be had."""

import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.kernels.cpu import ffi
from engram.kernels.delta_scan import delta_scan
from engram.kernels.gla_scan import gla_scan
from engram.kernels.linear_scan import linear_scan, linear_scan_planes
from engram.kernels.selective_scan import selective_scan
from engram.kernels.window_scan import window_scan, window_scan_step
from tests.kernels.cases import CASES
from tests.kernels.test_scans import relative

pytestmark = pytest.mark.usefixtures("quickly_compiled")
needs_compiler = pytest.mark.skipif(not ffi.load("selective_scan"), reason="the C++ kernels cannot be built here")


def inputs(T, B, D, N):
    """`u, dt, A, B, C, skip, h0` and resets, float64, numpy."""
    rng = np.random.default_rng(T + D)
    u, dt = rng.normal(size=(2, T, B, D))
    b, c = rng.normal(size=(2, T, B, N))
    A, skip, h0 = -np.exp(rng.normal(size=(N, D))), rng.normal(size=D), rng.normal(size=(B, N, D))
    return (u, np.logaddexp(dt - 1, 0), A, b, c, skip, h0), rng.random((T, B)) < 0.1


def value_and_gradients(arrays, reset, backend, chunk=16):
    def run(*arrays):
        u, dt, A, b, c, skip, h0 = arrays
        return selective_scan(u, dt, A, b, c, skip, reset, h0, chunk=chunk, backend=backend)

    out, vjp = jax.vjp(run, *arrays)
    return out, vjp(jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape), out))


@needs_compiler
@pytest.mark.parametrize(
    ("T", "B", "D", "N", "chunk"),
    [
        (1, 1, 1, 1, 16),
        (37, 2, 130, 16, 16),  # three tiles of channels, the last with two of them; two tasks a row
        (40, 1, 200, 5, 8),  # a single row, all tiles in tasks of their own
        (33, 17, 64, 8, 64),  # one whole tile, one stretch longer than time
        (32, 3, 48, 16, 16),  # whole stretches
    ],
)
def test_all_shapes_match_float64(T, B, D, N, chunk):
    arrays, reset = inputs(T, B, D, N)
    run = jax.jit(value_and_gradients, static_argnums=(2, 3))
    with jax.enable_x64(True):
        truth = run(arrays, reset, "reference", chunk)
        ours = run(jax.tree.map(np.float32, arrays), reset, "ffi", chunk)
        assert {x.dtype for x in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
        assert relative(ours, truth) < 1e-6


@needs_compiler
@pytest.mark.parametrize(
    ("K", "V", "heads", "key_heads", "rows", "backends"),
    [
        (1, 1, 1, 1, False, ["ffi"]),
        (16, 64, 2, 2, False, ["ffi"]),  # whole vectors, one tile of columns
        # Three tiles, the last with two columns; one key for all heads, in chunks another shape of product.
        (19, 130, 3, 1, False, ["ffi", "xla"]),
        (33, 70, 2, 2, True, ["ffi"]),
    ],
)
def test_all_sizes_of_gla_scan_match_float64(K, V, heads, key_heads, rows, backends):
    T, B = 21, 2
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, T, B, key_heads, K)) / np.sqrt(K)
    v, h0 = rng.normal(size=(T, B, heads, V)), rng.normal(size=(B, heads, K, V))
    log_decay = -np.exp(rng.normal(size=(T, B, heads, K) if rows else (T, B, heads)))
    reset = jnp.asarray(rng.random((T, B)) < 0.1)

    @partial(jax.jit, static_argnums=1)
    def run(arrays, backend):
        def scan(q, k, v, log_decay, h0):
            return gla_scan(q, k, v, log_decay, reset, h0, backend=backend)

        out, vjp = jax.vjp(scan, *arrays)
        return out, vjp(jax.tree.map(jnp.cos, out))

    arrays = q, k, v, log_decay, h0
    with jax.enable_x64(True):
        truth = run(arrays, "reference")
        for backend in backends:
            assert relative(run(jax.tree.map(np.float32, arrays), backend), truth) < 2e-6


@needs_compiler
@pytest.mark.parametrize(
    ("T", "H", "D", "W"),
    [(1, 1, 1, 1), (40, 2, 16, 16), (70, 3, 19, 20), (21, 1, 33, 40)],  # padded features, windows longer than time
)
def test_all_sizes_of_window_scan_match_float64(T, H, D, W):
    B = 3
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, T, B, H, D))
    keys, values = rng.normal(size=(2, B, W, H, D))
    bias, place = rng.normal(size=(H, W + 1)), (np.arange(B) % W * (W + 1) + W).astype(np.int32)
    reset = jnp.asarray(rng.random((T, B)) < 0.1)

    @partial(jax.jit, static_argnums=1)
    def run(arrays, backend):
        def scan(q, k, v, bias, keys, values):
            y, last = window_scan(q, k, v, bias, reset, (keys, values, place), backend=backend)
            return y, last[:2]

        out, vjp = jax.vjp(scan, *arrays)
        return out, vjp(jax.tree.map(jnp.cos, out))

    arrays = q / np.sqrt(D), k, v, bias, keys, values
    with jax.enable_x64(True):
        truth, ours = run(arrays, "reference"), run(jax.tree.map(np.float32, arrays), "ffi")
        # The least bit of a score is that of a gradient: without weights on it, nothing is left to compare.
        assert relative(ours, truth) < 3e-6 or T == 1


@needs_compiler
@pytest.mark.parametrize("backend", ["xla", "ffi"])
def test_steps_of_window_scan_under_vmap_have_gradients_and_leave_their_input(backend):
    """Two seeds; the state that a step takes the memory of is needed still."""
    B, H, D, W = 3, 2, 4, 3
    rng = np.random.default_rng(0)
    keys, values = jnp.asarray(rng.normal(size=(2, 2, B, W, H, D)), jnp.float32)
    q, k, v = jnp.asarray(rng.normal(size=(3, 2, B, H, D)), jnp.float32)
    bias, place = jnp.asarray(rng.normal(size=(2, H, W + 1)), jnp.float32), jnp.full((2, B), W, jnp.int32)
    reset = jnp.array([False, True, False])

    def loss(keys, values, place, q, k, v, bias):
        (new_keys, new_values, _), y = window_scan_step((keys, values, place), q, k, v, bias, reset, backend=backend)
        return jnp.sum(y**2) + jnp.sum(new_keys * jnp.sin(keys)) + jnp.sum(new_values**2)

    def truth(keys, values, place, q, k, v, bias):
        y, last = window_scan(q[None], k[None], v[None], bias, reset[None], (keys, values, place), backend="reference")
        return jnp.sum(y**2) + jnp.sum(last[0] * jnp.sin(keys)) + jnp.sum(last[1] ** 2)

    arrays = keys, values, place, q, k, v, bias
    numbers = (0, 1, 3, 4, 5, 6)
    ours, expected = (jax.jit(jax.vmap(jax.value_and_grad(f, argnums=numbers)))(*arrays) for f in (loss, truth))
    assert relative(ours, expected) < 1e-5


@needs_compiler
@pytest.mark.parametrize(
    ("K", "V", "n", "decays", "read"),
    [
        (1, 1, 1, "none", False),
        (16, 16, 1, "none", False),  # whole vectors
        (19, 150, 3, "head", False),  # three tiles, the last of two vectors; stretches of five steps, the last cut
        (6, 40, 1, "channel", True),
        pytest.param(33, 64, 20, "channel", False, marks=pytest.mark.slow),  # more updates a step than a stretch has
    ],
)
def test_all_sizes_of_delta_scan_match_float64(K, V, n, decays, read):
    T, B, H = 21, 2, 3
    rng = np.random.default_rng(0)
    several = (T, B, n, H) if n > 1 else (T, B, H)
    q, h0 = rng.normal(size=(T, B, H, K)), rng.normal(size=(B, H, K, V))
    k, p = rng.normal(size=(2, *several, K))
    k, p = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, p))
    v, beta = rng.normal(size=(*several, V)), rng.uniform(0, 2, several)
    log_decay = {"none": None, "head": -rng.uniform(size=(T, B, H)), "channel": -rng.uniform(size=(T, B, H, K))}[decays]
    reset = jnp.asarray(rng.random((T, B)) < 0.1)

    def value_and_gradients(arrays, backend):
        def scan(q, k, v, beta, log_decay, read, h0):
            return delta_scan(q, k, v, beta, log_decay, reset, h0, read=read, n_householder=n, backend=backend)

        out, vjp = jax.vjp(scan, *arrays)
        return out, vjp(jax.tree.map(jnp.cos, out))

    run = jax.jit(value_and_gradients, static_argnums=1)
    arrays = q, k, v, beta, log_decay, p if read else None, h0
    with jax.enable_x64(True):
        truth = run(arrays, "reference")
        narrow = jax.tree.map(np.float32, arrays)
        ours = run(narrow, "ffi")
        assert relative(ours, truth) < 3e-6
    pair = jax.tree.map(lambda x: np.stack([x, x / 2]), narrow)
    mapped = jax.jit(jax.vmap(partial(value_and_gradients, backend="ffi")))(pair)
    assert relative(jax.tree.map(lambda x: x[0], mapped), ours) == 0


@needs_compiler
@pytest.mark.parametrize(
    ("case", "T", "B", "H"),
    [
        ("gru", 1, 1, 1),
        ("gru", 40, 1, 16),  # one row of whole vectors; more steps than the sums of the weights' gradient take at once
        ("gru", 9, 7, 40),  # tiles of 4, 2 and 1 rows; panels of two vectors and of one
        ("lstm", 5, 3, 5),
        ("lstm", 7, 35, 19),  # several tasks, the last of 3 rows; rows of weights beside a whole tile
        ("lstm", 6, 8, 64),
    ],
)
def test_all_sizes_of_gru_and_lstm_match_float64(case, T, B, H):
    gates, scan = {"gru": 3, "lstm": 4}[case], CASES[case].scan
    rng = np.random.default_rng(H)
    x, Wh, bh = rng.normal(size=(T, B, gates * H)), rng.normal(size=(H, gates * H)) / H**0.5, rng.normal(size=H)
    c0, h0 = rng.normal(size=(2, B, H))
    arrays = (Wh, bh) if case == "gru" else Wh, x, h0 if case == "gru" else (c0, h0)
    reset = jnp.asarray(rng.random((T, B)) < 0.2)

    def value_and_gradients(arrays, backend):
        out, vjp = jax.vjp(lambda weights, x, state: scan(weights, x, reset, state, backend), *arrays)
        return out, vjp(jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape), out))

    run = jax.jit(value_and_gradients, static_argnums=1)
    with jax.enable_x64(True):
        truth = run(arrays, "reference")
        narrow = jax.tree.map(np.float32, arrays)
        ours = run(narrow, "ffi")
        assert relative(ours, truth) < 3e-6
    pair = jax.tree.map(lambda x: np.stack([x / 2, x]), narrow)
    mapped = jax.jit(jax.vmap(partial(value_and_gradients, backend="ffi")))(pair)
    assert relative(jax.tree.map(lambda x: x[1], mapped), ours) < 1e-6  # a sum over steps is XLA's


@needs_compiler
@pytest.mark.parametrize("case", ["gru", "lstm"])
def test_gates_of_large_and_small_inputs_are_those_of_the_plain_scan(case):
    """Saturated ones are 0 or 1 to rounding, small ones keep their digits, NaN stays NaN in its row."""
    gates, size = {"gru": 3, "lstm": 4}[case], 8
    sizes = np.array([1e-30, 1e-6, 1e-3, 1, 30, 1e30, np.inf, np.nan], np.float32)
    x = jnp.asarray(np.tile(np.outer(sizes, np.array([1, -1, 0.5, 2, -3, 1, 1, -2], np.float32)), (1, gates)))[None]
    Wh = jnp.zeros((size, gates * size))
    weights = (Wh, jnp.zeros(size)) if case == "gru" else Wh
    ours, truth = (CASES[case].scan(weights, x, None, None, backend)[0][0] for backend in ("ffi", "reference"))
    np.testing.assert_allclose(ours[:4], truth[:4], rtol=1e-6)
    np.testing.assert_allclose(ours[4:], truth[4:], rtol=1e-6, atol=2e-7)
    assert np.isnan(ours[-1]).all()
    assert np.isfinite(ours[:-1]).all()


@needs_compiler
def test_the_gradient_of_strong_decays_is_not_a_small_difference_of_large_numbers():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 300, 1, 2, 16))
    log_decay = -np.abs(rng.normal(10, 3, (300, 1, 2)))
    with jax.enable_x64(True):

        def gradient(log_decay, backend, dtype):
            a, b, c, g = (jnp.asarray(x, dtype) for x in (q, k, v, log_decay))
            return jax.grad(lambda g: gla_scan(a, b, c, g, backend=backend)[0].sum())(g)

        truth = gradient(log_decay, "reference", np.float64)
        assert relative(gradient(log_decay, "ffi", np.float32), truth) < 1e-5


@pytest.mark.parametrize("backend", ["reference", "xla", "ffi"])
def test_shapes_that_do_not_fit_are_one_clear_error(backend):
    x = jnp.ones((5, 2, 4))
    heads = jnp.ones((5, 2, 3, 4))
    with pytest.raises(ValueError, match=r"linear_scan: a has shape \(5, 2, 1\), not \(5, 2, 4\)"):
        linear_scan(x[..., :1], x, backend=backend)
    with pytest.raises(ValueError, match=r"linear_scan: reset has shape \(5, 1\), not \(5, 2\)"):
        linear_scan(x[0, 0], x, jnp.zeros((5, 1), bool), backend=backend)
    with pytest.raises(ValueError, match=r"gla_scan: h0 has shape \(1, 3, 4, 4\), not \(2, 3, 4, 4\)"):
        gla_scan(heads, heads, heads, heads, None, jnp.ones((1, 3, 4, 4)), backend=backend)
    with pytest.raises(ValueError, match=r"selective_scan: B has shape \(5, 1, 3\), not \(5, 2, 3\)"):
        selective_scan(x, x, jnp.ones((3, 4)), jnp.ones((5, 1, 3)), jnp.ones((5, 2, 3)), backend=backend)


@pytest.mark.skipif(not any(map(shutil.which, ffi.COMPILERS)), reason="no compiler here")
@pytest.mark.parametrize("name", [file.stem for file in ffi.SOURCES.glob("*.cc")])
def test_every_kernel_builds(name):
    """One that does not would fall back, and pass every other test."""
    assert ffi.load(name)


@needs_compiler
def test_it_is_the_c_plus_plus_kernel_that_runs():
    arrays, reset = inputs(4, 2, 3, 2)
    for backend, there in (("auto", True), ("ffi", True), ("xla", False)):
        text = jax.jit(value_and_gradients, static_argnums=2).lower(arrays, reset, backend).as_text()
        assert ("selective_scan_forward" in text) == ("selective_scan_backward" in text) == there


@needs_compiler
def test_vmap_over_any_axes_equals_a_loop():
    arrays, reset = inputs(9, 2, 20, 4)
    arrays = jax.tree.map(np.float32, arrays)
    many = jax.tree.map(lambda x: np.stack([[x, x / 2, x / 3], [x / 4, x / 5, x / 6]]), arrays)
    run = jax.jit(lambda arrays: value_and_gradients(arrays, reset, "ffi"))
    nested = jax.jit(jax.vmap(jax.vmap(lambda arrays: value_and_gradients(arrays, reset, "ffi"))))(many)
    loop = [[run(jax.tree.map(lambda x, i=i, j=j: x[i, j], many)) for j in range(3)] for i in range(2)]
    rows = [jax.tree.map(lambda *xs: jnp.stack(xs), *row) for row in loop]
    assert relative(nested, jax.tree.map(lambda *xs: jnp.stack(xs), *rows)) == 0


@needs_compiler
def test_extreme_steps_saturate_as_the_exponential_does():
    """A step so long that the decay is 0, one so short that it is 1, and one that is not a number."""
    dt = jnp.asarray([0.0, 1e30, 1e-30, jnp.nan], jnp.float32).reshape(4, 1, 1)
    one = jnp.ones((4, 1, 1))
    h0 = jnp.full((1, 1, 1), 3.0)
    for backend in ("ffi", "reference"):
        decays = [
            selective_scan(0 * one[:1], dt[t : t + 1], -one[0], one[:1], one[:1], None, None, h0, backend=backend)[1]
            for t in range(4)
        ]
        np.testing.assert_array_equal(np.ravel(decays[:3]), [3, 0, 3])
        assert np.isnan(decays[3]).all()


def test_programs_for_other_platforms_do_without():
    arrays, reset = inputs(4, 2, 3, 2)
    run = jax.jit(lambda arrays: value_and_gradients(arrays, reset, "auto"))
    try:
        exported = jax.export.export(run, platforms=["cuda"])(arrays)
    except (RuntimeError, ValueError) as error:  # newer versions need the CUDA plugin even to lower
        pytest.skip(str(error).splitlines()[0])
    assert "selective_scan_forward" not in exported.mlir_module()


@pytest.fixture
def forgetful():
    """`ffi.load` asked anew inside the test, and again after it."""
    ffi._load.cache_clear()
    yield
    ffi._load.cache_clear()


def test_threads_that_want_the_same_kernel_build_it_once(forgetful, monkeypatch):
    built = []

    def library(name):
        built.append(name)
        time.sleep(0.1)  # XLA refuses the handlers of a second library
        raise OSError("none here")

    monkeypatch.setattr(ffi, "_library", library)
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ffi.load, ["linear_scan"] * 3)) == [False] * 3
    assert built == ["linear_scan"]


@pytest.mark.parametrize("trouble", ["none", "broken", "folder"])
def test_without_a_compiler_the_answer_is_right_and_one_line_says_so(trouble, forgetful, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if trouble == "none":
        monkeypatch.setattr(ffi, "COMPILERS", ("no-such-compiler",))
    elif trouble == "broken":
        compiler = tmp_path / "g++"
        compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "internal error: out of luck" >&2; exit 1; }\n')
        compiler.chmod(0o755)
        monkeypatch.setattr(ffi, "COMPILERS", (str(compiler),))
    else:
        monkeypatch.setattr(ffi, "SOURCES", tmp_path)
    arrays, reset = inputs(6, 2, 3, 2)
    arrays = jax.tree.map(np.float32, arrays)
    with caplog.at_level(logging.INFO):
        ours = [value_and_gradients(arrays, reset, backend) for backend in ("auto", "ffi", "auto")]
    truth = value_and_gradients(arrays, reset, "xla")
    assert all(relative(one, truth) == 0 for one in ours)
    lines = [r.getMessage() for r in caplog.records if r.name == ffi.__name__ and r.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "without its C++ kernel" in lines[0]
    assert {"none": "no C++ compiler", "broken": "out of luck", "folder": "No such file"}[trouble] in lines[0]


@pytest.mark.parametrize("there", [True, False])
def test_tracing_does_not_wait_for_a_kernel_that_is_built_beside(there, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr(ffi, "load", lambda name: may_end.wait(60) and there)
    float32 = jnp.dtype(jnp.float32), (jnp.float32,)
    with ffi.built_beside() as built:
        assert ffi.if_loaded("linear_scan", *float32) == "ffi"
        assert ffi.if_loaded("linear_scan", jnp.dtype(jnp.float64), (jnp.float32,)) == "xla"
        may_end.set()
        assert built() == there
    assert ffi.if_loaded("linear_scan", *float32) == ("ffi" if there else "xla")


def test_a_defect_while_building_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(ffi, "load", lambda name: {}[name])
    with ffi.built_beside() as built:
        ffi.if_loaded("linear_scan", jnp.dtype(jnp.float32), (jnp.float32,))
        with pytest.raises(KeyError, match="linear_scan"):
            built()


def test_the_environment_switches_them_off(forgetful, monkeypatch, caplog):
    monkeypatch.setenv("ENGRAM_KERNELS", "xla")
    assert not ffi.load("selective_scan")
    assert not caplog.records


@needs_compiler
def test_no_steps_and_no_rows():
    """Without steps the state stays as it is; without rows there is nothing to do."""
    for case in ("linear, constant complex", "linear, planes", "linear, varying", "selective"):
        weights, sequence, state = CASES[case].inputs(jax.random.key(0), 0, 3)
        y, last = jax.jit(CASES[case].scan)(weights, sequence, None, state)
        assert y.shape[:2] == (0, 3)
        np.testing.assert_array_equal(last, state)
        y, last = jax.jit(CASES[case].scan)(*CASES[case].inputs(jax.random.key(0), 4, 0)[:2], None, None)
        assert y.shape[:2] == (4, 0)


def test_planes_take_the_widest_of_their_inputs():
    with jax.enable_x64(True):
        x, h0 = jax.random.normal(jax.random.key(0), (5, 2, 6)), jnp.ones((2, 3), complex)
        a = jnp.array([0.5 + 0.5j, 0.9j, 0.1])
        truth = linear_scan_planes(a, x, None, h0, backend="reference")
        x = x.astype(jnp.float32)
        assert relative(linear_scan_planes(a, x, None, h0), truth) < 1e-6
        assert relative(linear_scan_planes(a.astype(jnp.complex64), x, None, h0), truth) < 1e-6


@pytest.fixture
def copier(tmp_path):
    """A compiler that writes its source, twice, where the library should be."""
    path = tmp_path / "copier"
    path.write_text(
        """#!/bin/sh
[ "$1" = --version ] && exit
while [ $# -gt 1 ]; do [ "$1" = -o ] && library=$2; shift; done
cat "$1" "$1" > "$library"
"""
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("trouble", ["fails", "another machine's"])
def test_the_next_compiler_is_tried(trouble, copier, monkeypatch, tmp_path):
    first = tmp_path / "compiler"
    first.write_bytes(b"#!/bin/false\n" if trouble == "fails" else b"\x7fELF")
    first.chmod(0o700)
    monkeypatch.setattr(ffi, "COMPILERS", (str(first), copier))
    library = ffi._compiled("linear_scan", tmp_path)
    assert library.parent == tmp_path
    assert library.read_bytes() == 2 * (ffi.SOURCES / "linear_scan.cc").read_bytes()


def test_a_library_is_built_once_and_anew_where_it_is_damaged(copier, monkeypatch, tmp_path):
    """Loading a file that a full disk cut short would kill the process."""
    monkeypatch.setattr(ffi, "COMPILERS", (copier,))
    library = ffi._compiled("linear_scan", tmp_path)
    whole, written = library.read_bytes(), library.stat().st_mtime_ns
    assert ffi._compiled("linear_scan", tmp_path) == library
    assert library.stat().st_mtime_ns == written
    library.write_bytes(whole[:1000])
    assert ffi._compiled("linear_scan", tmp_path) == library
    assert library.read_bytes() == whole


@pytest.mark.parametrize("trouble", ["mode", "owner", "pipe", "link"])
def test_a_library_of_others_is_built_anew(trouble, copier, monkeypatch, tmp_path):
    monkeypatch.setattr(ffi, "COMPILERS", (copier,))
    monkeypatch.setattr(ffi, "_hash", lambda content: "same")
    library = ffi._compiled("linear_scan", tmp_path)
    whole = library.read_bytes()
    library.write_bytes(b"of others")
    if trouble == "mode":
        library.chmod(0o777)
    elif trouble == "owner":
        if os.getuid():
            pytest.skip("only root can give a file away")
        os.chown(library, 1234, 1234)
    elif trouble == "pipe":
        library.unlink()
        os.mkfifo(library)
    else:
        library.rename(tmp_path / "elsewhere")
        library.symlink_to(tmp_path / "elsewhere")
    assert ffi._compiled("linear_scan", tmp_path) == library
    assert not library.is_symlink()
    assert library.read_bytes() == whole
    assert (library.stat().st_uid, library.stat().st_mode & 0o777) == (os.getuid(), 0o700)


@pytest.fixture
def loaded_from(copier, monkeypatch, tmp_path):
    """Folders from which libraries were loaded, with what the operating system says of one that is mounted noexec."""
    folders, trouble = [], set()

    def cdll(path):
        folders.append(Path(path).parent)
        if Path(path).parent in trouble:
            raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ffi, "COMPILERS", (copier,))
    monkeypatch.setattr(ffi.ctypes, "CDLL", cdll)
    return folders, trouble


def test_a_folder_that_others_can_write_to_is_not_trusted(loaded_from, tmp_path):
    folders, cached = loaded_from[0], tmp_path / "engram"
    ffi._library("linear_scan")
    assert folders == [cached]
    assert cached.stat().st_mode & 0o777 == 0o700
    cached.chmod(0o777)
    ffi._library("linear_scan")
    assert folders[1] != cached
    assert not folders[1].exists()


def test_another_folder_is_tried_where_nothing_in_the_cache_may_run(loaded_from, tmp_path):
    folders, noexec = loaded_from
    noexec.add(tmp_path / "engram")
    ffi._library("linear_scan")
    assert folders[0] == tmp_path / "engram"
    assert len(folders) == 2
    assert not folders[1].exists()


def test_an_unknown_wish_is_named(forgetful, monkeypatch, caplog):
    monkeypatch.setenv("ENGRAM_KERNELS", "off")
    monkeypatch.setattr(ffi, "COMPILERS", ())
    ffi.load("selective_scan")
    assert "ENGRAM_KERNELS=off is neither auto nor xla" in caplog.text
