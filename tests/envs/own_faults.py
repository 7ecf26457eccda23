"""Environments that go wrong in the way that is asked for, of gymnasium and in JAX."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np

from engram.envs.base import Environment
from engram.envs.spaces import Box, Discrete


class Base(gymnasium.Env):
    """Takes one option, as what is written on top of another environment does."""

    def __init__(self, size=1):
        self.size = size


class Faulty(Base):
    """Four numbers, zeros but for the fault `what`, which comes with step `at` of every episode of ten steps."""

    def __init__(self, what="none", at=5, **more):
        super().__init__(**more)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.what, self.at, self.steps = what, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(5 if self.what == "opening" else 4), {}

    def step(self, action):
        self.steps += 1
        obs, reward = np.full(4, 0.5), 1.0
        if self.steps == self.at:
            if self.what == "shape":
                obs = np.zeros(5)
            elif self.what == "reward":
                reward = np.inf
            elif self.what == "raise":
                raise KeyError("a fault of the user's own")
            elif self.what == "stop":
                raise StopIteration("no more")
            else:
                obs[1] = {"nan": np.nan, "large": 1e20, "too large": 1e300, "none": 0.5}[self.what]
        return obs, reward, self.steps >= 10, False, {}


class Many(gymnasium.Env):
    """`actions` discrete actions, or two such numbers at once, whose sum is the reward; episodes of four steps."""

    def __init__(self, actions=2, pair=False):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        one = gymnasium.spaces.Discrete(actions)
        self.action_space = gymnasium.spaces.MultiDiscrete([actions, 2]) if pair else one
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(2, 0.5, np.float32), float(np.sum(action)), self.steps >= 4, False, {}


class Whole(gymnasium.Env):
    """Shows the whole number `value` from step 5 on, in an observation of `dtype`, which may lie in a dict."""

    def __init__(self, value=0, high=2**40, dtype: Any = "int64", nested=False):
        self.value, self.dtype, self.nested = value, dtype, nested
        box = gymnasium.spaces.Box(-min(high, np.iinfo(dtype).max), min(high, np.iinfo(dtype).max), (2,), dtype)
        self.observation_space = gymnasium.spaces.Dict({"a": box}) if nested else box
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        self.steps += 1
        return self._show(), 0.0, self.steps >= 10, False, {}

    def _show(self):
        shown = np.array([1, self.value if self.steps >= 5 else 0], self.dtype)
        return {"a": shown} if self.nested else shown


@dataclass(frozen=True)
class InJax(Environment):
    """Episodes of ten steps. In step `at` a number of that `size` stands in the observation, or for the reward."""

    what: str = "observation"
    size: str = "nan"
    at: int = 5

    def reset(self, key, params):
        return jnp.zeros(3), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        t = state + 1
        x = jnp.where(t == self.at, {"nan": jnp.nan, "inf": -jnp.inf, "huge": 1e20, "large": 1e8}[self.size], 0.5)
        obs = jnp.full(3, 0.5).at[1].set(x if self.what == "observation" else 0.5)
        return obs, t, x if self.what == "reward" else jnp.ones(()), jnp.zeros((), bool), t >= 10, {}

    def observation_space(self, params):
        return Box(-1.0, 1.0, (3,))

    def action_space(self, params):
        return Discrete(2)

    def max_steps(self, params):
        return 10


gymnasium.register("Faulty-v0", Faulty)
gymnasium.register("Whole-v0", Whole)  # type: ignore[arg-type]
gymnasium.register("Many-v0", "tests.envs.own_faults:Many")
