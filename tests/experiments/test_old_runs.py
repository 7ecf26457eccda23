"""Runs of an earlier version, kept in `tests/fixtures/runs`: they are loaded, evaluated and resumed as they were.

They were made on a CPU of x86-64 with the packages that their `versions.json` names, and without the options that make
tests compile faster. With the same programs on the same kind of machine they are repeated exactly. These options,
other machines and versions of JAX round otherwise, so numbers are compared to a relative 1e-4 here: a run whose
configuration, state or keys were misread is off by far more.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from engram import api
from engram.configs import store
from engram.errors import BadRequest
from engram.experiments.train import Output, train
from tests.experiments.runs import rows_of

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "tests" / "fixtures" / "runs"
NAMES = ("ppo", "drama", "stepmix", "odice")
pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """The data set of a run is named from there."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def old(request, tmp_path):
    """A copy of the run of this name."""
    shutil.copytree(RUNS / request.param, tmp_path / request.param)
    return tmp_path / request.param


def test_they_are_of_an_earlier_version():
    assert {path.name for path in RUNS.iterdir() if path.is_dir()} == set(NAMES)
    for name in NAMES:
        stored = yaml.safe_load((RUNS / name / "config.yaml").read_text())
        assert "schema" not in stored
        assert len(list((RUNS / name / "checkpoints").iterdir())) == 2
    assert "lambda_" in yaml.safe_load((RUNS / "drama" / "config.yaml").read_text())["drama"]


@pytest.mark.parametrize("old", ["ppo", "drama", "odice"], indirect=True)
def test_they_are_evaluated(old):
    """Their policies still earn what they earned: different episodes, so about as much."""
    run = api.load(old)
    result = run.evaluate(episodes=16, gif_steps=0)
    assert result["chunk"] == 4
    assert result["finished"] == [1.0] * run.config.seeds
    earned, scale = run.summary["eval_return"]["mean"], {"ppo": 0.2, "drama": 1.0, "odice": 600.0}[old.name]
    assert result["eval_return"]["mean"] == pytest.approx(earned, abs=scale)


@pytest.mark.parametrize("old", ["stepmix"], indirect=True)
def test_planners_are_refused_in_one_line(old):
    with pytest.raises(BadRequest, match=r"stepmix learns while it acts .*summary.json") as error:
        api.evaluate(old)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old", [pytest.param(name, marks=[pytest.mark.slow] * (name != "ppo")) for name in NAMES], indirect=True
)
def test_they_are_resumed_and_end_as_they_ended(old):
    """From the checkpoint before the last."""
    before = rows_of(old)
    newest = max((old / "checkpoints").iterdir(), key=lambda p: int(p.name))
    shutil.rmtree(newest)
    (old / "summary.json").unlink()
    run = api.load(old)
    assert not run.is_finished
    train(run.config, run.preset, Output(old, resume=True, quiet=True))
    after = rows_of(old)
    assert len(after) == len(before)
    assert after[:-1] == before[:-1]
    assert {*after[-1]} == {*before[-1]}
    for name, values in before[-1].items():
        np.testing.assert_allclose(
            np.asarray(after[-1][name], float), np.asarray(values, float), rtol=1e-4, atol=1e-6, err_msg=name
        )
    assert newest.exists()
    assert next(iter(json.loads((old / "summary.json").read_text()))) == "preset"
    stored = yaml.safe_load((old / "config.yaml").read_text())
    assert "schema" not in stored, "what a run was is not rewritten"


@pytest.mark.parametrize("old", ["ppo"], indirect=True)
def test_they_are_not_resumed_with_other_values(old):
    run = api.load(old)
    (old / "summary.json").unlink()
    with pytest.raises(BadRequest, match=r"these differ: ppo.discount$"):
        train(store.override(run.config, {"ppo.discount": 0.5}), run.preset, Output(old, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("old", ["ppo"], indirect=True)
def test_lost_lines_of_metrics_are_one_line(old):
    """Their checkpoints do not hold the metrics, so nothing is trained on top of a gap."""
    (old / "summary.json").unlink()
    path, run = old / "metrics.jsonl", api.load(old)
    lines = path.read_text().splitlines(keepends=True)
    for lost in ([], lines[:2], [lines[0], *lines[2:]], [lines[0], lines[2], lines[1], lines[3]]):
        path.write_text("".join(lost))
        with pytest.raises(
            BadRequest, match=r"metrics.jsonl does not hold the first 4 lines of the run: put them back"
        ):
            train(run.config, run.preset, Output(old, resume=True, quiet=True))
        assert path.read_text() == "".join(lost)
