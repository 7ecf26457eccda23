"""Claims of folders: one process at a time, whatever the file system can do, and nothing written by who lost it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from engram.errors import BadRequest, InUse
from engram.training.claim import LENGTH, Claim, is_claimed

HOLDER = """
import fcntl, sys
from pathlib import Path
if sys.argv[2] != "0":
    def flock(*_):
        raise OSError(int(sys.argv[2]), "not here")
    fcntl.flock = flock
from engram.errors import InUse
from engram.training.claim import Claim
claim = Claim(Path(sys.argv[1]))
print("claimed", flush=True)
for line in sys.stdin:
    try:
        claim.check()
        print("mine", flush=True)
    except InUse as error:
        print(error, flush=True)
"""


@pytest.fixture
def hold(tmp_path, monkeypatch):
    """Starts a process that claims `tmp_path`, with leases of 2 s."""
    monkeypatch.setenv(LENGTH, "2")
    started = []

    def start(error: int = 0) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(tmp_path), str(error)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert said(process) == "claimed"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def asked(process: subprocess.Popen) -> str:
    """What a holder says of its claim."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def without_flock(monkeypatch, error: int) -> None:
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("error", [0, errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, 524])
def test_one_process_at_a_time_with_and_without_the_locks_of_the_kernel(error, tmp_path, hold, monkeypatch):
    holder = hold(error)
    if error:
        without_flock(monkeypatch, error)
    with pytest.raises(InUse, match=rf"is in use by another process \({holder.pid}\)"):
        Claim(tmp_path)
    assert is_claimed(tmp_path)
    assert asked(holder) == "mine"
    holder.kill()
    holder.wait()
    assert not is_claimed(tmp_path)
    started = time.monotonic()
    Claim(tmp_path).close()
    assert time.monotonic() - started < 1, "that of a dead process of this machine is free at once"
    assert not is_claimed(tmp_path)


def test_who_is_silent_for_too_long_loses_its_claim_and_learns_of_it(tmp_path, hold, monkeypatch, capsys):
    """As a process of another machine whose connection is lost: it cannot be told from a dead one."""
    holder = hold(errno.ENOSYS)
    without_flock(monkeypatch, errno.ENOSYS)
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(InUse):  # not yet
        Claim(tmp_path)
    time.sleep(1.6)
    assert not is_claimed(tmp_path)
    claim = Claim(tmp_path)
    assert "which is silent: waiting up to 2 s" in capsys.readouterr().err
    holder.send_signal(signal.SIGCONT)
    assert f"went to another process ({os.getpid()})" in asked(holder)
    claim.check()
    assert is_claimed(tmp_path)
    claim.close()


def test_a_claim_that_is_touched_outlasts_its_length(tmp_path, hold):
    holder = hold()
    time.sleep(2.5)
    with pytest.raises(InUse):
        Claim(tmp_path)
    assert asked(holder) == "mine"


def test_a_run_of_an_engram_without_leases_is_seen(tmp_path):
    """It holds the lock of the kernel alone."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said(process)
        assert is_claimed(tmp_path)
        process.communicate("\n")
    assert (tmp_path / ".lock").exists()
    assert not is_claimed(tmp_path)


def test_a_look_at_a_claim_that_is_touched_writes_nothing(tmp_path, hold, monkeypatch):
    hold(errno.ENOSYS)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    assert is_claimed(tmp_path)


def test_a_folder_that_was_moved_is_free_where_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    claim = Claim(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    claim.close()
    Claim(tmp_path / "elsewhere").close()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [".lock"]


def test_a_claim_that_was_removed_is_lost(tmp_path):
    claim = Claim(tmp_path)
    claim.check()
    (tmp_path / ".claim").unlink()
    with pytest.raises(InUse, match="was removed"):
        claim.check()
    claim.close()


def test_a_folder_that_cannot_be_written_is_no_folder_in_use(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(BadRequest, match="cannot write to"):
        Claim(tmp_path)
    with pytest.raises(BadRequest, match="cannot write to"):
        Claim(Path(tmp_path / "nowhere"))


def test_lengths_of_leases_are_numbers(tmp_path, monkeypatch):
    for text in ("soon", "0", "nan", "inf"):
        monkeypatch.setenv(LENGTH, text)
        with pytest.raises(BadRequest, match="ENGRAM_LEASE_SECONDS must be"):
            Claim(tmp_path)
