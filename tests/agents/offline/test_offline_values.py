"""What the offline methods share: units of actions, observations and rewards, slow copies, evaluation, refusals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.offline.base import Network
from engram.agents.offline.bc import BC, BCSettings
from engram.agents.offline.data import OfflineData
from engram.agents.offline.iql import IQL, IQLSettings
from engram.agents.offline.view import DataView, fitted, outside
from engram.envs.spaces import Box, Discrete, MultiDiscrete
from tests.agents.offline import cases

REST = {"expectile": 0.8, "temperature": 3.0, "greatest_weight": 100.0, "decay_steps": 0}


def iql(**changed) -> IQLSettings:
    return IQLSettings(**{**cases.VALUE, **REST, **changed})


def test_actions_are_rescaled_by_their_bounds_and_back():
    bounds = {"action_low": np.array([0.0, -3.0]), "action_high": np.array([1.0, 5.0])}
    view = DataView.of(cases.one_step_episodes(np.eye(2), np.zeros((2, 2), np.float32), np.zeros(2), **bounds))
    action = jnp.array([[0.0, -3.0], [0.5, 1.0], [1.0, 5.0], [0.25, -2.0]])
    unit = view.to_unit(action)
    np.testing.assert_allclose(unit, [[-1, -1], [0, 0], [1, 1], [-0.5, -0.75]], atol=1e-6)
    np.testing.assert_allclose(view.from_unit(unit), action, atol=1e-6)
    np.testing.assert_allclose(view.from_unit(jnp.array([[7.0, -7.0]])), [[1.0, -3.0]])
    assert DataView.of(cases.grid_episodes()).to_unit(jnp.array([2])) == 2


def test_an_action_with_one_possible_value_is_that_value():
    bounds = {"action_low": np.array([0.5, -1.0]), "action_high": np.array([0.5, 1.0])}
    action = np.array([[0.5, 0.2], [0.5, -0.2]], np.float32)
    view = DataView.of(cases.one_step_episodes(np.eye(2), action, np.zeros(2), **bounds))
    np.testing.assert_allclose(view.to_unit(jnp.asarray(action)), [[0.0, 0.2], [0.0, -0.2]])
    np.testing.assert_allclose(view.from_unit(jnp.array([[0.9, 0.2]])), [[0.5, 0.2]])


@pytest.mark.parametrize("most", [np.finfo(np.float32).max, np.inf])
def test_the_greatest_number_is_no_bound(most):
    bounds = {"action_low": np.array([-most], np.float32), "action_high": np.array([most], np.float32)}
    view = DataView.of(cases.one_step_episodes(np.eye(2), np.zeros((2, 1), np.float32), np.zeros(2), **bounds))
    assert np.isinf(view.bound).all()
    assert view.to_unit(jnp.array([3.0])) == 3.0


def test_what_is_constant_in_the_data_is_not_blown_up_in_play():
    """A constant of 0 has a deviation of 0, and 0.5 would have been fed as 500,000."""
    obs = np.stack([np.linspace(-1, 1, 50), np.zeros(50), np.full(50, 3.7)], axis=1).astype(np.float32)
    view = DataView.of(cases.one_step_episodes(obs, np.zeros(50, np.int32), np.zeros(50), num_actions=1))
    np.testing.assert_allclose(view.normalise(jnp.array([0.0, 0.5, 3.2])), [0.0, 0.5, -0.5], atol=1e-5)


def test_the_environment_says_of_actions_what_the_file_does_not():
    obs = np.eye(4)
    foreign = cases.one_step_episodes(obs, np.array([[0.5], [7.3], [-1.0], [1.0]], np.float32), np.zeros(4))
    known = fitted(foreign, Box(-1.0, 1.0, (1,)))
    assert (known.action_low, known.action_high) == (-1, 1)
    assert outside(known) == 1
    view = DataView.of(known)
    np.testing.assert_allclose(view.to_unit(jnp.asarray(known.action)), [[0.5], [1.0], [-1.0], [1.0]])
    assert fitted(foreign, Box((-1.0, -1.0), 1.0, (2,))).action_high == np.float32(7.3), "another shape says nothing"
    # What the file says stays.
    own = replace(foreign, action_low=np.array([-8.0], np.float32), action_high=np.array([8.0], np.float32))
    assert fitted(own, Box(-1.0, 1.0, (1,))).action_high == 8
    assert outside(own) == 0


def test_discrete_actions_that_were_stored_as_floats_are_discrete():
    whole = cases.one_step_episodes(np.eye(3), np.array([[0.0], [2.0], [1.0]], np.float32), np.zeros(3))
    episodes = fitted(whole, Discrete(4))
    assert (episodes.action.tolist(), episodes.num_actions, episodes.discrete) == ([0, 2, 1], 4, True)
    assert fitted(whole, Discrete(2)).num_actions == 3, "which then does not fit"
    assert not fitted(replace(whole, action=whole.action + np.float32(0.5)), Discrete(4)).discrete
    counted = cases.one_step_episodes(np.eye(3), np.array([0, 1, 1], np.int32), np.zeros(3))
    assert fitted(counted, Discrete(5)).num_actions == 5


@pytest.mark.parametrize("norm", [False, True])
def test_networks_see_the_size_of_a_number_from_the_beginning(norm):
    """Normalised, a dense layer of one number keeps its sign alone if nothing is added to it."""
    x = jnp.array([[0.5], [1.0], [2.0], [4.0]])
    out = np.asarray(Network((32, 32), 3, norm).init_with_output(jax.random.key(0), x)[0])
    assert np.linalg.norm(out[:, None] - out, axis=-1)[~np.eye(4, dtype=bool)].min() > 0.05 * np.linalg.norm(out[0])


def test_observations_are_standardised_and_rewards_scaled():
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(300, 2)) * [5.0, 0.0] + [3.0, 1.0]
    reward = rng.normal(size=300)
    episodes = cases.one_step_episodes(obs, np.zeros(300, np.int32), reward, num_actions=2)
    env = cases.playground(2, Discrete(2))
    agent = IQL.of(episodes, env, iql(normalise=True, reward_scale=0.0, reward_shift=-1.0))
    seen = np.asarray(agent.data.observations(jnp.arange(600)))
    np.testing.assert_allclose([seen[:, 0].mean(), seen[:, 0].std()], [0, 1], atol=1e-3)
    np.testing.assert_allclose(seen[:, 1], 0, atol=1e-3)  # what never changes is not blown up
    spread = reward.max() - reward.min()
    np.testing.assert_allclose(agent.data.reward, reward * 1000 / spread - 1, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="reward_scale=0 needs episodes of different returns"):
        IQL.of(replace(episodes, reward=np.ones(300, np.float32)), env, iql(reward_scale=0.0))


def test_transitions_are_those_of_the_episodes():
    """All steps of the grid, some of whose episodes are cut and some ended by the task, in a loop over episodes."""
    episodes = cases.grid_episodes()
    data = OfflineData.of(episodes)
    rows = data.transitions(jnp.arange(data.steps))
    step = 0
    for episode, length in enumerate(episodes.lengths):
        obs = episodes.obs[step + episode :][: length + 1]
        part = slice(step, step + length)
        np.testing.assert_array_equal(rows.obs[part], obs[:-1])
        np.testing.assert_array_equal(rows.next_obs[part], obs[1:])
        np.testing.assert_array_equal(rows.action[part], episodes.action[part])
        assert not np.asarray(rows.terminal[part])[:-1].any()
        assert rows.terminal[step + length - 1] == episodes.terminated[episode]
        step += length
    assert 0 < episodes.terminated.mean() < 1


@pytest.mark.slow
def test_data_are_an_argument_of_the_program():
    """Rebound within a traced function, nothing of the data is left in the program, and the step is the same."""
    agent = IQL.of(cases.grid_episodes(), cases.grid_environment(), iql())

    def update(state, data):
        return replace(agent, data=data).update(state)[0]

    state = cases.jit_once(agent.init)(jax.random.key(0))
    lowered = cases.jit_once(update).lower(state, agent.data)
    biggest = max((len(line) for line in lowered.as_text().splitlines() if "constant" in line), default=0)
    assert biggest < 500
    compiled = lowered.compile()
    after = compiled(state, agent.data)
    other = compiled(state, agent.data.replace(reward=agent.data.reward + 1))
    change = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), after.params["critic"], other.params["critic"])
    assert max(jax.tree.leaves(change)) > 0.01
    # Slow copies moved their share of the way, and those of the critics alone.
    assert set(after.target) == {"critic"}
    expected = jax.tree.map(lambda old, new: 0.95 * old + 0.05 * new, state.target["critic"], after.params["critic"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after.target["critic"], expected)


def test_evaluation_plays_the_greedy_policy():
    """Episodes of three steps that pay the action: a policy that clones ones earns 3."""
    episodes = cases.one_step_episodes(np.zeros((8, 1)), np.ones(8, np.int32), np.zeros(8), num_actions=2)
    env = cases.playground(1, Discrete(2), length=3)
    agent = BC.of(episodes, env, BCSettings(**cases.COMMON))
    state = cases.trained(agent, 20)
    metrics = cases.jit_once(agent.evaluate)(state, jax.random.key(0))
    assert {name: float(x) for name, x in metrics.items()} == {
        "eval/return": 3.0,
        "eval/length": 3.0,
        "eval/finished": 1.0,
    }
    states, action, returns = cases.jit_once(agent.record, static_argnums=2)(state, jax.random.key(0), 4)
    np.testing.assert_array_equal(action, np.ones((4, 2)))
    np.testing.assert_array_equal(returns[:, 0], [1, 2, 3, 1])
    assert len(jax.tree.leaves(states)[0]) == 4


@pytest.mark.parametrize(
    ("size", "space", "message"),
    [
        (cases.STATES, Discrete(3), r"\(9,\) and 4 discrete actions, the environment \(9,\) and 3 discrete actions"),
        (cases.STATES, Box(-1.0, 1.0, (2,)), r"4 discrete actions, the environment \(9,\) and actions of shape \(2,\)"),
        (cases.STATES, MultiDiscrete((2, 2)), "must have vectors as observations"),
        (4, Discrete(4), r"observations of shape \(9,\) and .*, the environment \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused(size, space, message):
    with pytest.raises(ValueError, match=message):
        BC.of(cases.grid_episodes(), cases.playground(size, space), BCSettings(**cases.COMMON))


def test_actions_without_bounds_are_refused():
    bounds = {"action_low": np.array([-1.0]), "action_high": np.array([np.inf])}
    episodes = cases.one_step_episodes(np.eye(2), np.zeros((2, 1), np.float32), np.zeros(2), **bounds)
    with pytest.raises(ValueError, match="bc needs bounded actions"):
        BC.of(episodes, cases.playground(2, Box(-1.0, 1.0, (1,))), BCSettings(**cases.COMMON))


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 0},
        {"hidden": (8, 0)},
        {"learning_rate": float("inf")},
        {"discount": 1.5},
        {"target_rate": -0.1},
        {"reward_scale": -1.0},
        {"reward_shift": float("nan")},
    ],
)
def test_settings_are_refused(changed):
    with pytest.raises(ValueError, match=f"iql.{next(iter(changed))} must"):
        iql(**changed)


def test_episodes_of_an_evaluation_are_a_multiple_of_its_environments():
    settings = BCSettings(**{**cases.COMMON, "eval_episodes": 3})
    with pytest.raises(ValueError, match=r"bc.eval_episodes \(3\) must be a multiple"):
        BC.of(cases.grid_episodes(), cases.grid_environment(), settings)
