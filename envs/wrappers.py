"""Wrappers around a batch of environments, and a time limit for one environment.

All compose. Each shows the same `VectorEnvironment` interface, treats `info["final_observation"]` exactly as it treats
observations, and keeps what it remembers in the state, so everything stays pure. The usual order, inside out:
`EpisodeStatistics` (sees the raw reward), `ActionMask`, `FlattenObservation`, `MaskObservation` / `NoiseObservation` /
`NormaliseObservation`, `PreviousAction`, `NormaliseReward`.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment, VectorEnvironment
from engram.envs.spaces import EXACT, MASK, REST, Box, Dict, Discrete, MultiDiscrete, Space, Tuple
from engram.envs.vector import action_scale, clip_action
from engram.errors import BadRequest
from engram.kernels.collectives import Axes, of_all_groups
from engram.kernels.rows import select_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wrapper(VectorEnvironment):
    """Passes everything on to `env`; a wrapper that keeps a state of its own also overrides `env_state`."""

    env: VectorEnvironment

    @property
    def num_envs(self) -> int:
        return self.env.num_envs

    @property
    def is_host_pool(self) -> bool:
        return self.env.is_host_pool

    @property
    def name(self) -> str:
        return self.env.name

    @property
    def default_params(self) -> Any:
        return self.env.default_params

    def env_state(self, state: Any) -> Any:
        """The state of the wrapped environment."""
        return state

    def evaluation_params(self, state: Any, params: Any) -> Any:
        """`params` with the running statistics in `state` written in: a `reset` and `step` under them normalise with
        those statistics and leave them as they are."""
        if isinstance(self.env, Wrapper):
            return self.env.evaluation_params(self.env_state(state), params)
        return params

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        return self.env.step(key, state, action, params)

    def observation_space(self, params: Any) -> Space:
        return self.env.observation_space(params)

    def action_space(self, params: Any) -> Space:
        return self.env.action_space(params)

    def max_steps(self, params: Any) -> int | None:
        return self.env.max_steps(params)

    def action_mask(self, state: Any) -> jax.Array | None:
        return self.env.action_mask(self.env_state(state))

    def render(self, state: Any, params: Any, index: int = 0) -> np.ndarray:
        return self.env.render(self.env_state(state), params, index)

    def close(self) -> None:
        self.env.close()


# ---------------------------------------------------------------------------------------------------------------------
# Episode statistics


@struct.dataclass
class EpisodeStatisticsState:
    env_state: Any
    episode_return: jax.Array
    episode_length: jax.Array


OBSERVATION_FAULT, REWARD_FAULT = 1, 2
"""What of a step is not sane (see `is_sane`), 0 where all is."""


class EpisodeStatistics(Wrapper):
    """Adds to `info`, each `[B]`: `episode_return` (float32, undiscounted) and `episode_length` (int32, valid steps)
    of the running episode up to and including this step, and `episode_done`, True where they are final; and `fault`
    (int8), what the environment itself gave that is not sane."""

    def env_state(self, state: EpisodeStatisticsState) -> Any:
        return state.env_state

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, EpisodeStatisticsState]:
        obs, env_state = self.env.reset(key, params)
        return obs, EpisodeStatisticsState(env_state, jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, jnp.int32))

    def step(self, key: jax.Array, state: EpisodeStatisticsState, action: Any, params: Any):
        obs, env_state, reward, terminated, truncated, info = self.env.step(key, state.env_state, action, params)
        valid = info["valid"]
        episode_return = state.episode_return + jnp.where(valid, reward, 0.0)
        episode_length = state.episode_length + valid
        done = (terminated | truncated) & valid
        sane = jnp.ones(self.num_envs, bool)
        for leaf in jax.tree.leaves((obs, info["final_observation"])):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                sane &= is_sane(leaf)
        fault = jnp.where(is_sane(reward), jnp.where(sane, 0, OBSERVATION_FAULT), REWARD_FAULT).astype(jnp.int8)
        info = {
            **info,
            **{"episode_return": episode_return, "episode_length": episode_length, "episode_done": done},
            "fault": fault,
        }
        state = EpisodeStatisticsState(
            env_state, jnp.where(done, 0.0, episode_return), jnp.where(done, 0, episode_length)
        )
        return obs, state, reward, terminated, truncated, info


# ---------------------------------------------------------------------------------------------------------------------
# Action masks


DROP = "--observation.no-action-mask drops it"
"""What can be done about a mask."""


def _mask_size(space: Space) -> int:
    """Entries of a mask in `space`: one for each number that it holds."""
    if isinstance(space, Tuple):
        return sum(_mask_size(part) for part in space.spaces)
    return 0 if isinstance(space, Dict) else int(np.prod(space.shape))


@struct.dataclass
class ActionMaskState:
    env_state: Any
    mask: jax.Array


@dataclass(frozen=True)
class ActionMask(Wrapper):
    """Takes the part `action_mask` out of observations in a `Dict`, and keeps it for `action_mask(state)`.

    A mask has an entry for each action of a `Discrete`, and those of all components, one after another, of a
    `MultiDiscrete`, in any shape; what is not 0 is allowed. If the only other part is called `observation`, it becomes
    the observation by itself.

    Raises BadRequest where `used` and the mask does not fit the actions; where there is nothing else to see.
    """

    used: bool = True
    """Whether masks are handed on; if not, they are dropped."""

    def __post_init__(self):
        parts = dict(self._space(self.default_params).spaces)
        if len(parts) == 1:
            raise BadRequest(f"{self.name} shows nothing but its action_mask")
        space, entries = self.action_space(self.default_params), _mask_size(parts[MASK])
        if not self.used:
            return
        if not isinstance(space, Discrete | MultiDiscrete):
            raise BadRequest(f"{self.name} has an action_mask, which needs integers as actions, not {space}: {DROP}")
        if entries != flat_size(space):
            raise BadRequest(
                f"{self.name} has an action_mask of {entries} entries for actions of {flat_size(space)} (of one "
                f"component after another): {DROP}"
            )

    def _space(self, params: Any) -> Dict:
        space = self.env.observation_space(params)
        assert isinstance(space, Dict)
        return space

    def _without(self, parts: dict[str, Any]) -> Any:
        rest = {name: part for name, part in parts.items() if name != MASK}
        return rest[REST] if [*rest] == [REST] else rest

    def observation_space(self, params: Any) -> Space:
        rest = self._without(dict(self._space(params).spaces))
        return Dict(tuple(rest.items())) if isinstance(rest, dict) else rest

    def env_state(self, state: ActionMaskState) -> Any:
        return state.env_state

    def action_mask(self, state: ActionMaskState) -> jax.Array | None:
        return state.mask if self.used else None

    def _split(self, obs: dict[str, Any], env_state: Any) -> tuple[Any, ActionMaskState]:
        entries = [x.reshape(x.shape[0], -1) != 0 for x in jax.tree.leaves(obs[MASK])]
        return self._without(obs), ActionMaskState(env_state, jnp.concatenate(entries, axis=1))

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, ActionMaskState]:
        return self._split(*self.env.reset(key, params))

    def step(self, key: jax.Array, state: ActionMaskState, action: Any, params: Any):
        obs, env_state, reward, terminated, truncated, info = self.env.step(key, state.env_state, action, params)
        info = {**info, "final_observation": self._without(info["final_observation"])}
        return *self._split(obs, env_state), reward, terminated, truncated, info


# ---------------------------------------------------------------------------------------------------------------------
# Observations as vectors


def is_image(space: Space) -> bool:
    """True for pictures: a `Box` of uint8 with three axes."""
    return isinstance(space, Box) and space.dtype == "uint8" and len(space.shape) == 3


LEAST_SIDE = 36
"""Side from which a picture passes the convolutions of Mnih et al. (2015)."""
LEAST_SIDES = {"uint8": 7, "float32": LEAST_SIDE}
"""Sides from which boxes of bytes with two axes, and boxes of real numbers, are taken for pictures."""


def as_picture(space: Space) -> Box | None:
    """The picture `[height, width, channels]` of bytes that a member of `space` shows, None where it shows none.

    Pictures are boxes of bytes with three axes, the channels last or first (the first axis is then the shortest); those
    with two axes that are not tiny; and large ones of real numbers between two bounds.
    """
    if not isinstance(space, Box) or len(space.shape) not in (2, 3):
        return None
    shape = (*space.shape, 1)[:3]
    if shape[0] < min(shape[1:]):
        shape = (*shape[1:], shape[0])
    known = len(space.shape) == 3 and space.dtype == "uint8"
    if not known and min(shape[:2]) < LEAST_SIDES.get(space.dtype, np.inf):
        return None
    if space.dtype != "uint8" and not (
        isinstance(space.low, float | int) and np.isfinite([space.low, space.high]).all()
    ):
        return None
    return Box(0, 255, shape, "uint8")


def has_loose_bytes(space: Space) -> bool:
    """Whether `flatten` makes large numbers of bytes: those of `space` that are no picture, and mean more than a few
    levels."""
    if _parts(space):
        return any(has_loose_bytes(part) for _, part in _parts(space))
    if not isinstance(space, Box) or space.dtype != "uint8" or as_picture(space) is not None:
        return False
    return bool(np.max(space.high) > 10)


def to_picture(space: Any, x: jax.Array) -> jax.Array:
    """Members `x[..., *shape]` of `space` as members of `as_picture(space)`."""
    if space.dtype != "uint8":
        x = jnp.round(255.0 * (x - space.low) / (space.high - space.low)).astype(jnp.uint8)
    if len(space.shape) == 2:
        return x[..., None]
    return jnp.moveaxis(x, -3, -1) if space.shape[0] < min(space.shape[1:]) else x


def _parts(space: Space) -> list[tuple[Any, Space]]:
    """Parts of a `Dict` or `Tuple`, by what picks them out of a member; none of other spaces."""
    return (
        [*space.spaces] if isinstance(space, Dict) else [*enumerate(space.spaces)] if isinstance(space, Tuple) else []
    )


def flat_size(space: Space) -> int:
    """The length of the vectors that `flatten` makes of members of `space`."""
    match space:
        case Discrete():
            return space.n
        case MultiDiscrete():
            return sum(space.nvec)
        case Box():
            return int(np.prod(space.shape))
        case Tuple():
            return sum(flat_size(part) for part in space.spaces)
        case Dict():
            return sum(flat_size(part) for _, part in space.spaces)


def flatten(space: Space, x: Any) -> jax.Array:
    """Members `x` of `space` with any leading axes `[..., *]` as float32 vectors `[..., flat_size(space)]`.

    Integers become one-hot, a `MultiDiscrete` the concatenation of its entries' one-hots, boxes are flattened and
    cast; a `Tuple` or `Dict` is the concatenation of its parts, in the order of the space.
    """
    match space:
        case Discrete():
            return jax.nn.one_hot(x, space.n, dtype=jnp.float32)
        case MultiDiscrete():
            entry = np.repeat(np.arange(len(space.nvec)), space.nvec)
            value = np.concatenate([np.arange(n) for n in space.nvec])
            return (x[..., entry] == value).astype(jnp.float32)
        case Box():
            leading = x.shape[: x.ndim - len(space.shape)]
            return x.reshape(*leading, -1).astype(jnp.float32)
        case Tuple():
            return jnp.concatenate([flatten(part, y) for part, y in zip(space.spaces, x, strict=True)], axis=-1)
        case Dict():
            return jnp.concatenate([flatten(part, x[name]) for name, part in space.spaces], axis=-1)


def action_vector(space: Space, action: Any) -> jax.Array:
    """Actions `[..., *]` as inputs of a network: as `flatten`, but boxes by their bounds (see `action_scale`)."""
    scale = action_scale(space)
    return flatten(space, action if scale is None else (action - scale[0]) / scale[1])


def _may_lose_digits(space: Space) -> bool:
    if isinstance(space, Box):
        return "int" in space.dtype and max(np.max(np.abs(bound)) for bound in (space.low, space.high)) > EXACT
    return any(_may_lose_digits(part) for _, part in _parts(space))


def vector_space(size: int) -> Box:
    return Box(-np.inf, np.inf, (size,))


def require_vector(wrapper: Wrapper) -> int:
    """The width of the observations that `wrapper` receives. Raises BadRequest when they are not float32 vectors."""
    space = wrapper.env.observation_space(wrapper.env.default_params)
    if isinstance(space, Box) and space.dtype == "float32" and len(space.shape) == 1:
        return space.shape[0]
    kind = type(wrapper).__name__
    if is_image(space) or isinstance(space, Dict):
        raise BadRequest(f"{kind} needs vector observations, but {wrapper.name} shows pictures: leave it out")
    raise BadRequest(f"{kind} needs vector observations: wrap {wrapper.name} in FlattenObservation first")


class ObservationWrapper(Wrapper):
    """A fixed function of the observation alone."""

    def transform(self, obs: Any, params: Any) -> Any:
        raise NotImplementedError

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        obs, state = self.env.reset(key, params)
        return self.transform(obs, params), state

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        info = {**info, "final_observation": self.transform(info["final_observation"], params)}
        return self.transform(obs, params), state, reward, terminated, truncated, info


@dataclass(frozen=True)
class FlattenObservation(ObservationWrapper):
    """Observations as float32 vectors by `flatten`, or as a picture `[height, width, channels]` of bytes where they
    show one (see `as_picture`). Dicts and tuples with a picture become `{"extra": vector, "image": picture}`.

    Raises BadRequest where several parts are pictures, and where integers of very many kinds would be one-hot.
    """

    def __post_init__(self):
        space = self.env.observation_space(self.env.default_params)
        if flat_size(space) > EXACT:
            raise BadRequest(f"{self.name}: observations would be vectors of {flat_size(space):,} numbers")
        if not self.is_host_pool and _may_lose_digits(space):  # emulators show what they do
            log.warning(
                "%s: observations may hold whole numbers beyond +-%s, which lose their last digits in float32",
                *(self.name, f"{EXACT:,}"),
            )

    def _picture(self, space: Space) -> tuple[Any, Any]:
        """What picks the picture out of an observation in `space`, and its space; twice None where there is none."""
        pictures = [(name, part) for name, part in _parts(space) if as_picture(part) is not None]
        if len(pictures) > 1:
            names = ", ".join(str(name) for name, _ in pictures)
            raise BadRequest(
                f"{self.name} shows {len(pictures)} pictures ({names}): one is supported; stack their channels"
            )
        return pictures[0] if pictures else (None, None)

    def observation_space(self, params: Any) -> Space:
        space = self.env.observation_space(params)
        picture = as_picture(space)
        if picture is not None:
            return picture
        name, part = self._picture(space)
        if part is None:
            return vector_space(flat_size(space))
        image: Any = as_picture(part)
        extra = sum(flat_size(other) for key, other in _parts(space) if key != name)
        return Dict((("extra", vector_space(extra)), ("image", image))) if extra else image

    def transform(self, obs: Any, params: Any) -> Any:
        space: Any = self.env.observation_space(params)
        if as_picture(space) is not None:
            return to_picture(space, obs)
        name, part = self._picture(space)
        if part is None:
            return flatten(space, obs)
        others = [flatten(other, obs[key]) for key, other in _parts(space) if key != name]
        image = to_picture(part, obs[name])
        return {"extra": jnp.concatenate(others, axis=-1), "image": image} if others else image


@dataclass(frozen=True)
class MaskObservation(ObservationWrapper):
    """Keeps only the entries `keep` of a vector observation, in that order, which makes a task partially observed."""

    keep: tuple[int, ...]

    def __post_init__(self):
        width = require_vector(self)
        if not self.keep or not all(0 <= index < width for index in self.keep):
            raise BadRequest(f"keep={self.keep} must name entries of an observation of width {width}")

    def observation_space(self, params: Any) -> Space:
        return vector_space(len(self.keep))

    def transform(self, obs: jax.Array, params: Any) -> jax.Array:
        return obs[..., np.asarray(self.keep)]


@dataclass(frozen=True)
class NoiseObservation(Wrapper):
    """Adds Gaussian noise of standard deviation `sigma` to every entry of a vector observation, afresh at every step.

    In a step that ends an episode the final observation and the one that opens the next share their noise: each alone
    is distributed as it should be, and nothing ever uses them together.
    """

    sigma: float

    def __post_init__(self):
        require_vector(self)

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        env_key, noise_key = jax.random.split(key)
        obs, state = self.env.reset(env_key, params)
        return obs + self.sigma * jax.random.normal(noise_key, obs.shape), state

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        env_key, noise_key = jax.random.split(key)
        obs, state, reward, terminated, truncated, info = self.env.step(env_key, state, action, params)
        noise = self.sigma * jax.random.normal(noise_key, obs.shape)
        info = {**info, "final_observation": info["final_observation"] + noise}
        return obs + noise, state, reward, terminated, truncated, info

    def observation_space(self, params: Any) -> Space:
        return vector_space(flat_size(self.env.observation_space(params)))


@dataclass(frozen=True)
class PreviousAction(Wrapper):
    """Shows the agent what it did: observation ++ previous action ++ (previous reward) ++ start-of-episode flag.

    Discrete actions are one-hot, Box actions as the environment executes them (clipped to their bounds, rounded where
    it takes whole numbers), scaled as `action_scale` says. On the first
    observation of an episode action and reward are zeros and the flag is 1; everywhere else, the final observation
    of an episode included, the flag is 0. Vector observations are extended; a picture becomes
    `{"extra": vector, "image": picture}`.
    """

    reward: bool = False

    def __post_init__(self):
        space = self.env.observation_space(self.env.default_params)
        if not is_image(space) and not isinstance(space, Dict):
            require_vector(self)

    def _extra_size(self, params: Any) -> int:
        return flat_size(self.env.action_space(params)) + self.reward + 1

    def _join(self, obs: Any, extra: jax.Array, params: Any) -> Any:
        if is_image(self.env.observation_space(params)):
            return {"extra": extra, "image": obs}
        if isinstance(obs, dict):
            return {**obs, "extra": jnp.concatenate([obs["extra"], extra], axis=-1)}
        return jnp.concatenate([obs, extra], axis=-1)

    def observation_space(self, params: Any) -> Space:
        space, extra = self.env.observation_space(params), self._extra_size(params)
        if is_image(space):
            return Dict((("extra", vector_space(extra)), ("image", space)))
        if isinstance(space, Dict):
            seen = dict(space.spaces)
            return Dict((("extra", vector_space(flat_size(seen["extra"]) + extra)), ("image", seen["image"])))
        return vector_space(flat_size(space) + extra)

    def _opening(self, params: Any) -> jax.Array:
        return jnp.zeros((self.num_envs, self._extra_size(params))).at[:, -1].set(1.0)

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        obs, state = self.env.reset(key, params)
        return self._join(obs, self._opening(params), params), state

    def step(self, key: jax.Array, state: Any, action: Any, params: Any):
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        space = self.env.action_space(params)
        executed = info.get("executed", action)  # an emulator may take whole numbers only
        parts = [action_vector(space, clip_action(space, executed)), *([reward[:, None]] if self.reward else [])]
        going_on = jnp.concatenate([*parts, jnp.zeros((self.num_envs, 1))], axis=-1)
        extra = select_rows(info["reset"], self._opening(params), going_on)
        info = {**info, "final_observation": self._join(info["final_observation"], going_on, params)}
        return self._join(obs, extra, params), state, reward, terminated, truncated, info


# ---------------------------------------------------------------------------------------------------------------------
# Running normalisation


@struct.dataclass
class RunningStatistics:
    """Mean and (population) variance, per entry, of the rows seen so far, and their count as float32."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "RunningStatistics":
        return cls(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(()))

    def update(self, x: jax.Array, mask: jax.Array, axes: Axes = ()) -> "RunningStatistics":
        """Adds the rows of `x[B, ...]` where `mask[B]` (Chan, Golub and LeVeque's parallel form of Welford's rule).

        With `axes` these are the rows of all groups (see `engram.kernels.collectives`).
        """
        weight = mask.reshape(mask.shape + (1,) * (x.ndim - 1))
        count = mask.sum(dtype=jnp.float32)
        x = jnp.where(weight, x, 0.0)
        mean = x.sum(axis=0) / jnp.maximum(count, 1.0)
        var = (jnp.where(weight, x - mean, 0.0) ** 2).sum(axis=0) / jnp.maximum(count, 1.0)
        if axes:
            rows = jnp.stack([jnp.broadcast_to(count, mean.shape), mean, var])
            counts, means, variances = jnp.moveaxis(of_all_groups(rows, axes), 1, 0)
            count = counts.sum(axis=0)
            mean = (counts * means).sum(axis=0) / jnp.maximum(count, 1.0)
            var = (counts * (variances + (means - mean) ** 2)).sum(axis=0) / jnp.maximum(count, 1.0)
            count = count.reshape(-1)[0]
        total = self.count + count
        share = count / jnp.maximum(total, 1.0)
        delta = mean - self.mean
        # Moments move by shares of the total rather than as sums, so that float32 does not saturate on long runs.
        return RunningStatistics(
            mean=self.mean + share * delta,
            var=self.var + share * (var - self.var + (1.0 - share) * delta**2),
            count=total,
        )


ABSURD = 1e9
"""Size beyond which a number of an emulator is taken for its fault: one of 1e20 would spoil statistics for ever."""


def is_sane(x: jax.Array) -> jax.Array:
    """`x[B, ...]` -> bool `[B]`, whether all of a row is finite and of a size that is no fault."""
    return (jnp.abs(x) <= ABSURD).reshape(x.shape[0], -1).all(axis=1)


@struct.dataclass
class NormaliseParams:
    """Parameters of the wrapped environment; `statistics`, when given, are used in place of running ones and stay."""

    env: Any
    statistics: RunningStatistics | None = None


@struct.dataclass
class NormaliseObservationState:
    env_state: Any
    statistics: RunningStatistics


@dataclass(frozen=True)
class Normaliser(Wrapper):
    """What the two running normalisations share: where statistics come from, and how they are frozen.

    For evaluation take `evaluation_params(training_state, params)` and reset and step a fresh environment under them.
    """

    epsilon = 1e-8
    bound = 10.0
    axes: Axes = field(default=(), kw_only=True)
    """Axes of the groups of environments that the statistics are over."""

    @property
    def default_params(self) -> NormaliseParams:
        return NormaliseParams(self.env.default_params)

    def env_state(self, state: Any) -> Any:
        return state.env_state

    def evaluation_params(self, state: Any, params: NormaliseParams) -> NormaliseParams:
        return NormaliseParams(super().evaluation_params(state, params.env), state.statistics)

    def observation_space(self, params: NormaliseParams) -> Space:
        return self.env.observation_space(params.env)

    def action_space(self, params: NormaliseParams) -> Space:
        return self.env.action_space(params.env)

    def max_steps(self, params: NormaliseParams) -> int | None:
        return self.env.max_steps(params.env)

    def render(self, state: Any, params: NormaliseParams, index: int = 0) -> np.ndarray:
        return self.env.render(state.env_state, params.env, index)


@dataclass(frozen=True)
class NormaliseObservation(Normaliser):
    """Vector observations shifted and scaled to zero mean and unit variance by running statistics, cut at +-10.

    The statistics count every observation on which an agent acts, once; final observations are normalised by them and
    not counted. They are updated before they are used, as is usual. Of emulators, observations with a number beyond
    `ABSURD` are not counted.
    """

    def __post_init__(self):
        require_vector(self)

    def _apply(self, statistics: RunningStatistics, obs: jax.Array) -> jax.Array:
        scaled = (obs - statistics.mean) / jnp.sqrt(statistics.var + self.epsilon)
        return jnp.clip(scaled, -self.bound, self.bound)

    def reset(self, key: jax.Array, params: NormaliseParams) -> tuple[jax.Array, NormaliseObservationState]:
        obs, env_state = self.env.reset(key, params.env)
        statistics = params.statistics
        if statistics is None:
            counted = is_sane(obs) if self.is_host_pool else jnp.ones(self.num_envs, bool)
            statistics = RunningStatistics.empty(obs.shape[1:]).update(obs, counted, self.axes)
        return self._apply(statistics, obs), NormaliseObservationState(env_state, statistics)

    def step(self, key: jax.Array, state: NormaliseObservationState, action: Any, params: NormaliseParams):
        step = self.env.step(key, state.env_state, action, params.env)
        obs, env_state, reward, terminated, truncated, info = step
        statistics = params.statistics
        if statistics is None:
            # An emulator returns the final observation itself in the step that ends an episode: nobody acts on it.
            acted_on = info["reset"] | ~(terminated | truncated)
            if self.is_host_pool:
                acted_on &= is_sane(obs)
            statistics = state.statistics.update(obs, acted_on, self.axes)
        info = {**info, "final_observation": self._apply(statistics, info["final_observation"])}
        state = NormaliseObservationState(env_state, statistics)
        return self._apply(statistics, obs), state, reward, terminated, truncated, info

    def observation_space(self, params: NormaliseParams) -> Space:
        return vector_space(flat_size(self.env.observation_space(params.env)))


@struct.dataclass
class NormaliseRewardState:
    env_state: Any
    statistics: RunningStatistics
    discounted_return: jax.Array


@dataclass(frozen=True)
class NormaliseReward(Normaliser):
    """Rewards divided by the running standard deviation of the discounted return so far, cut at +-10.

    The return `R_t = discount * R_{t-1} + r_t` starts afresh with every episode; only valid steps count, and of
    emulators only returns up to `ABSURD`.
    """

    discount: float = 0.99

    def reset(self, key: jax.Array, params: NormaliseParams) -> tuple[Any, NormaliseRewardState]:
        obs, env_state = self.env.reset(key, params.env)
        statistics = RunningStatistics.empty(()) if params.statistics is None else params.statistics
        return obs, NormaliseRewardState(env_state, statistics, jnp.zeros(self.num_envs))

    def step(self, key: jax.Array, state: NormaliseRewardState, action: Any, params: NormaliseParams):
        step = self.env.step(key, state.env_state, action, params.env)
        obs, env_state, reward, terminated, truncated, info = step
        valid = info["valid"]
        discounted_return = jnp.where(valid, self.discount * state.discounted_return + reward, state.discounted_return)
        statistics = params.statistics
        if statistics is None:
            counted = valid & is_sane(discounted_return) if self.is_host_pool else valid
            statistics = state.statistics.update(discounted_return, counted, self.axes)
        scaled = jnp.clip(reward / jnp.sqrt(statistics.var + self.epsilon), -self.bound, self.bound)
        discounted_return = jnp.where(terminated | truncated, 0.0, discounted_return)
        state = NormaliseRewardState(env_state, statistics, discounted_return)
        return obs, state, scaled, terminated, truncated, info


# ---------------------------------------------------------------------------------------------------------------------
# One environment


@struct.dataclass
class TimeLimitState:
    env_state: Any
    time: jax.Array


@dataclass(frozen=True)
class TimeLimit(Environment):
    """Cuts episodes of `env` after `steps` steps: truncated, never terminated."""

    env: Environment
    steps: int

    @property
    def cheap_reset(self) -> bool:
        return self.env.cheap_reset

    @property
    def name(self) -> str:
        return self.env.name

    @property
    def default_params(self) -> Any:
        return self.env.default_params

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, TimeLimitState]:
        obs, env_state = self.env.reset(key, params)
        return obs, TimeLimitState(env_state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: TimeLimitState, action: Any, params: Any):
        step = self.env.step(key, state.env_state, action, params)
        obs, env_state, reward, terminated, truncated, info = step
        time = state.time + 1
        return obs, TimeLimitState(env_state, time), reward, terminated, truncated | (time >= self.steps), info

    def observation_space(self, params: Any) -> Space:
        return self.env.observation_space(params)

    def action_space(self, params: Any) -> Space:
        return self.env.action_space(params)

    def max_steps(self, params: Any) -> int:
        inner = self.env.max_steps(params)
        return self.steps if inner is None else min(inner, self.steps)

    def render(self, state: TimeLimitState, params: Any) -> np.ndarray:
        return self.env.render(state.env_state, params)


# ---------------------------------------------------------------------------------------------------------------------
# Groups of environments


def over_groups(env: VectorEnvironment, axes: Axes) -> Any:
    """`env`, one group of several, with running statistics over all of them (see `engram.kernels.collectives`)."""
    if not isinstance(env, Wrapper):
        return env
    own = {"axes": axes} if isinstance(env, Normaliser) else {}
    return replace(env, env=over_groups(env.env, axes), **own)


def is_of_all_groups(part: Any) -> bool:
    """Whether a part of a state is the same in all groups: their running statistics."""
    return isinstance(part, RunningStatistics)
