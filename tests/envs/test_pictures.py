"""Pictures in observations: wherever the channels stand, in dicts and tuples, of bytes or of real numbers."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram import api
from engram.agents.common.spec import Build
from engram.agents.drama.build import make_drama
from engram.agents.ppo.build import make_ppo
from engram.agents.ppo.networks import Encoder
from engram.envs.base import VectorEnvironment
from engram.envs.spaces import Box, Dict, Discrete, Tuple
from engram.envs.wrappers import FlattenObservation, NormaliseObservation, PreviousAction, as_picture
from engram.errors import BadRequest


@dataclass(frozen=True)
class Shows(VectorEnvironment):
    """Two environments that show random members of a space."""

    space: Any
    num_envs = 2
    name: Any = "Shows"  # type: ignore[assignment]
    default_params: Any = None  # type: ignore[assignment]

    def observation_space(self, params):
        return self.space

    def action_space(self, params):
        return Discrete(3)

    def reset(self, key, params):
        return jax.vmap(self.space.sample)(jax.random.split(key, 2)), jnp.zeros(())

    def step(self, key, state, action, params):
        obs, _ = self.reset(key, params)
        no = jnp.zeros(2, bool)
        return obs, state, jnp.zeros(2), no, no, {"reset": no, "valid": ~no, "final_observation": obs}


def uint8(*shape):
    return Box(0, 255, shape, "uint8")


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (uint8(4, 84, 84), (84, 84, 4)),
        (uint8(3, 210, 160), (210, 160, 3)),
        (uint8(7, 7, 3), (7, 7, 3)),
        (uint8(84, 84), (84, 84, 1)),
        (Box(0.0, 1.0, (64, 64, 3)), (64, 64, 3)),
        (Box(-1.0, 1.0, (1, 36, 40)), (36, 40, 1)),
        (uint8(128), None),
        (uint8(4, 4), None),
        (Box(0.0, 1.0, (10, 10, 4)), None),
        (Box(-np.inf, np.inf, (64, 64, 3)), None),
    ],
)
def test_what_is_taken_for_a_picture(space, shape):
    env = FlattenObservation(Shows(space))
    flat: Any = env.observation_space(None)
    obs, _ = env.reset(jax.random.key(0), None)
    assert obs.shape == (2, *flat.shape)
    if shape is None:
        assert as_picture(space) is None
        assert len(flat.shape) == 1
        return
    assert flat == as_picture(space) == uint8(*shape)
    assert obs.dtype == jnp.uint8
    seen, shown = np.asarray(obs, float), np.asarray(Shows(space).reset(jax.random.key(0), None)[0], float)
    shown = (shown - space.low) / (space.high - space.low) * 255
    if len(space.shape) == 3 and space.shape != shape:
        shown = np.moveaxis(shown, 1, -1)
    np.testing.assert_allclose(seen, shown.reshape(seen.shape), atol=0.501)


def test_a_picture_in_a_dict_or_a_tuple_keeps_its_convolutions():
    more = Discrete(4)
    for space in (Dict((("direction", more), ("image", uint8(3, 40, 40)))), Tuple((more, uint8(40, 40, 3)))):
        env = PreviousAction(FlattenObservation(Shows(space)))
        flat: Any = env.observation_space(None)
        assert [(name, part.shape) for name, part in flat.spaces] == [("extra", (8,)), ("image", (40, 40, 3))]
        obs, state = env.reset(jax.random.key(0), None)
        after, *_ = env.step(jax.random.key(1), state, jnp.array([2, 0]), None)
        assert jax.tree.map(jnp.shape, obs) == jax.tree.map(jnp.shape, after)
        np.testing.assert_array_equal(obs["extra"][:, :4].sum(axis=1), [1, 1])
        np.testing.assert_array_equal(after["extra"][:, 4:], [[0, 0, 1, 0], [1, 0, 0, 0]])
        params = jax.eval_shape(Encoder((8,), "relu").init, jax.random.key(0), obs)["params"]
        assert params["NatureCNN_0"]["Convolution_0"]["kernel"].shape == (8, 8, 3, 32)
    alone = FlattenObservation(Shows(Dict((("image", uint8(40, 40, 3)),))))
    assert alone.observation_space(None) == uint8(40, 40, 3)


def test_several_pictures_and_what_needs_vectors_are_refused_with_the_way_out():
    two = Shows(Dict((("left", uint8(40, 40, 3)), ("right", uint8(40, 40, 3)))))
    with pytest.raises(BadRequest, match=r"2 pictures \(left, right\).*stack"):
        FlattenObservation(two).observation_space(None)
    with pytest.raises(BadRequest, match="shows pictures: leave it out"):
        NormaliseObservation(FlattenObservation(Shows(Dict((("a", Discrete(2)), ("b", uint8(40, 40, 3)))))))


@pytest.mark.parametrize("shape", [(3, 64, 64), (64, 64)])
def test_world_models_see_pictures_with_their_channels_last(shape):
    """The two agents of one world, which differ in where the channels stand, begin and see alike."""
    shown = uint8(*shape)

    def agent_in(space):
        config: Any = api.make_config("atari100k+debug", env="own/Shows")[1]
        return make_drama(config, Build(make_vector=lambda env_id, num_envs, **_: Shows(space)))

    given, last = agent_in(shown), agent_in(as_picture(shown))
    assert given.env.observation_space(None) == last.env.observation_space(None) == uint8(64, 64, len(shape) * 2 - 3)
    obs, _ = given.env.reset(jax.random.key(0), None)
    raw, _ = Shows(shown).reset(jax.random.key(0), None)
    np.testing.assert_array_equal(obs, np.moveaxis(raw, 1, -1) if len(shape) == 3 else np.asarray(raw)[..., None])
    states = [jax.eval_shape(agent.init, jax.random.key(0)) for agent in (given, last)]
    assert jax.tree.map(lambda x: x.shape, states[0]) == jax.tree.map(lambda x: x.shape, states[1])


@pytest.mark.parametrize(
    ("space", "loose"),
    [
        (uint8(128), True),
        (Dict((("ram", uint8(128)), ("more", Discrete(3)))), True),
        (Tuple((uint8(84, 84), uint8(4, 4))), True),
        (uint8(84, 84, 3), False),
        (Box(0, 3, (128,), "uint8"), False),
        (Box(0.0, 255.0, (128,)), False),
    ],
)
def test_bytes_that_are_no_picture_are_named(space, loose, capsys):
    ppo_in(space)
    assert ("bytes that are no picture, which are not scaled" in capsys.readouterr().err) == loose


def test_bytes_that_running_statistics_scale_need_no_word(capsys):
    ppo_in(uint8(128), observation__normalise=True)
    assert not capsys.readouterr().err


def ppo_in(space, **changes):
    config: Any = api.make_config("debug", env="own/Shows", **changes)[1]
    return make_ppo(config, Build(make_vector=lambda env_id, num_envs, **_: Shows(space)))
