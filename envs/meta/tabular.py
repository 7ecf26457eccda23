"""Random tabular MDPs, as in RL^2: an inner episode has a fixed number of steps and opens in state 0.

A task is a kernel and mean rewards. A row of the kernel is proportional to powers of independent exponentials: with the
power 1 it is uniform on the simplex, a flat Dirichlet as in RL^2; larger ones make rows sharper. Mean rewards have a
Gaussian prior and rewards unit variance about them. Powers and priors are data, in `distributions/tabular.json`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from engram.envs.base import Info
from engram.envs.meta.splits import drawn_from
from engram.envs.meta.trials import Family
from engram.envs.spaces import Discrete
from engram.envs.tabular.episodic import START, Instance, inverse_cdf, optimal_values
from engram.errors import BadRequest


@struct.dataclass
class TabularTask:
    transition: jax.Array
    """`[S, A, S]`: probability of the next state."""
    means: jax.Array
    """`[S, A]`: expected reward."""
    q: jax.Array
    """`[H, S, A]`: the largest expected reward from a step of an inner episode on, by dynamic programming. The agent
    does not see it: it is there to say what an action loses."""


class TabularState(struct.PyTreeNode):
    position: jax.Array
    """State of the MDP, int32."""
    t: jax.Array
    """Steps of the inner episode, int32."""


@dataclass(frozen=True)
class TabularMDP(Family):
    """Observation: the state, Discrete(states). Action: Discrete(actions). Terminates after `horizon` steps.

    `info`: `regret`, the value of the best action less that of the action taken, both followed by the best ones; its
    sum over an inner episode is, in expectation, `optimal_return` less the return.
    """

    states: int = 10
    actions: int = 5
    horizon: int = 10

    cheap_reset = True

    def __post_init__(self):
        for name in ("states", "actions", "horizon"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} must be at least 1, got {getattr(self, name)}")

    def draw(self, key: jax.Array, split: str) -> TabularTask:
        prior = drawn_from("tabular", "TabularMDP", split)
        transition_key, mean_key = jax.random.split(key)
        shape = (self.states, self.actions)
        weights = jax.random.exponential(transition_key, (*shape, self.states)) ** prior["sharpness"]
        transition = weights / jnp.sum(weights, axis=-1, keepdims=True)
        means = prior["mean"] + prior["deviation"] * jax.random.normal(mean_key, shape)
        return self.task(transition, means)

    def task(self, transition: jax.Array, means: jax.Array) -> TabularTask:
        """The task with this kernel `[S, A, S]` and these mean rewards `[S, A]`."""
        every_step = Instance(*(jnp.broadcast_to(x, (self.horizon, *x.shape)) for x in (transition, means)))
        return TabularTask(transition, means, optimal_values(every_step)[0])

    def optimal_return(self, task: TabularTask) -> jax.Array:
        return jnp.max(task.q[0, START])

    def reset(self, key: jax.Array, params: TabularTask) -> tuple[jax.Array, TabularState]:
        return jnp.int32(START), TabularState(jnp.int32(START), jnp.int32(0))

    def step(
        self, key: jax.Array, state: TabularState, action: jax.Array, params: TabularTask
    ) -> tuple[jax.Array, TabularState, jax.Array, jax.Array, jax.Array, Info]:
        uniform_key, noise_key = jax.random.split(key)
        q = params.q[state.t, state.position]
        reward = params.means[state.position, action] + jax.random.normal(noise_key)
        position = inverse_cdf(params.transition[state.position, action], jax.random.uniform(uniform_key))
        state = TabularState(position, state.t + 1)
        info = {"regret": jnp.max(q) - q[action]}
        return position, state, reward, state.t >= self.horizon, jnp.bool_(False), info

    def observation_space(self, params: TabularTask) -> Discrete:
        return Discrete(self.states)

    def action_space(self, params: TabularTask) -> Discrete:
        return Discrete(self.actions)

    def max_steps(self, params: TabularTask) -> int:
        return self.horizon
