"""Drama: a world model with a memory, and behaviour learned in its imagination (arXiv 2410.08893).

One `update` takes `train_every` steps in each environment. Once there is enough experience, it then trains the world
model on replayed windows, imagines trajectories from replayed contexts, and trains policy and value on these.
`DramaSettings` has a setting for each point in which the published code differs from what is done here by default.

Symbols are those of the paper: `z` is the latent of an observation, `d` the output of the memory. Both side by side are
the features, the input of policy and value.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from engram.agents.common.control_flow import when
from engram.agents.common.distributions import Categorical, Distribution, MultiCategorical, gaussian, head_size
from engram.agents.common.evaluation import play_episodes, record_steps
from engram.agents.common.flat import flattening
from engram.agents.common.proximal import clipped_surrogate, deal_minibatches
from engram.agents.common.returns import lambda_returns
from engram.agents.drama.laprop import laprop
from engram.agents.drama.settings import DramaSettings
from engram.envs.spaces import Box, MultiDiscrete, Space
from engram.envs.vector import action_scale, clip_action
from engram.envs.wrappers import RunningStatistics, Wrapper, action_vector, flat_size
from engram.kernels.rows import clear, masked_mean, select_rows
from engram.training.action_log import played_of
from engram.training.faults import first_fault
from engram.training.types import Metrics
from engram.worldmodels import latents
from engram.worldmodels.networks import MLP, behaviour_mlp
from engram.worldmodels.replay import Replay, ReplayState
from engram.worldmodels.twohot import TwoHot
from engram.worldmodels.world_model import LossSettings, Rows, WorldModel


class Step(struct.PyTreeNode):
    """One step of one environment, as the replay buffer stores it."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    """Reward of `action`."""
    terminal: jax.Array
    """bool, the task ended after `action`."""
    reset: jax.Array
    """bool, `obs` is the first of an episode."""


class Acting(struct.PyTreeNode):
    """State that the actor carries from step to step, leaves `[B, ...]`."""

    memory: Any
    """State of the memory; empty where acting_state is window."""
    d: jax.Array
    """`[B, width]`, the last output of the memory."""
    past: Any
    """`[B, window, ...]`, the last observations, actions as vectors, and resets; empty where acting_state is
    carried."""


class DramaState(struct.PyTreeNode):
    """Everything that training carries, as one pytree."""

    world: Any
    """Parameters of the world model."""
    world_stats: Any
    """Running statistics of its batch normalisation."""
    behaviour: Any
    """Parameters of actor and critic."""
    slow_critic: Any
    """Parameters of the moving average of the critic."""
    world_optimiser: Any
    behaviour_optimiser: Any
    actor_norm: RunningStatistics
    """Statistics that normalise the policy's input."""
    return_scale: jax.Array
    """Moving average of the range of returns, by which advantages are divided."""
    replay: ReplayState
    key: jax.Array
    env: Any
    obs: jax.Array
    reset: jax.Array
    """`[B]` bool, `obs` is the first of an episode."""
    acting: Acting
    updates: jax.Array
    env_steps: jax.Array


class ImaginationState(struct.PyTreeNode):
    """State of imagined trajectories, leaves `[n, ...]`."""

    memory: Any
    z: jax.Array
    """Latent of the current step, a sample of its prior."""
    d: jax.Array
    """Output of the memory after the step before."""
    statistics: RunningStatistics
    """Statistics that normalise the policy's input."""

    @property
    def features(self) -> jax.Array:
        """Input of policy and value, `[n, z + d]`."""
        return jnp.concatenate([self.z, self.d], axis=-1)


class Imagined(struct.PyTreeNode):
    """Imagined trajectories `[horizon, n, ...]`."""

    features: jax.Array
    """`[horizon + 1, n, ...]`, input of policy and value."""
    action: jax.Array
    log_prob: jax.Array | None
    """Log-probability of each action when it was sampled; None where PPO does not need it."""
    reward: jax.Array
    continuation: jax.Array
    """1 where the episode continues after the step, 0 where it ends."""
    weight: jax.Array
    """Weight of the step in the losses, 0 after an end."""


class Batch(struct.PyTreeNode):
    """Imagined steps from which policy and value learn, leaves `[horizon, n, ...]` or `[rows, ...]`. No gradient flows
    through them."""

    features: jax.Array
    action: jax.Array
    log_prob: jax.Array | None
    weight: jax.Array
    advantage: jax.Array
    target: jax.Array
    """Lambda-return, the target of the value."""
    slow_target: jax.Array
    """Lambda-return by the slow critic, the second target of the value."""


class Dream(struct.PyTreeNode):
    """Steps played in the environment and the world model's predictions of them, leaves `[T, B, ...]`."""

    steps: Step
    reconstruction: jax.Array
    """Decoded posterior of each observation."""
    imagined: jax.Array
    """The same within the context; after it, decoded predictions from the actions alone."""
    reward: jax.Array
    """Predicted rewards, likewise."""
    terminal: jax.Array
    """Predicted probabilities of termination, likewise."""


def policy_size(space: Space) -> int:
    """Outputs of the policy network: a Gaussian has a mean and a standard deviation for each entry."""
    return 2 * head_size(space) if isinstance(space, Box) else head_size(space)


def normalise(statistics: RunningStatistics, x: jax.Array) -> jax.Array:
    """The policy's first layer: `x[..., n]` standardised by its running mean and variance, clipped to [-10, 10]."""
    variance = jnp.where(statistics.count > 0, statistics.var, 1.0)
    return jnp.clip((x - statistics.mean) * jax.lax.rsqrt(variance + 1e-8), -10.0, 10.0)


@dataclass(frozen=True, eq=False)
class Drama:
    """The agent: pure `init`, `update` and `evaluate` over a `DramaState`."""

    env: Wrapper
    eval_env: Wrapper
    world: WorldModel
    settings: DramaSettings

    ARGUMENTS: ClassVar = ("settings",)

    @property
    def actor(self) -> MLP:
        return behaviour_mlp(self.settings.actor, policy_size(self.action_space))

    @property
    def critic(self) -> MLP:
        return behaviour_mlp(self.settings.critic, TwoHot().bins)

    @property
    def action_space(self) -> Space:
        return self.env.action_space(self.env.default_params)

    @property
    def steps_per_update(self) -> int:
        return self.settings.num_envs * self.settings.train_every

    @property
    def replay(self) -> Replay:
        s = self.settings
        capacity = -(-s.replay // s.num_envs)
        ratio = s.contexts / s.batch_size
        return Replay(capacity, s.num_envs, s.sampling, s.temperature, s.imagine_temperature, ratio)

    def close(self) -> None:
        """Frees the emulators, if any; the agent cannot be used afterwards."""
        self.env.close()
        self.eval_env.close()

    # ------------------------------------------------------------------------------------------------------ parts

    def _world(self, state: DramaState, method: str, *args: Any) -> Any:
        """Calls a method of the world model, in inference mode."""
        return self.world.apply({"params": state.world, **state.world_stats}, *args, method=method)

    def _value(self, params: Any, features: jax.Array) -> Any:
        """Logits of the value's bins."""
        return self.critic.apply({"params": params}, features)

    def _policy(self, params: Any, statistics: RunningStatistics, features: jax.Array) -> Distribution:
        space = self.action_space
        params = params if action_scale(space) is None else params["scaled"]
        out: Any = self.actor.apply({"params": params}, normalise(statistics, features))
        if isinstance(space, Box):
            mean, log_std = jnp.split(out, 2, axis=-1)
            return gaussian(space, mean, log_std)
        return MultiCategorical(out, space.nvec) if isinstance(space, MultiDiscrete) else Categorical(out)

    def _action_vector(self, action: Any) -> jax.Array:
        """Actions as vectors, the world model's input: one-hot, or clipped to their bounds and scaled by them."""
        return action_vector(self.action_space, clip_action(self.action_space, action))

    def init(self, key: jax.Array) -> DramaState:
        n = self.settings.num_envs
        key, env_key, world_key, actor_key, critic_key = jax.random.split(key, 5)
        obs, env_state = self.env.reset(env_key, self.env.default_params)
        action = jax.vmap(self.action_space.sample)(jax.random.split(key, n))
        reset = jnp.ones(n, bool)
        rows = Rows(obs[None], self._action_vector(action)[None], jnp.zeros((1, n)), jnp.zeros((1, n)), reset[None])
        variables = self.world.init(world_key, rows, key, self._loss_settings, method="loss")
        features = jnp.zeros((1, self.world.categoricals * self.world.classes + self.world.memory.width))
        actor = self.actor.init(actor_key, features)["params"]
        behaviour = {
            # Of another form where actions are scaled: a checkpoint from before they were does not fit.
            "actor": actor if action_scale(self.action_space) is None else {"scaled": actor},
            "critic": self.critic.init(critic_key, features)["params"],
        }
        step = Step(obs[0], action[0], jnp.zeros(()), jnp.zeros((), bool), jnp.zeros((), bool))
        return DramaState(
            world=variables["params"],
            world_stats={name: value for name, value in variables.items() if name != "params"},
            behaviour=behaviour,
            slow_critic=jax.tree.map(jnp.copy, behaviour["critic"]),
            world_optimiser=self._world_optimiser.init(variables["params"]),
            behaviour_optimiser=self._behaviour_optimiser.init(behaviour),
            actor_norm=RunningStatistics.empty(features.shape[1:]),
            return_scale=jnp.zeros(()),
            replay=self.replay.init(step),
            key=key,
            env=env_state,
            obs=obs,
            reset=reset,
            acting=self.start_acting(obs),
            updates=jnp.zeros((), jnp.int32),
            env_steps=jnp.zeros((), jnp.int32),
        )

    @property
    def _loss_settings(self) -> LossSettings:
        s = self.settings
        return LossSettings(s.free_nats, s.representation, s.seq_reset)

    def _optimiser(self, learning_rate: float, max_norm: float, adam_eps: float) -> optax.GradientTransformation:
        s = self.settings
        clip = optax.clip_by_global_norm(max_norm)
        if s.optimiser == "laprop":
            return optax.chain(clip, laprop(learning_rate, warmup=s.warmup))
        rate = optax.linear_schedule(0.0, learning_rate, s.warmup) if s.warmup else learning_rate
        return optax.chain(clip, optax.adam(rate, eps=adam_eps))

    @property
    def _world_optimiser(self) -> optax.GradientTransformation:
        return self._optimiser(self.settings.world_learning_rate, self.settings.world_max_norm, 1e-8)

    @property
    def _behaviour_optimiser(self) -> optax.GradientTransformation:
        return self._optimiser(self.settings.behaviour_learning_rate, self.settings.behaviour_max_norm, 1e-5)

    def _stepped(
        self, optimiser: optax.GradientTransformation, learner: tuple[Any, Any], gradient: Any
    ) -> tuple[tuple[Any, Any], jax.Array]:
        """`learner`, parameters and their optimiser's state, after a step of `optimiser` and weight decay; norm of the
        gradient."""
        flatten, unflatten = flattening(learner[0])
        params, state = flatten(learner)
        gradient = flatten(gradient)
        step, state = optimiser.update(gradient, state)
        return unflatten(((1.0 - self.settings.weight_decay) * params + step, state)), optax.tree.norm(gradient)

    # ----------------------------------------------------------------------------------------------------- acting

    def start_acting(self, obs: jax.Array) -> Acting:
        """The actor's state before its first observation. Of `obs[B, ...]` only shape and dtype matter."""
        n, window = obs.shape[0], self.settings.acting_window
        d = jnp.zeros((n, self.world.memory.width))
        if self.settings.acting_state == "carried":
            return Acting(self.world.memory.initial_state(n), d, ())
        actions = jnp.zeros((n, window, flat_size(self.action_space)))
        past = (jnp.zeros((n, window, *obs.shape[1:]), obs.dtype), actions, jnp.ones((n, window), bool))
        return Acting((), d, past)

    def act(
        self,
        state: DramaState,
        acting: Acting,
        obs: jax.Array,
        reset: jax.Array,
        key: jax.Array,
        greedy: bool = False,
        random: jax.Array | bool = False,
    ) -> tuple[Acting, jax.Array, jax.Array]:
        """One action for `obs[B, ...]`.

        Args:
            reset: `[B]` bool, `obs` is the first of an episode.
            greedy: take the most likely action.
            random: `[B]` bool, take a uniformly random action.

        Returns:
            the actor's next state, the action `[B, ...]`, the policy's input `[B, n]`.
        """
        s = self.settings
        latent_key, prior_key, action_key, random_key, past_key = jax.random.split(key, 5)
        d = clear(reset, acting.d)
        z = latents.sample(latent_key, self._world(state, "posterior", obs))
        acted_on = z if s.act_on == "posterior" else latents.sample(prior_key, self._world(state, "prior", d))
        features = jnp.concatenate([acted_on, d], axis=-1)
        policy = self._policy(state.behaviour["actor"], state.actor_norm, features)
        action = policy.mode() if greedy else policy.sample(action_key)
        random |= reset if s.first_action == "random" else jnp.zeros_like(reset)
        random_action = jax.vmap(self.action_space.sample)(jax.random.split(random_key, obs.shape[0]))
        action = select_rows(random, random_action, action)

        if s.acting_state == "carried":
            memory, d = self._world(state, "step", acting.memory, z, self._action_vector(action), reset)
            return Acting(memory, d, ()), action, features
        newest = (obs, self._action_vector(action), reset)
        past = jax.tree.map(lambda old, new: jnp.concatenate([old[:, 1:], new[:, None]], 1), acting.past, newest)
        past_obs, actions, resets = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), past)
        z = latents.sample(past_key, self._world(state, "posterior", past_obs))
        memory = self.world.memory.initial_state(obs.shape[0])
        _, ds = self._world(state, "sequence", memory, z, actions, resets)
        return Acting((), ds[-1], past), action, features

    def _terminal(self, terminated: jax.Array, info: dict[str, Any]) -> jax.Array:
        """Terminations that the world model learns to predict."""
        add_lost_lives = self.settings.life_loss_term and "life_lost" in info
        return terminated | info["life_lost"] if add_lost_lives else terminated

    def _collect(
        self, state: DramaState, key: jax.Array
    ) -> tuple[DramaState, tuple[jax.Array, jax.Array, jax.Array, Metrics]]:
        """One step in every environment -> the actions, what they led to, faults (see `EpisodeStatistics`), metrics."""
        s = self.settings
        act_key, env_key = jax.random.split(key)
        prefilling = jnp.sum(state.replay.filled) < s.prefill
        acting, action, features = self.act(state, state.acting, state.obs, state.reset, act_key, random=prefilling)
        obs, env_state, reward, terminated, _, info = self.env.step(env_key, state.env, action, self.env.default_params)
        step = Step(state.obs, action, reward, self._terminal(terminated, info), state.reset)
        done = info["episode_done"]
        metrics = {
            "train/episodes": jnp.sum(done),
            "train/return_sum": jnp.sum(jnp.where(done, info["episode_return"], 0.0)),
            "train/length_sum": jnp.sum(jnp.where(done, info["episode_length"], 0)),
        }
        statistics = state.actor_norm
        if s.actor_norm == "forward":
            statistics = statistics.update(features, info["valid"])
        state = state.replace(
            actor_norm=statistics,
            replay=self.replay.add(state.replay, step, info["valid"]),
            env=env_state,
            obs=obs,
            reset=info["reset"],
            acting=acting,
            env_steps=state.env_steps + jnp.sum(info["valid"], dtype=jnp.int32),
        )
        executed = info.get("executed", action)
        played = played_of(info["episode_return"], info["episode_length"])
        return state, (executed, played, info["fault"], metrics)

    # --------------------------------------------------------------------------------------------------- learning

    def _rows(self, steps: Step) -> Rows:
        return Rows(
            obs=steps.obs,
            action=self._action_vector(steps.action),
            reward=steps.reward,
            terminal=steps.terminal.astype(jnp.float32),
            reset=steps.reset,
        )

    def learn_world(self, state: DramaState, steps: Step, key: jax.Array) -> tuple[DramaState, Metrics]:
        """One gradient step of the world model on windows `[T, B, ...]`."""
        rows = self._rows(steps)

        def loss(params):
            keys = jax.random.split(key)
            (value, metrics), stats = self.world.apply(
                {"params": params, **state.world_stats},
                rows,
                keys[0],
                self._loss_settings,
                method="loss",
                mutable=list(state.world_stats),
                rngs={"dropout": keys[1]},
            )
            return value, (metrics, stats)

        gradient, (metrics, stats) = jax.grad(loss, has_aux=True)(state.world)
        learner = (state.world, state.world_optimiser)
        (world, optimiser), norm = self._stepped(self._world_optimiser, learner, gradient)
        state = state.replace(world=world, world_stats=stats, world_optimiser=optimiser)
        return state, metrics | {"loss/world_grad_norm": norm}

    def imagine(self, state: DramaState, steps: Step, key: jax.Array) -> tuple[Imagined, RunningStatistics]:
        """Trajectories under the policy that begin after the replayed steps `[context, n, ...]`; and the statistics of
        the policy's input."""
        context_key, key = jax.random.split(key)
        imagination, ended = self.encode_context(state, steps, context_key)
        keys = jax.random.split(key, self.settings.horizon)
        imagination, imagined = jax.lax.scan(
            lambda imagination, key: self.imagine_step(state, imagination, key), imagination, keys
        )
        return self.predict_outcomes(state, imagination, *imagined, ended), imagination.statistics

    def encode_context(self, state: DramaState, steps: Step, key: jax.Array) -> tuple[ImaginationState, jax.Array]:
        """The state of imagination after replayed steps `[context, n, ...]`, and 1 where the episode ended with them,
        `[n]`."""
        s, rows = self.settings, self._rows(steps)
        reset = rows.reset if s.seq_reset else jnp.zeros_like(rows.reset)
        context_key, key = jax.random.split(key)
        z = latents.sample(context_key, self._world(state, "posterior", rows.obs))
        memory = self.world.memory.initial_state(reset.shape[1])
        if s.imagine_from == "every":

            def one_step(memory, row):
                memory, d = self._world(state, "step", memory, *row)
                return memory, (memory, d)

            all_steps = *jax.lax.scan(one_step, memory, (z, rows.action, reset))[1], rows.terminal
            memory, d, ended = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), all_steps)
        else:
            memory, ds = self._world(state, "sequence", memory, z, rows.action, reset)
            d, ended = ds[-1], rows.terminal[-1]
        z = latents.sample(key, self._world(state, "prior", d))
        return ImaginationState(memory, z, d, state.actor_norm), ended

    def imagine_step(
        self, state: DramaState, imagination: ImaginationState, key: jax.Array
    ) -> tuple[ImaginationState, tuple[jax.Array, jax.Array, jax.Array | None]]:
        """One imagined step -> next state; features, action and, for PPO, the action's log-probability."""
        action_key, latent_key = jax.random.split(key)
        features, statistics = imagination.features, imagination.statistics
        policy = self._policy(state.behaviour["actor"], statistics, features)
        action = policy.sample(action_key)
        log_prob = policy.log_prob(action) if self.settings.behaviour == "ppo" else None
        n = features.shape[0]
        if self.settings.actor_norm == "forward":
            statistics = statistics.update(features, jnp.ones(n, bool))
        no_reset = jnp.zeros(n, bool)
        vector = self._action_vector(action)
        memory, d = self._world(state, "step", imagination.memory, imagination.z, vector, no_reset)
        z = latents.sample(latent_key, self._world(state, "prior", d))
        return ImaginationState(memory, z, d, statistics), (features, action, log_prob)

    def predict_outcomes(
        self,
        state: DramaState,
        imagination: ImaginationState,
        features: jax.Array,
        action: jax.Array,
        log_prob: jax.Array | None,
        ended: jax.Array,
    ) -> Imagined:
        """Predicts rewards and continuations of imagined trajectories.

        Args:
            imagination: the state after the last step.
            features, action, log_prob: `[horizon, n, ...]`, of the steps.
            ended: `[n]`, 1 where the episode ended with the context.
        """
        features = jnp.concatenate([features, imagination.features[None]])
        d = features[..., -self.world.memory.width :]
        d = d[1:] if self.settings.reward_index == "after" else d[:-1]
        continuation = (self._world(state, "terminal_logit", d) <= 0).astype(jnp.float32)
        weight = jnp.ones_like(continuation)
        if self.settings.mask_after_term:
            # Nothing that follows an end is real; an end of the context counts too.
            before = continuation[:-1] if self.settings.reward_index == "after" else continuation[1:]
            weight = jnp.cumprod(jnp.concatenate([1.0 - ended[None], before]), axis=0)
        return Imagined(features, action, log_prob, self._world(state, "reward", d), continuation, weight)

    def learn_behaviour(
        self, state: DramaState, imagined: Imagined, statistics: RunningStatistics
    ) -> tuple[DramaState, Metrics]:
        """Policy and value learn from imagined trajectories: one gradient step, or those of PPO."""
        s, bins = self.settings, TwoHot()

        def values_and_returns(critic):
            value = bins.decode(self._value(critic, imagined.features))
            return value, lambda_returns(
                imagined.reward, value, imagined.continuation, s.discount, s.return_lambda, s.lambda_boot
            )

        value, target = values_and_returns(state.behaviour["critic"])
        _, slow_target = values_and_returns(state.slow_critic)
        ordered = jnp.sort(target.reshape(-1))
        spread = ordered[int(0.95 * ordered.size)] - ordered[int(0.05 * ordered.size)]
        scale = s.return_scale * state.return_scale + (1.0 - s.return_scale) * spread
        advantage = (target - value[:-1]) / jnp.maximum(1.0, scale)
        features = imagined.features[:-1]

        batch = Batch(features, imagined.action, imagined.log_prob, imagined.weight, advantage, target, slow_target)
        learner = (state.behaviour, state.behaviour_optimiser)
        if s.behaviour == "ppo":
            key, deal_key = jax.random.split(state.key)
            state = state.replace(key=key)
            (behaviour, optimiser), metrics = self._proximal_steps(learner, state.actor_norm, batch, deal_key)
        else:
            (behaviour, optimiser), metrics = self._behaviour_step(learner, state.actor_norm, batch)
        slow = jax.tree.map(
            lambda slow, new: s.slow_critic * slow + (1.0 - s.slow_critic) * new, state.slow_critic, behaviour["critic"]
        )
        if s.actor_norm == "update":
            rows = features.reshape(-1, features.shape[-1])
            statistics = statistics.update(rows, jnp.ones(rows.shape[0], bool))
        metrics |= {
            "train/imagined_reward": jnp.mean(imagined.reward),
            "train/imagined_return": jnp.mean(target),
            "train/return_scale": scale,
        }
        return state.replace(
            behaviour=behaviour,
            slow_critic=slow,
            behaviour_optimiser=optimiser,
            actor_norm=statistics,
            return_scale=scale,
        ), metrics

    def _behaviour_loss(self, params: Any, actor_norm: RunningStatistics, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of policy and value, and metrics."""
        s, bins = self.settings, TwoHot()
        policy = self._policy(params["actor"], actor_norm, batch.features)
        log_prob, entropy = policy.log_prob(batch.action), policy.entropy()
        logits = self._value(params["critic"], batch.features)
        if batch.log_prob is not None:
            gain, ratio, kl = clipped_surrogate(log_prob, batch.log_prob, batch.advantage, s.ppo_clip)
            cost, valid = -gain, batch.weight > 0
            clipped = (jnp.abs(ratio - 1.0) > s.ppo_clip).astype(jnp.float32)
            metrics = {"loss/kl": masked_mean(kl, valid), "loss/clip_fraction": masked_mean(clipped, valid)}
        else:
            cost, metrics = -log_prob * batch.advantage, {}
        policy_loss = cost - s.entropy * entropy
        value_loss = bins.loss(logits, batch.target) + bins.loss(logits, batch.slow_target)
        weighted_mean = lambda x: jnp.mean(batch.weight * x)  # noqa: E731
        metrics |= {
            "loss/policy": weighted_mean(policy_loss),
            "loss/value": weighted_mean(value_loss),
            "loss/entropy": weighted_mean(entropy),
        }
        return metrics["loss/policy"] + metrics["loss/value"], metrics

    def _behaviour_step(
        self, learner: tuple[Any, Any], actor_norm: RunningStatistics, batch: Batch
    ) -> tuple[tuple[Any, Any], Metrics]:
        """One gradient step of `learner`, the parameters of policy and value and their optimiser's state."""
        gradient, metrics = jax.grad(self._behaviour_loss, has_aux=True)(learner[0], actor_norm, batch)
        learner, norm = self._stepped(self._behaviour_optimiser, learner, gradient)
        return learner, metrics | {"loss/behaviour_grad_norm": norm}

    def _proximal_steps(
        self, learner: tuple[Any, Any], actor_norm: RunningStatistics, batch: Batch, key: jax.Array
    ) -> tuple[tuple[Any, Any], Metrics]:
        """The gradient steps of PPO on minibatches of `batch`, whose leaves are `[horizon, n, ...]`."""
        s = self.settings
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        n = rows.target.shape[0]
        minibatches = n // min(s.ppo_minibatch, n)
        # A single minibatch is the whole batch, and needs no gathering.
        dealt = deal_minibatches(key, n, s.ppo_epochs, minibatches) if minibatches > 1 else None

        def one_minibatch(carry, x):
            before, active = carry
            count, chosen = x
            minibatch = rows if chosen is None else jax.tree.map(lambda row: row[chosen], rows)
            after, metrics = self._behaviour_step(before, actor_norm, minibatch)
            # The first step is always taken: before it the policy can only differ by the statistics of its input.
            active &= (count == 0) | (metrics["loss/kl"] <= s.ppo_kl)
            return (jax.tree.map(partial(jnp.where, active), after, before), active), (metrics, active)

        xs = (jnp.arange(s.ppo_epochs * minibatches), dealt)
        (learner, _), (losses, taken) = jax.lax.scan(one_minibatch, (learner, jnp.ones((), bool)), xs)
        return learner, {name: masked_mean(values, taken) for name, values in losses.items()} | {
            # Of the last step, also where its KL divergence ended the update.
            "loss/kl": losses["loss/kl"][-1],
            "train/behaviour_steps": jnp.sum(taken, dtype=jnp.float32),
        }

    def learn(self, state: DramaState) -> tuple[DramaState, Metrics]:
        """The world model learns from replayed steps, then policy and value learn in imagination."""
        s, replay = self.settings, self.replay
        key, train_key, world_key, context_key, imagine_key = jax.random.split(state.key, 5)
        counted, starts = replay.draw_training(state.replay, train_key, s.batch_size, s.batch_length)
        state = state.replace(key=key, replay=counted)
        state, metrics = self.learn_world(state, replay.windows(counted, starts, s.batch_length), world_key)

        counted, starts = replay.draw_imagination(state.replay, context_key, s.contexts, s.context)
        state = state.replace(replay=counted)
        imagined, statistics = self.imagine(state, replay.windows(counted, starts, s.context), imagine_key)
        state, behaviour_metrics = self.learn_behaviour(state, imagined, statistics)
        return state, metrics | behaviour_metrics

    def update(self, state: DramaState) -> tuple[DramaState, Metrics]:
        """Act, then learn. Pure: `jit`, `vmap` over seeds, `scan` over updates."""
        key, collect_key = jax.random.split(state.key)
        keys = jax.random.split(collect_key, self.settings.train_every)
        state, (actions, played, fault, metrics) = jax.lax.scan(self._collect, state.replace(key=key), keys)
        metrics = jax.tree.map(jnp.sum, metrics)

        # The stored rows, which are only read, stay out of the carry of the loop that `when` makes.
        rows = state.replay.rows
        light = state.replace(replay=state.replay.replace(rows=()))

        def learn():
            after, losses = self.learn(light.replace(replay=light.replay.replace(rows=rows)))
            return after.replace(replay=after.replay.replace(rows=())), losses

        enough = jnp.sum(state.replay.filled) >= self.settings.prefill
        no_losses = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn)[1])
        after, losses = when(enough, learn, (light, no_losses))
        state = after.replace(replay=after.replay.replace(rows=rows), updates=state.updates + 1)
        metrics |= losses | {"train/learned": enough.astype(jnp.float32), "replay/fault": first_fault(fault)}
        if self.env.is_host_pool:
            metrics["replay/action"], metrics["replay/played"] = actions, played
        return state, metrics

    # ------------------------------------------------------------------------------------------------- evaluating

    def _start_play(self, state: DramaState, key: jax.Array) -> tuple[Any, tuple]:
        env_params = self.env.evaluation_params(state.env, self.eval_env.default_params)
        obs, env_state = self.eval_env.reset(key, env_params)
        return env_params, (env_state, obs, jnp.ones(self.eval_env.num_envs, bool), self.start_acting(obs))

    def _play_step(self, state: DramaState, env_params: Any, carry: tuple, key: jax.Array) -> tuple[tuple, Any, Step]:
        """One step of evaluation -> next carry `(env_state, obs, reset, acting)`, info, the step."""
        env_state, obs, reset, acting = carry
        action_key, env_key = jax.random.split(key)
        acting, action, _ = self.act(state, acting, obs, reset, action_key, self.settings.eval_greedy)
        next_obs, env_state, reward, terminated, _, info = self.eval_env.step(env_key, env_state, action, env_params)
        step = Step(obs, action, reward, self._terminal(terminated, info), reset)
        return (env_state, next_obs, info["reset"], acting), info, step

    def evaluate(self, state: DramaState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """Metrics of episodes in fresh environments with the policy of `state`, see
        `engram.agents.common.evaluation.play_episodes`."""
        start_key, key = jax.random.split(key)
        env_params, carry = self._start_play(state, start_key)
        return play_episodes(
            lambda carry, key: self._play_step(state, env_params, carry, key)[:2],
            carry,
            key,
            self.eval_env.num_envs,
            self.settings.eval_episodes,
            self.eval_env.max_steps(self.eval_env.default_params),
            axis_name,
            self.settings.eval_quota,
        )

    def record(self, state: DramaState, key: jax.Array, num_steps: int) -> tuple[Any, jax.Array, jax.Array]:
        """`num_steps` steps for a picture, see `engram.agents.common.evaluation.record_steps`."""
        start_key, key = jax.random.split(key)
        env_params, carry = self._start_play(state, start_key)

        def play(carry, key):
            carry, info, step = self._play_step(state, env_params, carry, key)
            return carry, info, step.action

        return record_steps(play, carry, key, num_steps)

    def dream(self, state: DramaState, key: jax.Array, context: int, horizon: int) -> Dream:
        """The world model's predictions of `context + horizon` steps in fresh environments, of which it sees the first
        `context` observations and all actions."""
        start_key, play_key, first_key, key = jax.random.split(key, 4)
        env_params, carry = self._start_play(state, start_key)

        def play(carry, key):
            carry, _, step = self._play_step(state, env_params, carry, key)
            return carry, step

        steps = jax.lax.scan(play, carry, jax.random.split(play_key, context + horizon))[1]
        rows = self._rows(steps)
        z = latents.sample(first_key, self._world(state, "posterior", rows.obs))
        seen = z[:context], rows.action[:context], rows.reset[:context]
        memory = self.world.memory.initial_state(rows.reward.shape[1])
        memory, d = self._world(state, "sequence", memory, *seen)

        def imagine(carry, x):
            memory, d = carry
            key, action = x
            z = latents.sample(key, self._world(state, "prior", d))
            memory, d = self._world(state, "step", memory, z, action, jnp.zeros(z.shape[0], bool))
            return (memory, d), (z, d)

        unseen = jax.random.split(key, horizon), rows.action[context:]
        imagined_z, imagined_d = jax.lax.scan(imagine, (memory, d[-1]), unseen)[1]
        imagined_z, d = jnp.concatenate([z[:context], imagined_z]), jnp.concatenate([d, imagined_d])
        return Dream(
            steps=steps,
            reconstruction=self._world(state, "decode", z),
            imagined=self._world(state, "decode", imagined_z),
            reward=self._world(state, "reward", d),
            terminal=nn.sigmoid(self._world(state, "terminal_logit", d)),
        )
