"""Programs that a test compiles are kept for the other tests, the processes that they start, and the next time.
Most tests compile for longer than they run, so XLA is told to compile fast."""

import gc
import os
import sys
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
    # A program is compiled in one piece: its parts are small, and the other core has tests of its own to compile.
    FASTER += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FASTER)


@pytest.fixture(scope="module")
def quickly_compiled():
    """Mark of slow tests that run little of what they compile: they too do without most of XLA's optimisations."""


@pytest.hookimpl(tryfirst=True)  # before fixtures, which compile as well
def pytest_runtest_setup(item):
    """Fast tests do without most of XLA's optimisations, here and in the processes that they start: they take two
    thirds to three quarters of the time. What runs for long, several times slower then, is slow."""
    quickly = not item.get_closest_marker("slow") or "quickly_compiled" in item.fixturenames
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_disable_most_optimizations", quickly)


LARGE = 2**30
"""Bytes that a process may hold from one file to the next."""


def resident() -> float:
    """Bytes of memory that this process holds; unknown, so infinite, where there is no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else float("inf")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Drops what a file compiled once its tests are done: JAX keeps every program, and a process that runs half of the
    tests would grow to 5 GB."""
    yield
    if "jax" in sys.modules and resident() > LARGE:
        sys.modules["jax"].clear_caches()
        gc.collect()
        from engram.kernels.malloc import give_back_freed_memory

        give_back_freed_memory()


LONGEST = [
    "test_contract.py",
    "test_scans.py",
    "test_ppo.py",
    "test_sequence_policy.py",
    "test_layers.py",
    "test_adapt.py",
    "test_stepmix.py",
    "test_ucrl.py",
    "test_offline.py",
    "test_train.py",
    "test_atari100k.py",
    "test_datasets.py",
    "test_planners.py",
    "test_adapters.py",
    "test_drama.py",
    "test_learning.py",
]


def pytest_collection_modifyitems(items):
    """The files that take longest begin first, or one of two workers would end with one of them alone."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
