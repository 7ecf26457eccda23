"""Adaptation within trials: agents that show their memory by their actions, and counts in NumPy."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from scipy import stats

from engram.agents.common.distributions import Categorical
from engram.agents.planners import change_points as rbocpd
from engram.agents.ppo.networks import ActorCritic
from engram.envs.base import NoParams
from engram.envs.meta.dark_room import DarkRoom
from engram.envs.meta.trials import Family, Trials
from engram.envs.spaces import Box, Discrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation
from engram.experiments import adaptation
from engram.experiments.adaptation import Played, make_player, opening_of, treatment
from engram.memory import make_memory

ACTIONS = 24


class ToyState(struct.PyTreeNode):
    t: jax.Array
    clock: jax.Array
    """Steps of the trial."""
    x: jax.Array
    """A number below 7 that actions move."""


@dataclass(frozen=True)
class Toy(Family):
    """Episodes of `length` steps, or that end at each with chance 1/2. Reward: the action; the task is nothing.

    With `switch`, rewards of one-step episodes are 0 before that step of the trial and 1 from it on, and the regret is
    the action. With `moves`, the reward is x / 7, where x starts at 0 and each step makes it 3 x + action + 1 modulo 7.
    """

    length: int = 2
    random: bool = False
    switch: int = 0
    moves: bool = False

    def draw(self, key, split):
        return NoParams()

    def reset(self, key, params):
        return jnp.int32(0), ToyState(jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def restart(self, key, state, task):
        return jnp.int32(0), ToyState(jnp.int32(0), state.clock, jnp.int32(0))

    def step(self, key, state, action, params):
        x = (3 * state.x + action + 1) % 7
        reward = action.astype(jnp.float32)
        if self.switch:
            reward = (state.clock >= self.switch).astype(jnp.float32)
        if self.moves:
            reward = x / 7
        over = jax.random.bernoulli(key) if self.random else state.t + 1 >= self.length
        state = ToyState(state.t + 1, state.clock + 1, x)
        info = {"regret": action.astype(jnp.float32), "success": action > 10}
        if self.switch:
            info["switched"] = state.clock == self.switch
        return x, state, reward, over, jnp.bool_(False), info

    def observation_space(self, params):
        return Discrete(7)

    def action_space(self, params):
        return Discrete(ACTIONS)

    def max_steps(self, params):
        return None if self.random else self.length


class Counter:
    """A network whose memory counts the steps since it was cleared, this one included, and whose action is `shown`."""

    def __init__(self, shown=lambda count: count, actions=ACTIONS):
        self.shown, self.actions = shown, actions

    def initial_state(self, batch):
        return jnp.zeros(batch, jnp.int32)

    def apply(self, variables, *args, method):
        if method == "policy":
            return Categorical(jax.nn.one_hot(self.shown(args[0]), self.actions) * 100.0)
        memory, _, reset = args
        memory = jnp.where(reset, 0, memory) + 1
        return memory, memory


def agent_of(network, greedy=True):
    """What of a PPO agent playing needs."""
    return SimpleNamespace(network=network, settings=SimpleNamespace(eval_greedy=greedy))


def play_all(agent: Any, trials, envs, treats, *, params=None, detector=None, opening=None) -> list[Played]:
    """What each of some treatments comes to."""
    env = FlattenObservation(EpisodeStatistics(Vectorised(trials, envs)))
    opening = opening_of(trials.layout) if opening is None else opening
    limit = trials.max_steps(NoParams()) or 200
    player = make_player(agent, env, opening, trials.episodes or limit, limit, detector)
    return [jax.device_get(player(params, NoParams(), jax.random.key(3), treat)) for treat in treats]


def play(agent, trials, envs, treat, **options) -> Played:
    return play_all(agent, trials, envs, [treat], **options)[0]


def test_what_the_memory_may_do():
    """Steps since it was cleared, over three episodes of two steps."""
    treats = [treatment(), treatment("reset"), treatment("frozen"), treatment("frozen", freeze_after=0)]
    expected = [[1 + 2, 3 + 4, 5 + 6], [1 + 2] * 3, [1 + 2, 3 + 4, 4 + 4], [1 + 1] * 3]
    for played, returns in zip(play_all(agent_of(Counter()), Trials(Toy(), 3), 2, treats), expected, strict=True):
        assert played.returns.tolist() == [returns] * 2
        assert played.lengths.tolist() == [[2] * 3] * 2
        assert played.finished.all()
        np.testing.assert_array_equal(played.regret, [returns] * 2)
        assert played.over.all()
    # Steps 11 and 12 of a memory that is kept are the first to succeed.
    long = play(agent_of(Counter()), Trials(Toy(), 7), 1, treatment())
    np.testing.assert_array_equal(long.success, [[False] * 5 + [True] * 2])


def test_a_frozen_memory_holds_the_outcome_of_its_last_episode():
    """A bandit that pays the pull itself: the memory adds up the rewards it is shown, and the pull shows the sum."""

    class Sum(Counter):
        def apply(self, variables, *args, method):
            if method == "policy":
                return super().apply(variables, *args, method=method)
            memory, obs, reset = args
            reward = obs[:, trials.layout["reward"]].sum(-1).astype(jnp.int32)
            memory = jnp.where(reset, 1, memory + reward)
            return memory, memory

    trials = Trials(Toy(length=1), 4)
    treats = [
        treatment(),
        treatment("frozen", freeze_after=2),
        treatment("frozen"),
        treatment("frozen", freeze_after=0),
    ]
    expected = [[1, 2, 4, 8], [1, 2, 4, 8], [1, 2, 4, 6], [1, 1, 1, 1]]
    for played, returns in zip(play_all(agent_of(Sum()), trials, 2, treats), expected, strict=True):
        assert played.returns.tolist() == [returns] * 2


def test_steps_to_the_goal_are_counted_as_the_room_says():
    """An agent that counts its steps goes up four times and then right: it passes the goals of that way, no others."""
    room = DarkRoom(until_goal=True)
    trials = Trials(room, episodes=3)
    walker = Counter(lambda count: jnp.where((count - 1) % room.horizon < 4, 1, 2), actions=5)
    played = play(agent_of(walker), trials, 64, treatment("reset"))
    assert played.steps_to_goal is not None
    assert played.success is not None
    # An episode ends at the goal, or at the horizon.
    np.testing.assert_array_equal(played.steps_to_goal, played.lengths)
    passed = {(row, 4): 4 - row for row in range(4)} | {(0, column): column for column in range(5, 9)}
    reached = played.steps_to_goal[played.success]
    assert set(reached.tolist()) <= set(passed.values())
    assert 0 < len(reached) < played.success.size
    assert (played.steps_to_goal[~played.success] == room.horizon).all()
    summary = adaptation.summarise_trials([played])
    assert summary["first_steps_to_goal"]["mean"] == pytest.approx(played.lengths[:, 0].mean())
    assert summary["by_episode"]["steps_to_goal"]["mean"] == summary["by_episode"]["length"]["mean"]


def test_a_budget_of_steps_cuts_the_last_episode():
    played = play(agent_of(Counter()), Trials(Toy(length=3), steps=8), 1, treatment())
    assert played.returns[0].tolist() == [1 + 2 + 3, 4 + 5 + 6, 7 + 8, *[0.0] * 5]
    assert played.finished[0].tolist() == [True, True, *[False] * 6]
    summary = adaptation.summarise_trials([played])
    assert summary["episodes"] == 2
    assert summary["total"]["mean"] == 36
    assert summary["regret"]["mean"] == 36
    assert summary["by_episode"]["regret"]["mean"] == [6, 21]


def test_a_policy_without_memory_has_the_curve_of_its_mean_and_regrets_are_counted():
    """Actions uniform over 0 .. 23 in episodes of geometric length: counted step by step in NumPy."""
    uniform = agent_of(Counter(), greedy=False)
    uniform.network.shown = lambda count: jnp.full_like(count, -1)  # no entry: all logits are equal
    trials, envs = Trials(Toy(random=True), 4), 300
    env = FlattenObservation(EpisodeStatistics(Vectorised(trials, envs)))
    played = play(uniform, trials, envs, treatment())

    start, key = jax.random.split(jax.random.key(3))
    _, env_state = env.reset(start, NoParams())
    step = jax.jit(env.step)
    returns, over = np.zeros((envs, 4)), np.zeros(envs, bool)
    lengths = np.zeros((envs, 4), int)
    episode = np.zeros(envs, int)
    for t in range(200):
        action_key, env_key = jax.random.split(jax.random.fold_in(key, t))
        action = Categorical(jnp.zeros((envs, ACTIONS))).sample(action_key)
        _, env_state, _, terminated, _, info = step(env_key, env_state, action, NoParams())
        for b in np.flatnonzero(~over):
            returns[b, episode[b]] += int(action[b])
            lengths[b, episode[b]] += 1
        episode += np.asarray(info["inner_done"])
        over |= np.asarray(terminated)
        if over.all():
            break
    np.testing.assert_array_equal(played.returns, returns)
    np.testing.assert_array_equal(played.regret, returns)
    np.testing.assert_array_equal(played.lengths, lengths)
    assert played.finished.all()

    summary = adaptation.summarise_trials([played])
    mean = 2 * (ACTIONS - 1) / 2  # two steps on average, 11.5 each
    curve = {name: np.array(part) for name, part in summary["by_episode"]["return"].items()}
    assert np.all(np.abs(curve["mean"] - mean) < 2 * (curve["high"] - curve["mean"]))
    low, high = stats.t.interval(0.95, len(returns) - 1, returns.mean(0), stats.sem(returns, axis=0))
    np.testing.assert_allclose(curve["low"], low, rtol=1e-5)
    np.testing.assert_allclose(curve["high"], high, rtol=1e-5)
    assert np.abs(np.array(summary["by_episode"]["length"]["mean"]) - 2).max() < 0.4


@pytest.fixture(scope="module")
def recurrent():
    """An untrained GRU that looks at everything it is shown, and its parameters."""
    trials = Trials(Toy(moves=True, length=5), 3)
    network = ActorCritic(
        memory=make_memory("gru", 8),
        action_space=Discrete(ACTIONS),
        encoder=(),
        heads=(),
        activation="tanh",
        head_scale=1.0,
    )
    obs = jnp.zeros((1, 1, trials.observation_space(NoParams()).shape[0]))
    variables = network.init(jax.random.key(0), network.initial_state(1), obs, jnp.ones((1, 1), bool))
    params = jax.tree.map(lambda x: 3 * jax.random.normal(jax.random.key(x.size), x.shape), variables["params"])
    return agent_of(network), trials, params


@pytest.mark.slow
def test_reset_each_episode_equals_separate_trials_of_one_episode(recurrent):
    agent, trials, params = recurrent
    alone = play(agent, replace(trials, episodes=1), 1, treatment(), params=params)
    kept, reset = play_all(agent, trials, 1, [treatment(), treatment("reset")], params=params)
    assert reset.returns[0].tolist() == [alone.returns[0, 0]] * 3
    # The two things that this takes: the memory is cleared, and the step before is not shown.
    assert kept.returns[0, 0] == alone.returns[0, 0]
    assert len(set(kept.returns[0].tolist())) > 1
    shown = play(agent, trials, 1, treatment("reset"), params=params, opening=())
    assert len(set(shown.returns[0].tolist())) > 1


def test_an_opening_hides_the_step_before():
    trials = Trials(Toy(), 3)
    obs = jnp.arange(2.0 * trials.observation_space(NoParams()).shape[0]).reshape(2, -1)
    seen = adaptation.shown_as_opening(opening_of(trials.layout), obs, jnp.array([True, False]))
    reset, _ = trials.reset(jax.random.key(0), NoParams())
    np.testing.assert_array_equal(seen[1], obs[1])
    np.testing.assert_array_equal(seen[0, 7:], reset[7:])
    np.testing.assert_array_equal(seen[0, :7], obs[0, :7])


# ----------------------------------------------------------------------------------------------------------- switches


def test_what_clears_the_memory_where_the_task_switches():
    """Action 1 in the first step after the memory was cleared, else 0, so the regret counts the times it was."""
    detector = adaptation.Detector((0.5,), rbocpd.make_eta("squared", 0.0))
    agent = agent_of(Counter(lambda count: (count == 1).astype(jnp.int32)))
    treats = [treatment(changes=c) for c in adaptation.CHANGES]
    trials = Trials(Toy(length=1, switch=40), 100)
    off, on, oracle = play_all(agent, trials, 2, treats, detector=detector)

    # The stream of action 0: 39 zeros, then ones, one detector by itself.
    alone, alarm_at = rbocpd.init_grid(2, 100), None
    for step in range(1, 100):
        alone, verdict = rbocpd.update_grid(alone, jnp.int32(step >= 40), detector.eta)
        if verdict.alarm:
            alarm_at = step
            break
    assert alarm_at is not None
    for played, cleared in ((off, [0]), (on, [0, alarm_at + 1]), (oracle, [0, 40])):
        assert [np.flatnonzero(row).tolist() for row in np.asarray(played.regret)] == [cleared] * 2
        assert played.switches.tolist() == [1, 1]
        assert played.false_alarms.tolist() == [0, 0]
    assert on.detected.tolist() == [1, 1]
    assert on.delay.tolist() == [alarm_at - 40 + 1] * 2
    assert off.detected.tolist() == oracle.detected.tolist() == [0, 0]
    detection = adaptation.summarise_trials([on])["detection"]
    assert detection == {"switches": 1.0, "detected": 1.0, "delay": alarm_at - 39, "false_alarms": 0.0}


def test_quartiles_are_edges_between_returns():
    assert adaptation.quartiles(np.array([0.0, 1.0, 1.0, 0.0])) == (0.0,)
    assert adaptation.quartiles(np.array([1.0] * 9 + [0.0])) == (0.0,)
    assert adaptation.quartiles(np.arange(100.0)) == (24.0, 49.0, 74.0)
    with pytest.raises(ValueError, match="all returns are the same"):
        adaptation.quartiles(np.ones(5))


# --------------------------------------------------------------------------------------------------------------- cost


def test_bytes_of_state(recurrent):
    agent, *_ = recurrent
    assert adaptation.state_bytes(agent) == 8 * 4


def test_time_of_a_step_is_positive(recurrent):
    agent, trials, params = recurrent
    agent.env = SimpleNamespace(default_params=NoParams(), observation_space=trials.observation_space)
    assert isinstance(trials.observation_space(NoParams()), Box)
    assert 0 < adaptation.step_seconds(agent, params, 2, steps=4, repeats=1) < 1


@pytest.mark.parametrize(
    "bad",
    [
        lambda: treatment("forgotten"),
        lambda: treatment(changes="sometimes"),
        lambda: treatment("frozen", freeze_after=-1),
        lambda: adaptation.Detector((), rbocpd.make_eta("paper", 0.0)),
        lambda: adaptation.Detector((1.0, 0.0), rbocpd.make_eta("paper", 0.0)),
    ],
)
def test_impossible_requests_are_refused(bad):
    with pytest.raises(ValueError, match=r"must|needs"):
        bad()
