"""From experiments to agents on Atari: every memory, and evaluations in another environment than training."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from engram.agents.drama.experiment import DramaExperiment
from engram.agents.ppo.experiment import PPOExperiment
from engram.agents.registry import build
from engram.configs.presets import PRESETS
from engram.memory import MEMORIES

PRESET = PRESETS["ppo-atari"]
assert isinstance(PRESET, PPOExperiment)
SMALL = replace(PRESET, ppo=replace(PRESET.ppo, num_envs=4, num_steps=8, eval_envs=1))


FAST = ("attention", "mamba2", "s5")  # states of integers, of two parts, and of complex numbers


@pytest.mark.parametrize(
    "memory", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(MEMORIES)]
)
def test_ppo_takes_pictures_with_every_memory_and_keeps_them_as_bytes(memory):
    agent = build(replace(SMALL, memory=memory))
    key = jax.random.key(0)
    state = jax.eval_shape(agent.init, key)
    _, rollout = jax.eval_shape(agent._collect, state, key)  # type: ignore[attr-defined]
    picture = rollout.obs["image"]
    assert (picture.shape, picture.dtype) == ((8, 4, 64, 64, 3), np.uint8)
    after, metrics = jax.eval_shape(agent.update, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert "loss/total" in metrics
    agent.close()


@pytest.mark.parametrize("experiment", [SMALL, DramaExperiment(env="")])
def test_evaluations_have_their_own_options(experiment):
    """Asterix moves at once, so games that open after different numbers of no-ops look different."""
    name = experiment.agent
    more = {"eval_episodes": 4, "prefill": 2000} if name == "drama" else {}
    settings = replace(getattr(experiment, name), num_envs=4, eval_envs=4, **more)
    experiment = replace(
        experiment, env="atari/Asterix?max_episode_steps=7", eval_env="?noop_max=30", **{name: settings}
    )
    agent = build(experiment)

    def openings(env):
        pictures = jax.tree.leaves(env.reset(jax.random.key(0), env.default_params)[0])[-1]
        return len(np.unique(pictures, axis=0))

    assert openings(agent.env) == 1
    assert openings(agent.eval_env) > 1  # type: ignore[attr-defined]
    assert agent.env.max_steps(agent.env.default_params) == 7
    assert agent.eval_env.max_steps(agent.eval_env.default_params) == 27_000  # type: ignore[attr-defined]
    agent.close()


def test_which_environment_evaluates():
    experiment = replace(SMALL, env="atari/Pong?reward_clip=true", eval_env="?noop_max=30")
    assert experiment.evaluated == "atari/Pong?noop_max=30"
    assert replace(experiment, env="atari/Qbert").evaluated == "atari/Qbert?noop_max=30"
    assert replace(experiment, eval_env="").evaluated == "atari/Pong?reward_clip=true"
    assert replace(experiment, eval_env="?").evaluated == "atari/Pong"
    assert replace(experiment, eval_env="atari/Freeway").evaluated == "atari/Freeway"
