"""Progress of a run for its user: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from engram.training.metrics import Row
from engram.training.stderr import Unfailing, notify

COMPILING = "compiling init, chunk, evaluation"
"""What a run waits for at first."""


class Display:
    """Shows how far a run is, its returns, its speed and the time left.

    Args:
        total_steps: environment steps of the run, per seed.
        console: where the bar is drawn (default: the standard error stream). Without a terminal there, or on one that
            cannot move its cursor (`TERM=dumb`), there is a line for each log point instead.
    """

    def __init__(self, label: str, total_steps: int, seeds: int, quiet: bool, console: Console | None = None):
        self.label, self.total, self.seeds, self.quiet = label, total_steps, seeds, quiet
        self.bar = None
        self.announced, self.ready = False, False
        if sys.stderr is None:  # nobody would see it
            self.quiet = quiet = True
        console = console or Console(file=cast(IO[str], Unfailing(sys.stderr)))
        if quiet:
            return
        if not console.is_interactive:
            notify(f"{label}: {COMPILING} ...")
            return
        self.bar = Progress(
            _Label(table_column=Column()),
            BarColumn(bar_width=40 if console.width >= 120 else 8, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}% {task.fields[state]}"),
            _Clock(table_column=Column(no_wrap=True)),
            console=console,
        )
        clock = {"since": time.monotonic(), "expected": None, "ends": None}
        self.task = self.bar.add_task(label, total=total_steps, state=COMPILING, **clock)
        self.bar.start()

    def compiling(self, programs: Sequence[str], expected: float | None) -> None:
        """Tells which programs are still being compiled.

        Args:
            expected: seconds that the compilation of all of them took the last time, where that is known.
        """
        if self.ready:  # what is still compiled is not waited for
            return
        if self.bar is not None:
            self.bar.update(self.task, state=f"compiling {', '.join(programs)}", expected=expected)
        elif not (self.quiet or self.announced or expected is None):
            notify(f"{self.label}: compiling took {expected:.0f} s the last time")
            self.announced = True

    def compiled(self, seconds: float) -> None:
        """Tells that training can begin, `seconds` after its compilation did."""
        self.ready = True
        if self.bar is not None:
            self.bar.update(self.task, state=f"compiled in {seconds:.0f} s", since=None)
        elif not self.quiet:
            notify(f"{self.label}: compiled in {seconds:.0f} s")

    def show(self, row: Row) -> None:
        """Shows a line of metrics. `engram.training.metrics.LastKnown` fills what seeds lack."""
        if self.quiet:
            return
        left = (self.total - row["env_steps"]) * self.seeds / max(row["steps_per_s"], 1e-9)
        names = {"return": "train/return", "eval": "eval/return"}
        shown = {word: row.get(name, []) for word, name in names.items() if word == "return" or name in row}
        speed, ended = f"{row['steps_per_s']:,.0f} steps/s", row.get("eval/finished", [1.0])
        if min(ended) < 1:  # the mean leaves out what did not end, often the longest episodes
            speed = f"({sum(ended) / len(ended):.0%} ended) {speed}"
        if self.bar is not None:
            means = [f"{word} {_mean(values, _short, ' ({}/{})')}" for word, values in shown.items()]
            state = " ".join([*means, speed])
            self.bar.update(self.task, completed=row["env_steps"], state=state, ends=time.monotonic() + left)
        else:
            write, of = "{:6.3f}".format, " ({} of {} seeds)"
            text = "  ".join(f"{word} {_mean(values, write, of)}" for word, values in shown.items())
            notify(f"{self.label}: {row['env_steps']:>12,} steps  {text}  {speed}  {left:,.0f} s left")

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.stop()


def _mean(per_seed: Sequence[float | None], write: Callable[[float], str], of: str) -> str:
    """The mean over seeds, and, in the words `of`, of how many where some have no number yet."""
    known = [value for value in per_seed if value is not None]
    if not known:
        return "n/a"
    count = "" if len(known) == len(per_seed) else of.format(len(known), len(per_seed))
    return write(sum(known) / len(known)) + count


def _short(value: float) -> str:
    """At most eight characters, up to a million."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


class _Label(ProgressColumn):
    """Name of the run. It is the only column that gives way on a narrow terminal."""

    def render(self, task: Task) -> "_Shortened":
        return _Shortened(task.description)


@dataclass(frozen=True)
class _Shortened:
    """A line of text that loses its middle where there is no room: a run's name ends in its memory."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room, text = options.max_width, self.text
        if len(text) > room:
            end = room // 2
            text = text[: room - end - 1] + "…" + text[len(text) - end :]
        yield Text(text, no_wrap=True)


class _Clock(ProgressColumn):
    """Time that compilation has taken, beside what it took the last time; then the time to the end of the run at the
    speed of the last chunk, which runs on between chunks."""

    def render(self, task: Task) -> Text:
        since, expected, ends = (task.fields[name] for name in ("since", "expected", "ends"))
        if ends is not None:
            return Text(f"{_time(max(ends - time.monotonic(), 0.0))} left")
        if since is None:
            return Text()
        return Text(f"{time.monotonic() - since:.0f}{'' if expected is None else f' of {expected:.0f}'} s")


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
