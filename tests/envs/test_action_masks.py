"""Masks of actions: where they come from, what they may look like, and what is said where they are wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.base import VectorEnvironment
from engram.envs.datasets.recorder import Recorder
from engram.envs.registry import make_vector
from engram.envs.spaces import Box, Dict, Discrete, MultiDiscrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import (
    ActionMask,
    EpisodeStatistics,
    FlattenObservation,
    NormaliseObservation,
    NormaliseReward,
    PreviousAction,
    flatten,
)
from engram.errors import BadRequest
from engram.experiments.recording import random_player
from engram.kernels.host_call import errors_as_raised
from tests.envs.own_masks import SIZES, Ranked

ID = "gymnasium/tests.envs.own_masks:Strict-v0?disable_env_checker=true"


def random_play(env: VectorEnvironment, steps: int = 60):
    """Steps of random actions that are allowed: masks `[T, B, n]` before each, one-hot actions, rewards, info."""
    params = env.default_params
    space: Any = env.action_space(params)
    sizes = space.nvec if isinstance(space, MultiDiscrete) else (space.n,)

    def one(state, key):
        mask = env.action_mask(state)
        assert mask is not None
        noise, start, action = jax.random.uniform(key, mask.shape), 0, []
        for n in sizes:
            action.append(jnp.argmax(jnp.where(mask, noise, -1.0)[:, start : start + n], axis=1))
            start += n
        action = jnp.stack(action, axis=1) if isinstance(space, MultiDiscrete) else action[0]
        obs, state, reward, _, _, info = env.step(key, state, action, params)
        return state, (mask, flatten(space, action) > 0, reward, obs, info)

    def run(key):
        return jax.lax.scan(one, env.reset(key, params)[1], jax.random.split(key, steps))[1]

    with errors_as_raised():
        return jax.device_get(jax.block_until_ready(jax.jit(run)(jax.random.key(0))))


@pytest.mark.parametrize("give", ["info", "dict", "tuple"])
@pytest.mark.parametrize("of", SIZES)
def test_emulators_masks_are_those_of_the_observation_that_is_acted_on(give, of):
    env = ActionMask(EpisodeStatistics(make_vector(f"{ID}&give={give}&of={of}", 3)))
    assert env.observation_space(env.default_params) == Box(-1.0, 1.0, (2,))
    mask, action, _, obs, info = random_play(env)  # a forbidden action raises
    assert obs.shape == info["final_observation"].shape == (60, 3, 2)
    opens, valid = info["reset"], info["valid"]
    assert opens.sum() == 3 * 7  # 7 steps, and a row that opens the next episode
    np.testing.assert_array_equal(opens, ~valid)
    assert mask[valid].any(axis=-1).all()
    assert (mask & action)[valid].sum() == action[valid].sum()
    assert 0 < mask[valid].mean() < 1


def test_tours_that_keep_to_their_masks_visit_every_city():
    """In envpool's TSP a city that was visited is forbidden, and going there ends the tour of 20 cities."""
    env = ActionMask(EpisodeStatistics(make_vector("envpool/TSP-v1", 2)))
    mask, action, _, _, info = random_play(env, 45)
    np.testing.assert_array_equal(info["episode_length"][info["episode_done"]], 20)
    assert info["episode_done"].sum() == 2 * 2
    valid = info["valid"]
    assert (mask & action)[valid].sum() == valid.sum()
    np.testing.assert_array_equal(mask[:20].sum(axis=-1), np.repeat(np.arange(20, 0, -1)[:, None], 2, axis=1))


def test_random_play_that_is_recorded_takes_what_is_allowed_alone():
    env = Recorder(FlattenObservation(ActionMask(EpisodeStatistics(Vectorised(Ranked(), 8)))))
    tape = random_player(env).play(None, jax.random.key(0), np.ones(8, int))
    assert tape.done.sum() >= 8
    assert tape.reward.min() >= 0  # a forbidden action costs 1000
    assert {*np.unique(tape.action)} == {*range(6)}


def test_masks_pass_through_the_wrappers_of_training():
    env = FlattenObservation(ActionMask(EpisodeStatistics(Vectorised(Ranked((3, 2)), 4))))
    env = NormaliseReward(PreviousAction(NormaliseObservation(env)), 0.9)
    params = env.default_params
    obs, state = env.reset(jax.random.key(0), params)
    assert obs.shape == (4, 1 + 5 + 1)
    np.testing.assert_array_equal(env.action_mask(state), _innermost(env, state).env_state.mask)
    mask, action, reward, _, info = random_play(env)
    assert info["reset"].sum() == 4 * 7
    assert (mask | ~action).all()
    assert (reward >= 0).all()  # a forbidden action costs 1000


def _innermost(env, state):
    while not isinstance(env, Vectorised):
        state, env = env.env_state(state), env.env
    return state


def test_no_mask_is_none():
    env = NormaliseReward(FlattenObservation(EpisodeStatistics(make_vector("gymnax/CartPole-v1", 2))))
    state = env.reset(jax.random.key(0), env.default_params)[1]
    assert env.action_mask(state) is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stuck", "environment 0 at step 3 of the emulators allows no action, and its episode goes on"),
        ("missing", r"environment 0 at step 3 of the emulators gave no info\['action_mask'\]"),
        ("size", r"gave an info\['action_mask'\] of 4 entries, not of 5"),
    ],
)
def test_a_wrong_mask_of_an_emulator_is_one_line(fault, words):
    with pytest.raises(BadRequest, match=words) as error:
        random_play(ActionMask(EpisodeStatistics(make_vector(f"{ID}&fault={fault}", 2))))
    assert "\n" not in str(error.value)


def test_a_mask_that_comes_late_is_one_line():
    env = make_vector(f"{ID}&fault=late", 2)
    state, action = env.reset(jax.random.key(0), None)[1], jnp.zeros(2, jnp.int32)
    words = r"gives info\['action_mask'\] in a step, but gave none at its reset"
    with pytest.raises(BadRequest, match=words), errors_as_raised():
        jax.block_until_ready(jax.jit(lambda: env.step(jax.random.key(0), state, action, None))())


def test_a_component_without_choice_is_stuck_though_the_others_have_one():
    with pytest.raises(BadRequest, match="environment 0 at step 3 of the emulators allows no action"):
        random_play(ActionMask(EpisodeStatistics(make_vector(f"{ID}&fault=stuck&of=multi&give=dict", 2))))


class Odd(Ranked):
    """With spaces of one's own."""

    def __init__(self, mask, actions, **more):
        object.__setattr__(self, "observation_space", lambda params: Dict((("action_mask", mask), *more.items())))
        object.__setattr__(self, "action_space", lambda params: actions)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Odd(Box(0, 1, (4,)), Discrete(5), rest=Box(0, 1, (1,))), "an action_mask of 4 entries for actions of 5"),
        (Odd(Box(0, 1, (4,)), Box(0, 1, (4,)), rest=Box(0, 1, (1,))), "which needs integers as actions"),
        (Odd(Box(0, 1, (5,)), Discrete(5)), "shows nothing but its action_mask"),
    ],
)
def test_masks_that_do_not_fit_are_one_line(env, words):
    with pytest.raises(BadRequest, match=words):
        ActionMask(EpisodeStatistics(Vectorised(env, 2)))


def test_what_else_there_is_to_see_stays():
    rest = {"a": Box(0, 1, (2,)), "observation": Discrete(3)}
    env = ActionMask(EpisodeStatistics(Vectorised(Odd(Box(0, 1, (5,)), Discrete(5), **rest), 2)))
    assert env.observation_space(env.default_params) == Dict(tuple(rest.items()))
