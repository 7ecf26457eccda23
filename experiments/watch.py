"""Watching cells that other commands train, here or on other machines: one line a cell, from the run folders alone."""

import time
from collections.abc import Callable, Sequence

from engram.errors import BadRequest
from engram.experiments.cells import Cell
from engram.training.claim import owner
from engram.training.metrics import read_metrics
from engram.training.stderr import notify


def watch(cells: Sequence[Cell], seconds: float, changed: Callable[[], None] = lambda: None) -> None:
    """Shows how far each cell is, until all have ended.

    Args:
        seconds: time between two looks; 0 for a single one.
        changed: called at each look.
    """
    while True:
        for cell in cells:
            notify(line_of(cell))
        changed()
        if not seconds or all(cell.state in ("done", "failed") for cell in cells):
            return
        time.sleep(seconds)


def line_of(cell: Cell) -> str:
    """State, progress, speed, task and column of a cell; who trains it, or why it failed."""
    try:
        rows = read_metrics(cell.folder / "metrics.jsonl")
    except (OSError, BadRequest):  # not yet there, or just being written
        rows = []
    steps, speed = (rows[-1].get(name, 0) for name in ("env_steps", "steps_per_s")) if rows else (0, 0)
    share = min(1.0, steps / cell.config.total_steps)  # steps are rounded up to whole chunks
    state, words = cell.state, f"{share:4.0%} {speed:>10,.0f} steps/s" if rows else " " * 23
    about = {"running": f": {owner(cell.folder)}", "failed": f": {cell.failure}"}.get(state, "")
    return f"{state:>7} {words}  {cell.task} with {cell.label}{about}"
