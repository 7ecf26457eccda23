"""From a configuration and a dataset to agents that learn from recorded episodes, and what they can do."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.common.environments import divide, is_emulator, refuse_masks
from engram.agents.common.spec import Acting, AgentSpec, Build, Panel, Play
from engram.agents.offline import view as data_view
from engram.agents.offline.base import OfflineAgent, OfflineState
from engram.agents.offline.bc import BC, RCBC
from engram.agents.offline.bisimulation import Bisimulation
from engram.agents.offline.cql import CQL
from engram.agents.offline.data import HostData, device_bytes, held
from engram.agents.offline.experiment import OfflineExperiment, SequenceExperiment, ValueExperiment
from engram.agents.offline.iql import IQL, IQLSettings
from engram.agents.offline.odice import ODICE
from engram.agents.offline.sequence_policy import SequenceAgent, SequencePolicy, SequenceState
from engram.agents.offline.td3bc import TD3BC
from engram.envs import datasets
from engram.envs.datasets import Episodes
from engram.envs.external import Seen
from engram.envs.spaces import has_mask
from engram.envs.wrappers import ActionMask, EpisodeStatistics, FlattenObservation, MaskObservation, Wrapper
from engram.errors import BadRequest, UnknownName
from engram.memory import make_memory
from engram.memory.mixers import make_mixer, mixer_options
from engram.memory.registry import options_of
from engram.training.statistics import summarise
from engram.training.stderr import notify

VALUE_METHODS: dict[str, type[OfflineAgent]] = {
    "bc": BC,
    "rcbc": RCBC,
    "td3bc": TD3BC,
    "iql": IQL,
    "cql": CQL,
    "odice": ODICE,
}
"""Methods that learn from recorded single steps, by the names of their settings."""
LAST = 5
"""Evaluations in the mean of the last ones."""


def load(dataset: str) -> Episodes:
    """The episodes in a file. Raises BadRequest, which says how to make that of the presets."""
    try:
        return datasets.load(dataset)
    except BadRequest as error:
        if str(error) == f"{dataset}: no such file":
            raise BadRequest(f"{error} (make_dataset.py pendulum-noise --out {dataset} makes a first one)") from None
        raise


def resolve(config: OfflineExperiment) -> OfflineExperiment:
    """`config` with the environment that its dataset is from, if it names none itself.

    Raises:
        BadRequest: the dataset cannot be read.
    """
    return config if config.env else dataclasses.replace(config, env=load(config.dataset).origin.env)


def make_environment(
    config: OfflineExperiment,
    episodes: Episodes,
    num_envs: int,
    circumstances: Build = Build(),
) -> tuple[Wrapper, Episodes]:
    """A batch of the environment that `episodes` are from, or `config` names, seen as it was recorded; and `episodes`
    with what it says of their actions, where the file does not.

    Raises:
        BadRequest: it is unknown, or does not fit the dataset.
    """
    env_id, origin = dataclasses.replace(config, env=config.env or episodes.origin.env).evaluated, episodes.origin
    if not env_id:
        raise BadRequest(f"{config.dataset} does not say which environment it is from: name it with --env")
    if is_emulator(env_id):
        raise BadRequest(
            f"{env_id} is an emulator: what learned from recorded episodes is played in JAX environments, "
            "name one with --env"
        )
    batch = circumstances.make_vector(env_id, num_envs, time_limit=origin.time_limit or 0)
    if not isinstance(config, SequenceExperiment):
        refuse_masks(env_id, batch, "value methods")
    if batch.max_steps(batch.default_params) is None:
        raise BadRequest(f"{env_id} never ends, and {config.dataset} names no time limit")
    env = EpisodeStatistics(batch)
    if has_mask(env.observation_space(env.default_params)):
        env = ActionMask(env)
    env = FlattenObservation(env)
    if origin.keep:
        env = MaskObservation(env, origin.keep)
    actions = env.action_space(env.default_params)
    episodes = data_view.fitted(episodes, actions)
    try:
        data_view.refuse_mismatch(episodes, env.observation_space(env.default_params), actions)
    except BadRequest as error:
        raise BadRequest(f"{config.dataset} does not fit {env_id}: {error}") from None
    if cut := data_view.outside(episodes):
        low, high = (np.asarray(bound).tolist() for bound in (episodes.action_low, episodes.action_high))
        notify(
            f"{config.dataset}: {cut:,} of {len(episodes.reward):,} actions lie outside of their bounds, "
            f"{low} to {high}, and are cut to these, as in environments"
        )
    return env, episodes


def make_sequence(
    config: SequenceExperiment,
    circumstances: Build = Build(),
    episodes: Episodes | None = None,
) -> SequenceAgent:
    """The sequence policy of `config`, on `episodes` if these are already there.

    Raises:
        BadRequest: unknown names or impossible combinations.
    """
    episodes = episodes or load(config.dataset)
    sizes, settings = config.mixer, config.sequence
    options = options_of(config.memory, sizes.memory_options, mixer_options)
    if config.memory == "attention":  # as far back as a window of training goes
        options = {"window": 3 * settings.context - 1, **options}
    env, episodes = make_environment(config, episodes, settings.eval_episodes, circumstances)
    view = data_view.DataView.of(episodes, settings.targets)
    policy = SequencePolicy(
        mixer=make_mixer(config.memory, sizes.width, sizes.layers, sizes.dropout, **options),
        obs_size=episodes.obs.shape[1],
        actions=episodes.num_actions or episodes.action.shape[1],
        discrete=episodes.discrete,
        max_timestep=max(int(episodes.lengths.max()), env.max_steps(env.default_params) or 0),
        span=int(episodes.lengths.max()),
        deep=sizes.deep,
        see_actions=sizes.see_actions,
        time_first=sizes.add_time == "before",
        dropout=sizes.dropout,
    )
    data = held(episodes, config.data.device_gb, config.data.chunk_gb)(episodes, view.mean, view.deviation)
    agent = SequenceAgent(env, policy, data, settings, view, total_updates=1)
    return dataclasses.replace(agent, total_updates=divide(config, agent).updates)


def make_values(
    config: ValueExperiment,
    circumstances: Build = Build(),
    episodes: Episodes | None = None,
) -> OfflineAgent:
    """The method of `config`, on `episodes` if these are already there.

    Raises:
        BadRequest: unknown names or impossible combinations.
    """
    method, sizes = VALUE_METHODS.get(config.algorithm), config.history
    if method is None:
        raise UnknownName.among("algorithm", config.algorithm, VALUE_METHODS)
    episodes = episodes or load(config.dataset)
    settings = getattr(config, config.algorithm)
    if isinstance(settings, IQLSettings) and settings.decay_steps is None:
        settings = dataclasses.replace(settings, decay_steps=config.total_steps)
    env, episodes = make_environment(config, episodes, settings.eval_episodes, circumstances)
    hold = held(episodes, config.data.device_gb, config.data.chunk_gb)
    if not config.memory:
        return method.of(episodes, env, settings, hold)
    options = options_of(config.memory, sizes.memory_options)
    memory = make_memory(config.memory, sizes.width, layers=sizes.layers, **options)
    return Bisimulation.of(episodes, env, settings, hold, memory=memory, bisimulation=config.bisimulation)


def say_where(agent: OfflineAgent | SequenceAgent, config: OfflineExperiment) -> None:
    """Says in one line where the data are while they are learned from."""
    data = agent.data
    if not isinstance(data, HostData):
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
        notify(f"{config.dataset}: {size / 1e9:.3g} GB on the device")
        return
    episodes = data.arrays.episodes
    place = (
        "in its files" if episodes.known else "in memory (make_dataset.py convert FILE NAME.engram leaves it in files)"
    )
    notify(
        f"{config.dataset}: {device_bytes(episodes) / 1e9:.3g} GB, too much for --data.device-gb "
        f"{config.data.device_gb:g}, stay on the host, {place}; updates get pieces of {config.data.chunk_gb:g} GB"
    )


# ------------------------------------------------------------------------------------------------------- capabilities


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What papers report beside the final evaluation: the mean of the last ones, and (optimistic) the greatest; and the
    normalised score of the final evaluation, where the dataset has reference returns."""
    returns = np.array([row["eval/return"] for row in rows if "eval/return" in row], float)
    scores = [row["eval/score"] for row in rows if "eval/score" in row]
    return {
        **({"eval_score": summarise(scores[-1])} if scores else {}),
        f"eval_return_last_{LAST}_mean": summarise(returns[-LAST:].mean(0).tolist()),
        "eval_return_max": summarise(np.fmax.reduce(returns).tolist()),
    }


def _play(group: Callable[[Any], str], **options: Any) -> Play:
    """How a policy plays, given which field of its configuration has the settings of the chosen method."""

    def configure(config: Any, episodes: int, greedy: bool | None) -> Any:
        if greedy is False:
            raise BadRequest(
                "what learned from recorded episodes takes the best action and has none to sample: "
                "leave out --greedy False"
            )
        name = group(config)
        return dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), eval_episodes=episodes)})

    return Play(configure, lambda config: True, lambda config: getattr(config, group(config)).eval_episodes, **options)


def _start(agent: OfflineAgent, state: OfflineState, seen: Seen, key: jax.Array) -> tuple:
    obs, env_state = agent.env.reset(key, seen)
    return env_state, obs, jnp.zeros(1), jnp.ones(1, bool), agent.start_acting(1)


def _observe(agent: OfflineAgent, state: OfflineState, carry: tuple, action: Any, seen: Seen, key: jax.Array) -> tuple:
    env_state, *_, acting = carry
    obs, env_state, reward, *_ = agent.env.step(key, env_state, action, seen)
    return env_state, obs, reward, jnp.zeros(1, bool), acting


def _act(agent: OfflineAgent, state: OfflineState, carry: tuple, key: jax.Array) -> tuple[tuple, Any, dict[str, Any]]:
    env_state, obs, reward, reset, acting = carry
    acting, action = agent.act(state.params, acting, agent.view.normalise(obs), reward, reset)
    return (env_state, obs, reward, reset, acting), agent.view.from_unit(action), {"memory": agent.memory_of(acting)}


def _choose(agent: SequenceAgent) -> tuple[Any, Any]:
    """What one episode's acting begins with, and what chooses its actions."""
    return agent.recurrent(1) if agent.settings.acting == "recurrent" else agent.windowed(1)


def _start_sequence(agent: SequenceAgent, state: SequenceState, seen: Seen, key: jax.Array) -> tuple:
    obs, env_state = agent.env.reset(key, seen)
    to_go = jnp.full(1, max(agent.view.targets) / agent.settings.return_scale)  # asked for is the highest return
    start, _ = _choose(agent)
    return env_state, obs, to_go, jnp.zeros((), jnp.int32), start


def _observe_sequence(
    agent: SequenceAgent, state: SequenceState, carry: tuple, action: Any, seen: Seen, key: jax.Array
) -> tuple:
    env_state, _, to_go, time, memory = carry
    obs, env_state, reward, *_ = agent.env.step(key, env_state, action, seen)
    return env_state, obs, to_go - reward / agent.settings.return_scale, time + 1, memory


def _act_sequence(
    agent: SequenceAgent, state: SequenceState, carry: tuple, key: jax.Array
) -> tuple[tuple, Any, dict[str, Any]]:
    env_state, obs, to_go, time, memory = carry
    _, choose = _choose(agent)
    memory, action = choose(
        state.params, memory, to_go, agent.view.normalise(obs), time, agent.env.action_mask(env_state)
    )
    # A window is [time, batch, ...], where who looks at a memory finds the batch first.
    recurrent = agent.settings.acting == "recurrent"
    shown = memory if recurrent else jax.tree.map(lambda x: x.swapaxes(0, 1), memory)
    return (env_state, obs, to_go, time, memory), action, {"memory": shown}


VALUES_SPEC = AgentSpec(
    experiment=ValueExperiment,
    build=make_values,
    panels=(
        Panel("eval/return", "return of the best actions"),
        Panel("loss/policy", "loss of the policy"),
        Panel("loss/value", "value, or its loss"),
    ),
    columns=tuple(VALUE_METHODS),
    second_choice="memory",
    resolve=resolve,
    check=say_where,
    summary=summary,
    play=_play(lambda config: config.algorithm, scene=lambda agent: agent.env),
    acting=Acting(_start, _observe, _act),
)

SEQUENCE_SPEC = AgentSpec(
    experiment=SequenceExperiment,
    build=make_sequence,
    panels=(
        Panel("eval/return", "return of the best target"),
        Panel("loss/action", "loss of the action"),
        Panel("eval/return_at_", "return achieved", targets=True),
    ),
    columns=("dm", "attention", "mamba"),
    resolve=resolve,
    check=say_where,
    summary=summary,
    play=_play(lambda config: "sequence", least=2),
    acting=Acting(_start_sequence, _observe_sequence, _act_sequence),
)
