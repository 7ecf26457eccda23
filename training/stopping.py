"""Requests to stop a run: by signals, and by the end of the process that waits for it."""

import contextlib
import os
import signal

from engram.errors import BadRequest
from engram.training.claim import is_alive
from engram.training.stderr import notify

POLITE = (signal.SIGTERM, signal.SIGHUP)
"""Signals by which a process is asked to end, beside Ctrl-C."""
PARENT = "ENGRAM_PARENT"
"""Variable of the environment with the number of the process that waits for this one, and without which it stops."""
CHECKPOINT_SECONDS = "ENGRAM_CHECKPOINT_SECONDS"
"""Variable of the environment with the least seconds between two checkpoints of a run. (Its configuration, which tells
runs apart, stays what it is.)"""


def least_checkpoint_seconds() -> float:
    """Seconds between two checkpoints that a launcher asks for. Raises BadRequest where they are no number."""
    text = os.environ.get(CHECKPOINT_SECONDS, "0")
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"{CHECKPOINT_SECONDS} must be a number of seconds, got {text!r}") from None


class StopRequest:
    """Turns Ctrl-C, a polite kill, a closed terminal and the end of the process that waits for this one into a request
    that the loop honours after the running chunk."""

    def __init__(self):
        self._asked: set[int] = set()
        # A run that nobody waits for would hold its folder. (Another parent is a launcher between the two.)
        parent = os.environ.get(PARENT, "")
        self._parent = os.getppid() if parent == str(os.getppid()) else None
        if self._parent is None and parent.isdigit() and not is_alive(int(parent)):  # it ended before this began
            self._asked.add(signal.SIGHUP)
        self._before = {}
        for name in (signal.SIGINT, *POLITE):
            if name == signal.SIGHUP and signal.getsignal(name) is signal.SIG_IGN:  # `nohup`
                continue
            try:
                self._before[name] = signal.signal(name, self._ask)
            except ValueError:  # not in the main thread: the caller handles signals
                return

    @property
    def requested(self) -> bool:
        """Whether the run shall stop."""
        return bool(self._asked) or self._parent not in (None, os.getppid())

    def _ask(self, signum, frame):
        if signum in self._asked and signum != signal.SIGHUP:  # asked twice: now. A terminal alone may hang up twice
            raise KeyboardInterrupt
        self._asked.add(signum)
        with contextlib.suppress(RuntimeError):  # in the middle of another line, which does not let it in
            notify("stopping after this chunk (once more to stop at once) ...")

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for name, handler in self._before.items():
            signal.signal(name, handler)
