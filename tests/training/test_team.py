"""Several processes that train one run: it is that of one process, and survives the loss of any of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engram.errors import BadRequest
from engram.experiments.options import Distributed
from engram.training import team

RUN = (
    *("popgym-fast", "--memory", "gru", "--seeds", "2", "--network.width", "16", "--observation.normalise"),
    *("--ppo.num-envs", "8", "--ppo.num-steps", "16", "--ppo.eval-envs", "4", "--ppo.minibatches", "1"),
    *("--ppo.groups", "2", "--log-points", "12", "--total-steps", str(12 * 8 * 16), "--eval-points", "2"),
    *("--checkpoint-seconds", "0", "--resume", "--quiet"),
)


def start(out: Path, processes: int, devices: int) -> list[subprocess.Popen]:
    """The processes of one run, each with `devices` virtual devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = []
    for number in range(processes):
        words = ["--distributed", "--coordinator", place, "--processes", str(processes), "--process", str(number)]
        command = [
            sys.executable,
            "-m",
            "engram.scripts.train",
            *RUN,
            "--out",
            str(out),
            *(words if processes > 1 else []),
        ]
        log = out.with_name(f"{out.name}.{number}.log").open("a")
        started.append(subprocess.Popen(command, env=environment, stderr=log, stdout=log))
    return started


def end(processes: list[subprocess.Popen], seconds: float = 300) -> list[int]:
    """Their exit codes."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(checkpoint: Path, processes: list[subprocess.Popen]) -> None:
    until = time.monotonic() + 300
    while not checkpoint.exists():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), "ended too early"
        time.sleep(0.02)


def rows(out: Path) -> list[dict]:
    clocks = ("wall_s", "steps_per_s")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


@pytest.mark.slow
def test_two_processes_are_one_run_also_when_they_are_lost(tmp_path):
    unbroken, broken, alone = (tmp_path / name for name in ("unbroken", "broken", "alone"))
    assert end(start(unbroken, 2, 2)) == [0, 0]
    assert end(start(alone, 1, 4)) == [0]
    assert len(rows(unbroken)) == 12
    for row, other in zip(rows(unbroken), rows(alone), strict=True):
        assert row.keys() == other.keys()
        for name in row:
            values = (np.asarray(found[name], float) for found in (row, other))  # None, of no episode, as NaN
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert json.loads((unbroken / "versions.json").read_text())["devices"] == 4

    running = start(broken, 2, 2)
    wait_for(broken / "checkpoints" / "2", running)
    running[1].send_signal(signal.SIGTERM)  # asked of one, done by both
    assert end(running) == [130, 130]
    assert 2 <= len(rows(broken)) < 12
    assert not (broken / "summary.json").exists()

    running = start(broken, 2, 2)
    wait_for(broken / "checkpoints" / str(len(rows(broken)) + 1), running)
    running[1].kill()
    assert end(running, 150)[0] not in (0, 2, 3, 4)  # the one that is left does not wait for ever
    assert not (broken / "summary.json").exists()

    assert end(start(broken, 2, 2)) == [0, 0]
    assert rows(broken) == rows(unbroken)


@pytest.mark.slow
def test_what_one_process_refuses_ends_all(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("preset: debug\n")
    running = start(out, 2, 1)
    assert end(running) == [2, 2]
    said = [out.with_name(f"run.{number}.log").read_text() for number in range(2)]
    assert "error: the process that owns the run folder cannot begin, and says why" in said[1]
    assert "error: config.yaml does not say what it begins from" in said[0]
    assert "Traceback" not in said[0] + said[1]


def test_options_that_do_not_fit_each_other_are_refused():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"coordinator": "x:1"}, "go together"),
        ({"coordinator": "x:1", "processes": 2, "process": 0}, "need --distributed"),
        ({"distributed": True, "coordinator": "x:1", "processes": 2, "process": 2}, "counted from 0"),
        ({"distributed": True, "coordinator": "x:1", "processes": 0, "process": 0}, "at least 1"),
    )
    for options, message in cases:
        with pytest.raises(BadRequest, match=message):
            Distributed(**options)


def test_a_process_alone_agrees_with_itself(tmp_path):
    assert team.is_alone()
    assert team.leads()
    assert [team.any_of(flag) for flag in (False, True)] == [False, True]
    with team.own_folder(lambda: tmp_path) as folder:
        assert folder == tmp_path
    tree = {"key": jax.random.key(3), "x": np.arange(3.0)}
    assert team.on_host(tree) is tree
    assert team.of_leader(tree) is tree
    bits = team.bits_of(tree)
    np.testing.assert_array_equal(bits["key"], jax.random.key_data(jax.random.key(3)))
    blank = team.bits_of(jax.eval_shape(lambda: tree | {"x": jax.numpy.arange(3.0)}))
    assert [x.shape for x in jax.tree.leaves(blank)] == [x.shape for x in jax.tree.leaves(bits)]
