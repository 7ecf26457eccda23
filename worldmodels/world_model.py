"""A latent world model with any memory (Drama, arXiv 2410.08893, where the memory is Mamba-2).

Of each step the encoder sees the observation and gives the posterior of the latent `z[t]`. The memory consumes
`(z[t], a[t])` and gives `d[t]`, from which the prior of `z[t + 1]`, the reward and the end that follow `a[t]` are
predicted. The decoder sees `z[t]` alone.

Arrays are time-major. `reward[t]` and `terminal[t]` result from `action[t]` at `obs[t]`; `reset[t]` opens an episode.
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
from engram.worldmodels.twohot import TwoHot, symlog

Metrics = dict[str, jax.Array]


class Rows(struct.PyTreeNode):
    """Steps of experience `[T, B, ...]`."""

    obs: jax.Array
    action: jax.Array
    """As numbers `[T, B, n]` (one-hot where it is discrete)."""
    reward: jax.Array
    terminal: jax.Array
    reset: jax.Array


@dataclass(frozen=True)
class LossSettings:
    """How the world model learns."""

    free_nats: float
    """Each of the two KL terms, averaged over the batch, costs at least this much."""
    representation: float
    """Weight of the KL term that pulls the posterior to the prior."""
    seq_reset: bool
    """Clear the memory where an episode opens and predict nothing across; off: it leaks from episode to episode."""


class WorldModel(nn.Module):
    """The networks.

    Attributes:
        memory: maps `[T, B, width]` to `[T, B, width]`.
        encoder, decoder: from observations to features, from latents to (the parameters of) observations.
        reconstruction: pixels (0 .. 255, squared error), binary (0 or 1, Bernoulli) or symlog (squared error).
        categoricals, classes: of the latent.
        head: width of the hidden layer of the predictors of reward and end.
        unimix: share of the uniform distribution in posterior and prior.
        unimix_denominator: see `latents.unimix`.
        bins: of the reward's distribution.
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
        """`obs[..., *]` -> log-probabilities `[..., categoricals, classes]`."""
        return self._mix(self.posterior_out(self.encoder(self._scale(obs), train)))

    def prior(self, d: jax.Array) -> jax.Array:
        """Of the next latent: `d[..., width]` -> log-probabilities `[..., categoricals, classes]`."""
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
        """`z[T, B, *]`, `action[T, B, n]`, `reset[T, B]` -> memory state after them, `d[T, B, width]`."""
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
        return nn.sigmoid(out) if self.reconstruction == "binary" else jnp.sign(out) * jnp.expm1(jnp.abs(out))

    def reward_logits(self, d: jax.Array) -> jax.Array:
        """`d[..., width]` -> `[..., bins]`."""
        return self.reward_head(d)

    def reward(self, d: jax.Array) -> jax.Array:
        """`d[..., width]` -> expected reward `[...]`."""
        return self.bins.decode(self.reward_head(d))

    def terminal_logit(self, d: jax.Array) -> jax.Array:
        """`d[..., width]` -> `[...]`."""
        return self.terminal_head(d)[..., 0]

    def reconstruction_loss(self, z: jax.Array, obs: jax.Array, train: bool) -> jax.Array:
        """Summed over the observation, averaged over `[T, B]`."""
        out, target = self.decoder(z, train), self._scale(obs)
        if self.reconstruction == "binary":
            error = optax.sigmoid_binary_cross_entropy(out, target)
        else:
            error = (nn.sigmoid(out) - target if self.reconstruction == "pixels" else out - target) ** 2
        return jnp.mean(jnp.sum(error.reshape(*z.shape[:-1], -1), axis=-1))

    # ------------------------------------------------------------------------------------------------ the loss

    def loss(self, rows: Rows, key: jax.Array, settings: LossSettings) -> tuple[jax.Array, Metrics]:
        """The loss of windows `[T, B, ...]` (arXiv 2410.08893, section 2.2), from a memory that has seen nothing."""
        reset = rows.reset if settings.seq_reset else jnp.zeros_like(rows.reset)
        posterior = self.posterior(rows.obs, train=True)
        z = latents.sample(key, posterior)
        reconstruction = self.reconstruction_loss(z, rows.obs, train=True)
        _, d = self.sequence(self.memory.initial_state(reset.shape[1]), z, rows.action, reset)

        # Nothing is predicted across the opening of an episode.
        kept = ~reset[1:]
        prior, target = self.prior(d[:-1]), posterior[1:]
        dynamics = masked_mean(latents.kl(jax.lax.stop_gradient(target), prior), kept)
        representation = masked_mean(latents.kl(target, jax.lax.stop_gradient(prior)), kept)

        reward_loss = jnp.mean(self.bins.loss(self.reward_logits(d), rows.reward))
        terminal_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(self.terminal_logit(d), rows.terminal))

        # One clip for the whole batch, not one for each element.
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
