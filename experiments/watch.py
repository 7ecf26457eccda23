"""Watching cells that other commands train, here or on other machines: one line a cell, from the run folders alone."""

import time
from collections.abc import Callable, Sequence

from engram.errors import BadRequest, Interrupted
from engram.experiments.attempts import attempts_at, queued_as
from engram.experiments.cells import Cell, State
from engram.training.claim import lease_seconds, owner_and_host
from engram.training.metrics import read_metrics
from engram.training.stderr import notify


def watch(
    cells: Sequence[Cell], seconds: float, changed: Callable[[], None] = lambda: None, limit: float | None = None
) -> None:
    """Shows how far each cell is, until all have ended, or none has been running for the length of a lease.

    Args:
        seconds: time between two looks; 0 for a single one.
        changed: called at each look.
        limit: time after which it ends in any case (None: never).

    Raises:
        Interrupted: the time is up.
    """
    started = alive = time.monotonic()
    while True:
        states: list[State] = [cell.state for cell in cells]
        for cell, state in zip(cells, states, strict=True):
            notify(line_of(cell, state))
        changed()
        if not seconds or all(state in ("done", "failed") for state in states):
            return
        now = time.monotonic()
        if any(is_under_way(cell, state) for cell, state in zip(cells, states, strict=True)):
            alive = now
        elif now - alive > lease_seconds():  # an owner that is only silent has been seen by now
            left = sum(state == "not run" for state in states)
            notify(
                f"nothing has been running for {now - alive:.0f} s; {left} not run: repeat the command without --watch"
            )
            return
        if limit is not None and now - started >= limit:
            raise Interrupted("time is up; what others train goes on")
        time.sleep(seconds if limit is None else min(seconds, max(0.0, limit - (now - started))))


def is_under_way(cell: Cell, state: State) -> bool:
    """Whether a cell is being trained, or waits in the queue of a cluster."""
    return state == "running" or (
        state == "not run" and bool(queued_as(cell.folder)) and not attempts_at(cell.folder).going
    )


def line_of(cell: Cell, state: State) -> str:
    """State, progress, speed, task and column of a cell; where, by whom and how often it is trained, or why it
    failed."""
    try:
        rows = read_metrics(cell.folder / "metrics.jsonl")
    except (OSError, BadRequest):  # not yet there, or just being written
        rows = []
    steps, speed = (rows[-1].get(name, 0) for name in ("env_steps", "steps_per_s")) if rows else (0, 0)
    share = min(1.0, steps / cell.config.total_steps)  # steps are rounded up to whole chunks
    words = f"{share:4.0%} {speed:>10,.0f} steps/s" if rows else " " * 23
    more = ", ".join(filter(None, [cell.failure] if state == "failed" else about(cell, state)))
    return f"{state:>7} {words}  {cell.task} with {cell.label}" + (f": {more}" if more else "")


def about(cell: Cell, state: State) -> list[str]:
    """What is known of the process that trains a cell, or did so last."""
    known = attempts_at(cell.folder)
    attempt = f"attempt {known.number}" if known.number else ""
    if state == "running":
        return [owner_and_host(cell.folder), attempt]
    if state != "not run":
        return []
    job = queued_as(cell.folder)
    return [
        f"queued as job {job}" if job else "",
        f"attempt {known.number} ended: {known.reason}" if known.reason else "",
    ]
