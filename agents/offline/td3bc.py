"""TD3+BC: a deterministic policy that maximises a value and stays close to the data.

Fujimoto and Gu (2021), "A minimalist approach to offline reinforcement learning", arXiv 2106.06860. The critics are
those of TD3 (Fujimoto et al. 2018, arXiv 1802.09477).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from engram.agents.common.checks import require_not_negative, require_positive
from engram.agents.offline.base import (
    Network,
    OfflineAgent,
    OfflineState,
    TwinCritic,
    ValueSettings,
    example_action,
)
from engram.agents.offline.data import OfflineData, Transitions
from engram.envs.spaces import Box
from engram.errors import BadRequest
from engram.training.types import Metrics


@dataclass(frozen=True)
class TD3BCSettings(ValueSettings):
    """Hyperparameters of TD3+BC. The defaults are the published ones."""

    normalise: bool = True
    """Standardisation of observations by the dataset's mean and standard deviation (published: on)."""
    alpha: float = 2.5
    """Weight of the value relative to imitation (published: 2.5)."""
    policy_noise: float = 0.2
    """Standard deviation of the noise on the target policy's actions, whose range is [-1, 1] (published: 0.2)."""
    noise_clip: float = 0.5
    """Largest absolute value of the noise on the target policy's actions (published: 0.5)."""
    policy_delay: int = 2
    """Steps of the critics for each step of the policy and of the target networks (published: 2)."""

    method: ClassVar[str] = "td3bc"
    ARGUMENTS: ClassVar[tuple[str, ...]] = (*ValueSettings.ARGUMENTS, "alpha", "policy_noise", "noise_clip")

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "td3bc.", "policy_delay", "alpha")
        require_not_negative(self, "td3bc.", "policy_noise", "noise_clip")


@dataclass(frozen=True, eq=False)
class TD3BC(OfflineAgent):
    """TD3+BC, for continuous actions. An update is `policy_delay` steps of the critics, then one of the policy, so that
    the compiled loop has no branch."""

    settings: TD3BCSettings

    target_networks = ("critic", "policy")

    @classmethod
    def of(cls, episodes: Any, env: Any, settings: Any, hold: Any = OfflineData.of, **fields: Any) -> Self:
        if not isinstance(env.action_space(env.default_params), Box):
            raise BadRequest("td3bc is for continuous actions: take iql, cql or odice where actions are discrete")
        return super().of(episodes, env, settings, hold, **fields)

    @property
    def steps_per_update(self) -> int:
        return self.settings.policy_delay

    @property
    def critic(self) -> TwinCritic:
        return TwinCritic(self.settings.hidden, self.action_space)

    @property
    def policy(self) -> Network:
        return Network(self.settings.hidden, self.action_space.shape[0])  # type: ignore[union-attr]

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        critic_key, policy_key = jax.random.split(key)
        x = jnp.zeros((1, size))
        return {
            "critic": self.critic.init(critic_key, x, example_action(self.action_space))["params"],
            "policy": self.policy.init(policy_key, x)["params"],
        }

    def _values(self, critic: Any, x: jax.Array, action: jax.Array) -> Any:
        return self.critic.apply({"params": critic}, x, action)

    def _actions(self, policy: Any, x: jax.Array) -> jax.Array:
        out: Any = self.policy.apply({"params": policy}, x)
        return jnp.tanh(out)

    def critic_loss(self, params: Any, target: Any, batch: Transitions, key: jax.Array) -> tuple[jax.Array, Metrics]:
        s = self.settings
        # TD3, eq. 14: the target policy's action with clipped noise, and the smaller of two values (eq. 10).
        noise = s.policy_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -s.noise_clip, s.noise_clip)
        next_action = jnp.clip(self._actions(target["policy"], batch.next_obs) + noise, -1.0, 1.0)
        next_value = jnp.min(self._values(target["critic"], batch.next_obs, next_action), axis=0)
        target_value = batch.reward + s.discount * jnp.where(batch.terminal, 0.0, next_value)
        value = self._values(params["critic"], batch.obs, batch.action)
        loss = jnp.sum(jnp.mean((value - target_value) ** 2, axis=-1))
        return loss, {"loss/critic": loss, "loss/value": jnp.mean(value)}

    def policy_loss(self, params: Any, batch: Transitions) -> tuple[jax.Array, Metrics]:
        action = self._actions(params["policy"], batch.obs)
        value = self._values(params["critic"], batch.obs, action)[0]
        # Eq. 5: values are divided by their mean absolute value in the batch, which is not differentiated.
        weight = self.settings.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(value)))
        # Eq. 3, with the opposite sign: a loss.
        imitation = jnp.mean((action - batch.action) ** 2)
        loss = -weight * jnp.mean(value) + imitation
        return loss, {"loss/policy": loss, "loss/imitation": imitation}

    def update(self, state: OfflineState, drawn: jax.Array | None = None) -> tuple[OfflineState, Metrics]:
        params, optimiser, key = state.params, state.optimiser, state.key
        batch, metrics = None, {}
        for index in range(self.settings.policy_delay):
            key, draw_key, loss_key = jax.random.split(key, 3)
            batch = self.drawn_batch(draw_key, drawn, index)
            gradient, metrics = jax.grad(self.critic_loss, has_aux=True)(params, state.target, batch, loss_key)
            params, optimiser = self._step("critic", gradient, params, optimiser)
        gradient, policy_metrics = jax.grad(self.policy_loss, has_aux=True)(params, batch)
        params, optimiser = self._step("policy", gradient, params, optimiser)
        return state.replace(
            params=params,
            target=self.update_targets(state.target, params),
            optimiser=optimiser,
            key=key,
            updates=state.updates + self.settings.policy_delay,
        ), metrics | policy_metrics

    def init(self, key: jax.Array) -> OfflineState:
        state = super().init(key)
        return state.replace(optimiser={name: self.optimiser.init(x) for name, x in state.params.items()})

    def _step(self, name: str, gradient: Any, params: Any, optimiser: Any) -> tuple[Any, Any]:
        """One step of Adam for one of the two networks."""
        step, after = self.optimiser.update(gradient[name], optimiser[name])
        return {**params, name: jax.tree.map(jnp.add, params[name], step)}, {**optimiser, name: after}

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        return acting, self._actions(params["policy"], obs)
