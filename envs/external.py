"""An environment that somebody else steps: a policy that acts elsewhere is shown what was seen there.

`External` passes what its parameters hold through `reset` and `step`, so that the wrappers of training treat it exactly
as they treated their own environment.
"""

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import VectorEnvironment
from engram.envs.spaces import Box, Dict, Discrete, MultiDiscrete, Space, Tuple
from engram.envs.wrappers import NormaliseParams
from engram.errors import BadRequest


@struct.dataclass
class Seen:
    """What an environment showed: an observation `[B, ...]` and the reward `[B]` of the step that led to it."""

    obs: Any
    reward: jax.Array


@dataclass(frozen=True)
class External(VectorEnvironment):
    """A batch of `num_envs` environments of these spaces, whose observations are the parameters."""

    env_id: str
    num_envs: int
    spaces: tuple[Space, Space]
    """Spaces of an observation and of an action."""
    limit: int | None = None
    """Steps of an episode at most (None: unknown)."""

    @property
    def name(self) -> str:
        return self.env_id

    @property
    def default_params(self) -> Seen:
        def zeros(space: Space) -> Any:
            example = jax.eval_shape(space.sample, jax.random.key(0))
            return jax.tree.map(lambda x: jnp.zeros((self.num_envs, *x.shape), x.dtype), example)

        return Seen(zeros(self.spaces[0]), jnp.zeros(self.num_envs))

    def reset(self, key: jax.Array, params: Seen) -> tuple[Any, tuple]:
        return params.obs, ()

    def step(self, key: jax.Array, state: tuple, action: Any, params: Seen):
        never, always = jnp.zeros(self.num_envs, bool), jnp.ones(self.num_envs, bool)
        info = {"reset": never, "valid": always, "final_observation": params.obs}
        return params.obs, (), params.reward, never, never, info

    def observation_space(self, params: Any) -> Space:
        return self.spaces[0]

    def action_space(self, params: Any) -> Space:
        return self.spaces[1]

    def max_steps(self, params: Any) -> int | None:
        return self.limit


def showing(params: Any, seen: Seen) -> Any:
    """The parameters `params` of wrappers around an `External`, with `seen` as its own."""
    if isinstance(params, NormaliseParams):
        return params.replace(env=showing(params.env, seen))  # pyright: ignore[reportAttributeAccessIssue]
    return seen


# --------------------------------------------------------------------------------------------------- spaces in JSON

SPACES = {kind.__name__: kind for kind in (Discrete, MultiDiscrete, Box, Tuple, Dict)}


def space_to_json(space: Space) -> dict[str, Any]:
    """`space` in plain JSON types."""

    def plain(value: Any) -> Any:
        if isinstance(value, Space):
            return space_to_json(value)
        if isinstance(value, tuple | list | np.ndarray):
            return [plain(v) for v in value]
        if isinstance(value, float | np.floating):
            return float(value) if np.isfinite(value) else ("inf" if value > 0 else "-inf")
        return value.item() if isinstance(value, np.generic) else value

    return {"kind": type(space).__name__, **{f.name: plain(getattr(space, f.name)) for f in dataclasses.fields(space)}}


def space_from_json(data: Any) -> Space:
    """What `space_to_json` wrote. Raises BadRequest for anything else."""

    def value(entry: Any) -> Any:
        if isinstance(entry, dict):
            return space_from_json(entry)
        if isinstance(entry, list):
            return tuple(value(v) for v in entry)
        return float(entry) if entry in ("inf", "-inf") else entry

    space: Any = None
    with suppress(KeyError, TypeError):
        space = SPACES[data["kind"]](**{name: value(entry) for name, entry in data.items() if name != "kind"})
    if not _is_whole(space):
        raise BadRequest("the record of the environment's spaces is damaged")
    return space


def _is_whole(space: Any) -> bool:
    """Whether the fields of a space are of their types, and describe something."""

    def counts(values: Any, least: int = 1) -> bool:
        return isinstance(values, tuple) and all(type(n) is int and n >= least for n in values)

    def numbers(bound: Any) -> bool:
        return all(map(numbers, bound)) if isinstance(bound, tuple) else type(bound) in (int, float)

    match space:
        case Discrete():
            return counts((space.n,))
        case MultiDiscrete():
            return counts(space.nvec)
        case Box():
            bounds = numbers(space.low) and numbers(space.high)
            return counts(space.shape, 0) and bounds and space.dtype in ("float32", "int32", "uint8", "bool")
        case Tuple():
            return isinstance(space.spaces, tuple) and all(map(_is_whole, space.spaces))
        case Dict():
            pairs = isinstance(space.spaces, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in space.spaces)
            return pairs and all(isinstance(name, str) and _is_whole(part) for name, part in space.spaces)
    return False
