"""Rates, steps and skip of Mamba and Mamba-2 at the start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.errors import BadRequest
from engram.memory import make_memory

KEY = jax.random.key(0, impl="unsafe_rbg")  # the default generator takes long to compile
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def begins(name: str, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates `[state or heads]`, steps `[channels or heads]` and skips of a new layer of width 64."""
    memory = make_memory(name, 64, **options).layers[0]
    inputs = memory.initial_state(1), jnp.zeros((1, 1, 64)), jnp.zeros((1, 1), bool)
    parameters: Any = jax.jit(memory.init)(KEY, *inputs)["params"]
    bias = parameters["dt_bias"] if name == "mamba2" else parameters["dt_proj"]["bias"]
    rates = np.exp(np.asarray(parameters["A_log"], np.float64))
    if name == "mamba":
        np.testing.assert_array_equal(rates, np.broadcast_to(rates[:, :1], rates.shape))
        rates = rates[:, 0]
    return rates, np.asarray(jax.nn.softplus(bias)), np.asarray(parameters["D"])


def log_uniform_within(steps: np.ndarray, low: float, high: float) -> None:
    """All of `steps` lie within the range, and their middle where that of a log-uniform draw does."""
    assert np.all((steps > 0.999 * low) & (steps < 1.001 * high))
    middle = (np.log(steps).mean() - np.log(low)) / np.log(high / low)
    assert abs(middle - 0.5) < 4 * (12 * len(steps)) ** -0.5


def test_the_published_start_of_mamba():
    """Gu and Dao 2023, section 3.6 and appendix E: rates 1 ... N of each channel, steps log-uniform in [0.001, 0.1]."""
    rates, steps, skip = begins("mamba", start="published")
    np.testing.assert_allclose(rates, np.arange(1, 17), rtol=1e-6)
    log_uniform_within(steps, 1e-3, 0.1)
    np.testing.assert_array_equal(skip, np.ones(128))


def test_the_published_start_of_mamba2():
    """Dao and Gu 2024: rates uniform in [1, 16], steps log-uniform in [0.001, 0.1]."""
    rates, steps, skip = begins("mamba2", start="published", head=1)
    assert np.all((rates >= 1) & (rates <= 16))
    assert abs(rates.mean() - 8.5) < 4 * 15 * (12 * 128) ** -0.5
    log_uniform_within(steps, 1e-3, 0.1)
    np.testing.assert_array_equal(skip, np.ones(128))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_each_value_of_the_start_can_be_given(name):
    options: dict[str, Any] = {"a_min": 0.5, "a_max": 8, "a_spacing": "log", "dt_min": 0.2, "dt_max": 0.4, "skip": 0.25}
    size = {"state": 5} if name == "mamba" else {"expand": 5, "head": 64}  # five rates
    rates, steps, skip = begins(name, **options, **size)
    np.testing.assert_allclose(rates, [0.5, 1, 2, 4, 8], rtol=1e-6)
    assert np.all((steps > 0.1999) & (steps < 0.4001))
    assert np.all(skip == 0.25)


def test_evenly_spaced_rates_and_those_of_a_single_head():
    np.testing.assert_allclose(begins("mamba", a_spacing="linear", a_min=1, a_max=3, state=3)[0], [1, 2, 3], rtol=1e-6)
    rates, _, _ = begins("mamba2", a_spacing="log", a_min=0.5, a_max=8, head=128)
    np.testing.assert_allclose(rates, [2], rtol=1e-6)
    assert 2 <= begins("mamba2", a_spacing="uniform", a_min=2, a_max=3, head=128)[0][0] <= 3


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_value_out_of_range_is_one_line(name):
    wrongs: list[dict[str, Any]] = [
        {"a_min": 0.0},
        {"a_max": 0.001},
        {"dt_min": -1.0},
        {"dt_max": np.inf},
        {"skip": np.nan},
    ]
    for wrong in wrongs:
        with pytest.raises(BadRequest, match=f"^{name}: .*{next(iter(wrong))}.*$"):
            make_memory(name, 64, **wrong)
    with pytest.raises(BadRequest, match=r"a_min = 'slow' is not of type float"):
        make_memory(name, 64, a_min="slow")
    assert make_memory(name, 64, a_min="none", skip="0").layers[0].a_min is None  # type: ignore[attr-defined]
