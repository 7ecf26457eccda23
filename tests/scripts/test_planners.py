"""Planners through the scripts: what they refuse, how they resume, what is compared, drawn and evaluated."""

import errno
import json

import pytest

from engram.configs.presets import PLANNER_PRESETS
from engram.errors import BadRequest
from engram.scripts import compare, evaluate, plot, train
from engram.training import checkpoint
from tests.scripts import kill_resume


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lsd", "--algorithm", "ucb"], "unknown algorithm 'ucb'; lsd has planner"),
        (["lsd", "--env", "popgym/RepeatPreviousEasy"], "lsd does not plan popgym"),
        (["lsd", "--env", "envpool/Pong-v5"], "lsd does not plan envpool"),
        (["lsd", "--env", "lsd/Randon"], "did you mean lsd/Random"),
        (["lsd", "--env", "lsd/Random?arm=3"], "no option 'arm': options are arms"),
        (["lsd", "--env", "lsd/Random?arms=many"], "arms must be int .*, got 'many'"),
        (["lsd", "--env", "lsd/Random?arms=2.5"], "arms must be int .*, got 2.5"),
        (["lsd", "--env", "lsd/Random?arms=true"], "arms must be int .*, got True"),
        (["lsd", "--env", "lsd/Random?instance_seed=-1"], "instance_seed must lie in"),
        (["lsd", "--env", "lsd/DelayThree"], "needs payoffs that never fall"),
        (["lsd", "--total-steps", "3000000000"], "at most 16,777,216"),
        (["rbocpd-ucrl2", "--env", "switching/Random?concentration=Infinity"], "concentration must be float"),
        (["rbocpd-ucrl2", "--env", "switching/Random?changes=3000000000"], "below 2\\^31"),
        (["rbocpd-ucrl2", "--env", "switching/Random?changes=[1.5,3]"], "changes must be int or str"),
        (["neucb", "--env", "classification/wine?name=iris"], "no option 'name'"),
        (["stepmix", "--seeds", "2", "--stepmix.gamma", "3"], "needs a safe baseline"),
        (["conservative", "--env", "gymnax/Acrobot-v1"], "is a policy for gymnax/CartPole-v1"),
        (["conservative", "--observation.noise", "0.1"], "observation.noise"),
        (["conservative", "--conservative.horizon", "100", "--conservative.baseline-value", "50"], "last 200 steps"),
        (["popgym-fast", "--env", "lsd/Random"], "never ends"),
    ],
)
def test_bad_requests_say_so_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message) as error:
        train.main([*arguments, "--quiet"])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("rbocpd-ucrl2", ["--ucrl.cap", "1"]),
        ("lsd", ["--lsd.explore", "inf"]),
        ("stepmix", ["--stepmix.eta", "1e39"]),
        ("conservative", ["--conservative.deviations", "nan"]),
    ],
)
def test_impossible_settings_exit_with_2(preset, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, BadRequest)) as error:
        train.main([preset, *settings])
    assert getattr(error.value, "code", 2) == 2
    assert not list(tmp_path.iterdir())


def test_comparisons_of_the_wrong_kind_are_refused(tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(BadRequest, match="lsd has no --memories to compare; use --algorithms"):
        compare.main(["lsd", "--memories", "gru", *out])
    with pytest.raises(BadRequest, match="debug has no --algorithms to compare; use --memories"):
        compare.main(["debug", "--algorithms", "greedy", *out])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["lsd", "rbocpd-ucrl2", "neucb"])
def test_a_broken_run_ends_bit_for_bit_where_an_unbroken_one_ends(preset, tmp_path, monkeypatch):
    """The disk is full at the third log point of four; then there is room again."""
    every = getattr(PLANNER_PRESETS[preset], PLANNER_PRESETS[preset].agent).steps_per_update
    arguments = [preset, "--quiet", "--seeds", "2", "--total-steps", str(8 * every), "--log-points", "4"]
    arguments += ["--eval-points", "2", "--checkpoint-seconds", "0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*arguments, "--out", str(whole)]) == 0
    save = checkpoint.save

    def full(root, chunk, state, extra):
        if chunk == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(root, chunk, state, extra)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(BadRequest, match="No space left"):
        train.main([*arguments, "--out", str(broken)])
    monkeypatch.setattr(checkpoint, "save", save)
    assert train.main([*arguments, "--out", str(broken), "--resume"]) == 0
    assert kill_resume.metrics(whole) == kill_resume.metrics(broken)
    assert kill_resume.final_state(whole) == kill_resume.final_state(broken)


def test_compare_plot_and_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "run_apart", lambda arguments: train.main(arguments) or None)
    out = tmp_path / "comparison"
    arguments = ["--seeds", "2", "--total-steps", "4000", "--log-points", "4", "--out", str(out), "--quiet"]
    assert compare.main(["lsd", "--algorithms", "greedy", "round-robin", *arguments]) == 0
    table = capsys.readouterr().out
    assert "| greedy | round-robin |" in table
    assert "star" not in table
    assert (out / "curves.png").stat().st_size > 1000
    cells = sorted(p for p in out.iterdir() if p.is_dir())
    assert json.loads((cells[0] / "summary.json").read_text())["algorithm"] == "greedy"
    assert plot.main([*map(str, cells), "--out", str(tmp_path / "c.png")]) == 0
    with pytest.raises(BadRequest, match="learns while it acts"):
        evaluate.main([str(cells[0])])


def test_the_learner_of_a_conservative_run_is_evaluated_alone(tmp_path):
    folder = tmp_path / "run"
    small = ["--ppo.num-envs", "8", "--ppo.num-steps", "32", "--ppo.epochs", "1", "--ppo.eval-envs", "2"]
    small += ["--conservative.members", "2", "--conservative.width", "8", "--conservative.epochs", "1"]
    run = ["--seeds", "1", "--total-steps", "512", "--log-points", "2", "--eval-points", "1", "--quiet"]
    assert train.main(["conservative", *small, *run, "--out", str(folder)]) == 0
    assert evaluate.main([str(folder), "--episodes", "2", "--gif-steps", "0"]) == 0
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["algorithm"] == "conservative"
    assert result["finished"] == [1.0]
