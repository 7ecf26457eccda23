"""Engines that run cells elsewhere, and who hands cells to them.

An engine only says that a job is no longer under way. What became of the cell is read from its folder, and from the
attempts that are noted beside it.
"""

import dataclasses
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engram.errors import Interrupted, InUse
from engram.experiments.attempts import (
    FIRST_PAUSE,
    Attempts,
    attempts_at,
    fail,
    failure_file,
    forget,
    keep_trying,
    note,
    note_queued,
    queued_as,
)
from engram.experiments.children import Children, Job, train_job
from engram.training.claim import is_claimed
from engram.training.stderr import notify
from engram.training.stopping import CHECKPOINT_SECONDS

LOOK = 1.0
"""Seconds between two looks at jobs."""
MANY, SPARING = 32, 300.0
"""More cells than this at the same time make checkpoints this many seconds apart, for the sake of the file server."""


@dataclass
class Task:
    """What a job of an engine does, in a process of its own: it trains one cell, and tries again after crashes."""

    job: Job
    retries: int
    launch: str
    """Mark of the command, whose earlier attempts count."""
    children: Children = field(default_factory=Children, repr=False)
    ended: list[BaseException | None] = field(default_factory=list, repr=False)

    def __reduce__(self) -> Any:  # to a process elsewhere, as it is before it begins
        return Task, (self.job, self.retries, self.launch)

    def __call__(self) -> None:
        """Trains. Returns when the cell is done, has failed, was stopped or is trained by another process."""

        def work() -> None:
            try:
                self._train()
                self.ended.append(None)
            except (InUse, Interrupted) as reason:
                notify(str(reason))
                self.ended.append(None)
            except BaseException as error:  # for the thread that waits
                self.ended.append(error)

        threading.Thread(target=work, daemon=True).start()
        self._wait()
        if self.ended[0] is not None:
            raise self.ended[0]

    def _wait(self) -> None:
        while not self.ended:  # without a lock, which the handler of a signal might wait for in vain
            time.sleep(0.1)

    def _train(self) -> None:
        folder = self.job.folder
        # The run of a machine that was lost, or of a killed process, may hold its folder for a while.
        while (known := attempts_at(folder)).going and known.launch == self.launch and is_claimed(folder):
            self.children.wait(LOOK)
        keep_trying(folder, lambda: train_job(self.job, self.children), self.retries, self.children.wait, self.launch)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Asks the run to stop, and waits until it has: it makes a checkpoint."""
        note(self.job.folder, dataclasses.replace(attempts_at(self.job.folder), going=False))  # this is no crash
        self.children.stop(signum)
        self._wait()


class Engine(Protocol):
    """Runs tasks, each once."""

    slots: int
    """Tasks that it takes at the same time; it may queue them itself."""

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Starts or queues tasks -> one handle each."""
        ...

    def find(self, job: str) -> Any:
        """The handle of a job that an earlier command queued, None where there is none."""
        ...

    def name(self, handle: Any) -> str:
        """Name of a job in a queue that outlives this process, empty where there is none."""
        ...

    def end(self, handle: Any) -> str | None:
        """In what way a task is no longer under way, None while it is."""
        ...

    def was_cancelled(self, handle: Any) -> bool:
        """Whether a task ended because somebody cancelled it."""
        ...

    def stop(self, handles: Sequence[Any]) -> None:
        """What becomes of tasks when nobody waits for them any more."""
        ...


@dataclass
class Dispatch:
    """Hands cells to an engine, and cells that were lost once more."""

    engine: Engine
    number: dict[Any, int]
    """Place of each cell in the list of all."""
    output: Any
    launcher: Any
    jobs: int
    """Cells at the same time."""
    changed: Callable[[], None]
    check: Callable[[], None]
    """Raises Interrupted where stopping was asked for."""
    launch: str = field(default_factory=lambda: secrets.token_hex(4))
    waiting: dict[Any, float] = field(default_factory=dict)
    """Cells that wait, and from when on they may be handed over."""
    going: dict[Any, Any] = field(default_factory=dict)
    """Cells at the engine, and their handles."""

    def train(self, cells: Sequence[Any]) -> list[Any]:
        """Trains `cells` -> those that others hold. With `detach` only hands them over."""
        held = self._begin(cells)
        if min(self.jobs, len(self.number)) > MANY:
            notify(f"more than {MANY} runs at the same time: each makes a checkpoint every {SPARING:.0f} s at most")
        try:
            while self.waiting or self.going:
                self.check()
                self._hand_over(held)
                if self.launcher.detach and not self.waiting:
                    notify(f"{len(self.going)} jobs are queued; repeat the command to see what became of them")
                    break
                for cell, handle in list(self.going.items()):
                    end = self.engine.end(handle)
                    if end is not None or cell.is_finished:
                        del self.going[cell]
                        self._follow(cell, handle, end or "", held)
                time.sleep(LOOK)
        except BaseException:
            self.engine.stop(list(self.going.values()))
            for cell, handle in self.going.items():
                if not self.engine.name(handle):  # its attempts have come to their end
                    forget(cell.folder)
            raise
        return held

    def _begin(self, cells: Sequence[Any]) -> list[Any]:
        """Sorts cells into those that wait, those in the queue of an earlier command, and those that others hold."""
        held: list[Any] = []
        for cell in cells:
            job = queued_as(cell.folder)
            handle = self.engine.find(job) if job else None
            if handle is not None and self.engine.end(handle) is None:
                self.going[cell] = handle
                notify(f"{cell.folder} is job {job} already")
            else:
                self.waiting[cell] = 0.0
        return held

    def _hand_over(self, held: list[Any]) -> None:
        """Gives the engine as many cells as it takes."""
        ready = []
        for cell, when in list(self.waiting.items()):
            known = attempts_at(cell.folder)
            if cell.is_finished:
                del self.waiting[cell]
                self.changed()
            elif cell.is_running and not (known.launch == self.launch and known.going):
                notify(f"{cell.folder} is trained by another command")
                held.append(cell)
                del self.waiting[cell]
            elif time.monotonic() >= when and len(ready) + len(self.going) < self.engine.slots:
                ready.append(cell)
        if not ready:
            return
        tasks = []
        for cell in ready:
            del self.waiting[cell]
            notify(f"[{self.number[cell]}/{len(self.number)}] {cell.task} with {cell.label}")
            failure_file(cell.folder).unlink(missing_ok=True)
            tasks.append(Task(self._job(cell), self.launcher.retries, self.launch))
        for cell, handle in zip(ready, self.engine.submit(tasks), strict=True):
            self.going[cell] = handle
            if name := self.engine.name(handle):
                note_queued(cell.folder, name)

    def _job(self, cell: Any) -> Job:
        """What the process that trains a cell is told."""
        job = cell.job(self.output)
        if min(self.jobs, len(self.number)) > MANY:
            job = dataclasses.replace(job, environment={**job.environment, CHECKPOINT_SECONDS: f"{SPARING:g}"})
        return job

    def _follow(self, cell: Any, handle: Any, end: str, held: list[Any]) -> None:
        """Decides what becomes of a cell whose task is no longer under way."""
        state, known = cell.state, attempts_at(cell.folder)
        is_ours = known.launch == self.launch
        if state in ("done", "failed"):
            forget(cell.folder)
            self.changed()
        elif state == "running" and not (is_ours and known.going):
            held.append(cell)
        elif state == "running":  # its run outlives the task for a moment, and the lease a lost machine
            self.waiting[cell] = 0.0
        elif self.engine.was_cancelled(handle):
            fail(cell.folder, f"job {self.engine.name(handle)} was cancelled")
            self.changed()
        elif is_ours and known.number and not known.going:
            notify(f"{cell.folder} was preempted: again in {FIRST_PAUSE:.0f} s")
            self.waiting[cell] = time.monotonic() + FIRST_PAUSE
        else:
            known = (known if is_ours else Attempts(self.launch)).lost(end)
            if known.crashes > self.launcher.retries:
                fail(cell.folder, end, known.crashes)
                self.changed()
                return
            note(cell.folder, known)
            notify(f"{cell.folder}: {end}; again in {known.pause:.0f} s")
            self.waiting[cell] = time.monotonic() + known.pause
