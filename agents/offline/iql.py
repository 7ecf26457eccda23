"""Implicit Q-learning: the value of the best actions in the data, without evaluating any others.

Kostrikov, Nair and Levine (2021), "Offline reinforcement learning with implicit Q-learning", arXiv 2110.06169.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from engram.agents.common.checks import (
    require_inner_share,
    require_not_negative,
    require_positive,
    require_share_below_one,
)
from engram.agents.offline.base import (
    OPENING_OVER,
    Network,
    OfflineAgent,
    Policy,
    TwinCritic,
    ValueSettings,
    example_action,
)
from engram.agents.offline.data import Transitions
from engram.training.types import Metrics


@dataclass(frozen=True)
class IQLSettings(ValueSettings):
    """Hyperparameters of IQL. The defaults are those published for locomotion."""

    reward_scale: float = 0.0
    """Factor of the rewards (published for AntMaze: 1). 0, published for locomotion, stands for 1000 / (highest -
    lowest return of the dataset)."""
    expectile: float = 0.7
    """Expectile of the values of actions that is the value of a state, in (0, 1) (published: 0.7; AntMaze 0.9)."""
    temperature: float = 3.0
    """Inverse temperature beta, the weight of the advantage in the exponent of the policy's loss (published: 3;
    AntMaze 10)."""
    greatest_weight: float = 100.0
    """Largest weight of an action in the policy's loss (published: 100)."""
    decay_steps: int | None = None
    """Gradient steps over which a cosine lowers the policy's learning rate to 0 (None: those of the run, as published,
    where these are 1 000 000); 0 keeps it constant."""
    dropout: float = 0.0
    """Dropout rate of the policy's hidden layers (published: 0; Adroit 0.1)."""

    method: ClassVar[str] = "iql"
    ARGUMENTS: ClassVar[tuple[str, ...]] = (*ValueSettings.ARGUMENTS, "expectile", "temperature", "greatest_weight")

    def __post_init__(self):
        super().__post_init__()
        require_inner_share(self, "iql.", "expectile")
        require_positive(self, "iql.", "greatest_weight")
        require_not_negative(self, "iql.", "temperature", "decay_steps")
        require_share_below_one(self, "iql.", "dropout")


@dataclass(frozen=True, eq=False)
class IQL(OfflineAgent):
    """Implicit Q-learning."""

    settings: IQLSettings

    target_networks = ("critic",)

    @property
    def value(self) -> Network:
        return Network(self.settings.hidden, 1)

    @property
    def critic(self) -> TwinCritic:
        return TwinCritic(self.settings.hidden, self.action_space)

    @property
    def policy(self) -> Policy:
        return Policy(self.settings.hidden, self.action_space, dropout=self.settings.dropout)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        s = self.settings
        if not s.decay_steps:
            return super().optimiser
        decaying = optax.adam(optax.cosine_decay_schedule(s.learning_rate, s.decay_steps))
        label = lambda params: {name: "policy" if name == "policy" else "other" for name in params}  # noqa: E731
        return optax.multi_transform({"policy": decaying, "other": super().optimiser}, label)

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        value_key, critic_key, policy_key = jax.random.split(key, 3)
        x = jnp.zeros((1, size))
        return {
            "value": self.value.init(value_key, x)["params"],
            "critic": self.critic.init(critic_key, x, example_action(self.action_space))["params"],
            "policy": self.policy.init(policy_key, x)["params"],
        }

    def _value(self, params: Any, x: jax.Array) -> jax.Array:
        out: Any = self.value.apply({"params": params["value"]}, x)
        return out[..., 0]

    def loss(
        self, params: Any, target: Any, batch: Transitions, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[jax.Array, Metrics]:
        s, fixed = self.settings, jax.lax.stop_gradient
        # Eq. 5: V(s) is an expectile of Q(s, a) over the data's actions, with the smaller of the two target critics.
        twins: Any = self.critic.apply({"params": target["critic"]}, batch.obs, batch.action)
        value = self._value(params, batch.obs)
        advantage = fixed(jnp.min(twins, axis=0)) - value
        value_loss = jnp.mean(jnp.abs(s.expectile - (advantage < 0)) * advantage**2)

        # Eq. 6: Q(s, a) bootstraps from V(s'), so that no action outside of the data is evaluated.
        next_value = fixed(self._value(params, batch.next_obs))
        target_value = batch.reward + s.discount * jnp.where(batch.terminal, 0.0, next_value)
        values: Any = self.critic.apply({"params": params["critic"]}, batch.obs, batch.action)
        critic_loss = jnp.sum(jnp.mean((values - target_value) ** 2, axis=-1))

        # Eq. 7: imitation with weights that grow exponentially with the advantage.
        weight = jnp.minimum(jnp.exp(s.temperature * fixed(advantage)), s.greatest_weight)
        rngs = {"dropout": key}
        policy: Any = self.policy.apply({"params": params["policy"]}, fixed(batch.obs), training=True, rngs=rngs)
        policy_loss = -jnp.mean(weight * policy.log_prob(batch.action))
        return value_loss + critic_loss + policy_loss, {
            "loss/value": value_loss,
            "loss/critic": critic_loss,
            "loss/policy": policy_loss,
            "loss/advantage": jnp.mean(advantage),
        }

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        policy: Any = self.policy.apply({"params": params["policy"]}, obs)
        return acting, policy.mode()
