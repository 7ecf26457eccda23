"""Seeds over several devices: no bit of a run depends on how many there are."""

import json
import os
import subprocess
import sys

import pytest

from engram.errors import BadRequest
from engram.experiments.options import Output
from engram.training.devices import mesh_of


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(BadRequest, match="--devices 99: this machine has"):
        mesh_of(99, 99)
    with pytest.raises(BadRequest, match="--devices must be at least 1"):
        Output(devices=0)
    assert mesh_of(1) is None


@pytest.mark.slow
def test_seeds_over_four_devices(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.training.spread_run", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == found["recorded"] == 4
    assert found["collectives"] == 0
    assert found["lone"] == [True] * 4
    assert found["pairs"] == [True] * 2
    assert found["same_devices"]
    assert "other device count, 1 in place of 4: continues, not bit for bit" in done.stderr
    assert found["rows"] == 4
    assert found["other_devices"] < 1e-4
