"""ODICE: a distribution correction whose value takes the part of the gradient at the next state that does not conflict.

Mao, Xu, Zhang and Zhan (2024), "ODICE: revealing the mystery of distribution correction estimation via
orthogonal-gradient update", arXiv 2402.00348. Minimise over V

    (1 - lambda) E[V(s)] + lambda E[f*(r + gamma V(s') - V(s))],

with f* the convex conjugate of the Pearson chi-square divergence. Its gradient has a part at s (forward) and one at s'
(backward). With all of the backward part ("true") it can cancel the forward part. Without it ("semi") V does not
distinguish states outside of the data. "orthogonal" adds the component of the backward part that is orthogonal to the
forward part. The policy imitates the data with the weights that V implies.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from engram.agents.common.checks import require_inner_share, require_not_negative, require_sizes
from engram.agents.offline.base import OPENING_OVER, OfflineAgent, Policy, TwinValue, ValueSettings
from engram.agents.offline.data import Transitions
from engram.training.types import Metrics

GREATEST_WEIGHT = 100.0
"""Largest weight of an action in the policy's loss (authors' program)."""


@dataclass(frozen=True)
class ODICESettings(ValueSettings):
    """Hyperparameters of ODICE. The defaults are those published for locomotion; `hidden` is that of the values."""

    learning_rate: float = 2e-4
    """Learning rate of Adam (published: 2e-4)."""
    reward_scale: float = 0.0
    """Factor of the rewards (published for AntMaze: 3, with a shift of -3). 0, published for locomotion, stands for
    1000 / (highest - lowest return of the dataset)."""
    policy_hidden: tuple[int, ...] = (1024, 1024)
    """Sizes of the policy's hidden layers (published: 1024 1024)."""
    policy_weight_decay: float = 1e-4
    """L2 regularisation of the policy: its parameters times this are added to its gradient (published: 1e-4)."""
    residual_weight: float = 0.6
    """Weight lambda of the Bellman residual, in (0, 1); the value itself has the weight 1 - lambda (published: 0.6)."""
    eta: float = 1.0
    """Weight of the backward gradient where variant is orthogonal (published: 1)."""
    variant: Literal["orthogonal", "true", "semi"] = "orthogonal"
    """Use of the backward gradient: its component orthogonal to the forward gradient, all of it, or none of it."""
    layer_norm: bool = True
    """LayerNorm in the value networks (published: on, off for AntMaze)."""
    twin: bool = True
    """Two value networks, of which the smaller target value counts (published: on, off for AntMaze)."""
    bounded: bool = False
    """A tanh that bounds the policy's mean (published: off). Actions are clipped to their bounds either way."""

    method: ClassVar[str] = "odice"
    ARGUMENTS: ClassVar[tuple[str, ...]] = (*ValueSettings.ARGUMENTS, "policy_weight_decay", "residual_weight", "eta")

    def __post_init__(self):
        super().__post_init__()
        require_sizes(self, "odice.", "policy_hidden")
        require_inner_share(self, "odice.", "residual_weight")
        require_not_negative(self, "odice.", "eta", "policy_weight_decay")


def conjugate(y: jax.Array) -> jax.Array:
    """f*(y) = max over w >= 0 of w y - (w - 1)^2: the convex conjugate of the Pearson chi-square divergence."""
    w = jnp.maximum(y / 2.0 + 1.0, 0.0)
    return w * y - (w - 1.0) ** 2


def orthogonalised(forward: Any, backward: Any) -> tuple[Any, Any]:
    """The component of `backward` that is orthogonal to `forward`, each taken as one long vector, and the cosine of the
    two."""
    along, size = optax.tree.vdot(forward, backward), optax.tree.vdot(forward, forward)
    share = along / jnp.maximum(size, 1e-10)  # the forward gradient is 0 where f* is flat for the whole batch
    cosine = along * jax.lax.rsqrt(jnp.maximum(size * optax.tree.vdot(backward, backward), 1e-20))
    return optax.tree.add_scale(backward, -share, forward), cosine


@dataclass(frozen=True, eq=False)
class ODICE(OfflineAgent):
    """ODICE, and the two other gradients that its paper compares with."""

    settings: ODICESettings

    target_networks = ("value",)

    @property
    def value(self) -> TwinValue:
        return TwinValue(self.settings.hidden, self.settings.layer_norm, count=2 if self.settings.twin else 1)

    @property
    def policy(self) -> Policy:
        return Policy(self.settings.policy_hidden, self.action_space, self.settings.bounded)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        adam = optax.adam(self.settings.learning_rate)
        decayed = optax.chain(optax.add_decayed_weights(self.settings.policy_weight_decay), adam)
        return optax.multi_transform({"value": adam, "policy": decayed}, lambda params: {name: name for name in params})

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        value_key, policy_key = jax.random.split(key)
        x = jnp.zeros((1, size))
        return {
            "value": self.value.init(value_key, x)["params"],
            "policy": self.policy.init(policy_key, x)["params"],
        }

    def _values(self, params: Any, x: jax.Array) -> Any:
        return self.value.apply({"params": params}, x)

    def residual(self, value: Any, next_value: Any, batch: Transitions) -> jax.Array:
        """Bellman residuals r + gamma V(s') - V(s) of each value network, `[2, B]` (of a single one `[1, B]`).

        Args:
            value, next_value: V(s) and V(s'), `[2, B]` or `[B]`.
        """
        return batch.reward + self.settings.discount * jnp.where(batch.terminal, 0.0, next_value) - value

    def value_gradients(self, value: Any, target: Any, batch: Transitions) -> tuple[Any, Any, jax.Array]:
        """The gradients at s and at s' of lambda E[f*], and the residuals `[2, B]` that weight the policy's loss."""
        s = self.settings
        target_value = jnp.min(self._values(target["value"], batch.obs), axis=0)
        target_next_value = jnp.min(self._values(target["value"], batch.next_obs), axis=0)

        def forward(value):
            residual = self.residual(self._values(value, batch.obs), target_next_value, batch)
            return s.residual_weight * jnp.mean(conjugate(residual)), residual

        def backward(value):
            residual = self.residual(target_value, self._values(value, batch.next_obs), batch)
            return s.residual_weight * s.eta * jnp.mean(conjugate(residual))

        g_forward, residual = jax.grad(forward, has_aux=True)(value)
        return g_forward, jax.grad(backward)(value), residual

    def true_gradient(self, value: Any, batch: Transitions) -> tuple[Any, jax.Array]:
        """The full gradient of lambda E[f*], at s and s' together, and the residuals `[2, B]`."""

        def loss(value):
            residual = self.residual(self._values(value, batch.obs), self._values(value, batch.next_obs), batch)
            return self.settings.residual_weight * jnp.mean(conjugate(residual)), residual

        return jax.grad(loss, has_aux=True)(value)

    def gradient(
        self, params: Any, target: Any, batch: Transitions, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[Any, Metrics]:
        s, value, metrics = self.settings, params["value"], {}
        if s.variant == "true":
            g, residual = self.true_gradient(value, batch)
        else:
            g, g_backward, residual = self.value_gradients(value, target, batch)
            if s.variant == "orthogonal":
                projected, metrics["loss/gradient_cosine"] = orthogonalised(g, g_backward)
                g = optax.tree.add(g, projected)
        g_mean, mean_value = jax.grad(self.mean_value, has_aux=True)(value, batch)
        g = optax.tree.add(g, g_mean)

        # The authors' program takes w = max(y, 0) for max(f'^-1(y), 0) = max(y / 2 + 1, 0).
        weight = jnp.mean(jnp.clip(residual, 0.0, GREATEST_WEIGHT), axis=0)
        g_policy, policy_loss = jax.grad(self.policy_loss, has_aux=True)(params["policy"], batch, weight)
        return {"value": g, "policy": g_policy}, metrics | {
            "loss/residual": s.residual_weight * jnp.mean(conjugate(residual)),
            "loss/value": mean_value,
            "loss/policy": policy_loss,
            "loss/weight": jnp.mean(weight),
        }

    def mean_value(self, value: Any, batch: Transitions) -> tuple[jax.Array, jax.Array]:
        """(1 - lambda) E[V(s)], and E[V(s)]."""
        mean = jnp.mean(self._values(value, batch.obs))
        return (1.0 - self.settings.residual_weight) * mean, mean

    def policy_loss(self, policy: Any, batch: Transitions, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        distribution: Any = self.policy.apply({"params": policy}, batch.obs)
        loss = -jnp.mean(weight * distribution.log_prob(batch.action))
        return loss, loss

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        policy: Any = self.policy.apply({"params": params["policy"]}, obs)
        return acting, policy.mode()
