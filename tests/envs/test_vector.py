"""Auto-reset of a batch: which rows restart, from what, and what it costs."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from engram.envs.base import Environment
from engram.envs.spaces import Box, Discrete, Space
from engram.envs.vector import Vectorised

NUM_ENVS = 12


@struct.dataclass
class CountdownState:
    left: jax.Array
    mark: jax.Array


@dataclass(frozen=True)
class Countdown(Environment):
    """Lasts `1 + draw % longest` steps and shows the steps left and a number drawn for the episode."""

    longest: int = 5
    shortest: int = 1

    def reset(self, key, params):
        left = jax.random.randint(jax.random.fold_in(key, 0), (), self.shortest, self.longest + 1)
        # Drawn as the step draws, so that a key used for both would show.
        state = CountdownState(left, jax.random.uniform(key))
        return self.observe(state), state

    def observe(self, state):
        return jnp.stack([state.left.astype(jnp.float32), state.mark])

    def step(self, key, state, action, params):
        state = CountdownState(state.left - 1, state.mark)
        drawn = jax.random.uniform(key)
        return self.observe(state), state, action[0], state.left == 0, jnp.array(False), {"drawn": drawn}

    def observation_space(self, params):
        return Box(-np.inf, np.inf, (2,))

    def action_space(self, params) -> Space:
        return Box((-1.0, -2.0), (1.0, 2.0), (2,))

    def max_steps(self, params):
        return self.longest


class CheapCountdown(Countdown):
    cheap_reset = True


class CutCountdown(Countdown):
    """The same, cut by a limit instead of ended."""

    def step(self, key, state, action, params):
        obs, state, reward, over, no, info = super().step(key, state, action, params)
        return obs, state, reward, no, over, info


def rollout(env, key, steps):
    """Keys, and for every step the observation before it and all that it returned; leaves `(steps, B, ...)`."""
    params = env.default_params
    reset_key, step_key = jax.random.split(key)
    obs, state = env.reset(reset_key, params)

    def one(carry, key):
        obs, state = carry
        next_obs, state, reward, terminated, truncated, info = env.step(key, state, jnp.ones((env.num_envs, 2)), params)
        return (next_obs, state), (obs, next_obs, reward, terminated, truncated, info)

    keys = jax.random.split(step_key, steps)
    return keys, jax.lax.scan(one, (obs, state), keys)[1]


@pytest.fixture(scope="module")
def played():
    env = Vectorised(Countdown(), NUM_ENVS)
    return env, *jax.jit(partial(rollout, env, steps=40))(jax.random.key(0))


def test_episodes_open_from_spares_that_are_made_when_one_is_needed(played):
    env, keys, (_, next_obs, _, terminated, _, info) = played
    np.testing.assert_array_equal(info["reset"], terminated)
    assert info["valid"].all()
    done = np.asarray(terminated)
    made, used, refills = np.zeros(NUM_ENVS, int), np.ones(NUM_ENVS, bool), 0
    steps, rows = [], []  # of each restart: the step that made the spare, the environment
    for t in range(len(done)):
        if (used & done[t]).any():
            made[used], refills = t, refills + 1
            used[:] = False
        used |= done[t]
        steps.extend(made[done[t]])
        rows.extend(np.flatnonzero(done[t]))
    assert len(rows) > 100
    assert refills < 30
    fresh = jax.jit(jax.vmap(lambda key, row: env.env.reset(env.reset_key(key, row), None)[0]))
    expected = fresh(keys[np.asarray(steps)], jnp.asarray(rows))
    np.testing.assert_array_equal(np.asarray(next_obs)[done], expected)


def test_final_observation_is_the_last_of_the_episode_that_ended(played):
    _, _, (obs, next_obs, _, terminated, _, info) = played
    done = np.asarray(terminated)
    final = np.asarray(info["final_observation"])
    # A step takes one off the steps left and keeps the mark, whether or not the episode ends.
    np.testing.assert_array_equal(final, np.asarray(obs) - [1.0, 0.0])
    assert (final[done][:, 0] == 0).all()
    assert (np.asarray(next_obs)[done][:, 0] > 0).all()
    np.testing.assert_array_equal(final[~done], np.asarray(next_obs)[~done])


def test_no_two_episodes_and_no_two_steps_share_their_randomness(played):
    _, _, (_, next_obs, _, terminated, _, info) = played
    marks = np.asarray(next_obs)[np.asarray(terminated)][:, 1]
    assert len(np.unique(marks)) == len(marks)
    assert len(np.unique(info["drawn"])) == info["drawn"].size
    assert not np.isin(marks, info["drawn"]).any()


@pytest.mark.parametrize(("num_envs", "kind"), [(1, Countdown), (3, Countdown), (4, Countdown), (9, CutCountdown)])
def test_all_environments_that_end_at_once_restart(num_envs, kind):
    env = Vectorised(kind(longest=3, shortest=3), num_envs)
    _, (_, next_obs, _, terminated, truncated, info) = jax.jit(partial(rollout, env, steps=6))(jax.random.key(1))
    expected = np.tile(np.array([False, False, True] * 2)[:, None], (1, num_envs))
    np.testing.assert_array_equal(truncated if kind is CutCountdown else terminated, expected)
    np.testing.assert_array_equal(info["reset"], expected)
    np.testing.assert_array_equal(next_obs[:, :, 0], np.tile(np.array([2.0, 1.0, 3.0] * 2)[:, None], (1, num_envs)))
    assert len(np.unique(next_obs[:, :, 1])) == 3 * num_envs


def test_cheap_resets_are_made_where_they_are_used_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    env = Vectorised(CheapCountdown(), NUM_ENVS)
    keys, (_, next_obs, _, terminated, _, info) = jax.jit(partial(rollout, env, steps=10))(jax.random.key(2))
    np.testing.assert_array_equal(info["reset"], terminated)
    rows = np.argwhere(np.asarray(terminated))
    fresh = jax.jit(jax.vmap(lambda key, row: env.env.reset(env.reset_key(key, row), None)[0]))
    expected = fresh(keys[rows[:, 0]], jnp.asarray(rows[:, 1]))
    np.testing.assert_array_equal(next_obs[rows[:, 0], rows[:, 1]], expected)


def test_vmap_over_seeds_equals_separate_runs():
    keys = jax.random.split(jax.random.key(3), 3)
    run = partial(rollout, Vectorised(Countdown(), NUM_ENVS), steps=12)
    together = jax.jit(jax.vmap(run))(keys)[1]
    alone = jax.jit(run)
    for seed, key in enumerate(keys):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[seed], y), together, alone(key)[1])


@pytest.mark.parametrize("seeds", [None, 2])
def test_steps_on_which_no_episode_ends_reset_nothing(seeds):
    resets = []

    class Counting(Countdown):
        def reset(self, key, params):
            obs, state = super().reset(key, params)
            jax.debug.callback(lambda mark: resets.append(float(mark)), state.mark)
            return obs, state

    env = Vectorised(Counting(longest=4, shortest=4), NUM_ENVS)
    lanes = NUM_ENVS * (seeds or 1)

    def count(steps):
        resets.clear()
        run = partial(rollout, env, steps=steps)
        key = jax.random.key(4) if seeds is None else jax.random.split(jax.random.key(4), seeds)
        jax.block_until_ready(jax.jit(run if seeds is None else jax.vmap(run))(key))
        jax.effects_barrier()
        return len(resets)

    assert count(3) == lanes
    assert count(4) == 2 * lanes


def test_the_compiler_leaves_resets_in_their_loop():
    """Loop-invariant code motion would put them into every step; a callback, as above, would not show it."""

    class Sines(Countdown):
        def reset(self, key, params):
            _, state = super().reset(key, params)
            state = CountdownState(state.left, jnp.sin(state.mark))
            return self.observe(state), state

    env = Vectorised(Sines(), NUM_ENVS)
    _, state = jax.eval_shape(env.reset, jax.random.key(0), None)
    action = jnp.ones((NUM_ENVS, 2))
    step = jax.jit(partial(env.step, params=None))
    text = step.lower(jax.random.key(0), state, action).compile().as_text() or ""
    computations, name = {}, ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            name = line.removeprefix("ENTRY ").split()[0]
            computations[name] = ""
        computations[name] += line + "\n"
    outside, todo = "", [name for name in computations if f"ENTRY {name} " in text]
    while todo:
        body = computations[todo.pop()]
        outside += body
        todo += re.findall(r"(?:calls|to_apply)=(%[\w.\-]+)", body)
    assert " while(" in outside
    assert " sine(" in text
    assert " sine(" not in outside


def test_the_state_of_a_plain_reset_can_be_donated():
    env = Vectorised(Countdown(), NUM_ENVS)
    _, state = env.reset(jax.random.key(9), None)
    step = jax.jit(partial(env.step, params=None), donate_argnums=1)
    assert step(jax.random.key(10), state, jnp.ones((NUM_ENVS, 2)))[0].shape == (NUM_ENVS, 2)


def test_box_actions_reach_the_environment_clipped():
    class Echo(Countdown):
        def step(self, key, state, action, params):
            obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
            return obs, state, reward, terminated, truncated, {**info, "action": action}

    env = Vectorised(Echo(), 2)
    _, state = env.reset(jax.random.key(5), None)
    info = env.step(jax.random.key(6), state, jnp.array([[-5.0, -1.5], [0.5, 7.0]]), None)[-1]
    np.testing.assert_array_equal(info["action"], [[-1.0, -1.5], [0.5, 2.0]])


def test_discrete_actions_pass_unchanged():
    class Digits(Countdown):
        def action_space(self, params):
            return Discrete(10)

        def step(self, key, state, action, params):
            return super().step(key, state, action[None], params)

    env = Vectorised(Digits(), 3)
    _, state = env.reset(jax.random.key(7), None)
    reward = env.step(jax.random.key(8), state, jnp.array([9, 0, 4]), None)[2]
    np.testing.assert_array_equal(reward, [9, 0, 4])
