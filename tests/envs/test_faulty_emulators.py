"""What emulators and their ids do wrong is named in one line, and spoils nothing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram import api
from engram.agents.common.distributions import head_size
from engram.envs.base import Environment, VectorEnvironment
from engram.envs.registry import make_vector
from engram.envs.spaces import Box, Dict, Discrete, MultiDiscrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, NormaliseObservation, NormaliseReward
from engram.errors import BadRequest
from engram.kernels.host_call import errors_as_raised

ID = "gymnasium/tests.envs.own_faults:Faulty-v0?disable_env_checker=true&what="


def played(env: VectorEnvironment, steps: int = 30):
    """The last state, and observations and rewards of `steps` steps."""
    params = env.default_params

    def run(key):
        def one(state, _):
            obs, state, reward, *_ = env.step(key, state, jnp.zeros(env.num_envs, jnp.int32), params)
            return state, (obs, reward)

        return jax.lax.scan(one, env.reset(key, params)[1], None, steps)

    with errors_as_raised():
        return jax.tree.map(np.asarray, jax.block_until_ready(jax.jit(run)(jax.random.key(0))))


@pytest.mark.parametrize("fault", ["nan", "large", "too large", "reward"])
def test_one_bad_number_does_not_spoil_running_statistics(fault):
    env = NormaliseReward(
        NormaliseObservation(FlattenObservation(EpisodeStatistics(make_vector(f"{ID}{fault}&at=7", 2))))
    )
    state, (obs, reward) = played(env)
    assert np.isfinite(obs).all()
    assert np.isfinite(reward).all()
    statistics = state.env_state.statistics
    assert (np.abs(statistics.mean) < 0.5).all()
    assert (statistics.var < 0.1).all()
    assert state.statistics.var < 100
    assert statistics.count >= 50


@pytest.mark.parametrize(
    ("fault", "what"), [("nan", "observation"), ("too large", "observation"), ("reward", "reward")]
)
def test_what_is_not_finite_becomes_zero_and_is_named_once(fault, what, caplog):
    _, (obs, reward) = played(make_vector(f"{ID}{fault}&at=5", 3))
    assert np.isfinite(obs).all()
    assert np.isfinite(reward).all()
    assert (obs[4, :, 1] if what == "observation" else reward[4] == 0).all() == (what == "reward")
    assert (obs[3] == 0.5).all()
    (record,) = caplog.records
    assert f"the {what} of environment 0 at step 5 of the emulators is not finite" in record.getMessage()


@pytest.mark.parametrize(("fault", "at"), [("shape", "step"), ("opening", "reset")])
def test_an_observation_of_another_shape_is_named(fault, at):
    words = r"Faulty-v0: environment 0 gave an observation of shape \(5,\), its space has shape \(4,\)"
    with pytest.raises(BadRequest, match=words):
        played(make_vector(f"{ID}{fault}", 2))


def test_what_a_step_raises_is_raised_as_it_is():
    with pytest.raises(KeyError, match="own") as error:
        played(make_vector(f"{ID}raise", 2))
    assert error.value.__cause__ is None
    assert error.traceback[-1].name == "step"


@pytest.mark.parametrize(
    ("broken", "env_id"),
    [
        ("gymnasium.envs.classic_control.CartPoleEnv.reset", "gymnasium/CartPole-v1"),
        ("tests.envs.own_faults.Faulty.reset", f"{ID}nan"),
    ],
)
def test_what_fails_without_options_or_in_a_module_of_the_users_is_a_defect(broken, env_id, monkeypatch):
    def reset(self, *args, **kwargs):
        raise KeyError("a defect")

    monkeypatch.setattr(broken, reset)
    with pytest.raises(KeyError, match="a defect"):
        make_vector(env_id, 2)


def test_a_run_whose_step_stops_iterating_says_so_as_it_was_raised(tmp_path):
    """A generator on the way would make a RuntimeError of it."""
    with pytest.raises(StopIteration, match="no more") as error:
        api.train("debug", env=f"{ID}stop", memory="none", total_steps=1024, out=tmp_path / "run", quiet=True)
    assert error.traceback[-1].name == "step"


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        (f"{ID}none&wath=nan", "has no option 'wath'"),
        ("gymnasium/CartPole-v1?sutton_barto=true", "has no option 'sutton_barto': did you mean sutton_barto_reward"),
        ("gymnasium/HalfCheetah-v2", "gymnasium-robotics"),
        ("gymnasium/FrozenLake-v1?map_name=9x9", r"fails with map_name='9x9' \(KeyError: '9x9'\)"),
        ("gymnasium/FrozenLake-v1?desc=[]", r"fails with desc=\[\] \("),
        ("gymnasium/FrozenLake-v1?success_rate=high", "fails with success_rate='high'"),
        ("gymnasium/Pendulum-v1?g=strong", "fails with g='strong'"),  # made, and fails in its first step
        ("gymnasium/CartPole-v1?render_mode=3", "render_mode"),
        ("gymnasium/ALE/Pong-v5?frameskip=fast", "frameskip"),
        ("gymnasium/ALE/Pong-v5?game=Pongo", "game"),
    ],
)
def test_what_gymnasium_cannot_make_is_one_line(env_id, words):
    with pytest.raises(BadRequest, match=words) as error:
        make_vector(env_id, 2)
    assert "\n" not in str(error.value)


WHOLE = "gymnasium/tests.envs.own_faults:Whole-v0?disable_env_checker=true"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (f"value={2**24 + 1}", "16,777,217, which agents see as 16,777,216"),
        (f"value={-(2**24) - 1}&dtype=int32", "-16,777,217, which agents see as -16,777,216"),
        (f"value={2**40 + 1}&nested=true", "1,099,511,627,777, which agents see as 1,099,511,627,776"),
        (f"value={2**24 + 2}", None),
        (f"value={2**40}", None),
        (f"value={2**24}&high={2**24}", None),
    ],
)
def test_whole_numbers_that_float32_does_not_hold_are_named_once(options, told, caplog):
    """And those that it holds are not, whatever the bounds."""
    state, _ = played(make_vector(f"{WHOLE}&{options}", 3))
    assert int(state.token) == 30
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    if told is not None:
        assert f"of environment 0 at step 5 of the emulators holds {told}: " in messages[0]
        assert "ObservationWrapper can shift them" in messages[0]


def test_whole_numbers_of_environments_in_jax_are_named_where_their_bounds_allow_too_large_ones(caplog):
    @dataclass(frozen=True)
    class Counter(Environment):
        high: int

        def observation_space(self, params):
            return Dict((("count", Box(0, self.high, (1,), "int32")),))

    FlattenObservation(Vectorised(Counter(2**24), 2))
    assert not caplog.records
    FlattenObservation(Vectorised(Counter(2**24 + 1), 2))
    (record,) = caplog.records
    assert "beyond +-16,777,216" in record.getMessage()


@pytest.mark.parametrize("space", [Discrete(2**33), MultiDiscrete((2**23, 2**23, 2))])
def test_integers_of_too_many_kinds_for_a_vector_are_one_line(space):
    @dataclass(frozen=True)
    class Ids(Environment):
        def observation_space(self, params):
            return space

    with pytest.raises(BadRequest, match="would be vectors of"):
        FlattenObservation(Vectorised(Ids(), 2))
    with pytest.raises(BadRequest, match="no policy for"):
        head_size(space)
