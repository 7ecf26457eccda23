"""Configurations as files: written and read back, of this version and of earlier ones, whole and damaged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram.agents.common.experiment import Experiment
from engram.agents.offline.cql import CQLSettings
from engram.configs import store
from engram.configs.migrations import SCHEMA
from engram.configs.presets import PRESETS
from engram.configs.store import describe, from_dict
from engram.errors import BadRequest, UnknownName

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD: dict[str, dict[str, Any]] = yaml.safe_load((FIXTURES / "old_presets.yaml").read_text())
"""All presets of the last version without a schema, as `config.yaml` held them then."""
RENAMED = {
    ("drama", "lambda_"): "return_lambda",
    ("odice", "lambda_"): "residual_weight",
    ("ucrl", "memory"): "forecasters",
}


def flat(values: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Values by group ("" for none) and name."""
    pairs: dict[tuple[str, str], Any] = {}
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) else [(name, value)]
        pairs |= {(name if isinstance(value, dict) else "", key): v for key, v in inner}
    return pairs


# -------------------------------------------------------------------------------------------------- this version's own


def test_configurations_survive_yaml():
    for name, preset in PRESETS.items():
        assert from_dict(yaml.safe_load(yaml.safe_dump(describe(name, preset)))) == preset, name


def test_fields_that_are_missing_have_their_defaults():
    config = from_dict({"agent": "ppo", "env": "popgym/RepeatFirstEasy", "ppo": {"num_envs": 16}})
    assert config == replace(config, seeds=1, ppo=type(config.ppo)(num_envs=16))  # type: ignore[attr-defined]


def test_numbers_and_booleans_are_read_as_people_write_them():
    """YAML takes 1e-3 for text and `on` for a boolean."""
    text = "{agent: ppo, env: x, seeds: 3.0, total_steps: 1e6, ppo: {learning_rate: 1e-3, eval_greedy: on}}"
    config: Any = from_dict(yaml.safe_load(text))
    assert (config.seeds, config.total_steps, config.ppo.learning_rate, config.ppo.eval_greedy) == (
        3,
        10**6,
        1e-3,
        True,
    )
    assert store.override(config, {"ppo__eval_greedy": "no"}).ppo.eval_greedy is False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"agent": "pppo"}, "unknown agent 'pppo': did you mean ppo"),
        ({"agent": ["ppo"]}, "agent must be text"),
        ({"schema": SCHEMA + 1}, f"schema version {SCHEMA + 1}; this version of Engram reads up to {SCHEMA}"),
        ({"schema": "new"}, "schema version 'new'"),
        ({"schema": [1]}, "schema version"),
        ({"enw": "x"}, "unknown key 'enw': did you mean env"),
        ({"ppo": {"num_env": 3}}, "unknown key 'ppo.num_env': did you mean ppo.num_envs"),
        ({"ppo": 3}, "ppo is not a mapping"),
        ({"ppo": None}, "ppo is not a mapping"),
        ({"env": 3}, "env must be text, got 3"),
        ({"seeds": 2.5}, "seeds must be a whole number, got 2.5"),
        ({"seeds": True}, "seeds must be a whole number, got True"),
        ({"seeds": "many"}, "seeds must be a whole number, got 'many'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"checkpoint_seconds": "nan"}, "checkpoint_seconds must be at least 0, got nan"),
        ({"ppo": {"eval_greedy": "perhaps"}}, "ppo.eval_greedy must be true or false"),
        ({"network": {"encoder": 3}}, "network.encoder must be a list"),
        ({"network": {"encoder": [3, "x"]}}, r"network.encoder\[1\] must be a whole number"),
        ({"network": {"activation": "tan"}}, "unknown value of network.activation 'tan': did you mean tanh"),
    ],
)
def test_damaged_files_say_so_in_one_line(values, message):
    whole = describe("debug", PRESETS["debug"])
    with pytest.raises(BadRequest, match=message) as error:
        from_dict(whole | values, "some.yaml")
    assert "\n" not in str(error.value)


def test_what_has_no_default_must_be_there():
    with pytest.raises(BadRequest, match="missing: env"):
        store.build(Experiment, {})


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- 1", "holds no mapping"), ("", "no mapping")]
)
def test_files_that_hold_no_configuration(text, message, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(BadRequest, match=message):
        store.read(tmp_path / "x.yaml")
    with pytest.raises(BadRequest, match="No such file"):
        store.read(tmp_path / "none.yaml")


def test_other_values_keep_what_they_do_not_name():
    preset: Any = PRESETS["debug"]
    changed: Any = store.override(preset, {"seeds": 3, "ppo": {"num_envs": 16}, "ppo__epochs": 5, "ppo.clip": "0.3"})
    assert changed == replace(preset, seeds=3, ppo=replace(preset.ppo, num_envs=16, epochs=5, clip=0.3))
    assert store.override(preset, {"ppo": preset.ppo}) == preset
    assert store.override(preset, {"network__encoder": "none"}) == store.override(preset, {"network__encoder": None})
    with pytest.raises(UnknownName, match=r"unknown setting 'ppo.num_env': did you mean ppo.num_envs"):
        store.override(preset, {"ppo__num_env": 3})
    with pytest.raises(UnknownName, match="did you mean memory"):
        store.override(preset, {"memmory": "gru"})
    with pytest.raises(BadRequest, match=r"ppo\.num_envs must be at least 1"):
        store.override(preset, {"ppo__num_envs": 0})


# ---------------------------------------------------------------------------------------------------- earlier versions


NEW = {
    ("iql", "dropout"): 0.0,
    ("cql", "clone_steps"): 0,
    ("odice", "twin"): True,
    ("mixer", "dropout"): 0.0,
    ("mixer", "add_time"): "after",
    ("observation", "action_mask"): False,
    ("network", "memory_width"): 0,
    ("world", "memory_width"): 0,
    ("ppo", "groups"): 1,
    ("data", "device_gb"): 4.0,
    ("data", "chunk_gb"): 0.064,
}
"""Settings that were no choice then, and what was done."""


STARTS = ["mamba.start=published", "mamba2.start=published", "s5.blocks=1", "s5.gain=zoh", "lru.min_phase=0"]
"""How these memories began then, whatever begins otherwise now."""


def with_starts(options: list[str]) -> list[str]:
    chosen = {option.partition("=")[0] for option in options}
    return [*options, *(start for start in STARTS if start.partition("=")[0] not in chosen)]


def begun(preset: Any) -> Any:
    """`preset` with the starts that memories had then."""
    for group in ("network", "world", "mixer", "history"):
        if settings := getattr(preset, group, None):
            settings = replace(settings, memory_options=tuple(sorted(with_starts([*settings.memory_options]))))
            preset = replace(preset, **{group: settings})
    return preset


@pytest.mark.parametrize("name", OLD)
def test_configurations_of_the_first_version_mean_what_they_meant(name):
    """Every value is still there, some under other names, and what is new was not a choice then."""
    old, config = OLD[name], from_dict(OLD[name])
    now = flat(describe(name, config))
    expected = {(group, RENAMED.get((group, key), key)): value for (group, key), value in flat(old).items()}
    expected |= {key: with_starts(value) for key, value in expected.items() if key[1] == "memory_options"}
    assert {key: now.get(key) for key in expected} == expected
    assert {*now} - {*expected} <= {("", "schema"), *NEW}
    assert all(now[key] == value for key, value in NEW.items() if key in now)
    assert store.upgrade(old) == describe(name, config)


@pytest.mark.parametrize("name", OLD)
def test_presets_have_the_values_of_the_first_version(name):
    preset = PRESETS[name]
    if name == "offline":  # whose defaults are now those published
        iql = replace(preset.iql, decay_steps=preset.total_steps)
        preset = replace(preset, iql=iql, cql=replace(preset.cql, clone_steps=0))
    if hasattr(preset, "observation"):  # masks of actions, which no preset's environment has, are now heeded
        preset = replace(preset, observation=replace(preset.observation, action_mask=False))
    assert begun(from_dict(OLD[name])) == begun(preset)


def test_every_agent_is_among_the_old_configurations():
    assert {old["agent"] for old in OLD.values()} == {preset.agent for preset in PRESETS.values()}


def test_the_first_runs_named_no_agent():
    stored = dict(OLD["debug"])
    del stored["agent"]
    assert from_dict(stored) == from_dict(OLD["debug"])


def test_runs_from_before_step_sizes_could_fall_keep_theirs():
    preset = PRESETS["dm-pendulum"]
    stored = yaml.safe_load(yaml.safe_dump(OLD["dm-pendulum"]))
    del stored["sequence"]["learning_rate_end"]
    rate = preset.sequence.learning_rate
    expected = replace(begun(preset), sequence=replace(preset.sequence, learning_rate_end=rate))
    assert begun(from_dict(stored)) == begun(expected)


def test_runs_from_before_means_could_be_free_keep_theirs():
    before: Any = from_dict(OLD["offline"])
    stored = yaml.safe_load(yaml.safe_dump(OLD["offline"]))
    del stored["odice"]["bounded"]
    assert from_dict(stored) == replace(before, odice=replace(before.odice, bounded=True))


def test_runs_from_before_a_policy_could_imitate_first_keep_theirs():
    stored = {**store.to_dict(PRESETS["offline"]), "agent": "values", "preset": "offline", "schema": 2}
    del stored["cql"]["clone_steps"]
    config: Any = from_dict(stored)
    assert config.cql.clone_steps == 0
    del stored["schema"], stored["preset"]  # as a person writes it
    config = from_dict(stored)
    assert config.cql.clone_steps == CQLSettings().clone_steps


@pytest.mark.parametrize(("old", "now"), [("True", "head"), ("1", "head"), ("false", "none"), ("channel", "channel")])
def test_runs_from_before_decays_of_deltanet_had_names_keep_theirs(old, now):
    stored = {**store.to_dict(PRESETS["debug"]), "agent": "ppo", "preset": "debug"}
    stored["schema"] = 3
    stored["network"] = {**stored["network"], "memory_options": ["s5.state=8", f"deltanet.decay={old}"]}
    config: Any = from_dict(stored)
    assert config.network.memory_options[:2] == ("s5.state=8", f"deltanet.decay={now}")


def test_reading_leaves_what_was_read_as_it_is():
    stored = yaml.safe_load(yaml.safe_dump(OLD["drama-catch"]))
    from_dict(stored)
    assert stored == OLD["drama-catch"]


def test_runs_from_before_memories_began_with_long_ones_begin_as_published():
    stored = {**store.to_dict(PRESETS["debug"]), "agent": "ppo", "preset": "debug", "schema": 4}
    stored["network"] = {**stored["network"], "memory_options": ["mamba2.head=8", "mamba.start=long"]}
    config: Any = from_dict(stored)
    expected = ("mamba2.head=8", "mamba.start=long", "mamba2.start=published", "s5.blocks=1", "s5.gain=zoh")
    assert config.network.memory_options == (*expected, "lru.min_phase=0")
    del stored["schema"], stored["preset"]  # as a person writes it
    config = from_dict(stored)
    assert config.network.memory_options == ("mamba2.head=8", "mamba.start=long")


@pytest.mark.parametrize("name", ["atari100k", "atari100k-parity"])
def test_published_world_models_begin_as_published(name):
    assert {"mamba.start=published", "mamba2.start=published"} <= {*PRESETS[name].world.memory_options}
