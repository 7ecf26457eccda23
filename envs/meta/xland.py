"""XLand-MiniGrid (Nikulin et al. 2023, arXiv 2312.12044) as a family: the task is a ruleset, which is not seen.

A ruleset is a goal (hold a thing, be beside it, bring two together), rules by which things turn into others, and the
things that lie about when an episode opens. The environment is that of the package `xminigrid`. The rulesets published
for it are files to download, so here they are drawn, from `distributions/xland.json`, much as its generator does it:
what the goal is about is made by a rule, what that rule needs by another, and so on. Its rules that lead nowhere are
left out, as are things that cannot be carried.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Info
from engram.envs.extras import needs
from engram.envs.meta.splits import check_split, drawn_from, read
from engram.envs.meta.trials import Family
from engram.envs.spaces import Discrete, MultiDiscrete, uniform_below
from engram.errors import BadRequest

SHAPES = {"ball": 3, "square": 4, "pyramid": 5, "key": 7, "hex": 11, "star": 12}
COLOURS = {
    "red": 1,
    "green": 2,
    "blue": 3,
    "purple": 4,
    "yellow": 5,
    "grey": 6,
    "orange": 8,
    "white": 9,
    "brown": 10,
    "pink": 11,
}
"""The package's codes of what can be carried. Other codes stand for floors, walls and doors."""
ALL = np.array([(shape, colour) for shape in SHAPES.values() for colour in COLOURS.values()], np.int32)
GOALS = np.array([1, 3, 11, 12, 13, 14, 4, 7, 8, 9, 10], np.int32)
"""The package's codes: hold a thing; be beside it; be where it is above, right, below, left; two things beside each
other; the second above the first, right of it, below, left."""
RULES = np.array([1, 2, 8, 9, 10, 11, 3, 4, 5, 6, 7], np.int32)
"""The codes of the rules with these conditions."""
ABOUT_ONE = 6
"""So many of both are about one thing, the others about two."""


@struct.dataclass
class Ruleset:
    """In the package's encoding, uint8: a thing is its shape and its colour, and zeros stand for none."""

    goal: jax.Array
    """`[5]`: code, thing, thing or none."""
    rules: jax.Array
    """`[rules, 7]`: code, thing and what it turns into, or code, two things and what they turn into; zeros: no rule."""
    init_tiles: jax.Array
    """`[objects, 2]`: what lies about when an episode opens."""


@dataclass(frozen=True)
class XLand(Family):
    """Rulesets of the distribution `rulesets` in the package's environment `XLand-MiniGrid-<layout>`.

    Observation: shape and colour of each of 5 x 5 cells, in which the agent stands at the middle of the last row and
    which walls do not hide, and the direction that it faces: MultiDiscrete. What it carries is not seen. Action:
    Discrete(6), ahead, turn right, turn left, pick up, put down, open. The goal terminates an episode and pays 1, less
    0.9 times the share of `horizon` that it took; the horizon truncates. `info`: `success`, the goal was reached.
    """

    rulesets: str = "small"
    layout: str = "R1-9x9"
    """Rooms and size: R1, R2 or R4, 9x9 to 17x17, or others that the package has."""
    horizon: int = 0
    """Steps of an inner episode (0: the package's, three times the number of cells)."""

    def __post_init__(self):
        known = read("xland", "rulesets")
        if self.rulesets not in known:
            raise BadRequest(f"rulesets must be one of {', '.join(known)}, got {self.rulesets!r}")
        if self.horizon < 0:
            raise BadRequest(f"horizon must not be negative, got {self.horizon}")
        _ = self.made  # here and not when it is first asked for: a missing package is told at once

    @cached_property
    def made(self) -> tuple[Any, Any]:
        """The package's environment, and its parameters with no ruleset. Raises BadRequest for unknown layouts."""
        package, prefix = needs("xminigrid", "xland", "meta/XLand"), "XLand-MiniGrid-"
        layouts = [name.removeprefix(prefix) for name in package.registered_environments() if name.startswith(prefix)]
        if self.layout not in layouts:
            raise BadRequest(f"layout must be one of {', '.join(layouts)}, got {self.layout!r}")
        return package.make(prefix + self.layout, **({"max_steps": self.horizon} if self.horizon else {}))

    def draw(self, key: jax.Array, split: str) -> Ruleset:
        check_split(split)
        keys = jax.random.split(key, 5)
        distributions = read("xland", "rulesets")[self.rulesets]
        least, most = distributions[split]["rules"]
        # All splits have arrays of one shape.
        rows = max(distribution["rules"][1] for distribution in distributions.values())
        distractors = distributions[split]["distractors"]

        goals = drawn_from("xland", "goals", split)
        pool = np.array([(SHAPES[shape], COLOURS[colour]) for shape in goals for colour in goals[shape]], np.int32)
        about = jax.random.choice(keys[0], jnp.asarray(pool), (2,), replace=False)
        # The others in random order, the two that the goal is about last.
        used = jnp.any(jnp.all(ALL[:, None] == about, axis=-1), axis=-1)
        others = jnp.asarray(ALL)[jnp.argsort(jax.random.uniform(keys[1], (len(ALL),)) + used)]
        chain, seconds, distracting = others[:rows], others[rows : 2 * rows], others[2 * rows : 2 * rows + distractors]

        kind = uniform_below(keys[2], len(GOALS))
        second = jnp.where(kind < ABOUT_ONE, 0, about[1])
        goal = jnp.concatenate([jnp.asarray(GOALS)[kind, None], about[0], second])

        # Rule i makes made[i] of made[i + 1], or of made[i + 1] and seconds[i]; what the last one needs is there.
        made = jnp.concatenate([about[:1], chain])
        count = least + uniform_below(keys[3], most - least + 1)
        kinds = uniform_below(keys[4], len(RULES), (rows,))
        one, exists = (kinds < ABOUT_ONE)[:, None], (jnp.arange(rows) < count)[:, None]
        code = jnp.asarray(RULES)[kinds, None]
        needs_one = jnp.concatenate([code, made[1:], made[:-1], jnp.zeros((rows, 2), jnp.int32)], axis=1)
        needs_two = jnp.concatenate([code, made[1:], seconds, made[:-1]], axis=1)
        rules = jnp.where(exists, jnp.where(one, needs_one, needs_two), 0)
        objects = [made[count][None], second[None], jnp.where(exists & ~one, seconds, 0), distracting]
        return Ruleset(*(x.astype(jnp.uint8) for x in (goal, rules, jnp.concatenate(objects))))

    def parameters(self, task: Ruleset) -> Any:
        """The package's parameters with the ruleset of a task."""
        params = self.made[1]
        return params.replace(
            ruleset=params.ruleset.replace(goal=task.goal, rules=task.rules, init_tiles=task.init_tiles)
        )

    def observe(self, timestep: Any) -> jax.Array:
        cells = timestep.observation.reshape(-1)
        return jnp.append(cells, timestep.state.agent.direction).astype(jnp.int32)

    def reset(self, key: jax.Array, params: Ruleset) -> tuple[jax.Array, Any]:
        timestep = self.made[0].reset(self.parameters(params), key)
        return self.observe(timestep), timestep

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Ruleset
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, Info]:
        # The package keeps goal and rules in its state, but a task can change within an episode.
        inner = state.state.replace(goal_encoding=params.goal, rule_encoding=params.rules)
        timestep = self.made[0].step(self.parameters(params), state.replace(state=inner), action)
        reached = timestep.discount == 0.0
        truncated = inner.step_num + 1 >= self.max_steps(params)
        return self.observe(timestep), timestep, timestep.reward, reached, truncated, {"success": reached}

    def observation_space(self, params: Any) -> MultiDiscrete:
        return MultiDiscrete((13, 12) * self.made[1].view_size ** 2 + (4,))

    def action_space(self, params: Any) -> Discrete:
        return Discrete(6)

    def max_steps(self, params: Any) -> int:
        return self.made[1].max_steps

    def render(self, state: Any, params: Any) -> np.ndarray:
        return np.asarray(self.made[0].render(self.made[1], state), np.uint8)
