"""Cells as tasks of Ray, on a cluster or on this machine."""

import logging
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from engram.errors import BadRequest
from engram.experiments.engines import Task
from engram.experiments.options import Launcher
from engram.training.stderr import notify

PATIENCE = 600.0
"""Seconds in which runs that are asked to stop make their checkpoints."""


def train(task: Task) -> None:
    """Trains the cell of a task; stopped by `ray.cancel`, which interrupts it."""
    try:
        task()
    except KeyboardInterrupt:
        task.stop()


_address: str | None = None
"""Where this process was connected by `connect`."""


def connect(launcher: Launcher) -> None:
    """Connects this process to a cluster, to the end of the process: a cluster takes half a minute to start.

    Raises:
        BadRequest: there is none, or one of this machine alone that is too small.
    """
    global _address
    import ray  # pyright: ignore[reportMissingImports]

    if _address not in (None, launcher.address):
        ray.shutdown()
    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=launcher.address, logging_level=logging.WARNING)
        except Exception as error:  # of many kinds, a plain one among them
            ray.shutdown()
            raise BadRequest(
                f"there is no Ray cluster at --launcher.address {launcher.address}: start one with "
                f"`ray start --head`, or give local ({' '.join(str(error).split())[:200]})"
            ) from None
        _address = launcher.address
        with suppress(ValueError):  # outside of the main thread there was none to lose
            signal.signal(signal.SIGTERM, before)  # Ray's own ends this process at once
    if launcher.address == "local" and not is_large_enough(launcher):
        raise BadRequest(f"this machine has no {in_words(launcher)}")


def is_large_enough(launcher: Launcher) -> bool:
    """Whether a machine of the cluster can take a task."""
    import ray  # pyright: ignore[reportMissingImports]

    wanted = {"CPU": launcher.cpus, "GPU": launcher.gpus, "memory": launcher.memory_gb * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes)


def in_words(launcher: Launcher) -> str:
    """What a task asks for."""
    gpus = f", {launcher.gpus} GPUs" if launcher.gpus else ""
    return f"{launcher.cpus} cores{gpus} and {launcher.memory_gb} GB (launcher.cpus, gpus and memory_gb)"


class Ray:
    """Tasks of Ray (see `engram.experiments.engines.Engine`)."""

    def __init__(self, launcher: Launcher, jobs: int):
        """Raises BadRequest as `connect`."""
        import ray  # pyright: ignore[reportMissingImports]

        connect(launcher)
        self.ray, self.slots = ray, jobs
        if not is_large_enough(launcher):
            notify(f"no machine has {in_words(launcher)}: waiting for one that joins the cluster")
        resources: dict[str, Any] = {"num_cpus": launcher.cpus, "num_gpus": launcher.gpus}
        resources["memory"] = launcher.memory_gb * 2**30
        # What was lost is handed over again here, where losses are counted.
        self.remote: Any = ray.remote(max_retries=0, max_calls=1, **resources)(train)

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        return [self.remote.remote(task) for task in tasks]

    def find(self, job: str) -> None:
        return None

    def name(self, handle: Any) -> str:
        return ""

    def end(self, handle: Any) -> str | None:
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        ready, _ = self.ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            self.ray.get(handle)
        except RayError as error:
            words = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"{type(error).__name__}: {words[0] if words else ''}"
        return "the task ended without a result"

    def was_cancelled(self, handle: Any) -> bool:
        return False

    def stop(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self.ray.cancel(handle, force=False)
        left, until = list(handles), time.monotonic() + PATIENCE
        if left:
            notify(f"waiting for {len(left)} runs to make their checkpoints")
        while left and time.monotonic() < until:
            _, left = self.ray.wait(left, num_returns=len(left), timeout=1.0)
