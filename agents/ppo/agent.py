"""Proximal policy optimisation (Schulman et al. 2017) with any memory.

One `update` collects `num_steps` steps from `num_envs` environments and then takes `epochs * minibatches` gradient
steps. A minibatch is a set of environments with all their steps. The learner runs the memory over them from the state
in which the rollout began, so the first minibatch sees exactly the policy that acted (its probability ratio is 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from engram.agents.common.checks import (
    require_above,
    require_at_least,
    require_not_negative,
    require_positive,
    require_share,
)
from engram.agents.common.control_flow import when
from engram.agents.common.distributions import Distribution
from engram.agents.common.evaluation import play_episodes, record_steps
from engram.agents.common.flat import flattening
from engram.agents.common.groups import init_groups, update_groups
from engram.agents.common.proximal import clipped_surrogate, deal_minibatches
from engram.agents.common.returns import generalised_advantages
from engram.agents.ppo.networks import ActorCritic
from engram.envs.base import Info
from engram.envs.wrappers import Wrapper, is_of_all_groups, over_groups
from engram.errors import BadRequest
from engram.kernels.collectives import Axes, average, group_index, largest, total
from engram.kernels.rows import masked_mean
from engram.memory.base import METRICS, State, sown
from engram.training.action_log import played_of
from engram.training.faults import first_fault
from engram.training.types import Key, Metrics, Params, PyTree


@dataclass(frozen=True)
class PPOSettings:
    """Hyperparameters of PPO.

    The defaults are those of the POPGym runs of Lu et al. (NeurIPS 2023, "Structured State Space Models for
    In-Context Reinforcement Learning"), whose environments terminate and are never cut.
    """

    num_envs: int = 64
    """Environments stepped in parallel, per seed."""
    num_steps: int = 1024
    """Steps of each environment between two learning phases; also the length of backpropagation through time."""
    epochs: int = 30
    """Passes over the collected batch."""
    minibatches: int = 8
    """Minibatches per pass; each holds num_envs / minibatches environments with all their steps."""
    groups: int = 1
    """Groups of num_envs / groups environments, which may lie on different devices: each has its own random numbers and
    deals its own part of every minibatch, and all learn as one. Another number of groups is another run; the number of
    devices is not."""
    learning_rate: float = 5e-5
    """Step size of Adam at the start of training."""
    learning_rate_end: float = 5e-5
    """Step size of Adam at the end of training; it changes linearly. Equal to learning_rate for a constant one."""
    adam_eps: float = 1e-5
    """Epsilon of Adam, the constant in its denominator."""
    max_grad_norm: float = 0.5
    """Largest global norm of a gradient; longer gradients are scaled down to it."""
    discount: float = 0.99
    """Discount factor of the return."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    bootstrap_truncated: bool = False
    """Bootstrapping from the final observation of an episode that a limit cut; when off, a limit ends the task."""
    clip: float = 0.2
    """Clipping range of the probability ratio around 1."""
    value_clip: float = 0.2
    """Clipping range of the value's change from that of the rollout; 0 switches value clipping off."""
    value_coefficient: float = 1.0
    """Weight of the value loss."""
    entropy: float = 0.0
    """Weight of the entropy bonus at the start of training."""
    entropy_end: float = 0.0
    """Weight of the entropy bonus at the end of training; it changes linearly."""
    normalise_advantage: bool = True
    """Standardisation of the advantages within each minibatch."""
    eval_envs: int = 64
    """Environments of an evaluation, per seed; each plays one whole episode."""
    eval_greedy: bool = False
    """Greedy evaluation: the most likely action in place of a sampled one."""

    ARGUMENTS: ClassVar = (
        *("learning_rate", "learning_rate_end", "adam_eps", "max_grad_norm", "discount", "gae_lambda", "clip"),
        *("value_coefficient", "entropy", "entropy_end"),
    )
    """Numbers that are arguments of the compiled programs (see `engram.training.arguments`)."""

    def __post_init__(self):
        require_at_least(self, "ppo.", 1, "num_envs", "num_steps", "epochs", "minibatches", "groups", "eval_envs")
        if self.num_envs % self.minibatches:
            raise BadRequest(f"ppo.minibatches ({self.minibatches}) must divide ppo.num_envs ({self.num_envs})")
        if self.num_envs % self.groups or (self.num_envs // self.groups) % self.minibatches:
            raise BadRequest(
                f"ppo.groups ({self.groups}) times ppo.minibatches ({self.minibatches}) must divide ppo.num_envs "
                f"({self.num_envs}): every group deals its part of a minibatch"
            )
        require_share(self, "ppo.", "discount", "gae_lambda")
        require_positive(self, "ppo.", "learning_rate", "adam_eps")
        require_not_negative(
            self, "ppo.", "learning_rate_end", "value_clip", "value_coefficient", "entropy", "entropy_end"
        )
        require_above(self, "ppo.", 0, "max_grad_norm", "clip")


class PPOState(struct.PyTreeNode):
    """Everything that training carries, as one pytree."""

    params: Params
    optimiser: optax.OptState
    key: Key
    env: PyTree
    """State of the environments."""
    obs: PyTree
    """`[B, ...]`, the observations to act on next."""
    reset: jax.Array
    """`[B]` bool: the observation opens an episode."""
    memory: State
    """State of the memory `[B, ...]`, before it sees `obs`."""
    updates: jax.Array
    """int32, updates so far."""
    env_steps: jax.Array
    """int32, environment steps so far."""


class Rollout(struct.PyTreeNode):
    """The steps of one collection phase, `[T, B, ...]`."""

    obs: PyTree
    reset: jax.Array
    """bool: the observation opens an episode."""
    action: jax.Array
    log_prob: jax.Array
    """Log-probability of the action under the policy, also where the policy did not choose it."""
    features: jax.Array
    """Output of the memory, `[T, B, width]`."""
    reward: jax.Array
    terminated: jax.Array
    """bool: the task ended with this step."""
    truncated: jax.Array
    """bool: a limit cut the episode after this step."""
    final_value: jax.Array
    """Value of the final observation where `truncated`; 0 where no environment was cut at that time."""
    valid: jax.Array
    """bool: the step happened (see `engram.envs.base.VectorEnvironment`)."""
    episode_done: jax.Array
    """bool: an episode ended with this step, terminated or truncated."""
    episode_return: jax.Array
    """Sum of the rewards of the episode up to this step, undiscounted and not rescaled."""
    episode_length: jax.Array
    """int32, steps of the episode up to this one."""
    fault: jax.Array
    """int8: what the environment gave that is not sane (see `engram.envs.wrappers.EpisodeStatistics`)."""
    mask: jax.Array | None = None
    """bool `[T, B, n]`: the actions that were allowed, where the environment says so."""
    executed: jax.Array | None = None
    """Actions as an emulator took them (see `engram.envs.host.pool.HostPool`)."""
    record: PyTree = None
    """The steps underneath all wrappers, where the environment records them (see `engram.envs.datasets.recorder`)."""


class Batch(struct.PyTreeNode):
    """The part of a rollout that the loss needs, `[T, B, ...]`."""

    obs: PyTree
    reset: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    valid: jax.Array
    mask: jax.Array | None = None


class Carry(NamedTuple):
    """The part of the state that acting changes, `[B, ...]`: see `PPOState`."""

    env: PyTree
    obs: PyTree
    reset: jax.Array
    memory: State


@dataclass(frozen=True, eq=False)
class PPO:
    """The agent: pure `init`, `update` and `evaluate` over a `PPOState` (see `engram.training.types.Agent`)."""

    env: Wrapper
    eval_env: Wrapper
    network: ActorCritic
    settings: PPOSettings
    total_updates: int
    """Length of the schedules, in updates; at least 1."""
    axes: Axes = ()
    """Axes of the groups of environments (see `engram.agents.common.groups`); none for a single group. `env` and the
    functions from `init_group` on are those of one group."""

    ARGUMENTS: ClassVar = ("settings", "total_updates")

    @property
    def steps_per_update(self) -> int:
        return self.settings.num_envs * self.settings.num_steps

    def close(self) -> None:
        """Frees the emulators, if there are any. The agent cannot be used afterwards."""
        self.env.close()
        self.eval_env.close()

    def _apply(self, params: Params, method: str, *args: Any) -> Any:
        return self.network.apply({"params": params}, *args, method=method)

    @property
    def groups(self) -> int:
        return self.settings.groups

    def layout(self, state: PPOState) -> PPOState:
        """The axis of groups of each part of a state: 0, or None for what all groups share."""
        env = jax.tree.map(lambda x: None if is_of_all_groups(x) else 0, state.env, is_leaf=is_of_all_groups)
        shared: Any = {"params": None, "optimiser": None, "updates": None, "env_steps": None}
        own: Any = {"key": 0, "env": env, "obs": 0, "reset": 0, "memory": 0}
        return PPOState(**shared, **own)

    def over(self, axes: Axes) -> "PPO":
        """The agent whose groups lie along `axes`."""
        return replace(self, axes=axes, env=over_groups(self.env, axes))

    def init(self, key: Key) -> PPOState:
        return init_groups(self, key)

    def update(self, state: PPOState) -> tuple[PPOState, Metrics]:
        """Collect one batch and learn from it. Pure: `jit`, `vmap` over seeds, `scan` over updates."""
        return update_groups(self, state)

    def init_group(self, key: Key) -> PPOState:
        """The state in which one group begins, by the key of all groups."""
        key, env_key, params_key = jax.random.split(key, 3)
        if self.axes:
            key, env_key = (jax.random.fold_in(k, group_index(self.axes)) for k in (key, env_key))
        obs, env_state = self.env.reset(env_key, self.env.default_params)
        reset = jnp.ones(self.env.num_envs, bool)
        memory = self.network.initial_state(self.env.num_envs)
        sequence = jax.tree.map(lambda x: x[None, :1], (obs, reset))
        params = self.network.init(params_key, self.network.initial_state(1), *sequence)["params"]
        return PPOState(
            params=params,
            optimiser=self._optimiser.init(params),
            key=key,
            env=env_state,
            obs=obs,
            reset=reset,
            memory=memory,
            updates=jnp.zeros((), jnp.int32),
            env_steps=jnp.zeros((), jnp.int32),
        )

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        # The step size is applied by hand: it follows the count of updates, not that of gradient steps.
        return optax.chain(
            optax.clip_by_global_norm(self.settings.max_grad_norm), optax.scale_by_adam(eps=self.settings.adam_eps)
        )

    def _mean(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Mean of `x` where `mask`, over all groups."""
        return masked_mean(x, mask, self.axes)

    def _schedule(self, start: float, end: float, updates: jax.Array) -> jax.Array:
        fraction = jnp.minimum(updates / self.total_updates, 1.0)
        return start + (end - start) * fraction

    # ---------------------------------------------------------------------------------------------- collecting

    def _collect(self, state: PPOState, key: Key) -> tuple[PPOState, Rollout]:
        def one_step(carry, key):
            action_key, env_key = jax.random.split(key)
            return self.step(state.params, carry, env_key, lambda policy: policy.sample(action_key))

        keys = jax.random.split(key, self.settings.num_steps)
        carry, rollout = jax.lax.scan(one_step, self.carry(state), keys)
        return self.after(state, carry, rollout), rollout

    def carry(self, state: PPOState) -> Carry:
        """Where acting goes on."""
        return Carry(state.env, state.obs, state.reset, state.memory)

    def after(self, state: PPOState, carry: Carry, rollout: Rollout) -> PPOState:
        """`state` after the steps of `rollout`, which ended in `carry`."""
        steps = state.env_steps + total(jnp.sum(rollout.valid, dtype=jnp.int32), self.axes)
        return state.replace(**carry._asdict(), env_steps=steps)

    def step(
        self, params: Params, carry: Carry, key: Key, choose: Callable[[Distribution], jax.Array]
    ) -> tuple[Carry, Rollout]:
        """One step of every environment.

        Args:
            key: for the environments.
            choose: gives the actions `[B, ...]` to take. Its argument is the policy over them.

        Returns:
            carry, and the step as a row `[B, ...]` of a rollout.
        """
        env_state, obs, reset, memory = carry
        memory, features = self._apply(params, "features_step", memory, obs, reset)
        mask = self.env.action_mask(env_state)
        policy = self._apply(params, "policy", features, mask)
        action = choose(policy)
        next_obs, env_state, reward, terminated, truncated, info = self.env.step(
            key, env_state, action, self.env.default_params
        )
        terminated, cut, final_value = self._ends(params, memory, terminated, truncated, info)
        row = Rollout(
            obs=obs,
            reset=reset,
            action=action,
            log_prob=policy.log_prob(action),
            features=features,
            reward=reward,
            terminated=terminated,
            truncated=cut,
            final_value=final_value,
            valid=info["valid"],
            episode_done=info["episode_done"],
            episode_return=info["episode_return"],
            episode_length=info["episode_length"],
            fault=info["fault"],
            mask=mask,
            executed=info.get("executed"),
            record=info.get("record"),
        )
        return Carry(env_state, next_obs, info["reset"], memory), row

    def _ends(
        self, params: Params, memory: State, terminated: jax.Array, truncated: jax.Array, info: Info
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """How a step ended its episode, `[B]` each: terminated, cut by a limit, and the value of what a cut hides.

        Args:
            memory: its state after the observation that was acted on.
        """
        if not self.settings.bootstrap_truncated:
            terminated = terminated | truncated
        cut = truncated & ~terminated & info["valid"]

        def value_of_final_observation():
            not_reset = jnp.zeros_like(cut)
            _, final = self._apply(params, "features_step", memory, info["final_observation"], not_reset)
            return self._apply(params, "value", final)

        return terminated, cut, when(jnp.any(cut), value_of_final_observation, jnp.zeros(cut.shape))

    # ------------------------------------------------------------------------------------------------ learning

    def loss(
        self, params: Params, memory: State, batch: Batch, entropy_weight: float | jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The clipped objective of one minibatch.

        Args:
            memory: states `[B, ...]` in which the rollout of these environments began.
            batch: steps `[T, B, ...]`.

        Returns:
            loss to minimise, metrics.
        """
        s = self.settings
        (_, policy, value), left = self.network.apply(
            {"params": params}, memory, batch.obs, batch.reset, batch.mask, mutable=[METRICS]
        )
        advantage = batch.advantage
        if s.normalise_advantage:
            mean = self._mean(advantage, batch.valid)
            deviation = jnp.sqrt(self._mean((advantage - mean) ** 2, batch.valid))
            advantage = (advantage - mean) / (deviation + 1e-8)

        gain, ratio, kl = clipped_surrogate(policy.log_prob(batch.action), batch.log_prob, advantage, s.clip)
        policy_loss = -self._mean(gain, batch.valid)

        target = batch.advantage + batch.value
        value_error = (value - target) ** 2
        if s.value_clip > 0:
            near = batch.value + jnp.clip(value - batch.value, -s.value_clip, s.value_clip)
            value_error = jnp.maximum(value_error, (near - target) ** 2)
        value_loss = 0.5 * self._mean(value_error, batch.valid)

        entropy = self._mean(policy.entropy(), batch.valid)
        loss = policy_loss + s.value_coefficient * value_loss - entropy_weight * entropy
        metrics = {
            "loss/total": loss,
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "loss/entropy": entropy,
            "loss/kl": self._mean(kl, batch.valid),
            "loss/clip_fraction": self._mean((jnp.abs(ratio - 1.0) > s.clip).astype(jnp.float32), batch.valid),
            "loss/ratio_error": largest(jnp.max(jnp.where(batch.valid, jnp.abs(ratio - 1.0), 0.0)), self.axes),
        }
        return loss, metrics | {f"loss/{name}": average(number, self.axes) for name, number in sown(left).items()}

    def update_group(self, state: PPOState) -> tuple[PPOState, Metrics]:
        """`update` of one group."""
        key, collect_key, shuffle_key = jax.random.split(state.key, 3)
        memory_before = state.memory
        state, rollout = self._collect(state.replace(key=key), collect_key)
        return self.learn(state, memory_before, rollout, shuffle_key)

    def learn(
        self, state: PPOState, memory_before: State, rollout: Rollout, shuffle_key: Key
    ) -> tuple[PPOState, Metrics]:
        """Learns from a rollout that began in the memory states `memory_before` and ended in `state`."""
        s = self.settings
        value = self._apply(state.params, "value", rollout.features)
        _, last_features = self._apply(state.params, "features_step", state.memory, state.obs, state.reset)
        last_value = self._apply(state.params, "value", last_features)
        advantage = generalised_advantages(
            rollout.reward,
            value,
            rollout.final_value,
            last_value,
            rollout.terminated,
            rollout.truncated,
            s.discount,
            s.gae_lambda,
        )
        batch = Batch(
            rollout.obs,
            rollout.reset,
            rollout.action,
            rollout.log_prob,
            value,
            advantage,
            rollout.valid,
            rollout.mask,
        )

        learning_rate = self._schedule(s.learning_rate, s.learning_rate_end, state.updates)
        entropy_weight = self._schedule(s.entropy, s.entropy_end, state.updates)
        flatten, unflatten = flattening(state.params)

        def one_minibatch(carry, environments):
            params, optimiser = carry
            memory = jax.tree.map(lambda x: x[environments], memory_before)
            rows = jax.tree.map(lambda x: x[:, environments], batch)
            gradient, metrics = jax.grad(self.loss, has_aux=True)(unflatten(params), memory, rows, entropy_weight)
            # Each group has the gradient of its part of the mean, times the number of groups.
            gradient = average(flatten(gradient), self.axes)
            step: Any
            step, optimiser = self._optimiser.update(gradient, optimiser)
            return (params - learning_rate * step, optimiser), metrics | {"loss/grad_norm": optax.tree.norm(gradient)}

        dealt = deal_minibatches(shuffle_key, self.env.num_envs, s.epochs, s.minibatches)
        carry, losses = jax.lax.scan(one_minibatch, flatten((state.params, state.optimiser)), dealt)
        params, optimiser = unflatten(carry)
        state = state.replace(params=params, optimiser=optimiser, updates=state.updates + 1)

        target = advantage + value
        unexplained = self._mean((advantage - self._mean(advantage, rollout.valid)) ** 2, rollout.valid)
        spread = self._mean((target - self._mean(target, rollout.valid)) ** 2, rollout.valid)
        done = rollout.episode_done
        metrics = {name: jnp.mean(values) for name, values in losses.items()} | {
            # Only the first minibatch is due to have a ratio of 1: later ones follow a changed policy.
            "loss/ratio_error": losses["loss/ratio_error"][0],
            "loss/explained_variance": jnp.where(spread > 0, 1.0 - unexplained / jnp.maximum(spread, 1e-12), 0.0),
            "train/learning_rate": learning_rate,
            "train/entropy_weight": entropy_weight,
            "train/episodes": total(jnp.sum(done), self.axes),
            "train/return_sum": total(jnp.sum(jnp.where(done, rollout.episode_return, 0.0)), self.axes),
            "train/length_sum": total(jnp.sum(jnp.where(done, rollout.episode_length, 0)), self.axes),
        }
        metrics["replay/fault"] = first_fault(rollout.fault, self.axes)
        if self.env.is_host_pool:
            metrics["replay/action"] = rollout.executed
            metrics["replay/played"] = played_of(rollout.episode_return, rollout.episode_length)
        if rollout.record is not None:
            metrics["replay/record"] = rollout.record
        return state, metrics

    # ---------------------------------------------------------------------------------------------- evaluating

    def _play_step(self, params: Params, env_params: PyTree, carry: Carry, key: Key) -> tuple[Carry, Info, jax.Array]:
        """One step of evaluation -> carry, info, action."""
        env_state, obs, reset, memory = carry
        action_key, env_key = jax.random.split(key)
        memory, features = self._apply(params, "features_step", memory, obs, reset)
        policy = self._apply(params, "policy", features, self.eval_env.action_mask(env_state))
        action = policy.mode() if self.settings.eval_greedy else policy.sample(action_key)
        obs, env_state, _, _, _, info = self.eval_env.step(env_key, env_state, action, env_params)
        return Carry(env_state, obs, info["reset"], memory), info, action

    def _start_play(self, state: PPOState, key: Key) -> tuple[PyTree, Carry]:
        """Environment parameters (with the training's normalisation, frozen) and the first carry."""
        env_params = self.env.evaluation_params(state.env, self.eval_env.default_params)
        obs, env_state = self.eval_env.reset(key, env_params)
        n = self.eval_env.num_envs
        return env_params, Carry(env_state, obs, jnp.ones(n, bool), self.network.initial_state(n))

    def evaluate(self, state: PPOState, key: Key, axis_name: str | None = None) -> Metrics:
        """One whole episode in each of `eval_envs` fresh environments with the policy of `state`: see
        `engram.agents.common.evaluation.play_episodes`."""
        start_key, key = jax.random.split(key)
        env_params, carry = self._start_play(state, start_key)
        return play_episodes(
            lambda carry, key: self._play_step(state.params, env_params, carry, key)[:2],
            carry,
            key,
            self.eval_env.num_envs,
            self.eval_env.num_envs,
            self.eval_env.max_steps(self.eval_env.default_params),
            axis_name,
        )

    def record(self, state: PPOState, key: Key, num_steps: int) -> tuple[PyTree, jax.Array, jax.Array]:
        """`num_steps` steps to draw: see `engram.agents.common.evaluation.record_steps`."""
        start_key, key = jax.random.split(key)
        env_params, carry = self._start_play(state, start_key)
        return record_steps(
            lambda carry, key: self._play_step(state.params, env_params, carry, key), carry, key, num_steps
        )
