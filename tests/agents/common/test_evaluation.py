"""Which episodes an evaluation counts."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.common.evaluation import play_episodes
from engram.envs.registry import make_vector
from engram.envs.wrappers import EpisodeStatistics

ENVS = 4


def play(time, key):
    """Environment b has episodes of b + 1 steps; the return of an episode is 10 x its length."""
    del key
    length = time % (jnp.arange(ENVS) + 1) + 1
    done = length == jnp.arange(ENVS) + 1
    return time + 1, {"episode_done": done, "episode_return": 10.0 * length, "episode_length": length}


@pytest.mark.parametrize(
    ("quota", "lengths"),
    [
        ("fixed", [1, 1, 2, 2, 3, 3, 4, 4]),
        # Ends at times 1; 1 and 2; 1 and 3; 1, 2 and 4: eight in all.
        ("first", [1, 1, 2, 1, 3, 1, 2, 4]),
    ],
)
def test_quotas(quota, lengths):
    metrics = jax.jit(lambda: play_episodes(play, 0, jax.random.key(0), ENVS, 8, 100, quota=quota))()
    assert float(metrics["eval/length"]) == sum(lengths) / 8
    assert float(metrics["eval/return"]) == 10 * sum(lengths) / 8
    assert float(metrics["eval/finished"]) == 1.0


def test_the_first_to_end_within_one_step_fill_the_quota():
    """Two end at time 3, of which one is left to count: that of the lower number."""
    one = jax.jit(lambda: play_episodes(play, 0, jax.random.key(0), ENVS, 4, 100, quota="first"))()
    assert float(one["eval/length"]) == (1 + 1 + 2 + 1) / 4


def test_a_limit_leaves_quotas_unfilled():
    metrics = jax.jit(lambda: play_episodes(play, 0, jax.random.key(0), ENVS, 4, 3))()
    assert float(metrics["eval/finished"]) == 0.75
    assert float(metrics["eval/length"]) == 2.0


@pytest.mark.parametrize(("length", "finished"), [(10_000, 1.0), (10_001, 0.0)])
def test_where_the_environment_has_no_limit_10_000_steps_are_played(length, finished):
    def play(time, key):
        del key
        time += 1
        done = jnp.full(1, time == length)
        return time, {"episode_done": done, "episode_return": jnp.ones(1), "episode_length": jnp.full(1, time)}

    metrics = jax.jit(lambda: play_episodes(play, 0, jax.random.key(0), 1, 1, None))()
    assert float(metrics["eval/finished"]) == finished


# ---------------------------------------------------------------------------------------------------------- emulators


class TenOr600(gymnasium.Env):
    """Episodes of 10 and of 600 steps by turns, the first as long as the seed says; a reward of 1 a step."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.length = 600 if seed % 2 else 10
        self.length, self.time = 610 - self.length, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == self.length, False, {}


gymnasium.register("TenOr600-v0", lambda **_: TenOr600(), max_episode_steps=200)


def play_emulators(env_id: str, lanes: int, episodes: int, options: dict) -> dict:
    """What an evaluation of random play reports."""
    pool = make_vector(env_id, lanes, **options)
    env = EpisodeStatistics(pool)
    sample = jax.vmap(env.action_space(None).sample)

    def play(state, key):
        action = sample(jax.random.split(key, lanes))
        _, state, _, _, _, info = env.step(key, state, action, None)
        return state, info

    def evaluate(key):
        return play_episodes(play, env.reset(key, None)[1], key, lanes, episodes, env.max_steps(None))

    try:
        return {name: float(value) for name, value in jax.jit(evaluate)(jax.random.key(0)).items()}
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("env_id", "options", "each", "length"),
    [
        ("gymnasium/Pendulum-v1", {"max_episode_steps": 300}, 1, 300),
        # The rows between the episodes of a lane are none of theirs.
        ("gymnasium/Pendulum-v1", {}, 2, 200),
        ("gymnasium/Pendulum-v1", {"max_episode_steps": 5}, 4, 5),
        ("gymnasium/TenOr600-v0", {"max_episode_steps": -1}, 2, 305),
        ("gymnasium/TenOr600-v0", {"max_episode_steps": 600}, 2, 305),
        ("gymnasium/TenOr600-v0", {}, 2, 105),
    ],
)
def test_every_episode_of_an_emulator_ends_within_its_limit(env_id, options, each, length):
    metrics = play_emulators(env_id, 2, 2 * each, options)
    assert (metrics["eval/finished"], metrics["eval/length"]) == (1.0, length)
    if "TenOr600" in env_id:
        assert metrics["eval/return"] == length
