"""Comparing from the command line: what is printed, how failures end, what compare sets itself."""

import pytest

from engram.errors import BadRequest
from engram.experiments import cells
from engram.scripts import compare
from tests.experiments.runs import train_here

TINY = ["--total-steps", "1024", "--log-points", "2", "--eval-points", "1", "--quiet"]


def test_compare_reports_failures_and_skips_what_is_done(tmp_path, capsys, monkeypatch):
    """The cell that cannot be written is trained in a process of its own, which fails."""
    out = tmp_path / "comparison"
    arguments = ["debug", "--memories", "none", "--seeds", "2", "--out", str(out), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train_apart", train_here)
        assert compare.main(arguments) == 0
    table = capsys.readouterr().out
    assert "| popgym/RepeatPreviousEasy |" in table
    stamp = (out / "popgym-RepeatPreviousEasy-none" / "summary.json").stat().st_mtime_ns
    # A cell that cannot be written fails; the finished one is kept as it is.
    (out / "popgym-RepeatPreviousEasy-gru").write_text("in the way")
    arguments[2:3] = ["none", "gru"]
    assert compare.main(arguments) == 1
    table = capsys.readouterr().out
    assert "**failed**" in table
    assert "exit code 2" in table
    assert (out / "popgym-RepeatPreviousEasy-none" / "summary.json").stat().st_mtime_ns == stamp
    assert {"table.md", "table.csv", "curves.png", "bars.png"} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dm-pendulum", "--dataset", "recorded.npz"], "sets --dataset itself"),
        (["debug", "--env", "popgym/RepeatFirstEasy"], "sets --env itself"),
        (["debug", "--memory", "gru"], "sets --memory itself"),
        (["debug", "--resume"], "sets --resume itself"),
        (["offline-pendulum", "--algorithms", "iql", "--memories", "gru", "--memory", "s5"], "sets --memory itself"),
        (["lsd", "--memories", "gru"], "use --algorithms"),
    ],
)
def test_what_compare_sets_itself_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message):
        compare.main(arguments)
    assert not list(tmp_path.iterdir())
