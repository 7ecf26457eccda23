"""A policy that continues a recorded sequence: Decision Transformer (Chen et al. 2021), Decision Mamba (Lv et al. 2024)
and the like, by what mixes the tokens.

It learns from recorded episodes alone to predict each action from the return that was still to come, the observation
and what went before; asked for a high return, it acts as those did who got one. An `update` is one gradient step.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from engram.agents.offline.data import OfflineData, Windows
from engram.agents.offline.view import DataView
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest
from engram.kernels.rows import masked_mean
from engram.memory.layers import Dense, uniform
from engram.memory.mixers import TokenMixer

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class SequenceSettings:
    """Hyperparameters of the sequence policy."""

    context: int
    """Steps of a training window, and of those that acting=window looks back."""
    batch_size: int
    """Windows in a batch."""
    learning_rate: float
    """Step size, from its rise on."""
    learning_rate_end: float
    """The same at the end of training; linear in between."""
    warmup: int
    """Updates over which the step size rises."""
    weight_decay: float
    """Share, times the step size, by which matrices shrink at an update; biases and normalisations do not."""
    adam_eps: float
    """Added to the root of Adam's second moment."""
    max_grad_norm: float
    """Gradients are scaled down to this global norm."""
    return_scale: float
    """Returns-to-go are divided by this."""
    action_weight: float
    """Weight of the loss of the action."""
    obs_weight: float
    """Weight of the loss of the next observation, predicted after the action (inverse learning objectives)."""
    to_go_weight: float
    """Weight of the loss of the next return-to-go, likewise."""
    alpha_T: float
    """Share that the earlier policy's action has in the target in the last epoch (0: no self-evolution)."""
    alpha_cap: float
    """Greatest share."""
    epoch: int
    """Updates of an epoch: how long the earlier policy is kept."""
    targets: tuple[float, ...]
    """Returns to ask for in evaluations (none: deciles 1, 5 and 9 of the recorded returns, and the greatest)."""
    eval_episodes: int
    """Episodes of an evaluation for each target."""
    acting: Literal["window", "recurrent", "both"]
    """In evaluations the mixer reads the last context steps afresh at each step, or carries its state on."""

    def __post_init__(self):
        positive = "context batch_size learning_rate adam_eps max_grad_norm return_scale epoch action_weight"
        for name in positive.split():
            if not 0 < getattr(self, name) < float("inf"):
                raise BadRequest(f"sequence.{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("learning_rate_end", "warmup", "weight_decay", "obs_weight", "to_go_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadRequest(f"sequence.{name} must not be negative, got {getattr(self, name)}")
        for name in ("alpha_T", "alpha_cap"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadRequest(f"sequence.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.eval_episodes < 2:
            raise BadRequest(f"sequence.eval_episodes must be at least 2, got {self.eval_episodes}")
        if not np.all(np.isfinite(self.targets)) or len(set(self.targets)) < len(self.targets):
            raise BadRequest(f"sequence.targets must be finite and different, got {self.targets}")


class Predictions(struct.PyTreeNode):
    """Of each step, `[K, B, ...]`: its action (a vector in [-1, 1], or logits), and what follows it."""

    action: jax.Array
    next_obs: jax.Array
    next_to_go: jax.Array


class Embedding(nn.Module):
    """`h = W x + b`, or `h + V gelu(h)` where `deep`. `b` begins as PyTorch's, which published code has, does."""

    width: int
    deep: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Not at 0: of a single number, as the return-to-go is, the normalisation that follows would leave the sign.
        h = Dense(self.width, bias_init=uniform(x.shape[-1] ** -0.5))(x)
        return h + Dense(self.width)(nn.gelu(h)) if self.deep else h


def slow_waves(span: int) -> Callable[..., jax.Array]:
    """What embeddings of times `[times, width]` begin as: sinusoids, from a quarter of a wave in `span` steps to four.

    So times that are near begin alike. What a return-to-go says depends on the time; of a table whose rows begin at
    random, as published, each row has to be learnt by itself.
    """

    def initialise(_, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        times, width = shape
        column = jnp.arange(width)
        quarters = 16.0 ** (column // 2 / max((width - 1) // 2, 1))
        return jnp.sin(jnp.pi / 2 * (jnp.arange(times)[:, None] / span * quarters + column % 2)).astype(dtype)

    return initialise


class SequencePolicy(nn.Module):
    """Tokens, a mixer, and heads. Actions are numbers: vectors in [-1, 1], or one-hot.

    Attributes:
        actions: entries of an action.
        discrete: they are one-hot.
        max_timestep: steps from here on are not told apart.
        span: steps of the longest recorded episode, by which times are told apart at the start.
        deep: embeddings and action head have a hidden layer; else they are linear, and a tanh bounds the action.
        see_actions: False: the tokens of actions are blank, so that no prediction follows from an action before.
    """

    mixer: TokenMixer
    obs_size: int
    actions: int
    discrete: bool
    max_timestep: int
    span: int
    deep: bool
    see_actions: bool = True

    def setup(self):
        width = self.mixer.width
        self.embed_to_go = Embedding(width, self.deep)
        self.embed_obs = Embedding(width, self.deep)
        self.embed_action = Embedding(width, self.deep)
        self.norm = nn.LayerNorm()
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
        """Windows `[K, B, ...]`, from the empty state. What `mask` leaves out is embedded as 0."""
        steps, batch = mask.shape
        tokens = jnp.stack([self.first(to_go, timestep), self.second(obs, timestep), self.third(action, timestep)], 1)
        tokens = jnp.where(mask[:, None, :, None], tokens, 0)
        opens = jnp.zeros((steps, 3, batch), bool).at[:, 0].set(reset)
        state = self.mixer.initial_state(batch)
        _, y = self.mixer(state, tokens.reshape(3 * steps, batch, -1), opens.reshape(3 * steps, batch))
        _, of_obs, of_action = y.reshape(steps, 3, batch, -1).swapaxes(0, 1)
        return Predictions(self.act_on(of_obs), self.next_obs_out(of_action), self.next_to_go_out(of_action)[..., 0])

    def observe(
        self, state: Any, to_go: jax.Array, obs: jax.Array, timestep: jax.Array, reset: jax.Array
    ) -> tuple[Any, jax.Array]:
        """First phase of one step, `[B, ...]`: the mixer's state, and the predicted action."""
        tokens = jnp.stack([self.first(to_go, timestep), self.second(obs, timestep)])
        state, y = self.mixer.observe(state, tokens, reset)
        return state, self.act_on(y[1])

    def act(self, state: Any, action: jax.Array, timestep: jax.Array) -> Any:
        """Second phase: the mixer's state after the action that was taken."""
        return self.mixer.act(state, self.third(action, timestep))

    def first(self, to_go: jax.Array, timestep: jax.Array) -> jax.Array:
        return self.token(self.embed_to_go(to_go[..., None]), timestep)

    def second(self, obs: jax.Array, timestep: jax.Array) -> jax.Array:
        return self.token(self.embed_obs(obs), timestep)

    def third(self, action: jax.Array, timestep: jax.Array) -> jax.Array:
        action = action if self.see_actions else jnp.zeros_like(action)
        return self.token(self.embed_action(action), timestep)

    def token(self, embedded: jax.Array, timestep: jax.Array) -> jax.Array:
        """Normalised first: the Decision Transformer adds the time before it normalises."""
        return self.norm(embedded) + self.embed_timestep(jnp.minimum(timestep, self.max_timestep))

    def act_on(self, y: jax.Array) -> jax.Array:
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
    """Whether weight decay takes a parameter: matrices, but neither biases per head nor logarithms of rates."""
    name = path[-1].key
    return leaf.ndim >= 2 and not re.search(r"bias|scale|log", name)


@dataclass(frozen=True, eq=False)
class SequenceAgent:
    """The agent: pure `init`, `update` and `evaluate` over a `SequenceState`; `data` is handed to them by the loop."""

    env: Wrapper
    """`eval_episodes` environments to play in, whose observations are those of the data."""
    policy: SequencePolicy
    data: OfflineData
    settings: SequenceSettings
    view: DataView
    total_updates: int

    steps_per_update = 1

    def close(self) -> None:
        """Frees what the environment holds on the host."""
        self.env.close()

    @property
    def optimiser(self) -> optax.GradientTransformation:
        s = self.settings

        def step_size(count):
            rise = jnp.minimum((count + 1) / max(s.warmup, 1), 1.0)
            return rise * (s.learning_rate + (s.learning_rate_end - s.learning_rate) * count / self.total_updates)

        return optax.chain(
            optax.clip_by_global_norm(s.max_grad_norm),
            optax.adamw(
                step_size,
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
        blank = self.data.windows(jnp.zeros(1, jnp.int32), self.settings.context)
        params = self.policy.init(init_key, *self.inputs(blank))["params"]
        teacher = params if self.evolves else None
        return SequenceState(params, teacher, self.optimiser.init(params), key, jnp.zeros((), jnp.int32))

    # ---------------------------------------------------------------------------------------------------- learning

    def inputs(self, windows: Windows) -> tuple[jax.Array, ...]:
        """`windows` as the policy takes them."""
        to_go = windows.to_go / self.settings.return_scale
        action = self.view.numbers(windows.action)
        return to_go, windows.obs, action, windows.timestep, windows.mask, windows.reset

    def predict(self, params: Any, windows: Windows) -> Predictions:
        out: Any = self.policy.apply({"params": params}, *self.inputs(windows))
        return out

    def alpha(self, updates: jax.Array) -> jax.Array:
        """Share of the earlier policy's action in the target: rises from epoch to epoch, 0 in the first."""
        s = self.settings
        epochs = -(-self.total_updates // s.epoch)
        return jnp.minimum(s.alpha_cap, s.alpha_T * (updates // s.epoch) / epochs)

    def loss(self, params: Any, teacher: Any, windows: Windows, alpha: jax.Array | float) -> tuple[jax.Array, Metrics]:
        """The loss of `windows`, a mean over the steps that are there.

        Args:
            teacher: parameters of the earlier policy, whose action has the share `alpha` in the target; None for none.
        """
        s = self.settings
        out = self.predict(params, windows)
        to_go, obs, target, _, mask, _ = self.inputs(windows)
        if teacher is not None:
            earlier = self.predict(teacher, windows).action
            earlier = jax.nn.softmax(earlier) if self.policy.discrete else earlier
            target = (1 - alpha) * target + alpha * jax.lax.stop_gradient(earlier)
        if self.policy.discrete:
            error = -jnp.sum(target * jax.nn.log_softmax(out.action), -1)
        else:
            error = jnp.mean((out.action - target) ** 2, -1)
        # A window holds one episode, so the step after a step that is there, is of the same one.
        followed = mask[:-1]
        parts = {
            "loss/action": masked_mean(error, mask),
            "loss/next_obs": masked_mean(jnp.mean(optax.huber_loss(out.next_obs[:-1], obs[1:]), -1), followed),
            "loss/next_to_go": masked_mean(optax.huber_loss(out.next_to_go[:-1], to_go[1:]), followed),
        }
        total = (
            s.action_weight * parts["loss/action"]
            + s.obs_weight * parts["loss/next_obs"]
            + s.to_go_weight * parts["loss/next_to_go"]
        )
        return total, parts

    def update(self, state: SequenceState) -> tuple[SequenceState, Metrics]:
        s = self.settings
        key, draw_key = jax.random.split(state.key)
        windows = self.data.draw_windows(draw_key, s.batch_size, s.context)
        alpha = self.alpha(state.updates)
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (total, parts), gradient = value_and_grad(state.params, state.teacher, windows, alpha)
        change, optimiser = self.optimiser.update(gradient, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, change)
        updates = state.updates + 1
        teacher = state.teacher
        if teacher is not None:
            over = updates % s.epoch == 0
            teacher = jax.tree.map(lambda new, old: jnp.where(over, new, old), params, teacher)
        metrics = {"loss/total": total, **parts, "loss/grad_norm": optax.tree.norm(gradient)}
        if self.evolves:
            metrics["train/alpha"] = alpha
        return SequenceState(params, teacher, optimiser, key, updates), metrics

    # ------------------------------------------------------------------------------------------------------ acting

    def evaluate(self, state: SequenceState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """Plays `eval_episodes` episodes for each target, the same openings for all.

        Returns:
            the mean return for each target (`eval/return_at_<target>`). `eval/return` is that of the best target; where
            there are several, one half of the episodes chooses it and the other is counted. Scores likewise.
        """
        modes = ("window", "recurrent") if self.settings.acting == "both" else (self.settings.acting,)
        metrics = {}
        for i, mode in enumerate(modes):
            returns, lengths = self.play(state.params, key, mode)
            prefix = "eval/" if i == 0 else f"eval/{mode}_"
            metrics |= self.report(prefix, returns, lengths)
        return metrics

    def report(self, prefix: str, returns: jax.Array, lengths: jax.Array) -> Metrics:
        """Metrics of the returns and lengths `[targets, episodes]`."""
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
        # One opening for all targets; lanes are [targets, episodes] for the environment and one axis for the policy.
        opening = env.reset(reset_key, env_params)
        obs, env_state = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(view.targets), *x.shape)), opening)
        env_step = jax.vmap(env.step, (None, 0, 0, None))
        start, choose = self.windowed(lanes) if mode == "window" else self.recurrent(lanes)

        def step(carry, t):
            env_state, obs, to_go, memory, alive, returns, lengths = carry
            memory, action = choose(params, memory, to_go, view.normalise(obs.reshape(lanes, -1)), t)
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
        """Acting by reading the last `context` steps afresh."""
        K, policy, view = self.settings.context, self.policy, self.view
        empty = (jnp.zeros((K, lanes)), jnp.zeros((K, lanes, policy.obs_size)), jnp.zeros((K, lanes, policy.actions)))

        def choose(params, past, to_go, obs, t):
            to_goes, seen, actions = (
                jnp.concatenate([old[1:], new[None]])
                for old, new in zip(past, (to_go, obs, jnp.zeros((lanes, policy.actions))), strict=True)
            )
            age = jnp.broadcast_to(jnp.arange(K - 1, -1, -1)[:, None], (K, lanes))
            mask = age <= t
            reset = age >= jnp.minimum(t, K - 1)
            timestep = jnp.maximum(t - age, 0)
            out: Any = policy.apply({"params": params}, to_goes, seen, actions, timestep, mask, reset)
            action, numbers = view.decide(out.action[-1])
            return (to_goes, seen, actions.at[-1].set(numbers)), action

        return empty, choose

    def recurrent(self, lanes: int):
        """Acting by carrying the mixer's state on."""
        policy, view = self.policy, self.view

        def choose(params, memory, to_go, obs, t):
            timestep, reset = jnp.full(lanes, t), jnp.full(lanes, t == 0)
            stepped: Any = policy.apply({"params": params}, memory, to_go, obs, timestep, reset, method="observe")
            memory, out = stepped
            action, numbers = view.decide(out)
            return policy.apply({"params": params}, memory, numbers, timestep, method="act"), action

        return policy.initial_state(lanes), choose
