"""Every environment by its id: `<family>/<name>`.

- `popgym/RepeatPreviousEasy`: POPGym in JAX, spelled as the popgym package spells it; `popgym-full/RepeatPreviousEasy`:
  the same task with nothing hidden;
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

Environments that stand outside of this repository:

- `my_module:TMaze?length=20`: an `Environment` class of the user's own, or a function that makes one, with the options
  of its arguments. The module is found as Python finds modules, or in the working directory;
- `gymnasium/my_module:MyEnv-v0`: an environment that `my_module` registers with gymnasium;
- `<entry point>/<name>`: what an installed package declares in the entry points `engram.environments`. An entry point
  is a mapping from names to constructors, or one `Environment` class.

The packages behind a family are imported when the family is first used.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from engram import plugins
from engram.envs.base import Environment, VectorEnvironment
from engram.envs.spec import EnvSpec, UnknownEnvironment, check_options
from engram.envs.vector import Vectorised
from engram.errors import BadRequest, MissingExtra

__all__ = ["EnvSpec", "UnknownEnvironment", "env_ids", "is_host_pool", "make", "make_vector"]


FamilyTable = Mapping[str, Callable[..., Environment | Callable[[int], VectorEnvironment]]]
"""Constructors by name: each takes the options of an id and makes one environment, or what makes a batch of a size."""

OURS = {
    "lsd": "engram.envs.bandits.last_switch:NAMES",
    "switching": "engram.envs.tabular.switching:NAMES",
    "episodic": "engram.envs.tabular.episodic:NAMES",
    "dynamical": "engram.envs.bandits.dynamical:NAMES",
    "classification": "engram.envs.bandits.classification:NAMES",
    "meta": "engram.envs.meta:NAMES",
}
"""Families of bandits and tabular environments, and of trials of many tasks: where the table of each stands."""
FUNCTIONAL = {
    "popgym": "engram.envs.popgym:POPGYM",
    "popgym-full": "engram.envs.popgym:FULL",
    "gymnax": "engram.envs.adapters.gymnax:NAMES",
    "brax": "engram.envs.adapters.brax:NAMES",
    **OURS,
}
"""Families of single environments in JAX."""
HOST_POOLS = {
    "atari": "engram.envs.host.atari",
    "envpool": "engram.envs.host.envpool",
    "gymnasium": "engram.envs.host.gymnasium",
}
"""Families of emulators on the host: the module of each. It has `names(asked)`, the names of a family given that
`asked` is wanted (empty: none), and `make(name, num_envs, *, copies, seed, **options)`."""
ENTRY_POINTS = "engram.environments"
"""The group in which installed packages declare families of environments in JAX."""


def make(env_id: str | EnvSpec, /, **options: Any) -> Environment:
    """One functional environment.

    Args:
        options: the same as `?option=value` in the id, before which they come.

    Raises:
        UnknownEnvironment: there is no such environment, or it has no such option.
        BadRequest: an option that is out of range; emulators and mixtures, which only come in batches.
        MissingExtra: the environment is that of a package which is not installed.
    """
    spec = _spec(env_id, options)
    if spec.family in HOST_POOLS:
        raise BadRequest(f"{spec} is an emulator on the host, which only comes in batches: use make_vector or num_envs")
    made = _functional(spec)
    if not isinstance(made, Environment):
        raise BadRequest(f"{spec} is a batch of several environments, of which there is no single one")
    _check_limit(spec, made)
    return made


def make_vector(
    env_id: str | EnvSpec, /, num_envs: int, *, copies: int = 1, seed: int | tuple[int, ...] = 0, **options: Any
) -> VectorEnvironment:
    """A batch of `num_envs` self-restarting environments, as one agent sees it.

    Args:
        copies: how many agents will be `vmap`ped over it; an emulator makes one pool of `copies * num_envs` lanes.
        seed: seed of an emulator's first agent, from which those of the others count up; behind it may stand numbers
            that set the emulator apart from others of the same agents. Functional environments draw everything from
            the keys given to them.
        options: the same as `?option=value` in the id, before which they come.

    Raises:
        As `make`, except that everything comes in batches.
    """
    spec = _spec(env_id, options)
    if num_envs < 1:
        raise BadRequest(f"{spec}: num_envs must be at least 1, got {num_envs}")
    if spec.family in HOST_POOLS:
        host = importlib.import_module(HOST_POOLS[spec.family])
        _check_name(spec, host.names(spec.name))
        taken = {"num_envs", "copies", "seed"} & {*spec.options}
        if taken:
            raise BadRequest(f"{spec}: {' and '.join(sorted(taken))} cannot be given in the id of an emulator")
        made = host.make(spec.name, num_envs, copies=copies, seed=seed, **spec.options)
    else:
        one = _functional(spec)
        made = Vectorised(one, num_envs) if isinstance(one, Environment) else one(num_envs)
    _check_limit(spec, made)
    return made


def env_ids(prefix: str = "") -> list[str]:
    """All ids that begin with `prefix`, sorted: those of this suite and of entry points.

    Imports the packages of the families that `prefix` leaves possible. A family whose package is not installed is left
    out. Raises MissingExtra if `prefix` names it.
    """
    ids = []
    for family in _families():
        named = prefix.startswith(f"{family}/")
        if named or f"{family}/".startswith(prefix):
            try:
                ids += [f"{family}/{name}" for name in _names(family)]
            except MissingExtra:
                if named:
                    raise
    return sorted(env_id for env_id in ids if env_id.startswith(prefix))


def is_host_pool(env_id: str | EnvSpec) -> bool:
    """Whether an id is that of an emulator on the host, which only comes in batches and cannot be copied."""
    return _spec(env_id, {}).family in HOST_POOLS


def _spec(env_id: str | EnvSpec, options: Mapping[str, Any]) -> EnvSpec:
    spec = EnvSpec.parse(env_id) if isinstance(env_id, str) else env_id
    given = {**spec.options, **options}
    return EnvSpec(spec.family, spec.name, {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()})


def _families() -> list[str]:
    return [*FUNCTIONAL, *HOST_POOLS, *sorted({*plugins.entry_points(ENTRY_POINTS)} - {*FUNCTIONAL, *HOST_POOLS})]


def _names(family: str) -> Iterable[str]:
    return importlib.import_module(HOST_POOLS[family]).names("") if family in HOST_POOLS else _table(family)


def _table(family: str) -> FamilyTable:
    """The constructors of a family of environments in JAX. Raises UnknownEnvironment."""
    if family in FUNCTIONAL:
        module, _, attribute = FUNCTIONAL[family].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if family not in plugins.entry_points(ENTRY_POINTS):
        families = ", ".join(f"{known}/..." for known in _families())
        raise UnknownEnvironment(f"unknown family of environments {family!r}: ids are {families} or <module>:<name>")
    found = plugins.entry_points(ENTRY_POINTS)[family].load()
    if isinstance(found, type) and issubclass(found, Environment):
        return {found.__name__: found}
    if isinstance(found, Mapping):
        return found
    raise BadRequest(f"the entry point {family!r} is no mapping of names to constructors and no Environment: {found!r}")


def _check_name(spec: EnvSpec, names: Iterable[str]) -> None:
    if spec.name in names:
        return
    spelling = {known.rpartition(":")[2].lower(): known for known in names}
    close = difflib.get_close_matches(spec.name.rpartition(":")[2].lower(), spelling, n=3, cutoff=0.5)
    hint = "; did you mean " + ", ".join(f"{spec.family}/{spelling[match]}" for match in close) + "?"
    raise UnknownEnvironment(f"unknown environment '{spec.family}/{spec.name}'" + (hint if close else ""))


def _functional(spec: EnvSpec) -> Environment | Callable[[int], VectorEnvironment]:
    """The environment in JAX that `spec` names, or what makes a batch of it."""
    if spec.family:
        table = _table(spec.family)
        _check_name(spec, table)
        constructor, what = table[spec.name], f"{spec.family}/{spec.name}"
    else:
        constructor, what = plugins.load("environment", spec.name), spec.name
    if not callable(constructor) or (isinstance(constructor, type) and not issubclass(constructor, Environment)):
        raise _no_environment(what, constructor)
    # Environments are hashable, so what an id spells as a list is a tuple to them.
    options = {name: _tuples(value) for name, value in spec.options.items()}
    check_options(what, options, constructor)
    if spec.family in OURS and not 0 <= (options.get("instance_seed") or 0) < 2**32:
        raise BadRequest(f"{what}?instance_seed must lie in 0 .. 2^32 - 1, got {options['instance_seed']}")
    made: Any = constructor(**options)
    if not isinstance(made, Environment) and spec.family not in OURS:
        raise _no_environment(what, made)
    return made


def _check_limit(spec: EnvSpec, env: Environment | VectorEnvironment) -> None:
    """Raises BadRequest where an option leaves episodes no step, or more than can be counted in 32 bits."""
    limit = env.max_steps(env.default_params)
    if limit is not None and not 1 <= limit < 2**31:
        raise BadRequest(f"{spec}: an episode must last between 1 and 2^31 - 1 steps, not {limit}")


def _no_environment(what: str, found: Any) -> BadRequest:
    return BadRequest(
        f"{what} is no class of engram.envs.base.Environment and no function that makes one, but {found!r} (what has "
        "gymnasium's interface is registered with gymnasium and named gymnasium/<module>:<id>)"
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
