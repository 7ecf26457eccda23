"""Switching tabular MDPs against their arrays: segments, next states, rewards, instances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.spaces import Discrete
from engram.envs.tabular.switching import (
    NAMES,
    Grid,
    RandomChanges,
    RandomMDP,
    RiverSwim,
    SwitchingMDP,
    from_arrays,
    optimal_gain,
)

ONE_WAY = np.array([[[0.4, 0.3, 0.3]], [[0.4, 0.3, 0.3]], [[0.0, 0.0, 1.0]]])
"""From everywhere to state 2, and never back."""


def rollout(env, actions, uniforms, key=0):
    def one(state, now):
        obs, state, reward, terminated, truncated, info = env.transition(state, *now, env.default_params)
        return state, (obs, reward, terminated | truncated, info["segment"], info["mean_reward"])

    obs, state = env.reset(jax.random.key(key), env.default_params)
    return obs, jax.jit(lambda: jax.lax.scan(one, state, (actions, uniforms)))()


@pytest.mark.parametrize("rewards", ["bernoulli", "mean"])
def test_steps_follow_the_arrays(rewards):
    rng = np.random.default_rng(0)
    kernels, means = rng.dirichlet(np.ones(3), (3, 3, 2)), rng.uniform(size=(3, 3, 2))
    env = from_arrays(kernels, means, (10, 25), rewards)
    actions, uniforms = rng.integers(0, 2, 60).astype(np.int32), rng.uniform(size=(60, 2))
    with jax.enable_x64(True):
        obs, (state, steps) = rollout(env, actions, uniforms)
        obs_after, reward, ended, segment, mean = map(np.asarray, steps)
    assert not ended.any()
    np.testing.assert_array_equal(segment, [0] * 10 + [1] * 15 + [2] * 35)
    assert int(state.t) == 60
    position = int(obs)
    assert position == 0
    for t in range(60):
        m = means[segment[t], position, actions[t]]
        assert abs(mean[t] - m) < 1e-12
        assert abs(reward[t] - (float(uniforms[t, 1] < m) if rewards == "bernoulli" else m)) < 1e-12
        position = int(np.sum(np.cumsum(kernels[segment[t], position, actions[t]])[:-1] <= uniforms[t, 0]))
        assert obs_after[t] == position


def test_a_uniform_of_almost_one_stays_in_range():
    env = from_arrays(np.full((1, 3, 1, 3), 1 / 3), np.zeros((1, 3, 1)))
    _, (_, (obs, *_)) = rollout(env, np.zeros(1, np.int32), np.full((1, 2), 1 - 2**-24, np.float32))
    assert obs[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_named_environments(name):
    env = NAMES[name](changes="50,90")
    assert isinstance(env, SwitchingMDP)
    for key in range(3):
        _, state = env.reset(jax.random.key(key), env.default_params)
        S, A = env.num_states, env.num_actions
        assert state.kernels.shape == (3, S, A, S)
        assert state.means.shape == (3, S, A)
        np.testing.assert_allclose(state.kernels.sum(-1), 1, atol=1e-5)
        assert (state.kernels >= 0).all()
        assert ((state.means >= 0) & (state.means <= 1)).all()
        np.testing.assert_array_equal(state.starts, [0, 50, 90])
        assert not np.array_equal(state.kernels[0], state.kernels[1])
        assert env.observation_space(env.default_params) == Discrete(S)
        assert env.action_space(env.default_params) == Discrete(A)
        assert env.max_steps(env.default_params) is None
        gains = jax.vmap(optimal_gain)(state.kernels, state.means)
        assert ((gains > 0.004) & (gains <= 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_instances_follow_the_key_or_the_seed(name):
    options = {"change": "redraw"} if name == "RiverSwim" else {}

    def kernels(key, **more):
        env = NAMES[name](changes="50", **options, **more)
        return np.asarray(env.reset(jax.random.key(key), env.default_params)[1].kernels)

    np.testing.assert_array_equal(kernels(0), kernels(0))
    assert not np.array_equal(kernels(0), kernels(1))
    np.testing.assert_array_equal(kernels(0, instance_seed=5), kernels(1, instance_seed=5))
    assert not np.array_equal(kernels(0, instance_seed=5), kernels(0, instance_seed=6))


def test_random_changes():
    """Inside the horizon, no segment below the minimum, and both extremes of a tight case occur."""
    changes = jax.vmap(RandomChanges(3, 10, 42).draw)(jax.vmap(jax.random.key)(jnp.arange(200)))
    edges = np.c_[np.zeros(200), changes, np.full(200, 42)]
    assert (np.diff(edges) >= 10).all()
    assert set(np.asarray(changes)[:, 0]) == {10, 11, 12}
    env = RandomMDP(random_changes=14, minimal_segment=1000, horizon=50_000)
    starts = env.reset(jax.random.key(0), env.default_params)[1].starts
    assert starts.shape == (15,)
    assert starts[0] == 0


def test_river_swim():
    """The table of Strehl and Littman; at a change left and right swap, or only the current changes."""
    env = RiverSwim(changes="10,20")
    state = env.reset(jax.random.key(0), env.default_params)[1]
    right = np.array([[0.4, 0.6, 0], [0.05, 0.6, 0.35], [0, 0.05, 0.6]])
    np.testing.assert_allclose(state.kernels[0, :3, 1, :3], right, atol=1e-6)
    np.testing.assert_allclose(state.kernels[0, 5, 1], [0, 0, 0, 0, 0.4, 0.6], atol=1e-6)
    np.testing.assert_array_equal(state.kernels[0, :, 0].argmax(-1), [0, 0, 1, 2, 3, 4])
    assert float(state.means[0, 0, 0]) == np.float32(0.005)
    assert float(state.means[0, 5, 1]) == 1.0
    assert float(state.means[0].sum()) == np.float32(1.005)
    np.testing.assert_array_equal(state.kernels[1], state.kernels[0][:, ::-1])
    np.testing.assert_array_equal(state.means[1], state.means[0][:, ::-1])
    np.testing.assert_array_equal(state.kernels[2], state.kernels[0])
    redrawn = RiverSwim("redraw", changes="10,20").reset(jax.random.key(0), env.default_params)[1]
    np.testing.assert_array_equal(redrawn.kernels[0], state.kernels[0])
    ahead = redrawn.kernels[:, 2, 1, 3]
    assert ((ahead[1:] >= 0.2) & (ahead[1:] < 0.6)).all()
    with jax.enable_x64(True):
        exact = RiverSwim().reset(jax.random.key(0), env.default_params)[1]
        law = np.linalg.matrix_power(np.asarray(exact.kernels[0, :, 1]), 10_000)[0]
        gain = optimal_gain(exact.kernels[0], exact.means[0])
    np.testing.assert_allclose(gain, law[5], rtol=1e-9)  # always right is best


def test_every_cell_of_a_grid_is_reached():
    for size in (2, 3, 5):
        env = Grid(size, walls=1.0, slip=0.0, changes=tuple(range(1, 12)))
        state = env.reset(jax.random.key(size), env.default_params)[1]
        goals = set()
        for kernel, means in zip(np.asarray(state.kernels), np.asarray(state.means), strict=True):
            goal = int(means[:, 0].argmax())
            goals.add(goal)
            assert means.sum() == 4
            np.testing.assert_array_equal(kernel[goal, :, 0], 1)
            lazy = (kernel.mean(1) + np.eye(size * size)) / 2
            assert (np.linalg.matrix_power(lazy, 5 * size) > 0).all()
        assert len(goals) > 2
        assert 0 not in goals


def test_where_the_best_gain_depends_on_the_state_there_is_none():
    kernel, means = jnp.asarray(np.eye(2)[:, None]), jnp.asarray([[0.0], [1.0]])
    assert jnp.isnan(jax.jit(optimal_gain)(kernel, means))
    seldom = jnp.asarray([[[1 - 1e-7, 1e-7]], [[1e-7, 1 - 1e-7]]])
    assert jnp.isnan(jax.jit(optimal_gain)(seldom, means))
    often = jnp.asarray([[[0.9, 0.1]], [[0.3, 0.7]]])
    np.testing.assert_allclose(jax.jit(optimal_gain)(often, means), 0.25, rtol=1e-4)  # its share of time in state 1


def test_walls_and_slips_of_a_grid():
    """Cell 4, the middle of 3 x 3: closed in by walls left and right, open up and down; up, right, down, left."""
    for walls, targets in ((1.0, (1, 4, 7, 4)), (0.0, (1, 5, 7, 3))):
        env = Grid(3, walls=walls, slip=0.2, changes=(1, 2, 3, 4))
        state = env.reset(jax.random.key(0), env.default_params)[1]
        rooms = [k for k, m in zip(state.kernels, state.means, strict=True) if m[4, 0] == 0]
        expected = 0.8 * np.eye(9)[list(targets)] + 0.05 * np.eye(9)[list(targets)].sum(0)
        np.testing.assert_allclose(rooms[0][4], expected, atol=1e-6)
        corner = next(k for k, m in zip(state.kernels, state.means, strict=True) if m[8, 0] == 0)[8]
        np.testing.assert_allclose(corner[1, [8, 5, 7]], [0.9, 0.05, 0.05], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_arrays(np.full((1, 2, 1, 2), 0.4), np.zeros((1, 2, 1))), r"row \(0, 0, 0\) sums to 0.8"),
        (
            lambda: from_arrays(np.full((1, 2, 1, 2), 0.5), np.full((1, 2, 1), 1.5)),
            r"mean rewards must lie in \[0, 1\]",
        ),
        (lambda: from_arrays(np.full((1, 2, 1, 2), np.nan), np.zeros((1, 2, 1))), "must be a distribution"),
        (lambda: from_arrays(np.full((1, 2, 1, 3), 0.5), np.zeros((1, 2, 1))), "must fit"),
        (lambda: from_arrays(np.full((1, 2, 1, 2), 0.5), np.zeros((1, 2, 1)), (5,)), "one fewer"),
        # Two absorbing states, one of which pays: 0 or 1 a step, by where it begins.
        (
            lambda: from_arrays(np.eye(2)[None, :, None], np.array([[[0.0], [1.0]]])),
            "in segment 0 state 1 cannot be reached from state 0",
        ),
        # The second segment has a way to state 2 and none back.
        (
            lambda: from_arrays(np.stack([np.full((3, 1, 3), 1 / 3), ONE_WAY]), np.zeros((2, 3, 1)), (5,)),
            "in segment 1 state 0 cannot be reached from state 2",
        ),
        (lambda: RandomMDP(changes="8,4"), "increasing positive"),
        (lambda: RandomMDP(changes="a,4"), "changes must be steps with commas"),
        (lambda: RandomMDP(changes="4", random_changes=2), "exclude each other"),
        (lambda: RandomMDP(random_changes=60), "horizon must hold 61 segments of 1000"),
        (lambda: RandomMDP(rewards="gauss"), "rewards must be one of bernoulli, mean"),
        (lambda: RandomMDP(states=1), "states must be at least 2"),
        (lambda: RandomMDP(concentration=0.0), "concentration must be positive"),
        (lambda: RiverSwim("mirror"), "change must be swap or redraw"),
        (lambda: Grid(1), "size must be at least 2"),
        (lambda: Grid(slip=2.0), r"slip must lie in \[0, 1\]"),
    ],
)
def test_bad_requests(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
