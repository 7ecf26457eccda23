"""A memory between projections keeps the contract, and computes what it says."""

from typing import Any

import jax
import numpy as np
import pytest

from engram.memory import make_memory
from engram.memory.projected import Projected
from engram.testing import check_memory

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_it_keeps_the_contract():
    check_memory(Projected(6, memory=make_memory("gru", 4)))


def test_it_is_the_memory_between_two_linear_maps():
    inner = make_memory("rnn", 5)
    memory = Projected(3, memory=inner)
    x, reset = jax.random.normal(jax.random.key(1), (4, 2, 3)), np.zeros((4, 2), bool)
    parameters: Any = memory.init(jax.random.key(0), memory.initial_state(2), x, reset)
    y: Any
    between: Any
    _, y = memory.apply(parameters, memory.initial_state(2), x, reset)
    own = parameters["params"]
    into = x @ own["enter"]["kernel"] + own["enter"]["bias"]
    _, between = inner.apply({"params": own["memory"]}, inner.initial_state(2), into, reset)
    np.testing.assert_allclose(y, between @ own["leave"]["kernel"] + own["leave"]["bias"], rtol=1e-5, atol=1e-6)
    assert [leaf.shape for leaf in jax.tree.leaves(memory.initial_state(2))] == [(2, 5)]
