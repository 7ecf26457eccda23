"""Every environment by its id: `<family>/<name>`.

- `popgym/RepeatPreviousEasy`: POPGym in JAX, spelled as the popgym package spells it;
- `gymnax/CartPole-v1` (with gymnax's parameters, `gymnax/MemoryChain-bsuite?memory_length=10`);
- `brax/ant` (or with a physics backend, `brax/ant?backend=positional`);
- `lsd/Random?arms=5&played=2&idle=6`: bandits whose payoffs depend on the last switch; `switching/Random`: tabular MDPs
  that change; `episodic/Random`: tabular episodes with exact values; `dynamical/Diagonal`: linear bandits with a hidden
  state; `classification/wine`: contextual bandits; all with the options of their constructors;
- `meta/Bandit?arms=10&pulls=100&split=heldout`: trials of several episodes of a task, for learning in context;
- `atari/Pong`: the games of the Atari 100k protocol to the letter (see `engram.envs.host.atari`), emulated on the host,
  with options to depart from it (`atari/Pong?noop_max=30`);
- `envpool/Pong-v5`, `gymnasium/CartPole-v1`: emulators on the host, with their options likewise
  (`envpool/Breakout-v5?episodic_life=true&repeat_action_probability=0.25`).

The packages behind a family are imported when the family is first used.
"""

import difflib
import functools
import inspect
import json
import math
import typing
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from engram.envs.base import Environment, VectorEnvironment
from engram.envs.vector import Vectorised
from engram.errors import BadRequest, UnknownName


class UnknownEnvironment(UnknownName):
    """There is no environment of this id; the message offers close matches."""


def _popgym():
    from engram.envs import popgym

    return popgym.POPGYM, lambda name: popgym.POPGYM[name]()


def _gymnax():
    from engram.envs.adapters import gymnax as gymnax_adapter

    return gymnax_adapter.NAMES, gymnax_adapter.GymnaxEnvironment


def _brax():
    from engram.envs.adapters import brax as brax_adapter

    return brax_adapter.NAMES, brax_adapter.make


def _ours(names: Mapping[str, Callable[..., Environment | Callable[[int], VectorEnvironment]]]):
    """A family of this suite whose constructors take options."""

    def construct(name: str, /, **options):
        _check_options(name, options, names[name])
        for option, value in options.items():
            if option == "instance_seed" and not 0 <= value < 2**32:
                raise BadRequest(f"{name}?{option} must lie in 0 .. 2^32 - 1, got {value}")
        return names[name](**options)

    return names, construct


def _check_options(name: str, options: Mapping[str, Any], constructor: Callable) -> None:
    """Raises UnknownEnvironment for options that `constructor` has no argument for, ValueError for wrong types."""
    known = inspect.signature(constructor).parameters
    for option, value in options.items():
        if option not in known:
            has = f"options are {', '.join(known)}" if known else "it takes none"
            raise UnknownEnvironment(f"{name} has no option {option!r}: {has}")
        _check_option(f"{name}?{option}", value, known[option].annotation)


def _check_option(option: str, value: bool | int | float | str, annotation: Any) -> None:
    """Raises BadRequest unless `value` is of one of the annotated kinds; a tuple, which no id can spell, is none."""
    kinds = set(typing.get_args(annotation) or (annotation,)) & {bool, int, float, str}
    kind = type(value)
    fits = kind in kinds or (kind is int and float in kinds)
    if isinstance(value, int | float) and not isinstance(value, bool):
        fits &= math.isfinite(value) and abs(value) < 2**32
    if not fits:
        words = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise BadRequest(f"{option} must be {words} (numbers finite and below 2^32), got {value!r}")


def _lsd():
    from engram.envs.bandits import last_switch as lsd

    return _ours(lsd.NAMES)


def _switching():
    from engram.envs.tabular import switching as switching_mdp

    return _ours(switching_mdp.NAMES)


def _episodic():
    from engram.envs.tabular import episodic as episodic_mdp

    return _ours(episodic_mdp.NAMES)


def _dynamical():
    from engram.envs.bandits import dynamical as dynamical_bandit

    return _ours(dynamical_bandit.NAMES)


def _classification():
    from engram.envs.bandits import classification as classification_bandit

    return _ours(classification_bandit.NAMES)


def _meta():
    from engram.envs import meta

    return _ours(meta.NAMES)


def _atari():
    from engram.envs.host import atari

    def construct(name: str, num_envs: int, /, *, copies: int, seed: int, **options):
        _check_options(name, options, atari.AtariOptions)
        return atari.make(name, num_envs, atari.AtariOptions(**options), copies=copies, seed=seed)

    return atari.NAMES, construct


def _envpool():
    from engram.envs.host import envpool as envpool_adapter

    return envpool_adapter.names(), envpool_adapter.make


def _gymnasium():
    from engram.envs.host import gymnasium as gymnasium_adapter

    return gymnasium_adapter.names(), gymnasium_adapter.make


OURS = {
    "lsd": _lsd,
    "switching": _switching,
    "episodic": _episodic,
    "dynamical": _dynamical,
    "classification": _classification,
    "meta": _meta,
}
"""Families of bandits and tabular environments, and of trials of many tasks: each gives its names and a constructor by
name with options."""
FUNCTIONAL = {"popgym": _popgym, "gymnax": _gymnax, "brax": _brax, **OURS}
"""Families of single environments in JAX: each gives its names and a constructor by name."""
HOST_POOLS = {"atari": _atari, "envpool": _envpool, "gymnasium": _gymnasium}
"""Families of emulators: names, and a constructor by name, number of environments, copies and seed."""
FAMILIES = {**FUNCTIONAL, **HOST_POOLS}
OPTIONS = {"gymnax", "brax", "atari", "envpool", "gymnasium", *OURS}
"""Families whose ids may end in `?option=value&...`, handed to the package's constructor (values as in JSON)."""


def _find(env_id: str) -> tuple[str, Callable]:
    """The family of an id and a constructor for it, with the id's options bound. Raises UnknownEnvironment."""
    base_id, _, query = env_id.partition("?")
    family, _, name = base_id.partition("/")
    if family not in FAMILIES:
        choices = ", ".join(f"{known}/..." for known in FAMILIES)
        raise UnknownEnvironment(f"unknown environment {env_id!r}: ids are {choices}")
    names, construct = FAMILIES[family]()
    if name not in names:
        spelling = {known.lower(): known for known in names}
        close = difflib.get_close_matches(name.lower(), spelling, n=3, cutoff=0.5)
        hint = "; did you mean " + ", ".join(f"{family}/{spelling[match]}" for match in close) + "?"
        raise UnknownEnvironment(f"unknown environment {env_id!r}" + (hint if close else ""))
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if options and family not in OPTIONS:
        raise UnknownEnvironment(f"unknown environment {env_id!r}: {family} ids take no options")
    return family, functools.partial(construct, name, **{key: _literal(value) for key, value in options.items()})


def _literal(text: str) -> bool | int | float | str:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def env_ids(prefix: str = "") -> list[str]:
    """All ids that begin with `prefix`, sorted. Imports the packages of the families that `prefix` leaves possible."""
    families = [family for family in FAMILIES if f"{family}/".startswith(prefix) or prefix.startswith(f"{family}/")]
    ids = [f"{family}/{name}" for family in families for name in FAMILIES[family]()[0]]
    return sorted(env_id for env_id in ids if env_id.startswith(prefix))


def make(env_id: str) -> Environment:
    """One functional environment. Raises UnknownEnvironment; ValueError for emulators and mixtures, which only come in
    batches."""
    family, construct = _find(env_id)
    if family in HOST_POOLS:
        raise BadRequest(f"{env_id} is an emulator on the host: use make_vector")
    made = construct()
    if not isinstance(made, Environment):
        raise BadRequest(f"{env_id} is a batch of several environments, of which there is no single one")
    return made


def make_vector(env_id: str, num_envs: int, *, copies: int = 1, seed: int = 0) -> VectorEnvironment:
    """A batch of `num_envs` self-restarting environments, as one agent sees it.

    `copies`: how many agents will be `vmap`ped over it; an emulator makes one pool of `copies * num_envs` lanes.
    `seed`: of an emulator; functional environments draw everything from the keys given to them.
    Raises UnknownEnvironment.
    """
    family, construct = _find(env_id)
    if family in HOST_POOLS:
        return construct(num_envs, copies=copies, seed=seed)
    made = construct()
    # A family's constructor gives one environment, or what makes a batch of a given size.
    return Vectorised(made, num_envs) if isinstance(made, Environment) else made(num_envs)
