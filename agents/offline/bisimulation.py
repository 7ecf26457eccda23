"""Value methods on histories, whose encoder distinguishes only histories with different rewards or transitions.

Hong, Dragan and Levine (2023), "Offline RL with observation histories: analyzing and improving sample complexity",
arXiv 2310.20663: policies that see whole histories cannot stitch together what was learned after different pasts,
unless the encoder phi of histories maps pasts that make no difference to the same features. A bisimulation loss does
that, in the form of deep bisimulation for control (Zhang et al. 2021, arXiv 2006.10742, eq. 4):

    J(phi) = E[(||phi(h) - phi(h')||_1 - |r - r'| - discount * W2(P(phi(h), a), P(phi(h'), a')))^2]

over pairs of steps of the data. P is a Gaussian model of phi of the next history, learned by maximum likelihood. J
trains phi alone: rewards, P and its inputs are held fixed (and the loss of P, unlike in the program of Zhang et al.,
does not train phi). The value method then takes phi(h) in place of observations, and its critics also train phi.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from engram.agents.common.checks import require_at_least, require_not_negative, require_sizes
from engram.agents.offline.base import OPENING_OVER, Network, OfflineAgent
from engram.agents.offline.cql import CQL, CQLSettings
from engram.agents.offline.data import OfflineData, Transitions
from engram.agents.offline.iql import IQL, IQLSettings
from engram.agents.offline.view import DataView
from engram.envs.wrappers import flat_size, flatten
from engram.errors import BadRequest
from engram.memory import Memory
from engram.memory.layers import Dense
from engram.training.types import Metrics

SMALLEST_DEVIATION, GREATEST_DEVIATION = 1e-4, 10.0
"""Range of the standard deviations of the latent model (Zhang et al.'s program)."""


@dataclass(frozen=True)
class BisimulationSettings:
    """Hyperparameters of the encoder of histories. Weight and model are those of Zhang et al. (2021)."""

    window: int = 20
    """Steps of a history, the current one included. The encoder does not see earlier steps."""
    weight: float = 0.5
    """Weight of the bisimulation loss J; with 0 the value method alone trains the encoder. (Zhang et al.: 0.5, for a J
    that is a mean over features instead of the square of a sum, on normalised features, with its own optimiser.)"""
    model: tuple[int, ...] = (512,)
    """Sizes of the latent model's hidden layers (Zhang et al.: 512)."""

    def __post_init__(self):
        require_at_least(self, "bisimulation.", 1, "window")
        require_not_negative(self, "bisimulation.", "weight")
        require_sizes(self, "bisimulation.", "model")


class Rows(struct.PyTreeNode):
    """Inputs of the encoder, `[T, B, ...]`."""

    obs: jax.Array
    before: jax.Array
    """`[T, B, A]`, the previous action as a vector; 0 at the first step of an episode."""
    reset: jax.Array
    """`[T, B]` bool, the first step of an episode."""


class Histories(struct.PyTreeNode):
    """Steps `[B, ...]` with their histories."""

    rows: Rows
    """`[window + 1, B, ...]`: the history up to the step, and the next step."""
    action: jax.Array
    reward: jax.Array
    terminal: jax.Array


class HistoryEncoder(nn.Module):
    """The encoder phi: a dense layer and a memory."""

    memory: Memory

    @nn.compact
    def __call__(self, rows: Rows) -> jax.Array:
        """Features of the histories up to each row, `[T, B, width]`."""
        x = Dense(self.memory.width)(jnp.concatenate([rows.obs, rows.before], axis=-1))
        return self.memory(self.memory.initial_state(x.shape[1]), x, rows.reset)[1]


def histories(data: OfflineData, view: DataView, step: jax.Array, window: int) -> Histories:
    """The steps with numbers `step[B]`, and their histories of `window` steps."""
    episode = data.episode[step]
    start = data.start[episode]
    time = (step - start) + jnp.arange(-window + 1, 2)[:, None]  # [window + 1, B]; negative before the episode
    inside = jnp.maximum(time, 0)
    before = view.numbers(data.action[start + jnp.maximum(time - 1, 0)])
    # Rows before the episode are not masked: the memory is cleared at each of them and at the first step.
    rows = Rows(
        obs=data.observations(start + episode + inside),
        before=jnp.where((time > 0)[..., None], before, 0.0),
        reset=time <= 0,
    )
    now = data.transitions(step)
    return Histories(rows, view.to_unit(now.action), now.reward, now.terminal)


@dataclass(frozen=True, eq=False)
class Bisimulation(OfflineAgent):
    """IQL or CQL on histories, by the class of `settings`."""

    memory: Memory
    bisimulation: BisimulationSettings

    target_networks = ("critic",)

    def __post_init__(self):
        if not isinstance(self.settings, IQLSettings | CQLSettings):
            raise BadRequest(f"a memory of histories is for iql and cql, not for {self.settings.method}: leave it out")

    @property
    def method(self) -> IQL | CQL:
        """The value method, whose observations are features."""
        if isinstance(self.settings, IQLSettings):
            return IQL(self.data, self.env, self.settings, self.view)
        assert isinstance(self.settings, CQLSettings)
        return CQL(self.data, self.env, self.settings, self.view)

    @property
    def optimiser(self) -> Any:
        return self.method.optimiser

    @property
    def encoder(self) -> HistoryEncoder:
        return HistoryEncoder(self.memory)

    @property
    def model(self) -> Network:
        return Network(self.bisimulation.model, 2 * self.memory.width, norm=True)

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        encoder_key, model_key, key = jax.random.split(key, 3)
        actions, width = flat_size(self.action_space), self.memory.width
        rows = Rows(jnp.zeros((1, 1, size)), jnp.zeros((1, 1, actions)), jnp.ones((1, 1), bool))
        return {
            "encoder": self.encoder.init(encoder_key, rows)["params"],
            "model": self.model.init(model_key, jnp.zeros((1, width + actions)))["params"],
            **self.method.init_params(key, width),
        }

    @property
    def reach(self) -> tuple[int, int]:
        return self.bisimulation.window, 0

    def batch(self, data: OfflineData, step: jax.Array) -> Histories:
        return histories(data, self.view, step, self.bisimulation.window)

    def features(self, params: Any, rows: Rows) -> Any:
        """phi of the histories up to each row, `[T, B, width]`."""
        return self.encoder.apply({"params": params["encoder"]}, rows)

    def before_and_after(self, params: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """phi of the histories of a step and of the next one, `[B, width]` each, both of `window` rows as in acting.

        Args:
            rows: `[window + 1, B, ...]`.
        """
        windows = jax.tree.map(lambda x: jnp.concatenate([x[:-1], x[1:]], axis=1), rows)
        phi, phi_next = jnp.split(self.features(params, windows)[-1], 2)
        return phi, phi_next

    def predict(self, params: Any, phi: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """P: mean and standard deviation, `[B, width]` each, of phi of the next history."""
        inputs = jnp.concatenate([phi, flatten(self.action_space, action)], axis=-1)
        out: Any = self.model.apply({"params": params["model"]}, inputs)
        mean, share = jnp.split(out, 2, axis=-1)
        return mean, SMALLEST_DEVIATION + (GREATEST_DEVIATION - SMALLEST_DEVIATION) * nn.sigmoid(share)

    def loss(
        self, params: Any, target: Any, batch: Histories, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[jax.Array, Metrics]:
        method_key, pair_key = jax.random.split(key)
        phi, phi_next = self.before_and_after(params, batch.rows)
        step = Transitions(phi, batch.action, batch.reward, jax.lax.stop_gradient(phi_next), batch.terminal)
        method_loss, metrics = self.method.loss(params, target, step, method_key, updates)
        model_loss, distance_loss = self.losses(params, step, pair_key)
        return method_loss + model_loss + self.bisimulation.weight * distance_loss, metrics | {
            "loss/model": model_loss,
            "loss/bisimulation": distance_loss,
        }

    def losses(self, params: Any, step: Transitions, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The latent model's loss, and J for transitions between features, each paired with another one at random."""
        fixed = jax.lax.stop_gradient
        mean, deviation = self.predict(params, fixed(step.obs), step.action)
        model_loss = jnp.mean(0.5 * ((fixed(step.next_obs) - mean) / deviation) ** 2 + jnp.log(deviation))

        other = jax.random.permutation(key, step.reward.shape[0])
        distance = jnp.sum(jnp.abs(step.obs - step.obs[other]), axis=-1)
        # Between Gaussians with diagonal covariances W2^2 = |m - m'|^2 + |s - s'|^2.
        squared = jnp.sum((mean - mean[other]) ** 2 + (deviation - deviation[other]) ** 2, axis=-1)
        wasserstein = jnp.sqrt(fixed(squared))
        target_distance = jnp.abs(step.reward - step.reward[other]) + self.method.settings.discount * wasserstein
        return model_loss, jnp.mean((distance - target_distance) ** 2)

    def start_acting(self, n: int) -> tuple[Rows, jax.Array]:
        """The last `window` rows and the last action as a vector."""
        window, actions = self.bisimulation.window, flat_size(self.action_space)
        rows = Rows(jnp.zeros((window, n, self.obs_size)), jnp.zeros((window, n, actions)), jnp.ones((window, n), bool))
        return rows, jnp.zeros((n, actions))

    def memory_of(self, acting: tuple[Rows, jax.Array]) -> Any:
        rows, last_action = acting
        return jax.tree.map(lambda x: x.swapaxes(0, 1), rows), last_action

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        past, last_action = acting
        newest = Rows(obs, jnp.where(reset[:, None], 0.0, last_action), reset)
        rows = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), past, newest)
        # The whole window is encoded at each step, as in training, where the memory never sees more than it.
        _, action = self.method.act(params, (), self.features(params, rows)[-1], reward, reset)
        return (rows, flatten(self.action_space, action)), action
