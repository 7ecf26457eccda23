"""What every scan with resets must do, each fact for each kernel."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from engram.kernels.window_scan import oldest_first, window_scan
from tests.kernels.cases import CASES

T, B = 13, 3
pytestmark = pytest.mark.usefixtures("quickly_compiled")
FIRST = {name.partition(",")[0]: name for name in reversed(CASES)}.values()
"""The first case of each kernel. The others run where there is time for what is slow."""


def param(name: str, *values, **more):
    return pytest.param(*values, **more, marks=() if name in FIRST else pytest.mark.slow)


EACH = pytest.mark.parametrize("case", [param(name, case, id=name) for name, case in CASES.items()])


def each_backend():
    """Every kernel on every fast backend."""
    pairs = [(name, case, backend) for name, case in CASES.items() for backend in case.backends]
    return pytest.mark.parametrize(("case", "backend"), [param(n, c, b, id=f"{n}-{b}") for n, c, b in pairs])


def resets(pattern: str, T: int = T, B: int = B) -> np.ndarray:
    reset = np.zeros((T, B), bool)
    if pattern == "first":
        reset[0] = True
    elif pattern == "last":
        reset[-1] = True
    elif pattern == "adjacent":
        reset[[4, 5, 6], 1] = True
    elif pattern == "everywhere":
        reset[:] = True
    elif pattern == "scattered":
        reset[[0, 3, 9, 4, 11], [0, 0, 0, 1, 1]] = True  # row 2 has none
    return reset


PATTERNS = ("absent", "first", "last", "adjacent", "everywhere", "scattered")


def relative(a, b) -> float:
    """Largest relative L2 distance between the leaves of two trees."""
    errors = jax.tree.map(lambda x, y: np.linalg.norm(x - y) / (np.linalg.norm(y) + 1e-30), a, b)
    return max(map(float, jax.tree.leaves(errors)))


@cache
def jitted_scan(case, backend="auto"):
    def run(*inputs):
        with case.where():
            return case.scan(*inputs, backend=backend)

    return jax.jit(run)


@cache
def value_and_gradients(case, backend):
    """Compiled: value, and its vector-Jacobian product with a fixed cotangent, for weights, sequence and state.

    With `since`, the cotangent is that of the outputs from this step on alone, and not of the last state.
    """

    def run(weights, sequence, state, reset, since):
        with case.where():
            return traced(weights, sequence, state, reset, since)

    def traced(weights, sequence, state, reset, since):
        out, vjp = jax.vjp(lambda w, s, h: case.scan(w, s, reset, h, backend), weights, sequence, state)
        y, last = jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype), out)
        steps = jnp.arange(len(y)).reshape(-1, *[1] * (y.ndim - 1))
        return out, vjp((jnp.where(steps >= since, y, 0), jax.tree.map(lambda h: jnp.where(since > 0, 0, h), last)))

    jitted = jax.jit(run)
    return lambda *inputs, since=0: jitted(*inputs, since)  # traced, given or not


@EACH
def test_hand_written_gradients_equal_float64_autodiff(case):
    with jax.enable_x64(True):
        inputs = case.inputs(jax.random.key(0), T, B)
        ours, truth = value_and_gradients(case, "xla"), value_and_gradients(case, "reference")
        for pattern in PATTERNS:
            assert relative(ours(*inputs, resets(pattern)), truth(*inputs, resets(pattern))) < 1e-12, pattern


def forward_mode():
    """Backends of every kernel that have forward-mode derivatives: the plain one, and chunks of matrix products."""
    chunked = [name for name in CASES if name.startswith(("gla", "delta", "window", "marked"))]
    return [(name, "reference") for name in CASES] + [(name, "xla") for name in chunked]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), forward_mode())
def test_forward_mode_agrees_with_reverse_mode(name, backend):
    case = CASES[name]
    with jax.enable_x64(True):
        inputs, reset = case.inputs(jax.random.key(0), T, B), resets("scattered")
        tangents = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size).reshape(x.shape)).astype(x.dtype), inputs)

        def run(weights, sequence, state):
            return case.scan(weights, sequence, reset, state, backend)

        @jax.jit
        def products(inputs, tangents):
            out, forward = jax.jvp(run, inputs, tangents)
            cotangents = jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype), out)
            gradients = jax.vjp(run, *inputs)[1](cotangents)
            pairs = (forward, cotangents), (gradients, tangents)
            # Real parts: where real numbers and complex ones meet, JAX drops the imaginary part of a gradient.
            return [
                sum(jnp.sum(x * y).real for x, y in zip(*map(jax.tree.leaves, pair), strict=True)) for pair in pairs
            ]

        np.testing.assert_allclose(*products(inputs, tangents), rtol=1e-9)


@pytest.mark.slow
@EACH
def test_one_step_of_one_row(case):
    with jax.enable_x64(True):
        inputs = case.inputs(jax.random.key(1), 1, 1)
        pair = [value_and_gradients(case, backend)(*inputs, resets("absent", 1, 1)) for backend in ("xla", "reference")]
        assert relative(*pair) < 1e-12


def test_selective_scan_of_whole_chunks_only():
    """Eight steps in chunks of four: no padding."""
    case = CASES["selective"]
    with jax.enable_x64(True):
        inputs, reset = case.inputs(jax.random.key(1), 8, 2), resets("last", 8, 2)
        pair = [value_and_gradients(case, backend)(*inputs, reset) for backend in ("xla", "reference")]
        assert relative(*pair) < 1e-12


@each_backend()
def test_float32_close_to_float64(case, backend):
    with jax.enable_x64(True):
        exact = case.inputs(jax.random.key(2), T, B)
        truth = value_and_gradients(case, "reference")(*exact, resets("scattered"))
        narrow = jax.tree.map(lambda x: x.astype(jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32), exact)
        (y, last), gradients = value_and_gradients(case, backend)(*narrow, resets("scattered"))
        assert {x.dtype for x in jax.tree.leaves((y, last))} <= {jnp.dtype("float32"), jnp.dtype("complex64")}
        assert relative(((y, last), gradients), truth) < 3e-6


@each_backend()
def test_no_reset_argument_means_no_reset(case, backend):
    weights, sequence, state = case.inputs(jax.random.key(3), T, B)
    run = jitted_scan(case, backend)
    assert relative(run(weights, sequence, None, state), run(weights, sequence, resets("absent"), state)) < 1e-6
    assert relative(run(weights, sequence, None, None), run(weights, sequence, None, case.fresh(state))) == 0


@each_backend()
@pytest.mark.parametrize("pattern", ["absent", "scattered"])
def test_steps_equal_the_scan(case, backend, pattern):
    weights, sequence, state = case.inputs(jax.random.key(4), T, B)
    reset = resets(pattern)
    y, last = jitted_scan(case, backend)(weights, sequence, reset, state)
    step = jax.jit(case.step)
    outputs = []
    for t in range(T):
        state, out = step(weights, state, jax.tree.map(lambda x: x[t], sequence), reset[t])
        outputs.append(out)
    assert relative((jnp.stack(outputs), state), (y, last)) < case.tolerance


@each_backend()
def test_cut_anywhere_equals_the_whole(case, backend):
    weights, sequence, state = case.inputs(jax.random.key(5), T, B)
    reset = resets("scattered")
    run = jitted_scan(case, backend)
    whole = run(weights, sequence, reset, state)
    for cut in (1, T - 1):  # two lengths, so two programs; one is of whole chunks of four
        head, middle = run(weights, jax.tree.map(lambda x: x[:cut], sequence), reset[:cut], state)
        tail, last = run(weights, jax.tree.map(lambda x: x[cut:], sequence), reset[cut:], middle)
        assert relative((jnp.concatenate([head, tail]), last), whole) < case.tolerance, cut


@each_backend()
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_bad_survives_a_reset(case, backend, bad):
    """A bad state at a reset of step 0 leaves no trace; a bad input before a reset leaves none after it."""
    weights, sequence, state = case.inputs(jax.random.key(6), T, B)
    gradients = value_and_gradients(case, backend)
    poisoned = jax.tree.map(lambda h: jnp.full_like(h, bad), state)
    clean = gradients(weights, sequence, state, resets("first"))
    assert relative(gradients(weights, sequence, poisoned, resets("first")), clean) == 0

    reset = resets("absent")
    reset[8] = True
    bad_input = jax.tree.map(lambda x: x.at[5].set(bad), sequence)
    (y, last), (_, d_sequence, _) = gradients(weights, bad_input, state, reset)
    (y_clean, last_clean), (_, d_clean, _) = gradients(weights, sequence, state, reset)
    if np.isnan(bad):  # gates swallow an infinity, but the NaN was there
        assert np.isnan(y[5]).all()
    after = jax.tree.map(lambda x: x[8:], (y, d_sequence))
    assert relative((after, last), (jax.tree.map(lambda x: x[8:], (y_clean, d_clean)), last_clean)) == 0


@each_backend()
def test_nothing_bad_leaves_the_chunk_of_a_reset(case, backend):
    """A NaN two chunks of four before, the reset inside a chunk: by the next one it is gone, whatever the kernel."""
    weights, sequence, state = case.inputs(jax.random.key(6), T, B)
    reset = resets("absent")
    reset[10] = True
    gradients = value_and_gradients(case, backend)
    bad_input = jax.tree.map(lambda x: x.at[3].set(jnp.nan), sequence)
    (y, last), (_, d_sequence, _) = gradients(weights, bad_input, state, reset)
    (y_clean, last_clean), (_, d_clean, _) = gradients(weights, sequence, state, reset)
    assert np.isnan(y[3]).all()
    bad, clean = (jax.tree.map(lambda x: x[12:], pair) for pair in ((y, d_sequence), (y_clean, d_clean)))
    assert relative((bad, last), (clean, last_clean)) == 0


@each_backend()
def test_no_gradient_crosses_a_reset(case, backend):
    weights, sequence, state = case.inputs(jax.random.key(7), T, B)
    reset = resets("absent")
    reset[8, 1] = True

    _, (_, d_sequence, d_state) = value_and_gradients(case, backend)(weights, sequence, state, reset, since=8)
    for g in jax.tree.leaves(d_sequence):
        assert (np.asarray(g[:8, 1]) == 0).all()
    assert all((np.asarray(g[1]) == 0).all() for g in jax.tree.leaves(d_state))
    kept = sum(np.abs(g[7, [0, 2]]).sum() for g in jax.tree.leaves(d_sequence))
    assert kept > 0


@each_backend()
def test_bfloat16_input_keeps_a_float32_state(case, backend):
    weights, sequence, state = case.inputs(jax.random.key(8), T, B)
    if jnp.iscomplexobj(jax.tree.leaves(sequence)[0]):
        pytest.skip("there is no complex bfloat16")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), sequence)
    y, last = jitted_scan(case, backend)(weights, half, resets("scattered"), state)
    assert y.dtype == jnp.bfloat16
    assert {h.dtype for h in jax.tree.leaves(last)} <= {jnp.dtype("float32"), jnp.dtype("complex64")}
    exact, _ = jitted_scan(case, backend)(
        weights, jax.tree.map(lambda x: x.astype(jnp.float32), half), resets("scattered"), state
    )
    assert relative(y.astype(jnp.float32), exact) < 2**-8


@each_backend()
@pytest.mark.parametrize("size", [(0, B), (T, 0)], ids=["no steps", "no rows"])
def test_nothing_to_do(case, backend, size):
    weights, sequence, state = case.inputs(jax.random.key(9), T, B)
    sequence, reset = jax.tree.map(lambda x: x[: size[0], : size[1]], (sequence, resets("absent")))
    state = jax.tree.map(lambda h: h[: size[1]], state)
    (y, last), gradients = value_and_gradients(case, backend)(weights, sequence, state, reset)
    assert y.shape[:2] == size
    assert relative(last, state) == 0
    of_weights, of_sequence, _ = gradients
    assert jax.tree.map(jnp.shape, of_sequence) == jax.tree.map(jnp.shape, sequence)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(of_weights))


BAD_RESETS = [np.zeros((T, 1), bool), np.zeros(B, bool), np.zeros((T, B), np.float32), np.zeros((T, B), np.int32)]


@each_backend()
@pytest.mark.parametrize("reset", BAD_RESETS, ids=lambda reset: f"{reset.shape} {reset.dtype}")
def test_a_reset_of_another_kind_is_one_clear_error(case, backend, reset):
    weights, sequence, state = case.inputs(jax.random.key(9), T, B)
    with pytest.raises(ValueError, match=r"_scan(_planes)?: reset (has shape|must be of dtype bool)"):
        jax.eval_shape(lambda: case.scan(weights, sequence, reset, state, backend))
    if reset.ndim == 2:  # of one step; `[B]` is right there
        now = jax.tree.map(lambda x: x[0], sequence)
        with pytest.raises(ValueError, match=r"the mask (has shape|must be of dtype bool)"):
            jax.eval_shape(lambda: case.step(weights, state, now, reset[0]))


@EACH
def test_arrays_that_do_not_fit_are_one_clear_error(case):
    """Each array in turn is longer by one along each of its axes; the state of another batch also in a step."""
    inputs, structure = jax.tree.flatten(case.inputs(jax.random.key(9), T, B))
    for i, array in enumerate(inputs):
        for axis in range(array.ndim):
            longer = jnp.concatenate([array, jax.lax.slice_in_dim(array, 0, 1, axis=axis)], axis)
            weights, sequence, state = jax.tree.unflatten(structure, [*inputs[:i], longer, *inputs[i + 1 :]])
            with pytest.raises(ValueError, match=r"_scan(_planes)?: \w+ has shape"):
                jax.eval_shape(lambda w=weights, s=sequence, h=state: case.scan(w, s, resets("absent"), h))
    weights, sequence, state = case.inputs(jax.random.key(9), T, B)
    one_row, now = jax.tree.map(lambda h: h[:1], state), jax.tree.map(lambda x: x[0], sequence)
    with pytest.raises(ValueError, match=r"_step: \w+ has shape"):
        jax.eval_shape(lambda: case.step(weights, one_row, now, resets("absent")[0]))


@EACH
def test_unknown_backend_is_one_clear_error(case):
    weights, sequence, state = case.inputs(jax.random.key(9), T, B)
    with pytest.raises(ValueError, match=r"unknown backend 'cuda': choose from auto, reference, xla"):
        case.scan(weights, sequence, None, state, "cuda")


def _loop(advance, reset, h0):
    """Run `h = advance(t, b, h)` row by row in numpy."""
    h = np.array(h0)
    out = []
    for t in range(len(reset)):
        for b in range(reset.shape[1]):
            h[b] = advance(t, b, np.zeros_like(h[b]) if reset[t, b] else h[b])
        out.append(h.copy())
    return np.stack(out)


@pytest.mark.parametrize("name", ["linear, constant complex", "linear, varying"])
def test_linear_scan_is_its_definition(name):
    case, reset = CASES[name], resets("scattered")
    with jax.enable_x64(True):
        weights, sequence, h0 = case.inputs(jax.random.key(10), T, B)
        a, x = sequence if name.endswith("varying") else (jnp.broadcast_to(weights, (T, B, weights.shape[0])), sequence)
        a, x = np.asarray(a), np.asarray(x)
        truth = _loop(lambda t, b, h: a[t, b] * h + x[t, b], reset, h0)
        for backend in ("reference", "xla"):
            assert relative(case.scan(weights, sequence, reset, h0, backend), (truth, truth[-1])) < 1e-13


def test_selective_scan_is_its_definition():
    case, reset = CASES["selective"], resets("scattered")
    with jax.enable_x64(True):
        inputs = case.inputs(jax.random.key(11), T, B)
        (A, skip), (u, dt, b, c), h0 = jax.tree.map(np.asarray, inputs)

        def advance(t, row, h):
            return np.exp(dt[t, row] * A) * h + np.outer(b[t, row], dt[t, row] * u[t, row])

        h = _loop(advance, reset, h0)
        y = np.einsum("tbn,tbnd->tbd", c, h) + skip * u
        for backend in ("reference", "xla"):
            assert relative(case.scan(inputs[0], inputs[1], reset, inputs[2], backend), (y, h[-1])) < 1e-13


@pytest.mark.slow
def test_a_state_of_attention_from_before_the_ring_goes_on_as_it_was():
    """Its entries lay oldest first and its last leaf was their number: the place of such a ring begins at 0."""
    W, H, D = 4, 2, 3
    with jax.enable_x64(True):
        q, k, v = jax.random.normal(jax.random.key(0), (3, 9, 1, H, D))
        bias = jax.random.normal(jax.random.key(1), (H, W + 1))
        for seen in (0, 2, 4, 6):
            whole, last = window_scan(q, k, v, bias)
            length = min(seen, W)
            keys, values = [
                jnp.pad(x[seen - length : seen, 0], ((W - length, 0), (0, 0), (0, 0)))[None] for x in (k, v)
            ]
            rest = q[seen:], k[seen:], v[seen:]
            for backend in ("reference", "xla"):
                y, after = window_scan(
                    *rest, bias, None, (keys, values, jnp.array([length], jnp.int32)), backend=backend
                )
                assert relative(y, whole[seen:]) < 1e-12
                ours, truth = (oldest_first(state, jnp.zeros(1, bool))[:2] for state in (after, last))
                assert relative(ours, truth) == 0


def _flax_cell(cell, parameters, x, reset, carry):
    """Outputs of a flax cell over time, its carry replaced by zeros at resets."""
    step = jax.jit(lambda carry, x: cell.apply({"params": parameters}, carry, x))
    outputs = []
    for t in range(len(x)):
        carry = jax.tree.map(lambda h: jnp.where(reset[t][:, None], 0, h), carry)
        carry, y = step(carry, x[t])
        outputs.append(y)
    return jnp.stack(outputs), carry


def test_gru_scan_is_flax_gru_cell():
    case, reset = CASES["gru"], resets("scattered")
    with jax.enable_x64(True):
        (Wh, bh), _, h0 = case.inputs(jax.random.key(12), T, B)
        H = bh.shape[0]
        Wx, x = jax.random.normal(jax.random.key(13), (4, 3 * H)), jax.random.normal(jax.random.key(14), (T, B, 4))
        bx = jax.random.normal(jax.random.key(15), (3 * H,))
        parameters = {}
        for i, gate in enumerate("rzn"):
            columns = slice(i * H, (i + 1) * H)
            parameters[f"i{gate}"] = {"kernel": Wx[:, columns], "bias": bx[columns]}
            parameters[f"h{gate}"] = {"kernel": Wh[:, columns]} | ({"bias": bh} if gate == "n" else {})
        truth = _flax_cell(nn.GRUCell(H, dtype=jnp.float64), parameters, x, reset, h0)
        for backend in ("reference", "xla"):
            assert relative(case.scan((Wh, bh), x @ Wx + bx, reset, h0, backend), truth) < 1e-12


def test_lstm_scan_is_flax_lstm_cell():
    case, reset = CASES["lstm"], resets("scattered")
    with jax.enable_x64(True):
        Wh, _, state = case.inputs(jax.random.key(16), T, B)
        H = Wh.shape[0]
        Wx, x = jax.random.normal(jax.random.key(17), (4, 4 * H)), jax.random.normal(jax.random.key(18), (T, B, 4))
        bias = jax.random.normal(jax.random.key(19), (4 * H,))
        parameters = {}
        for i, gate in enumerate("ifgo"):
            columns = slice(i * H, (i + 1) * H)
            parameters[f"i{gate}"] = {"kernel": Wx[:, columns]}
            parameters[f"h{gate}"] = {"kernel": Wh[:, columns], "bias": bias[columns]}
        truth = _flax_cell(nn.OptimizedLSTMCell(H, dtype=jnp.float64), parameters, x, reset, state)
        for backend in ("reference", "xla"):
            assert relative(case.scan(Wh, x @ Wx + bias, reset, state, backend), truth) < 1e-12


def test_complex_decay_needs_a_complex_input():
    with pytest.raises(ValueError, match="complex"):
        CASES["linear, constant real"].scan(jnp.ones(2, jnp.complex64), jnp.ones((3, 1, 2)), None, None)
