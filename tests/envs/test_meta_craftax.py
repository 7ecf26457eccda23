"""Craftax against its package, stepped alone: one world in all episodes of a trial, its own in every task."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.meta.craftax_worlds import GAMES, CraftaxWorlds, World
from engram.envs.meta.splits import SPLITS, read
from engram.envs.registry import make

pytestmark = pytest.mark.usefixtures("quickly_compiled")

LIMIT = 60


@pytest.mark.parametrize("game", GAMES)
def test_splits_share_no_world(game):
    splits = read("craftax", game)
    seeds = sorted(splits[split]["seeds"] for split in SPLITS)
    assert seeds[0][0] >= 0
    assert seeds[-1][1] <= 2**31 - 1
    assert all(before[1] <= after[0] < after[1] for before, after in zip([[0, 0], *seeds], seeds, strict=False))
    assert splits["test"]["day_length"] == splits["train"]["day_length"]
    shortest = min(low for low, _ in splits["train"]["day_length"])
    assert all(high < shortest for _, high in splits["heldout"]["day_length"])


@pytest.fixture(scope="module")
def family():
    pytest.importorskip("craftax")
    return CraftaxWorlds("CraftaxClassic", limit=LIMIT)


def test_the_limit_is_checked(family):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        make("meta/CraftaxClassic?limit=0")
    assert family.max_steps(None) == LIMIT
    assert family.action_space(None).n == 17
    assert family.observation_space(None).shape == (1345,)


def test_a_task_is_the_world_that_the_package_makes_of_its_seed(family):
    # Not compiled as a whole: the package compiles its own functions, here once for both.
    worlds = {seed: family.world(jnp.int32(seed), jnp.float32(300.0)) for seed in (7, 8)}
    for seed, world in worlds.items():
        obs, state = family.env.reset(jax.random.PRNGKey(seed), family.parameters(jnp.float32(300.0)))
        jax.tree.map(np.testing.assert_array_equal, world.opening, state)
        for key in (0, 1):
            ours, opening = family.reset(jax.random.key(key), world)
            np.testing.assert_array_equal(ours, obs)
            jax.tree.map(np.testing.assert_array_equal, opening, state)
    assert np.any(worlds[7].opening.map != worlds[8].opening.map)


def test_tasks_come_from_their_split(family):
    for split in SPLITS:
        low, high = read("craftax", "CraftaxClassic")[split]["seeds"]

        class Seeds(CraftaxWorlds):
            def world(self, seed, day_length):  # all but the world itself
                return World(None, day_length, seed)

        draw = jax.jit(jax.vmap(partial(Seeds("CraftaxClassic").draw, split=split)))
        drawn = draw(jax.random.split(jax.random.key(0), 400))
        seeds, days = np.asarray(drawn.seed), np.asarray(drawn.day_length)
        assert ((seeds >= low) & (seeds < high)).all()
        assert len(set(seeds)) > 395
        assert abs((seeds - low).mean() / (high - low) - 0.5) < 4.5 / np.sqrt(12 * 400)
        (least, most), *_ = read("craftax", "CraftaxClassic")[split]["day_length"]
        assert least <= days.min() < days.max() <= most


def test_steps_are_those_of_the_package_until_the_limit_cuts(family):
    task = family.world(jnp.int32(7), jnp.float32(120.0))
    params = family.env.default_params.replace(max_timesteps=10**6, day_length=jnp.float32(120.0))
    state = theirs = task.opening
    actions = np.random.default_rng(0).integers(0, 17, LIMIT)
    rewards = []
    for t, action in enumerate(actions):
        key, action = jax.random.key(t), jnp.int32(action)
        obs, state, reward, terminated, truncated, info = family.step(key, state, action, task)
        expected, theirs, pay, over, _ = family.env.step(jax.random.PRNGKey(t), theirs, action, params)
        np.testing.assert_array_equal(obs, expected)
        jax.tree.map(np.testing.assert_array_equal, state, theirs)
        assert jax.tree.map(jnp.dtype, state) == jax.tree.map(jnp.dtype, task.opening)
        assert (float(reward), bool(terminated), bool(truncated)) == (float(pay), bool(over), t + 1 == LIMIT)
        assert not info
        rewards.append(float(reward))
    assert any(rewards)
    # Death is no cut: it terminates.
    dying = state.replace(player_health=jnp.zeros_like(state.player_health), timestep=jnp.zeros_like(state.timestep))
    _, _, _, terminated, truncated, _ = family.step(jax.random.key(0), dying, jnp.int32(0), task)
    assert (bool(terminated), bool(truncated)) == (True, False)
