"""A latent world model with any memory (Drama, arXiv 2410.08893, where the memory is Mamba-2).

The encoder maps each observation to the posterior of a latent `z[t]`. The memory consumes `(z[t], action[t])` and gives
`d[t]`, from which the prior of `z[t + 1]` and the reward and termination that follow `action[t]` are predicted. The
decoder sees `z[t]` alone.

Arrays are time-major. `reward[t]` and `terminal[t]` result from `action[t]` at `obs[t]`. `reset[t]` is True where
`obs[t]` is the first of an episode.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from engram.kernels.rows import masked_mean
from engram.memory.base import Memory, State
from engram.memory.layers import Dense
from engram.worldmodels import latents
from engram.worldmodels.networks import MLP, fan_in_uniform
from engram.worldmodels.twohot import TwoHot, symexp, symlog


class Rows(struct.PyTreeNode):
    """Steps of experience `[T, B, ...]`."""

    obs: jax.Array
    action: jax.Array
    """Actions as vectors `[T, B, n]` (one-hot where they are discrete)."""
    reward: jax.Array
    terminal: jax.Array
    reset: jax.Array


@dataclass(frozen=True)
class LossSettings:
    """Settings of the world model's loss."""

    free_nats: float
    """Lower bound of each of the two KL terms, in nats, applied to its mean over the batch."""
    representation: float
    """Weight of the representation loss, the KL term that pulls the posterior towards the prior."""
    seq_reset: bool
    """Clearing of the memory where an episode begins, without a prediction across the boundary. Without it information
    leaks from episode to episode."""


class WorldModel(nn.Module):
    """The networks.

    Attributes:
        memory: maps `[T, B, width]` to `[T, B, width]`.
        encoder: from observations to features.
        decoder: from latents to observations, or the parameters of their distribution.
        reconstruction: kind of observations: pixels (0 .. 255, squared error), binary (0 or 1, cross-entropy) or symlog
            (numbers of any magnitude, squared error).
        categoricals: categorical variables of the latent.
        classes: classes of each of them.
        head: width of the hidden layer of the predictors of reward and termination.
        unimix: share of the uniform distribution in posterior and prior.
        unimix_denominator: see `latents.unimix`.
        bins: bins of the distribution of rewards.
    """

    memory: Memory
    encoder: nn.Module
    decoder: nn.Module
    reconstruction: Literal["pixels", "binary", "symlog"]
    categoricals: int
    classes: int
    head: int
    unimix: float
    unimix_denominator: int | None = None
    bins: TwoHot = TwoHot()

    def setup(self):
        size = self.categoricals * self.classes
        self.posterior_out = Dense(size, kernel_init=fan_in_uniform)
        self.prior_out = Dense(size, kernel_init=fan_in_uniform)
        self.stem = Dense(self.memory.width, kernel_init=fan_in_uniform)
        self.stem_norm = nn.RMSNorm(1e-5)
        self.final_norm = nn.RMSNorm(1e-5)
        self.reward_head = MLP((self.head,), self.bins.bins)
        self.terminal_head = MLP((self.head,), 1)

    # ------------------------------------------------------------------------------------------------ the latent

    def posterior(self, obs: jax.Array, train: bool = False) -> jax.Array:
        """Posterior of the latent: `obs[..., *]` -> log-probabilities `[..., categoricals, classes]`."""
        return self._mix(self.posterior_out(self.encoder(self._scale(obs), train)))

    def prior(self, d: jax.Array) -> jax.Array:
        """Prior of the next latent: `d[..., width]` -> log-probabilities `[..., categoricals, classes]`."""
        return self._mix(self.prior_out(d))

    def _mix(self, logits: jax.Array) -> jax.Array:
        logits = logits.reshape(*logits.shape[:-1], self.categoricals, self.classes)
        return latents.unimix(logits, self.unimix, self.unimix_denominator)

    def _scale(self, obs: jax.Array) -> jax.Array:
        if self.reconstruction == "pixels":
            return obs.astype(jnp.float32) / 255.0
        return obs.astype(jnp.float32) if self.reconstruction == "binary" else symlog(obs)

    # ---------------------------------------------------------------------------------------------- the sequence

    def sequence(self, state: State, z: jax.Array, action: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """`z[T, B, *]`, `action[T, B, n]`, `reset[T, B]` -> the memory's state after them, `d[T, B, width]`."""
        state, y = self.memory(state, self._join(z, action), reset)
        return state, self.final_norm(y)

    def step(self, state: State, z: jax.Array, action: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """One step of `sequence`."""
        state, y = self.memory.step(state, self._join(z, action), reset)
        return state, self.final_norm(y)

    def _join(self, z: jax.Array, action: jax.Array) -> jax.Array:
        return nn.silu(self.stem_norm(self.stem(jnp.concatenate([z, action], axis=-1))))

    # ------------------------------------------------------------------------------------------- the predictions

    def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
        """`z[..., *]` -> the most likely observation, in the units of the data (pixels as float 0 .. 255)."""
        out = self.decoder(z, train)
        if self.reconstruction == "pixels":
            return 255.0 * nn.sigmoid(out)
        return nn.sigmoid(out) if self.reconstruction == "binary" else symexp(out)

    def reward_logits(self, d: jax.Array) -> jax.Array:
        """`d[..., width]` -> logits of the reward's bins `[..., bins]`."""
        return self.reward_head(d)

    def reward(self, d: jax.Array) -> jax.Array:
        """`d[..., width]` -> expected reward `[...]`."""
        return self.bins.decode(self.reward_head(d))

    def terminal_logit(self, d: jax.Array) -> jax.Array:
        """`d[..., width]` -> logit of termination `[...]`."""
        return self.terminal_head(d)[..., 0]

    def reconstruction_loss(self, z: jax.Array, obs: jax.Array, train: bool) -> jax.Array:
        """Reconstruction loss, summed over each observation and averaged over `[T, B]`."""
        out, target = self.decoder(z, train), self._scale(obs)
        if self.reconstruction == "binary":
            error = optax.sigmoid_binary_cross_entropy(out, target)
        else:
            error = (nn.sigmoid(out) - target if self.reconstruction == "pixels" else out - target) ** 2
        return jnp.mean(jnp.sum(error.reshape(*z.shape[:-1], -1), axis=-1))

    # ------------------------------------------------------------------------------------------------ the loss

    def loss(self, rows: Rows, key: jax.Array, settings: LossSettings) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of windows `[T, B, ...]` (arXiv 2410.08893, section 2.2) from the memory's initial state, and
        metrics."""
        reset = rows.reset if settings.seq_reset else jnp.zeros_like(rows.reset)
        posterior = self.posterior(rows.obs, train=True)
        z = latents.sample(key, posterior)
        reconstruction = self.reconstruction_loss(z, rows.obs, train=True)
        _, d = self.sequence(self.memory.initial_state(reset.shape[1]), z, rows.action, reset)

        # Nothing is predicted across the beginning of an episode.
        valid = ~reset[1:]
        prior, target = self.prior(d[:-1]), posterior[1:]
        dynamics = masked_mean(latents.kl(jax.lax.stop_gradient(target), prior), valid)
        representation = masked_mean(latents.kl(target, jax.lax.stop_gradient(prior)), valid)

        reward_loss = jnp.mean(self.bins.loss(self.reward_logits(d), rows.reward))
        terminal_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(self.terminal_logit(d), rows.terminal))

        # The free nats bound the mean over the batch, not each element.
        loss = reconstruction + reward_loss + terminal_loss
        loss += jnp.maximum(settings.free_nats, dynamics)
        loss += settings.representation * jnp.maximum(settings.free_nats, representation)
        return loss, {
            "loss/world": loss,
            "loss/reconstruction": reconstruction,
            "loss/reward": reward_loss,
            "loss/terminal": terminal_loss,
            "loss/dynamics": dynamics,
            "loss/posterior_entropy": -jnp.mean(jnp.sum(jnp.exp(posterior) * posterior, axis=(-2, -1))),
        }
