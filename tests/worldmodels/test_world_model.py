"""The world model: published size, sequences that equal steps, and every term of its loss in float64."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from engram.agents.drama.build import make_drama
from engram.agents.drama.experiment import DramaExperiment
from engram.envs.base import NoParams, VectorEnvironment
from engram.envs.spaces import Box, Discrete
from engram.worldmodels.world_model import LossSettings, Rows
from tests.worldmodels.small import LOSS, random_parameters, world_model

pytestmark = pytest.mark.usefixtures("quickly_compiled")
T, B, ACTIONS = 9, 4, 3


# ---------------------------------------------------------------------------------------------------------------------
# Size


@dataclass(frozen=True)
class Pictures(VectorEnvironment):
    """The shapes of an Atari game with all 18 actions."""

    num_envs: int

    @property
    def name(self):
        return "Pictures"

    @property
    def default_params(self):
        return NoParams()

    def reset(self, key, params):
        return jnp.zeros((self.num_envs, 64, 64, 3), jnp.uint8), jnp.zeros(())

    def observation_space(self, params):
        return Box(0, 255, (64, 64, 3), "uint8")

    def action_space(self, params):
        return Discrete(18)

    def max_steps(self, params):
        return 27_000


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_number_of_parameters(monkeypatch):
    monkeypatch.setattr("engram.envs.registry.make_vector", lambda _, n, **__: Pictures(n))
    config = DramaExperiment(env="ale/Any")
    state = jax.eval_shape(make_drama(config).init, jax.random.key(0))
    world = state.world
    assert count(world) == 7_161_603
    assert {name: count(block) for name, block in world.items()} == {
        "memory": 2 * 1_604_304,
        "stem": (1024 + 18) * 512 + 512,
        "stem_norm": 512,
        "final_norm": 512,
        "encoder": 231_600 + 224 + 448,
        "decoder": 231_600 + 163 + 1_049_600 + 128 + 320,
        "posterior_out": 1_049_600,
        "prior_out": 525_312,
        "reward_head": 197_119,
        "terminal_head": 131_841,
    }
    assert count(state.behaviour["actor"]) == 530_450
    assert count(state.behaviour["critic"]) == 1_444_607
    assert state.replay.rows.obs.shape == (100_000, 1, 64, 64, 3)
    assert state.replay.rows.obs.dtype == jnp.uint8


# ---------------------------------------------------------------------------------------------------------------------
# Sequences


def make_rows(seed: int = 0, obs: int = 6, resets: float = 0.3) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(
        obs=jnp.asarray(rng.integers(2, size=(T, B, obs)), jnp.float32),
        action=jax.nn.one_hot(rng.integers(ACTIONS, size=(T, B)), ACTIONS),
        reward=jnp.asarray(rng.normal(size=(T, B)), jnp.float32),
        terminal=jnp.asarray(rng.random((T, B)) < 0.3, jnp.float32),
        reset=jnp.asarray(rng.random((T, B)) < resets),
    )


ROWS = make_rows()


def test_a_sequence_equals_its_steps():
    """What is around the memory; that of each memory is in its contract."""
    world = world_model("gru")
    variables = {"params": random_parameters(world, ROWS)}
    z = jax.random.normal(jax.random.key(3), (T, B, 12))
    fresh, never = world.memory.initial_state(B), jnp.zeros((T, B), bool)
    opened = never.at[4].set(True)

    @jax.jit
    def run():
        def sequence(state, first, reset) -> Any:
            return world.apply(variables, state, z[first:], ROWS.action[first:], reset[first:], method="sequence")

        # From a state that has seen something: the resets must clear it.
        start, _ = sequence(fresh, 0, never)
        whole = sequence(start, 0, ROWS.reset)
        one_step = lambda state, row: world.apply(variables, state, *row, method="step")  # noqa: E731
        steps = jax.lax.scan(one_step, start, (z, ROWS.action, ROWS.reset))
        return whole, steps, sequence(start, 0, opened)[1][4:], sequence(fresh, 4, never)[1]

    whole, steps, cut, alone = run()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(steps), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    # After a reset in the middle all goes on as if nothing had been before.
    np.testing.assert_allclose(cut, alone, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The loss


WORLD = world_model("gru", unimix=1e-6)


@pytest.fixture(scope="module")
def sharp():
    """Parameters whose posterior is all but certain, so that the samples of the latent are known; and the loss."""
    params = random_parameters(WORLD, ROWS)
    out = params["posterior_out"]
    params = params | {"posterior_out": jax.tree.map(lambda p: 1e6 * p, out)}

    @partial(jax.jit, static_argnums=2)
    def loss(params, rows, seq_reset, free_nats, representation):
        settings = LossSettings(free_nats, representation, seq_reset)
        return WORLD.apply({"params": params}, rows, jax.random.key(5), settings, method="loss")

    return params, loss


@partial(jax.jit, static_argnums=2)
def distributions(params, rows: Rows, seq_reset: bool):
    """Posterior, prior, and what is read from latents and memory, as the model's parts give them."""

    def apply(method, *args) -> Any:
        return WORLD.apply({"params": params}, *args, method=method)

    posterior = apply("posterior", rows.obs)
    z = jnp.asarray(posterior == posterior.max(-1, keepdims=True), jnp.float32).reshape(T, B, -1)
    reset = rows.reset if seq_reset else jnp.zeros_like(rows.reset)
    _, d = apply("sequence", WORLD.memory.initial_state(B), z, rows.action, reset)
    return posterior, apply("prior", d), apply("decode", z), apply("reward_logits", d), apply("terminal_logit", d)


def cross_entropies(rows: Rows, reconstruction, reward_logits, terminal_logit):
    obs, reward, terminal = (np.asarray(x, np.float64) for x in (rows.obs, rows.reward, rows.terminal))
    pixels = -np.sum(obs * np.log(reconstruction) + (1 - obs) * np.log1p(-reconstruction), -1)
    bins = np.linspace(-20, 20, 255)
    place = np.sign(reward) * np.log1p(np.abs(reward))
    above = np.searchsorted(bins, place, side="right")
    share = (place - bins[above - 1]) / (bins[1] - bins[0])
    log_probs = scipy.special.log_softmax(reward_logits, -1)
    pick = lambda index: np.take_along_axis(log_probs, index[..., None], -1)[..., 0]  # noqa: E731
    of_reward = -(1 - share) * pick(above - 1) - share * pick(above)
    of_terminal = np.logaddexp(0, terminal_logit) - terminal * terminal_logit
    return pixels.mean(), of_reward.mean(), of_terminal.mean()


@pytest.mark.parametrize("seq_reset", [True, False])
def test_every_term_by_definition(sharp, seq_reset):
    params, loss = sharp
    posterior, prior, reconstruction, reward_logits, terminal_logit = (
        np.asarray(x, np.float64) for x in distributions(params, ROWS, seq_reset)
    )
    assert np.exp(posterior).max(-1).min() > 0.999, "the sample is not certain"
    kl = scipy.stats.entropy(np.exp(posterior[1:]), np.exp(prior[:-1]), axis=-1).sum(-1)
    kept = ~np.asarray(ROWS.reset[1:]) if seq_reset else np.ones((T - 1, B), bool)
    mean = kl[kept].mean()
    assert abs(kl.mean() - mean) > 1e-3 or not seq_reset, "dropping pairs must matter"
    pixels, reward, terminal = cross_entropies(ROWS, reconstruction, reward_logits, terminal_logit)

    # The largest free nats lie just above and just below the mean, far inside the spread of the single pairs.
    assert np.minimum(kl[kept], mean).mean() < mean - 0.1
    for free in (mean - 0.01, mean + 0.01):
        total, metrics = loss(params, ROWS, seq_reset, free, 0.25)
        assert float(metrics["loss/reconstruction"]) == pytest.approx(pixels, rel=1e-4)
        assert float(metrics["loss/reward"]) == pytest.approx(reward, rel=1e-4)
        assert float(metrics["loss/terminal"]) == pytest.approx(terminal, rel=1e-4)
        assert float(metrics["loss/dynamics"]) == pytest.approx(mean, rel=1e-4)
        expected = pixels + reward + terminal + 1.25 * max(free, mean)
        assert float(total) == pytest.approx(expected, rel=1e-4)
        assert float(metrics["loss/world"]) == float(total)


def test_resets_at_every_step_leave_no_pair(sharp):
    params, loss = sharp
    total, metrics = loss(params, ROWS.replace(reset=jnp.ones((T, B), bool)), True, 1.0, 0.1)
    assert float(metrics["loss/dynamics"]) == 0.0
    assert np.isfinite(float(total))


def test_where_the_gradients_of_the_divergences_go():
    """One input of the encoder is on at the second of two steps alone. Its weights move the second posterior and what
    is read from it, but no prior that is compared with anything."""
    world = world_model("gru")
    rows = jax.tree.map(lambda x: x[:2], make_rows(1, resets=0.0))
    rows = rows.replace(obs=rows.obs.at[:, :, 0].set(jnp.array([[0.0], [1.0]])))
    params = random_parameters(world, rows)

    def gradient(free: float, representation: float):
        settings = replace(LOSS, free_nats=free, representation=representation)
        return jax.grad(lambda p: world.apply({"params": p}, rows, jax.random.key(0), settings, method="loss")[0])(
            params
        )

    compiled = jax.jit(gradient)
    free, dynamics, both = compiled(1e6, 0.5), compiled(0.0, 0.0), compiled(0.0, 0.5)

    def late(gradient):
        return np.asarray(gradient["encoder"]["Dense_0"]["kernel"][0])

    def prior(gradient):
        return np.asarray(gradient["prior_out"]["kernel"])

    # Below the free nats neither term has a gradient.
    assert not prior(free).any()
    # The dynamics term moves the prior, and not the posterior that it aims at.
    assert np.abs(prior(dynamics)).max() > 1e-3
    np.testing.assert_allclose(late(dynamics), late(free), atol=1e-7)
    # The representation term moves the posterior, and not the prior.
    np.testing.assert_allclose(prior(both), prior(dynamics), atol=1e-7)
    assert np.abs(late(both) - late(free)).max() > 1e-4
