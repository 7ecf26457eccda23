"""Engram: reinforcement learning in JAX with pluggable memory.

    run = engram.train("popgym-fast", memory="gru", seeds=3)
    run.metrics()
    policy = engram.load(run.folder).policy()

Importing this is cheap: what a name needs is imported when the name is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "Launcher",
    "Run",
    "__version__",
    "adapt",
    "compare",
    "errors",
    "evaluate",
    "load",
    "make_env",
    "make_memory",
    "plot",
    "presets",
    "sweep",
    "train",
]

if TYPE_CHECKING:
    from engram import errors
    from engram.api import adapt, compare, evaluate, load, make_env, make_memory, plot, presets, sweep, train
    from engram.experiments.options import Launcher
    from engram.experiments.runs import Run


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'engram' has no attribute {name!r}")
    import importlib

    if name == "errors":
        return importlib.import_module("engram.errors")
    homes = {"Run": "engram.experiments.runs", "Launcher": "engram.experiments.options"}
    return getattr(importlib.import_module(homes.get(name, "engram.api")), name)


def __dir__() -> list[str]:
    return __all__
