"""Every number among the settings has a range: what lies outside is refused where it is set, by the field's name."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from engram.configs import presets
from engram.errors import BadRequest
from engram.experiments import options

OUTSIDE: dict[type, tuple] = {
    float: (math.nan, math.inf, -math.inf, -1.0),
    int: (-1,),
    tuple[int, ...]: ((0,), (-1,)),
    tuple[float, ...]: ((math.nan,), (math.inf,)),
}
MAY_BE = {
    # limits that infinity switches off
    "checkpoint_seconds": {math.inf},
    "ppo.max_grad_norm": {math.inf},
    "ppo.clip": {math.inf},
    "neucb.ball": {math.inf},
    # numbers of either sign
    "conservative.reward_low": {-1.0},
    **{f"{method}.reward_shift": {-1.0} for method in ("td3bc", "iql", "cql", "odice")},
    "stepmix.gamma": {-1.0},
    # entries of an observation, whose width is not known here
    "observation.keep": {(0,), (-1,)},
}
"""Values, among those that are tried everywhere, that a field takes."""
RUN = Path("run")
WHOLES = {
    **{name: presets.find(name) for name in presets.PRESETS},
    "evaluate": options.Evaluate(RUN),
    "compare": options.Compare(),
    "sweep": options.Sweep(),
    "adapt": options.Adapt((RUN,)),
    "atari100k": options.Atari100k(),
    "dream": options.Dream(RUN),
    "tiers": options.Tiers(),
    "expert": options.Expert(RUN),
    "pendulum": options.PendulumNoise(RUN),
    "convert": options.Convert(RUN, RUN),
}
"""Everything with numbers that a user sets: experiments, and options of the scripts."""


def numbers():
    """Every number of these, once: its whole, its path, the value to try."""
    seen = set()
    for name, whole in WHOLES.items():
        places: list[tuple[Any, str]] = [(whole, "")]
        while places:
            part, prefix = places.pop()
            hints = typing.get_type_hints(type(part))
            for f in dataclasses.fields(part):
                value = getattr(part, f.name)
                path = f"{prefix}{f.name}"
                if dataclasses.is_dataclass(value):
                    places.append((value, f"{path}."))
                    continue
                hint = hints[f.name]
                choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
                kind = next((choice for choice in choices if choice in OUTSIDE), None)
                if kind is None or (type(part), f.name) in seen:
                    continue
                seen.add((type(part), f.name))
                for wrong in OUTSIDE[kind]:
                    if wrong not in MAY_BE.get(path, ()):
                        yield pytest.param(name, path, wrong, id=f"{name}-{path}-{wrong}")


@pytest.mark.parametrize(("whole", "path", "wrong"), list(numbers()))
def test_a_number_out_of_range_is_refused_by_name(whole, path, wrong):
    part = WHOLES[whole]
    *groups, last = path.split(".")
    for group in groups:
        part = getattr(part, group)
    with pytest.raises(BadRequest) as refused:
        dataclasses.replace(part, **{last: wrong})
    assert last in str(refused.value) or f"--{last.replace('_', '-')} " in str(refused.value)
    assert "\n" not in str(refused.value)
