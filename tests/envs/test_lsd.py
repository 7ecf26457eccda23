"""Last-switch-dependent bandits: states, payoffs, instances, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.bandits import last_switch as lsd
from engram.envs.base import NoParams
from tests.oracles import lsd as mirror


def test_transitions():
    """Playing counts down from -1 to -M, idling up from 1 to N; a switch starts at one."""
    M, N = 2, 3
    table = {-2: (-2, 1), -1: (-2, 1), 1: (-1, 2), 2: (-1, 3), 3: (-1, 3)}  # tau: (when played, when idle)
    tau = jnp.array(list(table))
    assert [*zip(*(lsd.after(tau, p, M, N).tolist() for p in (True, False)), strict=True)] == list(table.values())
    assert [lsd.column(jnp.int32(x), M).item() for x in table] == [0, 1, 2, 3, 4]
    assert [(mirror.step(x, True, M, N), mirror.step(x, False, M, N)) for x in table] == list(table.values())


@pytest.mark.parametrize("M", [1, 3])
def test_trajectory_of_the_mirror(M):
    """Any actions, nobody among them: same states, payoffs and means as one arm at a time in NumPy."""
    with jax.enable_x64(True):
        env, rng = lsd.random(3, M, 2, instance_seed=M), np.random.default_rng(0)
        actions, coins = rng.integers(0, 4, 300), rng.random((300, 1))
        # Long runs of one arm, so that limits are met.
        actions = np.repeat(actions, rng.integers(1, 5, 300))[:300]
        _, state = env.reset(jax.random.key(0), NoParams())

        def step(state, x):
            _, new, reward, _, _, info = env.transition(state, x[0], x[1], NoParams())
            return new, (state.tau, reward, info["mean"])

        _, (tau, reward, mean) = jax.lax.scan(step, state, (jnp.asarray(actions), jnp.asarray(coins)))
        bandit = mirror.Bandit(mirror.dicts(np.asarray(state.payoffs), M))
        assert bandit.tau == [2, 2, 2]
        for t in range(300):
            np.testing.assert_array_equal(tau[t], bandit.tau)
            assert bandit.play(actions[t], coins[t, 0]) == (reward[t], mean[t])
        assert set(np.unique(tau)) == {*range(-M, 0), 1, 2}


def test_payoffs_are_bernoulli():
    """Null: P(reward) = 0.3. 20,000 plays, 4.5 standard errors: false alarm 7e-6."""
    env = lsd.from_payoffs([[0.3, 0.3]], 1)
    _, state = env.reset(jax.random.key(0), NoParams())
    keys = jax.random.split(jax.random.key(1), 20_000)
    reward = jax.vmap(lambda key: env.step(key, state, 0, NoParams())[2])(keys)
    assert set(np.unique(reward)) == {0, 1}
    assert abs(np.mean(reward) - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / 20_000)


@pytest.mark.parametrize("name", lsd.NAMES)
def test_instances(name):
    env = lsd.NAMES[name]()
    obs, state = env.reset(jax.random.key(0), NoParams())
    payoffs = np.asarray(state.payoffs)
    assert payoffs.shape == (env.arms, env.played_limit + env.idle_limit)
    assert ((payoffs >= 0) & (payoffs <= 1)).all()
    assert (np.diff(payoffs, axis=1) >= 0).all() == env.monotone
    assert env.action_space(NoParams()).n == env.arms + 1
    for action in (0, env.arms):
        space = env.observation_space(NoParams())
        assert obs.shape == space.shape
        assert obs.dtype == jnp.float32
        assert (np.abs(obs) <= 1).all()
        obs, state, reward, terminated, truncated, info = env.step(jax.random.key(1), state, action, NoParams())
        assert not terminated
        assert not truncated
        np.testing.assert_array_equal(state.payoffs, payoffs)
    assert reward == info["mean"] == 0  # nobody played


def test_seeds_and_instances():
    """Each seed has its own instance, unless the instance has a seed of its own."""
    draw = lambda env, seed: np.asarray(env.reset(jax.random.key(seed), NoParams())[1].payoffs)  # noqa: E731
    assert not np.array_equal(draw(lsd.random(), 0), draw(lsd.random(), 1))
    np.testing.assert_array_equal(draw(lsd.random(instance_seed=5), 0), draw(lsd.random(instance_seed=5), 1))
    assert not np.array_equal(draw(lsd.random(instance_seed=5), 0), draw(lsd.random(instance_seed=6), 0))


def test_experiments_of_the_paper():
    """Laforgue et al. (2022): payoffs by delay d, which is d - 1 idle rounds and column d - 1 when M = 1."""
    five = np.asarray(lsd.delay_three().draw(jax.random.key(0)))
    two = np.asarray(lsd.delay_two().draw(jax.random.key(0)))
    for d in range(1, 10):
        late = 0.14 if d < 6 else 0.16 if d < 9 else 0.96
        np.testing.assert_allclose(five[:, d - 1], [0.15, 0.95 if d == 3 else 0.15, late, 0.15, 0.15])
        np.testing.assert_allclose(two[:, d - 1], [0.05, 0.06 if d == 1 else 0.95])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lsd.from_payoffs([[0.1, 0.2], [0.3, 0.2]], 1), "must not fall with tau, but those of arm 1 do"),
        (lambda: lsd.from_payoffs([[0.1, 1.2]], 1), r"must lie in \[0, 1\]"),
        (lambda: lsd.from_payoffs([[-0.1, 0.2]], 1), r"must lie in \[0, 1\]"),
        (lambda: lsd.from_payoffs([[np.nan, 0.2]], 1), r"must lie in \[0, 1\]"),
        (lambda: lsd.from_payoffs([[0.1, 0.2], [0.3]], 1), "as many columns for every arm"),
        (lambda: lsd.from_payoffs([[0.1, 0.2]], 2), "N >= 1"),
        (lambda: lsd.from_payoffs([[0.1, 0.2]], 0), "N >= 1"),
        (lambda: lsd.from_payoffs([], 1), "N >= 1"),
        (lambda: lsd.random(arms=0), "at least 1"),
        (lambda: lsd.recharging(idle=0), "at least 1"),
        (lambda: lsd.tight(1), "at least 2"),
    ],
)
def test_impossible_instances(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_payoffs_that_fall_are_allowed_when_said_so():
    assert not lsd.from_payoffs([[0.3, 0.2]], 1, monotone=False).monotone
