"""Trials: some episodes of one task, over which an agent's memory lives on, so that it can learn the task as it acts.

The setting of RL^2 (Duan et al. 2016, arXiv 1611.02779) with the random projections of "Structured State Space Models
for In-Context Reinforcement Learning" (Lu et al. 2023, arXiv 2303.03982). To the rest of the suite the trial is the
episode: `Trials` ends only at the end of a trial, so that memory is cleared there and nowhere else, and a return is the
total reward of a trial. The episodes within are called inner episodes.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, NoParams
from engram.envs.meta.scramble import draw_scramble, scrambled
from engram.envs.meta.splits import check_split
from engram.envs.spaces import Box, Discrete
from engram.envs.wrappers import flat_size, flatten, vector_space
from engram.errors import BadRequest


class Family(Environment):
    """Environments that differ in their task: the `params` of `reset` and `step` are the task, a pytree of arrays.

    Spaces are the same for all tasks. Where they are known, `info` holds `success` (bool), `regret` (float32: expected
    reward of the best action less that of the action taken) and `switched` (bool: the task changed after this step).
    `cheap_reset` says that an episode opens with a few random numbers.
    """

    def draw(self, key: jax.Array, split: str) -> Any:
        """A task of one of `engram.envs.meta.splits.SPLITS`. Traceable in the key; the split is a Python string."""
        raise NotImplementedError

    @property
    def default_params(self) -> Any:
        return self.draw(jax.random.key(0), "train")

    def restart(self, key: jax.Array, state: Any, task: Any) -> tuple[Any, Any]:
        """Opens the next episode of a trial whose last one ended in `state`; a `reset` unless something lives on."""
        return self.reset(key, task)

    def optimal_return(self, task: Any) -> jax.Array | None:
        """Largest expected return of an inner episode when the task is known; None if unavailable."""
        return None


def consecutive(**sizes: int) -> dict[str, slice]:
    """The parts of a vector, one after another, by name."""
    ends = np.cumsum([*sizes.values()]).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


class TrialState(struct.PyTreeNode):
    """State of a trial. Fields of variations that are off are None."""

    task: Any
    inner: Any
    """State of the family's environment in the running inner episode."""
    projection: jax.Array | None
    """`[family's observation, width]`: orthonormal rows or columns, times the gain."""
    scramble: jax.Array | None
    """Actions: an orthogonal matrix `[n, n]` for a Box, for Discrete `[n]` the family's action of each agent's."""
    sign: jax.Array | None
    """Factor of rewards, +1 or -1."""
    limit: jax.Array | None
    """Limit of an inner episode in steps, int32."""
    start_key: jax.Array | None
    """Key that opens every inner episode."""
    steps: jax.Array
    """Steps of the trial so far, int32."""
    episode: jax.Array
    """Inner episodes that have ended, int32."""
    inner_return: jax.Array
    inner_length: jax.Array


@dataclass(frozen=True)
class Trials(Environment):
    """Trials of tasks of `family`: a task and its variations are drawn at `reset` and stay until the trial ends.

    Observation: one float32 vector, with the parts named by `layout`: the family's observation (flat, Discrete one-hot;
    projected); the action before, as the agent gave it, and the reward after it, as the agent received it (both zeros
    when the trial opens, and carried over from one inner episode to the next); 1 where an inner episode opens; 1 where
    the trial opens. Nothing else tells the task.

    Terminates with the last step of the trial and never truncates. `info` holds what the family's step does, and of the
    inner episode which this step belongs to, `episode` (int32, from 0), `inner_return` and `inner_length` up to and
    including this step (float32, of the family's own reward; int32), `inner_done` (bool, it ended with this step); and
    `inner_reset` (bool): the returned observation opens an inner episode of the same trial.
    """

    family: Family
    episodes: int = 0
    """Inner episodes in a trial; 0: unlimited."""
    steps: int = 0
    """Steps in a trial, which may end within an inner episode; 0: unlimited."""
    split: str = "train"
    project_observations: int = 0
    """Width of a random orthogonal projection of observations, fresh for every trial; 0 leaves them as they are."""
    gain: float = 1.0
    """Factor of projected observations; sqrt(2) in the published code."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise on each entry of the observation, after its projection."""
    project_actions: bool = False
    """Whether every trial rotates (and reflects) actions, or permutes discrete ones.

    A rotation is of the bounds scaled to -1 .. 1, and what it carries outside is clipped."""
    flip_reward: bool = False
    """Whether the sign of rewards is drawn for every trial."""
    end_reward: float = 0.0
    """Reward that the agent receives in addition where an inner episode terminates (be it by success, or at a horizon
    that belongs to the task), not where a limit cuts it. Where every step pays alike, as in CartPole, whoever discounts
    loses next to nothing by ending an episode before the trial's last ones: the next one goes on paying."""
    same_start: bool = False
    """Whether all inner episodes of a trial open with the same random numbers, hence in the same state."""
    time_limit: tuple[int, int] | int = 0
    """Steps after which inner episodes are cut: a number, or (least, most) for one drawn uniformly for every trial; 0:
    none."""

    def __post_init__(self):
        check_split(self.split)
        for name in ("episodes", "steps", "project_observations"):
            if getattr(self, name) < 0:
                raise BadRequest(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.episodes and not self.steps:
            raise BadRequest("a trial must end: episodes or steps must be positive")
        if not 0.0 <= self.noise < float("inf"):
            raise BadRequest(f"noise must not be negative, got {self.noise}")
        if not self.gain > 0.0:
            raise BadRequest(f"gain must be positive, got {self.gain}")
        if self.time_limit != 0 and not 1 <= self._limits[0] <= self._limits[1] < 2**16:
            raise BadRequest(f"time_limit must be 0, or (least, most) with 1 <= least <= most, got {self.time_limit}")
        if self.project_actions and not isinstance(self.action_space(NoParams()), Box | Discrete):
            raise BadRequest(f"project_actions is for Box and Discrete actions, not those of {self.family.name}")

    @property
    def _limits(self) -> tuple[int, int]:
        return (self.time_limit, self.time_limit) if isinstance(self.time_limit, int) else self.time_limit

    @property
    def name(self) -> str:
        return self.family.name

    # --------------------------------------------------------------------------------------------------------- spaces

    @property
    def layout(self) -> dict[str, slice]:
        """The parts of an observation: observation, action, reward, episode_start, trial_start."""
        task = _shapes(self.family)
        return consecutive(
            observation=self.project_observations or flat_size(self.family.observation_space(task)),
            action=flat_size(self.family.action_space(task)),
            reward=1,
            episode_start=1,
            trial_start=1,
        )

    def observation_space(self, params: NoParams) -> Box:
        return vector_space(self.layout["trial_start"].stop)

    def action_space(self, params: NoParams) -> Any:
        return self.family.action_space(_shapes(self.family))

    def max_steps(self, params: NoParams) -> int | None:
        inner = self.family.max_steps(_shapes(self.family))
        if self.time_limit:
            inner = self._limits[1] if inner is None else min(inner, self._limits[1])
        bounds = [self.steps] if self.steps else []
        if self.episodes and inner is not None:
            bounds.append(self.episodes * inner)
        return min(bounds, default=None)

    # ------------------------------------------------------------------------------------------------------- dynamics

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, TrialState]:
        keys = jax.random.split(key, 6)
        task = self.family.draw(keys[0], self.split)
        obs, inner = self.family.reset(keys[1], task)
        projection = scramble = sign = limit = None
        if self.project_observations:
            shape = (flat_size(self.family.observation_space(task)), self.project_observations)
            projection = jax.nn.initializers.orthogonal(self.gain)(keys[2], shape)
        if self.project_actions:
            scramble = draw_scramble(keys[3], self.family.action_space(task))
        if self.flip_reward:
            sign = jax.random.rademacher(keys[4], (), jnp.float32)
        if self.time_limit:
            least, most = self._limits
            limit = jax.random.randint(keys[5], (), least, most + 1)
        state = TrialState(
            task=task,
            inner=inner,
            projection=projection,
            scramble=scramble,
            sign=sign,
            limit=limit,
            start_key=keys[1] if self.same_start else None,
            steps=jnp.int32(0),
            episode=jnp.int32(0),
            inner_return=jnp.float32(0.0),
            inner_length=jnp.int32(0),
        )
        nothing = jnp.zeros(flat_size(self.family.action_space(task)))
        noise_key = jax.random.fold_in(key, 6)
        return self._observe(
            noise_key, state, obs, nothing, jnp.float32(0.0), episode_start=True, trial_start=True
        ), state

    def step(self, key: jax.Array, state: TrialState, action: Any, params: NoParams):
        # Keys are derived where they are used: XLA drops the hashing of those that a family ignores.
        step = self.family.step(jax.random.fold_in(key, 0), state.inner, self._family_action(state, action), state.task)
        obs, inner, reward, terminated, truncated, info = step
        steps, inner_length, inner_return = state.steps + 1, state.inner_length + 1, state.inner_return + reward
        inner_done = terminated | truncated
        if state.limit is not None:
            inner_done |= inner_length >= state.limit
        over = jnp.bool_(False)
        if self.episodes:
            over |= inner_done & (state.episode + 1 >= self.episodes)
        if self.steps:
            over |= steps >= self.steps
        inner_reset = inner_done & ~over

        obs, inner = self._restart(key, state.start_key, inner_reset, obs, inner, state.task)

        info = {
            **info,
            "episode": state.episode,
            "inner_done": inner_done,
            "inner_return": inner_return,
            "inner_length": inner_length,
            "inner_reset": inner_reset,
        }
        if self.end_reward:
            reward += self.end_reward * terminated
        if state.sign is not None:
            reward = reward * state.sign
        state = state.replace(
            inner=inner,
            steps=steps,
            episode=state.episode + inner_done,
            inner_return=jnp.where(inner_done, 0.0, inner_return),
            inner_length=jnp.where(inner_done, 0, inner_length),
        )
        taken = flatten(self.family.action_space(state.task), action)
        noise_key = jax.random.fold_in(key, 2)  # 0 is that of the step, 1 that of a restart
        obs = self._observe(noise_key, state, obs, taken, reward, episode_start=inner_reset, trial_start=False)
        return obs, state, reward, over, jnp.bool_(False), info

    def _restart(
        self, key: jax.Array, start_key: jax.Array | None, needed: jax.Array, obs: Any, inner: Any, task: Any
    ) -> tuple[Any, Any]:
        """The opening of the next inner episode where `needed`, else `obs, inner`.

        It opens with `start_key`, or where that is None with one that follows from `key`.
        """

        def fresh(pending, inner):
            own = jax.random.fold_in(key, pending.astype(jnp.int32))  # 1: the step's own key is that of 0
            return self.family.restart(own if start_key is None else jnp.where(pending, start_key, key), inner, task)

        if self.family.cheap_reset:
            return jax.tree.map(lambda x, y: jnp.where(needed, x, y), fresh(jnp.bool_(True), inner), (obs, inner))

        def restart(carry):
            # The key depends on the carry: XLA would move the restart out of the loop, into every step, otherwise.
            pending, (_, inner) = carry
            return jnp.zeros_like(pending), fresh(pending, inner)

        # A loop of one round or none: under vmap a branch would pay for a restart at every step, the loop pays for one
        # where any of the batch needs it.
        return jax.lax.while_loop(lambda carry: carry[0], restart, (needed, (obs, inner)))[1]

    def _family_action(self, state: TrialState, action: Any) -> Any:
        """The family's action for the agent's."""
        if state.scramble is None:
            return action
        return scrambled(self.family.action_space(state.task), state.scramble, action)

    def _observe(
        self,
        key: jax.Array,
        state: TrialState,
        obs: Any,
        action: jax.Array,
        reward: jax.Array,
        *,
        episode_start: Any,
        trial_start: Any,
    ) -> jax.Array:
        obs = flatten(self.family.observation_space(state.task), obs)
        if state.projection is not None:
            obs = obs @ state.projection
        if self.noise:
            obs = obs + self.noise * jax.random.normal(key, obs.shape)
        rest = jnp.stack([jnp.asarray(x, jnp.float32) for x in (reward, episode_start, trial_start)])
        return jnp.concatenate([obs, action, rest])

    def render(self, state: TrialState, params: NoParams) -> np.ndarray:
        return self.family.render(state.inner, state.task)


@functools.cache
def _shapes(family: Family) -> Any:
    """The shapes of a task, which are all that spaces may depend on."""
    return jax.eval_shape(lambda: family.default_params)
