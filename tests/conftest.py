"""Programs that a test compiles are kept for the other tests, the processes that they start, and the next time.
Most tests compile for longer than they run, so XLA is told to compile fast."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Set before JAX is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
# Not only those that took over a second: a process that resumes compiles many small ones.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Training PPO on a probe compiles in less than half the time and runs as fast. Users' own flags take precedence.
FASTER = "--xla_backend_optimization_level=1"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones end the process at a flag they do not know
    FASTER += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FASTER)


@pytest.fixture(scope="module")
def quickly_compiled():
    """Without most of XLA's optimisations, here and in the processes that are started here: for tests that run little
    of what they compile. Loops run several times slower."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


def pytest_collection_modifyitems(items):
    """The file that takes longest begins first, or one of two workers would end with it alone."""
    items.sort(key=lambda item: item.path.name != "test_learning.py")
