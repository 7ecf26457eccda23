"""Our POPGym environments and the popgym package, step by step on the same hidden content and actions.

`python -m tests.envs.popgym_conformance --episodes 200` runs every family and level and prints a table; the exit code
is 1 when any observation, reward (1e-6), flag or length differs. `CHECKS` maps a family to its check.

For games that hide their content at the reset (`Game`): the package resets with a seed, its hidden content is read,
actions are fixed from it in advance, our side opens its episodes with `state_from` and runs all of them in one compiled
`vmap(scan)`, and the package then plays the same actions one by one.
"""

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import popgym  # noqa: F401  (registers its ids)
import pytest

from engram.envs.base import Environment
from engram.envs.popgym import POPGYM
from engram.envs.spaces import Discrete, MultiDiscrete

LEVELS = ("Easy", "Medium", "Hard")


def easy_first(names: Iterable[str]) -> list[Any]:
    """Parameters of a test, `names` that are or end in a level: those beyond Easy are slow."""
    return [name if name.endswith("Easy") else pytest.param(name, marks=pytest.mark.slow) for name in names]


REWARD_TOLERANCE = 1e-6


@dataclass
class Report:
    """What one environment id did: counts of what was compared, and the differences found."""

    name: str
    episodes: int = 0
    steps: int = 0
    terminated: int = 0
    truncated: int = 0
    both: int = 0
    best_return: float = -np.inf
    mismatches: list[str] = field(default_factory=list)


Check = Callable[[str, Environment, int, int], Report]
"""`check(name, environment, episodes, seed)`; the environment is ours, or a mutant of it."""


def reference(name: str) -> Any:
    """The package's own environment, unwrapped."""
    return gymnasium.make(f"popgym-{name}-v0", disable_env_checker=True).unwrapped


def flat(obs: Any) -> np.ndarray:
    """An observation of the package as one flat vector."""
    parts = obs if isinstance(obs, tuple) else (obs,)
    return np.concatenate([np.ravel(part) for part in parts])


# ------------------------------------------------------------------------------------------------------------- games


@dataclass(frozen=True)
class Game:
    """How to drive one family."""

    content: Callable[[Any], tuple[np.ndarray, ...]]
    """Reads the arguments of our `state_from` from a package environment that was just reset."""
    informed: Callable[[Any, tuple[np.ndarray, ...], np.random.Generator], np.ndarray]
    """Perfect actions `(at most max_steps, ...)` from the package environment and its hidden content."""
    script: Callable[[Any, jax.Array], None] = lambda env, keys: None
    """Feeds the package environment the random numbers that our steps draw from `keys`."""


def random_actions(space: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=count)
    assert isinstance(space, MultiDiscrete)
    return rng.integers(space.nvec, size=(count, len(space.nvec)))


def episode_actions(
    ours: Environment, informed: np.ndarray, random_share: float, rng: np.random.Generator
) -> np.ndarray:
    """`(max_steps, ...)` int32: the informed actions, each replaced by a random one with this probability."""
    length = ours.max_steps(ours.default_params)
    assert length is not None
    actions = random_actions(ours.action_space(ours.default_params), length, rng)
    informed = informed[:length]
    keep = np.flatnonzero(rng.random(len(informed)) >= random_share)
    actions[keep] = informed[keep]
    return actions.astype(np.int32)


def play_ours(ours: Any, contents: tuple[np.ndarray, ...], actions: np.ndarray, keys: jax.Array) -> tuple:
    """All episodes at once, up to `max_steps`: obs `(B, T + 1, D)`, then reward, terminated, truncated `(B, T)`."""
    params = ours.default_params

    def episode(content: tuple[jax.Array, ...], actions: jax.Array, keys: jax.Array) -> tuple:
        first, state = ours.state_from(*content)

        def step(state: Any, inputs: tuple) -> tuple:
            action, key = inputs
            obs, state, reward, terminated, truncated, _ = ours.step(key, state, action, params)
            return state, (obs, reward, terminated, truncated)

        _, (obs, *rest) = jax.lax.scan(step, state, (actions, keys))
        rows = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), first, obs)
        return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(rows)], axis=1), *rest

    return jax.device_get(jax.jit(jax.vmap(episode))(contents, actions, keys))


def check_game(game: Game, name: str, ours: Environment, episodes: int, seed: int) -> Report:
    """Plays `episodes` episodes on both sides: in turn a perfect one, a random one, a mixture."""
    rng = np.random.default_rng(seed)
    report = Report(name)
    theirs = reference(name)
    seeds = [int(s) for s in rng.integers(2**31, size=episodes)]
    contents, actions = [], []
    for i in range(episodes):
        theirs.reset(seed=seeds[i])
        contents.append(game.content(theirs))
        informed = game.informed(theirs, contents[-1], rng)
        actions.append(episode_actions(ours, informed, (0.0, 1.0, 0.15)[i % 3], rng))
    actions = np.stack(actions)
    keys = jax.random.split(jax.random.key(seed), actions.shape[:2])
    stacked = tuple(np.stack(part) for part in zip(*contents, strict=True))
    obs, reward, terminated, truncated = play_ours(ours, stacked, actions, keys)

    for i in range(episodes):
        first, _ = theirs.reset(seed=seeds[i])
        game.script(theirs, keys[i])
        if not np.array_equal(obs[i, 0], flat(first)):
            report.mismatches.append(f"episode {i}: first observation {obs[i, 0]}, popgym has {first}")
        report.episodes += 1
        total = 0.0
        for t, action in enumerate(actions[i]):
            o, r, te, tr, _ = theirs.step(action if action.ndim else int(action))
            report.steps += 1
            total += float(r)
            found = {
                "observation": (obs[i, t + 1], o, np.array_equal(obs[i, t + 1], flat(o))),
                "reward": (reward[i, t], r, abs(reward[i, t] - r) <= REWARD_TOLERANCE),
                "terminated": (terminated[i, t], te, terminated[i, t] == te),
                "truncated": (truncated[i, t], tr, truncated[i, t] == tr),
            }
            wrong = {what: pair for what, (*pair, equal) in found.items() if not equal}
            for what, (mine, other) in wrong.items():
                report.mismatches.append(f"episode {i}, step {t}: {what} {mine}, popgym has {other}")
            if te or tr or wrong:
                report.terminated += bool(te)
                report.truncated += bool(tr)
                report.both += bool(te and tr)
                break
        else:
            report.mismatches.append(f"episode {i}: popgym goes on after max_steps = {len(actions[i])}")
        report.best_return = max(report.best_return, total)
    return report


# ------------------------------------------------------------------------------------------ hidden content and answers


def dealt(deck: np.ndarray) -> np.ndarray:
    """The deck in the order of dealing."""
    return deck[::-1]


def deck_content(env: Any) -> tuple[np.ndarray, ...]:
    return (env.deck.idx.astype(np.int32),)


def first_suit(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    suits = env.deck.suits_idx[dealt(content[0])]
    return np.full(len(suits) - 1, suits[0])


def previous_suits(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    suits = env.deck.suits_idx[dealt(content[0])]
    return np.concatenate([rng.integers(4, size=env.k - 1), suits[: len(suits) - env.k]])


def suits_backwards(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    suits = env.deck.suits_idx[dealt(content[0])]
    return np.concatenate([rng.integers(4, size=len(suits) - 1), suits[::-1]])


def counts_so_far(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    values, queries = (env.deck_idx_type[dealt(deck)] for deck in content)
    return np.array([np.sum(values[: t + 1] == queries[t]) for t in range(len(values) - 1)])


def next_is_lower(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    return (np.diff(env.deck.ranks_idx[dealt(content[0])]) <= 0).astype(int)


def pairs(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    """All pairs in turn; half of the time after so many that do not match that the last pair falls on the limit."""
    kinds = env.deck_idx_type[content[0]]
    found = [rng.permutation(np.flatnonzero(kinds == kind)).reshape(-1, 2) for kind in np.unique(kinds)]
    found = rng.permutation(np.concatenate(found)).ravel()
    if rng.random() < 0.5:
        return found
    mismatch = [0, np.flatnonzero(kinds != kinds[0])[0]]
    return np.concatenate([np.tile(mismatch, (env.episode_length - len(found)) // 2), found])


def clear_cells(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    """All cells without a mine; half of the time some are clicked twice, so that the limit ends the episode."""
    cells = rng.permutation(np.argwhere(~content[0]))
    if rng.random() < 0.5:
        return cells
    return np.repeat(cells, rng.integers(1, 3, size=len(cells)), axis=0)


def ships(env: Any, content: tuple, rng: np.random.Generator) -> np.ndarray:
    """Every cell, the ships first; half of the time the ships last, so that the winning shot falls on the limit."""
    hits, misses = rng.permutation(np.argwhere(content[0])), rng.permutation(np.argwhere(~content[0]))
    return np.concatenate([hits, misses] if rng.random() < 0.5 else [misses, hits])


class ScriptedPayouts:
    """Stands in for a bandit's generator after its reset: `random()` returns `uniform(key)` of each key in turn."""

    def __init__(self, keys: jax.Array):
        self._values = iter(np.asarray(jax.vmap(jax.random.uniform)(keys)).tolist())

    def random(self) -> float:
        return next(self._values)


def script_payouts(env: Any, keys: jax.Array) -> None:
    env._np_random = ScriptedPayouts(keys)


GAMES: dict[str, Game] = {
    "RepeatFirst": Game(deck_content, first_suit),
    "RepeatPrevious": Game(deck_content, previous_suits),
    "Autoencode": Game(deck_content, suits_backwards),
    "CountRecall": Game(
        lambda env: (env.value_deck.idx.astype(np.int32), env.query_deck.idx.astype(np.int32)), counts_so_far
    ),
    "HigherLower": Game(deck_content, next_is_lower),
    "Concentration": Game(deck_content, pairs),
    "MineSweeper": Game(lambda env: (env.hidden_grid == 1,), clear_cells),
    "Battleship": Game(lambda env: (env.board == 1,), ships),
    "MultiarmedBandit": Game(
        lambda env: (env.bandits.copy(),),
        lambda env, content, rng: np.full(env.max_episode_length, content[0].argmax()),
        script_payouts,
    ),
}

CHECKS: dict[str, Check] = {family: partial(check_game, game) for family, game in GAMES.items()}


# -------------------------------------------------------------------------------------------------------------- table


def all_checks() -> dict[str, Check]:
    """The games above and, where that module exists, the control and navigation families."""
    control = "tests.envs.popgym_conformance_control"
    if importlib.util.find_spec(control) is None:
        return CHECKS
    return CHECKS | importlib.import_module(control).CHECKS


def main() -> int:
    checks = all_checks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="episodes per environment id")
    parser.add_argument("--families", nargs="+", choices=sorted(checks), default=list(checks))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{'id':32}{'episodes':>9}{'steps':>9}{'term.':>7}{'trunc.':>7}{'both':>6}{'best':>10}{'differ':>8}{'s':>7}")
    total = 0
    for family in args.families:
        for level in LEVELS:
            name, start = family + level, time.perf_counter()
            report = checks[family](name, POPGYM[name](), args.episodes, args.seed)
            total += len(report.mismatches)
            print(
                f"{name:32}{report.episodes:9}{report.steps:9}{report.terminated:7}{report.truncated:7}{report.both:6}"
                f"{report.best_return:10.6f}{len(report.mismatches):8}{time.perf_counter() - start:7.1f}",
                flush=True,
            )
            for line in report.mismatches[:3]:
                print("    " + line)
    print(f"{total} differences")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
