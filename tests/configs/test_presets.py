"""Presets and their modifiers. That presets have the values that they always had is in `test_store.py`."""

import dataclasses
import json
import subprocess
import sys

import pytest

from engram.configs import presets, store
from engram.configs.presets import PRESETS
from engram.configs.presets.differences import Kind
from engram.errors import UnknownName

STACKS = [f"{name}+{modifier}" for name in PRESETS for modifier in presets.trace(name)[0].modifiers]


def test_presets_are_a_mapping():
    assert len(PRESETS) == len(list(PRESETS)) == len({*PRESETS})
    assert PRESETS["debug"] is PRESETS["debug"]
    assert "atari100k+small" in PRESETS
    assert "atari100k+smal" not in PRESETS
    assert "smal" not in PRESETS
    assert 3 not in PRESETS
    assert PRESETS.get("nothing") is None
    with pytest.raises(KeyError):
        PRESETS["nothing"]


def test_unknown_presets_and_modifiers_offer_close_matches():
    with pytest.raises(UnknownName, match="unknown preset 'popgim-fast': did you mean popgym-fast"):
        presets.find("popgim-fast")
    with pytest.raises(UnknownName, match=r"unknown modifier of stepmix 'parity': choose from debug, small"):
        presets.find("stepmix+parity")
    with pytest.raises(UnknownName, match=r"unknown modifier of atari100k 'smal': did you mean small"):
        presets.find("atari100k+smal")


@pytest.mark.parametrize("name", STACKS)
def test_every_preset_takes_the_modifiers_of_its_kind(name):
    """The values fit together, and all that the modifier says are there."""
    preset, modifier = name.split("+")
    kind, _ = presets.trace(preset)
    made = PRESETS[name]
    assert type(made) is type(PRESETS[preset])
    for field, value in kind.modifiers[modifier].changes.items():
        group, _, leaf = field.rpartition(".")
        assert getattr(getattr(made, group) if group else made, leaf) == value, field
    assert store.override(PRESETS[preset], dict(kind.modifiers[modifier].changes)) == made


def test_the_last_modifier_wins():
    small, debug = PRESETS["popgym+debug+small"], PRESETS["popgym+small+debug"]
    assert (small.network.width, small.ppo.num_steps) == (64, 32)
    assert (debug.network.width, debug.ppo.num_envs) == (8, 8)
    normalised = PRESETS["popgym-fast+normalised+debug"].observation
    assert normalised.normalise
    assert normalised.normalise_reward


def test_names_that_presets_had_before_are_stacks():
    assert PRESETS["atari100k-small"] == PRESETS["atari100k+small"]
    assert PRESETS["debug"] == dataclasses.replace(PRESETS["popgym-fast+debug"], memory="gru")
    assert PRESETS["atari100k-parity"].drama == PRESETS["atari100k+parity"].drama
    assert PRESETS["atari100k+parity"].drama.reward_index == "early"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_small_differences(name):
    """None repeats what it differs from."""
    preset = presets.table()[name]
    base = preset.base.defaults() if isinstance(preset.base, Kind) else PRESETS[preset.base]
    values = store.to_dict(base)
    for field, value in preset.changes.items():
        group, _, leaf = field.rpartition(".")
        before = (values[group] if group else values)[leaf]
        assert before != (list(value) if isinstance(value, tuple) else value), field


@pytest.mark.parametrize(
    "kind", {presets.trace(name)[0].experiment: presets.trace(name)[0] for name in PRESETS}.values()
)
def test_experiments_need_no_arguments(kind):
    experiment = kind.defaults()
    assert store.from_dict({"agent": experiment.agent}) == experiment


def test_the_list_has_every_preset_and_modifier_in_80_columns():
    shown = presets.listing()
    assert max(map(len, shown.splitlines())) <= 80
    words = [line.split()[0] for line in shown.splitlines() if line]
    for name in PRESETS:
        assert words.count(name) == 1, name
        assert presets.sentence(name).endswith("."), name
    for name in ("small", "debug", "normalised", "parity"):
        assert f"+{name}" in words
    assert presets.sentence("popgym-fast+debug") == (
        "The easy POPGym tasks, in a minute or so. Smallest sizes, to see that things run; learns nothing."
    )
    assert repr(PRESETS) == shown


def test_presets_are_listed_without_jax():
    program = (
        "import json, sys; from engram.configs.presets import PRESETS, listing; listing(); 'popgym+debug' in PRESETS;"
        "print(json.dumps(sorted(m for m in sys.modules if m.partition('.')[0] in ('jax', 'flax', 'tyro'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
