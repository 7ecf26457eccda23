"""State spaces with dense matrices: against SciPy's discretisation, and against the bases that they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import laguerre, legendre
from scipy import signal
from scipy.linalg import expm

from engram.kernels.lti_scan import lti_scan
from engram.memory.lssl import BASES, LSSL, inverse, steps
from tests.memory.test_layers import KEY, WIDTH, check, gated

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def states(A, B, u):
    """States `[T, n]` of one channel, step by step."""
    h, out = np.zeros(len(A)), []
    for u_t in u:
        h = A @ h + B.ravel() * u_t
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (3, {"basis": "lmu", "dt_min": 0.2, "dt_max": 0.2}),
        (0, {"basis": "legs", "dt_min": 0.1, "dt_max": 0.8, "discretisation": "bilinear"}),
        (0, {"basis": "legt", "train": "dt", "discretisation": "bilinear"}),
        (2, {"basis": "legs", "train": "all", "discretisation": "bilinear"}),
    ],
    ids=str,
)
def test_lssl(inputs, options):
    """One channel after the other, discretised by SciPy."""

    def recurrence(p):
        C, n = inputs or WIDTH, 4
        dts = np.exp(p["log_dt"]) if "log_dt" in p else np.geomspace(options["dt_min"], options["dt_max"], C)
        A, B = (p["A"], p["B"]) if options.get("train") == "all" else ([M] * C for M in BASES[options["basis"]](n))
        rest = np.eye(n), np.zeros((n, 1))
        method = options.get("discretisation", "zoh")
        systems: list[Any] = [signal.cont2discrete((A[c], B[c][:, None], *rest), dts[c], method) for c in range(C)]

        def of_episode(x):
            u = x @ p["inp"]["kernel"] if inputs else x
            h = np.stack([states(systems[c][0], systems[c][1], u[:, c]) for c in range(C)], 1)
            return gated(p["out"], h.reshape(len(h), -1) if inputs else (h * p["C"]).sum(-1) + p["D"] * u)

        return of_episode

    check(LSSL(WIDTH, state=4, inputs=inputs, param_dtype=jnp.float64, **options), recurrence)


@pytest.mark.parametrize("basis", ["lmu", "legt", "fout"])
def test_states_of_a_window_are_its_coefficients(basis):
    """Of a signal whose period is the window, so that its Fourier series has no jump; sampled amid steps."""
    window, n = 200, 13
    t = np.arange(4 * window) + 1

    def u(t):
        return 1 + np.cos(2 * np.pi * t / window) - 0.5 * np.sin(2 * np.pi * t / window)

    (A,), (B,) = steps(basis, n, (1 / window,), "zoh")
    s = (np.arange(2000) + 0.5) / 2000
    if basis == "fout":
        waves = [f(2 * np.pi * k * s) * np.sqrt(2) for k in range(1, 7) for f in (np.cos, np.sin)]
        functions = np.stack([np.ones_like(s), *waves])
    else:
        length = (2 * np.arange(n)[:, None] + 1) ** {"lmu": 1.0, "legt": 0.5}[basis]
        functions = length * [legendre.Legendre.basis(k)(2 * s - 1) for k in range(n)]
    expected = (u(t[-1] - window * s) * functions).mean(-1)
    np.testing.assert_allclose(states(A, B, u(t - 0.5))[-1], expected, atol=4e-3)


@pytest.mark.parametrize("s", [0.5, 1.0])
def test_an_lmu_reads_its_window(s):
    """A smooth signal half a window ago and a whole one, by its polynomials."""
    window, n = 20, 12
    t = np.arange(400)

    def u(t):
        return np.sin(2 * np.pi * t / 41) + np.cos(2 * np.pi * t / 67)

    (A,), (B,) = steps("lmu", n, (1 / window,), "zoh")
    weights = [legendre.Legendre.basis(k)(2 * s - 1) for k in range(n)]
    read = states(A, B, u(t)) @ weights
    late = s * window - 0.5  # an input stands for the step that begins with it
    np.testing.assert_allclose(read[100:], u(t - late)[100:], atol=0.02)


@pytest.mark.parametrize("basis", ["legs", "lagt"])
def test_responses_of_fading_bases_are_their_functions(basis):
    A, B = BASES[basis](6)
    for t in (0.0, 0.4, 2.0):
        if basis == "legs":
            polynomials = [np.sqrt(2 * k + 1) * legendre.Legendre.basis(k)(2 * np.exp(-t) - 1) for k in range(6)]
            functions = np.exp(-t) * np.array(polynomials)
        else:
            functions = np.exp(-t / 2) * np.array([laguerre.Laguerre.basis(k)(t) for k in range(6)])
        np.testing.assert_allclose(expm(t * A) @ B, functions, atol=1e-12)


@pytest.mark.parametrize("basis", ["legs", "legt", "fout"])
def test_a_constant_input_is_the_first_function(basis):
    A, B = BASES[basis](9)
    np.testing.assert_allclose(-np.linalg.solve(A, B), np.eye(9)[0], atol=1e-10)


def companion(column, B) -> Any:
    """The matrices of a step with these weights."""
    memory: Any = LSSL(1, basis="companion", state=len(column), inputs=0)
    inputs = memory.initial_state(1), jnp.zeros((1, 1, 1)), jnp.zeros((1, 1), bool)
    weights = {"last_column": jnp.asarray([column], jnp.float32), "B": jnp.asarray([B], jnp.float32)}
    return memory.apply({"params": memory.init(KEY, *inputs)["params"] | weights}, jnp.float32, method="matrices")


def test_a_companion_is_autoregressive():
    A, B = companion([-0.1, 0.3, 0.5], [0, 0, 1])
    noise = np.random.default_rng(0).normal(size=200)
    h, _ = lti_scan(A, jnp.asarray(noise, jnp.float32)[:, None, None, None] * B)
    np.testing.assert_allclose(h[:, 0, 0, -1], signal.lfilter([1], [1, -0.5, -0.3, 0.1], noise), atol=1e-5)


def test_a_companion_is_stable():
    A, _ = companion(9 * np.random.default_rng(0).normal(size=4), np.ones(4))
    assert np.abs(np.linalg.eigvals(A)).max() < 1 + 1e-6


def test_inverses_and_their_gradients():
    """Also of matrices that need pivots, and of many at once; the derivative of X = M^-1 is -X dM X."""
    M, g = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    M[:, 0, 0] = 0
    with jax.enable_x64(True):
        X = np.asarray(jax.jit(jax.vmap(inverse))(M))
        (gradient,) = jax.jit(lambda M: jax.vjp(inverse, M)[1](g))(M)
    np.testing.assert_allclose(X, np.linalg.inv(M), rtol=1e-9)
    np.testing.assert_allclose(gradient, -X.mT @ g @ X.mT, rtol=1e-9)
