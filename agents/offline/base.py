"""What the offline methods that learn from single steps share: settings, networks, the gradient step, evaluation.

Each method is one file whose `loss` follows its paper. Observations are standardised by the dataset's mean and standard
deviation, and continuous actions are rescaled to [-1, 1] by the bounds of the action space, so that networks see what
those of the papers see, whatever the units. The losses of a method are added up and one optimiser takes one step;
stop-gradients keep each loss from the parameters of the others. (The published programs take these steps one after the
other, so that each step sees the result of the one before. Here all see the parameters at the beginning of the step.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from engram.agents.common.checks import require_not_negative, require_positive, require_share, require_sizes
from engram.agents.common.distributions import Categorical, DiagonalGaussian, head_size
from engram.agents.common.evaluation import play_episodes, record_steps
from engram.agents.offline.data import HostData, HostFeed, OfflineData, draw, scaled
from engram.agents.offline.view import DataView, refuse_mismatch
from engram.envs.datasets import Episodes
from engram.envs.spaces import Box, Discrete, Space
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest
from engram.memory.layers import Dense, orthogonal, uniform
from engram.training.types import Metrics

OPENING_OVER = np.iinfo(np.int32).max
"""Gradient steps after which no method learns otherwise than later."""


@dataclass(frozen=True)
class OfflineSettings:
    """Hyperparameters of every method."""

    batch_size: int = 256
    """Steps of the dataset in a batch (published: 256)."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers of every network. Without any the networks are linear, which makes tables of them
    where observations are one-hot."""
    learning_rate: float = 3e-4
    """Learning rate of Adam."""
    normalise: bool = False
    """Standardisation of observations by the dataset's mean and standard deviation."""
    eval_episodes: int = 20
    """Episodes of an evaluation, a multiple of the environments that it plays in."""

    method: ClassVar[str] = "offline"
    """Name of the method in error messages."""
    ARGUMENTS: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Numbers that are arguments of the compiled programs (see `engram.training.arguments`)."""

    def __post_init__(self):
        prefix = f"{self.method}."
        require_positive(self, prefix, "batch_size", "learning_rate", "eval_episodes")
        require_sizes(self, prefix, "hidden")


@dataclass(frozen=True)
class ValueSettings(OfflineSettings):
    """Hyperparameters of every method that learns a value."""

    discount: float = 0.99
    """Discount factor of the return (published: 0.99)."""
    target_rate: float = 0.005
    """Share of the way that target networks move towards the learned networks at a step (published: 0.005)."""
    reward_scale: float = 1.0
    """Factor of the rewards. 0 stands for 1000 / (highest - lowest return of the dataset), as published by IQL and
    ODICE for locomotion."""
    reward_shift: float = 0.0
    """Number added to the scaled rewards (published for AntMaze: IQL scale 1 and shift -1, ODICE 3 and -3)."""

    ARGUMENTS: ClassVar[tuple[str, ...]] = (*OfflineSettings.ARGUMENTS, "discount", "target_rate")

    def __post_init__(self):
        super().__post_init__()
        prefix = f"{self.method}."
        require_share(self, prefix, "discount", "target_rate")
        require_not_negative(self, prefix, "reward_scale")
        if not math.isfinite(self.reward_shift):
            raise BadRequest(f"{self.method}.reward_shift must be finite, got {self.reward_shift}")

    def scale_of(self, episodes: Episodes) -> float:
        """The factor of the rewards of `episodes`.

        Raises:
            BadRequest: all episodes have the same return, from which no scale follows; or rewards become infinite.
        """
        scale = self.reward_scale
        if scale == 0.0:
            spread = float(np.max(episodes.returns) - np.min(episodes.returns))
            if spread <= 0.0:
                raise BadRequest(f"{self.method}.reward_scale=0 needs episodes of different returns: give a scale")
            scale = 1000.0 / spread
        ends = np.array([episodes.reward.min(), episodes.reward.max()])
        if not np.all(np.isfinite(scaled(ends, scale, self.reward_shift))):
            raise BadRequest(f"{self.method}.reward_scale {scale:g} makes rewards that are not finite")
        return scale


# ---------------------------------------------------------------------------------------------------------------------
# Networks


class Network(nn.Module):
    """A dense hidden layer with ReLU for each of `sizes`, and a dense layer of `out` outputs: `[..., n]` ->
    `[..., out]`."""

    sizes: tuple[int, ...]
    out: int
    norm: bool = False
    """LayerNorm before each ReLU."""
    out_scale: float = 1.0
    """Gain of the orthogonal initialisation of the last layer."""
    dropout: float = 0.0
    """Dropout rate after each ReLU, in training."""

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        for size in self.sizes:
            # Biases begin as PyTorch's do. If they were 0, LayerNorm would undo the scale of the input: of a single
            # number only its sign would be left.
            bias_init = uniform(x.shape[-1] ** -0.5) if self.norm else nn.initializers.zeros
            x = Dense(size, kernel_init=orthogonal(math.sqrt(2)), bias_init=bias_init)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.norm else x)
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        return Dense(self.out, kernel_init=orthogonal(self.out_scale))(x)


class TwinValue(nn.Module):
    """Two values of each state (or another number): `x[..., n]` -> `[2, ...]`."""

    sizes: tuple[int, ...]
    norm: bool = False
    count: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Two plain networks instead of one under `vmap`: batched matrix products are slow on CPUs.
        return jnp.stack([Network(self.sizes, 1, self.norm, name=f"twin_{i}")(x)[..., 0] for i in range(self.count)])


class TwinCritic(nn.Module):
    """Two values of each pair of state and action."""

    sizes: tuple[int, ...]
    space: Space

    def setup(self):
        out = self.space.n if isinstance(self.space, Discrete) else 1
        self.twins = [Network(self.sizes, out) for _ in range(2)]

    def __call__(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """`x[..., n]`, `action[..., A]` (or `[...]` where discrete) -> `[2, ...]`."""
        if isinstance(self.space, Discrete):
            return jnp.sum(self.all_actions(x) * jax.nn.one_hot(action, self.space.n), axis=-1)
        both = jnp.concatenate([x, action], axis=-1)
        return jnp.stack([twin(both)[..., 0] for twin in self.twins])

    def all_actions(self, x: jax.Array) -> jax.Array:
        """Values of all discrete actions: `x[..., n]` -> `[2, ..., actions]`."""
        return jnp.stack([twin(x) for twin in self.twins])


class Policy(nn.Module):
    """`x[..., n]` to a distribution of actions: categorical, or a Gaussian whose standard deviations, within
    [e^-5, e^2], do not depend on the state."""

    sizes: tuple[int, ...]
    space: Space
    bounded: bool = True
    """A tanh bounds the mean to [-1, 1]; else it is unbounded, and clipped when it acts."""
    dropout: float = 0.0
    """Dropout rate of the hidden layers, in training (with a key named "dropout")."""

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> Categorical | DiagonalGaussian:
        size = head_size(self.space)
        out = Network(self.sizes, size, out_scale=1e-2, dropout=self.dropout)(x, training)
        if isinstance(self.space, Discrete):
            return Categorical(out)
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return DiagonalGaussian(jnp.tanh(out) if self.bounded else out, jnp.clip(log_std, -5.0, 2.0))


# ---------------------------------------------------------------------------------------------------------------------
# The agent


class OfflineState(struct.PyTreeNode):
    """Everything that training carries, as one pytree."""

    params: Any
    """Parameters by the names of the networks."""
    target: Any
    """Parameters of the target networks, likewise."""
    optimiser: Any
    key: jax.Array
    updates: jax.Array
    """Gradient steps taken."""


@dataclass(frozen=True, eq=False)
class OfflineAgent:
    """Pure `init`, `update` (one gradient step) and `evaluate` over an `OfflineState`.

    A method defines `init_params`, `loss` and `act`, and which networks have target networks.
    """

    data: Any
    """`OfflineData`, or `HostData`."""
    env: Wrapper
    """Environments of an evaluation. Their observations are those of the dataset, before they are standardised."""
    settings: OfflineSettings
    view: DataView
    """Scaling of the dataset's observations, actions and returns."""

    ARGUMENTS: ClassVar = ("data", "settings")
    target_networks: ClassVar[tuple[str, ...]] = ()
    """Names of the networks that a slowly moving copy follows."""

    @classmethod
    def of(
        cls,
        episodes: Episodes,
        env: Wrapper,
        settings: Any,
        hold: Callable[..., OfflineData | HostData] = OfflineData.of,
        **fields: Any,
    ) -> Self:
        """The agent that learns from `episodes`, as `hold` makes data of them, and is evaluated in `env`.

        Raises:
            BadRequest: they do not fit together.
        """
        refuse_mismatch(episodes, env.observation_space(env.default_params), env.action_space(env.default_params))
        if settings.eval_episodes % env.num_envs:
            raise BadRequest(
                f"{settings.method}.eval_episodes ({settings.eval_episodes}) must be a multiple of the environments "
                f"of an evaluation ({env.num_envs})"
            )
        # The constant is that of Fujimoto and Gu 2021, section 5.
        view = DataView.of(episodes, standardise=settings.normalise, constant=1e-3)
        if not np.all(np.isfinite(view.bound)):
            raise BadRequest(
                f"{settings.method} needs bounded actions, those of the dataset lie between {episodes.action_low} and "
                f"{episodes.action_high}"
            )
        rewards = (
            (settings.scale_of(episodes), settings.reward_shift) if isinstance(settings, ValueSettings) else (1.0, 0.0)
        )
        return cls(hold(episodes, view.mean, view.deviation, *rewards), env, settings, view, **fields)

    @property
    def steps_per_update(self) -> int:
        return 1

    @property
    def action_space(self) -> Space:
        return self.env.action_space(self.env.default_params)

    @property
    def obs_size(self) -> int:
        return len(self.data.scale.mean)

    def close(self) -> None:
        """Frees the emulators, if any; the agent cannot be used afterwards."""
        self.env.close()

    # ------------------------------------------------------------------------------------------------------ learning

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        """Parameters by the names of the networks, for inputs `[..., size]`."""
        raise NotImplementedError

    def loss(
        self, params: Any, target: Any, batch: Any, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[jax.Array, Metrics]:
        """The loss that a gradient step reduces, and metrics. `batch.action` is in units of `DataView.to_unit`."""
        raise NotImplementedError

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        """The greedy action.

        Args:
            acting: the state carried from the step before, see `start_acting`.
            obs: `[B, O]`, standardised observations.
            reward: `[B]`, rewards of the step before.
            reset: `[B]` bool, an episode begins with `obs`.

        Returns:
            the state to carry on, the action in units of `DataView.to_unit`.
        """
        raise NotImplementedError

    def start_acting(self, n: int) -> Any:
        """The state that `act` carries before the first observations of `n` environments."""
        return ()

    def memory_of(self, acting: Any) -> Any:
        """What the state that `act` carries remembers, leaves `[n, ...]`."""
        return acting

    @property
    def optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.settings.learning_rate)

    def init(self, key: jax.Array) -> OfflineState:
        params_key, key = jax.random.split(key)
        params = self.init_params(params_key, self.obs_size)
        return OfflineState(
            params=params,
            # Copies, because an array that occurs twice in the state cannot be donated.
            target=jax.tree.map(jnp.copy, {name: params[name] for name in self.target_networks}),
            optimiser=self.optimiser.init(params),
            key=key,
            updates=jnp.zeros((), jnp.int32),
        )

    def draw(self, key: jax.Array) -> jax.Array:
        """The numbers `[B]` of random steps."""
        return draw(key, self.data, self.settings.batch_size)

    reach: ClassVar[tuple[int, int]] = (0, 0)
    """Steps before and after a drawn one that `batch` looks at."""

    def batch(self, data: OfflineData, step: jax.Array) -> Any:
        """The batch of the steps with numbers `step[B]`."""
        batch = data.transitions(step)
        return batch.replace(action=self.view.to_unit(batch.action))

    def drawn_batch(self, key: jax.Array, drawn: jax.Array | None = None, index: int = 0) -> Any:
        """A random batch of the dataset, of the steps `drawn[index]` where these were drawn before."""
        return self.batch(self.data, self.draw(key) if drawn is None else drawn[index])

    @property
    def feed(self) -> HostFeed | None:
        """How the training loop feeds it, where its data are on the host."""
        if isinstance(self.data, OfflineData):
            return None
        return HostFeed(self.data, self.steps_per_update, self.draw, self.reach)

    def gradient(
        self, params: Any, target: Any, batch: Any, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[Any, Metrics]:
        """The gradient of the loss, and metrics."""
        return jax.grad(self.loss, has_aux=True)(params, target, batch, key, updates)

    def update(self, state: OfflineState, drawn: jax.Array | None = None) -> tuple[OfflineState, Metrics]:
        """One gradient step. Pure: `jit`, `vmap` over seeds, `scan` over updates.

        Args:
            drawn: the numbers `[steps_per_update, B]` of the steps to learn from (None: they are drawn here).
        """
        key, draw_key, loss_key = jax.random.split(state.key, 3)
        batch = self.drawn_batch(draw_key, drawn)
        gradient, metrics = self.gradient(state.params, state.target, batch, loss_key, state.updates)
        step, optimiser = self.optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, step)
        return state.replace(
            params=params,
            target=self.update_targets(state.target, params),
            optimiser=optimiser,
            key=key,
            updates=state.updates + 1,
        ), metrics

    def update_targets(self, target: Any, params: Any) -> Any:
        """The target networks after a step that led to `params`."""
        if not self.target_networks:
            return target
        assert isinstance(self.settings, ValueSettings)
        learned = {name: params[name] for name in self.target_networks}
        return optax.incremental_update(learned, target, self.settings.target_rate)

    # ---------------------------------------------------------------------------------------------------- evaluating

    def _start_play(self, key: jax.Array) -> tuple:
        n = self.env.num_envs
        obs, env_state = self.env.reset(key, self.env.default_params)
        return env_state, obs, jnp.zeros(n), jnp.ones(n, bool), self.start_acting(n)

    def _play_step(self, params: Any, carry: tuple, key: jax.Array) -> tuple[tuple, Any, Any]:
        """One step of evaluation -> next carry `(env_state, obs, reward, reset, acting)`, info, action."""
        env_state, obs, reward, reset, acting = carry
        acting, action = self.act(params, acting, self.view.normalise(obs), reward, reset)
        action = self.view.from_unit(action)
        obs, env_state, reward, _, _, info = self.env.step(key, env_state, action, self.env.default_params)
        return (env_state, obs, jnp.where(info["valid"], reward, 0.0), info["reset"], acting), info, action

    def _play(self, params: Any, carry: tuple, key: jax.Array, axis_name: str | None) -> Metrics:
        return play_episodes(
            lambda carry, key: self._play_step(params, carry, key)[:2],
            carry,
            key,
            self.env.num_envs,
            self.settings.eval_episodes,
            self.env.max_steps(self.env.default_params),
            axis_name,
        )

    def evaluate(self, state: OfflineState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """Metrics of episodes in fresh environments with the greedy actions of `state`, see
        `engram.agents.common.evaluation.play_episodes`. Where the dataset has reference returns, `eval/score` too."""
        start_key, key = jax.random.split(key)
        return self.view.with_scores(self._play(state.params, self._start_play(start_key), key, axis_name))

    def record(self, state: OfflineState, key: jax.Array, num_steps: int) -> tuple[Any, jax.Array, jax.Array]:
        """`num_steps` steps for a picture, see `engram.agents.common.evaluation.record_steps`."""
        start_key, key = jax.random.split(key)
        carry = self._start_play(start_key)
        return record_steps(lambda carry, key: self._play_step(state.params, carry, key), carry, key, num_steps)


def example_action(space: Space) -> jax.Array:
    """An action `[1, ...]` of the shape and dtype of `DataView.to_unit`'s."""
    return jnp.zeros((1, *space.shape), jnp.float32 if isinstance(space, Box) else jnp.int32)  # type: ignore[union-attr]
