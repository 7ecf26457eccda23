"""How adaptation of runs is measured: what is written, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
import yaml

from engram import api
from engram.configs.presets import PRESETS
from engram.configs.store import describe
from engram.envs import registry
from engram.envs.meta.dark_room import goals
from engram.envs.meta.task_switches import Switching
from engram.envs.meta.trials import Trials
from engram.errors import BadRequest
from engram.experiments import adapt
from engram.experiments.cells import Cell
from engram.experiments.compare import report_adaptation

pytestmark = pytest.mark.usefixtures("quickly_compiled")
POINTS: dict[str, Any] = {"log_points": 1, "eval_points": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    env = "meta/Bandit?arms=3&pulls=6"
    return api.train("debug", env=env, memory="none", total_steps=256, **POINTS, out=folder, quiet=True).folder


def test_a_run_of_bandits(trained, tmp_path, capsys):
    options = {"splits": ["test"], "lengths": [2], "ablations": ["reset"], "trials": 40}
    (result,) = api.adapt([trained], **options, out=tmp_path)
    assert result == json.loads((trained / "adaptation.json").read_text())
    conditions = {(c["split"], c["length"], c["memory"], c["changes"]): c for c in result["conditions"]}
    assert set(conditions) == {
        ("test", 2, "kept", "off"),
        ("test", 2, "reset", "off"),
    }
    for c in conditions.values():
        assert c["episodes"] == 12
        assert c["trials"] == 40
        assert len(c["by_episode"]["return"]["mean"]) == 12
        assert sum(c["by_episode"]["return"]["mean"]) == pytest.approx(c["total"]["mean"], abs=1e-3)
        assert c["by_episode"]["regret"]["mean"][-1] == pytest.approx(c["regret"]["mean"], abs=1e-3)
    assert {r["name"] for r in result["references"]} == {"random", "ucb1", "thompson", "gittins"}
    kept, reset = conditions.values()
    assert reset["gain"]["mean"] == pytest.approx(reset["total"]["mean"] - kept["total"]["mean"])
    assert result["state_bytes"] == 0
    table = (tmp_path / "adaptation.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| none | test |") == 2
    assert (tmp_path / "adaptation.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": ["oracle"]}, "do not switch within a trial"),
        ({"trials": 1}, "--trials must be at least 2"),
        ({"lengths": [0]}, "--lengths must hold sizes of at least 1"),
        ({"freeze_after": -1}, "--freeze-after must be at least 0"),
        ({"split": ["test"]}, "did you mean splits"),
    ],
)
def test_bad_requests_say_so_in_one_line(trained, options, message):
    with pytest.raises(BadRequest, match=message) as error:
        api.adapt([trained], **options)
    assert "\n" not in str(error.value)


def test_runs_of_other_environments_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(describe("debug", PRESETS["debug"])))
    with pytest.raises(BadRequest, match="no run of PPO in trials") as error:
        api.adapt([tmp_path])
    assert "\n" not in str(error.value)
    with pytest.raises(BadRequest, match="name at least one run"):
        api.adapt([])


@pytest.mark.slow
def test_each_member_of_a_mixture_and_those_never_trained_on(tmp_path):
    options = "episodes=2&states=4&horizon=5&width=100&actions=5&project_actions=true"
    folder = tmp_path / "run"
    env = f"meta/Mixture?members=Bandit+TabularMDP&arms=3&pulls=6&{options}"
    eval_env = f"meta/Mixture?members=TabularMDP+DarkRoom&{options}"
    run = api.train("debug", env=env, eval_env=eval_env, total_steps=256, **POINTS, out=folder, quiet=True)
    (result,) = api.adapt([run], splits=["test"], lengths=[1], ablations=["reset"], trials=16)
    episodes = {(c["split"], c["memory"]): c["episodes"] for c in result["conditions"]}
    labels = {"BernoulliBandit, test": 6, "TabularMDP, test": 2, "DarkRoom (never trained on), heldout": 2}
    assert episodes == {(label, memory): n for label, n in labels.items() for memory in ("kept", "reset")}
    references = {(r["split"], r["name"]) for r in result["references"]}
    assert ("BernoulliBandit, test", "gittins") in references
    assert ("DarkRoom (never trained on), heldout", "optimum") in references
    table = (folder / "adaptation.md").read_text()
    assert all(f"| gru | {label} | as trained |" in table for label in labels)


def test_a_comparison_stands_where_adaptation_cannot_be_measured(tmp_path, capsys):
    assert adapt.is_trials("meta/Bandit?arms=3")
    assert not adapt.is_trials("popgym/RepeatFirstEasy")
    (tmp_path / "summary.json").write_text("{}")
    report_adaptation([Cell(PRESETS["meta-bandit"], tmp_path, "meta-bandit")], tmp_path)
    assert "adaptation was not measured" in "".join(capsys.readouterr())


def test_the_best_way_to_a_goal_is_known():
    """Goals of the room are spread over cells whose distance from the middle is known."""
    trials = registry.make("meta/DarkRoom?episodes=2")
    assert isinstance(trials, Trials)
    (best,) = adapt.reference(trials, 0)
    cells = goals("DarkRoom", 9, "train")
    ways = np.abs(cells - 4).sum(axis=1)
    assert best["steps_to_goal"] == pytest.approx(ways.mean(), abs=4 * ways.std() / np.sqrt(adapt.REFERENCE_TASKS))
    assert best["return"] == pytest.approx(21 - best["steps_to_goal"], abs=1e-4)  # it stays there


def test_policies_of_gaussian_bandits_play_what_agents_are_trained_on():
    entries = {r["name"]: r for r in adapt.reference(registry.make("meta/GaussianBandit?arms=4&pulls=12"), 0)}
    assert set(entries) == {"random", "thompson", "gittins"}
    assert entries["gittins"]["total"]["mean"] > entries["random"]["total"]["mean"] + 5
    assert entries["gittins"]["regret"]["mean"] < entries["random"]["regret"]["mean"] - 5


def test_longer_trials_switch_as_often_a_step():
    trials = registry.make("meta/SwitchingBandit?arms=2&pulls=30&switches=2")
    assert isinstance(trials, Trials)
    longer = adapt.lengthened(trials, "heldout", 4)
    assert isinstance(longer, Trials)
    assert (longer.episodes, longer.split) == (120, "heldout")
    assert isinstance(longer.family, Switching)
    assert (longer.family.horizon, longer.family.switches) == (120, 8)
