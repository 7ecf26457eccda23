"""Histories against loops over episodes; the bisimulation loss in float64; what it does on a grid."""

import itertools
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.offline.bisimulation import Bisimulation, BisimulationSettings, histories
from engram.agents.offline.cql import CQLSettings
from engram.agents.offline.data import Transitions
from engram.agents.offline.iql import IQLSettings
from engram.agents.offline.td3bc import TD3BCSettings
from engram.envs.datasets import Episodes
from engram.envs.spaces import Box
from engram.memory import make_memory
from tests.agents.offline import cases
from tests.oracles import offline as mirror

WINDOW, WIDTH = 4, 8
SMALL = {**cases.VALUE, "hidden": (16,), "batch_size": 64, "learning_rate": 3e-3, "target_rate": 0.02}
IQL_REST = {"expectile": 0.8, "temperature": 3.0, "greatest_weight": 100.0, "decay_steps": 0}


def cql(**changed) -> CQLSettings:
    return CQLSettings(**{**SMALL, "weight": 0.3, "policy_learning_rate": 3e-3, "samples": 2, **changed})


def make(episodes: Episodes, settings: Any, weight: float, memory: str = "gru") -> Bisimulation:
    return Bisimulation.of(
        episodes,
        cases.grid_environment(),
        settings,
        memory=make_memory(memory, WIDTH),
        bisimulation=BisimulationSettings(window=WINDOW, weight=weight, model=(16,)),
    )


@cache
def on_grid(weight: float = 0.5) -> Bisimulation:
    return make(cases.grid_episodes(), cql(), weight)


def test_histories_are_the_last_steps_of_the_episode_and_the_next_one():
    episodes, agent = cases.grid_episodes(), on_grid()
    step = np.array([0, 1, 5, 13, 17, len(episodes.action) - 1])
    drawn = cases.jit_once(lambda: histories(agent.data, agent.view, jnp.asarray(step), WINDOW))()
    for column, number in enumerate(step):
        episode = int(np.searchsorted(episodes.starts, number, side="right")) - 1
        start = int(episodes.starts[episode])
        obs = episodes.obs[start + episode :][: episodes.lengths[episode] + 1]
        action = episodes.action[start : start + episodes.lengths[episode]]
        for row in range(WINDOW + 1):
            time = number - start - (WINDOW - 1) + row
            assert drawn.rows.reset[row, column] == (time <= 0)
            if time >= 0:
                np.testing.assert_array_equal(drawn.rows.obs[row, column], obs[time])
                before = np.zeros(4) if time == 0 else np.eye(4)[action[time - 1]]
                np.testing.assert_array_equal(drawn.rows.before[row, column], before)
        assert drawn.action[column] == episodes.action[number]
        last = number - start == episodes.lengths[episode] - 1
        assert drawn.terminal[column] == (last and episodes.terminated[episode])


@pytest.mark.slow
def test_steps_before_an_episode_are_not_seen():
    """Whatever stands in the rows before it opens, its features are those of a history that begins there."""
    agent = on_grid()
    params = cases.random_parameters(agent, 0)[0]
    step = jnp.asarray(cases.grid_episodes().starts[3:7] + 1)
    rows = histories(agent.data, agent.view, step, WINDOW).rows
    assert rows.reset[:3].all()
    features = cases.jit_once(partial(agent.features, params))
    other = rows.replace(obs=rows.obs.at[:2].set(9.0), before=rows.before.at[:2].set(-5.0))
    np.testing.assert_array_equal(features(rows)[2:], features(other)[2:])


def test_acting_sees_what_training_sees():
    """Played back step by step, the features on which an action is chosen are those of the drawn histories, as those of
    a step and as those that came after the one before."""
    agent, episodes = on_grid(), cases.grid_episodes()
    params = cases.random_parameters(agent, 0)[0]
    long = int(np.argmax(episodes.lengths))
    start, length = int(episodes.starts[long]), int(episodes.lengths[long])
    drawn = histories(agent.data, agent.view, jnp.arange(start, start + length), WINDOW).rows
    expected, following = cases.jit_once(partial(agent.before_and_after, params))(drawn)
    assert length > WINDOW + 1
    acting = agent.start_acting(1)

    @cases.jit_once
    def act(acting, obs, reset):
        acting, _ = agent.act(params, acting, obs, jnp.zeros(1), reset)
        return acting, agent.features(params, acting[0])[-1, 0]

    for time in range(length):
        obs = jnp.asarray(episodes.obs[start + long + time][None])
        acting, features = act(acting, obs, jnp.array([time == 0]))
        np.testing.assert_allclose(features, expected[time], atol=1e-5)
        if time > 0:
            np.testing.assert_allclose(features, following[time - 1], atol=1e-5)
        taken = jax.nn.one_hot(episodes.action[start + time], 4)[None]
        acting = (acting[0], taken)  # whatever the agent would have done, the episode went on thus


def test_losses_are_those_of_the_definition_and_each_trains_its_own_part():
    """J moves phi and nothing else, the model's likelihood the model and nothing else."""
    agent, n = on_grid(), 6
    params = cases.random_parameters(agent, 1)[0]
    rng = np.random.default_rng(0)
    step = Transitions(
        obs=jnp.asarray(rng.normal(size=(n, WIDTH)), jnp.float32),
        action=jnp.asarray(rng.integers(4, size=n)),
        reward=jnp.asarray(rng.normal(size=n), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(n, WIDTH)), jnp.float32),
        terminal=jnp.zeros(n, bool),
    )

    def jacobian(params, obs, next_obs, reward):
        batch = step.replace(obs=obs, next_obs=next_obs, reward=reward)
        return agent.losses(params, batch, jax.random.key(3))

    at = params, step.obs, step.next_obs, step.reward
    model_loss, distance_loss = cases.jit_once(jacobian)(*at)
    of_model, of_distance = cases.jit_once(jax.jacrev(jacobian, argnums=(0, 1, 2)))(*at)

    p, s = mirror.float64((params["model"], step))
    out = mirror.network(p, np.concatenate([s.obs, np.eye(4)[s.action]], -1))
    mean, deviation = out[:, :WIDTH], 1e-4 + (10 - 1e-4) / (1 + np.exp(-out[:, WIDTH:]))
    likelihood = -((s.next_obs - mean) ** 2) / (2 * deviation**2) - np.log(deviation)
    np.testing.assert_allclose(model_loss, -likelihood.mean(), rtol=1e-4)
    # The pairs are a permutation: find it among all, then check value and gradient.

    def j(obs, other):
        w2 = np.sqrt(((mean - mean[other]) ** 2 + (deviation - deviation[other]) ** 2).sum(-1))
        goal = np.abs(s.reward - s.reward[other]) + cases.GAMMA * w2
        return np.mean((np.abs(obs - obs[other]).sum(-1) - goal) ** 2)

    all_pairs = [np.array(other) for other in itertools.permutations(range(n))]
    errors = [abs(j(s.obs, other) - float(distance_loss)) for other in all_pairs]
    assert min(errors) < 1e-4
    other = all_pairs[int(np.argmin(errors))]
    expected = mirror.numeric_gradient(lambda x: j(x, other), s.obs)
    np.testing.assert_allclose(of_distance[1], expected, rtol=1e-3, atol=1e-4)

    zero = lambda tree: all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(tree))  # noqa: E731
    assert zero(of_distance[0])
    assert zero(of_distance[2])
    assert zero(of_model[1])
    assert zero(of_model[2])
    assert not zero(of_model[0]["model"])


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "kind"), [("gru", "cql"), ("mamba2", "iql")])
def test_any_memory_under_either_method(memory, kind):
    """Shapes alone."""
    settings = cql() if kind == "cql" else IQLSettings(**SMALL, **IQL_REST)
    agent = make(cases.grid_episodes(), settings, 0.5, memory)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    after, metrics = jax.eval_shape(agent.update, state)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert {"loss/model", "loss/bisimulation", "loss/critic"} <= set(metrics)
    jax.eval_shape(agent.evaluate, state, jax.random.key(0))


@pytest.mark.slow
def test_continuous_actions_too():
    kind = {"action_low": -np.ones(2), "action_high": np.ones(2)}
    episodes = cases.one_step_episodes(np.eye(4, 3), np.zeros((4, 2), np.float32), np.zeros(4), **kind)
    agent = Bisimulation.of(
        episodes,
        cases.playground(3, Box(-1.0, 1.0, (2,))),
        cql(),
        memory=make_memory("gru", WIDTH),
        bisimulation=BisimulationSettings(window=2, weight=0.5, model=(16,)),
    )
    jax.eval_shape(agent.update, jax.eval_shape(agent.init, jax.random.key(0)))


def test_other_methods_are_refused():
    with pytest.raises(ValueError, match="memory of histories is for iql and cql, not for td3bc"):
        make(cases.grid_episodes(), TD3BCSettings(**SMALL, alpha=1, policy_noise=0, noise_clip=0, policy_delay=1), 0.5)
    for changed in ({"window": 0}, {"weight": -1.0}, {"model": (0,)}):
        with pytest.raises(ValueError, match=f"bisimulation.{next(iter(changed))} must"):
            BisimulationSettings(**{"window": 2, "weight": 0.5, "model": (8,), **changed})


@pytest.mark.slow
def test_pasts_that_make_no_difference_become_alike_and_the_return_rises():
    """Few episodes of the grid: 1 for reaching the last cell, so that the best way is the shortest that the data hold.
    CQL on whole histories does not stitch what was seen after different pasts; with the bisimulation loss it does.
    Measured, three seeds: mean distances within a cell 1.9 to 2.3 without and 0.2 with it, mean ways 5.3 to 7.1 and 4.1
    to 5.6; the shortest is 3.75."""
    episodes = cases.grid_episodes(0, 40)
    reward = np.zeros(len(episodes.action), np.float32)
    reward[(episodes.starts + episodes.lengths - 1)[episodes.terminated]] = 1.0
    episodes = replace(episodes, reward=reward)
    distance, way = {}, {}
    for weight in (0.0, 0.1):
        agent = make(episodes, cql(reward_scale=4.0), weight)
        params = cases.trained(agent, 1500).params
        step = jnp.arange(0, agent.data.steps, 2)
        drawn = histories(agent.data, agent.view, step, WINDOW)
        phi = np.asarray(cases.jit_once(partial(agent.features, params))(drawn.rows)[-2])
        cell = np.asarray(drawn.rows.obs[-2]).argmax(1)
        apart = np.abs(phi[:, None] - phi).sum(-1)
        distance[weight] = apart[(cell[:, None] == cell) & ~np.eye(len(cell), dtype=bool)].mean()
        way[weight] = steps_to_goal(agent, params).mean()
    assert distance[0.1] < 0.3 * distance[0.0]
    assert way[0.1] < way[0.0] - 0.5


def steps_to_goal(agent: Bisimulation, params: Any) -> np.ndarray:
    """From each cell under the greedy policy, at most 12."""
    n = cases.GOAL
    cells, steps, going = np.arange(n), np.zeros(n), np.ones(n, bool)
    acting, act = agent.start_acting(n), cases.jit_once(partial(agent.act, params))
    for time in range(12):
        obs = jnp.asarray(np.eye(cases.STATES)[cells], jnp.float32)
        acting, action = act(acting, obs, jnp.zeros(n), jnp.full(n, time == 0))
        steps += going
        cells = np.where(going, cases.NEXT[cells, np.asarray(action)], cells)
        going &= cells != cases.GOAL
    return steps
