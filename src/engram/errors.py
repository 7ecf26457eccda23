"""What is raised on purpose. Scripts turn these errors, and no others, into one line and an exit code: any other
exception is a defect and shows its traceback."""

import difflib
from collections.abc import Iterable


class EngramError(Exception):
    """Base of all errors that are raised on purpose. The message is one line for the user."""

    exit_code = 2
    """Exit code of a script that ends with this error."""


class BadRequest(EngramError, ValueError):
    """A request that cannot be carried out as given, such as an impossible setting; nothing was lost."""


class UnknownName(BadRequest):
    """A name that is not registered, or an option that does not exist. The message offers close matches."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], cutoff: float = 0.5) -> "UnknownName":
        """The error for `name`, which is no `kind` of those `known`."""
        return cls(f"unknown {kind} {name!r}{close_matches(name, known, cutoff)}")


class MissingExtra(BadRequest):
    """An optional dependency that is not installed. The message says which extra brings it."""

    @classmethod
    def of(cls, what: str, extra: str) -> "MissingExtra":
        """The error for `what`, which needs the optional dependencies `extra`."""
        return cls(f'{what} needs an optional dependency: pip install "engram[{extra}]"')


class InUse(EngramError):
    """A run folder that another process writes at this moment."""

    exit_code = 4


class Diverged(EngramError):
    """Training produced a loss that is not finite; the last good checkpoint is kept and named in the message."""

    exit_code = 3


class Interrupted(EngramError):
    """The user stopped the run; it was checkpointed first and can be resumed."""

    exit_code = 130


def close_matches(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`: did you mean ...?` with the names in `known` nearest to `word`, or all of them when nothing is close."""
    known = sorted(known)
    if not known:
        return ": there are none"
    spelling = {name.lower(): name for name in known}
    close = [spelling[match] for match in difflib.get_close_matches(word.lower(), spelling, n=3, cutoff=cutoff)]
    return f": did you mean {' or '.join(close)}?" if close else f": choose from {', '.join(known)}"
