"""Playing episodes to record them: under uniformly random actions, or a policy of PPO as it was at some time."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.agents.common.distributions import Categorical, allowed
from engram.agents.common.evaluation import GIVE_UP
from engram.agents.ppo.agent import PPO, Carry, PPOState
from engram.atomic_files import replacing
from engram.envs.datasets.files import archived, reading
from engram.envs.datasets.recorder import Tape
from engram.envs.spaces import Space
from engram.envs.wrappers import RunningStatistics, Wrapper
from engram.errors import BadRequest
from engram.training.programs import jit

CHUNK = 256
"""Steps of all environments in one compiled scan, after which they are copied to the host."""


class Policy(struct.PyTreeNode):
    """A policy that acts: parameters, and the statistics that normalise its observations."""

    params: Any
    statistics: list[RunningStatistics]


def _is_statistics(x: Any) -> bool:
    return isinstance(x, RunningStatistics)


def policy_of(agent: PPO, state: PPOState) -> Policy:
    """The policy of `state` (one seed; arrays, or their shapes)."""
    env_params = agent.env.evaluation_params(state.env, agent.eval_env.default_params)
    leaves = jax.tree.leaves(env_params, is_leaf=_is_statistics)
    return Policy(state.params, [leaf for leaf in leaves if _is_statistics(leaf)])


def save_policy(policy: Policy, path: Path) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, *jax.device_get(jax.tree.leaves(policy)))


def load_policy(path: Path, template: Policy) -> Policy:
    """The policy in a file that `save_policy` wrote, with the shapes of `template`. Raises BadRequest for others."""
    shapes, structure = jax.tree.flatten(template)
    with reading(path):
        stored = archived(path)
        leaves = [stored[name] for index in range(len(stored)) if (name := f"arr_{index}") in stored]
        if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in shapes]:
            raise BadRequest("is not a policy of this configuration")
        return structure.unflatten(leaves)


@dataclass(frozen=True)
class Player:
    """Plays in a batch of recorded environments, in compiled chunks.

    `start(policy, key) -> carry` opens the first episodes; `step(policy, carry, key) -> carry, info`.
    """

    env: Wrapper
    start: Callable[[Any, jax.Array], Any]
    step: Callable[[Any, Any, jax.Array], tuple[Any, dict[str, Any]]]

    @property
    def actions(self) -> Space:
        return self.env.action_space(self.env.default_params)

    @cached_property
    def _programs(self) -> tuple[Callable, Callable]:
        def chunk(policy, carry, key):
            def one_step(carry, key):
                carry, info = self.step(policy, carry, key)
                return carry, info["record"]

            return jax.lax.scan(one_step, carry, jax.random.split(key, CHUNK))

        return jit(self.start), jit(chunk)

    def play(self, policy: Any, key: jax.Array, each: np.ndarray) -> Tape:
        """Plays on until every environment has ended at least `each[B]` episodes.

        Raises:
            BadRequest: they do not end.
        """
        start, chunk = self._programs
        start_key, key = jax.random.split(key)
        carry = start(policy, start_key)
        limit = self.env.max_steps(self.env.default_params) or GIVE_UP
        tapes: list[Tape] = []
        ended = np.zeros(self.env.num_envs, int)
        while np.any(ended < each):
            # Emulators put a dummy row between two episodes.
            if len(tapes) >= math.ceil((limit + 1) * each.max() / CHUNK):
                raise BadRequest(f"{self.env.name}: episodes do not end within {limit} steps")
            carry, steps = chunk(policy, carry, jax.random.fold_in(key, len(tapes)))
            tapes.append(Tape.of(jax.device_get(steps)))
            ended += tapes[-1].done.sum(axis=0)
        return Tape.joined(tapes)


def random_player(env: Wrapper) -> Player:
    """Uniform actions in `env`, of those that are allowed; the policy is None."""
    params = env.default_params
    actions = env.action_space(params)

    def step(_, state, key):
        action_key, env_key = jax.random.split(key)
        mask = env.action_mask(state)
        if mask is None:
            action = jax.vmap(actions.sample)(jax.random.split(action_key, env.num_envs))
        else:
            action = Categorical(allowed(jnp.zeros(mask.shape), mask)).sample(action_key)
        _, state, _, _, _, info = env.step(env_key, state, action, params)
        return state, info

    return Player(env, lambda _, key: env.reset(key, params)[1], step)


def policy_player(agent: PPO, template: PPOState) -> Player:
    """Policies of `agent` in its evaluation environments, acting as its evaluations act.

    Args:
        template: shapes of its state.
    """
    shapes = agent.env.evaluation_params(template.env, agent.eval_env.default_params)

    def env_params(policy: Policy) -> Any:
        statistics = iter(policy.statistics)
        return jax.tree.map(lambda x: next(statistics) if _is_statistics(x) else x, shapes, is_leaf=_is_statistics)

    def start(policy: Policy, key: jax.Array) -> Carry:
        n = agent.eval_env.num_envs
        obs, env_state = agent.eval_env.reset(key, env_params(policy))
        return Carry(env_state, obs, jnp.ones(n, bool), agent.network.initial_state(n))

    def step(policy: Policy, carry: Carry, key: jax.Array) -> tuple[Carry, dict[str, Any]]:
        carry, info, _ = agent._play_step(policy.params, env_params(policy), carry, key)
        return carry, info

    return Player(agent.eval_env, start, step)


def named_key(seed: int, name: str) -> jax.Array:
    """A random key for the purpose that `name` says."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
