"""Wrappers against NumPy, on scripted streams with both kinds of auto-reset and on CartPole over several episodes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.base import Environment, NoParams, VectorEnvironment
from engram.envs.registry import make_vector
from engram.envs.spaces import Box, Dict, Discrete, MultiDiscrete, Space, Tuple
from engram.envs.wrappers import (
    EpisodeStatistics,
    FlattenObservation,
    MaskObservation,
    NoiseObservation,
    NormaliseObservation,
    NormaliseReward,
    PreviousAction,
    TimeLimit,
    flat_size,
    flatten,
    vector_space,
)

STEPS, NUM_ENVS = 60, 3


class Scripted(VectorEnvironment):
    """Plays back a stream drawn in NumPy, with same-step auto-reset or, like emulators, with dummy rows."""

    num_envs = NUM_ENVS

    @property
    def name(self):
        return "Scripted"

    @property
    def default_params(self):
        return NoParams()

    def __init__(self, next_step: bool, actions: Space | None = None, observations: Box | None = None, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.actions = actions or Discrete(3)
        self.observations = observations or Box(-np.inf, np.inf, (2,))
        shape = (STEPS + 1, NUM_ENVS, *self.observations.shape)
        if self.observations.dtype == "uint8":
            self.obs, self.final = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 256, shape, np.uint8)
        else:
            # Far from zero, where a naive variance loses its digits in float32.
            self.obs, self.final = (rng.normal([300.0, -0.5], [1.0, 0.01], shape).astype(np.float32) for _ in range(2))
        self.reward = rng.normal(1.0, 2.0, (STEPS, NUM_ENVS)).astype(np.float32)
        ends = rng.random((STEPS, NUM_ENVS)) < 0.2
        self.valid = np.ones_like(ends)
        if next_step:
            for t in range(1, STEPS):
                ends[t] &= ~ends[t - 1]
                self.valid[t] = ~ends[t - 1]
            self.reward[~self.valid] = 100.0  # of no step: whoever counts it is found out
        self.reset_rows = ~self.valid if next_step else ends
        cut = rng.random(ends.shape) < 0.5
        self.terminated, self.truncated = ends & ~cut, ends & cut
        done_here = ends[..., *([None] * (self.obs.ndim - 2))] & (not next_step)
        self.final = np.where(done_here, self.final[:-1], self.obs[1:])

    def reset(self, key, params):
        return jnp.asarray(self.obs[0]), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        t = state
        info = {
            "reset": jnp.asarray(self.reset_rows)[t],
            "valid": jnp.asarray(self.valid)[t],
            "final_observation": jnp.asarray(self.final)[t],
        }
        flags = jnp.asarray(self.terminated)[t], jnp.asarray(self.truncated)[t]
        return jnp.asarray(self.obs)[t + 1], t + 1, jnp.asarray(self.reward)[t], *flags, info

    def observation_space(self, params):
        return self.observations

    def action_space(self, params):
        return self.actions

    def max_steps(self, params):
        return None


def play(env, actions, params=None, key=0):
    """First observation, last state, and per step `(obs, reward, terminated, truncated, info)` of `actions[T, B]`."""
    params = env.default_params if params is None else params

    @jax.jit
    def run(key, actions):
        first, state = env.reset(key, params)

        def one(state, inputs):
            obs, state, *rest = env.step(*inputs[:1], state, inputs[1], params)
            return state, (obs, *rest)

        keys = jax.random.split(jax.random.fold_in(key, 1), len(jax.tree.leaves(actions)[0]))
        return first, *jax.lax.scan(one, state, (keys, actions))

    return jax.tree.map(np.asarray, run(jax.random.key(key), actions))


def script_actions(env) -> Any:
    return jax.vmap(jax.vmap(env.action_space(env.default_params).sample))(
        jax.random.split(jax.random.key(9), (STEPS, NUM_ENVS))
    )


@pytest.mark.parametrize("next_step", [False, True])
def test_episode_statistics_add_up_raw_rewards_of_valid_steps(next_step):
    script = Scripted(next_step)
    env = EpisodeStatistics(script)
    *_, info = play(env, script_actions(env))[2]
    done = script.terminated | script.truncated
    np.testing.assert_array_equal(info["episode_done"], done)
    for b in range(NUM_ENVS):
        start = 0
        for t in np.flatnonzero(done[:, b]):
            rows = slice(start, t + 1)
            assert info["episode_length"][t, b] == script.valid[rows, b].sum()
            earned = script.reward[rows, b][script.valid[rows, b]].sum()
            np.testing.assert_allclose(info["episode_return"][t, b], earned, rtol=1e-5, atol=1e-5)
            start = t + 1
        assert start > 5


def test_flatten_encodes_every_space():
    space = Dict(
        (
            ("box", Box(-1.0, 1.0, (2, 2))),
            ("digit", Discrete(3)),
            ("pair", Tuple((MultiDiscrete((2, 4)), MultiDiscrete((3, 3))))),
        )
    )
    member = {
        "box": jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        "digit": jnp.array(2),
        "pair": (jnp.array([1, 2]), jnp.array([0, 1])),
    }
    expected = [*(1, 2, 3, 4), *(0, 0, 1), *(0, 1), *(0, 0, 1, 0), *(1, 0, 0), *(0, 1, 0)]
    flat = flatten(space, member)
    assert flat.dtype == jnp.float32
    assert flat_size(space) == len(expected)
    np.testing.assert_array_equal(flat, expected)
    batch = jax.tree.map(lambda x: jnp.stack([x, x])[:, None], member)
    np.testing.assert_array_equal(flatten(space, batch), np.tile(np.array(expected, np.float32), (2, 1, 1)))


def test_flatten_observation_leaves_pictures_alone():
    picture = Box(0, 255, (4, 4, 3), "uint8")
    script = Scripted(False, observations=picture)
    env = FlattenObservation(script)
    assert env.observation_space(NoParams()) == picture
    first, _, (obs, *_) = play(env, script_actions(env))
    assert first.dtype == obs.dtype == np.uint8
    np.testing.assert_array_equal(obs, script.obs[1:])


ACTIONS = {
    "discrete": (Discrete(3), 3, lambda a: np.eye(3)[a]),
    "multi": (MultiDiscrete((2, 3)), 5, lambda a: np.concatenate([np.eye(2)[a[..., 0]], np.eye(3)[a[..., 1]]], -1)),
    "box": (Box((-1.0, -0.5), (1.0, 0.5), (2,)), 2, lambda a: np.clip(a, [-1.0, -0.5], [1.0, 0.5])),
    "matrix": (Box(-1.0, 1.0, (2, 2)), 4, lambda a: np.clip(a, -1.0, 1.0).reshape(*a.shape[:2], 4)),
}


@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("kind", ACTIONS)
def test_previous_action_on_every_row(kind, next_step):
    space, width, encode = ACTIONS[kind]
    script = Scripted(next_step, actions=space)
    env = PreviousAction(script, reward=True)
    assert env.observation_space(NoParams()) == vector_space(2 + width + 2)
    actions = script_actions(env)
    actions = 2 * actions if isinstance(space, Box) else actions
    first, _, (obs, reward, *_, info) = play(env, actions)

    opening = np.array([0.0] * (width + 1) + [1.0])
    np.testing.assert_array_equal(first, np.concatenate([script.obs[0], np.tile(opening, (NUM_ENVS, 1))], -1))
    taken = np.concatenate([encode(np.asarray(actions)), reward[..., None], np.zeros((STEPS, NUM_ENVS, 1))], -1)
    np.testing.assert_allclose(info["final_observation"], np.concatenate([script.final, taken], -1), rtol=1e-6)
    shown = np.where(script.reset_rows[..., None], opening, taken)
    np.testing.assert_allclose(obs, np.concatenate([script.obs[1:], shown], -1), rtol=1e-6)
    assert script.reset_rows.sum() > 10


def test_previous_action_beside_a_picture():
    script = Scripted(True, observations=Box(0, 255, (4, 4, 3), "uint8"))
    env = PreviousAction(FlattenObservation(script))
    space = env.observation_space(NoParams())
    assert space == Dict((("extra", vector_space(4)), ("image", script.observations)))
    actions = script_actions(env)
    first, _, (obs, *_, info) = play(env, actions)
    np.testing.assert_array_equal(first["extra"], [[0, 0, 0, 1]] * NUM_ENVS)
    np.testing.assert_array_equal(obs["image"], script.obs[1:])
    np.testing.assert_array_equal(info["final_observation"]["image"], script.final)
    taken = np.concatenate([np.eye(3)[np.asarray(actions)], np.zeros((STEPS, NUM_ENVS, 1))], -1)
    np.testing.assert_array_equal(info["final_observation"]["extra"], taken)
    np.testing.assert_array_equal(obs["extra"], np.where(script.reset_rows[..., None], [0, 0, 0, 1], taken))


def test_every_episode_of_cartpole_opens_with_the_flag_and_no_action():
    env = PreviousAction(FlattenObservation(EpisodeStatistics(make_vector("gymnax/CartPole-v1", 4))))
    actions = jnp.ones((100, 4), jnp.int32)
    _, _, (obs, *_, info) = play(env, actions)
    reset = info["reset"]
    assert (reset.sum(axis=0) >= 5).all()
    np.testing.assert_array_equal(obs[reset][:, 4:], np.tile([0.0, 0.0, 1.0], (reset.sum(), 1)))
    np.testing.assert_array_equal(obs[~reset][:, 4:], np.tile([0.0, 1.0, 0.0], ((~reset).sum(), 1)))
    np.testing.assert_array_equal(info["final_observation"][..., 4:], np.tile([0.0, 1.0, 0.0], (100, 4, 1)))
    assert (np.abs(obs[reset][:, :4]) <= 0.05).all()
    assert (np.abs(info["final_observation"][reset][:, 2]) > 12 * 2 * np.pi / 360).all()


def scale(x, seen):
    """`x` by mean and standard deviation of `seen`, float64."""
    seen = np.asarray(seen, np.float64)
    return np.clip((x - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-8), -10, 10)


@pytest.mark.parametrize("next_step", [False, True])
def test_normalised_observations_match_float64_over_the_stream(next_step):
    script = Scripted(next_step)
    env = NormaliseObservation(script)
    first, state, (obs, *_, info) = play(env, script_actions(env))
    seen = list(script.obs[0])
    np.testing.assert_allclose(first, scale(script.obs[0], seen), atol=2e-3)
    done = script.terminated | script.truncated
    for t in range(STEPS):
        # With dummy rows an observation returned with `done` is the final one, on which nobody acts.
        seen += [x for b, x in enumerate(script.obs[t + 1]) if not (next_step and done[t, b])]
        np.testing.assert_allclose(obs[t], scale(script.obs[t + 1], seen), atol=2e-3)
        np.testing.assert_allclose(info["final_observation"][t], scale(script.final[t], seen), atol=2e-3)
    assert state.statistics.count == len(seen)
    np.testing.assert_allclose(state.statistics.mean, np.mean(np.asarray(seen, np.float64), axis=0), rtol=1e-5)
    np.testing.assert_allclose(state.statistics.var, np.var(np.asarray(seen, np.float64), axis=0), rtol=1e-3)


@pytest.mark.parametrize("next_step", [False, True])
def test_rewards_are_scaled_by_the_running_deviation_of_the_return(next_step):
    script = Scripted(next_step)
    env = NormaliseReward(script, discount=0.9)
    _, state, (_, reward, *_) = play(env, script_actions(env))
    seen, running = [], np.zeros(NUM_ENVS)
    for t in range(STEPS):
        for b in np.flatnonzero(script.valid[t]):
            running[b] = 0.9 * running[b] + script.reward[t, b]
            seen.append(running[b])
        expected = np.clip(script.reward[t] / np.sqrt(np.var(seen) + 1e-8), -10, 10)
        np.testing.assert_allclose(reward[t], expected, rtol=1e-3)
        running[script.terminated[t] | script.truncated[t]] = 0.0
    np.testing.assert_allclose(state.statistics.var, np.var(seen), rtol=1e-4)


def test_evaluation_uses_the_statistics_of_training_and_leaves_them():
    def wrapped(script):
        return NormaliseReward(PreviousAction(NormaliseObservation(EpisodeStatistics(script))))

    raw = Scripted(False, seed=1)
    training, evaluation = wrapped(Scripted(False, seed=0)), wrapped(raw)
    actions = script_actions(training)
    _, trained, _ = play(training, actions)
    statistics = training.env_state(trained).statistics
    params = evaluation.evaluation_params(trained, evaluation.default_params)
    first, state, (obs, reward, *_) = play(evaluation, actions, params)

    def frozen(x):
        return np.clip((x - statistics.mean) / np.sqrt(statistics.var + 1e-8), -10, 10)

    np.testing.assert_allclose(first[:, :2], frozen(raw.obs[0]), atol=1e-5)
    np.testing.assert_allclose(obs[..., :2], frozen(raw.obs[1:]), atol=1e-5)
    deviation = np.sqrt(trained.statistics.var + 1e-8)
    np.testing.assert_allclose(reward, np.clip(raw.reward / deviation, -10, 10), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, evaluation.env_state(state).statistics, statistics)


def test_mask_keeps_the_entries_named():
    script = Scripted(False, observations=Box(-1.0, 1.0, (2,)))
    kept = MaskObservation(script, (1,))
    first, _, (obs, *_, info) = play(kept, script_actions(kept))
    assert kept.observation_space(NoParams()) == vector_space(1)
    np.testing.assert_array_equal(first, script.obs[0][:, 1:])
    np.testing.assert_array_equal(obs, script.obs[1:][..., 1:])
    np.testing.assert_array_equal(info["final_observation"], script.final[..., 1:])
    with pytest.raises(ValueError, match="width 2"):
        MaskObservation(script, (2,))


def test_noise_has_its_deviation_and_is_shared_with_the_final_observation():
    script = Scripted(False)
    env = NoiseObservation(script, 0.5)
    first, _, (obs, *_, info) = play(env, script_actions(env))
    noise = np.concatenate([(first - script.obs[0])[None], obs - script.obs[1:]])
    count = noise.size
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(count)
    assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * count)
    assert len(np.unique(noise.round(3))) > 0.7 * count
    np.testing.assert_allclose(info["final_observation"] - script.final, noise[1:], atol=1e-4)
    other = play(env, script_actions(env), key=1)[2][0]
    assert np.abs(other - obs).min() > 0


@pytest.mark.parametrize("wrap", [PreviousAction, NormaliseObservation, lambda env: NoiseObservation(env, 1.0)])
def test_wrappers_that_need_vectors_say_so(wrap):
    with pytest.raises(ValueError, match="FlattenObservation"):
        wrap(Scripted(False, observations=Box(-1.0, 1.0, (2, 2))))


def test_time_limit_truncates_and_never_terminates():
    @dataclass(frozen=True)
    class EndsAtFive(Environment):
        def reset(self, key, params):
            return jnp.zeros(1), jnp.zeros((), jnp.int32)

        def step(self, key, state, action, params):
            return jnp.zeros(1), state + 1, jnp.float32(1), state + 1 == 5, jnp.array(False), {}

        def max_steps(self, params):
            return 5

    for limit, flags in ((3, (False, True)), (5, (True, True)), (9, (True, False))):
        env = TimeLimit(EndsAtFive(), limit)
        _, state = env.reset(jax.random.key(0), None)
        assert env.max_steps(None) == min(limit, 5)
        for _ in range(min(limit, 5) - 1):
            _, state, _, terminated, truncated, _ = env.step(jax.random.key(0), state, 0, None)
            assert not terminated
            assert not truncated
        _, state, _, terminated, truncated, _ = env.step(jax.random.key(0), state, 0, None)
        assert (bool(terminated), bool(truncated)) == flags
