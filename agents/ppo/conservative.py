"""PPO that keeps above a share of a baseline's return while it learns: the idea of StepMix for neural agents.

StepMix (Li, Huang, Shen and Yang, ICML 2023, arXiv 2306.06265) plays a safe baseline for the first steps of an episode
and the learner for the rest, and lets the learner begin as early as a lower confidence bound of the value permits. Here
an episode begins with the baseline and is handed over at the first step h at which

    LCB of the learner's return to go from s_h  >=  UCB of the baseline's return to go from s_h  -  kappa

with kappa = alpha * the baseline's known value. If both bounds hold in every state, then by optional stopping the
episode's expected return is at least the baseline's value minus kappa: what is given up is given up once, at the
handover. The bounds here are those of an ensemble of critics, which can be wrong: unlike the tabular algorithm's, this
safety is measured, not guaranteed.

Rewards are bounded, so near the end of an episode a handover is safe whatever the critics predict. There the learner
begins, and from there it works its way towards the start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from engram.agents.common.checks import (
    require_at_least,
    require_finite,
    require_not_negative,
    require_positive,
    require_share,
)
from engram.agents.common.flat import flattening
from engram.agents.common.returns import generalised_advantages
from engram.agents.ppo.agent import PPO, PPOState, Rollout
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest, UnknownName
from engram.kernels.rows import masked_mean
from engram.training.types import Key, Metrics, Params, PyTree

ALGORITHMS = ("conservative", "learner", "baseline")


def cartpole(obs: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Pushes the cart to where the pole is falling, and every fifth time anywhere: a mean return of 163 of 200."""
    towards = (obs[..., 3] + 0.1 * obs[..., 2] > 0).astype(jnp.int32)
    anywhere = (uniforms * 10).astype(jnp.int32)
    return jnp.where(anywhere < 2, anywhere, towards)


class Baseline(NamedTuple):
    """A policy to be safe with."""

    env: str
    """Id of the environment that the policy is for."""
    act: Callable[[jax.Array, jax.Array], jax.Array]
    """The policy: observations `[B, ...]` and uniforms in [0, 1) `[B]` -> actions `[B]`."""


BASELINES = {"cartpole": Baseline("gymnax/CartPole-v1", cartpole)}
"""Baselines by the names that `conservative.baseline` takes."""


@dataclass(frozen=True)
class ConservativeSettings:
    """When the baseline hands over to the learner.

    The defaults are those of our own runs on CartPole (docs/conservative.md): no paper has this agent.
    """

    baseline: str = "cartpole"
    """Policy that begins every episode, by its name in agents/ppo/conservative.py."""
    baseline_value: float = 163.0
    """Known mean return of the baseline, undiscounted."""
    alpha: float = 0.2
    """Share of baseline_value that may be given up: the threshold is (1 - alpha) * baseline_value."""
    horizon: int = 200
    """Largest number of steps of an episode."""
    reward_low: float = 0.0
    """Least reward that a remaining step of an episode can pay (0 where the episode can end early)."""
    reward_high: float = 1.0
    """Largest reward of a step."""
    members: int = 8
    """Critics in the ensemble."""
    width: int = 64
    """Units in each of the two hidden layers of a critic."""
    deviations: float = 2.0
    """Standard deviations of the ensemble between its mean and a confidence bound."""
    prior_scale: float = 0.1
    """Weight of the fixed random part of each critic (Osband et al. 2018), in units of the largest return: the source
    of disagreement where there is no data."""
    learning_rate: float = 1e-3
    """Step size of Adam for the critics."""
    epochs: int = 16
    """Gradient steps of the critics on each batch."""

    ARGUMENTS: ClassVar = ("baseline_value", "alpha", "deviations", "learning_rate")
    """Numbers that are arguments of the compiled programs (see `engram.training.arguments`)."""

    def __post_init__(self):
        if self.baseline not in BASELINES:
            raise UnknownName.among("baseline", self.baseline, BASELINES)
        require_share(self, "conservative.", "alpha")
        require_at_least(self, "conservative.", 1, "horizon", "members", "width", "epochs")
        if not (self.reward_low < self.reward_high and self.reward_high > 0):
            raise BadRequest("conservative.reward_high must be positive and above conservative.reward_low")
        require_finite(self, "conservative.", "reward_low", "reward_high")
        require_not_negative(self, "conservative.", "deviations", "prior_scale", "baseline_value")
        require_positive(self, "conservative.", "learning_rate")
        if not self.reward_low * self.horizon <= self.baseline_value <= self.reward_high * self.horizon:
            raise BadRequest(f"conservative.baseline_value {self.baseline_value} is no return of {self.horizon} steps")

    @property
    def threshold(self) -> float:
        """Least return that an episode should have in the mean."""
        return (1 - self.alpha) * self.baseline_value


def may_hand_over(learner: jax.Array, baseline: jax.Array, kappa: float) -> jax.Array:
    """Whether the learner's return to go (a lower bound) reaches the baseline's (an upper bound) less `kappa`."""
    return learner >= baseline - kappa


class Critic(nn.Module):
    """Corrections `[..., 2]` to the assumed returns to go of baseline and learner, in units of the largest return: the
    sum of a trained network, whose output begins at 0, and a fixed one."""

    width: int
    prior_scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def network(name: str, last: Any) -> jax.Array:
            h = nn.silu(nn.Dense(self.width, name=f"{name}_0")(x))
            h = nn.silu(nn.Dense(self.width, name=f"{name}_1")(h))
            return nn.Dense(2, kernel_init=last, name=f"{name}_2")(h)

        fixed = jax.lax.stop_gradient(network("fixed", nn.initializers.lecun_normal()))
        return network("trained", nn.initializers.zeros) + self.prior_scale * fixed


class ConservativeState(struct.PyTreeNode):
    """The states of PPO and of the critics, and who is in control of each environment."""

    ppo: PPOState
    critics: Params
    """Parameters of the critics, leaves `[members, ...]`."""
    optimiser: optax.OptState
    """State of the critics' optimiser."""
    learning: jax.Array
    """`[B]` bool: the learner is in control."""
    time: jax.Array
    """`[B]` int32: steps since the episode began."""

    @property
    def env(self) -> PyTree:
        return self.ppo.env


class Control(struct.PyTreeNode):
    """What the critics learn from beside the rollout, `[T, B, ...]`."""

    inputs: jax.Array
    """Inputs of the critics: observation, and share of the horizon that has passed."""
    learning: jax.Array
    """bool: the learner is in control."""
    handed: jax.Array
    """bool: the learner took over at this step."""


@dataclass(frozen=True, eq=False)
class Conservative:
    """A baseline, a PPO learner, and the rule that hands over from one to the other."""

    ppo: PPO
    settings: ConservativeSettings
    algorithm: str
    """Who acts: "conservative" (both, by the rule), or "learner" or "baseline" alone."""

    ARGUMENTS: ClassVar = ("ppo", "settings")

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise UnknownName.among("algorithm", self.algorithm, ALGORITHMS)

    @property
    def env(self) -> Wrapper:
        return self.ppo.env

    @property
    def steps_per_update(self) -> int:
        return self.ppo.steps_per_update

    def close(self) -> None:
        """Frees the emulators, if there are any. The agent cannot be used afterwards."""
        self.ppo.close()

    @property
    def _critic(self) -> Critic:
        return Critic(self.settings.width, self.settings.prior_scale)

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.settings.learning_rate)

    def _inputs(self, obs: jax.Array, time: jax.Array) -> jax.Array:
        return jnp.concatenate([obs, (time / self.settings.horizon)[..., None]], axis=-1)

    def init(self, key: Key) -> ConservativeState:
        ppo_key, key = jax.random.split(key)
        ppo = self.ppo.init(ppo_key)
        n = self.ppo.settings.num_envs
        x = self._inputs(ppo.obs, jnp.zeros(n, jnp.int32))
        critics = jax.vmap(lambda k: self._critic.init(k, x))(jax.random.split(key, self.settings.members))
        return ConservativeState(
            ppo=ppo,
            critics=critics,
            optimiser=self._optimiser.init(critics),
            learning=jnp.zeros(n, bool),
            time=jnp.zeros(n, jnp.int32),
        )

    def _predictions(self, critics: Params, inputs: jax.Array) -> jax.Array:
        """Returns to go of baseline and learner, `[members, ..., 2]`, in units of the largest return, unclipped.

        Before the critics have learned, the baseline is assumed to earn the most that the remaining steps can pay, and
        the learner the least.
        """
        left = jnp.maximum(1 - inputs[..., -1:], 0)
        assumed = left * jnp.array([1.0, self.settings.reward_low / self.settings.reward_high])
        return assumed + jax.vmap(lambda critic: jnp.asarray(self._critic.apply(critic, inputs)))(critics)

    def returns_to_go(self, critics: Params, inputs: jax.Array, time: jax.Array) -> jax.Array:
        """Returns to go of baseline and learner, `[members, ..., 2]`, within what the remaining steps can pay.

        Args:
            inputs: `[..., features]`, see `Control`.
            time: `[...]`, steps since the episode began.
        """
        s = self.settings
        left = jnp.maximum(s.horizon - time, 0)[..., None]
        return jnp.clip(
            self._predictions(critics, inputs) * s.horizon * s.reward_high, s.reward_low * left, s.reward_high * left
        )

    def safe_to_hand_over(self, critics: Params, inputs: jax.Array, time: jax.Array) -> jax.Array:
        """`[B]` bool: the lower bound of the learner is at most kappa below the upper bound of the baseline."""
        s = self.settings
        values = self._predictions(critics, inputs) * s.horizon * s.reward_high
        left = jnp.maximum(s.horizon - time, 0)
        # The deviation is that of unclipped predictions: clipped ones could agree on a bound while the members differ.
        mean, deviation = jnp.mean(values, 0), jnp.std(values, 0)
        upper = jnp.minimum(mean[..., 0] + s.deviations * deviation[..., 0], s.reward_high * left)
        lower = jnp.maximum(mean[..., 1] - s.deviations * deviation[..., 1], s.reward_low * left)
        return may_hand_over(lower, upper, s.alpha * s.baseline_value)

    def _collect(self, state: ConservativeState, key: Key) -> tuple[ConservativeState, Rollout, Control]:
        """As PPO collects, with actions of the baseline until the handover. The learner's memory sees every step."""
        ppo, params = self.ppo, state.ppo.params
        baseline = BASELINES[self.settings.baseline].act

        def one_step(carry, key):
            acting, learning, time = carry
            action_key, baseline_key, env_key = jax.random.split(key, 3)
            inputs = self._inputs(acting.obs, time)
            was = learning & ~acting.reset
            if self.algorithm == "conservative":
                learning = was | self.safe_to_hand_over(state.critics, inputs, time)
            else:
                learning = jnp.full_like(was, self.algorithm == "learner")

            def choose(policy):
                uniforms = jax.random.uniform(baseline_key, time.shape)
                return jnp.where(learning, policy.sample(action_key), baseline(acting.obs, uniforms))

            acting, row = ppo.step(params, acting, env_key, choose)
            time = jnp.where(acting.reset, 0, time + row.valid)
            return (acting, learning, time), (row, Control(inputs=inputs, learning=learning, handed=learning & ~was))

        carry = (ppo.carry(state.ppo), state.learning, state.time)
        keys = jax.random.split(key, ppo.settings.num_steps)
        (acting, learning, time), (rollout, control) = jax.lax.scan(one_step, carry, keys)
        after = ppo.after(state.ppo, acting, rollout)
        return state.replace(ppo=after, learning=learning, time=time), rollout, control

    def _fit_critics(
        self, state: ConservativeState, rollout: Rollout, control: Control, key: Key
    ) -> tuple[ConservativeState, Metrics]:
        """Regresses each member on lambda-returns of its own predictions: on the steps of the baseline those of the
        baseline, on the steps of the learner those of the learner."""
        s = self.settings
        scale = s.horizon * s.reward_high
        time = jnp.round(control.inputs[..., -1] * s.horizon).astype(jnp.int32)
        last_inputs = self._inputs(state.ppo.obs, state.time)
        values = self.returns_to_go(state.critics, control.inputs, time)
        last = self.returns_to_go(state.critics, last_inputs, state.time)
        # Unlike PPO's values the critics know the time: to them a limit ends the episode.
        ended = rollout.terminated | rollout.truncated
        # The baseline's last step before a handover bootstraps from the baseline's value: it could have gone on.
        next_handed = jnp.concatenate([control.handed[1:], jnp.zeros_like(control.handed[:1])])
        cut = next_handed & ~ended & ~control.learning

        def targets(value, last):
            following = jnp.concatenate([value[1:], last[None]])
            sides = []
            for side, truncated in ((0, cut), (1, jnp.zeros_like(cut))):
                advantage = generalised_advantages(
                    rollout.reward,
                    value[..., side],
                    following[..., side],
                    last[..., side],
                    ended,
                    truncated,
                    1.0,
                    self.ppo.settings.gae_lambda,
                )
                sides.append(advantage + value[..., side])
            return jnp.stack(sides, -1)

        target = jax.lax.stop_gradient(jax.vmap(targets)(values, last)) / scale
        mine = jnp.stack([~control.learning, control.learning], -1) & rollout.valid[..., None]
        # Each member learns from half of the environments, drawn anew: members differ where data is scarce.
        seen = jax.random.bernoulli(key, 0.5, (s.members, 1, rollout.reward.shape[1], 1)) & mine

        def loss(critics):
            return masked_mean((self._predictions(critics, control.inputs) - target) ** 2, seen) * s.members

        flatten, unflatten = flattening(state.critics)

        def one_step(carry, _):
            critics, optimiser = carry
            error, gradient = jax.value_and_grad(loss)(unflatten(critics))
            step, optimiser = self._optimiser.update(flatten(gradient), optimiser)
            return (critics + step, optimiser), error

        carry, errors = jax.lax.scan(one_step, flatten((state.critics, state.optimiser)), length=s.epochs)
        critics, optimiser = unflatten(carry)
        return state.replace(critics=critics, optimiser=optimiser), {"loss/critics": errors[-1]}

    def update(self, state: ConservativeState) -> tuple[ConservativeState, Metrics]:
        """Collects one batch. PPO learns from the steps of the learner, the critics from all."""
        key, collect_key, shuffle_key, critic_key = jax.random.split(state.ppo.key, 4)
        state = state.replace(ppo=state.ppo.replace(key=key))
        memory_before = state.ppo.memory
        state, rollout, control = self._collect(state, collect_key)
        own = rollout.replace(valid=rollout.valid & control.learning)
        ppo, metrics = self.ppo.learn(state.ppo, memory_before, own, shuffle_key)
        state, critic_metrics = self._fit_critics(state.replace(ppo=ppo), rollout, control, critic_key)
        begun = rollout.reset & rollout.valid
        metrics |= critic_metrics | {
            "train/threshold": jnp.float32(self.settings.threshold),
            "train/learner_steps": masked_mean(control.learning.astype(jnp.float32), rollout.valid),
            "train/learner_episodes": masked_mean(control.learning.astype(jnp.float32), begun),
        }
        return state, metrics

    def evaluate(self, state: ConservativeState, key: Key, axis_name: str | None = None) -> Metrics:
        """Plays with the learner alone, as PPO does."""
        return self.ppo.evaluate(state.ppo, key, axis_name)
