"""Runs on emulators: which lanes each seed has, and how a run goes on where its emulators cannot be repeated."""

import dataclasses
import signal

import numpy as np
import pytest

from engram import api
from engram.errors import Interrupted
from engram.experiments.train import Output, train
from engram.training import action_log, checkpoint
from engram.training.loop import TrainingRun
from tests.experiments.runs import TINY, assert_same_end, rows_of

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PENDULUM = TINY | {
    **{"env": "gymnasium/Pendulum-v1?max_episode_steps=20", "checkpoint_seconds": 0},
    **{"ppo__num_envs": 4, "ppo__eval_envs": 4, "total_steps": 512, "log_points": 4},
    "eval_points": 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return api.train("debug", **PENDULUM, seeds=2, out=tmp_path_factory.mktemp("runs") / "whole", quiet=True).folder


@pytest.fixture
def trained_to(monkeypatch):
    """Trains the run of `whole` in `folder`, on from where it is, and stops it after a chunk."""

    def go_on(folder, last_chunk=0):
        save = TrainingRun.save

        def stop(self, chunk):
            if chunk == last_chunk:
                signal.raise_signal(signal.SIGINT)
            save(self, chunk)

        monkeypatch.setattr(TrainingRun, "save", stop)
        preset, config = api.make_config("debug", **PENDULUM, seeds=2)
        try:
            train(config, preset, Output(folder, resume=folder.exists(), quiet=True))
        except Interrupted:
            assert last_chunk
        finally:
            monkeypatch.setattr(TrainingRun, "save", save)

    return go_on


def test_a_run_on_emulators_is_evaluated_once_at_its_end(whole):
    assert ["eval/return" in row for row in rows_of(whole)] == [False, False, False, True]


def test_a_resumed_run_repeats_its_emulators(whole, tmp_path, trained_to, capsys):
    trained_to(tmp_path / "run", 2)
    trained_to(tmp_path / "run")
    assert "repeating 64 steps" in capsys.readouterr().err
    assert_same_end(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_run_whose_emulators_were_seeded_otherwise_goes_on_in_new_episodes(
    whole, tmp_path, trained_to, monkeypatch, capsys
):
    """Checkpoints of earlier versions do not say how lanes were seeded. The log of actions then fits no pool any more,
    not even after a checkpoint of this version."""
    run, save = tmp_path / "run", checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint, "save", lambda root, state, progress, *rest: save(root, state, _older(progress), *rest)
        )
        trained_to(run, 1)
    for last_chunk in (2, 0):
        capsys.readouterr()
        trained_to(run, last_chunk)
        said = capsys.readouterr().err
        assert "seeded by another version, or opened anew before" in said
        assert "going on with new episodes" in said
        assert "repeating" not in said
    ours, theirs = rows_of(run), rows_of(whole)
    assert ours[0] == theirs[0]
    assert len(ours) == 4
    assert not any(a["loss/total"] == b["loss/total"] for a, b in zip(ours[1:], theirs[1:], strict=True))


@pytest.mark.slow
def test_a_run_that_is_too_long_to_be_repeated_goes_on_in_new_episodes(
    whole, tmp_path, trained_to, monkeypatch, capsys
):
    assert action_log.EXACT_STEPS == 1_000_000, "as documented"
    trained_to(tmp_path / "run", 2)
    monkeypatch.setattr(action_log, "EXACT_STEPS", 511)  # two chunks of 128 steps, of two seeds each
    capsys.readouterr()
    trained_to(tmp_path / "run")
    said = capsys.readouterr().err
    assert "too far to repeat exactly: going on with new episodes" in said
    assert "repeating" not in said
    ours, theirs = rows_of(tmp_path / "run"), rows_of(whole)
    assert ours[:2] == theirs[:2]
    assert len(ours) == 4
    assert not any(a["loss/total"] == b["loss/total"] for a, b in zip(ours[2:], theirs[2:], strict=True))


def _older(progress):
    return dataclasses.replace(progress, lanes=None)


def test_seeds_on_emulators_are_the_single_runs_with_those_seeds(whole, tmp_path):
    alone = rows_of(api.train("debug", **PENDULUM, seed=1, out=tmp_path / "second", quiet=True).folder)
    both = rows_of(whole)
    assert alone[0]["train/return"][0] == pytest.approx(both[0]["train/return"][1], rel=1e-4)
    assert alone[-1]["loss/total"][0] == pytest.approx(both[-1]["loss/total"][1], rel=1e-2)
    assert np.isfinite(alone[-1]["train/return"]).all()
