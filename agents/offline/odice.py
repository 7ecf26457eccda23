"""ODICE: a distribution correction whose value takes the part of the gradient at the next state that does not conflict.

Mao, Xu, Zhang and Zhan (2024), "ODICE: revealing the mystery of distribution correction estimation via
orthogonal-gradient update", arXiv 2402.00348. Minimise over V

    (1 - lambda) E[V(s)] + lambda E[f*(r + gamma V(s') - V(s))],

with f* the convex conjugate of the Pearson chi-square divergence. Its gradient has a part at s (forward) and one at s'
(backward). Used as it is ("true") the backward part can undo the forward one; without it ("semi") V does not
distinguish what lies outside of the data; "orthogonal" adds what of it is orthogonal to the forward part. The policy
imitates the data with the weights that V implies.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from engram.agents.offline.base import Metrics, OfflineAgent, Policy, TwinValue, ValueSettings
from engram.agents.offline.data import Transitions
from engram.errors import BadRequest

GREATEST_WEIGHT = 100.0
"""Weights of imitation are cut here (authors' program)."""


@dataclass(frozen=True)
class ODICESettings(ValueSettings):
    """Hyperparameters of ODICE. Published: batch_size 256, hidden 256 256 (values), learning_rate 2e-4, discount 0.99,
    target_rate 0.005, normalise off, reward_scale 0 for locomotion (AntMaze: 3, shifted by -3)."""

    policy_hidden: tuple[int, ...]
    """Sizes of the policy's hidden layers (published: 1024 1024)."""
    policy_weight_decay: float
    """Added to the policy's gradient, times its parameters (published: 1e-4)."""
    lambda_: float
    """Weight of the Bellman residual against the value itself (published: 0.6)."""
    eta: float
    """Weight of the backward gradient, where it is projected (published: 1)."""
    variant: Literal["orthogonal", "true", "semi"]
    """What becomes of the backward gradient: projected, kept, left out."""
    layer_norm: bool
    """LayerNorm in the values' networks (published: on, off for AntMaze)."""
    bounded: bool
    """The policy's mean is bounded by a tanh (published: off); actions are cut to their bounds either way."""

    method: ClassVar[str] = "odice"

    def __post_init__(self):
        super().__post_init__()
        if any(size < 1 for size in self.policy_hidden):
            raise BadRequest(f"odice.policy_hidden must be positive sizes, got {self.policy_hidden}")
        if not 0 < self.lambda_ < 1:
            raise BadRequest(f"odice.lambda_ must lie between 0 and 1, got {self.lambda_}")
        self.require_not_negative("eta", "policy_weight_decay")


def conjugate(y: jax.Array) -> jax.Array:
    """f*(y) = max over w >= 0 of w y - (w - 1)^2: the convex conjugate of the Pearson chi-square divergence."""
    w = jnp.maximum(y / 2.0 + 1.0, 0.0)
    return w * y - (w - 1.0) ** 2


def orthogonalised(forward: Any, backward: Any) -> tuple[Any, Any]:
    """`backward` less its component along `forward`, both taken as one long vector, and their cosine before."""
    along, size = optax.tree.vdot(forward, backward), optax.tree.vdot(forward, forward)
    share = along / jnp.maximum(size, 1e-10)  # the forward gradient is 0 where f* is flat everywhere
    cosine = along * jax.lax.rsqrt(jnp.maximum(size * optax.tree.vdot(backward, backward), 1e-20))
    return optax.tree.add_scale(backward, -share, forward), cosine


@dataclass(frozen=True, eq=False)
class ODICE(OfflineAgent):
    """ODICE, and the two gradients that it is compared with."""

    settings: ODICESettings

    followed = ("value",)

    @property
    def value(self) -> TwinValue:
        return TwinValue(self.settings.hidden, self.settings.layer_norm)

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

    def residual(self, here: Any, there: Any, batch: Transitions) -> jax.Array:
        """r + gamma V(s') - V(s) of both values, `[2, B]`.

        Args:
            here, there: values `[2, B]` or `[B]` of s and s'.
        """
        return batch.reward + self.settings.discount * jnp.where(batch.terminal, 0.0, there) - here

    def value_gradients(self, value: Any, target: Any, batch: Transitions) -> tuple[Any, Any, jax.Array]:
        """The gradients at s and at s' of lambda E[f*], and the residuals `[2, B]` by which the policy learns."""
        s = self.settings
        slow = jnp.min(self._values(target["value"], batch.obs), axis=0)
        slow_next = jnp.min(self._values(target["value"], batch.next_obs), axis=0)

        def forward(value):
            residual = self.residual(self._values(value, batch.obs), slow_next, batch)
            return s.lambda_ * jnp.mean(conjugate(residual)), residual

        def backward(value):
            residual = self.residual(slow, self._values(value, batch.next_obs), batch)
            return s.lambda_ * s.eta * jnp.mean(conjugate(residual))

        g_forward, residual = jax.grad(forward, has_aux=True)(value)
        return g_forward, jax.grad(backward)(value), residual

    def true_gradient(self, value: Any, batch: Transitions) -> tuple[Any, jax.Array]:
        """The gradient of lambda E[f*] with respect to V at s and at s' at once, and the residuals `[2, B]`."""

        def loss(value):
            residual = self.residual(self._values(value, batch.obs), self._values(value, batch.next_obs), batch)
            return self.settings.lambda_ * jnp.mean(conjugate(residual)), residual

        return jax.grad(loss, has_aux=True)(value)

    def gradient(self, params: Any, target: Any, batch: Transitions, key: jax.Array) -> tuple[Any, Metrics]:
        s, value, metrics = self.settings, params["value"], {}
        if s.variant == "true":
            g, residual = self.true_gradient(value, batch)
        else:
            g, g_backward, residual = self.value_gradients(value, target, batch)
            if s.variant == "orthogonal":
                projected, metrics["loss/gradient_cosine"] = orthogonalised(g, g_backward)
                g = optax.tree.add(g, projected)
        down, mean_value = jax.grad(self.mean_value, has_aux=True)(value, batch)
        g = optax.tree.add(g, down)

        # w = max(y, 0): what the authors' program takes for max(f'^-1(y), 0), which is y / 2 + 1.
        weight = jnp.mean(jnp.clip(residual, 0.0, GREATEST_WEIGHT), axis=0)
        g_policy, policy_loss = jax.grad(self.policy_loss, has_aux=True)(params["policy"], batch, weight)
        return {"value": g, "policy": g_policy}, metrics | {
            "loss/residual": s.lambda_ * jnp.mean(conjugate(residual)),
            "loss/value": mean_value,
            "loss/policy": policy_loss,
            "loss/weight": jnp.mean(weight),
        }

    def mean_value(self, value: Any, batch: Transitions) -> tuple[jax.Array, jax.Array]:
        """(1 - lambda) E[V(s)], and E[V(s)]."""
        mean = jnp.mean(self._values(value, batch.obs))
        return (1.0 - self.settings.lambda_) * mean, mean

    def policy_loss(self, policy: Any, batch: Transitions, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        distribution: Any = self.policy.apply({"params": policy}, batch.obs)
        loss = -jnp.mean(weight * distribution.log_prob(batch.action))
        return loss, loss

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        policy: Any = self.policy.apply({"params": params["policy"]}, obs)
        return acting, policy.mode()
