"""Which episodes an evaluation counts."""

import jax
import jax.numpy as jnp
import pytest

from engram.agents.common.evaluation import play_episodes

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
