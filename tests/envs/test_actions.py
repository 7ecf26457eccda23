"""Actions of emulators: any shape and kind as one vector, scaled by its bounds, rounded where it has whole numbers."""

from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from engram.agents.common.distributions import DiagonalGaussian, gaussian, head_size
from engram.agents.ppo.networks import ActorCritic
from engram.envs.host.gymnasium_spaces import action_to_gymnasium, convert_action
from engram.envs.registry import make_vector
from engram.envs.spaces import Box, MultiDiscrete
from engram.envs.vector import action_scale
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, PreviousAction
from engram.errors import BadRequest
from engram.memory import make_memory

SPACES = {
    "tall": spaces.Box(0.0, 100.0, (2, 3), np.float32),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "integer": spaces.Box(-10, 10, (2,), np.int32),
    "bytes": spaces.Box(0, 255, (2,), np.uint8),
    "boxes": spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Tuple([spaces.Box(0, 9, (1,), np.int64)])}),
    "integers": spaces.Tuple(
        [spaces.Discrete(3, start=1), spaces.MultiDiscrete(np.array([[2, 4], [5, 6]])), spaces.MultiBinary(2)]
    ),
}


class Echo(gymnasium.Env):
    """Keeps the actions that it gets."""

    got: ClassVar[list] = []

    def __init__(self, of="tall"):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (1,), np.float32), SPACES[of]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.got.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


gymnasium.register("Echo-v0", "tests.envs.test_actions:Echo")


@pytest.mark.parametrize("name", SPACES)
def test_every_action_of_the_flat_view_is_a_member_of_the_space(name):
    env = make_vector(f"gymnasium/Echo-v0?of={name}&disable_env_checker=true", 2)
    flat = env.action_space(None)
    assert isinstance(flat, MultiDiscrete if name == "integers" else Box)
    head_size(flat)
    Echo.got.clear()
    actions = jax.vmap(flat.sample)(jax.random.split(jax.random.key(0), 2))
    *_, info = jax.jit(env.step, static_argnums=3)(
        jax.random.key(0), env.reset(jax.random.key(0), None)[1], actions, None
    )
    assert len(Echo.got) == 2
    for row, got in zip(np.asarray(info["executed"]), Echo.got, strict=True):
        want = jax.tree.map(lambda x: x[0], action_to_gymnasium(SPACES[name], row[None]))
        jax.tree.map(np.testing.assert_array_equal, want, got)


def test_parts_keep_their_place_and_their_bounds():
    assert convert_action(SPACES["boxes"]) == Box((-1.0, -1.0, 0.0), (1.0, 1.0, 9.0), (3,))
    assert convert_action(SPACES["integers"]) == MultiDiscrete((3, 2, 4, 5, 6, 2, 2))
    first, second, bits = action_to_gymnasium(SPACES["integers"], np.array([[2, 1, 3, 4, 5, 0, 1]], np.int32))
    assert (first, second.tolist(), bits.tolist()) == (3, [[[1, 3], [4, 5]]], [[0, 1]])
    with pytest.raises(BadRequest, match="no policy for the action space"):
        head_size(convert_action(spaces.Tuple([spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,))])))


def test_whole_numbers_are_rounded_and_shown_as_they_were_executed():
    env = PreviousAction(FlattenObservation(EpisodeStatistics(make_vector("gymnasium/Echo-v0?of=integer", 2))))
    Echo.got.clear()
    params = env.default_params
    actions = jnp.array([[-1.7, 1.7], [40.0, 0.4]])
    obs, *_ = env.step(jax.random.key(0), env.reset(jax.random.key(0), params)[1], actions, params)
    np.testing.assert_array_equal(Echo.got, [[-2, 2], [10, 0]])
    np.testing.assert_allclose(obs[:, 1:3], [[-0.2, 0.2], [1.0, 0.0]], rtol=1e-6)


def test_a_new_policy_covers_its_bounds():
    """A standard normal in units of the half width leaves the bounds in 0.317 of the draws, as at [-1, 1]."""
    space = Box((0.0, -0.01, -1.0, 0.0), (100.0, 0.01, 1.0, np.inf), (4,))
    policy = gaussian(space, jnp.zeros((20_000, 4)), jnp.zeros(4))
    draws = np.asarray(policy.sample(jax.random.key(0)))
    beyond = (draws < space.low) | (draws > space.high)
    np.testing.assert_allclose(beyond.mean(axis=0), [0.317, 0.317, 0.317, 0.5], atol=0.015)
    np.testing.assert_allclose(draws[:, 0].mean(), 50.0, atol=1.5)
    plain = Box(-2.0, 2.0, (1,))
    assert action_scale(plain) is None
    assert gaussian(plain, jnp.ones(1), jnp.zeros(1)) == DiagonalGaussian(jnp.ones(1), jnp.zeros(1))


def test_random_actions_know_bounds_and_their_absence():
    space = Box((0.0, -np.inf, 5.0, -np.inf), (5000.0, np.inf, np.inf, 7.0), (4,))
    draws = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose(draws.mean(axis=0), [2500.0, 0.0, 6.0, 6.0], rtol=0.02, atol=0.03)
    np.testing.assert_allclose(draws.std(axis=0), [5000 / 12**0.5, 1.0, 1.0, 1.0], rtol=0.05)
    assert draws[:, 2].min() >= 5
    assert draws[:, 3].max() <= 7


@pytest.mark.parametrize(("high", "name"), [(2.0, "log_std"), (100.0, "log_std_scaled")])
def test_checkpoints_of_policies_that_were_not_scaled_do_not_fit_those_that_are(high, name):
    network = ActorCritic(make_memory("none", 4), Box(-high, high, (2,)), (), (), "tanh", 1.0)
    keys = jax.random.key(0), network.initial_state(1), jnp.zeros((1, 1, 3)), jnp.ones((1, 1), bool)
    params = jax.eval_shape(network.init, *keys)["params"]
    assert [key for key in params if key.startswith("log_std")] == [name]
