"""Adapters against the packages they adapt."""

import warnings
from typing import Any

import envpool
import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.adapters.gymnax import NAMES as GYMNAX
from engram.envs.host.pool import lane_seeds
from engram.envs.registry import make, make_vector
from engram.envs.spaces import Box, Discrete
from engram.envs.wrappers import flat_size, flatten

warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")

STEPS = 120


def random_actions(env, steps=STEPS, copies=None, key=5) -> Any:
    shape = (steps, env.num_envs) if copies is None else (steps, copies, env.num_envs)
    sample = env.action_space(env.default_params).sample
    for _ in shape:
        sample = jax.vmap(sample)
    return sample(jax.random.split(jax.random.key(key), shape))


def play(env, actions, copies=None):
    """First observation and, stacked over time, `(obs, reward, terminated, truncated, info)`; with `copies`, under
    `vmap` with a second axis for the agents."""
    params = env.default_params

    def run(key, actions):
        first, state = env.reset(key, params)

        def one(state, inputs):
            obs, state, *rest = env.step(inputs[0], state, inputs[1], params)
            return state, (obs, *rest)

        keys = jax.random.split(jax.random.fold_in(key, 1), len(actions))
        return first, jax.lax.scan(one, state, (keys, actions))[1]

    key = jax.random.key(0)
    if copies is not None:
        run = jax.vmap(run, (0, 1), (0, 1))
        key = jax.random.split(key, copies)
    return jax.tree.map(np.asarray, jax.jit(run)(key, actions))


# --- gymnax


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_gymnax_equals_its_own_step_with_the_same_keys(name):
    theirs, params = gymnax.make(name)
    ours = make(f"gymnax/{name}")
    step = jax.jit(ours.step)
    obs, state = ours.reset(jax.random.key(0), params)
    their_obs, their_state = theirs.reset_env(jax.random.key(0), params)
    np.testing.assert_array_equal(obs, their_obs)
    ends = []
    for t in range(201):
        key = jax.random.fold_in(jax.random.key(1), t)
        action = ours.action_space(params).sample(key)
        _, their_state, their_reward, *their_flags, their_info = theirs.step(key, their_state, action, params)
        # gymnax keeps the first half of the key for the step and resets with the second.
        step_key, reset_key = jax.random.split(key)
        obs, state, reward, terminated, truncated, _ = step(step_key, state, action, params)
        np.testing.assert_allclose(obs, their_info["final_observation"], atol=1e-6)
        np.testing.assert_allclose(reward, their_reward, atol=1e-6)
        assert [bool(terminated), bool(truncated)] == [bool(flag) for flag in their_flags]
        if terminated | truncated:
            ends.append((t, bool(truncated)))
            _, state = ours.reset(reset_key, params)
    assert ends == [(199, True)] if name == "Pendulum-v1" else len(ends) > 3 and not any(cut for _, cut in ends)


@pytest.mark.parametrize("name", GYMNAX)
def test_gymnax_observations_are_in_their_space_and_states_keep_their_types(name):
    env = make(f"gymnax/{name}")
    params = env.default_params
    key = jax.eval_shape(lambda: jax.random.key(0))
    space: Any = env.observation_space(params)
    actions = env.action_space(params)
    obs, state = jax.eval_shape(env.reset, key, params)
    action = jax.eval_shape(actions.sample, key)
    next_obs, next_state, reward, terminated, truncated, _ = jax.eval_shape(env.step, key, state, action, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), next_state
    )
    assert obs.shape == next_obs.shape == space.shape
    assert obs.dtype == next_obs.dtype == ("int32" if isinstance(space, Discrete) else "float32")
    assert jax.eval_shape(lambda x: flatten(space, x), obs).shape == (flat_size(space),)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == ("float32", bool, bool)
    assert env.max_steps(params) == params.max_steps_in_episode


# --- brax


@pytest.mark.slow
def test_brax_stays_finite_over_many_episodes_that_open_differently():
    env = make_vector("brax/inverted_pendulum?episode_length=20", 8)
    first, (obs, reward, terminated, truncated, info) = play(env, random_actions(env, 200))
    assert np.isfinite(obs).all()
    assert np.isfinite(reward).all()
    assert np.isfinite(info["final_observation"]).all()
    # Actions beyond +-1 are clipped, so nothing but the pole's angle (0.2 rad) or the limit ends an episode.
    assert (np.abs(info["final_observation"][terminated][:, 1]) > 0.2).all()
    for b in range(8):
        ends = np.flatnonzero(info["reset"][:, b])
        lengths = np.diff(np.concatenate([[-1], ends]))
        assert lengths.max() <= 20
        np.testing.assert_array_equal(truncated[ends, b], lengths == 20)
    openings = np.concatenate([first, obs[info["reset"]]])
    assert len(np.unique(openings, axis=0)) == len(openings) > 80
    assert np.abs(openings).max() <= 0.0101


def test_brax_names_its_backend_and_refuses_others():
    assert make("brax/ant").name == "brax/ant?backend=spring"
    assert make("brax/ant").max_steps(None) == 1000
    with pytest.raises(ValueError, match="spring"):
        make("brax/ant?backend=rigid")


# --- emulators


def in_python(pool, actions, seed=None):
    """The same roll-out with the package's own Python step: `(obs, reward, terminated, truncated)` stacked."""
    first, _ = pool.reset() if seed is None else pool.reset(seed=seed)
    rows = [pool.step(action)[:4] for action in np.asarray(actions)]
    return first, tuple(np.stack(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("env_id", ["envpool/CartPole-v1", "gymnasium/CartPole-v1"])
def test_next_step_auto_reset_of_cartpole(env_id):
    env = make_vector(env_id, 4)
    first, (obs, reward, terminated, truncated, info) = play(env, random_actions(env))
    done = terminated | truncated
    assert done.sum() > 12
    assert (np.abs(first) <= 0.05).all()
    np.testing.assert_array_equal(info["valid"][1:], ~done[:-1])
    np.testing.assert_array_equal(info["reset"][1:], done[:-1])
    assert info["valid"][0].all()
    assert not info["reset"][0].any()
    assert (np.abs(obs[info["reset"]]) <= 0.05).all()
    final = info["final_observation"][done]
    assert ((np.abs(final[:, 0]) > 2.4) | (np.abs(final[:, 2]) > 0.2094)).all()
    np.testing.assert_array_equal(info["final_observation"], obs)
    assert (reward[info["valid"]] == 1).all()
    assert (reward[~info["valid"]] == 0).all()
    assert not done[~info["valid"]].any()


def test_truncation_of_a_pool_is_not_termination():
    env = make_vector("envpool/Pendulum-v1?max_episode_steps=5", 2)
    assert env.max_steps(None) == 5
    _, (_, _, terminated, truncated, info) = play(env, random_actions(env, 14))
    rows = np.tile([False] * 4 + [True, False], 3)[:14, None].repeat(2, axis=1)
    np.testing.assert_array_equal(truncated, rows)
    assert not terminated.any()
    np.testing.assert_array_equal(info["valid"].sum(axis=0), [12, 12])


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [("CartPole-v1", {}, STEPS), ("Breakout-v5", {"episodic_life": True}, 60), ("HalfCheetah-v5", {}, 30)],
)
def test_envpool_equals_its_own_python_step(name, options, steps):
    env = make_vector(f"envpool/{name}" + ("?episodic_life=true" if options else ""), 3, seed=7)
    actions = random_actions(env, steps)
    first, (obs, reward, terminated, truncated, _) = play(env, actions)
    pool = envpool.make(name, env_type="gymnasium", num_envs=3, seed=lane_seeds(7, 3), **options)
    raw_actions = np.asarray(actions, pool.action_space.dtype if actions.dtype == np.float32 else np.int32)
    expected_first, expected = in_python(pool, raw_actions)
    dtype = np.uint8 if first.dtype == np.uint8 else np.float32
    assert first.dtype == obs.dtype == dtype
    np.testing.assert_array_equal(first, expected_first.astype(dtype))
    np.testing.assert_array_equal(obs, expected[0].astype(dtype))
    np.testing.assert_array_equal(reward, expected[1].astype(np.float32))
    np.testing.assert_array_equal(terminated, expected[2])
    np.testing.assert_array_equal(truncated, expected[3])


@pytest.mark.parametrize(("name", "steps"), [("CartPole-v1", STEPS), ("Blackjack-v1", 30), ("ALE/Pong-v5", 40)])
def test_gymnasium_equals_its_own_python_step(name, steps):
    env = make_vector(f"gymnasium/{name}", 3, seed=7)
    actions = random_actions(env, steps)
    first, (obs, reward, terminated, truncated, _) = play(env, actions)
    # gymnasium's own vectorised CartPole draws in another order: compare with separate copies.
    how = "vector_entry_point" if name.startswith("ALE/") else "sync"
    seeds = lane_seeds(7, 3)
    pool = gymnasium.make_vec(name, 3, how)
    expected_first, expected = in_python(pool, actions, np.array(seeds) if name.startswith("ALE/") else seeds)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.asarray(y, x.dtype)), first, expected_first)
    if isinstance(obs, tuple):
        rows = expected[0]
        obs, expected = np.stack(obs, axis=1), (np.asarray(rows), *expected[1:])
    np.testing.assert_array_equal(obs, expected[0].astype(obs.dtype))
    np.testing.assert_array_equal(reward, expected[1].astype(np.float32))
    np.testing.assert_array_equal(terminated, expected[2])
    np.testing.assert_array_equal(truncated, expected[3])
    assert reward.dtype == np.float32


ASTERIX = pytest.param("atari/Asterix?noop_max=30", marks=pytest.mark.slow)


@pytest.mark.parametrize("env_id", ["envpool/CartPole-v1", "gymnasium/CartPole-v1", ASTERIX])
def test_agents_under_vmap_have_the_lanes_of_pools_of_their_own(env_id):
    steps = 20 if env_id.startswith("atari") else STEPS
    copied = make_vector(env_id, 3, copies=2, seed=3)
    actions = random_actions(copied, steps, copies=2)
    first, rows = play(copied, actions, copies=2)
    assert steps < STEPS or rows[2].sum() > 12
    for agent in range(2):
        alone_first, alone = play(make_vector(env_id, 3, seed=3 + agent), actions[:, agent])
        np.testing.assert_array_equal(first[agent], alone_first)
        jax.tree.map(lambda x, y, agent=agent: np.testing.assert_array_equal(x[:, agent], y), rows, alone)


@pytest.mark.parametrize("env_id", ["envpool/Pendulum-v1", "gymnasium/Pendulum-v1", ASTERIX])
def test_no_two_seeds_and_no_two_purposes_share_a_lane(env_id):
    """32 lanes of neighbouring seeds, and of pools that evaluate and continue; of Atari 30 openings could be drawn."""
    seeds = [0, 1, 2, 3, (0, 1), (1, 1), (0, 2, 1), (0, 2, 512)]

    def openings(seed):
        env = make_vector(env_id, 4, seed=seed)
        atari = env_id.startswith("atari")
        first, (obs, *_) = play(env, np.zeros((2, 4) if atari else (2, 4, 1), np.int32 if atari else np.float32))
        env.close()
        return np.asarray(obs if atari else first).reshape(-1, 4, *first.shape[1:])[0].reshape(4, -1)

    lanes = np.concatenate([openings(seed) for seed in seeds])
    assert len(np.unique(lanes, axis=0)) >= (16 if env_id.startswith("atari") else 32)


def test_lanes_of_ale_are_seeded_one_by_one():
    seeds: Any = np.array(lane_seeds(3, 2))
    assert (np.array(lane_seeds(2, 2, copies=2))[2:] == seeds).all()
    theirs, _ = gymnasium.make_vec("ale_py:ALE/Breakout-v5", 2, noop_max=30).reset(seed=seeds)
    ours, _ = play(make_vector("gymnasium/ALE/Breakout-v5?noop_max=30", 2, seed=3), np.zeros((1, 2), np.int32))
    np.testing.assert_array_equal(ours, theirs)
    assert len({*lane_seeds(0, 100, copies=50)}) == 5000


@pytest.mark.parametrize(
    ("env_id", "rewards"),
    [
        ("envpool/Asterix-v5", {0, 50}),
        ("gymnasium/ALE/Asterix-v5", {0, 1}),
        ("gymnasium/ALE/Asterix-v5?reward_clipping=false", {0, 50}),
    ],
)
def test_ale_clips_rewards_unless_told_otherwise(env_id, rewards):
    env = make_vector(env_id, 2)
    _, (_, reward, *_) = play(env, random_actions(env))
    assert set(reward.ravel()) == rewards


def test_a_lost_life_ends_the_game_of_ale():
    """With `episodic_life`. With envpool's the same game goes on, which a test of the Atari games shows."""
    pool = gymnasium.make_vec("ale_py:ALE/Breakout-v5", 1, episodic_life=True)
    seed: Any = np.array([1])
    pool.reset(seed=seed)
    lives, ended = [], []
    for _ in range(120):
        _, _, terminated, _, info = pool.step(np.ones(1, np.int64))
        lives.append(info["lives"].item())
        ended.append(terminated.item())
    pool.close()
    lost = np.flatnonzero(ended)
    assert len(lost) >= 2
    assert all((lives[t], lives[t + 1]) == (4, 5) for t in lost if t + 1 < len(lives))


@pytest.mark.parametrize("env_id", ["envpool/CartPole-v1", "gymnasium/CartPole-v1"])
def test_a_pool_repeats_itself_under_its_seed_alone(env_id):
    def run(seed):
        env = make_vector(env_id, 2, seed=seed)
        return play(env, random_actions(env, 40))

    jax.tree.map(np.testing.assert_array_equal, run(1), run(1))
    assert not np.array_equal(run(1)[0], run(2)[0])


def test_a_pool_refuses_another_number_of_agents():
    env = make_vector("envpool/CartPole-v1", 2, copies=2)
    with pytest.raises(ValueError, match="copies=3"):
        play(env, random_actions(env, 2, copies=3), copies=3)
    with pytest.raises(Exception, match="copies=1"):
        play(env, random_actions(env, 2))


def test_a_stale_state_of_a_called_back_pool_is_an_error():
    env = make_vector("gymnasium/CartPole-v1", 2)
    action = jnp.zeros(2, jnp.int32)
    _, state = env.reset(jax.random.key(0), None)
    env.step(jax.random.key(0), state, action, None)
    with pytest.raises(Exception, match="step 0 was stepped, but the pool is at step 1"):
        jax.block_until_ready(env.step(jax.random.key(0), state, action, None)[0])


def test_pools_say_what_they_are():
    env = make_vector("envpool/Pong-v5", 2)
    assert env.is_host_pool
    assert env.observation_space(None) == Box(0.0, 255.0, (4, 84, 84), "uint8")
    assert env.action_space(None) == Discrete(6)
    assert env.max_steps(None) == 27000
    assert not make_vector("gymnax/CartPole-v1", 2).is_host_pool
    with pytest.raises(ValueError, match="several players"):
        make_vector("envpool/Go9x9-v1", 2)
    with pytest.raises(ValueError, match="no_such_option"):
        make_vector("envpool/CartPole-v1?no_such_option=1", 2)
