"""Conservative Q-learning: values of actions that the data do not support are pushed down.

Kumar, Zhou, Tucker and Levine (2020), "Conservative Q-learning for offline reinforcement learning", arXiv 2006.04779,
in the form CQL(H) of eq. 4. Continuous actions: on top of SAC (Haarnoja et al. 2018, arXiv 1812.05905). Discrete ones:
on top of Q-learning, with the logarithm of the sum of exponentials exact and the greedy policy.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from engram.agents.offline.base import Metrics, Network, OfflineAgent, TwinCritic, ValueSettings, example_action
from engram.agents.offline.data import Transitions
from engram.envs.spaces import Discrete


@dataclass(frozen=True)
class CQLSettings(ValueSettings):
    """Hyperparameters of CQL. Published (locomotion): batch_size 256, hidden 256 256 256, learning_rate 3e-4, discount
    0.99, target_rate 0.005, normalise off, rewards as they are."""

    weight: float
    """Weight alpha of the conservative term; 0: plain Q-learning, or SAC (published: 5)."""
    policy_learning_rate: float
    """Adam's step size for the policy and its temperature (published: 1e-4). Of no meaning for discrete actions."""
    samples: int
    """Actions of each of three kinds that estimate the integral over actions (published: 10). Of no meaning for
    discrete actions."""

    method: ClassVar[str] = "cql"

    def __post_init__(self):
        super().__post_init__()
        self.require_not_negative("weight")
        self.require_positive("policy_learning_rate", "samples")


def squashed(out: jax.Array, key: jax.Array, samples: int) -> tuple[jax.Array, jax.Array]:
    """Actions `tanh(u)` of a Gaussian `u` (SAC, appendix C), `[samples, ..., A]`, and their log-densities.

    Args:
        out: `[..., 2 A]`: mean and logarithm of the deviation, which is cut to [-20, 2].
    """
    mean, log_std = jnp.split(out, 2, axis=-1)
    log_std = jnp.clip(log_std, -20.0, 2.0)
    noise = jax.random.normal(key, (samples, *mean.shape))
    u = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2), without the loss of digits where |u| is large.
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return jnp.tanh(u), jnp.sum(log_prob - log_slope, axis=-1)


@dataclass(frozen=True, eq=False)
class CQL(OfflineAgent):
    """Conservative Q-learning."""

    settings: CQLSettings

    followed = ("critic",)

    @property
    def discrete(self) -> bool:
        return isinstance(self.action_space, Discrete)

    @property
    def critic(self) -> TwinCritic:
        return TwinCritic(self.settings.hidden, self.action_space)

    @property
    def policy(self) -> Network:
        return Network(self.settings.hidden, 2 * self.action_space.shape[0], out_scale=1e-2)  # type: ignore[union-attr]

    @property
    def optimiser(self) -> optax.GradientTransformation:
        s = self.settings
        of_policy = ("policy", "log_temperature")
        label = lambda params: {name: "policy" if name in of_policy else "other" for name in params}  # noqa: E731
        return optax.multi_transform({"policy": optax.adam(s.policy_learning_rate), "other": super().optimiser}, label)

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        critic_key, policy_key = jax.random.split(key)
        x = jnp.zeros((1, size))
        params = {"critic": self.critic.init(critic_key, x, example_action(self.action_space))["params"]}
        if not self.discrete:
            params["policy"] = self.policy.init(policy_key, x)["params"]
            params["log_temperature"] = jnp.zeros(())
        return params

    def loss(self, params: Any, target: Any, batch: Transitions, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return (self.discrete_loss if self.discrete else self.continuous_loss)(params, target, batch, key)

    def _critic_loss(self, values: jax.Array, goal: jax.Array, everywhere: jax.Array) -> tuple[jax.Array, Metrics]:
        """Eq. 4 for both critics. The 1/2 before the Bellman error is left out, as in the authors' program, for which
        the published weight holds.

        Args:
            values: `[2, B]` of the data's actions.
            everywhere: `[2, B]`: the logarithm of the sum (or integral) over actions of exp(Q).
        """
        bellman = jnp.sum(jnp.mean((values - goal) ** 2, axis=-1))
        gap = jnp.sum(jnp.mean(everywhere - values, axis=-1))
        return bellman + self.settings.weight * gap, {
            "loss/critic": bellman,
            "loss/conservative": gap,
            "loss/value": jnp.mean(values),
        }

    def discrete_loss(self, params: Any, target: Any, batch: Transitions, key: jax.Array) -> tuple[jax.Array, Metrics]:
        s = self.settings
        future: Any = self.critic.apply({"params": target["critic"]}, batch.next_obs, method="every")
        next_value = jnp.max(jnp.min(future, axis=0), axis=-1)
        goal = batch.reward + s.discount * jnp.where(batch.terminal, 0.0, next_value)
        every: Any = self.critic.apply({"params": params["critic"]}, batch.obs, method="every")
        values = jnp.sum(every * jax.nn.one_hot(batch.action, every.shape[-1]), axis=-1)
        return self._critic_loss(values, jax.lax.stop_gradient(goal), jax.nn.logsumexp(every, axis=-1))

    def continuous_loss(
        self, params: Any, target: Any, batch: Transitions, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        s, fixed = self.settings, jax.lax.stop_gradient
        uniform_key, here_key, there_key, next_key, policy_key = jax.random.split(key, 5)
        size = batch.action.shape[-1]

        def values(critic, x, action):
            """`[2, samples, B]` of `samples` actions `[samples, B, A]` in each state `x[B, n]`."""
            x = jnp.broadcast_to(x, (*action.shape[:-1], x.shape[-1]))
            out: Any = self.critic.apply({"params": critic}, x, action)
            return out

        obs = fixed(batch.obs)
        out: Any = self.policy.apply({"params": params["policy"]}, obs)
        next_out: Any = self.policy.apply({"params": fixed(params["policy"])}, batch.next_obs)

        # The Bellman target of the policy's value; the entropy is not a part of it (the authors' program).
        next_action, _ = squashed(next_out, next_key, 1)
        next_value = jnp.min(values(target["critic"], batch.next_obs, next_action), axis=0)[0]
        goal = fixed(batch.reward + s.discount * jnp.where(batch.terminal, 0.0, next_value))

        # The integral over actions of exp(Q) by importance sampling (appendix F): actions that are uniform in
        # [-1, 1]^A, those of the policy, and those of the policy in the state that follows.
        uniform = jax.random.uniform(uniform_key, (s.samples, *batch.action.shape), minval=-1.0, maxval=1.0)
        here, here_log_prob = squashed(fixed(out), here_key, s.samples)
        there, there_log_prob = squashed(next_out, there_key, s.samples)
        log_density = jnp.concatenate(
            [jnp.full((s.samples, *batch.reward.shape), -size * math.log(2.0)), here_log_prob, there_log_prob]
        )
        sampled = values(params["critic"], batch.obs, fixed(jnp.concatenate([uniform, here, there])))
        everywhere = jax.nn.logsumexp(sampled - fixed(log_density), axis=1) - math.log(3 * s.samples)
        data_values = values(params["critic"], batch.obs, batch.action[None])[:, 0]
        critic_loss, metrics = self._critic_loss(data_values, goal, everywhere)

        # SAC, eq. 7 for the policy, and appendix (eq. 18 of arXiv 1812.05905) for the temperature, which holds the
        # policy's entropy at -A.
        action, log_prob = squashed(out, policy_key, 1)
        chosen = jnp.min(values(fixed(params["critic"]), obs, action), axis=0)
        temperature = jnp.exp(params["log_temperature"])
        policy_loss = jnp.mean(fixed(temperature) * log_prob - chosen)
        entropy = -jnp.mean(fixed(log_prob))
        temperature_loss = params["log_temperature"] * (entropy + size)
        return critic_loss + policy_loss + temperature_loss, metrics | {
            "loss/policy": policy_loss,
            "loss/entropy": entropy,
            "loss/temperature": temperature,
        }

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        if self.discrete:
            every: Any = self.critic.apply({"params": params["critic"]}, obs, method="every")
            return acting, jnp.argmax(jnp.min(every, axis=0), axis=-1)
        out: Any = self.policy.apply({"params": params["policy"]}, obs)
        return acting, jnp.tanh(jnp.split(out, 2, axis=-1)[0])
