"""S5 against its authors' layer, and its initialisation against closed forms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.memory import Stack, make_memory
from engram.memory.s5 import PERTURBATION, S5, diagonalised_hippo, hippo_legs, perturbed_hippo


@pytest.fixture(scope="module")
def reference():
    """Two layers (one block, two blocks) of github.com/lindermanlab/S5 at 3c18fdb, run in float64: `SequenceLayer`
    with pre-norm and the "full_glu" gate, its initial parameters plus normal noise of 0.05, 24 normal inputs."""
    with np.load(Path(__file__).parent / "s5_reference.npz") as file:
        return dict(file)


def from_reference(reference: dict, blocks: int) -> dict:
    """The authors' parameters in our layout."""
    p = {key.partition("/")[2]: value for key, value in reference.items() if key.startswith(f"{blocks}/")}
    layer = {
        "log_neg_re": np.log(-p["seq/Lambda_re"]),
        "im": p["seq/Lambda_im"],
        "log_dt": p["seq/log_step"][:, 0],
        "B": np.concatenate([p["seq/B"][..., 0], p["seq/B"][..., 1]]).T,
        "C": np.concatenate([p["seq/C"][..., 0], -p["seq/C"][..., 1]], 1).T,
        "D": p["seq/D"],
    }
    gate = {name: np.concatenate([p[f"out1/{name}"], p[f"out2/{name}"]], -1) for name in ("kernel", "bias")}
    return {"ssm": layer, "gate": gate, "norm": {"scale": p["norm/scale"], "bias": p["norm/bias"]}} | {
        name: p[name] for name in ("x", "y", "ssm_y", "eigenvalues")
    }


@pytest.mark.parametrize("blocks", [1, 2])
def test_equals_the_authors_layer_in_float64(reference, blocks):
    r = from_reference(reference, blocks)
    x = r["x"][:, None]
    reset = np.zeros((len(x), 1), bool)
    width = x.shape[-1]
    with jax.enable_x64(True):
        options = {"width": width, "state": 16, "blocks": blocks, "gain": "zoh", "param_dtype": jnp.float64}
        ssm = S5(gate="gelu", **options)
        _, y = jax.jit(ssm.apply)({"params": r["ssm"]}, ssm.initial_state(1), x, reset)
        np.testing.assert_allclose(y[:, 0], jax.nn.gelu(r["ssm_y"]), atol=1e-10)

        layer = Stack(width=width, layers=(S5(**options),), param_dtype=jnp.float64)
        parameters = {"params": {"norms_0": r["norm"], "layers_0": r["ssm"] | {"out": {"out": r["gate"]}}}}
        _, y = jax.jit(layer.apply)(parameters, layer.initial_state(1), x, reset)
        np.testing.assert_allclose(y[:, 0], r["y"], atol=1e-10)


@pytest.mark.parametrize("blocks", [1, 2])
def test_starts_from_the_authors_eigenvalues(reference, blocks):
    theirs = reference[f"{blocks}/eigenvalues"]
    memory = S5(width=6, state=16, blocks=blocks)
    x, reset = jnp.ones((2, 1, 6)), jnp.ones((2, 1), bool)
    parameters = jax.jit(memory.init)(jax.random.key(0), memory.initial_state(1), x, reset)["params"]
    ours = -np.exp(parameters["log_neg_re"]) + 1j * parameters["im"]
    # They keep the other half of each conjugate pair.
    np.testing.assert_allclose(np.sort_complex(ours), np.sort_complex(theirs.conj()), rtol=1e-5)


@pytest.mark.parametrize("blocks", [1, 4])
def test_starts_with_the_authors_scale_of_b(blocks):
    """Theirs is a row of B for each of the `state` real states, of variance 1 / state whatever the width; multiplied by
    V^-1, which has orthonormal rows."""
    memory = S5(width=512, state=16, blocks=blocks)
    x, reset = jnp.ones((1, 1, 512)), jnp.ones((1, 1), bool)
    B = jax.jit(memory.init)(jax.random.key(0), memory.initial_state(1), x, reset)["params"]["B"]
    re, im = jnp.split(B, 2, -1)
    np.testing.assert_allclose(jnp.mean(re**2 + im**2), 1 / 16, rtol=0.06)


@pytest.mark.parametrize(("state", "blocks"), [(64, 4), (16, 1), (40, 1)])
def test_begins_with_blocks_of_16_where_they_fit(state, blocks):
    memories = S5(width=4, state=state), S5(width=4, state=state, blocks=blocks)
    x, reset = jnp.ones((1, 1, 4)), jnp.ones((1, 1), bool)
    ours, truth = (jax.jit(m.init)(jax.random.key(0), m.initial_state(1), x, reset) for m in memories)
    jax.tree.map(np.testing.assert_array_equal, ours, truth)


@pytest.mark.parametrize("n", [2, 16, 64])
def test_half_an_eigensystem_makes_the_whole_hippo_n(n):
    eigenvalues, V, V_inverse = diagonalised_hippo(n)
    assert V.shape == (n, n // 2)
    assert (eigenvalues.imag > 0).all()
    k = np.arange(n)
    p = np.sqrt(2 * k + 1)
    # The closed form: -1/2 on the diagonal, -+ sqrt(2i+1) sqrt(2k+1) / 2 below and above it.
    truth = -np.outer(p, p) / 2 * np.sign(k[:, None] - k) - np.eye(n) / 2
    np.testing.assert_allclose(2 * (V * eigenvalues @ V_inverse).real, truth, atol=1e-9 * n**2)
    np.testing.assert_allclose(2 * (V @ V_inverse).real, np.eye(n), atol=1e-10)


def test_perturbed_legs_is_close_stable_and_well_conditioned():
    size = 32
    eigenvalues, half_V, V_inverse = perturbed_hippo(2 * size)
    legs, V = hippo_legs(size), 2 * half_V
    distance = np.linalg.norm(V * eigenvalues @ V_inverse - legs, 2) / np.linalg.norm(legs, 2)
    np.testing.assert_allclose(distance, PERTURBATION, rtol=1e-6)
    assert (eigenvalues.real <= -0.5 + 1e-9).all()
    assert np.linalg.cond(V) < 1e3
    assert np.linalg.cond(np.linalg.eig(legs)[1]) > 1e10


def test_program_of_init_does_not_grow_with_the_state():
    x, reset = jnp.ones((2, 1, 4)), jnp.ones((2, 1), bool)

    def lines(state, blocks):
        memory = S5(width=4, state=state, blocks=blocks)
        program = jax.jit(memory.init).lower(jax.random.key(0), memory.initial_state(1), x, reset)
        return len(program.as_text().splitlines())

    assert lines(16, 1) == lines(128, 1)
    assert lines(16, 2) == lines(128, 4)


@pytest.mark.parametrize("spectrum", ["hippo", "ptd"])
def test_starts_and_stays_stable(spectrum):
    memory = S5(width=4, state=64, spectrum=spectrum, dt_min=0.01, dt_max=0.5)
    x, reset = jnp.ones((2, 1, 4)), jnp.ones((2, 1), bool)
    parameters = jax.jit(memory.init)(jax.random.key(0), memory.initial_state(1), x, reset)
    log_dt = parameters["params"]["log_dt"]
    assert np.log(0.01) <= log_dt.min() < np.log(0.02) < np.log(0.25) < log_dt.max() <= np.log(0.5)
    decay = jax.jit(lambda p: memory.apply(p, x, method="discretise")[0])
    assert np.abs(decay(parameters)).max() < 1
    anywhere = jax.tree.map(lambda p: p + 5 * np.random.default_rng(0).normal(size=p.shape), parameters)
    assert np.abs(decay(anywhere)).max() <= 1


def test_states_of_unit_gain_have_the_variance_of_b_under_white_noise():
    """Over a step of any length: sum_k |a^k b|^2 = |b|^2 / (1 - |a|^2) is |B|^2 for each mode."""
    memory = S5(width=3, state=16, dt_min=1e-3, dt_max=1.0)
    x, reset = jnp.eye(3)[None], jnp.ones((1, 3), bool)
    parameters = jax.jit(memory.init)(jax.random.key(0), memory.initial_state(3), x, reset)
    decay, drive = jax.jit(lambda p: memory.apply(p, x[0], method="discretise"))(parameters)
    re, im = jnp.split(drive, 2, -1)
    B_re, B_im = jnp.split(parameters["params"]["B"], 2, -1)
    np.testing.assert_allclose((re**2 + im**2) / (1 - jnp.abs(decay) ** 2), B_re**2 + B_im**2, rtol=2e-3)
    zoh = S5(width=3, state=16, gain="zoh", dt_min=1e-3, dt_max=1.0)
    _, slow = jax.jit(lambda p: zoh.apply(p, x[0], method="discretise"))(parameters)
    slow_re, slow_im = jnp.split(slow, 2, -1)
    np.testing.assert_allclose(re * slow_im, im * slow_re, atol=1e-7)  # of one phase


@pytest.mark.parametrize("options", [{"state": 6, "blocks": 2}, {"state": 0}, {"blocks": -1}, {"dt_max": 1e-4}])
def test_bad_sizes_are_refused(options):
    with pytest.raises(ValueError, match="s5"):
        make_memory("s5", 8, **options)
