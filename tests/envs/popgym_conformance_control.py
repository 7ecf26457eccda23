"""CartPole, Pendulum and Labyrinth families against the popgym package, step by step. Run by `popgym_conformance`.

The package plays first and everything it drew is recorded: initial physics, observation noise (through a logging
generator), mazes. Our environment then makes the very same transitions, all at once.

Control: popgym computes in float64. After every step its state is rounded to float32, so both sides start the next step
from identical numbers, and each single step is compared at `CONTROL_TOLERANCE`, flags exactly. A fall could come out
differently only where popgym's state is within about 1e-8 of a failure threshold; that would count as a difference.
Labyrinths: whole episodes, everything but the reward exactly.
"""

import math
import random
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from engram.envs.popgym.cartpole import THETA_THRESHOLD, X_THRESHOLD
from engram.envs.popgym.labyrinth import EPISODE_LENGTH, MOVES, OBSTACLE
from tests.envs.popgym_conformance import REWARD_TOLERANCE, Check, Report, reference

CONTROL_TOLERANCE = 2e-5
"""On one step's observation and state: the angle of a pendulum spun for a whole episode, 80 rad, has a float32 spacing
of 8e-6."""


class LoggingGenerator:
    """Stands in for the package's generator: draws from its own, seeded one and keeps every normal draw."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._normals: list[np.ndarray] = []

    def uniform(self, *args: Any, **kwargs: Any) -> Any:
        return self._generator.uniform(*args, **kwargs)

    def normal(self, *args: Any, **kwargs: Any) -> np.ndarray:
        self._normals.append(self._generator.normal(*args, **kwargs))
        return self._normals[-1]

    def take_normal(self) -> np.ndarray:
        """The only draw since the last call, float32[2]; zero when there was none."""
        (draw,) = self._normals or [np.zeros(2)]
        self._normals.clear()
        return draw.astype(np.float32)


@contextmanager
def global_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators, which mazelib draws from, and puts their state back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def stack(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def count_episode(report: Report, rows: list[dict[str, Any]]) -> None:
    terminated, truncated = bool(rows[-1]["terminated"]), bool(rows[-1]["truncated"])
    report.episodes += 1
    report.steps += len(rows)
    report.terminated += terminated
    report.truncated += truncated
    report.both += terminated and truncated
    report.best_return = max(report.best_return, sum(float(row["reward"]) for row in rows))


def compare(report: Report, what: str, ours: Any, theirs: Any, tolerance: float = 0.0) -> None:
    """One line for each row where `ours` and `theirs` differ by more than `tolerance` (NaN always differs)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        report.mismatches.append(f"{what}: shape {ours.shape}, popgym has {theirs.shape}")
        return
    equal = (np.abs(ours - theirs) <= tolerance).reshape(len(ours), -1).all(axis=1)
    for row in np.flatnonzero(~equal):
        report.mismatches.append(f"{what} {row}: {ours[row]}, popgym has {theirs[row]}")


# ------------------------------------------------------------------------------------------------ CartPole, Pendulum


BALANCE = np.array([0.1, 0.3, 1.0, 0.5])
"""Pushing right iff `physics @ BALANCE > 0` keeps the pole up and the cart on its track for a whole episode."""


def swing_up_torque(physics: np.ndarray) -> np.ndarray:
    """Pumps energy into a hanging pendulum and holds an upright one."""
    theta, theta_dot = math.remainder(physics[0], 2 * math.pi), physics[1]
    torque = -8 * theta - 2 * theta_dot if math.cos(theta) > 0.9 else math.copysign(2, theta_dot)
    return np.array([torque], np.float32)


def about_to_fall(rng: np.random.Generator) -> np.ndarray:
    """A CartPole state close to a failure threshold and mostly on its way out, on any of the four sides."""
    speed = rng.uniform(-0.5, 2.0)
    state = [0, 0, THETA_THRESHOLD - 0.02, speed] if rng.random() < 0.5 else [X_THRESHOLD - 0.03, speed, 0, 0]
    return (rng.choice([-1, 1]) * np.array(state)).astype(np.float32)


def play_control(theirs: Any, episodes: int, seed: int, report: Report) -> tuple[dict, dict]:
    """The package's resets and steps as stacked arrays.

    Three kinds of episodes in turn: random, informed, and random ones that begin one to four steps before the limit, in
    CartPole about to fall, so that falls and limits coincide.
    """
    rng = np.random.default_rng(seed)
    generator = theirs._np_random = LoggingGenerator(seed + 1)
    cartpole = hasattr(theirs, "x_threshold")
    resets, steps = [], []
    for episode in range(episodes):
        random_policy, late = episode % 3 != 1, episode % 3 == 2
        obs, _ = theirs.reset()
        physics = np.asarray(theirs.state, np.float32)
        resets.append({"physics": physics, "noise": generator.take_normal(), "obs": obs})
        if late:
            theirs.num_steps = theirs.max_episode_length - int(rng.integers(1, 5))
            physics = about_to_fall(rng) if cartpole else physics
        rows: list[dict[str, Any]] = []
        while not rows or not (rows[-1]["terminated"] or rows[-1]["truncated"]):
            if cartpole:
                action = int(rng.integers(2)) if random_policy else int(physics @ BALANCE > 0)
            else:  # random torques also beyond the limits
                action = rng.uniform(-3, 3, 1).astype(np.float32) if random_policy else swing_up_torque(physics)
            row: dict[str, Any] = {"physics": physics, "t": theirs.num_steps, "action": action}
            theirs.state = physics.astype(np.float64)
            obs, reward, terminated, truncated, _ = theirs.step(action)
            row |= {"obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated}
            rows.append(row | {"noise": generator.take_normal(), "next_physics": theirs.state})
            physics = np.asarray(theirs.state, np.float32)
        count_episode(report, rows)
        steps += rows
    return stack(resets), stack(steps)


def check_control(name: str, ours: Any, episodes: int, seed: int) -> Report:
    report = Report(name)
    params = ours.default_params
    resets, steps = play_control(reference(name), episodes, seed, report)

    obs, state = jax.jit(jax.vmap(ours.state_from))(resets["physics"], resets["noise"])
    compare(report, "first observation", obs, resets["obs"], CONTROL_TOLERANCE)
    compare(report, "first t", state.t, np.zeros(episodes))

    def one_step(physics: jax.Array, t: jax.Array, action: jax.Array, noise: jax.Array) -> Any:
        _, state = ours.state_from(physics, noise)
        return ours.step_with_noise(noise, state.replace(t=t), action, params)

    inputs = (steps["physics"], steps["t"].astype(np.int32), steps["action"], steps["noise"])
    obs, state, reward, terminated, truncated, _ = jax.jit(jax.vmap(one_step))(*inputs)
    compare(report, "observation", obs, steps["obs"], CONTROL_TOLERANCE)
    compare(report, "physics", state.physics, steps["next_physics"], CONTROL_TOLERANCE)
    compare(report, "t", state.t, steps["t"] + 1)
    compare(report, "reward", reward, steps["reward"], REWARD_TOLERANCE)
    compare(report, "terminated", terminated, steps["terminated"])
    compare(report, "truncated", truncated, steps["truncated"])
    return report


# --------------------------------------------------------------------------------------------------------- labyrinths

Cell = tuple[int, int]


def open_neighbours(grid: np.ndarray, cell: Cell) -> Iterator[tuple[int, Cell]]:
    """`(action, cell)` for every open cell next to this one."""
    for action, (row, column) in enumerate(MOVES):
        target = cell[0] + row, cell[1] + column
        if min(target) >= 0 and max(target) < len(grid) and grid[target] != OBSTACLE:
            yield action, target


def shortest_path(grid: np.ndarray, start: Cell, goal: Cell) -> list[int]:
    """Actions from `start` to `goal`, by breadth-first search."""
    paths: dict[Cell, list[int]] = {start: []}
    queue = deque([start])
    while goal not in paths:
        cell = queue.popleft()
        for action, target in open_neighbours(grid, cell):
            if target not in paths:
                paths[target] = [*paths[cell], action]
                queue.append(target)
    return paths[goal]


def full_tour(grid: np.ndarray, start: Cell) -> list[int]:
    """Actions of a depth-first walk through every cell that `start` leads to, up to the last new one."""
    seen: set[Cell] = {start}
    actions: list[int] = []
    length = 0

    def walk(cell: Cell) -> None:
        nonlocal length
        for action, target in open_neighbours(grid, cell):
            if target not in seen:
                seen.add(target)
                actions.append(action)
                length = len(actions)
                walk(target)
                actions.append(action ^ 1)  # the way back: left <-> right, up <-> down

    walk(start)
    return actions[:length]


def play_labyrinth(theirs: Any, episodes: int, seed: int, report: Report) -> tuple[dict, dict]:
    """The package's resets, stacked, and its steps, `(episodes, EPISODE_LENGTH - 1, ...)` padded after the end.

    Three kinds of episodes in turn: random; informed with detours; informed ones that begin so late that the step
    which solves the maze is also the last one allowed.
    """
    rng = np.random.default_rng(seed)
    escape = type(theirs).__name__.startswith("LabyrinthEscape")
    resets, steps = [], []
    for episode in range(episodes):
        first_obs, _ = theirs.reset()
        maze, position = theirs.maze, theirs.position
        plan = shortest_path(maze.grid, position, maze.end) if escape else full_tour(maze.grid, position)
        plan = plan if episode % 3 else []
        if episode % 3 == 2:
            theirs.curr_step = EPISODE_LENGTH - 1 - len(plan)
        reset = {"maze": maze.grid.copy(), "start": maze.start, "goal": maze.end, "t": theirs.curr_step}
        resets.append(reset | {"obs": first_obs})
        plan = plan[::-1]
        rows: list[dict[str, Any]] = []
        while not rows or not (rows[-1]["terminated"] or rows[-1]["truncated"]):
            if not plan or (episode % 3 == 1 and rng.random() < 0.2):
                action = int(rng.integers(4))
                if plan and tuple(theirs.move(action)) != tuple(theirs.position):
                    plan.append(action ^ 1)
            else:
                action = plan.pop()
            obs, reward, terminated, truncated, _ = theirs.step(action)
            rows.append({"action": action, "obs": obs, "reward": reward})
            rows[-1] |= {"terminated": terminated, "truncated": truncated}
        count_episode(report, rows)
        steps.append({"length": len(rows)} | {key: _pad(value) for key, value in stack(rows).items()})
    return stack(resets), stack(steps)


def _pad(rows: np.ndarray) -> np.ndarray:
    return np.pad(rows, [(0, EPISODE_LENGTH - 1 - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def check_labyrinth(name: str, ours: Any, episodes: int, seed: int) -> Report:
    report = Report(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package advises against its mazes
        theirs = reference(name)
    with global_randomness(seed):
        resets, steps = play_labyrinth(theirs, episodes, seed, report)
    key = jax.random.key(0)  # moves are deterministic

    def episode(maze: jax.Array, start: jax.Array, goal: jax.Array, t: jax.Array, actions: jax.Array) -> Any:
        first_obs, state = ours.state_from(maze, start, goal)

        def step(state: Any, action: jax.Array) -> tuple:
            obs, state, *rest, _ = ours.step(key, state, action, ours.default_params)
            return state, (obs, *rest)

        return first_obs, jax.lax.scan(step, state.replace(t=t), actions)[1]

    inputs = [resets[key].astype(np.int32) for key in ("maze", "start", "goal", "t")]
    first_obs, rows = jax.jit(jax.vmap(episode))(*inputs, steps["action"].astype(np.int32))
    compare(report, "first observation", first_obs, resets["obs"])
    played = np.arange(EPISODE_LENGTH - 1) < steps["length"][:, None]
    for what, mine in zip(("obs", "reward", "terminated", "truncated"), rows, strict=True):
        tolerance = REWARD_TOLERANCE if what == "reward" else 0.0
        compare(report, what, np.asarray(mine)[played], steps[what][played], tolerance)
    return report


CHECKS: dict[str, Check] = {
    "PositionOnlyCartPole": check_control,
    "VelocityOnlyCartpole": check_control,
    "NoisyPositionOnlyCartPole": check_control,
    "PositionOnlyPendulum": check_control,
    "NoisyPositionOnlyPendulum": check_control,
    "LabyrinthExplore": check_labyrinth,
    "LabyrinthEscape": check_labyrinth,
}
