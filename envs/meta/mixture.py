"""Trials of environments with different spaces in one batch, each environment of which always runs the same member.

No member is run where it is not needed: the batch is cut into blocks, one for each member. To the agent all look alike:
observations have a common width, actions a common space, and a mask says which actions are the member's own.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, Info, NoParams, VectorEnvironment
from engram.envs.meta.scramble import draw_scramble, scrambled
from engram.envs.meta.trials import Trials, TrialState, consecutive
from engram.envs.spaces import Box, Discrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import flat_size, flatten, vector_space
from engram.errors import BadRequest


class MemberState(struct.PyTreeNode):
    trial: TrialState
    scramble: jax.Array | None
    """Discrete: a permutation `[actions]`; Box: an orthogonal matrix `[actions, actions]`; None where not projected."""


@dataclass(frozen=True)
class Member(Environment):
    """`trials`, seen as all members of a mixture are.

    Observation: as of `trials`, the family's part padded with zeros to `width`, the previous action as of the common
    space, and at the end a mask `[actions]`. Action: one of `actions`, where the mask has one for each of the member's
    own, and each of the others does the same as one of these; or a Box of -1 .. 1 with `actions` entries, of which the
    member takes the first ones, scaled to its own bounds, and the mask has those that matter.
    """

    trials: Trials
    width: int
    actions: int
    project_actions: bool
    """Whether actions are changed for every trial: by a permutation of the common ones, or by a rotation (with
    reflections) of the common Box whose results outside the Box are clipped, fresh for every trial."""

    def __post_init__(self):
        if self.trials.project_actions:
            raise BadRequest("members of a mixture leave the projection of actions to it")
        for what, room, needed in (("width", self.width, self.features), ("actions", self.actions, self.own_actions)):
            if room < needed:
                raise BadRequest(f"{what} must be at least {needed} for {self.name}, got {room}")

    @property
    def name(self) -> str:
        return self.trials.name

    @property
    def features(self) -> int:
        """Width of the family's part of the member's own observation."""
        return self.trials.layout["observation"].stop

    @property
    def own_space(self) -> Discrete | Box:
        space = self.trials.action_space(NoParams())
        if isinstance(space, Discrete) or (isinstance(space, Box) and np.all(np.isfinite([space.low, space.high]))):
            return space
        raise BadRequest(f"a mixture takes Discrete actions or bounded Boxes, not those of {self.name}: {space}")

    @property
    def own_actions(self) -> int:
        return flat_size(self.own_space)

    @property
    def layout(self) -> dict[str, slice]:
        """The parts of an observation: those of `Trials.layout`, and mask."""
        return consecutive(
            observation=self.width,
            action=self.actions,
            reward=1,
            episode_start=1,
            trial_start=1,
            mask=self.actions,
        )

    def observation_space(self, params: NoParams) -> Box:
        return vector_space(self.layout["mask"].stop)

    def action_space(self, params: NoParams) -> Discrete | Box:
        return Discrete(self.actions) if isinstance(self.own_space, Discrete) else Box(-1.0, 1.0, (self.actions,))

    def max_steps(self, params: NoParams) -> int | None:
        return self.trials.max_steps(params)

    def own_action(self, scramble: jax.Array | None, action: jax.Array) -> jax.Array:
        """The member's action for one of the common space."""
        space = self.own_space
        turned = action if scramble is None else scrambled(self.action_space(NoParams()), scramble, action)
        if isinstance(space, Discrete):
            return turned % space.n
        low, high = (np.broadcast_to(np.asarray(x, np.float32), space.shape) for x in (space.low, space.high))
        return jnp.asarray(low + (high - low) * 0.5 * (turned[: self.own_actions].reshape(space.shape) + 1.0))

    def _mask(self, scramble: jax.Array | None) -> jax.Array:
        if scramble is None:
            own = np.arange(self.actions) < self.own_actions
        else:
            own = scramble < self.own_actions if isinstance(self.own_space, Discrete) else np.ones(self.actions)
        return jnp.asarray(own, jnp.float32)

    def _observe(self, obs: jax.Array, previous: jax.Array, scramble: jax.Array | None) -> jax.Array:
        features = jnp.pad(obs[: self.features], (0, self.width - self.features))
        signals = obs[self.trials.layout["reward"].start :]
        return jnp.concatenate([features, previous, signals, self._mask(scramble)])

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, MemberState]:
        trial_key, scramble_key = jax.random.split(key)
        obs, trial = self.trials.reset(trial_key, params)
        scramble = None
        if self.project_actions:
            scramble = draw_scramble(scramble_key, self.action_space(params))
        return self._observe(obs, jnp.zeros(self.actions), scramble), MemberState(trial, scramble)

    def step(
        self, key: jax.Array, state: MemberState, action: jax.Array, params: NoParams
    ) -> tuple[jax.Array, MemberState, jax.Array, jax.Array, jax.Array, Info]:
        own = self.own_action(state.scramble, action)
        obs, trial, reward, terminated, truncated, info = self.trials.step(key, state.trial, own, params)
        obs = self._observe(obs, flatten(self.action_space(params), action), state.scramble)
        return obs, state.replace(trial=trial), reward, terminated, truncated, info

    def render(self, state: MemberState, params: NoParams) -> np.ndarray:
        return self.trials.render(state.trial, params)


@dataclass(frozen=True)
class Mixture(VectorEnvironment):
    """`num_envs` environments, of which a block, one after another, belongs to each of `members`.

    Blocks are as equal as they can be, the first ones larger. Each is a `Vectorised` member. Keys are those of one
    `Vectorised` batch of all rows, so that their hashing, a large part of a cheap environment's step, is done once.
    `reset(key, ...)` resets block `i` with `jax.random.fold_in(key, i)`. `info` holds what any member's does, where a
    member has no such entry False, 0 or NaN by its type; and `member` (int32), the row's place in `members`.
    """

    members: tuple[Member, ...]
    num_envs: int

    def __post_init__(self):
        if not 0 < len(self.members) <= self.num_envs:
            raise BadRequest(
                f"a mixture of {len(self.members)} members needs as many environments, got {self.num_envs}"
            )
        for what in ("action_space", "observation_space"):
            spaces = {str(getattr(member, what)(NoParams())) for member in self.members}
            if len(spaces) > 1:
                raise BadRequest(f"members of a mixture must share their {what.replace('_', ' ')}: {sorted(spaces)}")

    @property
    def name(self) -> str:
        return "+".join(member.name for member in self.members)

    @property
    def default_params(self) -> NoParams:
        return NoParams()

    @cached_property
    def blocks(self) -> tuple[Vectorised, ...]:
        share, extra = divmod(self.num_envs, len(self.members))
        return tuple(Vectorised(member, share + (i < extra)) for i, member in enumerate(self.members))

    @cached_property
    def rows(self) -> tuple[slice, ...]:
        """The environments of each member."""
        ends = np.cumsum([block.num_envs for block in self.blocks]).tolist()
        return tuple(slice(end - block.num_envs, end) for end, block in zip(ends, self.blocks, strict=True))

    @property
    def layout(self) -> dict[str, slice]:
        return self.members[0].layout

    def observation_space(self, params: NoParams) -> Box:
        return self.members[0].observation_space(params)

    def action_space(self, params: NoParams) -> Discrete | Box:
        return self.members[0].action_space(params)

    def max_steps(self, params: NoParams) -> int | None:
        bounds = [member.max_steps(params) for member in self.members]
        return None if None in bounds else max(bound for bound in bounds if bound is not None)

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, tuple]:
        parts = [block.reset(jax.random.fold_in(key, i), params) for i, block in enumerate(self.blocks)]
        return jnp.concatenate([obs for obs, _ in parts]), tuple(state for _, state in parts)

    def step(self, key: jax.Array, state: tuple, action: jax.Array, params: NoParams):
        keys = Vectorised(self.members[0], self.num_envs).step_keys(key)
        parts = [
            # A barrier: XLA would otherwise compute parts of a block again for each array that is joined below.
            jax.lax.optimization_barrier(block.step_rows(key, keys[rows], part, action[rows], params, rows.start))
            for block, rows, part in zip(self.blocks, self.rows, state, strict=True)
        ]
        obs, states, reward, terminated, truncated, infos = zip(*parts, strict=True)
        info = self._merge(infos)
        info["member"] = jnp.asarray(
            np.repeat(np.arange(len(self.members)), [b.num_envs for b in self.blocks]), jnp.int32
        )
        obs, reward, terminated, truncated = (jnp.concatenate(x) for x in (obs, reward, terminated, truncated))
        return obs, states, reward, terminated, truncated, info

    def _merge(self, infos: tuple[Info, ...]) -> Info:
        merged = {}
        for name in sorted({name for info in infos for name in info}):
            example = next(info[name] for info in infos if name in info)
            absent = jnp.nan if jnp.issubdtype(example.dtype, jnp.floating) else 0
            merged[name] = jnp.concatenate(
                [
                    info.get(name, jnp.full((block.num_envs, *example.shape[1:]), absent, example.dtype))
                    for info, block in zip(infos, self.blocks, strict=True)
                ]
            )
        return merged

    def render(self, state: tuple, params: NoParams, index: int = 0) -> np.ndarray:
        member = next(i for i, rows in enumerate(self.rows) if index < rows.stop)
        return self.blocks[member].render(state[member], params, index - self.rows[member].start)


def constructor(names: Mapping[str, Callable[..., Trials]]) -> Callable[..., Callable[[int], Mixture]]:
    """Makes mixtures of `names`, by options that an id can spell: `members`, a list of names or names joined by `+`;
    `width` and `actions`, the common sizes (0: as large as the members need); and those of the members, each handed to
    every member that has it.

    What it makes is to be called with the number of environments.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = {
        "members": inspect.Parameter("members", keyword, default="", annotation=str | tuple),
        "width": inspect.Parameter("width", keyword, default=0, annotation=int),
        "actions": inspect.Parameter("actions", keyword, default=0, annotation=int),
    }
    for make in names.values():
        for parameter in inspect.signature(make).parameters.values():
            options.setdefault(parameter.name, parameter)

    def mixture(
        *,
        members: str | tuple[str, ...] = "",
        width: int = 0,
        actions: int = 0,
        project_actions: bool = False,
        **given: Any,
    ) -> Callable[[int], Mixture]:
        chosen = re.findall(r"[^+,\s]+", members) if isinstance(members, str) else [*members]
        unknown = [name for name in chosen if name not in names]
        if unknown or not chosen:
            raise BadRequest(f"members must be some of {', '.join(names)}, joined by +, got {members!r}")
        taken = [inspect.signature(names[name]).parameters for name in chosen]
        for option in given:
            if not any(option in parameters for parameters in taken):
                raise BadRequest(f"no member of {'+'.join(chosen)} has an option {option!r}")
        trials = [
            names[name](**{option: value for option, value in given.items() if option in parameters})
            for name, parameters in zip(chosen, taken, strict=True)
        ]
        width = width or max(one.layout["observation"].stop for one in trials)
        actions = actions or max(flat_size(one.action_space(NoParams())) for one in trials)
        return partial(Mixture, tuple(Member(one, width, actions, project_actions) for one in trials))

    mixture.__signature__ = inspect.Signature([*options.values()])  # pyright: ignore[reportFunctionMemberAccess]
    return mixture
