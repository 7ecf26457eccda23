"""Attempts at a run: what crashes is tried again, and how often stands beside its folder, for whoever takes over.

Nothing here needs JAX.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.configs import store
from engram.errors import BadRequest, Interrupted, InUse
from engram.experiments.children import Crashed
from engram.regular_files import read_json, read_text
from engram.training.claim import is_alive, is_claimed, owner
from engram.training.folder import write_atomically
from engram.training.stderr import notify

FIRST_PAUSE = 5.0
"""Seconds between the first crash and the next attempt; each further one doubles them."""
BEGIN = 30.0
"""Seconds in which a process claims its folder: it imports JAX before."""


@dataclass(frozen=True)
class Attempts:
    """What is known of the attempts at a run that has neither ended nor failed."""

    launch: str = ""
    """Mark of the command that launched it."""
    number: int = 0
    """Attempts that were begun."""
    crashes: int = 0
    """Those that ended by no decision of their own."""
    going: bool = False
    """Whether the last one has come to no end that is known. (Its machine may be lost.)"""
    reason: str = ""
    """Why the last one crashed."""
    host: str = ""
    """Machine of the last one."""
    pid: int = 0
    """Process that waits for the last one."""

    @property
    def pause(self) -> float:
        """Seconds before the next attempt."""
        return FIRST_PAUSE * 2 ** (self.crashes - 1) if self.crashes else 0.0

    def lost(self, reason: str) -> "Attempts":
        """These, after the last one vanished with the process that waited for it, or before it began."""
        return dataclasses.replace(self, going=False, crashes=self.crashes + 1, reason=reason)


def attempts_at(folder: Path) -> Attempts:
    """What is known of the attempts at the run in `folder`."""
    try:
        return store.build(Attempts, read_json(_file(folder)))
    except (OSError, ValueError):  # none, or damaged
        return Attempts()


def note(folder: Path, attempts: Attempts) -> None:
    """Keeps `attempts` beside `folder`."""
    write_atomically(_file(folder), json.dumps(dataclasses.asdict(attempts)) + "\n")


def note_queued(folder: Path, job: str) -> None:
    """Keeps the name of the job in the queue of a cluster that will train the run in `folder`. (In a file of its own:
    the job may begin at this moment.)"""
    _queue_file(folder).write_text(job + "\n")


def queued_as(folder: Path) -> str:
    """The job of a cluster's queue that the run in `folder` was given to, empty where there is none."""
    try:
        return read_text(_queue_file(folder)).strip()
    except (OSError, BadRequest):
        return ""


def forget(folder: Path) -> None:
    """Forgets attempts at the run in `folder`, which has ended or begins anew."""
    _file(folder).unlink(missing_ok=True)
    _queue_file(folder).unlink(missing_ok=True)


def fail(folder: Path, reason: str, crashes: int = 0) -> None:
    """Notes why the run in `folder` failed, after `crashes` attempts that crashed."""
    if crashes > 1:
        reason = f"{reason} (after {crashes} attempts)"
    notify(f"failed: {reason}")
    write_atomically(failure_file(folder), json.dumps({"reason": reason}) + "\n")
    forget(folder)


def failure_file(folder: Path) -> Path:
    """The file that says why the run in `folder` failed: beside the folder, which may be what is wrong."""
    return folder.with_name(f"{folder.name}.failed.json")


def keep_trying(
    folder: Path, train: Callable[[], str | None], retries: int, wait: Callable[[float], Any], launch: str = ""
) -> None:
    """Trains until the run in `folder` is done or has failed; why it failed is kept beside the folder.

    Args:
        train: one attempt, see `engram.experiments.children.train_job`.
        retries: attempts after crashes.
        wait: sleeps, and raises Interrupted where stopping was asked for.
        launch: mark of a command whose earlier attempts count; empty where there are none.

    Raises:
        InUse: another process trains there.
        Interrupted: by Ctrl-C or a polite kill; the run was checkpointed if it had begun.
    """
    if is_claimed(folder):
        raise InUse(f"{folder} is in use by {owner(folder)}")
    known = attempts_at(folder)
    if is_beginning(folder, known, launch):
        raise InUse(f"{folder} is begun by process {known.pid} on {known.host}")
    failure_file(folder).unlink(missing_ok=True)
    if not launch or known.launch != launch:
        known = Attempts(launch)
    elif known.going:
        known = known.lost(f"{known.host} was lost, or killed the process that waited")
    while True:
        if known.crashes > retries:
            return fail(folder, known.reason, known.crashes)
        here = {"going": True, "host": platform.node(), "pid": os.getpid()}
        known = dataclasses.replace(known, number=known.number + 1, **here)
        note(folder, known)
        try:
            reason = train()
        except InUse:
            if attempts_at(folder) == known:  # and not those of the process that has it
                forget(folder)
            raise
        except Interrupted:
            if launch:
                note(folder, dataclasses.replace(known, going=False))
            else:  # nobody goes on counting
                forget(folder)
            raise
        except Crashed as error:
            known = known.lost(str(error))
            if known.crashes <= retries:
                notify(f"{folder}: {known.reason}; attempt {known.number + 1} in {known.pause:.0f} s")
                note(folder, known)
                wait(known.pause)
            continue
        if reason is not None:
            return fail(folder, reason)
        return forget(folder)


def is_beginning(folder: Path, known: Attempts, launch: str) -> bool:
    """Whether another command has just begun the run in `folder`, whose process has not claimed it yet."""
    if not known.going or (launch and known.launch == launch):
        return False
    if known.host == platform.node() and (known.pid == os.getpid() or not is_alive(known.pid)):
        return False
    with suppress(OSError):
        return abs(time.time() - _file(folder).stat().st_mtime) < BEGIN
    return False


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.attempts.json")


def _queue_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.job.txt")
