"""The command line from end to end: what a run leaves behind, how it fails, how it resumes."""

import errno
import json
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml

from engram.configs.presets import PRESETS, SEQUENCE_PRESETS, VALUE_PRESETS
from engram.configs.store import describe, from_dict
from engram.errors import BadRequest, Diverged
from engram.scripts import compare, evaluate, plot, train
from engram.scripts.command_line import run_script
from engram.training import checkpoint
from tests.scripts import kill_resume

TINY = ["debug", "--quiet", "--memory", "none", "--total-steps", "1024", "--log-points", "2", "--eval-points", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*TINY, "--seeds", "2", "--out", str(folder), "--wandb", "offline"]) == 0
    return folder


def test_a_run_leaves_everything_behind(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary) == [
        *("preset", "env", "memory", "seeds", "env_steps", "compile_s", "wall_s", "steps_per_s"),
        *("train_return", "eval_return"),
    ]
    assert summary["env_steps"] == 1024
    for name in ("train_return", "eval_return"):
        assert len(summary[name]["per_seed"]) == 2
        assert summary[name]["mean"] == pytest.approx(np.mean(summary[name]["per_seed"]))
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [512, 1024]
    assert all(len(v) == 2 for row in rows for k, v in row.items() if "/" in k)
    assert "eval/return" in rows[-1]
    assert yaml.safe_load((finished / "config.yaml").read_text())["memory"] == "none"
    assert json.loads((finished / "versions.json").read_text())["packages"]["jax"]
    assert (finished / "curves.png").stat().st_size > 1000
    assert list((finished / "wandb").glob("offline-run-*/*.wandb"))


def test_random_return_of_the_first_log_point_is_popgyms(finished):
    """An untrained policy on RepeatPreviousEasy earns -0.5 in expectation."""
    rows = (finished / "metrics.jsonl").read_text().splitlines()
    assert np.mean(json.loads(rows[0])["train/return"]) == pytest.approx(-0.5, abs=0.1)


def test_evaluate_and_plot(finished, tmp_path, capsys):
    assert evaluate.main([str(finished), "--episodes", "8", "--gif-steps", "5"]) == 0
    result = json.loads((finished / "evaluation.json").read_text())
    assert result["finished"] == [1.0, 1.0]
    assert (finished / "eval.gif").read_bytes()[:4] == b"GIF8"
    assert "seed 1: return" in capsys.readouterr().out
    assert plot.main([str(finished), "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_are_the_single_runs_with_those_seeds(finished, tmp_path):
    folder = tmp_path / "second"
    train.main([*TINY, "--seed", "1", "--out", str(folder)])
    alone = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    both = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert alone["train/return"][0] == pytest.approx(both["train/return"][1], abs=1e-5)
    assert alone["loss/total"][0] == pytest.approx(both["loss/total"][1], abs=1e-4)


def test_a_finished_or_foreign_folder_is_not_touched(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(BadRequest, match="already exists"):
        train.main([*TINY, "--out", str(finished)])
    with pytest.raises(BadRequest, match="differ: seed"):
        train.main([*TINY, "--out", str(finished), "--seeds", "2", "--seed", "5", "--resume"])
    assert train.main([*TINY, "--out", str(finished), "--seeds", "2", "--resume"]) == 0
    assert "already complete" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["popgim-fast"], "did you mean popgym"),
        (["debug", "--memory", "grru"], "did you mean gru"),
        (["debug", "--env", "popgym/RepeatPrevEasy"], "did you mean popgym/RepeatPreviousEasy"),
        (["debug", "--env", "attari/Pong"], "ids are"),
        (["ppo-atari", "--env", "atari/Pnog"], "did you mean atari/Pong"),
        (["debug", "--eval-env", "gymnax/CartPole-v1"], "does not fit env .* observation space"),
        (["debug", "--eval-env", "?level=3"], "take no options"),
        (["debug", "--env", "gymnax/CartPole-v1", "--eval-env", "envpool/CartPole-v1"], "does not fit|emulators"),
        (["debug", "--env", "envpool/Pong-v5"], r"at least 36 x 36, but are \(4, 84, 84\)"),
        (["stepmix", "--eval-env", "episodic/Random"], "not for stepmix"),
        (["debug", "--total-steps", "-5"], "at least 1"),
        (["debug", "--resume"], "needs --out"),
        (["debug", "--network.memory-options", "gru.size=3"], "no option 'size'"),
        (["debug", "--network.memory-options", "state=3"], "not of the form"),
        (["debug", "--observation.previous-reward", "--observation.no-previous-action"], "needs"),
        (["debug", "--out", "/proc/nowhere/run"], "cannot write"),
    ],
)
def test_bad_requests_say_so_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message) as error:
        train.main([*arguments, "--quiet"])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.mark.parametrize("argument", [["--ppo.minibatches", "3"], ["--sed", "1"], ["--seeds", "many"]])
def test_impossible_values_exit_with_2(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, BadRequest)) as error:
        train.main(["debug", *argument])
    assert getattr(error.value, "code", 2) == 2
    assert not list(tmp_path.iterdir())


def test_divergence_is_reported_and_the_last_good_checkpoint_named(tmp_path):
    with pytest.raises(Diverged, match=r"chunk 1.*not finite.*no checkpoint"):
        train.main([*TINY, "--ppo.learning-rate", "1e38", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    folder, save = tmp_path / "run", checkpoint.save

    def full(root, chunk, state, extra):
        if chunk == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(root, chunk, state, extra)

    arguments = [*TINY, "--checkpoint-seconds", "0", "--out", str(folder)]
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(BadRequest, match="No space left"):
        train.main(arguments)
    assert checkpoint.checkpoints(folder / "checkpoints") == [1]
    monkeypatch.setattr(checkpoint, "save", save)
    assert train.main([*arguments, "--resume"]) == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "curves.png"),
            "error: cannot write curves.png: No space left on device; what was written before is intact\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "table.csv"), "error: table.csv: Permission denied\n"),
    ],
)
def test_trouble_with_files_after_training_is_one_line(error, line, capsys):
    """Pictures and tables are written by libraries that raise the system's error."""

    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as ending:
        run_script(main)
    assert ending.value.code == 2
    assert capsys.readouterr().err == line


def test_ctrl_c_checkpoints_and_exits_130(tmp_path):
    folder = tmp_path / "run"
    command = [*kill_resume.TRAIN, *TINY, "--out", str(folder), "--checkpoint-seconds", "1000"]
    command += ["--total-steps", "20480000", "--log-points", "40000"]  # far from its end, though chunks are short
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    kill_resume.first_chunk(folder, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "continue with --resume" in errors
    assert checkpoint.checkpoints(folder / "checkpoints")


@pytest.mark.parametrize("env", ["popgym/RepeatPreviousEasy", "envpool/CartPole-v1"])
def test_killed_runs_end_bit_for_bit_where_unbroken_ones_end(env, tmp_path):
    kill_resume.compare(tmp_path, kills=1, seed=int(time.time()), env=env)


def test_compare_reports_failures_and_skips_what_is_done(tmp_path, capsys):
    out = tmp_path / "comparison"
    arguments = ["debug", "--memories", "none", "--seeds", "2", "--out", str(out), *TINY[4:], "--quiet"]
    assert compare.main(arguments) == 0
    table = capsys.readouterr().out
    assert "| popgym/RepeatPreviousEasy |" in table
    stamp = (out / "popgym-RepeatPreviousEasy-none" / "summary.json").stat().st_mtime_ns
    # A cell that cannot be written fails; the finished one is kept as it is.
    (out / "popgym-RepeatPreviousEasy-gru").write_text("in the way")
    arguments[2:3] = ["none", "gru"]
    assert compare.main(arguments) == 1
    table = capsys.readouterr().out
    assert "**failed**" in table
    assert "exit code 2" in table
    assert (out / "popgym-RepeatPreviousEasy-none" / "summary.json").stat().st_mtime_ns == stamp
    assert {"table.md", "table.csv", "curves.png", "bars.png"} <= {p.name for p in out.iterdir()}


def test_configurations_survive_yaml():
    for name, preset in PRESETS.items():
        assert from_dict(yaml.safe_load(yaml.safe_dump(describe(name, preset)))) == preset


def test_runs_from_before_step_sizes_could_fall_keep_theirs():
    preset = SEQUENCE_PRESETS["dm-pendulum"]
    stored = describe("dm-pendulum", preset)
    del stored["sequence"]["learning_rate_end"]
    rate = preset.sequence.learning_rate
    assert from_dict(stored) == replace(preset, sequence=replace(preset.sequence, learning_rate_end=rate))


def test_runs_from_before_means_could_be_free_keep_theirs():
    preset = VALUE_PRESETS["offline"]
    stored = describe("offline", preset)
    del stored["odice"]["bounded"]
    assert from_dict(stored) == replace(preset, odice=replace(preset.odice, bounded=True))


def test_scripts_run_as_a_user_starts_them(tmp_path, monkeypatch, capsys):
    """From another folder, with --help: the first in a process of its own, the others in this one, which has imported
    what all of them take seconds to import."""
    monkeypatch.chdir(tmp_path)
    folder = kill_resume.ROOT / "scripts"
    done = subprocess.run([*kill_resume.TRAIN, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path[1:]])
    for script in ("evaluate", "plot", "compare"):
        monkeypatch.setattr(sys, "argv", [str(folder / f"{script}.py"), "--help"])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert not ending.value.code
        assert "usage:" in capsys.readouterr().out
