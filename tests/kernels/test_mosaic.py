"""The GPU kernels without a GPU: lowered for one, interpreted on the CPU, and what happens where they cannot be had."""

import logging
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from engram.kernels import backends
from engram.kernels.gpu import block as mosaic_block
from engram.kernels.gpu import linear_scan as mosaic_linear
from engram.kernels.gpu import mosaic
from engram.kernels.gpu import selective_scan as mosaic_selective
from engram.kernels.linear_scan import linear_scan, linear_scan_planes
from engram.kernels.selective_scan import selective_scan
from tests.kernels.cases import CASES
from tests.kernels.test_scans import relative

TARGET = "mosaic_gpu_v2"
NAMES = ("linear, constant real", "linear, constant complex", "linear, planes", "linear, varying", "selective")
EACH = pytest.mark.parametrize("name", NAMES)
interpret = getattr(plgpu, "force_gpu_interpret_mode", None)
interpreted = pytest.mark.skipif(not interpret, reason=f"jax {jax.__version__} cannot interpret these kernels")


def inputs(T, B, D, N):
    """`weights, sequence, state` for each name in float64, and resets; channels `D` and states `N` of any number."""
    rng = np.random.default_rng(T + D)

    def normal(*shape):
        return rng.normal(size=shape)

    def numbers(*shape):
        return normal(*shape) + 1j * normal(*shape)

    x, h0 = numbers(T, B, D), numbers(B, D)
    decay = 0.9 * np.exp(1j * normal(D))
    dt = np.logaddexp(normal(T, B, D) - 1, 0)
    weights = -np.exp(normal(N, D)), normal(D)
    of = {
        "linear, constant real": (decay.real, x.real, h0.real),
        "linear, constant complex": (decay, x, h0),
        "linear, planes": (decay, np.concatenate([x.real, x.imag], -1), h0),
        "linear, varying": ((), (rng.random((T, B, D)), x.real), h0.real),
        "linear, varying complex": ((), (0.7 * numbers(T, B, D), x), h0),
        "selective": (weights, (x.real, dt, normal(T, B, N), normal(T, B, N)), normal(B, N, D)),
    }
    reset = rng.random((T, B)) < 0.2
    reset[0, 0] = reset[-1, -1] = True
    return of, reset


def value_and_gradients(scan, backend, weights, sequence, state, reset):
    """`(y, last), (d_weights, d_sequence, d_state)`."""
    out, vjp = jax.vjp(lambda w, s, h: scan(w, s, reset, h, backend), weights, sequence, state)
    return out, vjp(jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype), out))


def scan_of(name):
    return CASES[name.removesuffix(" complex") if "varying" in name else name].scan


def narrow(tree):
    return jax.tree.map(lambda x: x.astype(np.complex64 if np.iscomplexobj(x) else np.float32), tree)


def exported(run, *arguments, platform="cuda"):
    """The program that jax hands to the compiler for another platform."""
    checks = [jax.export.DisabledSafetyCheck.custom_call(TARGET)]
    try:
        return jax.export.export(jax.jit(run), platforms=[platform], disabled_checks=checks)(*arguments).mlir_module()
    except RuntimeError as error:
        if "device" in str(error) or "plugin" in str(error):
            pytest.skip(f"jax {jax.__version__} lowers only where there is a device: {str(error).splitlines()[0]}")
        raise


@pytest.fixture
def pretend(monkeypatch):
    """As if a GPU had passed the trial."""
    monkeypatch.setattr(mosaic, "available", lambda name: True)


@pytest.fixture
def interpreter(pretend, monkeypatch):
    """Kernels run on the CPU, step by step in Python, in place of what a CPU would otherwise run."""
    assert interpret
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *inputs, cuda, default: cuda(*inputs))
    with interpret():
        yield


@pytest.mark.parametrize("name", [*NAMES, "linear, varying complex"])
@pytest.mark.parametrize(("T", "B", "D", "N"), [(37, 2, 130, 4), (1, 1, 1, 1)])
def test_forward_and_backward_lower_for_a_gpu(name, T, B, D, N, pretend):
    of, reset = inputs(T, B, D, N)
    arguments = *narrow(of[name]), reset
    assert exported(partial(scan_of(name), backend="mosaic"), *arguments[:2], reset, arguments[2]).count(TARGET) == 1
    assert exported(partial(value_and_gradients, scan_of(name), "mosaic"), *arguments).count(TARGET) == 2


def test_mamba_lowers_at_its_usual_size(pretend):
    of, reset = inputs(40, 2, 256, 16)

    def scan(weights, sequence, reset, state, backend):
        (A, skip), (u, dt, b, c) = weights, sequence
        return selective_scan(u, dt, A, b, c, skip, reset, state, backend=backend)

    assert exported(partial(value_and_gradients, scan, "mosaic"), *narrow(of["selective"]), reset).count(TARGET) == 2


@pytest.mark.slow
@EACH
def test_they_lower_in_a_process_that_has_float64(name, pretend):
    of, reset = inputs(10, 2, 5, 3)
    arrays = narrow(of[name])
    with jax.enable_x64(True):
        assert exported(partial(value_and_gradients, scan_of(name), "mosaic"), *arrays, reset).count(TARGET) == 2


@pytest.mark.slow
@EACH
def test_they_lower_under_vmap(name, pretend):
    of, reset = inputs(10, 2, 5, 3)
    seeds = jax.tree.map(lambda x: np.stack([x, x / 2, x / 3]), narrow(of[name]))
    run = jax.vmap(partial(value_and_gradients, scan_of(name), "mosaic"), in_axes=(0, 0, 0, None))
    assert exported(run, *seeds, reset).count(TARGET) == 2


@interpreted
@pytest.mark.parametrize("name", [*NAMES, "linear, varying complex"])
def test_interpreted_kernels_match_float64(name, interpreter):
    """Two blocks of channels, the second with two of them; whole tiles and a rest."""
    of, reset = inputs(11, 2, 130, 3)
    ours = jax.jit(partial(value_and_gradients, scan_of(name), "mosaic"))(*narrow(of[name]), reset)
    with jax.enable_x64(True):
        truth = jax.jit(partial(value_and_gradients, scan_of(name), "reference"))(*of[name], reset)
        assert relative(ours, truth) < 1e-6


@interpreted
@pytest.mark.parametrize("name", ["linear, planes", "linear, varying", "selective"])
def test_interpreted_kernels_reset_by_select(name, interpreter):
    """What is not a number before a reset, the state included, leaves no trace after it."""
    weights, sequence, state = narrow(inputs(10, 1, 5, 3)[0][name])
    reset = np.zeros((10, 1), bool)
    reset[[0, 8]] = True
    bad = jax.tree.map(lambda x: np.concatenate([x[:5], np.full_like(x[:1], np.nan), x[6:]]), sequence)
    nan = jax.tree.map(lambda h: np.full_like(h, np.nan), state)
    run, truth = (jax.jit(partial(value_and_gradients, scan_of(name), backend)) for backend in ("mosaic", "reference"))
    (y, last), (_, d_sequence, d_state) = run(weights, bad, nan, reset)
    (y_clean, last_clean), (_, d_clean, _) = truth(weights, sequence, state, reset)
    assert np.isnan(y[5]).all()
    assert relative((y[:5], last), (y_clean[:5], last_clean)) < 1e-6
    after = jax.tree.map(lambda x: x[8:], ((y, d_sequence), (y_clean, d_clean)))
    assert relative(*after) < 1e-6
    assert not any(np.any(x) for x in jax.tree.leaves(d_state))


@interpreted
@pytest.mark.parametrize("name", ["linear, planes", "linear, varying", "selective"])
def test_interpreted_kernels_under_vmap(name, interpreter):
    of, reset = inputs(4, 2, 3, 2)
    seeds = jax.tree.map(lambda x: np.stack([x, x / 2]), narrow(of[name]))
    run, truth = (
        jax.jit(jax.vmap(partial(value_and_gradients, scan_of(name), backend), in_axes=(0, 0, 0, None)))
        for backend in ("mosaic", "reference")
    )
    assert relative(run(*seeds, reset), truth(*seeds, reset)) < 1e-6


def test_rows_of_mapped_calls_become_rows_of_one():
    """Each row by a kernel that knows no `vmap`: groups of rows share a factor, as decays are shared."""

    def kernel(factor, x):
        assert factor.ndim == 2
        assert x.ndim == 3
        return (jnp.repeat(factor, x.shape[1] // len(factor), 0) * x,)

    scale = mosaic_block.over_rows(kernel, inputs=(0, 1), results=(1,))
    rng = np.random.default_rng(0)
    factor, x = rng.normal(size=(3, 2, 1, 4)), rng.normal(size=(3, 2, 7, 5, 4))
    twice = jax.vmap(jax.vmap(lambda f, x: scale(f, x)[0]))(factor, x)
    np.testing.assert_allclose(twice, factor[:, :, None] * x, rtol=1e-6)
    shared = jax.vmap(lambda x: scale(factor[0, 0], x)[0], in_axes=1, out_axes=1)(x[0, 0][:, None])
    np.testing.assert_allclose(shared[:, 0], factor[0, 0] * x[0, 0], rtol=1e-6)


@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize("planes", [1, 2])
def test_a_linear_step_back_is_the_derivative_of_a_step(planes, reset):
    with jax.enable_x64(True):
        h, a, x, g = np.random.default_rng(planes).normal(size=(4, planes, 6))
        reset = jnp.int32(reset)
        out, vjp = jax.vjp(lambda h, x, a: mosaic_linear.step(h, a, x, reset), tuple(h), tuple(x), tuple(a))
        if not reset:
            product = (a[0] + 1j * a[-1]) * (h[0] + 1j * h[-1]) if planes == 2 else a[0] * h[0]
            np.testing.assert_allclose(out[0], np.real(product) + x[0], rtol=1e-12)
        zeros = (jnp.zeros(6),) * planes
        ours = mosaic_linear.step_back(tuple(g), tuple(a), zeros, reset, tuple(h), True)
        assert relative(ours, vjp(tuple(jnp.asarray(g)))) < 1e-14


@pytest.mark.parametrize("reset", [0, 1])
def test_a_selective_step_back_is_the_derivative_of_a_step(reset):
    with jax.enable_x64(True):
        N, D = 3, 6
        rng = np.random.default_rng(0)
        h, A, back = (list(rng.normal(size=(N, D))) for _ in range(3))
        u, dt, g = rng.normal(size=(3, D))
        B, C = (list(rng.normal(size=(N, D))) for _ in range(2))  # of each channel: nothing is summed
        reset = jnp.int32(reset)
        _, vjp = jax.vjp(lambda h, u, dt, A, B, C: mosaic_selective.step(h, u, dt, reset, A, B, C), h, u, dt, A, B, C)
        start = [jnp.zeros(D)] * N
        before, gradients = mosaic_selective.step_back(back, start, u, dt, g, reset, h, A, B, C)
        assert relative((before, *gradients), vjp((jnp.asarray(g), [jnp.asarray(x) for x in back]))) < 1e-14


@pytest.fixture
def forgetful():
    """`mosaic.available` asked anew inside the test, and again after it."""
    mosaic.available.cache_clear()
    yield
    mosaic.available.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "reason"),
    [(None, "gpu"), (["9.0", "8.0"], "compute capability 8.0"), (["gfx942"], "gfx942"), (["9.0"], "Device")],
    ids=["no GPU", "an old one", "not NVIDIA's", "one that the trial fails on"],
)
def test_without_such_a_gpu_the_answer_is_right_and_one_line_says_so(
    capabilities, reason, forgetful, monkeypatch, caplog
):
    if capabilities:
        devices = [SimpleNamespace(compute_capability=capability) for capability in capabilities]
        monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    weights, sequence, state = CASES["selective"].inputs(jax.random.key(0), 6, 2)

    def run(backend):
        return jax.jit(partial(CASES["selective"].scan, backend=backend))(weights, sequence, None, state)

    with caplog.at_level(logging.INFO):
        ours = [run("mosaic"), run("mosaic")]
    assert all(relative(one, run("xla")) == 0 for one in ours)
    lines = [r.getMessage() for r in caplog.records if r.name == mosaic.__name__]
    assert len(lines) == 1
    assert "selective_scan runs without its GPU kernel" in lines[0]
    assert reason in lines[0]


def test_the_environment_switches_them_off(forgetful, monkeypatch, caplog):
    monkeypatch.setenv("ENGRAM_KERNELS", "xla")
    assert not mosaic.available("linear")
    assert not caplog.records


def test_what_they_do_not_take_runs_without(pretend):
    """Other dtypes, too many states, nothing to do."""
    with jax.enable_x64(True):
        x = jnp.ones((3, 2, 5))
        text = exported(lambda x: linear_scan(jnp.full(5, 0.5), x, backend="mosaic"), x)
        assert TARGET not in text
    sequence, weights = jnp.ones((3, 2, 5)), jnp.ones((3, 2, 33))
    run = partial(selective_scan, backend="mosaic")
    assert TARGET not in exported(run, sequence, sequence, -jnp.ones((33, 5)), weights, weights)
    for T, B, D in ((0, 2, 3), (3, 0, 3), (3, 2, 0)):
        y, last = linear_scan_planes(jnp.ones(D, complex), jnp.ones((T, B, 2 * D)), backend="mosaic")
        assert (y.shape, last.shape) == ((T, B, 2 * D), (B, D))


def test_auto_takes_the_best_a_gpu_can_run(monkeypatch):
    x, reset = jnp.ones((40, 2, 5)), jnp.zeros((40, 2), bool)

    def run(x, reset):
        return jax.grad(lambda x: linear_scan(jnp.full(5, 0.5), x, reset)[0].sum())(x)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for available in (True, False):
        monkeypatch.setattr(mosaic, "available", lambda name: available)
        text = exported(lambda x, reset: run(x, reset), x, reset)
        assert (TARGET in text) == available
        assert "stablehlo.while" not in text  # no loop over time
        assert "stablehlo.while" in exported(lambda x, reset: run(x, reset), x, reset, platform="cpu")
    assert backends.compiled_backend() == "mosaic"


def test_a_cpu_never_imports_pallas():
    program = """
import sys, jax, jax.numpy as jnp
from engram.kernels.linear_scan import linear_scan
from engram.kernels.selective_scan import selective_scan
x = jnp.ones((3, 2, 4))
jax.jit(jax.grad(lambda x: linear_scan(jnp.ones(4), x)[0].sum()))(x)
jax.jit(jax.grad(lambda x: selective_scan(x, x, -jnp.ones((2, 4)), x[..., :2], x[..., :2])[0].sum()))(x)
sys.exit(any("pallas" in name for name in sys.modules))
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
