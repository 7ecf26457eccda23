"""The recurrent actor-critic: encoder, any memory, a policy head and a value head."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.distributions import Categorical, DiagonalGaussian, Distribution, MultiCategorical, head_size
from envs.spaces import Box, Dict, MultiDiscrete, Space
from memory.base import Memory, State
from memory.layers import Dense, orthogonal

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


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`x[n, height, width, c]` under `kernel[k, k, c, features]` without padding (not flipped, as in networks)."""
    if jax.default_backend() != "cpu":
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=dimensions)
    # Patches times kernel: within loops, gradients of XLA's convolutions are some twenty times slower on CPUs.
    size = kernel.shape[0]
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    if size % stride == 0:
        # Cells of stride x stride pixels become channels of a picture whose kernel has stride 1: far fewer slices.
        n, *_, channels = x.shape
        cells = size // stride
        rows, columns = height + cells - 1, width + cells - 1
        x = x[:, : rows * stride, : columns * stride].reshape(n, rows, stride, columns, stride, channels)
        x = x.swapaxes(2, 3).reshape(n, rows, columns, -1)
        kernel = kernel.reshape(cells, stride, cells, stride, channels, -1)
        kernel = kernel.swapaxes(1, 2).reshape(cells, cells, x.shape[-1], -1)
        size, stride = cells, 1
    last_row, last_column = (height - 1) * stride + 1, (width - 1) * stride + 1
    patches = [x[:, i : i + last_row : stride, j : j + last_column : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class Convolution(nn.Module):
    """A convolution without padding, with a bias."""

    features: int
    size: int
    stride: int
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", orthogonal(self.scale), shape)
        return convolve(x, kernel, self.stride) + self.param("bias", nn.initializers.zeros, (self.features,))


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. (2015) for uint8 pictures `[..., height, width, channels]` -> `[..., 512]`."""

    @nn.compact
    def __call__(self, picture: jax.Array) -> jax.Array:
        batch = picture.shape[:-3]
        x = picture.reshape(-1, *picture.shape[-3:]).astype(jnp.float32) / 255.0
        for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(Convolution(features, size, stride, math.sqrt(2))(x))
        x = nn.relu(nn.Dense(512, kernel_init=orthogonal(math.sqrt(2)))(x.reshape(x.shape[0], -1)))
        return x.reshape(*batch, 512)


def check_pictures(space: Space) -> None:
    """Raises ValueError for observations of `space` with pictures that `NatureCNN` cannot take."""
    for part in (part for _, part in space.spaces) if isinstance(space, Dict) else (space,):
        if isinstance(part, Box) and len(part.shape) == 3 and min(part.shape[:2]) < 36:
            raise ValueError(f"pictures must be [height, width, channels], at least 36 x 36, but are {part.shape}")


class Encoder(nn.Module):
    """Observations to features `[..., sizes[-1]]`. A picture, alone or under `"image"` beside a vector under
    `"extra"`, first passes the convolutions."""

    sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs: Any) -> jax.Array:
        if isinstance(obs, dict):
            x = jnp.concatenate([NatureCNN()(obs["image"]), obs["extra"]], axis=-1)
        elif obs.dtype == jnp.uint8:
            x = NatureCNN()(obs)
        else:
            x = obs
        return MLP(self.sizes, self.activation, math.sqrt(2))(x)


class ActorCritic(nn.Module):
    """Policy and value from one memory.

    The memory's output ("features", `[..., width]`) is separate from the two heads, so that a rollout computes the
    policy step by step but all values afterwards in one product.
    """

    memory: Memory
    action_space: Space
    encoder: tuple[int, ...]
    """Sizes of the encoder's layers before the last one, which has the memory's width."""
    heads: tuple[int, ...]
    """Sizes of the hidden layers of each head; empty for linear heads."""
    activation: str
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
            self.log_std = self.param("log_std", nn.initializers.zeros, (size,))

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return self.memory.initial_state(batch)

    def __call__(self, state: State, obs: Any, reset: jax.Array) -> tuple[State, Distribution, jax.Array]:
        """Learner: `obs[T, B, ...]`, `reset[T, B]` -> state, policy over `[T, B]`, value `[T, B]`."""
        state, features = self.memory(state, self.encode(obs), reset)
        return state, self.policy(features), self.value(features)

    def features_step(self, state: State, obs: Any, reset: jax.Array) -> tuple[State, jax.Array]:
        """Actor: `obs[B, ...]`, `reset[B]` -> state, features `[B, width]`."""
        return self.memory.step(state, self.encode(obs), reset)

    def policy(self, features: jax.Array) -> Distribution:
        out = self.actor_out(self.actor(features))
        if isinstance(self.action_space, Box):
            return DiagonalGaussian(out, self.log_std)
        if isinstance(self.action_space, MultiDiscrete):
            return MultiCategorical(out, self.action_space.nvec)
        return Categorical(out)

    def value(self, features: jax.Array) -> jax.Array:
        return self.critic_out(self.critic(features))[..., 0]
