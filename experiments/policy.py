"""A trained policy that acts one step at a time, for callers with an environment of their own."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.common.environments import is_emulator, make_vector
from engram.agents.common.spec import Build
from engram.configs import store
from engram.envs.base import VectorEnvironment
from engram.envs.external import External, Seen, space_from_json, space_to_json
from engram.envs.spaces import MASK, REST, Space, allows_nothing
from engram.envs.wrappers import ActionMask, Wrapper, flat_size
from engram.errors import BadRequest
from engram.regular_files import read_json
from engram.training.folder import write_atomically
from engram.training.programs import AFTERWARDS, jit

if TYPE_CHECKING:
    from engram.experiments.runs import Run

SPACES = "spaces.json"
"""File in a run folder with the spaces of its emulators, which then need not be opened to know them."""


def write_spaces(folder: Path, env: VectorEnvironment) -> None:
    """Notes the spaces of the emulators underneath `env` in a run folder."""
    while isinstance(env, Wrapper):
        env = env.env
    params = env.default_params
    spaces = {"observation": env.observation_space(params), "action": env.action_space(params)}
    text = json.dumps({name: space_to_json(space) for name, space in spaces.items()}, indent=2)
    write_atomically(folder / SPACES, text + "\n")


def spaces_of(run: "Run", env_id: str, time_limit: int) -> tuple[tuple[Space, Space], int | None]:
    """Spaces of an observation and of an action of a run's environment, and its limit of steps."""
    path = run.folder / SPACES
    if is_emulator(env_id) and path.exists():
        try:
            stored = read_json(path)
            return (space_from_json(stored["observation"]), space_from_json(stored["action"])), None
        except (KeyError, TypeError, BadRequest):
            raise BadRequest(f"{path} is damaged: remove it, and the emulator is opened instead") from None
    env = make_vector(env_id, 2, time_limit=time_limit)  # an emulator is opened only for runs without that file
    params = env.default_params
    try:
        return (env.observation_space(params), env.action_space(params)), env.max_steps(params)
    finally:
        env.close()


def offscreen(run: "Run") -> Any:
    """The agent of a run in environments that somebody else steps (see `engram.envs.external`), one in evaluations."""

    def external(env_id: str, num_envs: int, *, time_limit: int = 0, **_: Any) -> External:
        spaces, limit = spaces_of(run, env_id, time_limit)
        return External(env_id, num_envs, spaces, limit)

    return run.build(Build(make_vector=external))


@dataclass
class Policy:
    """A trained policy and its memory. Call it with one observation after the other.

    Attributes:
        info: what can be looked at after a call: `memory`, the state of the memory, and `value` where there is one.
    """

    run: "Run"
    agent: Any = dataclasses.field(repr=False)
    state: Any = dataclasses.field(repr=False)
    key: jax.Array = dataclasses.field(repr=False)
    info: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    carry: Any = dataclasses.field(default=None, repr=False)
    action: Any = dataclasses.field(default=None, repr=False)
    steps: int = 0

    @classmethod
    def of(cls, run: "Run", seed: int, greedy: bool | None, key: int) -> "Policy":
        """See `engram.experiments.runs.Run.policy`."""
        spec = run.spec
        if spec.play is None:
            raise BadRequest(f"{run.config.agent} learns while it acts and has no policy to act with afterwards")
        if spec.acting is None:
            raise BadRequest(f"{run.config.agent} does not declare how it acts one step at a time")
        seed, greedy = store.convert(int, seed, "seed"), store.convert(bool | None, greedy, "greedy")
        if not 0 <= seed < run.config.seeds:
            raise BadRequest(f"{run.folder} has seeds 0 to {run.config.seeds - 1}, not {seed}")
        run = dataclasses.replace(run, config=spec.play.configure(run.config, spec.play.least, greedy))
        learner = offscreen(run)
        agent, states = spec.play.player(learner, run.restore(learner)[0])
        state = jax.tree.map(lambda x: x[seed], states)
        return cls(run, agent, state, jax.random.fold_in(jax.random.key(key), AFTERWARDS))

    def __post_init__(self):
        acting = self.run.spec.acting
        assert acting is not None
        self._start = jit(partial(acting.start, self.agent))
        self._observe = jit(partial(acting.observe, self.agent))
        self._act = jit(partial(acting.act, self.agent))
        env: Any = getattr(self.agent, "eval_env", self.agent.env)
        self._masks = None
        while not isinstance(env, External):
            self._masks = env.used if isinstance(env, ActionMask) else self._masks
            env = env.env
        self.observation_space, self.action_space = env.spaces
        self._example = jax.eval_shape(self.observation_space.sample, jax.random.key(0))

    def reset(self) -> None:
        """Forgets the episode: the next observation opens a new one."""
        self.carry, self.action, self.info = None, None, {}

    def __call__(self, obs: Any, reward: float = 0.0, action_mask: Any = None) -> Any:
        """The action for `obs`, an observation without batch axis as the environment gives it.

        Args:
            reward: what the action before earned; matters only to agents that see it.
            action_mask: which actions are allowed, where the environment says so and `obs` does not.

        Returns:
            the action as a NumPy array, an int where the actions are integers.

        Raises:
            BadRequest: `obs` is not in the observation space, or it is not known which actions are allowed.
        """
        seen = self._seen(self._with_mask(obs, action_mask), reward)
        self.steps += 1
        observe_key, act_key = jax.random.split(jax.random.fold_in(self.key, self.steps))
        if self.carry is None:
            self.carry = self._start(self.state, seen, observe_key)
        else:
            self.carry = self._observe(self.state, self.carry, self.action, seen, observe_key)
        self.carry, self.action, info = self._act(self.state, self.carry, act_key)
        self.info = jax.tree.map(lambda x: np.asarray(x)[0] if np.ndim(x) else np.asarray(x), info)
        action = jax.tree.map(lambda x: np.asarray(x)[0], self.action)
        is_integer = isinstance(action, np.generic | np.ndarray) and not action.shape and action.dtype.kind in "iu"
        return int(action) if is_integer else action

    @property
    def memory(self) -> Any:
        """State of the memory after the last call, leaves without batch axis; None before the first."""
        return self.info.get("memory")

    @property
    def value(self) -> float | None:
        """Value of the last observation, where the agent has one."""
        value = self.info.get("value")
        return None if value is None else float(value)

    def _with_mask(self, obs: Any, mask: Any) -> Any:
        """`obs` with the part that says which actions are allowed, where the environment has one."""
        if self._masks is None:
            if mask is not None:
                raise BadRequest("the environment of this policy gives no action_mask, and the policy heeds none")
            return obs
        is_whole = isinstance(obs, Mapping) and MASK in obs
        if mask is None and self._masks and not is_whole:
            raise BadRequest("this policy must be told which actions are allowed: policy(obs, action_mask=...)")
        if not is_whole or mask is not None:
            size = flat_size(self.action_space)
            given: Any = np.ones(size) if mask is None else mask
            parts = given if isinstance(given, tuple) else (given,)
            flat = np.concatenate([np.ravel(part) for part in parts]) != 0
            if flat.shape != (size,):
                raise BadRequest(f"an action_mask has {size} entries here, got {flat.size}")
            leaves, structure = jax.tree.flatten(self._example[MASK])
            ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
            pieces = [x.reshape(leaf.shape) for x, leaf in zip(np.split(flat, ends), leaves, strict=True)]
            others = obs if isinstance(obs, Mapping) else {REST: obs}
            obs = {**others, MASK: jax.tree.unflatten(structure, pieces)}
        flat = np.concatenate([np.ravel(part) for part in jax.tree.leaves(obs[MASK])])
        if self._masks and allows_nothing(self.action_space, flat[None]).any():
            raise BadRequest("this action_mask allows no action")
        return obs

    def _seen(self, obs: Any, reward: Any) -> Seen:
        example = self._example

        def leaf(shape, value):
            try:
                array = np.asarray(value, shape.dtype)
            except (TypeError, ValueError, OverflowError):
                raise BadRequest(f"an observation holds {shape.dtype} numbers here, got {value!r}") from None
            if array.shape != shape.shape:
                raise BadRequest(f"an observation has shape {shape.shape} here, got {array.shape}")
            return jnp.asarray(array)[None]

        reward = jnp.full(1, reward, jnp.float32)
        if isinstance(example, jax.ShapeDtypeStruct):
            return Seen(leaf(example, obs), reward)
        if jax.tree.structure(example) != jax.tree.structure(obs):
            raise BadRequest("the observation has not the structure of the observation space")
        return Seen(jax.tree.map(leaf, example, obs), reward)
