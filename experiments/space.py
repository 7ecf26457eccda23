"""The space of a sweep: which settings are searched, and which values each may have.

An entry is `setting=kind:values`:

    ppo.learning-rate=log:1e-4:1e-2         from 1e-4 to 1e-2, evenly in the logarithm
    ppo.gae-lambda=linear:0.8:1             from 0.8 to 1
    ppo.learning-rate=log:1e-4:1e-2:5       five values of that range, ends included
    network.layers=choice:1,2               one of these; entries of a list are parted by spaces
    ppo.entropy+ppo.entropy-end=log:...     one value for several settings
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.configs import docstrings, spelling, store
from engram.configs.arguments import Option, options_of
from engram.errors import BadRequest, UnknownName

KINDS = ("log", "linear", "choice")
"""Kinds of ranges."""
FORM = "setting=log:LOW:HIGH, setting=linear:LOW:HIGH or setting=choice:A,B"
"""How an entry is written."""
DIGITS = 4
"""Significant digits of drawn numbers: what a table shows is what was trained."""
Settings = dict[str, Any]
"""Values by dotted names of settings."""


@dataclass(frozen=True)
class Dimension:
    """One or more settings with a common value, and the values that it may have."""

    fields: tuple[str, ...]
    """Dotted names of the settings."""
    text: str
    """How the values were written."""
    values: tuple[Any, ...] = ()
    """The values, where they are counted; empty for a whole range."""
    low: float = 0.0
    """Lower end of the range."""
    high: float = 0.0
    """Upper end of the range, included."""
    log: bool = False
    """Whether the range is even in the logarithm."""
    whole: bool = False
    """Whether its values are whole numbers."""

    @property
    def name(self) -> str:
        return "+".join(self.fields)

    @property
    def entry(self) -> str:
        """How the dimension is written."""
        return f"{self.name}={self.text}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that show whether the settings take all of them."""
        return self.values or (self.low, self.high)

    def distribution(self, optuna: Any) -> Any:
        """The values as a distribution of Optuna."""
        known = optuna.distributions
        if self.values:
            return known.CategoricalDistribution([json.dumps(value) for value in self.values])
        kind = known.IntDistribution if self.whole else known.FloatDistribution
        return kind(self.low, self.high, log=self.log)

    def encode(self, value: Any) -> Any:
        """A value as a parameter of Optuna."""
        return json.dumps(value) if self.values else value

    def decode(self, parameter: Any) -> Any:
        """The value that a parameter of Optuna stands for."""
        if self.values:
            return {json.dumps(value): value for value in self.values}[parameter]
        return int(parameter) if self.whole else self._rounded(parameter)

    def draw(self, rng: np.random.Generator) -> Any:
        """A random value."""
        if self.values:
            return self.values[rng.integers(len(self.values))]
        margin = 0.5 if self.whole else 0.0  # the ends are as likely as other whole numbers
        low, high = self.low - margin, self.high + margin
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return int(min(max(round(value), self.low), self.high)) if self.whole else self._rounded(value)

    def _rounded(self, value: float) -> float:
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """All that a sweep searches."""

    dimensions: tuple[Dimension, ...]

    def draw(self, seed: int, number: int) -> list[Any]:
        """A value for each dimension, by chance: the same for the same seed and number of the trial."""
        rng = np.random.default_rng((seed, number))
        return [dimension.draw(rng) for dimension in self.dimensions]

    def grid(self) -> list[tuple[Any, ...]]:
        """All combinations. Raises BadRequest where a dimension has no counted values."""
        sides = []
        for dimension in self.dimensions:
            if not dimension.values and not (dimension.whole and not dimension.log):
                raise BadRequest(
                    f"a grid needs counted values of {dimension.name}: say how many behind the range, as in "
                    "log:1e-4:1e-2:5"
                )
            sides.append(dimension.values or tuple(range(int(dimension.low), int(dimension.high) + 1)))
        return list(itertools.product(*sides))

    def settings(self, values: Sequence[Any]) -> Settings:
        """The settings that have these values, one for each dimension."""
        return {name: value for d, value in zip(self.dimensions, values, strict=True) for name in d.fields}


def parse(entries: Sequence[str], config: Experiment) -> Space:
    """The space of entries such as `ppo.learning-rate=log:1e-4:1e-2`.

    Args:
        config: the experiment whose settings they are.

    Raises:
        UnknownName: there is no such setting, kind of range or value; the message offers close matches.
        BadRequest: a range that is none, that its setting does not take, or of a setting that no trial may change.
    """
    options = {option.field: option for option in options_of(config)}
    dimensions: list[Dimension] = []
    for entry in entries:
        names, equals, text = entry.partition("=")
        fields = tuple(name.strip().removeprefix("--").replace("-", "_") for name in names.split("+"))
        if not equals:
            raise BadRequest(f"{entry!r} is no range of a setting: write {FORM}")
        for field in fields:
            if field not in options:
                raise spelling.unknown("setting", field, [*options])
            refuse_common(field, config)
            if field in {f for d in dimensions for f in d.fields} or fields.count(field) > 1:
                raise BadRequest(f"{field} has two ranges")
        dimensions.append(_dimension(fields, [options[field] for field in fields], text))
    if not dimensions:
        raise BadRequest(f"a sweep needs a space to search: --space {FORM}")
    space = Space(tuple(dimensions))
    for i, dimension in enumerate(dimensions):
        for value in dimension.ends:
            _refuse_never(space, i, value, config)
    return space


def _refuse_never(space: Space, place: int, value: Any, config: Experiment) -> None:
    """Raises BadRequest for a value that does not go with the other settings of `config`, nor with what is searched."""
    try:
        store.override(config, dict.fromkeys(space.dimensions[place].fields, value))
    except BadRequest:
        for number in range(64):
            drawn = space.draw(0, number)
            drawn[place] = value
            with suppress(BadRequest):
                store.override(config, space.settings(drawn))
                return
        raise


def refuse_common(field: str, config: Experiment) -> None:
    """Raises BadRequest for a setting that is the same for all trials, or that the sweep sets."""
    spec = spec_of(config)
    if field in ("seed", "seeds", config.row, config.choice, spec.second_choice):
        raise BadRequest(f"the sweep sets {field} itself")
    if "." not in field or field.rpartition(".")[2].startswith("eval_"):
        raise BadRequest(f"{field} must be the same for all trials, which are compared by it")


def _dimension(fields: tuple[str, ...], options: Sequence[Option], text: str) -> Dimension:
    """Raises BadRequest where the text is no range of these settings."""
    where, first = "+".join(fields), options[0]
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise UnknownName.among(f"range of {where}", kind, KINDS)
    if len({option.kind for option in options}) > 1:
        raise BadRequest(f"{where}: settings with a common value must be of one type")
    if kind == "choice":
        words = [word.strip() for word in rest.split(",")]
        values = [store.convert(first.kind, word.split() if first.is_list else word, fields[0]) for word in words]
        if len(set(values)) != len(values) or len(values) < 2:
            raise BadRequest(f"{where}: choice needs two values or more, all different, got {rest!r}")
        return Dimension(fields, text, tuple(values))
    if first.inner not in (int, float):
        raise BadRequest(f"{where} is no number: write {where}=choice:A,B")
    parts = rest.split(":")
    wrong = BadRequest(f"{where}: {text!r} is no range; write {kind}:LOW:HIGH, or {kind}:LOW:HIGH:COUNT")
    if len(parts) not in (2, 3):
        raise wrong
    low, high = (store.number(first.inner, part, wrong) for part in parts[:2])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise wrong
    if low >= high:
        raise BadRequest(f"{where}: the range from {parts[0]} to {parts[1]} is empty")
    if kind == "log" and low <= 0:
        raise BadRequest(f"{where}: log needs a range above 0, got {parts[0]}; write linear")
    whole, log = first.inner is int, kind == "log"
    if len(parts) == 2:
        return Dimension(fields, text, low=low, high=high, log=log, whole=whole)
    count = store.number(int, parts[2], wrong)
    if not 2 <= count <= 1000:
        raise wrong
    points = np.geomspace(low, high, count) if log else np.linspace(low, high, count)
    values = [round(x) if whole else float(f"{x:.{DIGITS}g}") for x in points.tolist()]
    return Dimension(fields, text, tuple(dict.fromkeys([low, *values[1:-1], high])))


def words(settings: Mapping[str, Any]) -> str:
    """Settings as they are typed."""
    return ", ".join(f"{name}={docstrings.words(value)}" for name, value in settings.items())
