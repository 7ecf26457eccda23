"""The environments of an agent: made from a configuration, and checked against each other."""

from typing import Any

from engram.agents.common.experiment import Experiment
from engram.envs import registry
from engram.envs.base import VectorEnvironment
from engram.envs.spaces import has_mask
from engram.envs.vector import Vectorised
from engram.envs.wrappers import ActionMask, TimeLimit, Wrapper
from engram.errors import BadRequest
from engram.training.loop import Plan, plan

EVALUATION, RESUMED, EVALUATE, DREAM = 1, 2, 3, 4
"""Numbers behind the seed of a run that set apart emulators which do not train from its start: those of an agent's
evaluations; those of a run that resumes in new episodes (and then its steps so far); those of `evaluate`; of dreams."""


def is_emulator(env_id: str) -> bool:
    """Whether an id names an emulator on the host."""
    return env_id.partition("/")[0] in registry.HOST_POOLS


def make_vector(
    env_id: str, num_envs: int, *, copies: int = 1, seed: int | tuple[int, ...] = 0, time_limit: int = 0
) -> VectorEnvironment:
    """A batch of `num_envs` environments, see `engram.envs.registry.make_vector`.

    Args:
        time_limit: steps after which episodes are cut (0: the environment's own limit only).

    Raises:
        BadRequest: unknown id, a limit for an emulator, or episodes that never end.
    """
    if time_limit and is_emulator(env_id):
        raise BadRequest(
            "observation.time_limit is not for emulators: write the limit into the id, ?max_episode_steps=N"
        )
    if time_limit:
        env = Vectorised(TimeLimit(registry.make(env_id), time_limit), num_envs)
    else:
        env = registry.make_vector(env_id, num_envs, copies=copies, seed=seed)
    if not env.is_host_pool and env.max_steps(env.default_params) is None:
        raise BadRequest(f"{env_id} never ends: give its episodes a length with --observation.time-limit N")
    return env


def refuse_masks(env_id: str, env: VectorEnvironment, agent: str) -> None:
    """Raises BadRequest where `env` says which actions are allowed, which `agent` would not heed."""
    if has_mask(env.observation_space(env.default_params)):
        raise BadRequest(f"{env_id} has an action_mask, which {agent} do not heed: ppo and the sequence policy do")


def refuse_mismatch(config: Experiment, env: Wrapper, eval_env: Wrapper) -> None:
    """Raises BadRequest where evaluations cannot be in `eval_env` after training in `env`."""
    for what in ("observation_space", "action_space"):
        trained, evaluated = (getattr(e, what)(e.default_params) for e in (env, eval_env))
        if trained != evaluated:
            raise BadRequest(
                f"eval_env {config.evaluated} does not fit env {config.env}: its {what.replace('_', ' ')} is "
                f"{evaluated}, not {trained}"
            )
    if _is_masked(env) != _is_masked(eval_env):
        masked, other = ("env", "eval_env") if _is_masked(env) else ("eval_env", "env")
        raise BadRequest(
            f"eval_env {config.evaluated} does not fit env {config.env}: {masked} has an action_mask, {other} has none"
        )
    if env.is_host_pool != eval_env.is_host_pool:
        raise BadRequest(f"eval_env {config.evaluated} and env {config.env}: either both are emulators or neither")


def _is_masked(env: VectorEnvironment) -> bool:
    """Whether one of the wrappers around an environment hands on masks of actions."""
    return isinstance(env, Wrapper) and ((isinstance(env, ActionMask) and env.used) or _is_masked(env.env))


def divide(config: Experiment, agent: Any) -> Plan:
    """How the updates of `config` are divided into chunks."""
    return plan(config.total_steps, agent.steps_per_update, config.log_points)
