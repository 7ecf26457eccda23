"""From a family to trials of it by options that an id can spell."""

import inspect
from collections.abc import Callable
from typing import Any

from engram.envs.meta.task_switches import Switching
from engram.envs.meta.trials import Family, Trials
from engram.errors import BadRequest


def constructor(family: Callable[..., Family], **defaults: Any) -> Callable[..., Trials]:
    """Trials of `family`. Options: those of the family's constructor and of `Trials`, and `switches` or `hazard`.

    One of the last two lets the task change within the trial (`engram.envs.meta.task_switches`). `defaults` replace
    those of these options; `pulls` among them is another name of `episodes`. A range of time limits is a list, or
    spelled `least-most`.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    of_family = [p.replace(kind=keyword) for p in inspect.signature(family).parameters.values()]
    of_trials = [p.replace(kind=keyword) for p in inspect.signature(Trials).parameters.values() if p.name != "family"]
    of_switching = [inspect.signature(Switching).parameters[name] for name in ("switches", "hazard")]
    options = {}
    for parameter in [*of_family, *of_trials, *(p.replace(kind=keyword) for p in of_switching)]:
        if parameter.name == "episodes" and "pulls" in defaults:
            parameter = parameter.replace(name="pulls")
        if parameter.name == "time_limit":
            parameter = parameter.replace(annotation=int | str | tuple)
        options[parameter.name] = parameter.replace(default=defaults.get(parameter.name, parameter.default))

    def make(**given: Any) -> Trials:
        chosen = {name: given.get(name, parameter.default) for name, parameter in options.items()}
        member = family(**{p.name: chosen.pop(p.name) for p in of_family})
        switches, hazard = chosen.pop("switches"), chosen.pop("hazard")
        if switches and "hazard" not in given:
            hazard = 0.0
        if "pulls" in chosen:
            chosen["episodes"] = chosen.pop("pulls")
        if isinstance(chosen["time_limit"], str):
            chosen["time_limit"] = time_limits(chosen["time_limit"])
        trials = Trials(member, **chosen)
        if not switches and not hazard:
            return trials
        horizon = trials.max_steps(trials.default_params)
        if horizon is None:
            raise BadRequest("switches and hazard need trials of bounded length: give steps")
        return Trials(Switching(member, horizon, switches, hazard), **chosen)

    make.__signature__ = inspect.Signature([*options.values()])  # pyright: ignore[reportFunctionMemberAccess]
    return make


def time_limits(text: str) -> tuple[int, int]:
    """`50-200` as (50, 200). Raises BadRequest for other texts."""
    least, _, most = text.partition("-")
    if not (least.isdecimal() and most.isdecimal()):
        raise BadRequest(f"time_limit must be a number of steps or a range such as 50-200, got {text!r}")
    return int(least), int(most)
