"""What becomes of a cell by the exit codes of its process, whatever launches it: a process that stands in for training
ends as each test says."""

import os
import platform
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engram.errors import BadRequest, Interrupted, InUse
from engram.experiments import attempts, engines
from engram.experiments.attempts import Attempts, attempts_at, keep_trying, note
from engram.experiments.children import Children, Job, Outcome, outcome_of, train_job
from engram.experiments.engines import Dispatch, Task
from engram.experiments.launch import run_cells
from engram.experiments.options import Launcher, Output
from engram.training.claim import Claim
from tests.experiments.stand_in import cells_with, left, notes, use

QUIET = Output(quiet=True)


@pytest.fixture(autouse=True)
def child(tmp_path, monkeypatch):
    """Processes find this in place of the script that trains."""
    use(tmp_path / "child", monkeypatch)
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(engines, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(engines, "LOOK", 0.01)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, Outcome.DONE),
        (2, Outcome.FAILED),
        (3, Outcome.FAILED),
        (4, Outcome.HELD),
        (130, Outcome.STOPPED),
        (-2, Outcome.STOPPED),
        (-15, Outcome.STOPPED),
        (-1, Outcome.STOPPED),
        (-9, Outcome.CRASHED),
        (-11, Outcome.CRASHED),
        (1, Outcome.CRASHED),
        (137, Outcome.CRASHED),
    ],
)
def test_what_exit_codes_mean(code, outcome):
    assert outcome_of(code) is outcome


class Here:
    """An engine that runs each task at once, in this process; what it is told of in `lost` vanishes instead."""

    slots = 2

    def __init__(self, lost=()):
        self.lost, self.cancelled, self.submitted = list(lost), set(), 0

    def submit(self, tasks):
        ends = []
        for task in tasks:
            self.submitted += 1
            kind = self.lost.pop(0) if self.lost else ""
            if kind == "while it trained":
                note(task.job.folder, Attempts(task.launch, 1, going=True, host="far"))
            elif not kind:
                task()
            ends.append(kind)
        return ends

    def find(self, job):
        return None

    def name(self, handle):
        return ""

    def end(self, handle):
        return f"lost {handle}" if handle else "the task ended"

    def was_cancelled(self, handle):
        return handle == "cancelled"

    def stop(self, handles):
        pass


def dispatch(cells, engine, retries=3):
    def check():
        pass

    number = {cell: place for place, cell in enumerate(cells, 1)}
    changes = []
    held = Dispatch(engine, number, QUIET, Launcher("ray", retries=retries), 2, lambda: changes.append(1), check).train(
        cells
    )
    assert held == []
    assert len(changes) == len(cells)


def locally(cells, retries=3):
    run_cells(cells, QUIET, launcher=Launcher(retries=retries))


def by_engine(cells, retries=3):
    dispatch(cells, Here(), retries)


@pytest.mark.parametrize("launch", [locally, by_engine])
def test_a_bad_request_and_divergence_are_not_tried_again(launch, tmp_path):
    cells = cells_with(tmp_path, "2 0", "3 0", "0")
    launch(cells)
    assert left(tmp_path) == ["0", "0", ""]
    assert [cell.state for cell in cells] == ["failed", "failed", "done"]
    assert [cell.failure for cell in cells] == ["exit code 2: this was 2", "exit code 3: this was 3", None]
    assert notes(tmp_path) == ["cell0.failed.json", "cell1.failed.json"]


@pytest.mark.parametrize("launch", [locally, by_engine])
def test_a_crash_is_tried_again_until_the_retries_are_used_up(launch, tmp_path):
    """A process that is killed, as for its memory, is a crash; a failure after crashes is what it is."""
    cells = cells_with(tmp_path, "-9 1 0", "-9 -9 -11 0", "1 2 0")
    launch(cells, retries=2)
    assert left(tmp_path) == ["", "0", "0"]
    assert [cell.state for cell in cells] == ["done", "failed", "failed"]
    assert cells[1].failure == "killed by SIGSEGV: this was -11 (after 3 attempts)"
    assert cells[2].failure == "exit code 2: this was 2"
    launch(cells, retries=0)  # the command is repeated: attempts are counted anew
    assert [cell.state for cell in cells] == ["done"] * 3
    assert notes(tmp_path) == []


def test_pauses_double():
    assert [Attempts(crashes=count).pause / attempts.FIRST_PAUSE for count in (1, 2, 3, 4)] == [1, 2, 4, 8]


def test_a_run_that_stops_stops_a_local_command_and_counts_as_nothing(tmp_path):
    (cell,) = cells_with(tmp_path, "130 0")
    with pytest.raises(Interrupted):
        run_cells([cell], QUIET)
    assert cell.state == "not run"
    run_cells([cell], QUIET)
    assert cell.state == "done"


def test_preemptions_are_not_counted_by_an_engine(tmp_path, capsys):
    cells = cells_with(tmp_path, "130 -15 130 130 -9 130 0")
    dispatch(cells, Here(), retries=1)
    assert [cell.state for cell in cells] == ["done"]
    assert capsys.readouterr().err.count("was preempted") == 5
    assert notes(tmp_path) == []


@pytest.mark.parametrize("kind", ["while it trained", "before it began"])
def test_what_an_engine_loses_is_counted_with_the_crashes(kind, tmp_path):
    cells = cells_with(tmp_path, "-9 0", "0")
    dispatch(cells, Here([kind, ""]), retries=2)
    assert [cell.state for cell in cells] == ["done"] * 2
    cells = cells_with(tmp_path / "child", "-9 -9 0")
    engine = Here([kind])
    dispatch(cells, engine, retries=1)
    assert engine.submitted == 2
    assert left(tmp_path / "child") == ["-9 0"]
    assert cells[0].failure == "killed by SIGKILL: this was -9 (after 2 attempts)"


def test_a_task_that_is_lost_for_ever_fails_with_its_reason(tmp_path):
    (cell,) = cells_with(tmp_path, "0")
    engine = Here(["each time"] * 9)
    dispatch([cell], engine, retries=2)
    assert engine.submitted == 3
    assert cell.failure == "lost each time (after 3 attempts)"


def test_what_somebody_cancelled_is_not_begun_again(tmp_path):
    (cell,) = cells_with(tmp_path, "0")
    engine = Here(["cancelled"])
    dispatch([cell], engine)
    assert engine.submitted == 1
    assert (cell.failure or "").endswith("was cancelled")


def test_a_job_that_is_queued_again_knows_what_was_lost_before(tmp_path):
    """Its machine vanished in the middle of the second attempt: that is a crash. One that was asked to stop is none."""
    (cell,) = cells_with(tmp_path, "0")
    note(cell.folder, Attempts("mark", 2, 1, going=True, host="node7"))
    Task(cell.job(QUIET), 1, "mark")()
    assert cell.failure == "node7 was lost, or killed the process that waited (after 2 attempts)"
    note(cell.folder, Attempts("mark", 2, 1, going=False))
    Task(cell.job(QUIET), 1, "mark")()
    assert cell.state == "done"


def test_a_task_leaves_a_cell_to_the_process_that_trains_it(tmp_path):
    (cell,) = cells_with(tmp_path, "0")
    cell.folder.mkdir()
    claim = Claim(cell.folder)
    Task(cell.job(QUIET), 3, "mark")()
    assert left(tmp_path) == ["0"]
    assert cell.state == "running"
    assert notes(tmp_path) == []
    claim.close()


def test_a_cell_that_another_command_has_just_begun_is_left_to_it(tmp_path):
    """Its process needs some seconds before it claims the folder."""
    (cell,) = cells_with(tmp_path, "0 0")

    def begin():
        keep_trying(cell.folder, lambda: train_job(cell.job(QUIET), Children()), 0, lambda seconds: None)

    with subprocess.Popen(["sleep", "60"]) as other:
        for host, pid in ((platform.node(), other.pid), ("far", 1)):
            note(cell.folder, Attempts(number=1, going=True, host=host, pid=pid))
            with pytest.raises(InUse, match=f"is begun by process {pid} on {host}"):
                begin()
        other.kill()
    long_ago = time.time() - 100
    os.utime(tmp_path / "cell0.attempts.json", (long_ago, long_ago))
    begin()
    assert left(tmp_path) == ["0"]
    note(cell.folder, Attempts(number=1, going=True, host=platform.node(), pid=other.pid))  # it was killed
    begin()
    assert left(tmp_path) == [""]


def test_attempts_are_seen_from_outside_while_they_last(tmp_path):
    folder, seen = tmp_path / "cell", []

    def train():
        seen.append(attempts_at(folder))
        return train_job(job, Children())

    (cell,) = cells_with(tmp_path, "1 0")
    job = replace(cell.job(QUIET), folder=tmp_path / "cell0")
    keep_trying(folder, train, 3, lambda seconds: None, "mark")
    here = {"launch": "mark", "going": True, "host": platform.node(), "pid": os.getpid()}
    assert seen == [Attempts(number=1, **here), Attempts(number=2, crashes=1, reason="exit code 1: this was 1", **here)]
    assert attempts_at(folder) == Attempts()


@pytest.mark.parametrize("text", ["", "[]", '{"crashes": "many"}', '{"other": 1}'])
def test_damaged_notes_are_none(text, tmp_path):
    (tmp_path / "cell.attempts.json").write_text(text)
    assert attempts_at(tmp_path / "cell") == Attempts()


def test_a_run_elsewhere_gets_what_it_needs_of_this_process(tmp_path, monkeypatch):
    """Variables of JAX and Engram, modules, the working folder; no other variables, which may be secrets."""
    monkeypatch.setenv("XLA_FLAGS", "--some")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    (cell,) = cells_with(Path(), "0")
    job: Job = cell.job(Output(quiet=True, wandb="offline"))
    assert job.folder == tmp_path / "cell0"
    assert job.place == str(tmp_path)
    assert job.output == ("--wandb", "offline", "--quiet")
    assert job.environment["XLA_FLAGS"] == "--some"
    assert job.environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "child")
    assert "secret" not in repr(vars(job))


def test_a_place_that_is_not_there_is_a_reason(tmp_path):
    (cell,) = cells_with(tmp_path, "0")
    Task(replace(cell.job(QUIET), place="/nowhere"), 0, "mark")()
    assert "/nowhere" in (cell.failure or "")


def test_many_cells_make_checkpoints_seldom(tmp_path, capsys):
    cells = cells_with(tmp_path, "0")
    places = {cell: place for place, cell in enumerate([*cells, *range(32)])}
    many = Dispatch(Here(), places, QUIET, Launcher("ray"), 33, lambda: None, lambda: None)
    assert many._job(cells[0]).environment["ENGRAM_CHECKPOINT_SECONDS"] == "300"
    few = replace(many, jobs=32)
    assert "ENGRAM_CHECKPOINT_SECONDS" not in few._job(cells[0]).environment


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partition": "gpu"}, "launcher.partition is for slurm, not for local"),
        ({"name": "ray", "hours": 1.0}, "launcher.hours is for slurm, not for ray"),
        ({"cpus": 4}, "launcher.cpus is for slurm and ray, not for local"),
        ({"name": "slurm", "address": "local"}, "launcher.address is for ray, not for slurm"),
        ({"retries": -1}, "launcher.retries must be at least 0"),
    ],
)
def test_settings_of_another_engine_are_refused(settings, message):
    with pytest.raises(BadRequest, match=message):
        Launcher(**settings)


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_an_engine_that_is_missing_is_named_and_nothing_is_written(name, tmp_path, monkeypatch):
    from engram.experiments import launch
    from engram.scripts import compare

    monkeypatch.setattr(launch, "find_spec", lambda module: None)
    out = tmp_path / "out"
    words = ["lsd", "--algorithms", "greedy", "--out", str(out), "--launcher", name]
    with pytest.raises(BadRequest, match=rf'--launcher {name} needs .* pip install "engram\[{name}\]"') as error:
        compare.main(words)
    assert error.value.exit_code == 2
    assert not out.exists()
