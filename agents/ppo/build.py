"""From a configuration to PPO, and to PPO that keeps above a baseline; what both can do."""

import dataclasses
from typing import Any

import jax

from engram.agents.common.acting import acting
from engram.agents.common.distributions import head_size
from engram.agents.common.environments import EVALUATION, divide, refuse_mismatch
from engram.agents.common.spec import AgentSpec, Build, Panel, Play, Remembering
from engram.agents.ppo import conservative
from engram.agents.ppo.agent import PPO, PPOState
from engram.agents.ppo.conservative import Conservative
from engram.agents.ppo.experiment import ConservativeExperiment, PPOExperiment
from engram.agents.ppo.networks import ActorCritic
from engram.envs.base import VectorEnvironment
from engram.envs.datasets.recorder import Recorder
from engram.envs.spaces import Space, has_mask
from engram.envs.wrappers import (
    ActionMask,
    EpisodeStatistics,
    FlattenObservation,
    MaskObservation,
    NoiseObservation,
    NormaliseObservation,
    NormaliseReward,
    PreviousAction,
    Wrapper,
    has_loose_bytes,
)
from engram.errors import BadRequest
from engram.memory import Memory, make_memory
from engram.memory.projected import Projected
from engram.memory.registry import options_of
from engram.training.stderr import notify


def make_environment(config: PPOExperiment, num_envs: int, seed: tuple[int, ...], circumstances: Build) -> Wrapper:
    """The environment `env` of `config` as its agent sees it: `num_envs` in a batch for each seed, wrapped.

    Raises:
        BadRequest: unknown id, or wrappers that do not fit it.
    """
    env = circumstances.make_vector(
        config.env, num_envs, copies=config.seeds, seed=seed, time_limit=config.observation.time_limit
    )
    return observed(config, env, circumstances.record)


def observed(config: PPOExperiment, env: VectorEnvironment, record: bool = False) -> Wrapper:
    """`env` in the wrappers that `config` names; `record` as in `engram.agents.common.spec.Build`.

    Raises:
        BadRequest: a wrapper does not fit it.
    """
    view = config.observation
    if env.is_host_pool:
        pool: Any = env
        pool.heeds_masks = view.action_mask
    env = EpisodeStatistics(env)
    if has_mask(env.observation_space(env.default_params)):
        env = ActionMask(env, view.action_mask)
    env = FlattenObservation(env)
    if view.keep:
        env = MaskObservation(env, view.keep)
    if record:
        env = Recorder(env)
    if view.noise:
        env = NoiseObservation(env, view.noise)
    if view.normalise:
        env = NormaliseObservation(env)
    if view.previous_action:
        env = PreviousAction(env, view.previous_reward)
    if view.normalise_reward:
        env = NormaliseReward(env, config.ppo.discount)
    return env


def underneath(env: VectorEnvironment) -> Space:
    """The space of observations underneath all wrappers."""
    while isinstance(env, Wrapper):
        env = env.env
    return env.observation_space(env.default_params)


def memory_of(config: PPOExperiment) -> Memory:
    """The memory of `config`. Raises BadRequest as `make_memory`."""
    network = config.network
    memory = make_memory(
        config.memory,
        network.memory_width or network.width,
        layers=network.layers,
        norm=network.norm,
        residual=network.residual,
        **options_of(config.memory, network.memory_options),
    )
    return Projected(network.width, memory=memory) if network.memory_width else memory


def make_ppo(config: PPOExperiment, circumstances: Build = Build()) -> PPO:
    """The PPO agent of `config`.

    Raises:
        BadRequest: unknown names or impossible combinations.
    """
    network, seed = config.network, circumstances.seed_for(config)
    env = make_environment(config, config.ppo.num_envs // config.ppo.groups, seed, circumstances)
    if config.ppo.groups > 1 and env.is_host_pool:
        raise BadRequest("ppo.groups: the environments of an emulator are one group, on one device")
    if config.ppo.groups > 1 and circumstances.record:
        raise BadRequest("ppo.groups: what a run of several groups plays is not recorded")
    eval_config = dataclasses.replace(config, env=config.evaluated)
    eval_env = make_environment(eval_config, config.ppo.eval_envs, (*seed, EVALUATION), circumstances)
    refuse_mismatch(config, env, eval_env)
    if has_loose_bytes(underneath(env)) and not config.observation.normalise:
        notify(
            f"{env.name} shows bytes that are no picture, which are not scaled: --observation.normalise does it by "
            "running statistics"
        )
    action_space = env.action_space(env.default_params)
    head_size(action_space)  # refuses action spaces that no policy covers
    actor_critic = ActorCritic(
        memory=memory_of(config),
        action_space=action_space,
        encoder=network.encoder,
        heads=network.heads,
        activation=network.activation,
        head_scale=network.head_scale,
    )
    agent = PPO(env, eval_env, actor_critic, config.ppo, total_updates=1)
    return dataclasses.replace(agent, total_updates=divide(config, agent).updates)


def make_conservative(config: ConservativeExperiment, circumstances: Build = Build()) -> Conservative:
    """PPO under the rule of `config`. Raises BadRequest as `make_ppo`."""
    suited = conservative.BASELINES[config.conservative.baseline].env
    if config.env != suited:
        raise BadRequest(
            f"the baseline {config.conservative.baseline!r} is a policy for {suited}, not for {config.env}"
        )
    if config.ppo.groups > 1:
        raise BadRequest("ppo.groups: the baseline and the learner act in one group of environments")
    view = config.observation
    for name in ("keep", "noise", "normalise", "normalise_reward"):
        if getattr(view, name):
            raise BadRequest(f"observation.{name}: baseline and critics need observations and rewards as they are")
    ppo = make_ppo(config, circumstances)
    limit = ppo.env.max_steps(ppo.env.default_params)
    if limit != config.conservative.horizon:
        raise BadRequest(
            f"conservative.horizon is {config.conservative.horizon}, but episodes last {limit} steps at most"
        )
    return Conservative(ppo, config.conservative, config.algorithm)


# ------------------------------------------------------------------------------------------------------- capabilities


def _configure(config: PPOExperiment, episodes: int, greedy: bool | None) -> PPOExperiment:
    greedy = config.ppo.eval_greedy if greedy is None else greedy
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, eval_envs=episodes, eval_greedy=greedy))


def _act(agent: PPO, state: PPOState, carry: tuple, key: jax.Array) -> tuple[tuple, Any, dict[str, Any]]:
    env_state, obs, reset, memory = carry

    def apply(method: str, *args: Any) -> Any:
        return agent.network.apply({"params": state.params}, *args, method=method)

    memory, features = apply("features_step", memory, obs, reset)
    policy, value = apply("policy", features, agent.eval_env.action_mask(env_state)), apply("value", features)
    action = policy.mode() if agent.settings.eval_greedy else policy.sample(key)
    return (env_state, obs, reset, memory), action, {"memory": memory, "value": value}


ACTING = acting(lambda agent, obs: agent.network.initial_state(1), _act)

PLAY = Play(
    _configure,
    is_greedy=lambda config: config.ppo.eval_greedy,
    episodes=lambda config: config.ppo.eval_envs,
    scene=lambda agent: agent.eval_env,
)

PPO_SPEC = AgentSpec(
    experiment=PPOExperiment,
    build=make_ppo,
    panels=(Panel("train/return", "episode return", dots="eval/return"),),
    columns=("s5", "gru", "none"),
    play=PLAY,
    acting=ACTING,
    remembering=Remembering(memory_of, width="network.memory_width", outer="network.width"),
    adapts=True,
)

CONSERVATIVE_SPEC = AgentSpec(
    experiment=ConservativeExperiment,
    build=make_conservative,
    panels=(
        Panel("train/return", "return while learning", floor="train/threshold"),
        Panel("train/learner_steps", "share of steps that the learner makes"),
        Panel("eval/return", "return of the learner alone"),
    ),
    columns=conservative.ALGORITHMS,
    # Evaluated is the learner alone.
    play=dataclasses.replace(PLAY, player=lambda agent, states: (agent.ppo, states.ppo)),
    acting=ACTING,
)
