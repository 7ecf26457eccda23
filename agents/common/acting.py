"""Acting one step at a time, for agents that are evaluated in `eval_env` with the training's normalisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from engram.agents.common.spec import Acting
from engram.envs.external import Seen, showing


def acting(fresh: Callable[[Any, Any], Any], act: Callable[..., tuple[Any, Any, dict[str, Any]]]) -> Acting:
    """How an agent acts, with the carry `(environment state, obs[1, ...], reset[1], memory)`.

    Args:
        fresh: agent, first observation -> the memory that opens an episode.
        act: see `engram.agents.common.spec.Acting`.
    """

    def params(agent: Any, state: Any, seen: Seen) -> Any:
        return showing(agent.env.evaluation_params(state.env, agent.eval_env.default_params), seen)

    def start(agent: Any, state: Any, seen: Seen, key: jax.Array) -> tuple:
        obs, env_state = agent.eval_env.reset(key, params(agent, state, seen))
        return env_state, obs, jnp.ones(1, bool), fresh(agent, obs)

    def observe(agent: Any, state: Any, carry: tuple, action: Any, seen: Seen, key: jax.Array) -> tuple:
        env_state, _, _, memory = carry
        obs, env_state, *_ = agent.eval_env.step(key, env_state, action, params(agent, state, seen))
        return env_state, obs, jnp.zeros(1, bool), memory

    return Acting(start, observe, act)
