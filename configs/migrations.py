"""Configurations of earlier versions, brought to the form of this one.

Each step takes the mapping of a `config.yaml` from one schema version to the next and changes what was renamed, or says
what was not a choice then. What a run did stays what it does.
"""

from collections.abc import Callable
from typing import Any

SCHEMA = 5
"""Version of the form in which configurations are written. What runs wrote without a version is of version 1."""

Values = dict[str, Any]


def rename(values: Values, group: str, old: str, new: str) -> None:
    """Moves `values[group][old]` to `new`, where it is there."""
    settings = values.get(group)
    if isinstance(settings, dict) and old in settings:
        values[group] = {new if key == old else key: value for key, value in settings.items()}


def default(values: Values, group: str, key: str, value: Any) -> None:
    """Sets `values[group][key]`, where the group is there without it."""
    settings = values.get(group)
    if isinstance(settings, dict) and key not in settings:
        values[group] = {key: value, **settings}


def from_1(values: Values) -> Values:
    """PPO was not named; step sizes could not fall; ODICE's policy was bounded; some names were others."""
    values = {"agent": "ppo", **values}
    sequence = values.get("sequence")
    if isinstance(sequence, dict) and "learning_rate" in sequence:
        default(values, "sequence", "learning_rate_end", sequence["learning_rate"])
    default(values, "odice", "bounded", True)
    rename(values, "odice", "lambda_", "residual_weight")
    rename(values, "drama", "lambda_", "return_lambda")
    rename(values, "ucrl", "memory", "forecasters")
    return values


def from_2(values: Values) -> Values:
    """CQL's policy sought values from the first step on; masks of actions were not heeded."""
    default(values, "cql", "clone_steps", 0)
    default(values, "observation", "action_mask", False)
    return values


def from_3(values: Values) -> Values:
    """DeltaNet had a decay or none; now the decay is one per head or per channel."""
    return {group: _named_decay(settings) for group, settings in values.items()}


def _named_decay(settings: Any) -> Any:
    options = settings.get("memory_options") if isinstance(settings, dict) else None
    if not isinstance(options, list | tuple):
        return settings
    names = {"true": "head", "1": "head", "false": "none", "0": "none"}

    def named(option: Any) -> Any:
        target, _, value = str(option).partition("=")
        return f"{target}={names.get(value.lower(), value)}" if target == "deltanet.decay" else option

    return {**settings, "memory_options": [named(option) for option in options]}


def from_4(values: Values) -> Values:
    """Mamba, Mamba-2, S5 and the LRU began as published."""
    return {group: _begun_as_published(settings) for group, settings in values.items()}


def _begun_as_published(settings: Any) -> Any:
    options = settings.get("memory_options") if isinstance(settings, dict) else None
    if not isinstance(options, list | tuple):
        return settings
    # Those of memories other than the chosen one have no effect.
    chosen = {str(option).partition("=")[0] for option in options}
    began = [f"{key}={value}" for key, value in BEGAN.items() if key not in chosen]
    return {**settings, "memory_options": [*options, *began]}


BEGAN = {
    "mamba.start": "published",
    "mamba2.start": "published",
    "s5.blocks": "1",
    "s5.gain": "zoh",
    "lru.min_phase": "0",
}
"""Options that were no choice before version 5, or had other defaults, with what was done."""


STEPS: dict[int, Callable[[Values], Values]] = {1: from_1, 2: from_2, 3: from_3, 4: from_4}
"""What brings a version to the next."""


FIRST = {"preset", "env", "seeds", "seed", "total_steps", "log_points", "eval_points"}
"""Keys of every configuration of version 1."""


def is_whole(values: Values) -> bool:
    """Whether a run wrote `values`, which then hold every field of their version. A person may write less."""
    return "schema" in values or values.keys() >= FIRST


def migrate(values: Values) -> Values:
    """`values` in the form of this version.

    A mapping without a version is of version 1 where a run wrote it. Where a person wrote it, it is of this version:
    what is missing has the defaults of today.
    """
    values = dict(values)
    version = values.pop("schema", 1 if is_whole(values) else SCHEMA)
    while version in STEPS:
        values, version = STEPS[version](values), version + 1
    return {"schema": version, **values}
