"""Launching cells: as many at a time as are asked for, each in a process of its own, here or by an engine for clusters.

What is done is read from run folders alone. A cell that another command trains is left to it, and looked at again at
the end: it is waited for, and taken over where it was given up.
"""

import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from engram.errors import BadRequest, Interrupted, InUse, MissingExtra
from engram.experiments.cells import Cell
from engram.experiments.children import STOPPED, Children, mirror_of
from engram.experiments.engines import Dispatch, Engine
from engram.experiments.options import Launcher, Output
from engram.training.mirror import Mirror
from engram.training.stderr import notify
from engram.training.stopping import POLITE

LOOK = 1.0
"""Seconds between two looks at cells that other commands train."""


def run_cells(
    cells: Sequence[Cell],
    output: Output,
    jobs: int = 1,
    changed: Callable[[], None] = lambda: None,
    seconds: float | None = None,
    launcher: Launcher = Launcher(),
    out: Path | None = None,
) -> None:
    """Trains every cell that is not finished.

    Args:
        output: `wandb` and `quiet` of the runs.
        jobs: cells at the same time. With several on this machine, the cores of this process are shared out among them.
        changed: called whenever a cell was finished or has failed; such calls do not overlap.
        seconds: politely stopped after this time (None: never).
        launcher: engine that trains them.
        out: folder of the logs of its jobs, `<out>/.jobs` (default: where all cells are).

    Raises:
        BadRequest: see `require_engine`; or the mirror cannot be.
        Interrupted: by Ctrl-C, a polite kill of this process or of a run, or the time; runs that had begun were
            checkpointed.
    """
    require_engine(launcher, seconds)
    left = [cell for cell in cells if not cell.is_finished]
    if not left:
        return
    if seconds is not None and seconds <= 0:
        raise Interrupted("time is up; repeat the command to go on")
    if output.mirror is not None:  # what cannot be reached is refused once, and not by each run
        first = left[0].folder
        Mirror(mirror_of(output.mirror, first), first).config()
    number = {cell: i for i, cell in enumerate(cells, 1)}
    out = out or Path(os.path.commonpath([cell.folder.absolute().parent for cell in cells]))
    with _Stop(seconds) as stop:
        retries = launcher.retries
        train = partial(_train, number=number, output=output, jobs=jobs, changed=changed, stop=stop, retries=retries)
        if launcher.name != "local":
            train = Dispatch(_engine(launcher, jobs, out), number, output, launcher, jobs, changed, stop.check).train
        while left:
            held = train(left)
            left = [] if launcher.detach else _wait_for_others(held, changed, stop)


def require_engine(launcher: Launcher, seconds: float | None = None) -> None:
    """Raises BadRequest where the engine of `launcher` is not there, or stops no jobs after `seconds`."""
    if launcher.name == "local":
        return
    if find_spec({"slurm": "submitit", "ray": "ray"}[launcher.name]) is None:
        raise MissingExtra.of(f"--launcher {launcher.name}", launcher.name)
    if launcher.name == "slurm":
        if seconds is not None:
            raise BadRequest("--hours is for local and ray: jobs of slurm go on by themselves, see --launcher.hours")
        missing = [command for command in ("sbatch", "srun", "sacct") if shutil.which(command) is None]
        if missing:
            raise BadRequest(f"--launcher slurm needs {' and '.join(missing)}: run this where jobs are submitted")
    else:
        from engram.experiments.ray_tasks import connect

        connect(launcher)


def _engine(launcher: Launcher, jobs: int, out: Path) -> Engine:
    """The engine of `launcher`, which is imported by who uses it alone."""
    if launcher.name == "slurm":
        from engram.experiments.slurm import Slurm

        return Slurm(launcher, jobs, out / ".jobs")
    from engram.experiments.ray_tasks import Ray

    return Ray(launcher, jobs)


def _train(
    cells: Sequence[Cell],
    number: dict[Cell, int],
    output: Output,
    jobs: int,
    changed: Callable[[], None],
    stop: "_Stop",
    retries: int,
) -> list[Cell]:
    """Trains `cells` in processes of this machine -> those that others hold."""
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)
    ended: queue.SimpleQueue[Cell | BaseException | None] = queue.SimpleQueue()
    held: list[Cell] = []

    def work(cores: Sequence[int]) -> None:
        try:
            while not stop.asked:
                cell = waiting.get_nowait()
                notify(f"[{number[cell]}/{len(number)}] {cell.task} with {cell.label}")
                try:
                    cell.train(output, stop.children, cores, retries)
                except InUse:
                    notify(f"{cell.folder} is trained by another command")
                    held.append(cell)
                ended.put(cell)
        except queue.Empty:
            pass
        except BaseException as error:  # for the thread that waits
            ended.put(error)
        finally:
            ended.put(None)

    shares = _shares(min(jobs, len(cells)))
    workers = [threading.Thread(target=work, args=(share,), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    first: BaseException | None = None
    going = len(workers)
    while going:  # in this thread, which takes signals and draws the pictures
        try:
            message = ended.get(timeout=0.2)
            if isinstance(message, Cell):
                changed()
            elif message is not None:
                raise message
            else:
                going -= 1
        except queue.Empty:
            pass
        except BaseException as error:  # all children end, which their runs survive, before it is raised
            first = first or error
            if not stop.asked:  # a child that is asked twice stops at once, without a checkpoint
                stop()
    if first is not None:
        raise first
    stop.check()
    return held


def _wait_for_others(held: Sequence[Cell], changed: Callable[[], None], stop: "_Stop") -> list[Cell]:
    """Waits until no cell is held, or one was given up -> those that are neither finished nor failed."""
    left = list(held)
    if left:
        notify(f"waiting for {len(left)} cells of another command")
    while left:
        stop.check()
        time.sleep(LOOK)  # at least once: an owner that only seems to be gone is not asked again and again
        states = {cell: cell.state for cell in left}
        if "not run" in states.values():  # given up: it is trained here, and the others are looked at again behind it
            return [cell for cell, state in states.items() if state in ("not run", "running")]
        if len(running := [cell for cell, state in states.items() if state == "running"]) < len(left):
            left = running
            changed()
    return []


def _shares(jobs: int) -> list[list[int]]:
    """The cores of this process in `jobs` shares; where there are fewer cores than that, each has several owners."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [cores[i::jobs] or [cores[i % len(cores)]] if cores else [] for i in range(jobs)]


class _Stop:
    """The request to stop, by Ctrl-C, a polite kill or the time, which all children get."""

    def __init__(self, seconds: float | None):
        self.children = Children()
        self.asked = False
        self._timer = threading.Timer(seconds or 0.0, self._time_is_up) if seconds is not None else None
        self._before = {}

    def __call__(self, *_: object) -> None:
        self.asked = True
        self.children.stop()

    def _time_is_up(self) -> None:
        if not self.asked:
            self()

    def check(self) -> None:
        """Raises Interrupted if stopping was asked for."""
        if self.asked:
            raise Interrupted(STOPPED)

    def __enter__(self) -> "_Stop":
        for name in (signal.SIGINT, *POLITE):
            with suppress(ValueError):  # not in the main thread: the caller handles signals
                if signal.getsignal(name) is not signal.SIG_IGN:
                    self._before[name] = signal.signal(name, self)
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for name, handler in self._before.items():
            signal.signal(name, handler)
