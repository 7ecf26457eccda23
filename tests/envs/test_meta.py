"""Trials against NumPy's book-keeping; families against closed forms, dynamic programming and exhaustive search."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from engram.envs import registry
from engram.envs.meta.bandits import BanditState, BernoulliBandit, BernoulliTask, GaussianBandit, GaussianTask
from engram.envs.meta.dark_room import DarkKeyToDoor, DarkRoom, GoalTask, KeyDoorTask, SearchState, goals
from engram.envs.meta.maze import MetaMaze
from engram.envs.meta.splits import SPLITS
from engram.envs.meta.tabular import TabularMDP
from engram.envs.meta.task_switches import Switching
from engram.envs.meta.trials import Family, Trials
from engram.envs.spaces import Box, Discrete
from engram.envs.vector import Vectorised

NAMES = [
    "Bandit",
    "GaussianBandit",
    "SwitchingBandit",
    "SwitchingGaussianBandit",
    "TabularMDP",
    "DarkRoom",
    "DarkKeyToDoor",
    "MetaMaze",
]


@struct.dataclass
class ProbeState:
    total: jax.Array
    t: jax.Array


@dataclass(frozen=True)
class Probe(Family):
    """No chance in it but the task `(2,)`, so that NumPy can play it: episodes end when what was added is large."""

    cheap_reset: bool = True
    discrete: bool = False

    def draw(self, key, split):
        return jax.random.normal(key, (2,))

    def reset(self, key, params):
        return jnp.zeros(3), ProbeState(jnp.zeros(()), jnp.int32(0))

    def step(self, key, state, action, params):
        first, second = (action, 1.0 - action) if self.discrete else action
        state = ProbeState(state.total + jnp.abs(first), state.t + 1)
        reward = params[0] * first + params[1] * second
        obs = jnp.stack([state.total, state.t, second]).astype(jnp.float32)
        return obs, state, reward, state.total > 2.5, state.t >= 6, {"success": state.total > 2.5}

    def observation_space(self, params):
        return Box(-np.inf, np.inf, (3,))

    def action_space(self, params):
        return Discrete(3) if self.discrete else Box((-1.0, 0.0), (1.0, 4.0), (2,))

    def max_steps(self, params):
        return 6


ENVS, STEPS = 4, 60
VARIATIONS = {
    "plain": (Probe(), {"episodes": 3}),
    "loop": (Probe(cheap_reset=False), {"episodes": 3, "steps": 7}),
    "all": (
        Probe(cheap_reset=False),
        {
            "steps": 9,
            "project_observations": 5,
            "gain": 2.0,
            "project_actions": True,
            "flip_reward": True,
            "end_reward": -1.5,
            "time_limit": (2, 4),
        },
    ),
    "discrete": (
        Probe(discrete=True),
        {"episodes": 4, "project_observations": 2, "project_actions": True, "flip_reward": True, "time_limit": 3},
    ),
}


@functools.cache
def played(name):
    """A batch played for STEPS steps: first observation; `(state before, action)` and what the step gave, stacked."""
    family, options = VARIATIONS[name]
    env = Vectorised(Trials(family, **options), ENVS)
    params = env.default_params
    space = env.action_space(params)

    @jax.jit
    def play(key):
        def step(state, key):
            action_key, step_key = jax.random.split(key)
            action = jax.vmap(space.sample)(jax.random.split(action_key, ENVS))
            obs, after, reward, terminated, truncated, info = env.step(step_key, state, action, params)
            return after, (state.env_state, action, obs, reward, terminated, truncated, info)

        obs, state = env.reset(key, params)
        return obs, jax.lax.scan(step, state, jax.random.split(key, STEPS))[1]

    return jax.tree.map(np.asarray, play(jax.random.key(0)))


def numpy_trials(family, options, before, actions, row):
    """What should come back, step by step, for the tasks and variations that the state before each step holds."""
    low, high = np.array([-1.0, 0.0]), np.array([1.0, 4.0])
    trial = episode = length = 0
    total = ret = 0.0
    for t in range(STEPS):
        at = jax.tree.map(lambda x: x[t, row], before)
        action = actions[t, row]
        if family.discrete:
            taken = np.eye(3)[action]
            used = action if at.scramble is None else at.scramble[action]
            first, second = float(used), 1.0 - used
        else:
            taken = action
            used = action
            if at.scramble is not None:
                centre, half = (low + high) / 2, (high - low) / 2
                used = np.clip(centre + half * (at.scramble @ ((action - centre) / half)), low, high)
            first, second = used
        trial, length, total = trial + 1, length + 1, total + abs(first)
        raw = at.task @ np.array([first, second])
        ret += raw
        limit = 10**9 if at.limit is None else at.limit
        done = total > 2.5 or length >= 6 or length >= limit
        over = (options.get("steps", 0) and trial >= options["steps"]) or (
            options.get("episodes", 0) and episode + done >= options["episodes"]
        )
        again = done and not over
        seen = np.zeros(3) if again else np.array([total, length, second])
        seen = seen if at.projection is None else seen @ at.projection
        received = raw + options.get("end_reward", 0.0) * (total > 2.5)
        reward = received if at.sign is None else received * at.sign
        expected = {
            "obs": np.concatenate([seen, taken, [reward, again, 0.0]]),
            "reward": reward,
            "over": bool(over),
            "episode": episode,
            "inner_done": bool(done),
            "inner_reset": bool(again),
            "inner_return": ret,
            "inner_length": length,
        }
        if done:
            episode, length, total, ret = episode + 1, 0, 0.0, 0.0
        if over:
            trial = episode = length = 0
            total = ret = 0.0
        yield t, expected


@pytest.mark.parametrize("name", VARIATIONS)
def test_trials_are_those_that_numpy_plays(name):
    family, options = VARIATIONS[name]
    first, (before, actions, obs, reward, terminated, truncated, info) = played(name)
    width = first.shape[-1]
    layout = Trials(family, **options).layout
    assert layout["trial_start"] == slice(width - 1, width)
    for row in range(ENVS):
        ends = 0
        for t, expected in numpy_trials(family, options, before, actions, row):
            over = expected.pop("over")
            ends += over
            assert terminated[t, row] == info["reset"][t, row] == over
            np.testing.assert_allclose(info["final_observation"][t, row], expected.pop("obs"), rtol=1e-4, atol=1e-5)
            assert reward[t, row] == pytest.approx(expected.pop("reward"), rel=1e-4, abs=1e-5)
            for key, value in expected.items():
                assert info[key][t, row] == pytest.approx(value, rel=1e-4, abs=1e-5), (key, t)
            if not over:
                np.testing.assert_array_equal(obs[t, row], info["final_observation"][t, row])
        assert ends >= 3
    assert not truncated.any()
    # Where a trial opens: nothing before, both flags.
    opening = np.concatenate([first, obs[terminated]])
    np.testing.assert_array_equal(opening[:, layout["action"].start : -2], 0.0)
    np.testing.assert_array_equal(opening[:, -2:], 1.0)
    assert not obs[~terminated][:, -1].any()


@pytest.mark.parametrize("name", ["all", "discrete"])
def test_variations_are_orthogonal_fresh_for_a_trial_and_constant_inside(name):
    family, _ = VARIATIONS[name]
    _, (before, _, _, _, terminated, _, _) = played(name)
    gain, small = (2.0, 3) if name == "all" else (1.0, 2)
    projection = before.projection.reshape(-1, *before.projection.shape[2:])
    gram = projection @ projection.swapaxes(1, 2)
    if projection.shape[1] > projection.shape[2]:
        gram = projection.swapaxes(1, 2) @ projection
    np.testing.assert_allclose(gram, np.broadcast_to(gain**2 * np.eye(small), gram.shape), atol=1e-4)
    if family.discrete:
        assert np.all(np.sort(before.scramble, axis=-1) == np.arange(3))
        assert len({tuple(p) for p in before.scramble.reshape(-1, 3)}) > 3
    else:
        gram = before.scramble @ before.scramble.swapaxes(2, 3)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(2), gram.shape), atol=1e-5)
    assert set(before.sign.ravel()) == {-1.0, 1.0}
    if name == "all":
        assert set(before.limit.ravel()) == {2, 3, 4}
    for leaf in (before.task, before.projection, *([] if family.discrete else [before.scramble])):
        same = (leaf[1:] == leaf[:-1]).reshape(STEPS - 1, ENVS, -1).all(-1)
        np.testing.assert_array_equal(same, ~terminated[:-1])


def test_episodes_of_a_trial_open_alike_only_if_asked():
    @dataclass(frozen=True)
    class Chance(Probe):
        def reset(self, key, params):
            return jax.random.normal(key, (3,)), super().reset(key, params)[1]

    def openings(same):
        env = Trials(Chance(cheap_reset=not same), episodes=4, same_start=same, time_limit=1)
        step = jax.jit(env.step)
        obs, state = jax.jit(env.reset)(jax.random.key(1), env.default_params)
        seen = [obs[:3]]
        for i in range(3):
            obs, state, *_ = step(jax.random.key(10 + i), state, jnp.zeros(2), env.default_params)
            seen.append(obs[:3])
        return np.unique(np.stack(seen), axis=0)

    assert len(openings(True)) == 1
    assert len(openings(False)) == 4


def test_noise_is_independent_and_touches_the_observation_alone():
    noise, envs, steps = 0.3, 64, 20
    played = {}
    for deviation in (0.0, noise):
        env = Vectorised(Trials(Probe(), steps=steps, project_observations=5, flip_reward=True, noise=deviation), envs)

        @jax.jit
        def play(key, env=env):
            def step(state, key):
                obs, state, reward, *_ = env.step(key, state, jnp.full((envs, 2), 0.5), None)
                return state, (obs, reward)

            obs, state = env.reset(key, None)
            # One step short of the trial's end.
            later, rewards = jax.lax.scan(step, state, jax.random.split(key, steps - 1))[1]
            return jnp.concatenate([obs[None], later]), rewards

        played[deviation] = jax.tree.map(np.asarray, play(jax.random.key(2)))
    (clean, rewards), (noisy, same_rewards) = played[0.0], played[noise]
    np.testing.assert_array_equal(rewards, same_rewards)
    np.testing.assert_array_equal(clean[..., 5:], noisy[..., 5:])
    errors = (noisy - clean)[..., :5] / noise  # [steps, envs, 5]
    assert abs(errors.mean()) < 4 / np.sqrt(errors.size)
    assert abs(errors.var() - 1.0) < 4 * np.sqrt(2 / errors.size)
    for one, other in ((errors[1:], errors[:-1]), (errors[:, 1:], errors[:, :-1]), (errors[..., 1:], errors[..., :-1])):
        assert abs(np.mean(one * other)) < 4 / np.sqrt(one.size)


def test_the_same_key_gives_the_same_trial():
    env = Trials(BernoulliBandit(), episodes=5, project_observations=3, project_actions=True)
    reset = jax.jit(env.reset)
    one, same, other = (reset(jax.random.key(seed), None) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert np.any(one[1].task.means != other[1].task.means)


# ------------------------------------------------------------------------------------------------------------- leakage


@pytest.mark.parametrize("name", NAMES)
def test_all_trials_of_all_splits_open_with_one_observation(name):
    seen = []
    for split in SPLITS:
        env = registry.make(f"meta/{name}?split={split}")
        keys = jax.random.split(jax.random.key(0), 32)
        seen.append(np.asarray(jax.jit(jax.vmap(lambda key: env.reset(key, None)[0]))(keys)))
    assert len(np.unique(np.concatenate(seen), axis=0)) == 1


def test_a_probe_of_projected_first_observations_is_at_chance():
    """With a fresh projection openings differ; no linear probe finds in them which arm is best."""
    n, arms = 4000, 2
    env = Trials(BernoulliBandit(arms), episodes=5, project_observations=4, project_actions=True)
    obs, state = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(0), n), None)
    best = np.take_along_axis(np.asarray(state.scramble), np.zeros((n, 1), int), 1)[:, 0]
    best = np.asarray(state.task.means)[np.arange(n), best] > 0.5
    features = np.concatenate([np.asarray(obs)[:, :4], np.ones((n, 1))], 1)
    train, test = slice(0, n // 2), slice(n // 2, n)
    weights = np.linalg.lstsq(features[train], best[train], rcond=None)[0]
    accuracy = np.mean((features[test] @ weights > 0.5) == best[test])
    assert abs(accuracy - 0.5) < 4 * 0.5 / np.sqrt(n // 2)


# ------------------------------------------------------------------------------------------------------------- bandits


def test_bandits_draw_their_priors_and_pay_their_means():
    keys = jax.random.split(jax.random.key(0), 2000)
    moments = {"train": (1 / 2, 1 / 12), "test": (1 / 2, 1 / 12), "heldout": (1 / 4, 3 / (16 * 5))}
    for split, (mean, variance) in moments.items():
        means = np.asarray(jax.jit(jax.vmap(lambda key: BernoulliBandit(5).draw(key, split)))(keys).means)
        assert abs(means.mean() - mean) < 0.015
        assert abs(means.var() - variance) < 0.005
    arm = jnp.array([0.9, 0.2, 0.6])
    for family, task, variance in (
        (BernoulliBandit(3), BernoulliTask(arm), 0.16),
        (GaussianBandit(3), GaussianTask(arm, jnp.float32(0.5)), 0.25),
    ):
        *_, reward, terminated, _, info = jax.jit(
            jax.vmap(lambda key: family.step(key, BanditState(), jnp.int32(1), task))
        )(keys)
        assert abs(np.mean(reward) - 0.2) < 0.05
        assert abs(np.var(reward) - variance) < 0.03
        np.testing.assert_allclose(info["regret"], 0.7, rtol=1e-6)
        assert np.all(terminated)
        assert float(family.optimal_return(task)) == pytest.approx(0.9)


def test_a_trial_of_bandits_has_one_episode_a_pull():
    env = registry.make("meta/Bandit?arms=4&pulls=3")
    assert env.max_steps(env.default_params) == 3
    _, state = env.reset(jax.random.key(0), env.default_params)
    step = jax.jit(env.step)
    for t in range(3):
        _, state, _, terminated, _, info = step(jax.random.key(t), state, jnp.int32(t), env.default_params)
        assert (int(info["episode"]), bool(info["inner_done"]), bool(terminated)) == (t, True, t == 2)


# --------------------------------------------------------------------------------------------------------- tabular MDPs


def test_values_of_tabular_tasks_are_those_of_dynamic_programming():
    family = TabularMDP(states=4, actions=3, horizon=5)
    task = jax.jit(functools.partial(family.draw, split="heldout"))(jax.random.key(1))
    means, transition = np.asarray(task.means, float), np.asarray(task.transition, float)
    value = np.zeros(4)
    for h in reversed(range(5)):
        q = means + transition @ value
        np.testing.assert_allclose(task.q[h], q, rtol=1e-5, atol=1e-5)
        value = q.max(1)
    assert float(family.optimal_return(task)) == pytest.approx(value[0], rel=1e-5)

    @jax.jit
    def episodes(keys):
        def one(key):
            def step(state, key):
                step_key, action_key = jax.random.split(key)
                action = jax.random.randint(action_key, (), 0, 3)
                _, state, reward, terminated, _, info = family.step(step_key, state, action, task)
                return state, (reward, info["regret"], terminated)

            return jax.lax.scan(step, family.reset(key, task)[1], jax.random.split(key, 5))[1]

        return jax.vmap(one)(keys)

    reward, regret, terminated = (np.asarray(x) for x in episodes(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_array_equal(terminated[0], [False] * 4 + [True])
    assert np.all(regret >= -1e-5)
    # The sum of the actions' losses is, in expectation, what the policy falls short of the optimum by.
    short = value[0] - reward.sum(1)
    assert abs(short.mean() - regret.sum(1).mean()) < 4 * (short - regret.sum(1)).std() / np.sqrt(4000)


def test_priors_of_tabular_tasks():
    tasks = jax.jit(jax.vmap(lambda key: TabularMDP().draw(key, "train")))(jax.random.split(jax.random.key(0), 100))
    assert tasks.transition.shape == (100, 10, 5, 10)
    np.testing.assert_allclose(tasks.transition.sum(-1), 1.0, rtol=1e-5)
    # A flat Dirichlet over ten states: every entry is Beta(1, 9).
    assert abs(float(tasks.transition.var()) - 9 / (100 * 11)) < 3e-4
    assert abs(float(tasks.means.mean()) - 1.0) < 0.06
    assert abs(float(tasks.means.var()) - 1.0) < 0.1


# ---------------------------------------------------------------------------------------------------------------- rooms


def test_goals_of_splits_are_disjoint_and_never_the_start():
    for family, size in [("DarkRoom", s) for s in (5, 7, 9, 13)] + [("MetaMaze", s) for s in (5, 9, 13)]:
        cells = [tuple(cell) for split in SPLITS for cell in goals(family, size, split).tolist()]
        assert len(cells) == len(set(cells))
        free = np.ones((size, size), bool) if family == "DarkRoom" else MetaMaze(size=size).free
        start = tuple(DarkRoom(size).start) if family == "DarkRoom" else tuple(MetaMaze(size).start)
        assert set(cells) == {tuple(cell) for cell in np.argwhere(free).tolist()} - {start}


def walk(family, task, targets):
    """Steps and rewards of an agent that goes straight to each of `targets` and then stays."""
    position, targets, rewards = family.start.copy(), [np.asarray(t) for t in targets], []
    obs, state = family.reset(jax.random.key(0), task)
    step, info = jitted_step(family), {}
    for _ in range(family.horizon):
        while len(targets) > 1 and np.all(position == targets[0]):
            targets.pop(0)
        gap = targets[0] - position
        action = (3 if gap[0] > 0 else 1) if gap[0] else (2 if gap[1] > 0 else 4) if gap[1] else 0
        obs, state, reward, terminated, _, info = step(jax.random.key(0), state, jnp.int32(action), task)
        position = np.array(divmod(int(obs), family.size))
        rewards.append(float(reward))
        if terminated:
            break
    return rewards, info


@functools.cache
def jitted_step(family):
    return jax.jit(family.step)


@pytest.mark.parametrize("until_goal", [False, True])
def test_the_optimum_of_dark_rooms_is_walked(until_goal):
    family = DarkRoom(size=5, horizon=4, until_goal=until_goal)
    for split in SPLITS:
        for goal in goals("DarkRoom", 5, split):
            task = GoalTask(jnp.asarray(goal))
            rewards, info = walk(family, task, [goal])
            steps = int(abs(goal - 2).sum())
            assert int(family.steps_to_goal(task)) == steps == int(info["steps_to_goal"])
            assert sum(rewards) == float(family.optimal_return(task)) == (1 if until_goal else 4 - steps + 1)
            assert rewards.index(1.0) + 1 == steps
            assert bool(info["success"])


def test_walls_hold_and_a_goal_not_found_is_no_success():
    family, task = DarkRoom(size=5, horizon=4), GoalTask(jnp.array([4, 4]))
    rewards, info = walk(family, task, [(-9, 2)])
    assert sum(rewards) == 0.0
    assert not bool(info["success"])
    assert int(info["steps_to_goal"]) == 4


@pytest.mark.parametrize("make", [DarkRoom, DarkKeyToDoor])
def test_coordinates_are_rows_and_columns_from_one_wall_to_the_other(make):
    corner = jnp.array([4, 4])
    family, key = make(size=5, coordinates=True), jax.random.key(0)
    task = GoalTask(corner) if make is DarkRoom else KeyDoorTask(corner, jnp.array([0, 0]))
    obs, state = family.reset(key, task)
    cells = [state.replace(position=jnp.array(cell)) for cell in ((0, 4), (3, 2))]
    seen = [obs, *(family.step(key, cell, jnp.int32(0), task)[0] for cell in cells)]
    np.testing.assert_allclose(seen, [[0, 0], [-1, 1], [0.5, 0]])
    trials = Trials(family, episodes=2)
    opening, _ = trials.reset(key, trials.default_params)
    np.testing.assert_array_equal(opening[trials.layout["observation"]], [0, 0])
    assert family.observation_space(task) == Box(-1.0, 1.0, (2,))


def test_the_optimum_of_key_to_door_is_walked():
    family = DarkKeyToDoor(size=5, horizon=8)
    for key, door in (((0, 0), (4, 3)), ((2, 3), (2, 1)), ((0, 0), (4, 4))):
        task = KeyDoorTask(jnp.array(key), jnp.array(door))
        rewards, info = walk(family, task, [key, door])
        steps = sum(abs(a - 2) for a in key) + sum(abs(a - b) for a, b in zip(key, door, strict=True))
        assert int(family.steps_to_goal(task)) == steps
        assert sum(rewards) == float(family.optimal_return(task)) == (2 if steps <= 8 else 1)
        assert bool(info["success"]) == (steps <= 8)
        assert len(rewards) == min(steps, 8)
    # The door alone pays nothing.
    assert sum(walk(family, KeyDoorTask(jnp.array((0, 0)), jnp.array((2, 3))), [(2, 3)])[0]) == 0.0


def test_keys_and_doors_are_different_cells_of_the_split():
    for split in SPLITS:
        cells = {tuple(cell) for cell in goals("DarkRoom", 9, split).tolist()}
        draw = jax.jit(jax.vmap(functools.partial(DarkKeyToDoor().draw, split=split)))
        tasks = draw(jax.random.split(jax.random.key(0), 300))
        pairs = list(zip(map(tuple, tasks.key.tolist()), map(tuple, tasks.door.tolist()), strict=True))
        assert all(key != door and {key, door} <= cells for key, door in pairs)


def test_the_maze_is_that_of_gymnax():
    from gymnax.environments.misc.meta_maze import EnvState
    from gymnax.environments.misc.meta_maze import MetaMaze as Reference

    family, reference = MetaMaze(size=5), Reference(maze_size=5, rf_size=3)
    np.testing.assert_array_equal(family.free, reference.env_map)
    np.testing.assert_array_equal(family.start, reference.center_position)
    goal = goals("MetaMaze", 5, "train")[0]
    free = np.argwhere(family.free).astype(np.int32)
    cells, actions = jnp.asarray(np.repeat(free, 4, axis=0)), jnp.tile(jnp.arange(4), len(free))

    def theirs(cell, action):
        state = EnvState(last_action=0, last_reward=jnp.array(0.0), pos=cell, goal=jnp.asarray(goal), time=0.0)
        obs, state, reward, _, _ = reference.step_env(jax.random.key(0), state, action, reference.default_params)
        return obs[:9], state.pos, reward

    def ours(cell, action):
        state = SearchState(cell, jnp.int32(0), jnp.int32(200))
        obs, state, reward, _, _, info = family.step(jax.random.key(0), state, action, GoalTask(jnp.asarray(goal)))
        return obs, state.position, reward, info["success"]

    expected = jax.jit(jax.vmap(theirs))(cells, actions)
    obs, position, reward, success = jax.jit(jax.vmap(ours))(cells, actions)
    np.testing.assert_array_equal(reward, expected[2])
    np.testing.assert_array_equal(success, expected[2] > 0)
    going_on = np.asarray(expected[2] == 0)  # the goal moves the agent at random
    np.testing.assert_array_equal(position[going_on], expected[1][going_on])
    np.testing.assert_array_equal(obs[going_on], expected[0][going_on])
    assert np.sum(~going_on) > 0


# ------------------------------------------------------------------------------------------------------------ switching


def test_a_fixed_number_of_switches_at_any_step():
    family = Switching(BernoulliBandit(2), horizon=6, switches=2)
    draw = jax.jit(jax.vmap(functools.partial(family.draw, split="train")))
    starts = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)).starts)
    assert np.all(starts[:, 0] == 0)
    assert np.all(np.diff(starts, axis=1) > 0)
    # Two of the five steps 1 .. 5: each in two trials of five.
    counts = np.bincount(starts[:, 1:].ravel(), minlength=7)
    assert counts[0] == counts[6] == 0
    np.testing.assert_allclose(counts[1:6] / 4000, 0.4, atol=0.04)


def test_the_hazard_of_switches_is_the_same_at_every_step():
    family = Switching(BernoulliBandit(2), horizon=30, hazard=0.1)
    draw = jax.jit(jax.vmap(functools.partial(family.draw, split="train")))
    starts = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)).starts)
    happened = np.array([(starts == t).any(1) for t in range(1, 30)])
    np.testing.assert_allclose(happened.mean(1), 0.1, atol=0.025)
    together = (happened[1:] & happened[:-1]).mean()
    assert abs(together - 0.01) < 0.002  # no memory
    assert Switching(BernoulliBandit(2), horizon=30, hazard=1.0).segments == 30


def test_a_switched_task_stays_in_force_over_episodes():
    env = registry.make("meta/SwitchingBandit?arms=2&pulls=12&switches=3")
    _, state = jax.jit(env.reset)(jax.random.key(5), env.default_params)
    means, starts = np.asarray(state.task.tasks.means), np.asarray(state.task.starts)
    step = jax.jit(env.step)
    switched = []
    for t in range(12):
        segment = np.searchsorted(starts, t, side="right") - 1
        _, state, _, _, _, info = step(jax.random.key(t), state, jnp.int32(0), env.default_params)
        assert int(info["segment"]) == segment
        assert float(info["regret"]) == pytest.approx(means[segment].max() - means[segment, 0])
        switched.append(bool(info["switched"]))
    assert [t + 1 for t in range(12) if switched[t]] == starts[1:].tolist()


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_all_splits_and_says_its_length(name):
    env = registry.make(f"meta/{name}?split=test&project_observations=6&time_limit=2-5")
    assert isinstance(env, Trials)
    assert env.family.max_steps(jax.eval_shape(lambda: env.family.default_params)) is not None
    assert env.layout["observation"] == slice(0, 6)
    assert (env.max_steps(env.default_params) or 0) >= 8


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Bandit?arms=1", "arms must lie in 2 .. 50"),
        ("Bandit?split=other", "split must be one of train, test, heldout"),
        ("Bandit?pulls=0", "episodes or steps must be positive"),
        ("Bandit?episodes=3", "no option 'episodes'"),
        ("Bandit?time_limit=9-3", "time_limit must be 0, or"),
        ("Bandit?time_limit=long", "a range such as 50-200"),
        ("Bandit?gain=0", "gain must be positive"),
        ("DarkRoom?size=4", "size must be one of 5, 7, 9, 13"),
        ("DarkRoom?horizon=0", "horizon must be at least 1"),
        ("SwitchingBandit?hazard=2.0", "hazard must lie in 0 .. 1"),
        ("SwitchingBandit?hazard=0.1&switches=2", "give switches or hazard"),
        ("Bandit?pulls=3&switches=3", "fewer than the 3 steps"),
        ("TabularMDP?states=0", "states must be at least 1"),
    ],
)
def test_bad_requests(env_id, words):
    with pytest.raises(ValueError, match=words):
        registry.make(f"meta/{env_id}")
