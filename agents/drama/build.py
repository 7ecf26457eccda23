"""From a configuration to the world-model agent, and what it can do."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.common.acting import acting
from engram.agents.common.distributions import head_size
from engram.agents.common.environments import EVALUATION, refuse_masks, refuse_mismatch
from engram.agents.common.spec import AgentSpec, Build, Dreaming, Panel, Play, Remembering
from engram.agents.drama.agent import Drama, DramaState
from engram.agents.drama.experiment import DramaExperiment, WorldSettings
from engram.envs.spaces import Box, Space
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, as_picture, is_image
from engram.errors import BadRequest
from engram.memory import Memory, make_memory
from engram.memory.projected import Projected
from engram.memory.registry import options_of
from engram.worldmodels.networks import PictureDecoder, PictureEncoder, VectorDecoder, VectorEncoder
from engram.worldmodels.twohot import TwoHot
from engram.worldmodels.world_model import WorldModel


def make_drama(config: DramaExperiment, circumstances: Build = Build()) -> Drama:
    """The world-model agent of `config`.

    Raises:
        BadRequest: unknown names or impossible combinations.
    """
    sizes, seed = config.world, circumstances.seed_for(config)
    env, eval_env = (
        EpisodeStatistics(circumstances.make_vector(env_id, n, copies=config.seeds, seed=first))
        for env_id, n, first in (
            (config.env, config.drama.num_envs, seed),
            (config.evaluated, config.drama.eval_envs, (*seed, EVALUATION)),
        )
    )
    for env_id, each in ((config.env, env), (config.evaluated, eval_env)):
        refuse_masks(env_id, each, "world models")
    refuse_mismatch(config, env, eval_env)
    space: Any = env.observation_space(env.default_params)
    if sizes.encoder == "mlp" or (as_picture(space) is not None and space.dtype == "uint8"):
        env, eval_env = FlattenObservation(env), FlattenObservation(eval_env)  # pictures with their channels last
    refuse_reconstruction(sizes, env.observation_space(env.default_params) if sizes.encoder == "conv" else space)
    head_size(env.action_space(env.default_params))  # refuses action spaces that no policy covers
    world = make_world(config.memory, sizes, env.observation_space(env.default_params))
    return Drama(env, eval_env, world, config.drama)


def memory_of(name: str, sizes: WorldSettings) -> Memory:
    """The memory of the world model. Raises BadRequest as `make_memory`."""
    memory = make_memory(
        name,
        sizes.memory_width or sizes.width,
        layers=sizes.layers,
        rms=True,
        dropout=sizes.dropout,
        **options_of(name, sizes.memory_options),
    )
    return Projected(sizes.width, memory=memory) if sizes.memory_width else memory


def make_world(memory: str, sizes: WorldSettings, space: Any) -> WorldModel:
    """The world model of observations of `space`. Raises BadRequest where they or the memory do not fit `sizes`."""
    encoder, decoder = coders(sizes, space)
    return WorldModel(
        memory=memory_of(memory, sizes),
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
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise BadRequest(f"world.encoder=mlp needs vectors, observations are of {space}")
        return VectorEncoder(sizes.dense), VectorDecoder(sizes.dense[::-1], space.shape[0])
    shrink = math.prod(sizes.strides)
    if not isinstance(space, Box):
        raise BadRequest(
            f"world.encoder=conv needs pictures alone, observations are of {space}: take world.encoder=mlp"
        )
    if len(space.shape) != 3 or space.shape[0] % shrink or space.shape[1] % shrink:
        raise BadRequest(
            f"world.encoder=conv needs pictures whose sides are multiples of {shrink}, observations have shape "
            f"{space.shape}: take world.encoder=mlp or other world.strides"
        )
    common = (sizes.channels, sizes.strides, sizes.kernel, sizes.norm, jnp.dtype(sizes.precision))
    return PictureEncoder(*common), PictureDecoder(space.shape, *common)


# ------------------------------------------------------------------------------------------------------- capabilities


def _configure(config: DramaExperiment, episodes: int, greedy: bool | None) -> DramaExperiment:
    played = {
        "eval_envs": math.gcd(config.drama.eval_envs, episodes),
        "eval_episodes": episodes,
        "eval_greedy": config.drama.eval_greedy if greedy is None else greedy,
    }
    return dataclasses.replace(config, drama=dataclasses.replace(config.drama, **played))


def _act(agent: Drama, state: DramaState, carry: tuple, key: jax.Array) -> tuple[tuple, Any, dict[str, Any]]:
    env_state, obs, reset, actor = carry
    actor, action, x = agent.act(state, actor, obs, reset, key, agent.settings.eval_greedy)
    logits: Any = agent.critic.apply({"params": state.behaviour["critic"]}, x)
    return (env_state, obs, reset, actor), action, {"memory": actor.memory, "value": TwoHot().decode(logits)}


def _shape(agent: Drama) -> tuple[int, ...]:
    """The shape of observations before they were flattened, where that is one box."""
    env = agent.eval_env.env if isinstance(agent.eval_env, FlattenObservation) else agent.eval_env
    space = env.observation_space(env.default_params)
    return space.shape if isinstance(space, Box) else (agent.world.decoder.out,)


SPEC = AgentSpec(
    experiment=DramaExperiment,
    build=make_drama,
    panels=(
        Panel("train/return", "episode return", dots="eval/return"),
        Panel("loss/reconstruction", "reconstruction loss"),
        Panel("loss/dynamics", "KL of the dynamics"),
    ),
    columns=("s5", "gru", "none"),
    play=Play(
        _configure,
        is_greedy=lambda config: config.drama.eval_greedy,
        episodes=lambda config: config.drama.eval_episodes,
        scene=lambda agent: agent.eval_env,
    ),
    acting=acting(lambda agent, obs: agent.start_acting(obs), _act),
    dreaming=Dreaming(Drama.dream, _shape),
    remembering=Remembering(
        lambda config: memory_of(config.memory, config.world), width="world.memory_width", outer="world.width"
    ),
)
