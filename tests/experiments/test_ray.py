"""Cells as tasks of Ray, on a cluster of two nodes that are on this machine. Starting it takes half a minute."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engram.errors import BadRequest, Interrupted
from engram.experiments.attempts import attempts_at
from engram.experiments.launch import run_cells
from engram.experiments.options import Launcher, Output
from engram.scripts import compare
from tests.experiments import stand_in
from tests.experiments.runs import assert_same_end, checkpointed, checkpoints_of, eventually
from tests.experiments.stand_in import cells_with, left, notes

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="the extra ray is not installed")
QUIET = Output(quiet=True)
STORE = 80 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    # The head, which this process is connected to, trains nothing.
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def launcher(cluster) -> Callable[..., Launcher]:
    return lambda **settings: Launcher("ray", cpus=1, memory_gb=1, address=cluster.address, **settings)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_exit_codes_mean_what_they_mean_elsewhere(tmp_path, monkeypatch, launcher):
    stand_in.use(tmp_path / "child", monkeypatch)
    cells = cells_with(tmp_path, "0", "3 0", "130 -9 130 0")
    changes = []
    run_cells(cells, QUIET, 2, lambda: changes.append(1), launcher=launcher(retries=1))
    assert [cell.state for cell in cells] == ["done", "failed", "done"]
    assert cells[1].failure == "exit code 3: this was 3"
    assert left(tmp_path) == ["", "0", ""]
    assert len(changes) == 3
    assert notes(tmp_path) == ["cell1.failed.json"]


def test_a_command_that_is_stopped_stops_its_runs(tmp_path, monkeypatch, launcher):
    stand_in.use(tmp_path / "child", monkeypatch)
    cells = cells_with(tmp_path, "asked 0")
    before = signal.getsignal(signal.SIGTERM)

    def stop():
        eventually((tmp_path / "cell0.ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted):
        run_cells(cells, QUIET, launcher=launcher())
    assert left(tmp_path) == ["0"], "it was not begun again"
    assert cells[0].state == "not run"
    assert notes(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_that_is_killed_changes_no_number(tmp_path, launcher):
    """After its first checkpoint, with SIGKILL: the run ends bit for bit where an unbroken one does."""
    whole, broken = (checkpointed(tmp_path / name) for name in ("whole", "broken"))
    killed = []

    def kill():
        eventually(lambda: checkpoints_of(broken))
        killed.append(attempts_at(broken.folder))
        os.kill(killed[0].pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    run_cells([broken], QUIET, launcher=launcher(retries=1))
    assert broken.state == "done", broken.failure
    assert [known.number for known in killed] == [1]
    assert not Path(f"/proc/{killed[0].pid}").exists()
    run_cells([whole], QUIET)
    assert_same_end(whole.folder, broken.folder)
    assert notes(broken.folder.parent) == []


def is_child(process: Path, parent: int) -> bool:
    try:
        return parent_of(int(process.name)) == parent
    except OSError:  # it ended
        return False


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def test_a_cluster_that_is_too_small_may_grow(tmp_path, monkeypatch, launcher, capsys):
    stand_in.use(tmp_path / "child", monkeypatch)
    threading.Timer(5.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Interrupted):
        run_cells(cells_with(tmp_path, "0"), QUIET, launcher=replace(launcher(), cpus=64))
    assert (
        "no machine has 64 cores and 1 GB (launcher.cpus, gpus and memory_gb): waiting for one"
        in capsys.readouterr().err
    )
    assert left(tmp_path) == ["0"]


def test_there_is_no_cluster_at_that_address(tmp_path, monkeypatch):
    import ray  # pyright: ignore[reportMissingImports]

    def init(**_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BadRequest, match=r"no Ray cluster at --launcher\.address auto: start one with `ray start --head`"
    ):
        compare.main(["lsd", "--algorithms", "greedy", "--launcher", "ray"])
    assert not list(tmp_path.iterdir())


def test_a_node_that_is_lost_is_a_crash_and_its_cell_goes_elsewhere(tmp_path, monkeypatch, cluster, launcher):
    """No process of it is left."""
    stand_in.use(tmp_path / "child", monkeypatch)
    cells = cells_with(tmp_path, "asked 0")
    pids = []

    def lose():
        eventually((tmp_path / "cell0.ready").exists)
        worker = attempts_at(cells[0].folder).pid
        children = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and is_child(p, worker)]
        pids.extend([worker, *children])
        (there,) = (n for n in cluster.list_all_nodes() if raylet_of(n) == parent_of(worker))
        cluster.remove_node(there, allow_graceful=False)

    threading.Thread(target=lose).start()
    run_cells(cells, QUIET, launcher=launcher(retries=1))
    assert cells[0].state == "done", cells[0].failure
    assert len(pids) == 2
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
