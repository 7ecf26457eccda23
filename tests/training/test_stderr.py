"""The standard error stream may go away in the middle, or never have been there."""

import os
import subprocess
import sys

import pytest

from engram.training.display import Display
from engram.training.stderr import notify

ROW = {"env_steps": 500, "steps_per_s": 10.0, "train/return": [0.5]}
SPEAK = """
import contextlib, os, sys
from engram.training.stderr import notify, open_what_is_closed
open_what_is_closed()
notify("first")
assert os.open(os.devnull, os.O_RDONLY) > 2
print("out")
with contextlib.suppress(BrokenPipeError):  # in C++ nobody would look
    os.write(2, b"of a library")
notify("last")
print(len(sys.argv[1]))
"""


@pytest.fixture
def lost():
    """A stream whose reader went away."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


def test_lines_that_nobody_reads_are_no_error(lost, monkeypatch):
    monkeypatch.setattr(sys, "stderr", lost)
    for line in ("one", "two"):
        notify(line)
    lost.write("of somebody else")  # whose stream goes to nowhere from now on
    lost.flush()
    monkeypatch.setattr(sys, "stderr", None)
    notify("three")


@pytest.mark.parametrize("opens", [os.pipe, os.openpty])
def test_a_display_that_nobody_sees_any_more_goes_on(opens, monkeypatch):
    """Of a terminal that was closed, rich would draw in a thread of its own, which ends, or end the process."""
    monkeypatch.setenv("TERM", "xterm")
    reading, writing = opens()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        shown = Display("run", 1000, seeds=1, quiet=False)
        os.close(reading)
        shown.compiling(["chunk"], 1.0)
        shown.compiled(1.0)
        shown.show(ROW)
        shown.close()
    assert (shown.bar is not None) == (opens is os.openpty)


@pytest.mark.parametrize("ending", ["2>&-", "2> >(true)", "2> >(head -c1 > /dev/null)", "0<&- 2>&-"])
def test_a_process_without_the_stream_ends_as_any_other(ending):
    """Nor do files that are opened take its place, or lines of the user its output's."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {ending}', sys.executable, SPEAK, "argument"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "out\n8\n")
