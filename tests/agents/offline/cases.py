"""A small deterministic MDP with an exact solution, datasets of it, and agents that learn from these."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.offline.base import OfflineAgent, OfflineState
from engram.agents.offline.data import Transitions
from engram.envs.base import Environment
from engram.envs.datasets import Episodes
from engram.envs.datasets.episodes import Origin
from engram.envs.spaces import Box, Discrete, Space
from engram.envs.vector import Vectorised
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, Wrapper

GAMMA = 0.9
jit_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For programs that run for less time than it takes to compile them: done in half of that."""
COMMON = {"batch_size": 256, "hidden": (), "learning_rate": 0.02, "normalise": False, "eval_episodes": 4}
VALUE = {**COMMON, "discount": GAMMA, "target_rate": 0.05, "reward_scale": 1.0, "reward_shift": 0.0}


@dataclass(frozen=True)
class Playground(Environment):
    """Observations and actions of given spaces; episodes of `length` steps pay the action taken (0 or 1), or minus the
    square of its distance from `best`."""

    size: int
    actions: Space
    length: int = 1
    best: float = 0.3
    cheap_reset = True

    def reset(self, key, params):
        return jnp.zeros(self.size), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        reward = action * 1.0 if isinstance(self.actions, Discrete) else -jnp.sum((action - self.best) ** 2)
        no = jnp.zeros((), bool)
        return jnp.zeros(self.size), state + 1, reward, state + 1 >= self.length, no, {}

    def observation_space(self, params):
        return Box(-np.inf, np.inf, (self.size,))

    def action_space(self, params):
        return self.actions

    def max_steps(self, params):
        return self.length


def playground(size: int, actions: Space, length: int = 1) -> Wrapper:
    return FlattenObservation(EpisodeStatistics(Vectorised(Playground(size, actions, length), 2)))


def transitions(seed: int, n: int, size: int, actions: Discrete | Box) -> Transitions:
    """Random steps; about a third of them end their episode."""
    rng = np.random.default_rng(seed)
    if isinstance(actions, Discrete):
        action = jnp.asarray(rng.integers(actions.n, size=n), jnp.int32)
    else:
        action = jnp.asarray(rng.uniform(-1, 1, (n, *actions.shape)), jnp.float32)
    return Transitions(
        obs=jnp.asarray(rng.normal(size=(n, size)), jnp.float32),
        action=action,
        reward=jnp.asarray(rng.normal(size=n), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(n, size)), jnp.float32),
        terminal=jnp.asarray(rng.random(n) < 0.3),
    )


def one_step_episodes(obs: np.ndarray, action: np.ndarray, reward: np.ndarray, **kind: Any) -> Episodes:
    """Episodes of one step each, which end there."""
    n = len(reward)
    return Episodes(
        obs=np.repeat(obs, 2, axis=0).astype(np.float32),
        action=action,
        reward=reward.astype(np.float32),
        terminated=np.ones(n, bool),
        lengths=np.ones(n, np.int64),
        origin=Origin(""),
        **kind,
    )


def random_parameters(agent: OfflineAgent, seed: int) -> tuple[Any, Any]:
    """Parameters and slow copies of `agent`, all different, without the time that initialisers take to compile."""
    rng = np.random.default_rng(seed)
    state = jax.eval_shape(agent.init, jax.random.key(0))

    def fill(x):
        scale = 1.5 / np.sqrt(x.shape[0]) if len(x.shape) > 1 else 0.3
        return jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32)

    return jax.tree.map(fill, (state.params, state.target))


def trained(agent: OfflineAgent, updates: int, seed: int = 0) -> OfflineState:
    """After `updates` gradient steps."""
    rounds = updates // agent.steps_per_update

    @jit_once
    def run(key):
        return jax.lax.scan(lambda s, _: (agent.update(s)[0], None), agent.init(key), None, length=rounds)[0]

    return run(jax.random.key(seed))


def greedy(agent: OfflineAgent, params: Any, obs: Any) -> np.ndarray:
    """Greedy actions for `obs[B, O]`."""
    n = len(obs)

    @jit_once
    def act(params, obs):
        start = agent.start_acting(n)
        return agent.act(params, start, obs, jnp.zeros(n), jnp.ones(n, bool))[1]

    return np.asarray(act(params, jnp.asarray(obs, jnp.float32)))


# ---------------------------------------------------------------------------------------------------------------------
# A grid of SIDE x SIDE cells: each step costs 1, the last cell ends the episode. Actions: right, down, left, up.

SIDE = 3
STATES, ACTIONS, GOAL = SIDE * SIDE, 4, SIDE * SIDE - 1


def move(state: int, action: int) -> int:
    row, column = divmod(state, SIDE)
    row = min(max(row + (0, 1, 0, -1)[action], 0), SIDE - 1)
    column = min(max(column + (1, 0, -1, 0)[action], 0), SIDE - 1)
    return row * SIDE + column


NEXT = np.array([[move(s, a) for a in range(ACTIONS)] for s in range(STATES)])
SUPPORT = np.array(
    [
        [1, 1, 0, 1],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
        [1, 0, 1, 1],
        [1, 1, 0, 1],
        [1, 1, 1, 0],
        [0, 1, 0, 1],
        [0, 1, 1, 0],
        [1] * 4,
    ],
    dtype=bool,
)
"""Actions that the data hold. From every cell they lead to the goal, in one best way, from most of them longer than the
best way of all."""


def optimal_values(allowed: np.ndarray, reward: float = -1.0) -> np.ndarray:
    """Q* `[S, A]` by value iteration, with the future restricted to `allowed` actions."""
    q = np.zeros((STATES, ACTIONS))
    for _ in range(500):
        value = np.where(allowed, q, -np.inf).max(1)
        q = reward + GAMMA * np.where(NEXT == GOAL, 0.0, value[NEXT])
    return q


def policy_values(policy: np.ndarray, reward: float = -1.0) -> np.ndarray:
    """V `[S]` of a deterministic policy `[S]` in the true MDP, exactly."""
    follow = np.zeros((STATES, STATES))
    follow[np.arange(STATES), NEXT[np.arange(STATES), policy]] = 1.0
    follow[:, GOAL] = 0.0
    value = np.linalg.solve(np.eye(STATES) - GAMMA * follow, np.full(STATES, reward))
    value[GOAL] = 0.0
    return value


@functools.cache
def grid_episodes(seed: int = 0, episodes: int = 400) -> Episodes:
    """Supported actions at random, from random cells, for at most 12 steps."""
    rng = np.random.default_rng(seed)
    obs, action, lengths, terminated = [], [], [], []
    for _ in range(episodes):
        state, steps = int(rng.integers(GOAL)), 0
        obs.append(state)
        while steps < 12 and state != GOAL:
            choice = int(rng.choice(np.flatnonzero(SUPPORT[state])))
            state, steps = int(NEXT[state, choice]), steps + 1
            obs.append(state)
            action.append(choice)
        lengths.append(steps)
        terminated.append(state == GOAL)
    return Episodes(
        obs=np.eye(STATES, dtype=np.float32)[obs],
        action=np.array(action, np.int32),
        reward=np.full(len(action), -1.0, np.float32),
        terminated=np.array(terminated),
        lengths=np.array(lengths, np.int64),
        origin=Origin(""),
        num_actions=ACTIONS,
    )


def grid_environment() -> Wrapper:
    return playground(STATES, Discrete(ACTIONS))


def deterministic(episodes: Episodes, best: np.ndarray, share: float, seed: int = 0) -> Episodes:
    """`episodes` whose actions are `best[cell]` with probability `share`, else what they were (their consequences stay:
    only for imitation)."""
    rng = np.random.default_rng(seed)
    rows = np.arange(len(episodes.action)) + np.repeat(np.arange(len(episodes.lengths)), episodes.lengths)
    cells = episodes.obs[rows].argmax(1)
    taken = np.where(rng.random(len(cells)) < share, best[cells], episodes.action)
    return replace(episodes, action=taken.astype(np.int32))


CELLS = np.eye(STATES)[:GOAL]
"""Observations of all cells but the last."""
BEST = np.where(SUPPORT, optimal_values(SUPPORT), -np.inf)[:GOAL].argmax(1)
"""In each of them the best of the actions that the data hold, if it is followed by such ones."""
