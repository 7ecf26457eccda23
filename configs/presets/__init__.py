"""Named experiments: small differences from published defaults, which stand at the fields of the settings.

One file a family. A preset can be stacked with modifiers, such as `atari100k+small`. Names and sentences are here at
once; what a preset needs is imported when it is made.
"""

import importlib
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from engram.agents.common.experiment import Experiment
from engram.configs import store
from engram.configs.presets.differences import Changes, Kind, Preset
from engram.errors import UnknownName

FAMILIES = ("ppo", "meta", "drama", "offline", "planners", "paper")
"""Files of presets, in the order in which they are shown."""
DEFAULT = "popgym"
"""The preset that scripts take when none is named."""


def module_of(family: str) -> Any:
    """A file of presets."""
    return importlib.import_module(f"{__name__}.{family}")


@cache
def table() -> dict[str, Preset]:
    """What presets differ in, by their names."""
    return {name: preset for family in FAMILIES for name, preset in module_of(family).PRESETS.items()}


def sentence(name: str) -> str:
    """What a preset is for, and what its modifiers do. Raises UnknownName."""
    preset, *modifiers = name.split("+")
    kind, _ = trace(name)
    return " ".join([table()[preset].sentence, *(kind.modifiers[m].sentence for m in modifiers)])


def trace(name: str) -> tuple[Kind, Changes]:
    """The kind of experiment that a preset is, and its differences from its defaults, from the bottom up.

    Raises:
        UnknownName: there is no such preset or modifier; the message offers close matches.
    """
    preset_name, *modifiers = name.split("+")
    if preset_name not in table():
        raise UnknownName.among("preset", preset_name, table(), cutoff=0.4)
    preset = table()[preset_name]
    kind, changes = (preset.base, {}) if isinstance(preset.base, Kind) else trace(preset.base)
    changes = {**changes, **preset.changes}
    for modifier in modifiers:
        if modifier not in kind.modifiers:
            raise UnknownName.among(f"modifier of {preset_name}", modifier, kind.modifiers)
        changes |= kind.modifiers[modifier].changes
    return kind, changes


@cache
def find(name: str) -> Experiment:
    """The experiment of a preset, such as `popgym-fast` or `atari100k+small`.

    Raises:
        UnknownName: there is no such preset or modifier; the message offers close matches.
    """
    kind, changes = trace(name)
    return store.override(kind.defaults(), dict(changes))


class Presets(Mapping[str, Any]):
    """Every preset by its name, made when it is looked up. Stacks such as `atari100k+small` are found too."""

    def __getitem__(self, name: str) -> Any:
        try:
            return find(name)
        except UnknownName as error:
            raise KeyError(name) from error

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(trace(name))
        except UnknownName:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(table())

    def __len__(self) -> int:
        return len(table())

    def __repr__(self) -> str:
        return listing()


PRESETS = Presets()


def names(kind: Kind) -> list[str]:
    """Names of the presets of a kind."""
    return [name for name in table() if trace(name)[0].experiment == kind.experiment]


def listing(columns: int = 80) -> str:
    """All presets with a sentence each, and the modifiers of each kind, in lines of so many columns."""
    blocks, shown = [], set()
    for family in FAMILIES:
        module = module_of(family)
        rows = {f"  {name}": preset.sentence for name, preset in module.PRESETS.items()}
        for kind, _ in map(trace, module.PRESETS):
            if kind.experiment not in shown:
                rows |= {f"    +{name}": modifier.sentence for name, modifier in kind.modifiers.items()}
                shown.add(kind.experiment)
        title = (module.__doc__ or "").partition("\n")[0]
        blocks.append("\n".join([title, *(_row(*row, columns) for row in rows.items())]))
    return "\n\n".join([*blocks, "Presets stack with the modifiers of their kind: train.py atari100k+small"])


def _row(name: str, sentence: str, columns: int) -> str:
    first = f"{name:<29} "
    return textwrap.fill(sentence, columns, initial_indent=first, subsequent_indent=" " * len(first))
