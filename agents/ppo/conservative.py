"""PPO that keeps above a share of a baseline's return while it learns: the idea of StepMix for neural agents.

StepMix (Zhang et al. 2023, arXiv 2306.06265) plays a safe baseline for the first steps of an episode and the learner
for the rest, and lets the learner begin as early as its lower confidence value permits. Here an episode begins with
the baseline and is handed over at the first step h at which

    LCB of the learner's return to go from s_h  >=  UCB of the baseline's return to go from s_h  -  kappa

with kappa = alpha * the baseline's known value. If both bounds hold in every state, then by optional stopping the
episode's expected return is at least the baseline's value minus kappa: what is given up is given up once, at the
handover. The bounds here are those of an ensemble of critics, which can be wrong: unlike the tabular algorithm's, this
safety is measured, not guaranteed.

Rewards are bounded, so near the end of an episode a handover is safe whatever the critics say. There the learner
begins, and from there it works its way towards the start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from engram.agents.common.returns import generalised_advantages
from engram.agents.ppo.agent import PPO, PPOState, Rollout
from engram.errors import BadRequest
from engram.kernels.rows import masked_mean
from engram.training.types import Metrics

ALGORITHMS = ("conservative", "learner", "baseline")


def cartpole(obs: jax.Array, uniforms: jax.Array) -> jax.Array:
    """A cart that is pushed to where the pole moves, and every fifth time anywhere: returns of 163 of 200."""
    towards = (obs[..., 3] + 0.1 * obs[..., 2] > 0).astype(jnp.int32)
    anywhere = (uniforms * 10).astype(jnp.int32)
    return jnp.where(anywhere < 2, anywhere, towards)


class Baseline(NamedTuple):
    """A policy to be safe with, and the environment that it is for."""

    env: str
    act: Callable[[jax.Array, jax.Array], jax.Array]
    """Observations `[B, ...]` and uniforms `[B]` -> actions `[B]`."""


BASELINES = {"cartpole": Baseline("gymnax/CartPole-v1", cartpole)}
"""By the names that `conservative.baseline` takes."""


@dataclass(frozen=True)
class ConservativeSettings:
    """When the baseline hands over to the learner."""

    baseline: str
    """The policy that begins every episode, by its name in agents/ppo/conservative.py."""
    baseline_value: float
    """Its known mean return (undiscounted)."""
    alpha: float
    """Share of that value that may be given up: the threshold is (1 - alpha) * baseline_value."""
    horizon: int
    """Most steps of an episode."""
    reward_low: float
    """Least reward of a step that an episode may still get (0 where it can end early)."""
    reward_high: float
    """Largest reward of a step."""
    members: int
    """Critics in the ensemble."""
    width: int
    """Units of their two hidden layers."""
    deviations: float
    """Confidence bounds are the ensemble's mean -+ this many deviations."""
    prior_scale: float
    """Weight of each critic's fixed random part (Osband et al. 2018), in units of the largest return: what makes
    critics differ where there is no data."""
    learning_rate: float
    """Adam's step size for the critics."""
    epochs: int
    """Gradient steps of the critics on each batch."""

    def __post_init__(self):
        if self.baseline not in BASELINES:
            known = ", ".join(BASELINES)
            raise BadRequest(f"conservative.baseline: unknown baseline {self.baseline!r}; there are {known}")
        if not 0 <= self.alpha <= 1:
            raise BadRequest(f"conservative.alpha must lie in [0, 1], got {self.alpha}")
        for name in ("horizon", "members", "width", "epochs"):
            if getattr(self, name) < 1:
                raise BadRequest(f"conservative.{name} must be at least 1, got {getattr(self, name)}")
        if not (self.reward_low < self.reward_high and self.reward_high > 0):
            raise BadRequest("conservative.reward_high must be positive and above conservative.reward_low")
        for name in ("deviations", "prior_scale", "baseline_value"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadRequest(f"conservative.{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise BadRequest(f"conservative.learning_rate must be positive, got {self.learning_rate}")
        if not self.reward_low * self.horizon <= self.baseline_value <= self.reward_high * self.horizon:
            raise BadRequest(f"conservative.baseline_value {self.baseline_value} is no return of {self.horizon} steps")

    @property
    def threshold(self) -> float:
        return (1 - self.alpha) * self.baseline_value


def may_hand_over(learner: jax.Array, baseline: jax.Array, kappa: float) -> jax.Array:
    """Whether the learner's return to go (at least) makes up for the baseline's (at most), up to `kappa`."""
    return learner >= baseline - kappa


class Critic(nn.Module):
    """Corrections to the returns to go that are assumed of baseline and learner, `[..., 2]`, in units of the largest
    return: a trained network, which begins at 0, and a fixed one."""

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
    """PPO's state, the critics', and who is in control of each environment."""

    ppo: PPOState
    critics: Any
    optimiser: Any
    learning: jax.Array
    """`[B]` bool: the learner is in control."""
    time: jax.Array
    """`[B]` int32: steps since the episode began."""

    @property
    def env(self) -> Any:
        return self.ppo.env


class Control(struct.PyTreeNode):
    """What the critics learn from, `[T, B, ...]`."""

    inputs: jax.Array
    learning: jax.Array
    handed: jax.Array
    """The learner took over at this step."""


@dataclass(frozen=True, eq=False)
class Conservative:
    """A baseline, a PPO learner, and the rule between them. `algorithm`: conservative, or learner or baseline alone."""

    ppo: PPO
    settings: ConservativeSettings
    algorithm: str

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise BadRequest(f"unknown algorithm {self.algorithm!r}; conservative has {', '.join(ALGORITHMS)}")

    @property
    def env(self) -> Any:
        return self.ppo.env

    @property
    def steps_per_update(self) -> int:
        return self.ppo.steps_per_update

    def close(self) -> None:
        """Frees the emulators, if any."""
        self.ppo.close()

    @property
    def _critic(self) -> Critic:
        return Critic(self.settings.width, self.settings.prior_scale)

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.settings.learning_rate)

    def _inputs(self, obs: jax.Array, time: jax.Array) -> jax.Array:
        return jnp.concatenate([obs, (time / self.settings.horizon)[..., None]], axis=-1)

    def init(self, key: jax.Array) -> ConservativeState:
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

    def _raw(self, critics: Any, inputs: jax.Array) -> jax.Array:
        """`[members, ..., 2]` in units of the largest return, unclipped.

        Until data say otherwise the baseline is assumed to earn the most that the remaining steps can pay, and the
        learner the least.
        """
        left = jnp.maximum(1 - inputs[..., -1:], 0)
        assumed = left * jnp.array([1.0, self.settings.reward_low / self.settings.reward_high])
        return assumed + jax.vmap(lambda critic: jnp.asarray(self._critic.apply(critic, inputs)))(critics)

    def returns_to_go(self, critics: Any, inputs: jax.Array, time: jax.Array) -> jax.Array:
        """Of each member: `[members, ..., 2]`, baseline and learner, within what the remaining steps can pay."""
        s = self.settings
        left = jnp.maximum(s.horizon - time, 0)[..., None]
        return jnp.clip(
            self._raw(critics, inputs) * s.horizon * s.reward_high, s.reward_low * left, s.reward_high * left
        )

    def safe_to_hand_over(self, critics: Any, inputs: jax.Array, time: jax.Array) -> jax.Array:
        """`[B]` bool: the learner's lower bound is at most kappa below the baseline's upper bound."""
        s = self.settings
        values = self._raw(critics, inputs) * s.horizon * s.reward_high
        left = jnp.maximum(s.horizon - time, 0)
        # Deviations of what members say before it is cut to what is possible: those that agree on a bound may differ.
        mean, deviation = jnp.mean(values, 0), jnp.std(values, 0)
        upper = jnp.minimum(mean[..., 0] + s.deviations * deviation[..., 0], s.reward_high * left)
        lower = jnp.maximum(mean[..., 1] - s.deviations * deviation[..., 1], s.reward_low * left)
        return may_hand_over(lower, upper, s.alpha * s.baseline_value)

    def _collect(self, state: ConservativeState, key: jax.Array) -> tuple[ConservativeState, Rollout, Control]:
        """As PPO's, with the baseline's actions until the handover; the learner's memory watches from the start."""
        ppo, env_params = self.ppo, self.ppo.env.default_params
        params = state.ppo.params
        baseline = BASELINES[self.settings.baseline].act

        def one_step(carry, key):
            env_state, obs, reset, memory, learning, time = carry
            action_key, baseline_key, env_key = jax.random.split(key, 3)
            inputs = self._inputs(obs, time)
            was = learning & ~reset
            if self.algorithm == "conservative":
                learning = was | self.safe_to_hand_over(state.critics, inputs, time)
            else:
                learning = jnp.full_like(reset, self.algorithm == "learner")
            memory, features = ppo._apply(params, "features_step", memory, obs, reset)
            policy = ppo._apply(params, "policy", features)
            own = policy.sample(action_key)
            action = jnp.where(learning, own, baseline(obs, jax.random.uniform(baseline_key, time.shape)))
            next_obs, env_state, reward, terminated, truncated, info = ppo.env.step(
                env_key, env_state, action, env_params
            )
            terminated, cut, final_value = ppo.ends(params, memory, terminated, truncated, info)
            row = Rollout(
                obs=obs,
                reset=reset,
                action=action,
                log_prob=policy.log_prob(action),
                features=features,
                reward=reward,
                terminated=terminated,
                truncated=cut,
                final_value=final_value,
                valid=info["valid"],
                episode_done=info["episode_done"],
                episode_return=info["episode_return"],
                episode_length=info["episode_length"],
            )
            control = Control(inputs=inputs, learning=learning, handed=learning & ~was)
            time = jnp.where(info["reset"], 0, time + info["valid"])
            return (env_state, next_obs, info["reset"], memory, learning, time), (row, control)

        before = state.ppo
        carry = (before.env, before.obs, before.reset, before.memory, state.learning, state.time)
        keys = jax.random.split(key, ppo.settings.num_steps)
        (env, obs, reset, memory, learning, time), (rollout, control) = jax.lax.scan(one_step, carry, keys)
        steps = before.env_steps + jnp.sum(rollout.valid, dtype=jnp.int32)
        after = before.replace(env=env, obs=obs, reset=reset, memory=memory, env_steps=steps)
        return state.replace(ppo=after, learning=learning, time=time), rollout, control

    def _fit_critics(
        self, state: ConservativeState, rollout: Rollout, control: Control, key: jax.Array
    ) -> tuple[ConservativeState, Metrics]:
        """Regresses each member on its own lambda-returns: the baseline's on its steps, the learner's on its own."""
        s = self.settings
        scale = s.horizon * s.reward_high
        time = jnp.round(control.inputs[..., -1] * s.horizon).astype(jnp.int32)
        last_inputs = self._inputs(state.ppo.obs, state.time)
        values = self.returns_to_go(state.critics, control.inputs, time)
        last = self.returns_to_go(state.critics, last_inputs, state.time)
        # Unlike PPO's values the critics know the time: to them a limit ends the episode.
        ended = rollout.terminated | rollout.truncated
        # What follows the baseline's last step before a handover is worth what the baseline would have made of it.
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
        # Each member sees half of the environments' rows, drawn anew: members differ where data is scarce.
        seen = jax.random.bernoulli(key, 0.5, (s.members, 1, rollout.reward.shape[1], 1)) & mine

        def loss(critics):
            return masked_mean((self._raw(critics, control.inputs) - target) ** 2, seen) * s.members

        def one_step(carry, _):
            critics, optimiser = carry
            error, gradient = jax.value_and_grad(loss)(critics)
            step, optimiser = self._optimiser.update(gradient, optimiser, critics)
            return (optax.apply_updates(critics, step), optimiser), error

        (critics, optimiser), errors = jax.lax.scan(one_step, (state.critics, state.optimiser), length=s.epochs)
        return state.replace(critics=critics, optimiser=optimiser), {"loss/critics": errors[-1]}

    def update(self, state: ConservativeState) -> tuple[ConservativeState, Metrics]:
        """Collects one batch, lets PPO learn from the learner's steps in it and the critics from all. Pure."""
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

    def evaluate(self, state: ConservativeState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """The learner alone, as PPO's."""
        return self.ppo.evaluate(state.ppo, key, axis_name)
