"""Runs in processes of their own: what such a process is told, how it is asked to stop, and what its exit code means.

Nothing here needs JAX: who waits for a run on a machine of a cluster does without.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from engram.agents.common.experiment import Experiment
from engram.configs import store
from engram.errors import BadRequest, Diverged, Interrupted, InUse
from engram.experiments.options import Output
from engram.training.stderr import notify
from engram.training.stopping import PARENT, POLITE

STOPPED = "stopped; repeat the command to go on where it was"
HANDED_ON = ("ENGRAM_", "JAX_", "XLA_")
"""How variables of the environment begin that a run on another machine gets too."""


class Crashed(Exception):
    """A run that ended by no decision of its own, such as one that was killed for its memory; it is tried again."""


class Outcome(Enum):
    """What became of a run."""

    DONE = "done"
    FAILED = "failed, as it will again"
    HELD = "left to the process that trains it"
    STOPPED = "asked to stop, and checkpointed"
    CRASHED = "ended by no decision of its own"


def outcome_of(code: int) -> Outcome:
    """What the exit code of a run says, whoever launched it."""
    if code == 0:
        return Outcome.DONE
    if code in (BadRequest.exit_code, Diverged.exit_code):
        return Outcome.FAILED
    if code == InUse.exit_code:
        return Outcome.HELD
    if code in (Interrupted.exit_code, -signal.SIGINT, *(-name for name in POLITE)):  # the latter before it listened
        return Outcome.STOPPED
    return Outcome.CRASHED


@dataclass(frozen=True)
class Job:
    """A run in plain values, which can be trained on any machine that shares its folder."""

    folder: Path
    """Absolute path of the run folder."""
    config: str = field(repr=False)
    """Its configuration, in YAML."""
    output: tuple[str, ...] = ()
    """Options of its output."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables that it gets beside those of the process that starts it."""
    place: str = "."
    """Working folder, from which its configuration may name files."""

    @classmethod
    def of(cls, config: Experiment, preset: str, folder: Path, output: Output) -> "Job":
        """The run of `config` in `folder`, with the display, `wandb`, `devices` and `mirror` of `output`."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # modules of this process too
        words = ["--wandb", output.wandb, *(["--quiet"] if output.quiet else [])]
        words += [] if output.devices is None else ["--devices", str(output.devices)]
        words += [] if output.mirror is None else ["--mirror", mirror_of(output.mirror, folder)]
        text = yaml.safe_dump(store.describe(preset, config), sort_keys=False)
        return cls(folder.absolute(), text, tuple(words), variables, os.getcwd())


def mirror_of(url: str, folder: Path) -> str:
    """The mirror of one of several run folders: below `url`, by its path from the working folder, or by its absolute
    path where it lies outside."""
    path = folder.absolute()
    inside = path.is_relative_to(Path.cwd())
    return f"{url.rstrip('/')}/{(path.relative_to(Path.cwd()) if inside else path.relative_to(path.anchor)).as_posix()}"


class Children:
    """Processes that train, which are stopped together."""

    def __init__(self):
        self._lock = threading.RLock()  # signals may come while it is held
        self._processes: set[subprocess.Popen] = set()
        self._stopped = threading.Event()

    @contextmanager
    def start(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
        """Starts a process, to which `stop` reaches until the end of the context.

        Raises:
            Interrupted: after `stop`.
            Crashed: it cannot be started, such as in a folder that is not there.
        """
        with self._lock:
            if self._stopped.is_set():
                raise Interrupted(STOPPED)
            try:
                process = subprocess.Popen(command, **options)
            except OSError as error:
                raise Crashed(f"no process can be started: {error}") from None
            self._processes.add(process)
        try:
            yield process
        except BaseException:
            process.terminate()
            raise
        finally:
            with self._lock:
                self._processes.remove(process)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Asks all to stop, politely; once more by the same signal: at once."""
        with self._lock:
            self._stopped.set()
            for process in self._processes:
                process.send_signal(signum)

    def wait(self, seconds: float) -> None:
        """Sleeps. Raises Interrupted after `stop`."""
        if self._stopped.wait(seconds):
            raise Interrupted(STOPPED)


def train_job(job: Job, children: Children, cores: Sequence[int] = ()) -> str | None:
    """Trains a job in a process of its own, or goes on with what is in its folder; returns why it failed, or None.

    Args:
        children: which the process becomes one of.
        cores: numbers of the cores that it may use; none for those of this process.

    Raises:
        InUse: another process trains there.
        Interrupted: by Ctrl-C or a polite kill; the run was checkpointed if it had begun.
        Crashed: by anything else.
    """
    arguments = ["-", "--out", str(job.folder), "--resume", *job.output]
    options: dict[str, Any] = {
        "env": {**os.environ, **job.environment, PARENT: str(os.getpid())},
        "cwd": job.place,
        "stdin": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "errors": "replace",
    }
    last = ""
    with children.start([sys.executable, "-m", "engram.scripts.train", *arguments], **options) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        if cores:
            with suppress(OSError):  # before it counts its cores
                os.sched_setaffinity(process.pid, cores)
        with suppress(BrokenPipeError), process.stdin:  # a child that died says why itself
            process.stdin.write(job.config)
        with process.stderr:
            for line in process.stderr:
                last = line.strip() or last
                notify(line.rstrip("\n"))
        code = process.wait()
    outcome = outcome_of(code)
    if outcome is Outcome.HELD:
        raise InUse(last.removeprefix("error: "))
    if outcome is Outcome.STOPPED:
        raise Interrupted(STOPPED)
    reason = f"{in_words(code)}: {last}" if last else in_words(code)
    if outcome is Outcome.CRASHED:
        raise Crashed(reason)
    return reason if outcome is Outcome.FAILED else None


def in_words(code: int) -> str:
    """An exit code, or the signal that ended a process."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
