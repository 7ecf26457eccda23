"""The recurrent actor-critic: an encoder, any memory, a policy head and a value head."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.agents.common.distributions import (
    Categorical,
    Distribution,
    MultiCategorical,
    allowed,
    gaussian,
    head_size,
)
from engram.envs.spaces import Box, MultiDiscrete, Space
from engram.envs.vector import action_scale
from engram.envs.wrappers import LEAST_SIDE
from engram.memory.base import Memory, State
from engram.memory.layers import Convolution, Dense, orthogonal
from engram.training.types import PyTree

ACTIVATIONS = {"relu": nn.relu, "leaky_relu": nn.leaky_relu, "tanh": nn.tanh, "silu": nn.silu, "gelu": nn.gelu}


class MLP(nn.Module):
    """Dense layers with an activation after each."""

    sizes: tuple[int, ...]
    activation: str
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.sizes:
            x = ACTIVATIONS[self.activation](Dense(size, kernel_init=orthogonal(self.scale))(x))
        return x


class NatureCNN(nn.Module):
    """The convolutional network of Mnih et al. (2015): uint8 pictures `[..., height, width, channels]` -> features
    `[..., 512]`."""

    @nn.compact
    def __call__(self, picture: jax.Array) -> jax.Array:
        batch = picture.shape[:-3]
        x = picture.reshape(-1, *picture.shape[-3:]).astype(jnp.float32) / 255.0
        for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(Convolution(features, size, stride, kernel_init=orthogonal(math.sqrt(2)))(x))
        x = nn.relu(nn.Dense(512, kernel_init=orthogonal(math.sqrt(2)))(x.reshape(x.shape[0], -1)))
        return x.reshape(*batch, 512)


class SmallCNN(nn.Module):
    """A convolutional network for pictures that are too small for `NatureCNN`, such as the 7 x 7 views of MiniGrid:
    `[..., height, width, channels]` of bytes, of any size -> features `[..., 512]`."""

    @nn.compact
    def __call__(self, picture: jax.Array) -> jax.Array:
        batch = picture.shape[:-3]
        x = picture.reshape(-1, *picture.shape[-3:]).astype(jnp.float32) / 255.0
        for features, stride in ((32, 1), (64, 2), (64, 2)):
            x = nn.relu(Convolution(features, 3, stride, padding=1, kernel_init=orthogonal(math.sqrt(2)))(x))
        x = nn.relu(nn.Dense(512, kernel_init=orthogonal(math.sqrt(2)))(x.reshape(x.shape[0], -1)))
        return x.reshape(*batch, 512)


def convolutions(picture: jax.Array) -> nn.Module:
    """The network whose convolutions fit pictures `[..., height, width, channels]`."""
    return NatureCNN() if min(picture.shape[-3:-1]) >= LEAST_SIDE else SmallCNN()


class Encoder(nn.Module):
    """Maps observations `[..., *shape]` to features `[..., sizes[-1]]`. A picture passes the convolutions first: one
    that is the whole observation, or one under `"image"` beside a vector under `"extra"`."""

    sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs: PyTree) -> jax.Array:
        if isinstance(obs, dict):
            x = jnp.concatenate([convolutions(obs["image"])(obs["image"]), obs["extra"]], axis=-1)
        elif obs.dtype == jnp.uint8:
            x = convolutions(obs)(obs)
        else:
            x = obs
        return MLP(self.sizes, self.activation, math.sqrt(2))(x)


class ActorCritic(nn.Module):
    """Policy and value from one memory.

    The output of the memory, called features `[..., width]`, is available by itself: a rollout computes the policy
    step by step, and afterwards the values of all steps in one product.
    """

    memory: Memory
    """Memory between the encoder and the heads."""
    action_space: Space
    """Space of the actions; it decides the distribution of the policy."""
    encoder: tuple[int, ...]
    """Sizes of the encoder's layers before its last one, which has the memory's width."""
    heads: tuple[int, ...]
    """Sizes of the hidden layers of each head; empty for linear heads."""
    activation: str
    """Activation of the encoder and the heads, by its name in ACTIVATIONS."""
    head_scale: float
    """Gain of the orthogonal initialisation of the heads' hidden layers."""

    def setup(self):
        size = head_size(self.action_space)
        self.encode = Encoder((*self.encoder, self.memory.width), self.activation)
        self.actor = MLP(self.heads, self.activation, self.head_scale)
        self.critic = MLP(self.heads, self.activation, self.head_scale)
        self.actor_out = Dense(size, kernel_init=orthogonal(0.01))
        self.critic_out = Dense(1, kernel_init=orthogonal(1.0))
        if isinstance(self.action_space, Box):
            # Of another name where actions are scaled: a checkpoint from before they were does not fit.
            name = "log_std" if action_scale(self.action_space) is None else "log_std_scaled"
            self.log_std = self.param(name, nn.initializers.zeros, (size,))

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """The state of the memory before anything was seen, leaves `[batch, ...]`."""
        return self.memory.initial_state(batch)

    def __call__(
        self, state: State, obs: PyTree, reset: jax.Array, mask: jax.Array | None = None
    ) -> tuple[State, Distribution, jax.Array]:
        """Learner: `obs[T, B, ...]`, `reset[T, B]`, `mask[T, B, n]` of allowed actions -> state, policy over `[T, B]`,
        value `[T, B]`."""
        state, features = self.memory(state, self.encode(obs), reset)
        return state, self.policy(features, mask), self.value(features)

    def features_step(self, state: State, obs: PyTree, reset: jax.Array) -> tuple[State, jax.Array]:
        """Actor: `obs[B, ...]`, `reset[B]` -> state, features `[B, width]`."""
        return self.memory.step(state, self.encode(obs), reset)

    def policy(self, features: jax.Array, mask: jax.Array | None = None) -> Distribution:
        """The policy over actions `[...]` from features `[..., width]`; `mask[..., n]` says which are allowed."""
        out = allowed(self.actor_out(self.actor(features)), mask)
        if isinstance(self.action_space, Box):
            return gaussian(self.action_space, out, self.log_std)
        if isinstance(self.action_space, MultiDiscrete):
            return MultiCategorical(out, self.action_space.nvec)
        return Categorical(out)

    def value(self, features: jax.Array) -> jax.Array:
        """Values `[...]` of features `[..., width]`."""
        return self.critic_out(self.critic(features))[..., 0]
