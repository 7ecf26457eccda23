"""Lists of run folders: what stands in a line, filters by settings, differences, and folders that cannot be read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram.configs import store
from engram.configs.presets import PRESETS
from engram.errors import BadRequest, UnknownName
from engram.experiments.run_list import Listed, chosen, differences, find, listing


@pytest.fixture
def runs(tmp_path: Path) -> list[Listed]:
    """A finished run, one that was begun, one within another folder, and one whose configuration is damaged."""
    debug: Any = PRESETS["debug"]
    configs = {
        "a": debug,
        "b": replace(debug, memory="s5", ppo=replace(debug.ppo, learning_rate=1e-3)),
        "deep/c": replace(debug, env="gymnax/CartPole-v1", log_points=7),
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(store.describe("debug", config)))
    summary: dict[str, Any] = {"seeds": 2, "env_steps": 4096, "steps_per_s": 1.0, "wall_s": 1.0, "compile_s": 0.0}
    summary |= {
        "train_return": {"per_seed": [0.0, 0.0], "mean": 0.0},
        "eval_return": {"per_seed": [1.0, 3.0], "mean": 2.0},
    }
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.yaml").write_text("agent: [")
    return [Listed.of(folder) for folder in find([tmp_path])]


def names(runs: list[Listed]) -> list[str]:
    return [run.folder.name for run in runs]


def test_every_run_below_is_a_line(runs):
    head, *lines = listing(runs).splitlines()
    assert head.split() == ["run", "state", "task", "column", "seeds", "steps", "evaluation"]
    a, b, c, e = (line.split() for line in lines)
    assert a[1:6] == ["done", "popgym/RepeatPreviousEasy", "gru", "2", "4,096"]
    assert " ".join(a[6:]).startswith("2.000 [")
    assert b[1:5] == ["not", "run", "popgym/RepeatPreviousEasy", "s5"]
    assert "gymnax/CartPole-v1" in c
    assert e[1] == "unreadable"
    assert "config.yaml" in " ".join(e)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (["memory=gru"], ["a", "c"]),
        (["memory=gru", "env=popgym/*"], ["a"]),
        (["ppo.learning-rate=0.001"], ["b"]),
        (["--log_points=7"], ["c"]),
        (["preset=debug"], ["a", "b", "c"]),
        (["observation.normalise=false"], ["a", "b", "c"]),
        (["memory=lstm"], []),
    ],
)
def test_runs_are_chosen_by_their_settings(runs, where, found):
    assert names(chosen(runs, where)) == found


def test_what_no_run_has_is_refused(runs, tmp_path):
    with pytest.raises(UnknownName, match="unknown setting 'memry': did you mean memory"):
        chosen(runs, ["memry=gru"])
    with pytest.raises(BadRequest, match="--where takes setting=value"):
        chosen(runs, ["memory"])
    with pytest.raises(BadRequest, match="there is no folder"):
        list(find([tmp_path / "nowhere"]))


def test_differences_are_those_alone(runs):
    lines = [line.split() for line in differences(runs[:2]).splitlines()]
    assert [line[0] for line in lines] == ["setting", "memory", "ppo.learning_rate"]
    assert lines[1][1:] == ["gru", "s5"]
    assert lines[2][2] == "0.001"
    assert differences([runs[0], runs[0]]) == "no setting differs"
    with pytest.raises(BadRequest, match="two runs"):
        differences([runs[0], runs[3]])
