"""From a configuration to an agent, with its environments and its dataset."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from engram.agents.common.distributions import head_size
from engram.agents.drama.agent import Drama
from engram.agents.offline import view as data_view
from engram.agents.offline.base import OfflineAgent
from engram.agents.offline.bc import BC, RCBC
from engram.agents.offline.bisimulation import Bisimulation
from engram.agents.offline.cql import CQL
from engram.agents.offline.data import OfflineData
from engram.agents.offline.iql import IQL
from engram.agents.offline.odice import ODICE
from engram.agents.offline.sequence_policy import SequenceAgent, SequencePolicy
from engram.agents.offline.td3bc import TD3BC
from engram.agents.planners import dynlin, lsd, neucb, stepmix, ucrl
from engram.agents.ppo import conservative
from engram.agents.ppo.agent import PPO
from engram.agents.ppo.conservative import Conservative
from engram.agents.ppo.networks import ActorCritic, check_pictures
from engram.configs.experiment import (
    ConservativeExperiment,
    DramaExperiment,
    Experiment,
    OfflineExperiment,
    PPOExperiment,
    SequenceExperiment,
    ValueExperiment,
    WorldSettings,
)
from engram.envs import datasets, registry
from engram.envs.bandits.classification import ClassificationBandit, LinearLoss
from engram.envs.bandits.dynamical import DynamicalBandit
from engram.envs.bandits.last_switch import LSDBandit
from engram.envs.base import VectorEnvironment
from engram.envs.datasets import Episodes
from engram.envs.datasets.recording import Recorder
from engram.envs.spaces import Box, Space
from engram.envs.tabular.episodic import EpisodicMDP
from engram.envs.tabular.switching import SwitchingMDP
from engram.envs.vector import Vectorised
from engram.envs.wrappers import (
    EpisodeStatistics,
    FlattenObservation,
    MaskObservation,
    NoiseObservation,
    NormaliseObservation,
    NormaliseReward,
    PreviousAction,
    TimeLimit,
    Wrapper,
    is_image,
)
from engram.errors import BadRequest
from engram.memory import make_memory, memory_options
from engram.memory.mixers import make_mixer, mixer_options
from engram.training.loop import Agent, Plan, plan
from engram.worldmodels.networks import PictureDecoder, PictureEncoder, VectorDecoder, VectorEncoder
from engram.worldmodels.world_model import WorldModel

EVALUATION_LANES = 1_000_003
PLANNER_STEPS = 2**24
PLANNERS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "lsd": (lsd.LSD, LSDBandit, lsd.ALGORITHMS),
    "ucrl": (ucrl.UCRL, SwitchingMDP, ucrl.ALGORITHMS),
    "stepmix": (stepmix.StepMix, EpisodicMDP, stepmix.ALGORITHMS),
    "dynlin": (dynlin.DynLin, DynamicalBandit, dynlin.ALGORITHMS),
    "neucb": (neucb.NeuCB, (ClassificationBandit, LinearLoss), neucb.ALGORITHMS),
}
"""Planners by the names of their experiments: the agent, the kind of environment that it is for, its algorithms."""

VALUE_METHODS: dict[str, type[OfflineAgent]] = {
    "bc": BC,
    "rcbc": RCBC,
    "td3bc": TD3BC,
    "iql": IQL,
    "cql": CQL,
    "odice": ODICE,
}
"""What learns from recorded single steps, by the names of its settings."""


def make_environment(config: PPOExperiment, num_envs: int, copies: int, seed: int, record: bool = False) -> Wrapper:
    """The environment `env` of `config` as its agent sees it: `num_envs` in a batch, wrapped.

    Args:
        record: whether its steps say what was there before noise and normalisation (`engram.envs.datasets.recording`).

    Raises:
        BadRequest: unknown id, or wrappers that do not fit it.
    """
    view = config.observation
    try:
        if view.time_limit and config.env.partition("/")[0] in registry.HOST_POOLS:
            raise BadRequest(
                "observation.time_limit is not for emulators: write the limit into the id, ?max_episode_steps=N"
            )
        if view.time_limit:
            env = Vectorised(TimeLimit(registry.make(config.env), view.time_limit), num_envs)
        else:
            env = registry.make_vector(config.env, num_envs, copies=copies, seed=seed)
        if config.env.partition("/")[0] in registry.OURS and env.max_steps(env.default_params) is None:
            raise BadRequest(f"{config.env} never ends: give its episodes a length with --observation.time-limit N")
        return observed(config, env, record)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def observed(config: PPOExperiment, env: VectorEnvironment, record: bool = False) -> Wrapper:
    """`env` in the wrappers that `config` names; `record` as in `make_environment`.

    Raises:
        BadRequest: a wrapper does not fit it.
    """
    view = config.observation
    env = FlattenObservation(EpisodeStatistics(env))
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


def refuse_mismatch(config: Experiment, env: Wrapper, eval_env: Wrapper) -> None:
    """Raises BadRequest where evaluations cannot be in `eval_env` after training in `env`."""
    for what in ("observation_space", "action_space"):
        trained, evaluated = (getattr(e, what)(e.default_params) for e in (env, eval_env))
        if trained != evaluated:
            raise BadRequest(
                f"eval_env {config.evaluated} does not fit env {config.env}: its {what.replace('_', ' ')} is "
                f"{evaluated}, not {trained}"
            )
    if env.is_host_pool != eval_env.is_host_pool:
        raise BadRequest(f"eval_env {config.evaluated} and env {config.env}: either both are emulators or neither")


def options_of(
    memory: str, options: Sequence[str], known: Callable[[str], dict[str, Any]] = memory_options
) -> dict[str, Any]:
    """The entries of `options` (`memory.option=value`) that concern `memory`, by bare names.

    Raises:
        BadRequest: an entry is not of that form, or names no memory or no option of it.
    """
    chosen = {}
    for entry in options:
        name, dot, rest = entry.partition(".")
        option, equals, value = rest.partition("=")
        if not (dot and equals):
            raise BadRequest(f"memory option {entry!r} is not of the form memory.option=value, such as s5.state=128")
        if option not in known(name):
            raise BadRequest(f"memory {name!r} has no option {option!r}: it has {', '.join(known(name))}")
        if name == memory:
            chosen[option] = value
    return chosen


def divide(config: Experiment, agent: Agent) -> Plan:
    """How the updates of `config` are divided into chunks."""
    return plan(config.total_steps, agent.steps_per_update, config.log_points)


def make_agent(config: Experiment, emulator_seed: int | None = None, record: bool = False) -> Agent:
    """The agent of `config`; its emulators, if any, start from `emulator_seed` (default: the configured seed).

    Args:
        record: see `make_environment`; for PPO alone.

    Raises:
        BadRequest: unknown names or impossible combinations.
    """
    if isinstance(config, ConservativeExperiment):
        return make_conservative(config, emulator_seed)
    if isinstance(config, DramaExperiment):
        return make_drama(config, emulator_seed)
    if isinstance(config, SequenceExperiment):
        return make_sequence(config)
    if isinstance(config, ValueExperiment):
        return make_values(config)
    return make_ppo(config, emulator_seed, record) if isinstance(config, PPOExperiment) else make_planner(config)


def make_planner(config: Experiment) -> Agent:
    """The planner of `config`. Raises BadRequest as `make_agent`."""
    planner, kind, _ = PLANNERS[config.agent]
    family = config.env.partition("/")[0]
    try:
        if config.eval_env:
            raise BadRequest(f"eval_env is not for {config.agent}, which is scored while it acts")
        # An emulator cannot be made here at all.
        env = None if family in registry.HOST_POOLS else registry.make(config.env)
        if not isinstance(env, kind):
            raise BadRequest(f"{config.agent} does not plan {family}/... environments: see the planners' page in docs")
        if config.total_steps > PLANNER_STEPS:
            raise BadRequest(
                f"total_steps must be at most {PLANNER_STEPS:,} for planners, which count in float32, "
                f"got {config.total_steps:,}"
            )
        agent = planner(env, getattr(config, config.agent), config.chosen, config.total_steps)
        # Runs are rounded up to whole log points; the horizon that planners know is the true one.
        return dataclasses.replace(agent, total_steps=divide(config, agent).updates * agent.steps_per_update)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def algorithms_of(config: Experiment) -> tuple[str, ...]:
    """The algorithms of a planner or of learning from recorded single steps."""
    if isinstance(config, ValueExperiment):
        return tuple(VALUE_METHODS)
    return conservative.ALGORITHMS if isinstance(config, ConservativeExperiment) else PLANNERS[config.agent][2]


def make_ppo(config: PPOExperiment, emulator_seed: int | None = None, record: bool = False) -> PPO:
    """The PPO agent of `config`; with `record`, see `make_environment`. Raises BadRequest as `make_agent`."""
    network = config.network
    seed = config.seed if emulator_seed is None else emulator_seed
    env = make_environment(config, config.ppo.num_envs, config.seeds, seed, record)
    # An emulator numbers its lanes upwards from its seed: keep those of evaluation far from those of training.
    eval_config = dataclasses.replace(config, env=config.evaluated)
    eval_env = make_environment(eval_config, config.ppo.eval_envs, config.seeds, seed + EVALUATION_LANES, record)
    refuse_mismatch(config, env, eval_env)
    try:
        memory = make_memory(
            config.memory,
            network.width,
            layers=network.layers,
            norm=network.norm,
            residual=network.residual,
            **options_of(config.memory, network.memory_options),
        )
        action_space = env.action_space(env.default_params)
        head_size(action_space)  # refuses action spaces that no policy covers
        check_pictures(env.observation_space(env.default_params))
        actor_critic = ActorCritic(
            memory=memory,
            action_space=action_space,
            encoder=network.encoder,
            heads=network.heads,
            activation=network.activation,
            head_scale=network.head_scale,
        )
        agent = PPO(env, eval_env, actor_critic, config.ppo, total_updates=1)
        return dataclasses.replace(agent, total_updates=divide(config, agent).updates)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def make_conservative(config: ConservativeExperiment, emulator_seed: int | None = None) -> Conservative:
    """PPO under the rule of `config`. Raises BadRequest as `make_agent`."""
    suited = conservative.BASELINES[config.conservative.baseline].env
    if config.env != suited:
        raise BadRequest(
            f"the baseline {config.conservative.baseline!r} is a policy for {suited}, not for {config.env}"
        )
    view = config.observation
    for name in ("keep", "noise", "normalise", "normalise_reward"):
        if getattr(view, name):
            raise BadRequest(f"observation.{name}: baseline and critics need observations and rewards as they are")
    ppo = make_ppo(config, emulator_seed)
    limit = ppo.env.max_steps(ppo.env.default_params)
    if limit != config.conservative.horizon:
        raise BadRequest(
            f"conservative.horizon is {config.conservative.horizon}, but episodes last {limit} steps at most"
        )
    try:
        return Conservative(ppo, config.conservative, config.algorithm)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def make_drama(config: DramaExperiment, emulator_seed: int | None = None) -> Drama:
    """The world-model agent of `config`. Raises BadRequest as `make_agent`."""
    sizes = config.world
    seed = config.seed if emulator_seed is None else emulator_seed
    try:
        env, eval_env = (
            EpisodeStatistics(registry.make_vector(env_id, n, copies=config.seeds, seed=first))
            for env_id, n, first in (
                (config.env, config.drama.num_envs, seed),
                (config.evaluated, config.drama.eval_envs, seed + EVALUATION_LANES),
            )
        )
        refuse_mismatch(config, env, eval_env)
        refuse_reconstruction(sizes, env.observation_space(env.default_params))
        if sizes.encoder == "mlp":
            env, eval_env = FlattenObservation(env), FlattenObservation(eval_env)
        head_size(env.action_space(env.default_params))  # refuses action spaces that no policy covers
        world = make_world(config.memory, sizes, env.observation_space(env.default_params))
        return Drama(env, eval_env, world, config.drama)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def resolve(config: Experiment) -> Experiment:
    """`config` with the environment that its dataset is from, if it has a dataset and names no environment itself.

    Raises:
        BadRequest: the dataset cannot be read.
    """
    if not isinstance(config, OfflineExperiment) or config.env:
        return config
    return dataclasses.replace(config, env=load_dataset(config.dataset).origin.env)


def load_dataset(path: str) -> Episodes:
    """The dataset in `path`. Raises BadRequest where it cannot be read."""
    try:
        return datasets.load(path)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def make_dataset_environment(config: OfflineExperiment, episodes: Episodes, num_envs: int) -> Wrapper:
    """A batch of the environment that `episodes` are from, or `config` names, seen as it was recorded.

    Raises:
        BadRequest: it is unknown, or does not fit the dataset.
    """
    env_id, origin = dataclasses.replace(config, env=config.env or episodes.origin.env).evaluated, episodes.origin
    if not env_id:
        raise BadRequest(f"{config.dataset} does not say which environment it is from: name it with --env")
    if env_id.partition("/")[0] in registry.HOST_POOLS:
        raise BadRequest(f"{env_id} is an emulator: what learned from recorded episodes is played in JAX environments")
    single = registry.make(env_id)
    if origin.time_limit:
        single = TimeLimit(single, origin.time_limit)
    if single.max_steps(single.default_params) is None:
        raise BadRequest(f"{env_id} never ends, and {config.dataset} names no time limit")
    env = FlattenObservation(EpisodeStatistics(Vectorised(single, num_envs)))
    if origin.keep:
        env = MaskObservation(env, origin.keep)
    try:
        data_view.refuse_mismatch(
            episodes, env.observation_space(env.default_params), env.action_space(env.default_params)
        )
    except ValueError as error:
        raise BadRequest(f"{config.dataset} does not fit {env_id}: {error}") from None
    return env


def make_sequence(config: SequenceExperiment, episodes: Episodes | None = None) -> SequenceAgent:
    """The sequence policy of `config`, on `episodes` if these are already there. Raises BadRequest as `make_agent`."""
    episodes = episodes or load_dataset(config.dataset)
    sizes, settings = config.mixer, config.sequence
    try:
        options = options_of(config.memory, sizes.memory_options, mixer_options)
        if config.memory == "attention":  # as far back as a window of training goes
            options = {"window": 3 * settings.context - 1, **options}
        env = make_dataset_environment(config, episodes, settings.eval_episodes)
        view = data_view.DataView.of(episodes, settings.targets)
        policy = SequencePolicy(
            mixer=make_mixer(config.memory, sizes.width, sizes.layers, **options),
            obs_size=episodes.obs.shape[1],
            actions=episodes.num_actions or episodes.action.shape[1],
            discrete=episodes.discrete,
            max_timestep=max(int(episodes.lengths.max()), env.max_steps(env.default_params) or 0),
            span=int(episodes.lengths.max()),
            deep=sizes.deep,
            see_actions=sizes.see_actions,
        )
        data = OfflineData.of(episodes, view.mean, view.deviation)
        agent = SequenceAgent(env, policy, data, settings, view, total_updates=1)
        return dataclasses.replace(agent, total_updates=divide(config, agent).updates)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def make_values(config: ValueExperiment, episodes: Episodes | None = None) -> OfflineAgent:
    """The method of `config`, on `episodes` if these are already there. Raises BadRequest as `make_agent`."""
    method, sizes = VALUE_METHODS.get(config.algorithm), config.history
    try:
        if method is None:
            close = difflib.get_close_matches(config.algorithm, VALUE_METHODS, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(close)}?" if close else f"it is one of {', '.join(VALUE_METHODS)}"
            raise BadRequest(f"unknown algorithm {config.algorithm!r}; {hint}")
        episodes = episodes or load_dataset(config.dataset)
        settings = getattr(config, config.algorithm)
        env = make_dataset_environment(config, episodes, settings.eval_episodes)
        if not config.memory:
            return method.of(episodes, env, settings)
        options = options_of(config.memory, sizes.memory_options)
        memory = make_memory(config.memory, sizes.width, layers=sizes.layers, **options)
        return Bisimulation.of(episodes, env, settings, memory=memory, bisimulation=config.bisimulation)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def make_world(memory: str, sizes: WorldSettings, space: Any) -> WorldModel:
    """The world model of observations of `space`. Raises BadRequest where they or the memory do not fit `sizes`."""
    encoder, decoder = coders(sizes, space)
    return WorldModel(
        memory=make_memory(
            memory,
            sizes.width,
            layers=sizes.layers,
            rms=True,
            dropout=sizes.dropout,
            **options_of(memory, sizes.memory_options),
        ),
        encoder=encoder,
        decoder=decoder,
        reconstruction=sizes.reconstruction,
        categoricals=sizes.categoricals,
        classes=sizes.classes,
        head=sizes.head,
        unimix=sizes.unimix,
        unimix_denominator=sizes.categoricals if sizes.unimix_denominator == "categoricals" else None,
    )


def refuse_reconstruction(sizes: WorldSettings, space: Space) -> None:
    """Raises BadRequest where observations of `space` are not of the kind that is reconstructed."""
    if (
        sizes.reconstruction == "binary"
        and isinstance(space, Box)
        and (np.min(space.low) < 0 or np.max(space.high) > 1)
    ):
        raise BadRequest(
            f"world.reconstruction=binary needs observations in [0, 1], these are in [{space.low}, {space.high}]: "
            "take world.reconstruction=symlog"
        )
    if sizes.reconstruction == "pixels" and not is_image(space):
        raise BadRequest("world.reconstruction=pixels needs uint8 pictures: take world.reconstruction=symlog or binary")


def coders(sizes: WorldSettings, space: Any) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of observations of `space`.

    Raises:
        BadRequest: they do not fit it.
    """
    if sizes.encoder == "mlp":
        if len(space.shape) != 1:
            raise BadRequest(f"world.encoder=mlp needs vectors, observations have shape {space.shape}")
        return VectorEncoder(sizes.dense), VectorDecoder(sizes.dense[::-1], space.shape[0])
    shrink = math.prod(sizes.strides)
    if len(space.shape) != 3 or space.shape[0] % shrink or space.shape[1] % shrink:
        raise BadRequest(
            f"world.encoder=conv needs pictures whose sides are multiples of {shrink}, observations have shape "
            f"{space.shape}: take world.encoder=mlp or other world.strides"
        )
    common = (sizes.channels, sizes.strides, sizes.kernel, sizes.norm, jnp.dtype(sizes.precision))
    return PictureEncoder(*common), PictureDecoder(space.shape, *common)
