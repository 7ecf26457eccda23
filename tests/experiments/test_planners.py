"""Planners as runs: how they resume, what is compared, drawn and evaluated; and PPO under a rule."""

import errno
import json
from typing import Any

import pytest

from engram import api
from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.experiments import cells
from engram.training import checkpoint
from tests.experiments.runs import assert_same_end, begun, train_here

pytestmark = pytest.mark.usefixtures("quickly_compiled")


OTHERS = [pytest.param(preset, marks=pytest.mark.slow) for preset in ("rbocpd-ucrl2", "neucb")]


@pytest.mark.parametrize("preset", ["lsd", *OTHERS])
def test_a_broken_run_ends_bit_for_bit_where_an_unbroken_one_ends(preset, tmp_path, monkeypatch):
    """The disk is full at the third log point of four; then there is room again."""
    every = getattr(PRESETS[preset], PRESETS[preset].agent).steps_per_update
    small: dict[str, Any] = {
        "seeds": 2,
        "total_steps": 8 * every,
        "log_points": 4,
        "eval_points": 2,
        "checkpoint_seconds": 0,
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    api.train(preset, out=whole, quiet=True, **small)
    save = checkpoint.save

    def full(root, state, progress, *rest):
        if progress.chunk == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(root, state, progress, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(BadRequest, match="No space left"):
        api.train(preset, out=broken, quiet=True, **small)
    monkeypatch.setattr(checkpoint, "save", save)
    api.train(preset, out=broken, resume=True, quiet=True, **small)
    assert_same_end(whole, broken)


def test_an_mdp_without_one_best_gain_is_refused(tmp_path):
    env = "switching/Random?states=6&actions=1&concentration=0.001&instance_seed=0"  # it falls apart
    with pytest.raises(BadRequest, match="has no one best gain") as error:
        api.train("rbocpd-ucrl2", env=env, out=tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compare_plot_and_evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "train_apart", train_here)
    small: dict[str, Any] = {"total_steps": 4000, "log_points": 4}
    out = tmp_path / "comparison"
    compared = api.compare("lsd", algorithms=["greedy", "round-robin"], seeds=2, out=out, quiet=True, **small)
    assert "| greedy | round-robin |" in compared.table
    assert "star" not in compared.table
    assert (out / "curves.png").stat().st_size > 1000
    folders = sorted(p for p in out.iterdir() if p.is_dir())
    assert folders == [cell.folder for cell in compared.cells]
    assert json.loads((folders[0] / "summary.json").read_text())["algorithm"] == "greedy"
    assert api.plot(folders, tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(BadRequest, match="learns while it acts"):
        api.evaluate(folders[0])
    with pytest.raises(BadRequest, match="learns while it acts"):
        api.load(folders[0]).policy()


def test_comparisons_of_the_wrong_kind_are_refused(tmp_path):
    wrong: dict[str, Any]
    for preset, wrong, message in (
        ("lsd", {"memories": ["gru"]}, "lsd has no --memories to compare; use --algorithms"),
        ("debug", {"algorithms": ["greedy"]}, "ppo has no --algorithms to compare; use --memories"),
        ("dm-pendulum", {"envs": ["gymnax/Pendulum-v1"]}, "use --datasets"),
        ("popgym-fast", {"datasets": ["recorded.npz"]}, "use --envs"),
    ):
        with pytest.raises(BadRequest, match=message):
            api.compare(preset, **wrong, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_learner_of_a_conservative_run_is_evaluated_alone(tmp_path):
    small: dict[str, Any] = {
        "ppo": {"num_envs": 8, "num_steps": 32, "epochs": 1, "eval_envs": 2},
        "conservative": {"members": 2, "width": 8, "epochs": 1},
    }
    run = begun(api.make_config("conservative", **small, seeds=1)[1], tmp_path / "run")
    result = run.evaluate(episodes=2, gif_steps=0)
    assert result["algorithm"] == "conservative"
    assert result["finished"] == [1.0]
    # An untrained policy of PPO keeps the pole up for about 20 steps, the baseline for 200.
    assert 8 < result["eval_return"]["mean"] < 100
    assert run.policy()([0.0] * 4) in (0, 1)
