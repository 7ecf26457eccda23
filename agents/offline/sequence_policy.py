"""A policy that continues a recorded sequence: Decision Transformer (Chen et al. 2021), Decision Mamba (Lv et al. 2024)
and others, depending on what mixes the tokens.

It learns from recorded episodes alone to predict each action from the return to go, the observation and all earlier
steps. Asked for a high return, it acts as the recorded episodes with a high return did. An `update` is one gradient
step.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from engram.agents.common.checks import require_at_least, require_not_negative, require_positive, require_share
from engram.agents.offline.data import HostFeed, OfflineData, Windows, draw
from engram.agents.offline.view import DataView
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest
from engram.kernels.rows import masked_mean
from engram.memory.layers import Dense, uniform
from engram.memory.mixers import TokenMixer
from engram.training.types import Metrics


@dataclass(frozen=True)
class SequenceSettings:
    """Hyperparameters of the sequence policy. The defaults are those of Decision Mamba for locomotion."""

    context: int = 20
    """Steps of a training window, and of the window that acting=window reads."""
    batch_size: int = 64
    """Windows in a batch."""
    learning_rate: float = 1e-4
    """Learning rate after the warm-up."""
    learning_rate_end: float = 1e-4
    """Learning rate at the end of training; it changes linearly."""
    warmup: int = 2500
    """Updates over which the learning rate rises from 0."""
    weight_decay: float = 1e-5
    """Share, times the learning rate, by which matrices shrink at an update; biases and normalisations are exempt."""
    adam_eps: float = 1e-6
    """Epsilon of Adam, added to the root of the second moment."""
    max_grad_norm: float = 0.25
    """Largest global norm of the gradient; a longer gradient is scaled down to it."""
    return_scale: float = 1000.0
    """Divisor of the returns to go."""
    action_weight: float = 0.9
    """Weight of the action's loss."""
    obs_weight: float = 0.05
    """Weight of the loss of the next observation, which is predicted after the action (inverse learning objectives)."""
    to_go_weight: float = 0.05
    """Weight of the loss of the next return to go, which is predicted after the action."""
    alpha_T: float = 0.85
    """Share of the earlier policy's action in the target in the last epoch; 0 turns self-evolution off."""
    alpha_cap: float = 0.5
    """Largest share of the earlier policy's action in the target."""
    epoch: int = 2500
    """Updates of an epoch, after which the current policy becomes the earlier policy."""
    targets: tuple[float, ...] = ()
    """Returns that evaluations ask for (default: deciles 1, 5 and 9 of the recorded returns, and the highest)."""
    eval_episodes: int = 20
    """Episodes of an evaluation for each target."""
    acting: Literal["window", "recurrent", "both"] = "window"
    """State of the mixer in evaluations: computed anew from the last context steps, carried from step to step, or each
    in turn."""

    ARGUMENTS: ClassVar = (
        *("learning_rate", "learning_rate_end", "adam_eps", "max_grad_norm", "weight_decay"),
        *("action_weight", "obs_weight", "to_go_weight"),
    )
    """Numbers that are arguments of the compiled programs (see `engram.training.arguments`)."""

    def __post_init__(self):
        prefix = "sequence."
        require_positive(self, prefix, "context", "batch_size", "learning_rate", "adam_eps", "max_grad_norm")
        require_positive(self, prefix, "return_scale", "epoch", "action_weight")
        require_not_negative(self, prefix, "learning_rate_end", "warmup", "weight_decay", "obs_weight", "to_go_weight")
        require_share(self, prefix, "alpha_T", "alpha_cap")
        require_at_least(self, prefix, 2, "eval_episodes")
        if not np.all(np.isfinite(self.targets)) or len(set(self.targets)) < len(self.targets):
            raise BadRequest(f"sequence.targets must be finite and different, got {self.targets}")


class Predictions(struct.PyTreeNode):
    """Predictions at each step, `[K, B, ...]`."""

    action: jax.Array
    """The action of the step: a vector in [-1, 1], or logits."""
    next_obs: jax.Array
    next_to_go: jax.Array
    """The next return to go, divided by the return scale."""


class Embedding(nn.Module):
    """`h = W x + b`, or `h + V gelu(h)` where `deep`. `b` begins as in PyTorch, which the published code uses."""

    width: int
    deep: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # With biases of 0, the normalisation that follows would leave only the sign of a single number, such as the
        # return to go.
        h = Dense(self.width, bias_init=uniform(x.shape[-1] ** -0.5))(x)
        return h + Dense(self.width)(nn.gelu(h)) if self.deep else h


def slow_waves(span: int) -> Callable[..., jax.Array]:
    """Initialiser of time embeddings `[times, width]`: sinusoids with a quarter to four waves in `span` steps.

    Times that are near begin alike. (The meaning of a return to go depends on the time. In a table with random rows, as
    published, each row has to be learned by itself.)
    """

    def initialise(_, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        times, width = shape
        column = jnp.arange(width)
        quarters = 16.0 ** (column // 2 / max((width - 1) // 2, 1))
        return jnp.sin(jnp.pi / 2 * (jnp.arange(times)[:, None] / span * quarters + column % 2)).astype(dtype)

    return initialise


class SequencePolicy(nn.Module):
    """Tokens, a mixer, and heads. Actions are vectors: in [-1, 1], or one-hot.

    Attributes:
        actions: size of an action vector.
        discrete: actions are one-hot.
        max_timestep: largest time with an embedding of its own; later steps share it.
        span: steps of the longest recorded episode, which scales the initial time embeddings.
        deep: embeddings and action head have a hidden layer; else they are linear, and a tanh bounds the action.
        see_actions: if False, action tokens are blank, so that no prediction depends on earlier actions.
        time_first: the embedding of the time is added before the normalisation of a token, not after it.
        dropout: rate at which entries of tokens are dropped, where a random key named "dropout" is given.
    """

    mixer: TokenMixer
    obs_size: int
    actions: int
    discrete: bool
    max_timestep: int
    span: int
    deep: bool
    see_actions: bool = True
    time_first: bool = False
    dropout: float = 0.0

    def setup(self):
        width = self.mixer.width
        self.embed_to_go = Embedding(width, self.deep)
        self.embed_obs = Embedding(width, self.deep)
        self.embed_action = Embedding(width, self.deep)
        self.norm = nn.LayerNorm()
        self.drop = nn.Dropout(self.dropout)
        self.embed_timestep = nn.Embed(self.max_timestep + 1, width, embedding_init=slow_waves(self.span + 1))
        if self.deep:
            self.action_hidden = Dense(width)
        self.action_out = Dense(self.actions)
        self.next_obs_out = Dense(self.obs_size)
        self.next_to_go_out = Dense(1)

    @nn.nowrap
    def initial_state(self, batch: int) -> Any:
        return self.mixer.initial_state(batch)

    def __call__(
        self,
        to_go: jax.Array,
        obs: jax.Array,
        action: jax.Array,
        timestep: jax.Array,
        mask: jax.Array,
        reset: jax.Array,
    ) -> Predictions:
        """Predictions for windows `[K, B, ...]`, from the initial state; padding (`mask` False) is embedded as 0."""
        steps, batch = mask.shape
        embedded = (
            self.to_go_token(to_go, timestep),
            self.obs_token(obs, timestep),
            self.action_token(action, timestep),
        )
        tokens = jnp.where(mask[:, None, :, None], jnp.stack(embedded, 1), 0)
        token_reset = jnp.zeros((steps, 3, batch), bool).at[:, 0].set(reset)
        state = self.mixer.initial_state(batch)
        _, y = self.mixer(state, tokens.reshape(3 * steps, batch, -1), token_reset.reshape(3 * steps, batch))
        _, y_obs, y_action = y.reshape(steps, 3, batch, -1).swapaxes(0, 1)
        return Predictions(self.action_head(y_obs), self.next_obs_out(y_action), self.next_to_go_out(y_action)[..., 0])

    def observe(
        self, state: Any, to_go: jax.Array, obs: jax.Array, timestep: jax.Array, reset: jax.Array
    ) -> tuple[Any, jax.Array]:
        """First phase of one step, inputs `[B, ...]` -> the mixer's state, the predicted action."""
        tokens = jnp.stack([self.to_go_token(to_go, timestep), self.obs_token(obs, timestep)])
        state, y = self.mixer.observe(state, tokens, reset)
        return state, self.action_head(y[1])

    def act(self, state: Any, action: jax.Array, timestep: jax.Array) -> Any:
        """Second phase of one step: the mixer's state after the action taken."""
        return self.mixer.act(state, self.action_token(action, timestep))

    def to_go_token(self, to_go: jax.Array, timestep: jax.Array) -> jax.Array:
        return self.token(self.embed_to_go(to_go[..., None]), timestep)

    def obs_token(self, obs: jax.Array, timestep: jax.Array) -> jax.Array:
        return self.token(self.embed_obs(obs), timestep)

    def action_token(self, action: jax.Array, timestep: jax.Array) -> jax.Array:
        action = action if self.see_actions else jnp.zeros_like(action)
        return self.token(self.embed_action(action), timestep)

    def token(self, embedded: jax.Array, timestep: jax.Array) -> jax.Array:
        """The token of an embedding: normalised, then the time is added (the Decision Transformer adds it before)."""
        time = self.embed_timestep(jnp.minimum(timestep, self.max_timestep))
        token = self.norm(embedded + time) if self.time_first else self.norm(embedded) + time
        return self.drop(token, deterministic=not self.has_rng("dropout"))

    def action_head(self, y: jax.Array) -> jax.Array:
        """The action head: the mixer's output at an observation -> an action in [-1, 1], or logits."""
        if self.deep:
            return self.action_out(nn.gelu(self.action_hidden(y)))
        out = self.action_out(y)
        return out if self.discrete else jnp.tanh(out)


class SequenceState(struct.PyTreeNode):
    """Everything that training carries, as one pytree."""

    params: Any
    teacher: Any
    """Parameters at the end of the last epoch; None without self-evolution."""
    optimiser: Any
    key: jax.Array
    updates: jax.Array


def is_decayed(path: Any, leaf: jax.Array) -> bool:
    """Whether weight decay applies to a parameter: matrices, but neither biases per head nor logarithms of rates."""
    name = path[-1].key
    return leaf.ndim >= 2 and not re.search(r"bias|scale|log", name)


@dataclass(frozen=True, eq=False)
class SequenceAgent:
    """The agent: pure `init`, `update` and `evaluate` over a `SequenceState`."""

    env: Wrapper
    """`eval_episodes` environments of an evaluation, whose observations are those of the data."""
    policy: SequencePolicy
    data: Any
    """`OfflineData`, or `HostData`."""
    settings: SequenceSettings
    view: DataView
    total_updates: int

    ARGUMENTS: ClassVar = ("data", "settings")
    steps_per_update = 1

    def close(self) -> None:
        """Frees the emulators, if any; the agent cannot be used afterwards."""
        self.env.close()

    @property
    def optimiser(self) -> optax.GradientTransformation:
        s = self.settings

        def learning_rate(count):
            warmup = jnp.minimum((count + 1) / max(s.warmup, 1), 1.0)
            return warmup * (s.learning_rate + (s.learning_rate_end - s.learning_rate) * count / self.total_updates)

        return optax.chain(
            optax.clip_by_global_norm(s.max_grad_norm),
            optax.adamw(
                learning_rate,
                eps=s.adam_eps,
                weight_decay=s.weight_decay,
                mask=lambda params: jax.tree_util.tree_map_with_path(is_decayed, params),
            ),
        )

    @property
    def evolves(self) -> bool:
        return self.settings.alpha_T > 0 and self.settings.alpha_cap > 0

    def init(self, key: jax.Array) -> SequenceState:
        key, init_key = jax.random.split(key)
        shape = (self.settings.context, 1)
        action = (*shape, self.policy.actions)
        zeros, time, yes = jnp.zeros(shape), jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
        params = self.policy.init(
            init_key, zeros, jnp.zeros((*shape, self.policy.obs_size)), jnp.zeros(action), time, yes, yes
        )["params"]
        teacher = params if self.evolves else None
        return SequenceState(params, teacher, self.optimiser.init(params), key, jnp.zeros((), jnp.int32))

    # ---------------------------------------------------------------------------------------------------- learning

    def inputs(self, windows: Windows) -> tuple[jax.Array, ...]:
        """The policy's arguments for `windows`."""
        to_go = windows.to_go / self.settings.return_scale
        action = self.view.numbers(windows.action)
        return to_go, windows.obs, action, windows.timestep, windows.mask, windows.reset

    def predict(self, params: Any, windows: Windows, dropout: jax.Array | None = None) -> Predictions:
        """Predictions of `windows`, with the dropout of training where its random key is given."""
        rngs = {} if dropout is None else {"dropout": dropout}
        out: Any = self.policy.apply({"params": params}, *self.inputs(windows), rngs=rngs)
        return out

    def alpha(self, updates: jax.Array) -> jax.Array:
        """Share of the earlier policy's action in the target: 0 in the first epoch, and rising from epoch to epoch."""
        s = self.settings
        epochs = -(-self.total_updates // s.epoch)
        return jnp.minimum(s.alpha_cap, s.alpha_T * (updates // s.epoch) / epochs)

    def loss(
        self,
        params: Any,
        teacher: Any,
        windows: Windows,
        alpha: jax.Array | float,
        dropout: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss of `windows`, a mean over all steps but padding, and its parts.

        Args:
            teacher: parameters of the earlier policy, whose action has the share `alpha` in the target, or None.
            alpha: in [0, 1].
            dropout: random key of what `params` drop. The earlier policy acts, and drops nothing.
        """
        s = self.settings
        out = self.predict(params, windows, dropout)
        to_go, obs, target, _, mask, _ = self.inputs(windows)
        if teacher is not None:
            taught = self.predict(teacher, windows).action
            taught = jax.nn.softmax(taught) if self.policy.discrete else taught
            target = (1 - alpha) * target + alpha * jax.lax.stop_gradient(taught)
        if self.policy.discrete:
            error = -jnp.sum(target * jax.nn.log_softmax(out.action), -1)
        else:
            error = jnp.mean((out.action - target) ** 2, -1)
        # A window never spans two episodes, and padding comes first: the step after a valid step is valid.
        has_next = mask[:-1]
        parts = {
            "loss/action": masked_mean(error, mask),
            "loss/next_obs": masked_mean(jnp.mean(optax.huber_loss(out.next_obs[:-1], obs[1:]), -1), has_next),
            "loss/next_to_go": masked_mean(optax.huber_loss(out.next_to_go[:-1], to_go[1:]), has_next),
        }
        total = (
            s.action_weight * parts["loss/action"]
            + s.obs_weight * parts["loss/next_obs"]
            + s.to_go_weight * parts["loss/next_to_go"]
        )
        return total, parts

    def draw(self, key: jax.Array) -> jax.Array:
        """The numbers `[B]` of the steps at which random windows begin."""
        return draw(key, self.data, self.settings.batch_size)

    @property
    def feed(self) -> HostFeed | None:
        """How the training loop feeds it, where its data are on the host."""
        if isinstance(self.data, OfflineData):
            return None
        return HostFeed(self.data, 1, self.draw, (0, self.settings.context - 1))

    def update(self, state: SequenceState, drawn: jax.Array | None = None) -> tuple[SequenceState, Metrics]:
        """One gradient step. Pure: `jit`, `vmap` over seeds, `scan` over updates.

        Args:
            drawn: the numbers `[1, B]` of the steps at which its windows begin (None: they are drawn here).
        """
        s = self.settings
        key, draw_key, drop_key = jax.random.split(state.key, 3)
        windows = self.data.windows(self.draw(draw_key) if drawn is None else drawn[0], s.context)
        alpha = self.alpha(state.updates)
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (total, parts), gradient = value_and_grad(state.params, state.teacher, windows, alpha, drop_key)
        change, optimiser = self.optimiser.update(gradient, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, change)
        updates = state.updates + 1
        teacher = state.teacher
        if teacher is not None:
            epoch_ends = updates % s.epoch == 0
            teacher = jax.tree.map(lambda new, old: jnp.where(epoch_ends, new, old), params, teacher)
        metrics = {"loss/total": total, **parts, "loss/grad_norm": optax.tree.norm(gradient)}
        if self.evolves:
            metrics["train/alpha"] = alpha
        return SequenceState(params, teacher, optimiser, key, updates), metrics

    # ------------------------------------------------------------------------------------------------------ acting

    def evaluate(self, state: SequenceState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """Plays `eval_episodes` episodes for each target. The episodes of all targets begin alike.

        Returns:
            `eval/return_at_<target>`, the mean return of each target. `eval/return` is that of the best target; where
            there are several, one half of the episodes selects it and the other half is averaged. Scores likewise.
        """
        modes = ("window", "recurrent") if self.settings.acting == "both" else (self.settings.acting,)
        metrics = {}
        for i, mode in enumerate(modes):
            returns, lengths = self.play(state.params, key, mode)
            prefix = "eval/" if i == 0 else f"eval/{mode}_"
            metrics |= self.report(prefix, returns, lengths)
        return metrics

    def report(self, prefix: str, returns: jax.Array, lengths: jax.Array) -> Metrics:
        """Metrics from returns and lengths `[targets, episodes]`."""
        targets = self.view.targets
        half = returns.shape[1] // 2 if len(targets) > 1 else 0
        best = jnp.argmax(returns[:, :half].mean(1)) if half else 0
        metrics = {
            f"{prefix}return": returns[best, half:].mean(),
            f"{prefix}length": lengths[best, half:].mean(dtype=jnp.float32),
            f"{prefix}target": jnp.asarray(targets, jnp.float32)[best],
        }
        metrics |= {f"{prefix}return_at_{target:g}": returns[i].mean() for i, target in enumerate(targets)}
        return self.view.with_scores(metrics)

    def play(self, params: Any, key: jax.Array, mode: str) -> tuple[jax.Array, jax.Array]:
        """Returns and lengths `[targets, episodes]` of episodes under each target."""
        env, view, episodes = self.env, self.view, self.env.num_envs
        env_params = env.default_params
        limit = env.max_steps(env_params)
        assert limit is not None
        targets = jnp.asarray(view.targets, jnp.float32)
        lanes = len(view.targets) * episodes
        reset_key, step_key = jax.random.split(key)
        # All targets begin alike. Lanes are [targets, episodes] for the environment and one axis for the policy.
        beginning = env.reset(reset_key, env_params)
        obs, env_state = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(view.targets), *x.shape)), beginning)
        env_step = jax.vmap(env.step, (None, 0, 0, None))
        start, choose = self.windowed(lanes) if mode == "window" else self.recurrent(lanes)

        def step(carry, t):
            env_state, obs, to_go, memory, alive, returns, lengths = carry
            mask = env.action_mask(env_state)
            mask = None if mask is None else mask.reshape(lanes, -1)
            memory, action = choose(params, memory, to_go, view.normalise(obs.reshape(lanes, -1)), t, mask)
            action = action.reshape(len(view.targets), episodes, *action.shape[1:])
            key = jax.random.fold_in(step_key, t)
            obs, env_state, reward, terminated, truncated, _ = env_step(key, env_state, action, env_params)
            reward = jnp.where(alive, reward, 0.0)
            to_go -= reward.reshape(lanes) / self.settings.return_scale
            lengths += alive
            alive &= ~(terminated | truncated)
            return (env_state, obs, to_go, memory, alive, returns + reward, lengths), None

        shape = (len(view.targets), episodes)
        to_go = jnp.repeat(targets, episodes) / self.settings.return_scale
        carry = (env_state, obs, to_go, start, jnp.ones(shape, bool), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
        (*_, returns, lengths), _ = jax.lax.scan(step, carry, jnp.arange(limit))
        return returns, lengths

    def windowed(self, lanes: int):
        """Acting from the last `context` steps, computed anew at each step -> initial carry, `choose`.

        `choose(params, carry, to_go, obs, t, mask)` gives the next carry and the actions of `lanes` episodes at time
        `t`, among those that `mask[lanes, n]` allows (None: all).
        """
        K, policy, view = self.settings.context, self.policy, self.view
        empty = (jnp.zeros((K, lanes)), jnp.zeros((K, lanes, policy.obs_size)), jnp.zeros((K, lanes, policy.actions)))

        def choose(params, past, to_go, obs, t, mask=None):
            newest = (to_go, obs, jnp.zeros((lanes, policy.actions)))
            past = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), past, newest)
            past_to_go, past_obs, past_action = past
            age = jnp.broadcast_to(jnp.arange(K - 1, -1, -1)[:, None], (K, lanes))
            seen = age <= t
            reset = age >= jnp.minimum(t, K - 1)
            timestep = jnp.maximum(t - age, 0)
            out: Any = policy.apply({"params": params}, *past, timestep, seen, reset)
            action, vector = view.decide(out.action[-1], mask)
            return (past_to_go, past_obs, past_action.at[-1].set(vector)), action

        return empty, choose

    def recurrent(self, lanes: int):
        """Acting with the mixer's state carried from step to step; see `windowed`."""
        policy, view = self.policy, self.view

        def choose(params, memory, to_go, obs, t, mask=None):
            timestep, reset = jnp.full(lanes, t), jnp.full(lanes, t == 0)
            stepped: Any = policy.apply({"params": params}, memory, to_go, obs, timestep, reset, method="observe")
            memory, out = stepped
            action, vector = view.decide(out, mask)
            return policy.apply({"params": params}, memory, vector, timestep, method="act"), action

        return policy.initial_state(lanes), choose
