"""Where experiments come from: presets, files, and values on top of them."""

import sys
from pathlib import Path
from typing import Any

from engram.agents.common.experiment import Experiment
from engram.configs import presets, store
from engram.configs.migrations import is_whole
from engram.errors import BadRequest
from engram.training.yaml_files import MOST_YAML, parse_yaml

STDIN = "-"
"""The name of the standard input."""


def is_file(source: str) -> bool:
    """Whether a name stands for a YAML file, or for the standard input."""
    return source == STDIN or source.endswith((".yaml", ".yml"))


def find(source: str | Path | Experiment) -> tuple[str, Experiment]:
    """Name and experiment of a preset (`popgym-fast+debug`), of a YAML file, or of the standard input (`-`).

    What a run wrote is taken as it is. In a file of one's own, fields that are missing have the values of the preset
    that it names (`preset: popgym-fast`), or their defaults where it names an agent alone (`agent: ppo`).

    Raises:
        UnknownName: there is no such preset, agent or field; the message offers close matches.
        BadRequest: the file cannot be read, or holds impossible values.
    """
    if isinstance(source, Experiment):
        return "", source
    source = str(source)
    if not is_file(source):
        return source, presets.find(source)
    values, where = read(source)
    preset = store.preset_of(values, where)
    if preset and not is_whole(values):
        return preset, store.change(presets.find(preset), values, where)
    return preset, store.from_dict(values, where)


def overlay(config: Experiment, source: str | Path) -> Experiment:
    """`config` with the values of a YAML file or the standard input. Raises as `find`."""
    values, where = read(str(source))
    return store.change(config, values, where)


def read(source: str) -> tuple[dict[str, Any], str]:
    """The mapping of a file or the standard input, and what messages call it. Raises BadRequest."""
    if source == STDIN:
        try:
            text = sys.stdin.read(MOST_YAML + 1)
        except UnicodeDecodeError:
            raise BadRequest("the standard input is no text") from None
        return parse_yaml(text, "the standard input"), "the standard input"
    return store.read(Path(source)), source
