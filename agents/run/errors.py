"""Endings of a run that are not success, each with its exit code."""


class BadRequest(Exception):
    """The request cannot be carried out as given; nothing was lost. The message is one line for the user."""

    exit_code = 2


class Diverged(Exception):
    """Training produced a loss that is not finite; the last good checkpoint is kept and named in the message."""

    exit_code = 3


class Interrupted(Exception):
    """The user stopped the run; it was checkpointed first and can be resumed."""

    exit_code = 130
