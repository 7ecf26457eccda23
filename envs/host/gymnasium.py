"""gymnasium's environments, ALE included, called back from the compiled program.

`gymnasium/ALE/Pong-v5` is ale-py's own vector environment with its own defaults, of which two differ from envpool's:
rewards are clipped (`?reward_clipping=false`), and with `episodic_life` a lost life begins a whole new game.

`gymnasium/my_module:MyEnv-v0` is an environment that `my_module` registers when it is imported.
"""

import re
import textwrap
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from engram import plugins
from engram.envs.extras import needs
from engram.envs.host.pool import HostPool, Seed, check_limits, lane_seeds, wrong_shape
from engram.envs.spec import UnknownEnvironment, check_options
from engram.errors import BadRequest, EngramError, MissingExtra

IN_JAX = ("phys2d", "tabular")
"""Namespaces of gymnasium's functional programs, which a call back from a program must not run."""
OF_GYMNASIUM = ("max_episode_steps", "disable_env_checker")
"""Options that gymnasium itself takes for any environment."""


def names(asked: str = "") -> list[str]:
    """Registered ids but those that are functional JAX programs themselves or convert older interfaces.

    Args:
        asked: the name that is wanted. `module:id` imports the module, and all names are then spelled so.

    Raises:
        UnknownName: there is no such module.
        MissingExtra: a game of ALE is wanted, and ale-py is not installed.
    """
    module, colon, bare = asked.rpartition(":")
    if module:
        plugins.import_module("environment", f"gymnasium/{asked}", module)
    try:
        needs("ale_py", "atari", f"gymnasium/{asked}")  # registers its games when it is imported
    except MissingExtra:
        if bare.startswith("ALE/"):
            raise
    specs = gymnasium.registry.values()
    return [
        f"{module}{colon}{spec.id}"
        for spec in specs
        if spec.namespace not in IN_JAX and not spec.name.startswith("GymV")
    ]


def make(name: str, num_envs: int, *, copies: int = 1, seed: Seed = 0, **options: Any) -> HostPool:
    """`copies * num_envs` environments `name` in this process, with the seeds `lane_seeds(seed, num_envs, copies)`.

    Environments that come as a batch alone are taken as they are made, and must restart in the step after the end. But
    for those of ALE they take one seed for all lanes, which is that of a first lane.

    Args:
        options: the environment's own.

    Raises:
        UnknownEnvironment: the environment has no such option.
        BadRequest: gymnasium cannot make it, for want of a package for instance, or it fails with these options, in
            making, opening or its first step. What goes wrong inside a user's own environment shows as it is.
    """
    spec, lanes = gymnasium.spec(name.rpartition(":")[2]), copies * num_envs
    is_own = ":" in name  # of a module of the user's
    try:
        if spec.namespace == "ALE" or spec.entry_point is None:
            creator = _creator(name, spec.vector_entry_point)
            check_options(f"gymnasium/{name}", {"num_envs": lanes, **spec.kwargs, **options}, creator)
            check_limits(f"gymnasium/{name}", options)
            pool = gymnasium.make_vec(spec.id, num_envs=lanes, **options)
        else:
            own = {option: value for option, value in options.items() if option not in OF_GYMNASIUM}
            check_options(f"gymnasium/{name}", {**spec.kwargs, **own}, _creator(name, spec.entry_point))
            check_limits(f"gymnasium/{name}", options, none=-1)
            if options and not is_own:
                _try(spec.id, options)
            vector = {"autoreset_mode": AutoresetMode.NEXT_STEP}
            pool = gymnasium.make_vec(spec.id, lanes, "sync", vector_kwargs=vector, **options)
        seeds: Any = lane_seeds(seed, num_envs, copies)
        if spec.namespace == "ALE":
            seeds = np.asarray(seeds)
        elif not isinstance(pool, SyncVectorEnv):
            seeds = seeds[0]
        if isinstance(pool, SyncVectorEnv):
            _name_wrong_shapes(f"gymnasium/{name}", pool)
        first_observation, first_info = pool.reset(seed=seeds)
    except gymnasium.error.Error as error:
        raise BadRequest(f"gymnasium/{name}: {' '.join(str(error).split())}") from error
    except ImportError as error:
        if not _is_gymnasiums(spec.entry_point):
            raise
        raise BadRequest(f"gymnasium/{name}: {error}") from error
    except EngramError:
        raise
    except Exception as error:
        # What takes any option, and hands it on to what does not.
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown is not None and unknown[1] in options:
            raise UnknownEnvironment(f"gymnasium/{name} has no option {unknown[1]!r}") from error
        if is_own or not options:
            raise
        # Packages raise what comes of it where they use a value, such as KeyError.
        values = ", ".join(f"{option}={value!r}" for option, value in options.items())
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadRequest(f"gymnasium/{name} fails with {values} ({textwrap.shorten(words, 200)})") from error
    if pool.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise BadRequest(
            f"gymnasium/{name} does not restart in the step after the end (autoreset_mode of its metadata)"
        )
    spaces = pool.single_observation_space, pool.single_action_space
    limit = _max_steps(pool)
    return HostPool(f"gymnasium/{name}", pool, first_observation, num_envs, copies, spaces, limit, first_info)


def _try(env_id: str, options: dict[str, Any]) -> None:
    """Makes one environment, opens it and takes a step, which many first use the values of options for."""
    env = gymnasium.make(env_id, **options)
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        env.step(env.action_space.sample())
    finally:
        env.close()


def _creator(name: str, entry_point: Any) -> Any:
    """What makes the environment `name`. Raises BadRequest if a package that it needs is not installed."""
    if not isinstance(entry_point, str):
        return entry_point
    try:
        return load_env_creator(entry_point)
    except ImportError as error:
        if not _is_gymnasiums(entry_point):
            raise
        missing = f" needs the package {error.name}" if isinstance(error, ModuleNotFoundError) else f": {error}"
        raise BadRequest(f"gymnasium/{name}{missing}") from error


def _is_gymnasiums(entry_point: Any) -> bool:
    """Whether an environment comes with gymnasium, and not from a module of the user's own."""
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return module.startswith("gymnasium.")


def _name_wrong_shapes(what: str, pool: SyncVectorEnv) -> None:
    """Has `pool` raise BadRequest where an environment gives an observation of another shape than it declares: the
    arrays in which all are gathered only say that it is wrong."""

    def named(call: Callable) -> Callable:
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except ValueError as error:
                for lane, observation in enumerate(pool._env_obs):
                    words = None if observation is None else wrong_shape(pool.single_observation_space, observation)
                    if words:
                        raise BadRequest(f"{what}: environment {lane} gave an {words}") from error
                raise

        return checked

    pool.step, pool.reset = named(pool.step), named(pool.reset)


def _max_steps(pool: VectorEnv) -> int | None:
    """The limit of the environments as they run, which an option may have changed. Games of ALE count frames."""
    first = pool.envs[0] if isinstance(pool, SyncVectorEnv) else pool
    if first.spec is None:
        return None
    steps, given = first.spec.max_episode_steps, first.spec.kwargs
    if first is pool:  # made as a batch, which takes the limit as an argument
        steps = given.get("max_episode_steps", steps)
    if frames := given.get("max_num_frames_per_episode"):
        skip = given.get("frameskip", 4)  # or a range that each step draws from
        games = -(-frames // (skip if isinstance(skip, int) else skip[0]))
        steps = games if steps is None else min(steps, games)
    return steps
