"""One run from end to end: what it leaves behind, how it is evaluated and drawn, how it fails, how it resumes."""

import errno
import json
import re
import sys

import jax
import numpy as np
import pytest
import yaml

from engram import api
from engram.configs.store import describe
from engram.errors import BadRequest, Diverged, InUse
from engram.experiments import evaluate
from engram.experiments.runs import default_folder
from engram.experiments.train import Output, train
from engram.training import checkpoint
from engram.training.folder import RunFolder
from engram.training.statistics import summarise
from engram.training.stopping import CHECKPOINT_SECONDS
from tests.experiments.runs import TINY, rows_of

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return api.train("debug", **TINY, seeds=2, out=folder, wandb="offline", quiet=True).folder


def test_a_run_leaves_everything_behind(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary) == [
        *("preset", "env", "memory", "seeds", "env_steps", "compile_s", "wall_s", "steps_per_s"),
        *("train_return", "eval_return", "eval_finished"),
    ]
    assert summary["eval_finished"] == [1.0, 1.0]
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
    assert np.mean(rows_of(finished)[0]["train/return"]) == pytest.approx(-0.5, abs=0.1)


def test_evaluate_and_plot(finished, tmp_path):
    result = api.evaluate(finished, episodes=8, gif_steps=5)
    assert result == json.loads((finished / "evaluation.json").read_text())
    assert result["finished"] == [1.0, 1.0]
    assert (finished / "eval.gif").read_bytes()[:4] == b"GIF8"
    _, second, last = evaluate.lines(result, 0)
    assert second.startswith("seed 1: return")
    interval = r"mean \S+ \[\S+, \S+\] \(n = 2\), 95 % t interval of the mean over seeds; interquartile mean \S+"
    assert re.fullmatch(interval, last)
    assert api.plot([finished], tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_that_did_not_finish_are_named_and_counted():
    finished = {"eval_return": summarise([None, 10.0, None, 2.0]), "finished": [0.0, 0.75, 0.0, 1.0]}
    assert evaluate.lines({**finished, "episodes_per_seed": 4}, 5) == [
        "seed 5: no return, none of 4 episodes ended",
        "seed 6: return 10.0000 of the 3 of 4 episodes that ended",
        "seed 7: no return, none of 4 episodes ended",
        "seed 8: return 2.0000",
        "mean 6.0000 [-44.8248, 56.8248] (n = 2 of 4), 95 % t interval of the mean over seeds; "
        "interquartile mean 6.0000",
    ]


def test_seeds_are_the_single_runs_with_those_seeds(finished, tmp_path, monkeypatch):
    run = api.train("debug", **TINY, seed=1, out=tmp_path / "second", quiet=True)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert {row["seed"] for row in run.metrics()} == {1}
    alone, both = rows_of(run.folder)[0], rows_of(finished)[0]
    assert alone["train/return"][0] == pytest.approx(both["train/return"][1], abs=1e-5)
    assert alone["loss/total"][0] == pytest.approx(both["loss/total"][1], abs=1e-4)


def test_a_finished_or_foreign_folder_is_not_touched(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(BadRequest, match="already exists"):
        api.train("debug", **TINY, out=finished)
    with pytest.raises(BadRequest, match="differ: seed"):
        api.train("debug", **TINY, seeds=2, seed=5, out=finished, resume=True)
    with pytest.raises(BadRequest, match="needs --out"):
        api.train("debug", **TINY, resume=True)
    api.train("debug", **TINY, seeds=2, out=finished, resume=True)
    assert "already complete" in capsys.readouterr().err
    api.train(api.load(finished).config, out=finished, resume=True)  # an experiment has no name of a preset
    assert "already complete" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


def test_a_folder_that_is_trained_in_is_in_use(tmp_path):
    stored = describe("debug", api.make_config("debug", **TINY)[1])
    held = RunFolder(tmp_path / "run", stored, resume=False)
    with pytest.raises(InUse, match="another process") as error:
        api.train("debug", **TINY, out=held.path, resume=True)
    assert error.value.exit_code == 4
    held.close()
    # Who was refused does not hold the folder, though the error that says so is kept.
    with pytest.raises(BadRequest, match="another configuration") as error:
        api.train("debug", **TINY, seed=5, out=held.path, resume=True)
    RunFolder(held.path, stored, resume=True).close()
    assert error


def test_two_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    config = api.make_config("debug", **TINY)[1]
    folders = {default_folder("debug", config) for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.is_dir() for folder in folders)


def test_double_precision_is_refused_before_anything_is_written(finished, tmp_path):
    with jax.enable_x64(True):
        with pytest.raises(BadRequest, match="float32 alone: take JAX_ENABLE_X64"):
            api.train("debug", **TINY, out=tmp_path / "run")
        with pytest.raises(BadRequest, match="float32 alone"):
            api.evaluate(finished, episodes=8)
        with pytest.raises(BadRequest, match="float32 alone"):
            api.load(finished).policy()
    assert not (tmp_path / "run").exists()


def test_divergence_is_reported_and_the_last_good_checkpoint_named(tmp_path):
    with pytest.raises(Diverged, match=r"chunk 1.*not finite.*no checkpoint"):
        api.train("debug", **TINY, ppo__learning_rate=1e38, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "summary.json").exists()


JAX, EMULATOR = "tests.envs.own_faults:InJax", "gymnasium/tests.envs.own_faults:Faulty-v0"


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        (f"{JAX}?at=7", "environment 0 of seed 0 gave an observation"),
        (f"{JAX}?at=7&size=huge", "environment 0 of seed 0 gave an observation"),
        (f"{JAX}?at=7&what=reward", "environment 0 of seed 0 gave a reward"),
        (f"{EMULATOR}?at=7&what=large", "environment 0 of seed 0 gave an observation"),
    ],
)
def test_divergence_by_a_number_of_the_environment_names_it(env, fault, tmp_path):
    """A whole line: in which environment, of which seed, in which step."""
    with pytest.raises(Diverged) as error:
        api.train("debug", **TINY, env=env, seeds=2, ppo__learning_rate=1e30, out=tmp_path / "run", quiet=True)
    words = r"training diverged in chunk 1: FAULT that is not finite or beyond 1e\+09 in step 7 of its training; loss/"
    assert re.match(words.replace("FAULT", fault), str(error.value)), str(error.value)


@pytest.mark.slow
def test_divergence_of_a_world_model_names_the_number_too(tmp_path):
    changes = {"total_steps": 600, "log_points": 3, "eval_points": 1, "world__encoder": "mlp"}
    changes["world__reconstruction"] = "symlog"
    with pytest.raises(Diverged, match=r"gave an observation that is not finite .* in step 7 of its training; loss/"):
        api.train("drama-catch+debug", **changes, env=f"{JAX}?at=7", out=tmp_path / "run", quiet=True)


def test_a_launcher_may_ask_for_fewer_checkpoints(tmp_path, monkeypatch):
    """For the sake of the file server; the configuration of the run stays what it is."""
    monkeypatch.setenv(CHECKPOINT_SECONDS, "300")
    folder = api.train("debug", **TINY, checkpoint_seconds=0, out=tmp_path / "run", quiet=True).folder
    assert checkpoint.checkpoints(folder / "checkpoints") == [2]
    assert yaml.safe_load((folder / "config.yaml").read_text())["checkpoint_seconds"] == 0
    monkeypatch.setenv(CHECKPOINT_SECONDS, "seldom")
    with pytest.raises(BadRequest, match="ENGRAM_CHECKPOINT_SECONDS must be a number of seconds, got 'seldom'"):
        api.train("debug", **TINY, checkpoint_seconds=0, out=tmp_path / "other", quiet=True)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    folder, save = tmp_path / "run", checkpoint.save
    preset, config = api.make_config("debug", **TINY, checkpoint_seconds=0)

    def full(root, state, progress, *rest):
        if progress.chunk == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(root, state, progress, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(BadRequest, match="No space left"):
        train(config, preset, Output(folder, quiet=True))
    assert checkpoint.checkpoints(folder / "checkpoints") == [1]
    monkeypatch.setattr(checkpoint, "save", save)
    run = train(config, preset, Output(folder, resume=True, quiet=True))
    assert len(rows_of(folder)) == 2
    assert run.is_finished
