"""How presets are written down: as differences from the defaults of an experiment, or from another preset.

Values are named as on the command line, such as `ppo.num_envs`. Nothing here needs the algorithms or JAX: they are
imported when a preset is made.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engram.agents.common.experiment import Experiment

Changes = Mapping[str, Any]
"""Values by the names of their fields."""


@dataclass(frozen=True)
class Difference:
    """Some values that differ, and what for."""

    sentence: str
    """One sentence, for `train.py --list`."""
    changes: Changes


@dataclass(frozen=True)
class Kind:
    """A kind of experiment, and the modifiers that its presets can be stacked with."""

    experiment: str
    """Class of the experiments, as `module:Class`."""
    modifiers: Mapping[str, Difference]

    def defaults(self) -> Experiment:
        """The experiment that has all defaults."""
        module, _, name = self.experiment.partition(":")
        return getattr(importlib.import_module(module), name)()


@dataclass(frozen=True)
class Preset:
    """An experiment by its difference from another one."""

    sentence: str
    """One sentence, for `train.py --list`."""
    base: Kind | str
    """What it differs from: the defaults of a kind of experiment, or a preset by its name, with modifiers or without
    (`atari100k+small`)."""
    changes: Changes = field(default_factory=dict)
