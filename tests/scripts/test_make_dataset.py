"""Making datasets from the command line: what each command writes, and what is refused."""

import numpy as np
import pytest

from engram.envs.datasets import load
from engram.errors import BadRequest
from engram.scripts import make_dataset


def test_random_tiers_need_no_training(tmp_path, capsys):
    """MemoryChain with two steps of memory: right by chance half the time, so returns of 0 on average."""
    arguments = ["--env", "gymnax/MemoryChain-bsuite?memory_length=2", "--tiers", "random", "--steps", "900"]
    assert make_dataset.main([*arguments, "--format", "d4rl", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["random.hdf5"]
    episodes = load(tmp_path / "random.hdf5")
    assert episodes.origin.ref_max is None
    assert episodes.origin.score is None
    assert set(episodes.returns.tolist()) == {-1.0, 1.0}
    assert abs(episodes.returns.mean()) < 5 / np.sqrt(len(episodes.lengths))
    assert len(set(episodes.lengths.tolist())) == 1
    assert "random" in capsys.readouterr().out


def test_noisy_pendulum(tmp_path, capsys):
    path = tmp_path / "noise.hdf5"
    assert make_dataset.main(["pendulum-noise", "--out", str(path), "--episodes", "5", "--mask-velocity"]) == 0
    episodes = load(path)
    assert episodes.obs.shape == (25 * 201, 2)
    assert episodes.origin.keep == (0, 1)
    assert capsys.readouterr().out.count("noise ") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gymnaks"], "did you mean gymnax"),
        (["drama-catch"], "recorded of PPO alone, not of drama"),
        (["conservative"], "of PPO alone, not of conservative"),
        (["gymnax", "--env", "gymnax/CartPoul-v1"], "did you mean gymnax/CartPole-v1"),
        (["gymnax", "--env", "envpool/CartPole-v1"], "emulator on the host"),
        (["gymnax", "--env", "popgym/BattleshipEasy"], "MultiDiscrete actions"),
        (["gymnax", "--seeds", "2"], "--seeds must be 1"),
        (["gymnax", "--steps", "0"], "--steps must be at least 1"),
        (["gymnax", "--observation.keep", "9"], "must name entries"),
        (["expert", "nowhere"], "not a run folder"),
        (["pendulum-noise", "--out", "x.npz", "--episodes", "0"], "at least 1"),
    ],
)
def test_bad_requests_say_so_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message) as error:
        make_dataset.main(arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing may be written"
