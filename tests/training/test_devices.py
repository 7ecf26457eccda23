"""Runs over several devices: no bit of a seed depends on how many there are, and groups agree up to rounding."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from engram.errors import BadRequest
from engram.experiments.options import Output
from engram.training.devices import mesh_of


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(BadRequest, match="--devices 99: there are"):
        mesh_of(99, 99)
    with pytest.raises(BadRequest, match="--devices must be at least 1"):
        Output(devices=0)
    assert mesh_of(1) is None


def spread(*what: str) -> tuple[dict[str, Any], str]:
    """What `spread_run` finds on four virtual devices, and its stderr."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.training.spread_run", *what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_seeds_on_several_devices_are_lone_runs_bit_for_bit():
    found, _ = spread("seeds")
    assert found == {"devices": 4, "collectives": 0, "lone": [True] * 4, "pairs": [True] * 2}


@pytest.mark.slow
def test_arrays_without_entries_are_spread_too():
    found, _ = spread("empty")
    assert found == {"empty": 1, "devices": 4}


@pytest.mark.slow
def test_groups_do_not_depend_on_the_number_of_devices():
    found, _ = spread("groups", "s5")
    assert found["devices"] == [1, 2, 4]
    assert found["moves"] == 0
    assert found["env"] == [True, True]
    assert found["params"] < 1e-5


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_says_so(tmp_path):
    found, said = spread("checkpoints", str(tmp_path))
    assert found["recorded"] == 4
    assert found["same_devices"]
    assert "other device count, 1 in place of 4: continues, not bit for bit" in said
    assert found["rows"] == 4
    assert found["other_devices"] < 1e-4
    assert found["evaluated"]
