"""Behaviour by PPO in Drama's imagination: what it is measured against, its first step, its loss, where it stops."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from engram.agents.drama.agent import ImaginationState, Imagined
from tests.agents.drama.test_drama import HORIZON, LAMBDA, LATENT, TINY, WIDTH, N, agent_of, program, started

pytestmark = pytest.mark.usefixtures("quickly_compiled")
ONCE = {"behaviour": "ppo", "ppo_epochs": 1}


def learner(**settings: Any) -> Callable:
    """`learn_behaviour`, compiled."""
    fixed = {"optimiser": "adam", "warmup": 0, "behaviour_learning_rate": 0.01}
    return program(agent_of(**(fixed | settings)), "learn_behaviour")


@cache
def opened() -> Any:
    """The networks of `started`, and Adam at its start."""
    agent, state = agent_of(optimiser="adam", warmup=0), started()
    return state.replace(behaviour_optimiser=agent._behaviour_optimiser.init(state.behaviour))


def learn(out: Imagined, **settings: Any) -> tuple[Any, Any]:
    return learner(**settings)(opened(), out, opened().actor_norm)


def log_probs(behaviour: Any, x: Any, mean: Any = None, var: Any = None) -> np.ndarray:
    """Of all actions, by the policy of the published agent: inputs by running mean and deviation, cut at 10."""
    norm = started().actor_norm
    mean, var = (norm.mean if mean is None else mean), (norm.var if var is None else var)
    x = (np.asarray(x, np.float64) - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-8)
    out: Any = agent_of().actor.apply({"params": behaviour["actor"]}, jnp.asarray(np.clip(x, -10, 10), jnp.float32))
    return scipy.special.log_softmax(np.asarray(out, np.float64), -1)


def chosen(log_p: np.ndarray, action: Any) -> np.ndarray:
    return np.take_along_axis(log_p, np.asarray(action)[..., None], -1)[..., 0]


@cache
def dreamt() -> Imagined:
    """Trajectories of nowhere, and what the policy of `started` says of their actions."""
    rng = np.random.default_rng(0)
    continuation = rng.random((HORIZON, N)) < 0.8
    out = Imagined(
        features=jnp.asarray(rng.normal(size=(HORIZON + 1, N, LATENT + WIDTH)), jnp.float32),
        action=jnp.asarray(rng.integers(3, size=(HORIZON, N)), jnp.int32),
        log_prob=None,
        reward=jnp.asarray(rng.normal(size=(HORIZON, N)), jnp.float32),
        continuation=jnp.asarray(continuation, jnp.float32),
        weight=jnp.cumprod(jnp.asarray(np.concatenate([np.ones((1, N)), continuation[:-1]]), jnp.float32), axis=0),
    )
    log_p = log_probs(started().behaviour, out.features[:-1])
    return out.replace(log_prob=jnp.asarray(chosen(log_p, out.action), jnp.float32))


def recorded(out: Imagined) -> np.ndarray:
    """What the old policy says of the actions."""
    assert out.log_prob is not None
    return np.asarray(out.log_prob, np.float64)


def kl_of(behaviour: Any, out: Imagined) -> float:
    """How far a policy has moved, over the steps that count: E[(r - 1) - log r]."""
    log_ratio = chosen(log_probs(behaviour, out.features[:-1]), out.action) - recorded(out)
    return float(np.mean((np.expm1(log_ratio) - log_ratio)[np.asarray(out.weight) > 0]))


def gradients(state: Any) -> list[np.ndarray]:
    """What Adam has seen in its only step: its first moment is a tenth of it."""
    return [10.0 * np.asarray(m) for m in jax.tree.leaves(state.behaviour_optimiser[1][0].mu)]


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), a, b)


@pytest.mark.slow
def test_the_old_policy_is_the_one_that_imagined():
    """Each action is recorded under the statistics of the policy's input, which move, that it was drawn with."""
    agent, state = agent_of(behaviour="ppo", actor_norm="forward"), started()
    step, rng = jax.jit(agent.imagine_step), np.random.default_rng(3)
    z, d = (jnp.asarray(rng.normal(size=(N, width)), jnp.float32) for width in (LATENT, WIDTH))
    imagination = ImaginationState(agent.world.memory.initial_state(N), z, d, state.actor_norm)
    mean, var, count = (np.asarray(x, np.float64) for x in vars(state.actor_norm).values())
    total, squares, moved = count * mean, count * (var + mean**2), 0.0
    for key in jax.random.split(jax.random.key(0), 4):
        imagination, (x, action, log_prob) = step(state, imagination, key)
        np.testing.assert_allclose(log_prob, chosen(log_probs(state.behaviour, x, mean, var), action), atol=1e-3)
        moved = np.abs(log_prob - chosen(log_probs(state.behaviour, x), action)).max()
        x = np.asarray(x, np.float64)
        total, squares, count = total + x.sum(0), squares + (x**2).sum(0), count + N
        mean, var = total / count, squares / count - (total / count) ** 2
    assert moved > 0.05


@pytest.mark.slow
def test_the_first_step_is_that_of_the_policy_gradient():
    """One pass over the whole batch, all ratios 1: the same gradient, and the same of everything that follows."""
    ppo, metrics = learn(dreamt(), **ONCE)
    plain, expected = learn(dreamt().replace(log_prob=None))
    for a, b in zip(gradients(ppo), gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())
    for name in ("loss/value", "loss/entropy", "loss/behaviour_grad_norm", "train/return_scale"):
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
    assert float(metrics["loss/kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["train/behaviour_steps"]) == 1
    assert_close(ppo.actor_norm, plain.actor_norm)
    for slow, old, new in zip(
        *map(jax.tree.leaves, (ppo.slow_critic, started().slow_critic, ppo.behaviour["critic"])), strict=True
    ):
        np.testing.assert_allclose(slow, 0.98 * old + 0.02 * new, rtol=1e-5, atol=1e-6)


def advantages(out: Imagined) -> np.ndarray:
    """By definition, in float64, from the values that `started` gives."""
    s, agent = TINY, agent_of()
    logits: Any = agent.critic.apply({"params": started().behaviour["critic"]}, out.features)
    mean = scipy.special.softmax(np.asarray(logits, np.float64), -1) @ np.linspace(-20, 20, 255)
    v = np.sign(mean) * np.expm1(np.abs(mean))
    reward, continuation = np.asarray(out.reward, np.float64), np.asarray(out.continuation, np.float64)
    target, later = np.zeros((HORIZON, N)), v[-1]
    for t in reversed(range(HORIZON)):
        target[t] = later = reward[t] + s.discount * continuation[t] * ((1 - LAMBDA) * v[t + 1] + LAMBDA * later)
    ordered = np.sort(target, axis=None)
    spread = ordered[int(0.95 * ordered.size)] - ordered[int(0.05 * ordered.size)]
    return (target - v[:-1]) / max(1.0, 0.99 * 0.7 + 0.01 * spread)


def test_loss_and_gradient_of_the_clipped_objective_by_definition():
    """Against a policy that is far from the one that learns. The gradient of the logits is written down; only the
    network that has them is taken as it is."""
    shift = np.random.default_rng(1).normal(scale=0.4, size=(HORIZON, N))
    out = dreamt().replace(log_prob=jnp.asarray(recorded(dreamt()) + shift, jnp.float32))
    after, metrics = learn(out, **ONCE)
    log_p, advantage = log_probs(started().behaviour, out.features[:-1]), advantages(out)
    p, weight = np.exp(log_p), np.asarray(out.weight, np.float64)
    ratio, counts = np.exp(chosen(log_p, out.action) - recorded(out)), weight > 0
    entropy = -(p * log_p).sum(-1)
    objective = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    assert float(metrics["loss/policy"]) == pytest.approx(
        np.mean(weight * (-objective - TINY.entropy * entropy)), rel=1e-3
    )
    assert float(metrics["loss/clip_fraction"]) == pytest.approx(np.mean(np.abs(ratio - 1)[counts] > 0.2), abs=1e-6)
    assert float(metrics["loss/kl"]) == pytest.approx(np.mean((ratio - 1 - np.log(ratio))[counts]), rel=1e-3)

    flows = np.where(advantage > 0, ratio < 1.2, ratio > 0.8)
    assert 0.3 < flows[counts].mean() < 0.8
    of_log_prob = np.where(flows, ratio * advantage, 0.0)[..., None] * (np.eye(3)[np.asarray(out.action)] - p)
    of_entropy = -p * (log_p + entropy[..., None])
    of_logits = -weight[..., None] * (of_log_prob + TINY.entropy * of_entropy) / weight.size
    norm = started().actor_norm
    x = np.clip((np.asarray(out.features[:-1]) - np.asarray(norm.mean)) / np.sqrt(np.asarray(norm.var) + 1e-8), -10, 10)

    def logits(actor) -> Any:
        return agent_of().actor.apply({"params": actor}, jnp.asarray(x, jnp.float32))

    pull = jax.vjp(logits, started().behaviour["actor"])[1]
    expected = jax.tree.leaves(pull(jnp.asarray(of_logits, jnp.float32)))
    for a, b in zip(gradients(after), expected, strict=False):  # the actor's come first
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@cache
def bound() -> float:
    """A KL that lies beyond what the first step moves."""
    return 1.5 * kl_of(learn(dreamt(), **ONCE)[0].behaviour, dreamt())


@pytest.mark.slow
def test_a_bound_of_zero_leaves_the_first_step():
    once, _ = learn(dreamt(), **ONCE)
    stopped, metrics = learn(dreamt(), behaviour="ppo", ppo_epochs=3, ppo_kl=0.0)
    assert float(metrics["train/behaviour_steps"]) == 1
    assert float(metrics["loss/kl"]) == pytest.approx(bound() / 1.5, rel=1e-2)
    for part in ("behaviour", "behaviour_optimiser", "slow_critic"):
        assert_close(getattr(stopped, part), getattr(once, part))


def test_an_update_ends_where_the_policy_has_moved_too_far():
    after, metrics = learn(dreamt(), behaviour="ppo", ppo_epochs=8, ppo_kl=bound())
    taken, moved = int(metrics["train/behaviour_steps"]), kl_of(after.behaviour, dreamt())
    assert 1 < taken < 8
    assert int(after.behaviour_optimiser[1][0].count) == taken
    assert bound() < moved < 10 * bound()
    assert float(metrics["loss/kl"]) == pytest.approx(moved, rel=1e-2)


MINIBATCHES = {"behaviour": "ppo", "ppo_epochs": 2, "ppo_minibatch": 48, "behaviour_learning_rate": 1e-5}
"""Steps that are too small to move the policy."""


@pytest.mark.slow
def test_minibatches_hold_whole_steps_and_are_dealt_by_the_state_s_key():
    out, state, run = dreamt(), opened(), learner(**MINIBATCHES)
    after, metrics = run(state, out, state.actor_norm)
    steps = 2 * HORIZON * N // 48
    assert float(metrics["train/behaviour_steps"]) == int(after.behaviour_optimiser[1][0].count) == steps
    # Torn rows would set the probability of one action against that of another.
    assert float(metrics["loss/clip_fraction"]) == 0.0
    assert float(metrics["loss/kl"]) < 1e-4
    again, _ = run(state, out, state.actor_norm)
    other, _ = run(state.replace(key=after.key), out, state.actor_norm)
    assert_same(after.behaviour, again.behaviour)
    a, b = (jax.tree.leaves(s.behaviour)[-1] for s in (after, other))
    assert not np.array_equal(a, b)


def test_steps_after_an_end_teach_nothing_and_stop_nothing():
    out = dreamt()
    ended = out.weight == 0
    assert 0.2 < float(jnp.mean(ended)) < 0.95
    other = out.replace(
        log_prob=jnp.where(ended, -30.0, recorded(out)), action=jnp.where(ended, (out.action + 1) % 3, out.action)
    )
    for settings in ({"behaviour": "ppo", "ppo_epochs": 8, "ppo_kl": bound()}, MINIBATCHES):
        (a, metrics), (b, same) = learn(out, **settings), learn(other, **settings)
        assert_same((a.behaviour, metrics), (b.behaviour, same))


def test_minibatches_must_divide_what_is_imagined():
    assert replace(TINY, behaviour="ppo", ppo_minibatch=10**6, ppo_epochs=1).ppo_minibatch == 10**6
    assert replace(TINY, ppo_minibatch=36).ppo_minibatch == 36, "asked of PPO alone"
    with pytest.raises(ValueError, match=r"ppo_minibatch \(36\) must divide the 96 imagined steps") as error:
        replace(TINY, behaviour="ppo", ppo_minibatch=36)
    assert "\n" not in str(error.value)
    for name, value in (("ppo_clip", 0.0), ("ppo_epochs", 0), ("ppo_minibatch", 0), ("ppo_kl", -1.0)):
        with pytest.raises(ValueError, match=rf"drama\.{name} must"):
            replace(TINY, **{name: value})
