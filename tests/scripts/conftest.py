"""Runs of a few updates compile for longer than they train."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """Without most of XLA's optimisations, here and in the processes that are started here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
