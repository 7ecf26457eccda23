"""Which environment gave a number that is none, and when: found in the program, told by the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.registry import make_vector
from engram.envs.wrappers import OBSERVATION_FAULT, REWARD_FAULT, EpisodeStatistics
from engram.training.faults import first_fault, in_words


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("at=3", OBSERVATION_FAULT),
        ("at=10", OBSERVATION_FAULT),  # the final observation, which is shown nowhere else
        ("at=3&size=inf", OBSERVATION_FAULT),
        ("at=3&size=huge", OBSERVATION_FAULT),
        ("at=3&what=reward", REWARD_FAULT),
        ("at=3&size=large", 0),
    ],
)
def test_steps_say_what_is_not_sane(options, kind):
    env = EpisodeStatistics(make_vector(f"tests.envs.own_faults:InJax?{options}", 2))
    params = env.default_params

    def step(state, key):
        _, state, _, _, _, info = env.step(key, state, jnp.zeros(2, jnp.int32), params)
        return state, info["fault"]

    _, state = env.reset(jax.random.key(0), params)
    fault = np.asarray(jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 20))[1])
    at = int(options.split("&")[0].removeprefix("at="))
    expected = np.zeros((20, 2))
    expected[[at - 1, at + 9]] = kind
    np.testing.assert_array_equal(fault, expected)


def test_the_first_fault_is_told():
    """Chunks of three updates of four steps in five environments, seeds 7 and 8; 30 updates before."""
    fault = np.zeros((3, 2, 4, 5), np.int8)
    told: Any = jax.vmap(jax.vmap(first_fault))
    assert not np.any(told(fault))
    assert in_words(np.asarray(told(fault)), 7, 5, 30, 4) is None
    fault[2, 0, 0, 0] = fault[1, 1, 3, 1] = OBSERVATION_FAULT
    fault[1, 1, 2, 4] = REWARD_FAULT
    words = in_words(np.asarray(told(fault)), 7, 5, 30, 4)
    assert words == (
        "environment 4 of seed 8 gave a reward that is not finite or beyond 1e+09 in step 127 of its training"
    )
    alone = in_words(np.asarray(told(fault))[:, :1], 7, 5, 0, 4)
    assert alone == "environment 0 gave an observation that is not finite or beyond 1e+09 in step 9 of its training"
