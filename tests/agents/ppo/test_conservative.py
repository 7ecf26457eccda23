"""The handover from a baseline to PPO: the rule against exact dynamic programming, and what the agent does with it."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.agents.ppo.conservative import Conservative, ConservativeSettings, may_hand_over
from engram.agents.ppo.experiment import ConservativeExperiment
from engram.agents.registry import build
from engram.configs.presets import PRESETS

PRESET = PRESETS["conservative"]
assert isinstance(PRESET, ConservativeExperiment)
SMALL = replace(
    PRESET, seeds=1, ppo=replace(PRESET.ppo, num_envs=16, num_steps=256, minibatches=2, epochs=1, eval_envs=4)
)


def agent(algorithm: str = "conservative", **settings) -> Conservative:
    made = build(
        replace(
            SMALL,
            algorithm=algorithm,
            conservative=replace(SMALL.conservative, members=3, width=8, epochs=4, **settings),
        )
    )
    assert isinstance(made, Conservative)
    return made


@cache
def updated(algorithm: str = "conservative", **settings):
    """State before and after one update, and its metrics."""
    made = agent(algorithm, **settings)
    before = jax.jit(made.init)(jax.random.key(0))
    return before, *jax.jit(made.update)(before)


def test_with_exact_values_the_mixture_gives_up_kappa_at_most():
    """Random MDPs of 5 steps, 4 states, 3 actions; the mixture's value by dynamic programming over step and state."""
    rng = np.random.default_rng(0)
    H, S, A = 5, 4, 3
    given_up, tempting = [], 0
    for _ in range(200):
        P = rng.dirichlet(np.full(S, 0.3), (H, S, A))
        r = rng.random((H, S, A)) ** 3
        base, learner = rng.dirichlet(np.full(A, 0.3), (2, H, S))

        def values(policy, P=P, r=r):
            v = np.zeros((H + 1, S))
            for h in reversed(range(H)):
                v[h] = np.sum(policy[h] * (r[h] + P[h] @ v[h + 1]), 1)
            return v

        v_base, v_learner = values(base), values(learner)
        kappa = 0.2 * v_base[0, 0]
        mixture = np.zeros((H + 1, S))
        for h in reversed(range(H)):
            stay = np.sum(base[h] * (r[h] + P[h] @ mixture[h + 1]), 1)
            mixture[h] = np.where(may_hand_over(v_learner[h], v_base[h], kappa), v_learner[h], stay)
        assert mixture[0, 0] >= v_base[0, 0] - kappa - 1e-12
        given_up.append(v_base[0, 0] - mixture[0, 0])
        tempting += v_learner[0, 0] < v_base[0, 0] - kappa
    assert tempting > 30  # the learner alone would have broken the promise
    assert max(given_up) > 0  # and the mixture does take risks


def test_the_rule_compares_bounds_of_what_remaining_steps_can_pay():
    made = agent(alpha=0.2, baseline_value=100.0, deviations=1.0, prior_scale=0.0)
    state = jax.jit(made.init)(jax.random.key(0))

    def safe(baseline, learner, time):
        """With critics that say these returns at `time`, each member 5 apart from the next."""
        critics = jax.tree.map(jnp.zeros_like, state.critics)
        assumed = 200 - time  # of the baseline; of the learner 0
        bias = jnp.array([[baseline - assumed + d, learner + d] for d in (-5.0, 0.0, 5.0)]) / 200
        critics["params"]["trained_2"]["bias"] = bias
        obs, now = jnp.zeros((1, 4)), jnp.array([time])
        return bool(made.safe_to_hand_over(critics, made._inputs(obs, now), now)[0])

    spread = np.std([-5, 0, 5])  # bounds are one deviation away on either side; kappa is 20
    assert safe(80, 60 + 2 * spread + 0.1, 0)
    assert not safe(80, 60 + 2 * spread - 0.1, 0)
    assert safe(150, 0, 180)  # 20 steps left can cost 20 at most
    assert not safe(150, 0, 179)


def test_control_is_handed_over_once_an_episode_and_never_back():
    made = agent()
    before = jax.jit(made.init)(jax.random.key(1))
    state, rollout, control = jax.jit(made._collect)(before, jax.random.key(2))
    learning, reset, handed = (np.asarray(x) for x in (control.learning, rollout.reset, control.handed))
    assert 0 < learning.mean() < 1
    assert not (learning[:-1] & ~learning[1:] & ~reset[1:]).any()
    assert not (handed[1:] & learning[:-1] & ~reset[1:]).any()
    episode = np.cumsum(reset, 0)
    for lane in range(reset.shape[1]):
        assert np.bincount(episode[handed[:, lane], lane], minlength=1).max() <= 1
    assert state.time.max() < SMALL.conservative.horizon
    # An episode opens with the baseline unless the rule says otherwise, whoever was in control of the one before.
    safe = np.asarray(made.safe_to_hand_over(before.critics, control.inputs, jnp.zeros(reset.shape, jnp.int32)))
    np.testing.assert_array_equal(learning[reset], safe[reset])
    assert (learning[:-1] & ~learning[1:] & reset[1:]).any()


@pytest.mark.slow
def test_without_the_learner_nothing_is_learned_and_with_alpha_0_it_is_never_trusted():
    for before, after, metrics in (updated("baseline"), updated(alpha=0.0, deviations=1e6)):
        assert metrics["train/learner_steps"] == 0
        jax.tree.map(np.testing.assert_array_equal, before.ppo.params, after.ppo.params)
        assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before.critics, after.critics)))


@pytest.mark.slow
def test_the_fixed_part_of_a_critic_stays_fixed():
    before, after, _ = updated(alpha=0.0, deviations=1e6)
    for layer in ("fixed_0", "fixed_1", "fixed_2"):
        jax.tree.map(np.testing.assert_array_equal, before.critics["params"][layer], after.critics["params"][layer])


@pytest.mark.slow
def test_the_start_of_learning_is_safe_and_that_of_the_learner_alone_is_not():
    """The first 5 updates of 4096 steps, one seed: the mean return of about 130 episodes; it spreads by about 4."""

    def mean_return(made):
        def body(state, _):
            state, metrics = made.update(state)
            return state, (metrics["train/return_sum"], metrics["train/episodes"])

        total, episodes = jax.jit(lambda s: jax.lax.scan(body, s, length=5)[1])(made.init(jax.random.key(3)))
        return total.sum() / episodes.sum()

    threshold = SMALL.conservative.threshold
    assert mean_return(agent()) > threshold
    assert mean_return(agent("learner")) < threshold / 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baseline": "carpole"}, "unknown baseline 'carpole'"),
        ({"alpha": 1.5}, "alpha must lie in"),
        ({"members": 0}, "members must be at least 1"),
        ({"baseline_value": 500.0}, "no return of 200 steps"),
        ({"deviations": -1.0}, "deviations must be finite and at least 0"),
        ({"prior_scale": float("nan")}, "prior_scale must be finite"),
        ({"reward_low": -1.0, "reward_high": 0.0}, "reward_high must be positive"),
        ({"reward_low": 1.0}, "reward_high must be positive and above"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ConservativeSettings(**{**vars(SMALL.conservative), **wrong})
