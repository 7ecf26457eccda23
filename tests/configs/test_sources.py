"""Experiments from presets, files and the standard input, and values of files on top of them."""

import io
from dataclasses import replace
from typing import Any

import pytest
import yaml

import engram
from engram import api
from engram.configs import sources
from engram.configs.presets import PRESETS
from engram.configs.store import describe
from engram.errors import BadRequest, UnknownName
from engram.memory import options_of
from engram.scripts import train
from engram.scripts.command_line import experiment_named


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file and returns its name."""

    def write(text: str, name: str = "own.yaml") -> str:
        (tmp_path / name).write_text(text)
        return name

    return write


def test_presets_and_stacks():
    assert sources.find("debug") == ("debug", PRESETS["debug"])
    assert sources.find("popgym-fast+debug") == ("popgym-fast+debug", PRESETS["popgym-fast+debug"])
    assert sources.find(PRESETS["lsd"]) == ("", PRESETS["lsd"])


def test_files_name_what_they_begin_from(write):
    """What is missing has the values of the preset that is named, or the defaults of the agent that is named."""
    name, config = sources.find(
        write("{preset: popgym-fast+debug, memory: gru, ppo: {num_envs: 16, learning_rate: 1e-2}}")
    )
    base = PRESETS["popgym-fast+debug"]
    assert name == "popgym-fast+debug"
    assert config == replace(base, memory="gru", ppo=replace(base.ppo, num_envs=16, learning_rate=1e-2))
    name, config = sources.find(write("{agent: lsd, seeds: 3, lsd.explore: 0.25}"))
    defaults = type(PRESETS["lsd"])()
    assert (name, config) == ("", replace(defaults, seeds=3, lsd=replace(defaults.lsd, explore=0.25)))


def test_what_a_run_wrote_is_taken_as_it_is(write):
    """Not as a difference from what its preset is today."""
    config = replace(PRESETS["debug"], seeds=3)
    stored = describe("debug", config)
    assert sources.find(write(yaml.safe_dump(stored))) == ("debug", config)
    del stored["ppo"]["num_envs"]
    found: Any = sources.find(write(yaml.safe_dump(stored)))[1]
    assert found.ppo.num_envs == type(config.ppo)().num_envs
    renamed = describe("a preset that is gone", config)
    assert sources.find(write(yaml.safe_dump(renamed)))[1] == config


def test_the_standard_input_is_a_file(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("{preset: debug, seeds: 2}"))
    assert sources.find("-") == ("debug", replace(PRESETS["debug"], seeds=2))
    monkeypatch.setattr("sys.stdin", io.StringIO("a: ["))
    with pytest.raises(BadRequest, match="the standard input is not YAML"):
        sources.find("-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{memory: gru}", "own.yaml does not say what it begins from: `preset: NAME`"),
        ("{preset: [debug]}", "own.yaml: preset must be text"),
        ("{preset: debugg}", "unknown preset 'debugg': did you mean debug"),
        ("{preset: debug, lr: 1}", "own.yaml: unknown setting 'lr': did you mean ppo.learning_rate"),
        ("{preset: debug, agent: drama}", "is of the agent drama, and the preset of ppo"),
        ("{preset: debug, seeds: many}", "own.yaml: seeds must be a whole number"),
        ("{preset: debug, ppo: 3}", "ppo is not a mapping"),
        ("{preset: debug, ppo: {1: 2}}", "has the key 1, which names no field"),
        ("{agent: ppo, ppo: {lr: 1}}", "unknown key 'ppo.lr': did you mean ppo.learning_rate"),
    ],
)
def test_files_that_describe_nothing_say_so_in_one_line(text, message, write):
    with pytest.raises(BadRequest, match=message) as error:
        sources.find(write(text))
    assert "\n" not in str(error.value)


def test_files_on_top_of_a_preset(write):
    own, other = write("{seeds: 3, ppo: {num_envs: 16}}"), write("{seeds: 4, ppo.epochs: 1}", "other.yml")
    base = PRESETS["popgym-fast"]
    expected = replace(base, seeds=4, ppo=replace(base.ppo, num_envs=16, epochs=1))
    name, config, rest = experiment_named(
        ["popgym-fast", "--config", own, "--quiet", f"--config={other}", "--seed", "1"]
    )
    assert (name, config, rest) == ("popgym-fast", expected, ["--quiet", "--seed", "1"])
    assert experiment_named(["popgym-fast", "--config", other, "--config", own])[1].seeds == 3
    assert api.make_config("popgym-fast", config=own, seed=2) == (
        "popgym-fast",
        replace(base, seeds=3, seed=2, ppo=replace(base.ppo, num_envs=16)),
    )


def test_a_whole_file_on_top_of_a_preset_is_all_of_its_values(write):
    stored = write(yaml.safe_dump(describe("debug", PRESETS["debug"])))
    assert experiment_named(["popgym", "--config", stored])[:2] == ("popgym", PRESETS["debug"])
    with pytest.raises(BadRequest, match="is of the agent ppo, and the preset of lsd"):
        experiment_named(["lsd", "--config", stored])


def test_a_file_alone_needs_no_preset(write):
    own = write("{preset: debug, seeds: 3}")
    assert experiment_named(["--config", own, "--quiet"]) == ("debug", replace(PRESETS["debug"], seeds=3), ["--quiet"])
    assert experiment_named([own, "--quiet"]) == ("debug", replace(PRESETS["debug"], seeds=3), ["--quiet"])
    assert experiment_named(["--quiet"])[0] == "popgym"
    with pytest.raises(BadRequest, match="--config needs a YAML file"):
        experiment_named(["debug", "--config", "--quiet"])
    with pytest.raises(BadRequest, match=r"cannot read nowhere.yaml"):
        experiment_named(["debug", "--config", "nowhere.yaml"])


def test_python_takes_the_same_names(write):
    assert api.make_config("popgym-fast+debug", memory="gru")[1] == replace(PRESETS["popgym-fast+debug"], memory="gru")
    assert api.make_config(write("{preset: debug}"))[0] == "debug"
    assert "popgym-fast+debug" in engram.presets()
    with pytest.raises(UnknownName, match=r"unknown setting 'gamma': did you mean ppo.discount"):
        api.make_config("debug", gamma=0.9)


def test_options_of_memories_replace_those_of_the_preset():
    published: Any = api.make_config("paper/popgym-s5")[1]
    changed: Any = api.make_config("paper/popgym-s5", network__memory_options=["s5.state=128"])[1]
    made = [options_of("s5", config.network.memory_options) for config in (published, changed)]
    assert made == [{"state": "256", "blocks": "1", "dt_max": "0.1", "gain": "zoh"}, {"state": "128"}]


def test_train_lists_presets(capsys):
    assert train.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "popgym-fast" in shown
    assert "+small" in shown
