"""Claims: which process may write a folder, on one machine and where several share a file system.

Two locks stand beside each other. The kernel's (`flock`) is free at once when its process ends, but some file systems
of clusters refuse it, and on others it holds for one machine alone. The lease (`filelock`) is a file that its owner
touches in intervals. One that nobody has touched for its whole length may be taken over, as may that of a dead process
of this machine. An owner who slept through that learns it from `check` and must write no more.
"""

import errno
import fcntl
import os
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from engram.errors import BadRequest, InUse
from engram.training.stderr import notify

LENGTH = "ENGRAM_LEASE_SECONDS"
"""Name of the environment variable with the length of a lease; all processes that share folders need the same."""
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, 524)
"""Errors of file systems without `flock`; 524 is what NFS says of it."""
KERNEL, LEASE = ".lock", ".claim"
"""Names of the locks in a folder."""


def lease_seconds() -> float:
    """Length of a lease, in seconds. Raises BadRequest where the environment names none."""
    text = os.environ.get(LENGTH, "90")
    with suppress(ValueError):
        if 0.1 <= float(text) <= 86_400:
            return float(text)
    raise BadRequest(f"{LENGTH} must be a number of seconds from 0.1 to 86400, got {text!r}")


class Claim:
    """The sole right to write a folder, until it is closed or this process ends."""

    def __init__(self, folder: Path):
        """Claims `folder`, which exists.

        Raises:
            InUse: another process has it.
            BadRequest: it cannot be written.
        """
        self.folder = folder
        try:
            self.file: IO = (folder / KERNEL).open("a")
        except OSError as error:
            raise BadRequest(f"cannot write to {folder}: {error.strerror}") from None
        try:
            self._lock()
            self._lease = lease_on(folder)
            self._acquire()
        except BaseException as error:
            self.file.close()
            if isinstance(error, OSError):
                raise BadRequest(f"cannot write to {folder}: {error.strerror}") from None
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use() from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise

    def _acquire(self) -> None:
        try:
            self._lease.acquire(timeout=0)
            return
        except Timeout:
            pass
        except LeaseSettingsMismatch:
            raise InUse(
                f"{self.folder} is claimed by {owner(self.folder)} with another {LENGTH}: it must be the same"
            ) from None
        if not is_silent(self.folder, self._lease):
            raise self._in_use()
        seconds = lease_seconds()
        notify(
            f"{self.folder} is claimed by {owner(self.folder)}, which is silent: waiting up to {seconds:.0f} s for it"
        )
        try:
            self._lease.acquire(timeout=1.2 * seconds + 1, poll_interval=min(1.0, seconds / 10))
        except Timeout:
            raise self._in_use() from None

    def _in_use(self) -> InUse:
        return InUse(f"{self.folder} is in use by {owner(self.folder)}")

    def check(self) -> None:
        """Raises InUse where another process took the folder over, after which this one must not write to it."""
        record, token = self._lease.owner, self._lease.token
        if record is not None and record.token == token:
            return
        if record is None and os.path.lexists(self.folder / LEASE):  # it could not be read this time
            return
        now = "was removed" if record is None else f"went to {owner(self.folder)}"
        raise InUse(f"the claim on {self.folder} {now}, as this process was silent for too long: it writes no more")

    def close(self) -> None:
        """Lets other processes, and this one, claim the folder again."""
        token = self._lease.token
        with suppress(OSError):
            self._lease.release(force=True)
        with suppress(OSError):  # it may lie elsewhere by now
            moved = Path(os.readlink(f"/proc/self/fd/{self.file.fileno()}")).parent
            record = lease_on(moved).owner
            if token is not None and record is not None and record.token == token:
                (moved / LEASE).unlink()
        self.file.close()


def lease_on(folder: Path) -> SoftFileLease:
    """The lease of a folder, not yet acquired."""
    return SoftFileLease(folder / LEASE, lease_duration=lease_seconds(), thread_local=False)


def owner(folder: Path) -> str:
    """Words for the process that has claimed `folder`."""
    record = lease_on(folder).owner
    if record is None:  # that is not known
        return "another process"
    where = "" if record.hostname == this_host() else f" on {record.hostname.partition('?')[0]}"
    return f"another process{where} ({record.pid})"


def owner_and_host(folder: Path) -> str:
    """Words for the process that has claimed `folder`, and its machine."""
    record = lease_on(folder).owner
    return "an unknown process" if record is None else f"process {record.pid} on {record.hostname.partition('?')[0]}"


def is_silent(folder: Path, lease: SoftFileLease) -> bool:
    """Whether the owner of a lease has missed two of the times at which it touches it, by the clock of the file
    server."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock") as file:
            now = os.fstat(file.fileno()).st_mtime
        return now - (folder / LEASE).stat().st_mtime > lease.lease_duration / 3 * 2
    except FileNotFoundError:  # released at this moment
        return True


def is_claimed(folder: Path) -> bool:
    """Whether a process has claimed `folder` that is not known to be gone."""
    if is_locked(folder / KERNEL):
        return True
    lease = lease_on(folder)
    record = lease.owner
    if record is not None and record.hostname == this_host() and not is_alive(record.pid):
        return False
    try:
        touched = (folder / LEASE).stat().st_mtime
    except OSError:
        return False
    if 0 <= time.time() - touched < lease.lease_duration / 2:  # no need to ask for the clock of the file server
        return True
    try:
        return not is_silent(folder, lease)
    except OSError:  # who may not write here does not know
        return record is not None


def is_locked(file: Path) -> bool:
    """Whether a process of this machine holds the kernel's lock on `file`, as far as the kernel tells. (Asking for the
    lock would stand in the way of who takes it at this moment.)"""
    try:
        about, locks = file.stat(), Path("/proc/locks").read_text()
    except OSError:
        return False
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    return any(" FLOCK " in line and place in line.split() and "->" not in line for line in locks.splitlines())


@cache
def this_host() -> str:
    """This machine as leases name it, which tells containers of one name apart."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / LEASE) as lease:
        record = lease.owner
        assert record is not None
        return record.hostname


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
