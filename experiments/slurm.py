"""Cells as jobs of SLURM, by submitit: an array whose preempted jobs make a checkpoint and are queued again.

submitit hands a job over in a pickle, which the job alone reads; nothing else of it is read here.
"""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engram.errors import BadRequest
from engram.experiments.engines import Task
from engram.experiments.options import Launcher
from engram.training.stderr import notify

ASK = 60.0
"""Seconds between two questions to SLURM's accounting."""
OVERTIMES = 10_000
"""Times that a job may reach its limit of hours and be queued again: as often as it takes."""


class Preemptible(Task):
    """A task that is queued again, with a checkpoint, when its machine is needed or its time is up."""

    def __reduce__(self) -> Any:
        return Preemptible, (self.job, self.retries, self.launch)

    def checkpoint(self) -> Any:
        """Called by submitit upon SIGUSR2."""
        from submitit.core.utils import DelayedSubmission  # pyright: ignore[reportMissingImports]

        # SLURM may have sent SIGTERM to the run before; the same signal twice would mean: without a checkpoint.
        self.stop(signal.SIGINT)
        return DelayedSubmission(Preemptible(self.job, self.retries, self.launch))


class Slurm:
    """Jobs of SLURM (see `engram.experiments.engines.Engine`)."""

    slots = 1_000_000  # the queue takes all, and runs as many at a time as it is told

    def __init__(self, launcher: Launcher, jobs: int, folder: Path):
        import submitit  # pyright: ignore[reportMissingImports]

        self.submitit = submitit
        self.executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=OVERTIMES)
        self.folder = folder
        self.asked = time.monotonic()
        named = {name: getattr(launcher, name) for name in ("partition", "account", "qos", "constraint")}
        slurm = {name: value for name, value in named.items() if value}
        if launcher.setup:
            slurm["setup"] = list(launcher.setup)
        self.executor.update_parameters(
            name="engram",
            timeout_min=max(1, round(60 * launcher.hours)),
            mem_gb=launcher.memory_gb,
            cpus_per_task=launcher.cpus,
            gpus_per_node=launcher.gpus,
            nodes=1,
            tasks_per_node=1,
            slurm_array_parallelism=jobs,
            slurm_additional_parameters={"requeue": True},
            **{f"slurm_{name}": value for name, value in slurm.items()},
        )

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Queues tasks. Raises BadRequest where SLURM refuses them."""
        from submitit.core.utils import FailedJobError  # pyright: ignore[reportMissingImports]

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self.executor.submit_array([Preemptible(t.job, t.retries, t.launch) for t in tasks])
        except FailedJobError as error:
            raise BadRequest(f"SLURM refused the jobs: {' '.join(str(error).split())}") from None

    def find(self, job: str) -> Any:
        return self.submitit.SlurmJob(self.folder, job)

    def name(self, handle: Any) -> str:
        return handle.job_id

    def end(self, handle: Any) -> str | None:
        ask = time.monotonic() - self.asked > ASK  # one question is answered for all jobs
        if ask:
            self.asked = time.monotonic()
        if not handle.done(force_check=ask):
            return None
        return f"job {handle.job_id} ended as {handle.state}: see {handle.paths.stderr}"

    def was_cancelled(self, handle: Any) -> bool:
        return handle.state.startswith("CANCELLED")

    def stop(self, handles: Sequence[Any]) -> None:
        names = sorted({handle.job_id.partition("_")[0] for handle in handles})
        if names:
            notify(f"jobs stay in the queue: repeat the command to wait for them, or scancel {' '.join(names)}")
