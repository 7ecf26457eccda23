"""Cells as jobs of SLURM: what its commands are told, and what becomes of jobs that crash, are preempted or cancelled.

There is no SLURM here: commands of its names run the jobs on this machine.
"""

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from engram.errors import BadRequest, Interrupted
from engram.experiments import attempts
from engram.experiments.attempts import attempts_at, queued_as
from engram.experiments.engines import Task
from engram.experiments.launch import run_cells
from engram.experiments.options import Launcher, Output
from tests.experiments import fake_slurm
from tests.experiments.runs import assert_same_end, checkpointed, checkpoints_of, eventually
from tests.experiments.stand_in import cells_with, left, notes, use

pytest.importorskip("submitit", reason="the extra slurm is not installed")
QUIET = Output(quiet=True)


@pytest.fixture(autouse=True)
def cluster(tmp_path, monkeypatch, request) -> Path:
    """The folder of the commands of SLURM."""
    from engram.experiments import slurm

    if "slow" not in request.keywords:
        use(tmp_path / "child", monkeypatch)
    fake_slurm.install(tmp_path / "slurm", monkeypatch)
    monkeypatch.setattr(slurm, "ASK", 0.2)
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    (tmp_path / "out").mkdir()
    return tmp_path / "slurm"


def flags_in(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))


def test_jobs_are_an_array_with_what_was_asked_for(tmp_path, cluster):
    out = tmp_path / "out"
    cells = cells_with(out, "0", "2", "0")
    wanted: dict[str, Any] = {"partition": "long", "account": "lab", "qos": "high", "constraint": "a100"}
    launcher = Launcher(
        "slurm", cpus=3, gpus=1, memory_gb=5, hours=1.5, retries=0, setup=("export SETUP=yes", "umask 7"), **wanted
    )
    changes = []
    run_cells(cells, QUIET, 2, lambda: changes.append(1), launcher=launcher)
    assert [cell.state for cell in cells] == ["done", "failed", "done"]
    assert cells[1].failure == "exit code 2: this was 2"
    assert len(changes) == 3
    (script,) = cluster.glob("*.sh")
    flags = flags_in(script)
    more = {"array": "0-2%2", "cpus-per-task": "3", "gpus-per-node": "1", "mem": "5GB", "time": "90", "nodes": "1"}
    assert {name.strip(): value.strip("'") for name, value in flags.items()}.items() >= {**wanted, **more}.items()
    assert flags["signal"] == "USR2@90"
    assert "requeue" in flags
    assert "\nexport SETUP=yes\numask 7\n" in script.read_text()
    assert (out / ".jobs" / "100_1_submitted.pkl").exists()
    assert flags["error"] == str(out / ".jobs" / "%A_%a_0_log.err")
    assert notes(out) == ["cell1.failed.json"]


def test_a_preempted_job_makes_a_checkpoint_and_is_queued_again(tmp_path, cluster):
    """That is no crash."""
    out = tmp_path / "out"
    cells = cells_with(out, "asked asked 0")

    def preempt():
        for _ in range(2):
            eventually((out / "cell0.ready").exists)
            (out / "cell0.ready").unlink()
            os.kill(attempts_at(cells[0].folder).pid, signal.SIGUSR2)

    threading.Thread(target=preempt).start()
    run_cells(cells, QUIET, launcher=Launcher("slurm", retries=0))
    assert cells[0].state == "done", (cells[0].failure, (cluster / "100.output").read_text())
    assert left(out) == [""]
    assert len(list(cluster.glob("*.sh"))) == 1, "SLURM itself queues it again"
    said = (cluster / "100.output").read_text()
    assert said.count("Loading pickle") == 3
    assert notes(out) == []


def test_a_machine_that_is_lost_is_a_crash(tmp_path, cluster):
    """The job is killed with all that it started."""
    out = tmp_path / "out"
    cells = cells_with(out, "asked 0")

    def lose():
        eventually((out / "cell0.ready").exists)
        os.kill(attempts_at(cells[0].folder).pid, signal.SIGKILL)

    threading.Thread(target=lose).start()
    run_cells(cells, QUIET, launcher=Launcher("slurm", retries=1))
    assert cells[0].state == "done"
    assert len(list(cluster.glob("*.sh"))) == 2


def test_a_command_that_ends_leaves_its_jobs_and_the_next_one_finds_them(tmp_path, cluster, capsys):
    out = tmp_path / "out"
    cells = cells_with(out, "asked 0", "asked 0")
    launcher = Launcher("slurm", detach=True)
    run_cells(cells, QUIET, launcher=launcher)
    assert [queued_as(cell.folder) for cell in cells] == ["100_0", "100_1"]
    for cell in cells:
        eventually(Path(f"{cell.folder}.ready").exists)
    threading.Timer(2.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Interrupted):
        run_cells(cells, QUIET, launcher=Launcher("slurm"))
    assert "jobs stay in the queue: repeat the command to wait for them, or scancel 100" in capsys.readouterr().err
    for cell in cells:
        os.kill(attempts_at(cell.folder).pid, signal.SIGUSR2)
    run_cells(cells, QUIET, launcher=Launcher("slurm"))
    assert [cell.state for cell in cells] == ["done"] * 2
    assert len(list(cluster.glob("*.sh"))) == 1
    assert notes(out) == []


def test_a_job_that_was_cancelled_is_not_begun_again(tmp_path, cluster):
    out = tmp_path / "out"
    cells = cells_with(out, "asked 0")

    def cancel():
        eventually((out / "cell0.ready").exists)
        (cluster / "100.state").write_text("CANCELLED by 1000")
        os.kill(attempts_at(cells[0].folder).pid, signal.SIGKILL)

    threading.Thread(target=cancel).start()
    run_cells(cells, QUIET, launcher=Launcher("slurm"))
    assert cells[0].failure == "job 100 was cancelled"
    assert left(out) == ["0"]


def test_a_cluster_that_refuses_is_one_clear_line(tmp_path, cluster):
    (cluster / "commands" / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    cells = cells_with(tmp_path / "out", "0")
    with pytest.raises(BadRequest, match=r"SLURM refused the jobs: .*invalid partition"):
        run_cells(cells, QUIET, launcher=Launcher("slurm"))
    (cluster / "commands" / "srun").unlink()
    with pytest.raises(BadRequest, match="--launcher slurm needs srun: run this where jobs are submitted"):
        run_cells(cells, QUIET, launcher=Launcher("slurm"))


@pytest.mark.parametrize("kind", ["debug", "local"])
def test_submitit_runs_a_task_elsewhere_too(kind, tmp_path):
    import submitit  # pyright: ignore[reportMissingImports]

    (cell,) = cells_with(tmp_path / "out", "1 0")
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster=kind)
    job = executor.submit(Task(cell.job(QUIET), 1, "mark"))
    assert job.result() is None
    assert cell.state == "done"


@pytest.mark.slow
def test_a_preemption_changes_no_number(tmp_path, cluster):
    """After the first checkpoint: the run ends bit for bit where an unbroken one does."""
    whole, broken = (checkpointed(tmp_path / name) for name in ("whole", "broken"))

    def preempt():
        eventually(lambda: checkpoints_of(broken))
        os.kill(attempts_at(broken.folder).pid, signal.SIGUSR2)

    threading.Thread(target=preempt).start()
    run_cells([broken], QUIET, launcher=Launcher("slurm", retries=0))
    assert broken.state == "done", broken.failure
    assert "resuming after" in (cluster / "100.output").read_text()
    run_cells([whole], QUIET)
    assert_same_end(whole.folder, broken.folder)
