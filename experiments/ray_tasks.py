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


class Ray:
    """Tasks of Ray (see `engram.experiments.engines.Engine`)."""

    def __init__(self, launcher: Launcher, jobs: int):
        """Raises BadRequest where there is no cluster."""
        import ray  # pyright: ignore[reportMissingImports]

        self.ray = ray
        self.slots = jobs
        self.is_ours = not ray.is_initialized()
        if self.is_ours:
            before = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=launcher.address, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise BadRequest(
                    f"there is no Ray cluster at --launcher.address {launcher.address}: start one with "
                    f"`ray start --head`, or give local ({' '.join(str(error).split())[:200]})"
                ) from None
            with suppress(ValueError):  # outside of the main thread there was none to lose
                signal.signal(signal.SIGTERM, before)  # Ray's own ends this process at once
        resources: dict[str, Any] = {"num_cpus": launcher.cpus, "num_gpus": launcher.gpus}
        resources["memory"] = launcher.memory_gb * 2**30
        self._say_if_none_fits(launcher)
        # What was lost is handed over again here, where losses are counted.
        self.remote: Any = ray.remote(max_retries=0, max_calls=1, **resources)(train)

    def _say_if_none_fits(self, launcher: Launcher) -> None:
        """A task for which no node is large enough waits for ever, unless the cluster grows. Raises BadRequest where it
        cannot."""
        wanted = {"CPU": launcher.cpus, "GPU": launcher.gpus, "memory": launcher.memory_gb * 2**30}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            return
        text = f"no machine has {launcher.cpus} cores, {launcher.gpus} GPUs and {launcher.memory_gb} GB"
        text += " (launcher.cpus, gpus and memory_gb)"
        if launcher.address == "local":
            self.close()
            raise BadRequest(text)
        notify(f"{text}: waiting for one that joins the cluster")

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

    def close(self) -> None:
        if self.is_ours:
            self.ray.shutdown()
