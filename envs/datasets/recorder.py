"""From a running environment to `Episodes`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import struct

from engram.atomic_files import replacing
from engram.envs.datasets.episodes import Episodes, Origin
from engram.envs.datasets.files import archived, reading
from engram.envs.spaces import Box, Discrete, Space
from engram.envs.vector import clip_action
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest


class Step(struct.PyTreeNode):
    """One step `[B, ...]` as the environment took it: raw observations and rewards, and the action that was executed.

    `next_obs` is what followed, which where an episode ended is its final observation.
    """

    obs: jax.Array | np.ndarray
    action: jax.Array | np.ndarray
    reward: jax.Array | np.ndarray
    terminated: jax.Array | np.ndarray
    truncated: jax.Array | np.ndarray
    next_obs: jax.Array | np.ndarray


@struct.dataclass
class RecorderState:
    env_state: Any
    obs: jax.Array


@dataclass(frozen=True)
class Recorder(Wrapper):
    """Adds a `Step` to `info`, as `record`. Wrappers around this, of noise or normalisation, do not show in it."""

    def __post_init__(self):
        space, actions = (describe(self.default_params) for describe in (self.observation_space, self.action_space))
        if self.is_host_pool:
            raise BadRequest(f"{self.name} is an emulator on the host: only environments in JAX can be recorded")
        if not (isinstance(space, Box) and space.dtype == "float32" and len(space.shape) == 1):
            raise BadRequest(f"{self.name} shows pictures: only vectors can be recorded")
        if not (isinstance(actions, Discrete) or (isinstance(actions, Box) and len(actions.shape) == 1)):
            raise BadRequest(
                f"{self.name} takes {type(actions).__name__} actions: only one integer or a vector can be recorded"
            )

    def env_state(self, state: RecorderState) -> Any:
        return state.env_state

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, RecorderState]:
        obs, env_state = self.env.reset(key, params)
        return obs, RecorderState(env_state, obs)

    def step(self, key: jax.Array, state: RecorderState, action: Any, params: Any):
        obs, env_state, reward, terminated, truncated, info = self.env.step(key, state.env_state, action, params)
        step = Step(
            obs=state.obs,
            action=clip_action(self.action_space(params), action),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=info["final_observation"],
        )
        return obs, RecorderState(env_state, obs), reward, terminated, truncated, {**info, "record": step}


@dataclass(frozen=True)
class Tape:
    """Consecutive steps of a batch of environments, on the host."""

    obs: np.ndarray
    """`[T, B, O]`."""
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    """bool `[T, B]`."""
    final: np.ndarray
    """`[D, O]`: the final observations of the `D` episodes that ended, in the order of time, then environment."""

    @classmethod
    def of(cls, steps: Step) -> "Tape":
        """Of steps `[T, B, ...]` on the host."""
        done = np.asarray(steps.terminated | steps.truncated)
        obs, action, reward, terminated = (
            np.asarray(x) for x in (steps.obs, steps.action, steps.reward, steps.terminated)
        )
        return cls(obs, action, reward, terminated, done, np.asarray(steps.next_obs)[done])

    @classmethod
    def joined(cls, tapes: Sequence["Tape"]) -> "Tape":
        """Tapes that follow each other in time."""
        return cls(*(np.concatenate([getattr(tape, field.name) for tape in tapes]) for field in fields(cls)))

    @classmethod
    def load(cls, path: Path) -> "Tape":
        """What `save` wrote. Raises BadRequest for anything else, in one line that names it."""
        with reading(path):
            stored = archived(path)
            missing = [field.name for field in fields(cls) if field.name not in stored]
            if missing:
                raise BadRequest(f"lacks {', '.join(missing)}")
            tape = cls(**{field.name: stored[field.name] for field in fields(cls)})
            steps = tape.done.shape
            fits = (
                tape.obs.ndim == 3
                and tape.obs.shape[:2] == tape.action.shape[:2] == tape.reward.shape == tape.terminated.shape == steps
                and tape.final.shape == (np.count_nonzero(tape.done), tape.obs.shape[2])
                and tape.done.dtype == tape.terminated.dtype == bool
                and all(array.dtype.kind in "biuf" for array in vars(tape).values())
            )
            if not fits:
                raise BadRequest("its arrays do not fit together")
            return tape

    def save(self, path: Path) -> None:
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    def episodes(self, origin: Origin, actions: Space, each: np.ndarray | None = None) -> Episodes:
        """The whole episodes on the tape in the order of their ends; those that were still running are left out.

        Args:
            actions: the action space.
            each: `[B]`: only the first so many of each environment. Where the recording goes on until all have that
                many, short and long episodes come as often as they are played.

        Raises:
            BadRequest: there is none.
        """
        begun = np.zeros(self.done.shape[1], int)
        count = np.zeros(self.done.shape[1], int)
        pieces = []
        for (t, b), final in zip(np.argwhere(self.done), self.final, strict=True):
            if each is None or count[b] < each[b]:
                pieces.append((slice(begun[b], t + 1), b, final))
            begun[b] = t + 1
            count[b] += 1
        if not pieces:
            raise BadRequest("no episode came to its end")
        discrete = isinstance(actions, Discrete)
        bounds = {}
        if isinstance(actions, Box):
            low, high = (
                np.broadcast_to(np.asarray(bound, np.float32), actions.shape).copy()
                for bound in (actions.low, actions.high)
            )
            bounds = {"action_low": low, "action_high": high}
        return Episodes(
            obs=np.concatenate([part for rows, b, final in pieces for part in (self.obs[rows, b], final[None])]),
            action=np.concatenate([self.action[rows, b] for rows, b, _ in pieces]).astype(
                np.int32 if discrete else np.float32, copy=False
            ),
            reward=np.concatenate([self.reward[rows, b] for rows, b, _ in pieces]),
            terminated=np.array([self.terminated[rows.stop - 1, b] for rows, b, _ in pieces]),
            lengths=np.array([rows.stop - rows.start for rows, _, _ in pieces], np.int64),
            origin=origin,
            num_actions=actions.n if isinstance(actions, Discrete) else None,
            **cast(Any, bounds),
        )


def joined(parts: Sequence[Episodes], origin: Origin) -> Episodes:
    """Datasets of one environment, one after another."""
    arrays = ("obs", "action", "reward", "terminated", "lengths")
    return replace(
        parts[0],
        origin=origin,
        known=None,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )
