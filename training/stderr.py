"""The standard error stream of a process whose reader may go away (`| head`, a killed `tee`, a closed terminal).

What is said then is lost. Training is not.
"""

import os
import sys
from contextlib import suppress
from typing import Any


class Unfailing:
    """A stream that takes what is written also where nobody reads it any more; all else is the stream's."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Sends what follows to nowhere, also what C++ libraries and the end of Python write."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def notify(message: str) -> None:
    """Prints one line for the user, beside the progress display."""
    if sys.stderr is not None:  # it is, where the process began without one
        print(message + "\n", end="", file=Unfailing(sys.stderr), flush=True)  # whole lines, of several threads too


def open_what_is_closed() -> None:
    """Opens the standard streams that the process began without (`2>&-`): else the next file that is opened, such as
    one of a run, would take their place, and libraries would write to it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
