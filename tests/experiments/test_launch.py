"""Launching cells: how many at a time, whose they are, what becomes of failures and of a request to stop."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engram.configs import store
from engram.configs.presets import PRESETS
from engram.errors import BadRequest, Interrupted, InUse
from engram.experiments import attempts
from engram.experiments import cells as cells_module
from engram.experiments.attempts import Attempts, note, note_queued
from engram.experiments.cells import Cell
from engram.experiments.launch import _shares, run_cells
from engram.experiments.options import Output
from engram.experiments.watch import watch
from engram.scripts import compare
from engram.training.claim import LENGTH, owner_and_host
from engram.training.folder import RunFolder
from tests.experiments.runs import assert_same_end, checkpointed, checkpoints_of, eventually

QUIET = Output(quiet=True)


def some(out: Path, count: int) -> list[Cell]:
    config: Any = replace(PRESETS["lsd"], total_steps=100)
    return [Cell(replace(config, seed=seed), out / f"cell{seed}", "lsd") for seed in range(count)]


def finish(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text("{}")


@pytest.fixture
def trained(monkeypatch):
    """Cells that are trained by a function; those that were begun."""
    begun: list[str] = []

    def use(function):
        def train_apart(config, preset, folder, output, children, cores):
            begun.append(folder.name)
            return function(folder, cores)

        monkeypatch.setattr(cells_module, "train_apart", train_apart)
        return begun

    return use


def test_as_many_cells_at_a_time_as_there_are_jobs(tmp_path, trained):
    """Each waits for a second one: alone it would wait for ever."""
    pairs = threading.Barrier(2, timeout=10)

    def train(folder, cores):
        pairs.wait()
        finish(folder)

    reports = []
    begun = trained(train)
    run_cells(some(tmp_path, 6), QUIET, jobs=2, changed=lambda: reports.append(len(reports)))
    assert sorted(begun) == [f"cell{i}" for i in range(6)]
    assert reports == [*range(6)]


@pytest.mark.parametrize(("jobs", "expected"), [(1, [[0, 1, 2]]), (2, [[0, 2], [1]]), (4, [[0], [1], [2], [0]])])
def test_cores_are_shared_out(jobs, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert _shares(jobs) == expected


def test_a_mirror_that_cannot_be_is_refused_before_the_first_run(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = trained(lambda folder, cores: finish(folder))
    with pytest.raises(BadRequest, match="must lie neither in it nor around it"):
        run_cells(some(tmp_path, 2), replace(QUIET, mirror=str(tmp_path)))
    strangers = tmp_path / "bucket" / "cell0"
    strangers.mkdir(parents=True)
    (strangers / "letter.txt").write_text("of somebody else")
    with pytest.raises(BadRequest, match="cell0"):
        run_cells(some(tmp_path, 2), replace(QUIET, mirror=str(tmp_path / "bucket")))
    assert begun == []


def test_failures_are_kept_and_forgotten_when_the_cell_is_trained(tmp_path, trained):
    def train(folder, cores):
        return "exit code 2: no" if folder.name == "cell1" else finish(folder)

    trained(train)
    cells = some(tmp_path, 3)
    run_cells(cells, QUIET)
    assert [cell.state for cell in cells] == ["done", "failed", "done"]
    assert cells[1].failure == "exit code 2: no"
    begun = trained(lambda folder, cores: finish(folder))
    begun.clear()
    run_cells(cells, QUIET)
    assert begun == ["cell1"]
    assert [cell.state for cell in cells] == ["done"] * 3
    assert not list(tmp_path.glob("*.failed.json"))


def test_a_defect_ends_all_and_is_raised(tmp_path, trained):
    def train(folder, cores):
        raise ZeroDivisionError

    begun = trained(train)
    with pytest.raises(ZeroDivisionError):
        run_cells(some(tmp_path, 3), QUIET)
    assert begun == ["cell0"]


def test_a_cell_of_another_command_is_waited_for_and_no_failure(tmp_path, trained):
    """One is finished by its owner, another one given up: that is taken over. No process is started before."""
    cells = some(tmp_path, 3)
    folders = [RunFolder(cell.folder, store.describe("lsd", cell.config), resume=False) for cell in cells[:2]]
    assert [cell.state for cell in cells] == ["running", "running", "not run"]

    def train(folder, cores):
        assert not any(folder == held.path for held in folders)
        finish(folder)

    def end():
        finish(cells[0].folder)
        held = [*folders]
        folders.clear()
        for folder in held:
            folder.close()

    threading.Timer(1.5, end).start()
    begun = trained(train)
    run_cells(cells, QUIET)
    assert begun == ["cell2", "cell1"]
    assert [cell.state for cell in cells] == ["done"] * 3


def test_a_cell_that_another_command_was_quicker_to_begin_is_no_failure(tmp_path, trained):
    (cell,) = some(tmp_path, 1)

    def train(folder, cores):
        if begun == ["cell0"]:
            raise InUse("in use")
        finish(folder)

    begun = trained(train)
    run_cells([cell], QUIET)
    assert begun == ["cell0", "cell0"]
    assert cell.state == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["cell0"]


def test_nothing_is_started_once_stopping_was_asked_for(tmp_path, trained):
    def train(folder, cores):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        finish(folder)

    begun, before = trained(train), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="repeat the command"):
        run_cells(some(tmp_path, 3), QUIET)
    assert begun == ["cell0"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_two_comparisons_in_one_folder_train_every_cell_once(tmp_path):
    """Both end with 0 and the same table, in which nothing failed."""
    out = tmp_path / "comparison"
    script = [sys.executable, "-m", "engram.scripts.compare", "debug", "--memories", "none", "gru", "lru", "mingru"]
    command = [*script, "--jobs", "2", "--seeds", "2", "--total-steps", "2048", "--out", str(out)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    tables = [table for table, _ in ends]
    assert tables[0] == tables[1] == (out / "table.md").read_text() + "\n"
    assert "failed" not in "".join(word for end in ends for word in end)
    began = "".join(errors for _, errors in ends)
    for folder in out.glob("popgym-*/"):
        assert began.count(f"in {folder}\n") == 1, "one process finished it"
        assert json.loads((folder / "summary.json").read_text())["seeds"] == 2


@pytest.mark.slow
def test_a_run_that_is_killed_is_resumed_and_changes_no_number(tmp_path, monkeypatch, capfd):
    """As one that takes more memory than there is: the local command trains on."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.1)
    whole, broken = (checkpointed(tmp_path / name) for name in ("whole", "broken"))

    def kill():
        eventually(lambda: checkpoints_of(broken))
        os.kill(int(owner_and_host(broken.folder).split()[1]), signal.SIGKILL)

    threading.Thread(target=kill).start()
    run_cells([broken], QUIET)
    said = capfd.readouterr().err
    assert "killed by SIGKILL" in said
    assert "attempt 2 in" in said
    assert "resuming after" in said
    run_cells([whole], QUIET)
    assert_same_end(whole.folder, broken.folder)


def test_a_look_shows_each_cell_and_trains_nothing(tmp_path, capsys):
    done, running, failed, fresh = some(tmp_path, 4)
    finish(done.folder)
    held = RunFolder(running.folder, store.describe("lsd", running.config), resume=False)
    for cell, steps in ((done, 104), (running, 40)):
        (cell.folder / "metrics.jsonl").write_text(f'{{"env_steps": {steps}, "steps_per_s": 1234.5}}\n')
    failed.folder.with_name("cell2.failed.json").write_text('{"reason": "exit code 3: diverged"}')
    note(running.folder, Attempts(number=2, crashes=1, going=True))
    note_queued(fresh.folder, "12_3")
    looks = []
    watch([done, running, failed, fresh], 0, lambda: looks.append(1))
    lines = capsys.readouterr().err.splitlines()
    task = f"{fresh.task} with {fresh.label}"
    assert lines == [
        f"   done 100%      1,234 steps/s  {task}",
        f"running  40%      1,234 steps/s  {task}: process {os.getpid()} on {platform.node()}, attempt 2",
        f" failed                          {task}: exit code 3: diverged",
        f"not run                          {task}: queued as job 12_3",
    ]
    assert looks == [1]
    held.close()


def test_there_is_nothing_to_watch_where_no_comparison_is(tmp_path):
    with pytest.raises(BadRequest, match="there is no comparison in"):
        compare.main(["lsd", "--algorithms", "greedy", "--out", str(tmp_path / "nowhere"), "--watch", "0"])
    assert not list(tmp_path.iterdir())


def test_a_watch_ends_when_nothing_runs_any_more(tmp_path, capsys, monkeypatch):
    """After the length of a lease: until then an owner may only be silent. A queue may hold cells for days."""
    monkeypatch.setenv(LENGTH, "0.5")
    done, given_up = some(tmp_path, 2)
    finish(done.folder)
    watch([done, given_up], 0.1)
    assert "; 1 not run: repeat the command without --watch" in capsys.readouterr().err
    note_queued(given_up.folder, "12_3")
    with pytest.raises(Interrupted, match="time is up"):
        watch([done, given_up], 0.1, limit=1.0)
    note(given_up.folder, Attempts(number=1, going=True))  # its job began, and was lost
    watch([done, given_up], 0.1)


def test_a_watch_ends_with_the_last_cell(tmp_path, capsys):
    (cell,) = some(tmp_path, 1)
    threading.Timer(0.5, finish, [cell.folder]).start()
    watch([cell], 0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("not run")
    assert lines[-1].lstrip().startswith("done")


CHILD = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(float(sys.argv[1]))
sys.exit(130 if len(asked) == 1 else 1)
"""


def test_each_child_is_asked_once_to_stop(tmp_path, monkeypatch):
    """The first to end does not have the others asked again: twice means at once, without a checkpoint."""
    ends = []
    both = threading.Barrier(2, timeout=20)

    def train_apart(config, preset, folder, output, children, cores):
        wait = 0.1 if folder.name == "cell0" else 1.0
        with children.start([sys.executable, "-c", CHILD, str(wait)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            if both.wait() == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            ends.append(process.wait())
            process.stdout.close()
        raise Interrupted("stopped")

    monkeypatch.setattr(cells_module, "train_apart", train_apart)
    with pytest.raises(Interrupted):
        run_cells(some(tmp_path, 2), QUIET, jobs=2)
    assert ends == [130, 130]
