"""Environments that say which actions are allowed: one of gymnasium's, which takes no other, and one in JAX."""

from dataclasses import dataclass

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Environment
from engram.envs.spaces import Box, Dict, Discrete, MultiDiscrete

START = 2
ACTIONS = {"discrete": gymnasium.spaces.Discrete(5, start=START), "multi": gymnasium.spaces.MultiDiscrete([3, 2])}
SIZES = {"discrete": (5,), "multi": (3, 2)}


class Strict(gymnasium.Env):
    """Episodes of `length` steps, in which masks are drawn afresh; one that ended allows nothing. An action that is
    not allowed raises. Pays 1 for the last of the allowed actions, in each component.

    Options:
        give: "info" or "dict", where the mask is; "tuple" in `info` with a mask for each component.
        fault: what is wrong at step 3, or at the reset.
    """

    def __init__(self, give="info", of="discrete", length=7, fault="none"):
        self.give, self.sizes, self.length, self.fault = give, SIZES[of], length, fault
        self.action_space = ACTIONS[of]
        seen = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        mask = gymnasium.spaces.Box(0, 1, (sum(self.sizes),), np.int8)
        self.observation_space = (
            gymnasium.spaces.Dict({"observation": seen, "action_mask": mask}) if give == "dict" else seen
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show()

    def step(self, action):
        chosen = np.ravel(action) - (START if len(self.sizes) == 1 else 0)
        assert all(mask[i] for mask, i in zip(self.masks, chosen, strict=True)), f"{action} is forbidden"
        best = [np.flatnonzero(mask)[-1] for mask in self.masks]
        self.steps += 1
        obs, info = self._show()
        return obs, float(np.mean(chosen == best)), self.steps >= self.length, False, info

    def _show(self):
        self.masks = [self.np_random.random(n) < 0.5 for n in self.sizes]
        for mask in self.masks:
            mask[self.np_random.integers(len(mask))] = True
        if self.fault == "late":
            self.masks[0][:] = True
        if self.steps == self.length or (self.fault == "stuck" and self.steps == 3):
            self.masks[-1][:] = False
        mask = np.concatenate(self.masks)
        if self.fault == "size" and self.steps == 3:
            mask = mask[1:]
        seen = np.full(2, self.steps / self.length, np.float32)
        if self.give == "dict":
            return {"observation": seen, "action_mask": mask.astype(np.int8)}, {}
        missing = (self.fault == "late" and self.steps == 0) or (self.fault == "missing" and self.steps == 3)
        given = tuple(self.masks) if self.give == "tuple" else mask
        return seen, {} if missing else {"action_mask": given}


class Loose(Strict):
    """Takes what is forbidden too."""

    def step(self, action):
        for mask in self.masks:
            mask[:] = True
        return super().step(action)


gymnasium.register("Strict-v0", "tests.envs.own_masks:Strict")
gymnasium.register("Loose-v0", "tests.envs.own_masks:Loose")


@struct.dataclass
class RankedState:
    mask: jax.Array
    time: jax.Array


@dataclass(frozen=True)
class Ranked(Environment):
    """As `Strict`, in JAX: episodes of `length` steps that show nothing. A step pays 1 / length for the last of the
    allowed actions (in the mean of the components), and -1000 for one that is forbidden."""

    sizes: tuple[int, ...] = (6,)
    length: int = 8
    shown: bool = True

    cheap_reset = True

    def _draw(self, key, time):
        free, one = jax.random.split(key)
        masks = []
        for i, n in enumerate(self.sizes):
            sure = jax.random.randint(jax.random.fold_in(one, i), (), 0, n)
            masks.append(jax.random.bernoulli(jax.random.fold_in(free, i), 0.4, (n,)).at[sure].set(True))
        return RankedState(jnp.concatenate(masks), time)

    def _observe(self, state):
        seen = jnp.ones(1)
        return {"action_mask": state.mask.astype(jnp.uint8), "observation": seen} if self.shown else seen

    def reset(self, key, params):
        state = self._draw(key, jnp.zeros((), jnp.int32))
        return self._observe(state), state

    def step(self, key, state, action, params):
        ends = np.cumsum((0, *self.sizes))
        reward = jnp.zeros(())
        for i, n in enumerate(self.sizes):
            mask, chosen = state.mask[ends[i] : ends[i + 1]], jnp.atleast_1d(action)[i]
            best = n - 1 - jnp.argmax(mask[::-1])
            reward += jnp.where(mask[chosen], (chosen == best) / (len(self.sizes) * self.length), -1000.0)
        state = self._draw(key, state.time + 1)
        return self._observe(state), state, reward, state.time == self.length, jnp.bool_(False), {}

    def observation_space(self, params):
        seen = Box(0.0, 1.0, (1,))
        mask = Box(0, 1, (sum(self.sizes),), "uint8")
        return Dict((("action_mask", mask), ("observation", seen))) if self.shown else seen

    def action_space(self, params):
        return Discrete(self.sizes[0]) if len(self.sizes) == 1 else MultiDiscrete(self.sizes)

    def max_steps(self, params):
        return self.length
