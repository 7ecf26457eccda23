"""Conservative Q-learning: values of actions that the data do not support are pushed down.

Kumar, Zhou, Tucker and Levine (2020), "Conservative Q-learning for offline reinforcement learning", arXiv 2006.04779,
in the form CQL(H) of eq. 4. For continuous actions it is built on SAC (Haarnoja et al. 2018, arXiv 1812.05905), for
discrete ones on Q-learning with the greedy policy, where the log-sum-exp over actions is exact.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from engram.agents.common.checks import require_not_negative, require_positive
from engram.agents.offline.base import OPENING_OVER, Network, OfflineAgent, TwinCritic, ValueSettings, example_action
from engram.agents.offline.data import Transitions
from engram.envs.spaces import Discrete
from engram.training.types import Metrics


@dataclass(frozen=True)
class CQLSettings(ValueSettings):
    """Hyperparameters of CQL. The defaults are those published for locomotion."""

    hidden: tuple[int, ...] = (256, 256, 256)
    """Sizes of the hidden layers of every network (published: 256 256 256). Without any the networks are linear, which
    makes tables of them where observations are one-hot."""
    weight: float = 5.0
    """Weight alpha of the conservative term (published: 5). 0 gives plain Q-learning, or SAC."""
    policy_learning_rate: float = 1e-4
    """Learning rate of Adam for the policy and its temperature (published: 1e-4). Without effect for discrete
    actions."""
    samples: int = 10
    """Samples of each of three kinds of actions that estimate the integral over actions (published: 10). Without effect
    for discrete actions."""

    clone_steps: int = 40_000
    """Gradient steps at the start in which the policy imitates the actions of the data instead of seeking values, of
    which the critics know nothing yet (published: 40 000). Without effect for discrete actions."""

    method: ClassVar[str] = "cql"
    ARGUMENTS: ClassVar[tuple[str, ...]] = (*ValueSettings.ARGUMENTS, "weight", "policy_learning_rate")

    def __post_init__(self):
        super().__post_init__()
        require_not_negative(self, "cql.", "weight", "clone_steps")
        require_positive(self, "cql.", "policy_learning_rate", "samples")


def squashed(out: jax.Array, key: jax.Array, samples: int) -> tuple[jax.Array, jax.Array]:
    """Samples of actions `tanh(u)` with a Gaussian `u` (SAC, appendix C), and their log-densities.

    Args:
        out: `[..., 2 A]`, mean and logarithm of the standard deviation of `u`; the latter is clipped to [-20, 2].

    Returns:
        actions `[samples, ..., A]`, log-densities `[samples, ...]`.
    """
    mean, log_std = _gaussian(out)
    noise = jax.random.normal(key, (samples, *mean.shape))
    u = mean + jnp.exp(log_std) * noise
    return jnp.tanh(u), _log_density(noise, log_std, u)


def log_density_of(out: jax.Array, action: jax.Array) -> jax.Array:
    """Log-density `[...]` of given actions `[..., A]` under the policy that `squashed` draws from. Actions at a bound,
    which it never reaches, count as if they were 1e-6 away from it."""
    mean, log_std = _gaussian(out)
    u = jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6))
    return _log_density((u - mean) * jnp.exp(-log_std), log_std, u)


def _gaussian(out: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, log_std = jnp.split(out, 2, axis=-1)
    return mean, jnp.clip(log_std, -20.0, 2.0)


def _log_density(noise: jax.Array, log_std: jax.Array, u: jax.Array) -> jax.Array:
    """That of `tanh(u)`, for `u` that is `noise` standard deviations from its mean."""
    log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2), without loss of precision where |u| is large.
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return jnp.sum(log_prob - log_slope, axis=-1)


@dataclass(frozen=True, eq=False)
class CQL(OfflineAgent):
    """Conservative Q-learning."""

    settings: CQLSettings

    target_networks = ("critic",)

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

    def loss(
        self, params: Any, target: Any, batch: Transitions, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[jax.Array, Metrics]:
        if self.discrete:
            return self.discrete_loss(params, target, batch, key)
        return self.continuous_loss(params, target, batch, key, updates)

    def _critic_loss(
        self, values: jax.Array, target_value: jax.Array, logsumexp: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Eq. 4 for both critics. The factor 1/2 of the Bellman error is left out, as in the authors' program, to which
        the published weight belongs.

        Args:
            values: `[2, B]`, Q of the data's actions.
            target_value: `[B]`, Bellman target.
            logsumexp: `[2, B]`, logarithm of the sum (or integral) over actions of exp(Q).
        """
        bellman = jnp.sum(jnp.mean((values - target_value) ** 2, axis=-1))
        gap = jnp.sum(jnp.mean(logsumexp - values, axis=-1))
        return bellman + self.settings.weight * gap, {
            "loss/critic": bellman,
            "loss/conservative": gap,
            "loss/value": jnp.mean(values),
        }

    def discrete_loss(self, params: Any, target: Any, batch: Transitions, key: jax.Array) -> tuple[jax.Array, Metrics]:
        s = self.settings
        next_values = self._all_actions(target["critic"], batch.next_obs)
        next_value = jnp.max(jnp.min(next_values, axis=0), axis=-1)
        target_value = batch.reward + s.discount * jnp.where(batch.terminal, 0.0, next_value)
        values = self._all_actions(params["critic"], batch.obs)
        data_values = jnp.sum(values * jax.nn.one_hot(batch.action, values.shape[-1]), axis=-1)
        return self._critic_loss(data_values, jax.lax.stop_gradient(target_value), jax.nn.logsumexp(values, axis=-1))

    def _all_actions(self, critic: Any, x: jax.Array) -> Any:
        """Values of all discrete actions, `x[B, n]` -> `[2, B, actions]`."""
        return self.critic.apply({"params": critic}, x, method="all_actions")

    def continuous_loss(
        self, params: Any, target: Any, batch: Transitions, key: jax.Array, updates: jax.Array | int
    ) -> tuple[jax.Array, Metrics]:
        s, fixed = self.settings, jax.lax.stop_gradient
        uniform_key, current_key, following_key, next_key, policy_key = jax.random.split(key, 5)
        size = batch.action.shape[-1]

        def values(critic, x, action):
            """Values `[2, samples, B]` of actions `[samples, B, A]` in states `x[B, n]`."""
            x = jnp.broadcast_to(x, (*action.shape[:-1], x.shape[-1]))
            out: Any = self.critic.apply({"params": critic}, x, action)
            return out

        obs = fixed(batch.obs)
        out: Any = self.policy.apply({"params": params["policy"]}, obs)
        next_out: Any = self.policy.apply({"params": fixed(params["policy"])}, batch.next_obs)

        # The Bellman target for the policy's value, without the entropy (as in the authors' program).
        next_action, _ = squashed(next_out, next_key, 1)
        next_value = jnp.min(values(target["critic"], batch.next_obs, next_action), axis=0)[0]
        target_value = fixed(batch.reward + s.discount * jnp.where(batch.terminal, 0.0, next_value))

        # The integral over actions of exp(Q) by importance sampling (appendix F): uniform actions in [-1, 1]^A, the
        # policy's actions in the current state, and the policy's actions in the next state.
        uniform = jax.random.uniform(uniform_key, (s.samples, *batch.action.shape), minval=-1.0, maxval=1.0)
        uniform_log_density = jnp.full((s.samples, *batch.reward.shape), -size * math.log(2.0))
        current, current_log_density = squashed(fixed(out), current_key, s.samples)
        following, following_log_density = squashed(next_out, following_key, s.samples)
        actions = fixed(jnp.concatenate([uniform, current, following]))
        log_density = fixed(jnp.concatenate([uniform_log_density, current_log_density, following_log_density]))
        sampled = values(params["critic"], batch.obs, actions)
        logsumexp = jax.nn.logsumexp(sampled - log_density, axis=1) - math.log(3 * s.samples)
        data_values = values(params["critic"], batch.obs, batch.action[None])[:, 0]
        critic_loss, metrics = self._critic_loss(data_values, target_value, logsumexp)

        # SAC, eq. 7 for the policy, and eq. 18 of arXiv 1812.05905 for the temperature, which holds the policy's
        # entropy at -A. At the start the data's actions take the place of values.
        action, log_prob = squashed(out, policy_key, 1)
        value = jnp.min(values(fixed(params["critic"]), obs, action), axis=0)
        temperature = jnp.exp(params["log_temperature"])
        goal = jnp.where(updates < s.clone_steps, log_density_of(out, batch.action), value[0])
        policy_loss = jnp.mean(fixed(temperature) * log_prob[0] - goal)
        entropy = -jnp.mean(fixed(log_prob))
        temperature_loss = params["log_temperature"] * (entropy + size)
        return critic_loss + policy_loss + temperature_loss, metrics | {
            "loss/policy": policy_loss,
            "loss/entropy": entropy,
            "loss/temperature": temperature,
        }

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        if self.discrete:
            return acting, jnp.argmax(jnp.min(self._all_actions(params["critic"], obs), axis=0), axis=-1)
        out: Any = self.policy.apply({"params": params["policy"]}, obs)
        return acting, jnp.tanh(jnp.split(out, 2, axis=-1)[0])
