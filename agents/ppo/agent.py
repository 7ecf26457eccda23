"""Proximal policy optimisation with any memory (Schulman et al. 2017), recurrent over whole environments.

One `update` collects `num_steps` steps from `num_envs` environments and then takes `epochs * minibatches` gradient
steps. A minibatch is a set of environments with all their steps, replayed from the very memory state in which the
rollout began, so the first minibatch sees exactly the policy that acted (its probability ratio is 1).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from engram.agents.common.control_flow import when
from engram.agents.common.evaluation import play_episodes, record_steps
from engram.agents.common.proximal import clipped_surrogate, deal_minibatches
from engram.agents.common.returns import generalised_advantages
from engram.agents.ppo.networks import ActorCritic
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest
from engram.kernels.rows import masked_mean
from engram.training.types import Metrics


@dataclass(frozen=True)
class PPOSettings:
    """Hyperparameters of PPO."""

    num_envs: int
    """Environments stepped in parallel, per seed."""
    num_steps: int
    """Steps of each environment between two learning phases; also the length of backpropagation through time."""
    epochs: int
    """Passes over the collected batch."""
    minibatches: int
    """Minibatches per pass; each holds num_envs / minibatches environments with all their steps."""
    learning_rate: float
    """Adam's step size at the start."""
    learning_rate_end: float
    """Adam's step size at the end of training; linear in between. Equal to learning_rate for a constant one."""
    adam_eps: float
    """Adam's epsilon."""
    max_grad_norm: float
    """Gradients are scaled down to this global norm."""
    discount: float
    """Discount factor of the return."""
    gae_lambda: float
    """Lambda of generalised advantage estimation."""
    bootstrap_truncated: bool
    """Add the value of the final observation where a limit cut an episode; off: a limit ends the task."""
    clip: float
    """Clipping range of the probability ratio."""
    value_clip: float
    """Clipping range of the value's change; 0 switches value clipping off."""
    value_coefficient: float
    """Weight of the value loss."""
    entropy: float
    """Weight of the entropy bonus at the start."""
    entropy_end: float
    """Weight of the entropy bonus at the end of training; linear in between."""
    normalise_advantage: bool
    """Standardise advantages within each minibatch."""
    eval_envs: int
    """Environments of an evaluation; each plays one whole episode."""
    eval_greedy: bool
    """Evaluate the most likely action instead of a sampled one."""

    def __post_init__(self):
        for name in ("num_envs", "num_steps", "epochs", "minibatches", "eval_envs"):
            if getattr(self, name) < 1:
                raise BadRequest(f"ppo.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_envs % self.minibatches:
            raise BadRequest(f"ppo.minibatches ({self.minibatches}) must divide ppo.num_envs ({self.num_envs})")
        for name in ("discount", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadRequest(f"ppo.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm", "clip", "adam_eps"):
            if not getattr(self, name) > 0.0:
                raise BadRequest(f"ppo.{name} must be positive, got {getattr(self, name)}")


class PPOState(struct.PyTreeNode):
    """Everything that training carries, as one pytree."""

    params: Any
    optimiser: Any
    key: jax.Array
    env: Any
    obs: Any
    reset: jax.Array
    memory: Any
    updates: jax.Array
    env_steps: jax.Array


class Rollout(struct.PyTreeNode):
    """Time-major rows `[T, B, ...]` of one collection phase."""

    obs: Any
    reset: jax.Array
    action: jax.Array
    log_prob: jax.Array
    features: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_value: jax.Array
    valid: jax.Array
    episode_done: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    record: Any = None
    """The steps underneath all wrappers, where the environment records them (see `engram.envs.datasets.recording`)."""


class Batch(struct.PyTreeNode):
    """What the loss needs of a rollout, `[T, B, ...]`."""

    obs: Any
    reset: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    valid: jax.Array


@dataclass(frozen=True, eq=False)
class PPO:
    """The agent: pure `init`, `update` and `evaluate` over a `PPOState`."""

    env: Wrapper
    eval_env: Wrapper
    network: ActorCritic
    settings: PPOSettings
    total_updates: int
    """Length of the schedules, in updates."""

    @property
    def steps_per_update(self) -> int:
        return self.settings.num_envs * self.settings.num_steps

    def close(self) -> None:
        """Frees the emulators, if any; the agent cannot be used afterwards."""
        self.env.close()
        self.eval_env.close()

    def _apply(self, params: Any, method: str, *args: Any) -> Any:
        return self.network.apply({"params": params}, *args, method=method)

    def init(self, key: jax.Array) -> PPOState:
        key, env_key, params_key = jax.random.split(key, 3)
        obs, env_state = self.env.reset(env_key, self.env.default_params)
        reset = jnp.ones(self.settings.num_envs, bool)
        memory = self.network.initial_state(self.settings.num_envs)
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

    def _schedule(self, start: float, end: float, updates: jax.Array) -> jax.Array:
        fraction = jnp.minimum(updates / max(self.total_updates, 1), 1.0)
        return start + (end - start) * fraction

    # ---------------------------------------------------------------------------------------------- collecting

    def _collect(self, state: PPOState, key: jax.Array) -> tuple[PPOState, Rollout]:
        params, env_params = state.params, self.env.default_params

        def one_step(carry, key):
            env_state, obs, reset, memory = carry
            action_key, env_key = jax.random.split(key)
            memory, features = self._apply(params, "features_step", memory, obs, reset)
            policy = self._apply(params, "policy", features)
            action = policy.sample(action_key)
            next_obs, env_state, reward, terminated, truncated, info = self.env.step(
                env_key, env_state, action, env_params
            )
            terminated, cut, final_value = self.ends(params, memory, terminated, truncated, info)
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
                record=info.get("record"),
            )
            return (env_state, next_obs, info["reset"], memory), row

        carry = (state.env, state.obs, state.reset, state.memory)
        keys = jax.random.split(key, self.settings.num_steps)
        (env_state, obs, reset, memory), rollout = jax.lax.scan(one_step, carry, keys)
        steps = state.env_steps + jnp.sum(rollout.valid, dtype=jnp.int32)
        return state.replace(env=env_state, obs=obs, reset=reset, memory=memory, env_steps=steps), rollout

    def ends(
        self, params: Any, memory: Any, terminated: jax.Array, truncated: jax.Array, info: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """How a step `[B]` ended its episode: terminated, cut by a limit, and there the value of what would follow.

        Args:
            memory: after the step's observation.
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

    def loss(self, params: Any, memory: Any, batch: Batch, entropy_weight: jax.Array) -> tuple[jax.Array, Metrics]:
        """The clipped objective of one minibatch.

        Args:
            memory: states `(B, ...)` in which the rollout of these environments began.
            batch: rows `[T, B, ...]`.

        Returns:
            loss to minimise, metrics.
        """
        s = self.settings
        _, policy, value = self._apply(params, "__call__", memory, batch.obs, batch.reset)
        advantage = batch.advantage
        if s.normalise_advantage:
            mean = masked_mean(advantage, batch.valid)
            deviation = jnp.sqrt(masked_mean((advantage - mean) ** 2, batch.valid))
            advantage = (advantage - mean) / (deviation + 1e-8)

        gain, ratio, kl = clipped_surrogate(policy.log_prob(batch.action), batch.log_prob, advantage, s.clip)
        policy_loss = -masked_mean(gain, batch.valid)

        target = batch.advantage + batch.value
        value_error = (value - target) ** 2
        if s.value_clip > 0:
            near = batch.value + jnp.clip(value - batch.value, -s.value_clip, s.value_clip)
            value_error = jnp.maximum(value_error, (near - target) ** 2)
        value_loss = 0.5 * masked_mean(value_error, batch.valid)

        entropy = masked_mean(policy.entropy(), batch.valid)
        loss = policy_loss + s.value_coefficient * value_loss - entropy_weight * entropy
        metrics = {
            "loss/total": loss,
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "loss/entropy": entropy,
            "loss/kl": masked_mean(kl, batch.valid),
            "loss/clip_fraction": masked_mean((jnp.abs(ratio - 1.0) > s.clip).astype(jnp.float32), batch.valid),
            "loss/ratio_error": jnp.max(jnp.where(batch.valid, jnp.abs(ratio - 1.0), 0.0)),
        }
        return loss, metrics

    def update(self, state: PPOState) -> tuple[PPOState, Metrics]:
        """Collect one batch and learn from it. Pure: `jit`, `vmap` over seeds, `scan` over updates."""
        key, collect_key, shuffle_key = jax.random.split(state.key, 3)
        memory_before = state.memory
        state, rollout = self._collect(state.replace(key=key), collect_key)
        return self.learn(state, memory_before, rollout, shuffle_key)

    def learn(
        self, state: PPOState, memory_before: Any, rollout: Rollout, shuffle_key: jax.Array
    ) -> tuple[PPOState, Metrics]:
        """Learns from a rollout that ended in `state` and began in the memory states `memory_before`."""
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
        batch = Batch(rollout.obs, rollout.reset, rollout.action, rollout.log_prob, value, advantage, rollout.valid)

        learning_rate = self._schedule(s.learning_rate, s.learning_rate_end, state.updates)
        entropy_weight = self._schedule(s.entropy, s.entropy_end, state.updates)
        optimiser = self._optimiser

        def one_minibatch(carry, environments):
            params, optimiser_state = carry
            memory = jax.tree.map(lambda x: x[environments], memory_before)
            rows = jax.tree.map(lambda x: x[:, environments], batch)
            gradient, metrics = jax.grad(self.loss, has_aux=True)(params, memory, rows, entropy_weight)
            step, optimiser_state = optimiser.update(gradient, optimiser_state)
            params = jax.tree.map(lambda p, d: p - learning_rate * d, params, step)
            return (params, optimiser_state), metrics | {"loss/grad_norm": optax.tree.norm(gradient)}

        dealt = deal_minibatches(shuffle_key, s.num_envs, s.epochs, s.minibatches)
        (params, optimiser_state), losses = jax.lax.scan(one_minibatch, (state.params, state.optimiser), dealt)
        state = state.replace(params=params, optimiser=optimiser_state, updates=state.updates + 1)

        target = advantage + value
        unexplained = masked_mean((advantage - masked_mean(advantage, rollout.valid)) ** 2, rollout.valid)
        spread = masked_mean((target - masked_mean(target, rollout.valid)) ** 2, rollout.valid)
        done = rollout.episode_done
        metrics = {name: jnp.mean(values) for name, values in losses.items()} | {
            # Only the first minibatch is due to have a ratio of 1: later ones follow a changed policy.
            "loss/ratio_error": losses["loss/ratio_error"][0],
            "loss/explained_variance": jnp.where(spread > 0, 1.0 - unexplained / jnp.maximum(spread, 1e-12), 0.0),
            "train/learning_rate": learning_rate,
            "train/entropy_weight": entropy_weight,
            "train/episodes": jnp.sum(done),
            "train/return_sum": jnp.sum(jnp.where(done, rollout.episode_return, 0.0)),
            "train/length_sum": jnp.sum(jnp.where(done, rollout.episode_length, 0)),
        }
        if self.env.is_host_pool:
            metrics["replay/action"] = rollout.action
        if rollout.record is not None:
            metrics["replay/record"] = rollout.record
        return state, metrics

    # ---------------------------------------------------------------------------------------------- evaluating

    def _play_step(self, params: Any, env_params: Any, carry: tuple, key: jax.Array) -> tuple[tuple, Any, Any]:
        """One step of evaluation -> next carry `(env_state, obs, reset, memory)`, info, action."""
        env_state, obs, reset, memory = carry
        action_key, env_key = jax.random.split(key)
        memory, features = self._apply(params, "features_step", memory, obs, reset)
        policy = self._apply(params, "policy", features)
        action = policy.mode() if self.settings.eval_greedy else policy.sample(action_key)
        obs, env_state, _, _, _, info = self.eval_env.step(env_key, env_state, action, env_params)
        return (env_state, obs, info["reset"], memory), info, action

    def _start_play(self, state: PPOState, key: jax.Array) -> tuple[Any, tuple]:
        """Environment parameters (with the training's normalisation, frozen) and the first carry."""
        env_params = self.env.evaluation_params(state.env, self.eval_env.default_params)
        obs, env_state = self.eval_env.reset(key, env_params)
        n = self.eval_env.num_envs
        return env_params, (env_state, obs, jnp.ones(n, bool), self.network.initial_state(n))

    def evaluate(self, state: PPOState, key: jax.Array, axis_name: str | None = None) -> Metrics:
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
            self.eval_env.max_steps(self.eval_env.default_params) or 10_000,
            axis_name,
        )

    def record(self, state: PPOState, key: jax.Array, num_steps: int) -> tuple[Any, jax.Array, jax.Array]:
        """`num_steps` steps to draw: see `engram.agents.common.evaluation.record_steps`."""
        start_key, key = jax.random.split(key)
        env_params, carry = self._start_play(state, start_key)
        return record_steps(
            lambda carry, key: self._play_step(state.params, env_params, carry, key), carry, key, num_steps
        )
