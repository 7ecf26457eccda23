"""Groups of environments learn as one: together they are PPO on the batch that they make."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents import registry
from engram.agents.common.spec import Build
from engram.agents.ppo.agent import PPO, PPOSettings, PPOState, Rollout
from engram.agents.ppo.build import make_ppo
from engram.configs.presets import PRESETS
from engram.envs.wrappers import RunningStatistics
from engram.errors import BadRequest
from engram.kernels.collectives import average, group_index, of_all_groups, total
from engram.training.faults import first_fault

GROUPS, ENVS, AXES = 2, 4, ("outer", "inner")
PRESET: Any = PRESETS["popgym-fast"]


def agent_of(groups: int = GROUPS, **changed: Any) -> PPO:
    """All environments of a group in one minibatch, which is dealt once: no permutation has a say."""
    sizes = {"num_envs": GROUPS * ENVS, "num_steps": 12, "eval_envs": 2, "epochs": 1, "minibatches": 1}
    return make_ppo(
        replace(
            PRESET,
            memory="gru",
            network=replace(PRESET.network, width=8, layers=1),
            observation=replace(PRESET.observation, normalise=True, normalise_reward=True),
            ppo=replace(PRESET.ppo, **sizes, **changed, groups=groups),
        )
    )


@cache
def updated() -> tuple[PPOState, PPOState, dict[str, Any]]:
    """States before and after the second update, and its metrics."""
    agent = agent_of()
    before = jax.jit(lambda key: agent.update(agent.init(key))[0])(jax.random.key(3))
    return before, *jax.jit(agent.update)(before)


def joined(tree: Any, axis: int) -> Any:
    """Leaves `[groups, ..., B, ...]` as those of one batch, whose axis is `axis`."""
    return jax.tree.map(lambda x: jnp.concatenate(list(x), axis=axis), tree)


def test_an_update_is_that_of_ppo_on_the_environments_of_all_groups():
    before, after, metrics = updated()
    agent, one = agent_of(), agent_of(groups=1)

    @jax.jit
    def expected() -> tuple[PPOState, dict[str, Any]]:
        def collect(state: PPOState) -> tuple[PPOState, Rollout, jax.Array]:
            _, collect_key, shuffle_key = jax.random.split(state.key, 3)
            own = agent.over(("groups",))
            state, rollout = own._collect(state, collect_key)
            return state, rollout, shuffle_key

        layout = agent.layout(before)
        state, rollout, keys = jax.vmap(collect, in_axes=(layout,), out_axes=(layout, 0, 0), axis_name="groups")(before)
        state = state.replace(memory=joined(state.memory, 0), obs=joined(state.obs, 0), reset=joined(state.reset, 0))
        return one.learn(state, joined(before.memory, 0), joined(rollout, 1), keys[0])

    state, numbers = expected()
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), before.params, after.params)
    assert max(jax.tree.leaves(moved)) > 1e-4
    for got, wanted in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)
    assert int(after.env_steps) == 2 * GROUPS * ENVS * 12
    assert metrics.keys() == numbers.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], numbers[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_groups_draw_their_own_numbers():
    before, after, metrics = updated()
    for leaf in (before.obs, after.obs, jax.random.key_data(after.key)):
        assert not np.array_equal(leaf[0], leaf[1])
    assert float(metrics["loss/ratio_error"]) < 1e-4


def test_layout_names_what_grows_with_the_number_of_groups():
    few, many = (jax.eval_shape(agent_of(groups).init, jax.random.key(0)) for groups in (2, 4))
    layout = agent_of().layout(few)
    axes = jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part), layout, few, is_leaf=lambda x: x is None)
    for axis, a, b in zip(
        jax.tree.leaves(axes, is_leaf=lambda x: x is None), jax.tree.leaves(few), jax.tree.leaves(many), strict=True
    ):
        assert (a.shape == b.shape) if axis is None else (a.shape[0], b.shape[0]) == (2, 4)


def over_axes(f: Any) -> Any:
    """`f` of rows `[2, 3, ...]` in six groups."""
    return jax.jit(jax.vmap(jax.vmap(f, axis_name="inner"), axis_name="outer"))


def test_statistics_of_groups_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    rows = (1e3 + rng.normal(size=(2, 2, 3, 5, 4))).astype(np.float32)  # far from 0: squares would cancel
    mask = rng.random((2, 2, 3, 5)) < 0.7

    def add(rows: jax.Array, mask: jax.Array) -> RunningStatistics:
        first = RunningStatistics.empty((4,)).update(rows[0], mask[0], AXES)
        return first.update(rows[1], mask[1], AXES)

    found = over_axes(add)(np.moveaxis(rows, 0, 2), np.moveaxis(mask, 0, 2))
    seen = rows.astype(np.float64)[mask]
    np.testing.assert_allclose(found.mean[1, 2], seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.var[0, 1], seen.var(axis=0), rtol=2e-3)
    np.testing.assert_array_equal(found.count, np.full((2, 3), mask.sum()))


def test_the_first_fault_is_that_of_the_whole_batch():
    rng = np.random.default_rng(1)
    fault = ((rng.random((2, 3, 7, 2)) < 0.1) * rng.integers(1, 3, (2, 3, 7, 2))).astype(np.int8)
    whole = np.moveaxis(fault, 2, 0).reshape(7, 12)
    assert whole.any()
    found = over_axes(lambda x: first_fault(x, AXES))(fault)
    np.testing.assert_array_equal(found, np.full((2, 3), first_fault(jnp.asarray(whole))))
    none = over_axes(lambda x: first_fault(x, AXES))(np.zeros_like(fault))
    assert not none.any()


def test_groups_are_numbered_along_their_axes():
    x = np.arange(6.0).reshape(2, 3)
    index, all_, sum_ = over_axes(lambda x: (group_index(AXES), of_all_groups(x, AXES), total(x, AXES) + 0 * x))(x)
    np.testing.assert_array_equal(index, x)
    np.testing.assert_array_equal(all_[1, 1], np.arange(6.0))
    np.testing.assert_array_equal(sum_, np.full((2, 3), 15.0))


def test_the_mean_of_the_groups_gradients_is_the_gradient_of_the_mean():
    """d/dw mean_g (w - c_g)^2 = 2 (w - mean c)."""
    c = np.arange(6.0).reshape(2, 3) ** 2

    def gradient(c: jax.Array) -> jax.Array:
        return average(jax.grad(lambda w: average((w - c) ** 2, AXES))(1.0), AXES) + 0 * c

    np.testing.assert_allclose(over_axes(gradient)(c), np.full((2, 3), 2 * (1.0 - c.mean())), rtol=1e-6)


def test_impossible_groups_are_refused():
    with pytest.raises(
        BadRequest, match=r"ppo.groups \(3\) times ppo.minibatches \(4\) must divide ppo.num_envs \(16\)"
    ):
        PPOSettings(num_envs=16, minibatches=4, groups=3)
    with pytest.raises(BadRequest, match=r"ppo.groups \(8\) times"):
        PPOSettings(num_envs=16, minibatches=4, groups=8)
    grouped: Any = replace(PRESET.ppo, num_envs=4, groups=2, minibatches=1)
    with pytest.raises(BadRequest, match="one group, on one device"):
        registry.build(replace(PRESET, env="gymnasium/CartPole-v1", memory="none", ppo=grouped))
    with pytest.raises(BadRequest, match="not recorded"):
        registry.build(replace(PRESET, memory="none", ppo=grouped), Build(record=True))
    conservative: Any = PRESETS["conservative"]
    with pytest.raises(BadRequest, match="act in one group"):
        registry.build(replace(conservative, ppo=replace(conservative.ppo, groups=2)))
