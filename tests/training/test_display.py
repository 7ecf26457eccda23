"""The display: everything fits on 80 columns; lines where there is no terminal, or one that cannot redraw."""

import io
import time

import pytest
from rich.console import Console

from engram.training.display import Display

LABEL = "popgym/RepeatPreviousMedium mamba2"
ROW = {"env_steps": 500_000, "steps_per_s": 1234.5, "train/return": [-0.25, 0.75, 0.25], "eval/return": [0.5, 0.5, 0.5]}
WIDE = {"env_steps": 1, "steps_per_s": 9_876_543.0, "train/return": [-999.9994], "eval/return": [-123456.7]}


def terminal(width: int, kind: str = "xterm") -> Console:
    return Console(width=width, force_terminal=True, color_system=None, file=io.StringIO(), _environ={"TERM": kind})


def drawn(shown: Display, width: int) -> str:
    """The bar as it stands."""
    assert shown.bar is not None
    shown.close()
    page = terminal(width)
    page.print(shown.bar.get_renderable())
    assert isinstance(page.file, io.StringIO)
    (line,) = page.file.getvalue().splitlines()
    assert len(line) <= width
    return line


@pytest.mark.parametrize(("width", "label"), [(80, "popgym/… mamba2"), (160, LABEL)])
def test_everything_fits_and_the_label_gives_way_first(width, label):
    shown = Display(LABEL, 1_000_000, seeds=3, quiet=False, console=terminal(width))
    shown.show(ROW)
    line = drawn(shown, width)
    # 500,000 steps of 3 seeds at 1234.5 steps/s: 1215 s.
    for part in (label, " 50% return 0.250 eval 0.500 1,234 steps/s 0:20:15 left"):
        assert part in line, (part, line)


def test_long_numbers_fit_too():
    shown = Display(LABEL, 4_000_000_000_000, seeds=1, quiet=False, console=terminal(80))
    shown.show(WIDE)
    # 405,000 s, which is more than 4 days.
    assert "  0% return -999.999 eval -123,457 9,876,543 steps/s 112:30:00 left" in drawn(shown, 80)


def test_compiling_is_shown_on_a_terminal(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = Display(LABEL, 10, seeds=1, quiet=False, console=terminal(80))
    assert shown.bar is not None
    now = 103.0

    def line() -> str:
        assert shown.bar is not None
        page = terminal(80)
        page.print(shown.bar.get_renderable())
        assert isinstance(page.file, io.StringIO)
        return page.file.getvalue().rstrip()

    assert line().endswith("compiling init, chunk, evaluation 3 s")
    shown.compiling(["chunk", "evaluation"], expected=12.0)
    assert line().endswith("compiling chunk, evaluation 3 of 12 s")
    shown.compiled(4.0)
    shown.compiling([], expected=12.0)  # the evaluation was ready last
    assert line().endswith("compiled in 4 s")
    shown.close()


@pytest.mark.parametrize("console", [terminal(80, "dumb"), Console(width=80, force_terminal=False)])
def test_lines_where_a_bar_cannot_be_drawn(console, capsys):
    shown = Display(LABEL, 1_000_000, seeds=3, quiet=False, console=console)
    shown.compiling(["init", "chunk", "evaluation"], expected=11.6)
    shown.compiling(["chunk"], expected=11.6)
    shown.compiled(12.3)
    shown.show(ROW)
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        f"{LABEL}: compiling init, chunk, evaluation ...",
        f"{LABEL}: compiling took 12 s the last time",
        f"{LABEL}: compiled in 12 s",
        f"{LABEL}:      500,000 steps  return  0.250  eval  0.500  1,234 steps/s  1,215 s left",
    ]


def test_seeds_without_a_number_are_counted(capsys):
    row = {**ROW, "train/return": [-0.25, None, 0.75], "eval/return": [None, None, None], "eval/finished": [0.0] * 3}
    shown = Display(LABEL, 1_000_000, seeds=3, quiet=False, console=terminal(80))
    shown.show(row)
    assert " 50% return 0.250 (2/3) eval n/a (0% ended) 1,234 steps/s 0:20:15 left" in drawn(shown, 80)
    lines = Display(LABEL, 1_000_000, seeds=3, quiet=False, console=terminal(80, "dumb"))
    lines.show(row)
    assert "steps  return  0.250 (2 of 3 seeds)  eval n/a  (0% ended) 1,234 steps/s" in capsys.readouterr().err


def test_quiet_is_silent(capsys):
    for console in (terminal(80), terminal(80, "dumb")):
        shown = Display(LABEL, 1_000_000, seeds=3, quiet=True, console=console)
        shown.compiled(1.0)
        shown.show(ROW)
        shown.close()
        assert isinstance(console.file, io.StringIO)
        assert console.file.getvalue() == ""
    assert capsys.readouterr().err == ""
