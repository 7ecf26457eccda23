"""CartPole, Pendulum and Labyrinth families: the popgym package in lockstep, mutants that must be caught, random mazes
against mazelib's, physics against gymnasium under varied parameters, and the mistakes of earlier ports."""

import dataclasses
import math
from functools import cache
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from mazelib.generate.HuntAndKill import HuntAndKill
from scipy import ndimage, stats

from engram.envs.popgym import POPGYM
from engram.envs.popgym.cartpole import (
    CartPoleParams,
    NoisyPositionOnlyCartPole,
    PositionOnlyCartPole,
    VelocityOnlyCartpole,
)
from engram.envs.popgym.labyrinth import (
    EPISODE_LENGTH,
    FREE,
    OBSTACLE,
    LabyrinthEscape,
    LabyrinthExplore,
    generate_maze,
    local_view,
)
from engram.envs.popgym.pendulum import NoisyPositionOnlyPendulum, PendulumParams, PositionOnlyPendulum
from engram.envs.spaces import Box
from tests.envs.popgym_conformance import LEVELS, easy_first, reference
from tests.envs.popgym_conformance_control import (
    BALANCE,
    CHECKS,
    check_control,
    check_labyrinth,
    global_randomness,
    shortest_path,
)

pytestmark = [
    pytest.mark.usefixtures("quickly_compiled"),
    pytest.mark.filterwarnings("ignore:Maze environments:DeprecationWarning"),
]

CARTPOLES = ("PositionOnlyCartPole", "VelocityOnlyCartpole", "NoisyPositionOnlyCartPole")
PENDULUMS = ("PositionOnlyPendulum", "NoisyPositionOnlyPendulum")
LABYRINTHS = ("LabyrinthExplore", "LabyrinthEscape")


def make(name: str) -> Any:
    """Ours, typed loosely: the families' own methods are used."""
    return POPGYM[name]()


def ids(families: tuple[str, ...]) -> list[str]:
    return [family + level for family in families for level in LEVELS]


# ---------------------------------------------------------------------------------------------------------- lockstep


@pytest.mark.parametrize("name", easy_first(ids(CARTPOLES)))
def test_cartpole_in_lockstep(name: str) -> None:
    report = check_control(name, make(name), episodes=60, seed=1)
    assert report.mismatches == []
    assert report.terminated > report.both > 0
    assert report.truncated > report.both
    assert report.best_return == pytest.approx(1.0)


@pytest.mark.parametrize("name", easy_first(ids(PENDULUMS)))
def test_pendulum_in_lockstep(name: str) -> None:
    report = check_control(name, make(name), episodes=9, seed=1)
    assert report.mismatches == []
    assert (report.terminated, report.truncated) == (0, 9)
    assert report.best_return > 0.4, "the informed policy holds the pendulum up"


@pytest.mark.parametrize("name", easy_first(ids(LABYRINTHS)))
def test_labyrinth_in_lockstep(name: str) -> None:
    report = check_labyrinth(name, make(name), episodes=12, seed=1)
    assert report.mismatches == []
    assert report.terminated > report.both > 0
    assert report.truncated > report.both
    assert report.best_return > 0.5


# --------------------------------------------------------------------------------------------------- negative control


def altered(family: Any, **changes: Any) -> Any:
    """A mutant of an environment class: `changes` replaces methods, each called with the original one first."""
    body = {}
    for method, change in changes.items():
        original = getattr(family, method)
        body[method] = lambda self, *args, original=original, change=change: change(
            self, lambda *a: original(self, *a), *args
        )
    return dataclasses.dataclass(frozen=True)(type(f"Mutant{family.__name__}", (family,), body))


def late_limit(self: Any, original: Any, *args: Any) -> tuple:
    obs, state, reward, terminated, _, info = original(*args)
    limit = self.max_steps(None) + 1
    return obs, state, reward, terminated, state.t >= limit, info


def unclipped_cartpole(self: Any, original: Any, physics: jax.Array, noise: jax.Array) -> jax.Array:
    return physics[jnp.array([0, 2])] + noise


def unclipped_pendulum(self: Any, original: Any, physics: jax.Array, noise: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(physics[0]), jnp.sin(physics[0])]) + noise


def velocities_at_reset(self: Any, original: Any, physics: jax.Array, noise: jax.Array) -> tuple:
    _, state = original(physics, noise)
    return self.observe(state.physics, noise), state


def no_reward_for_falling(self: Any, original: Any, *args: Any) -> tuple:
    obs, state, reward, terminated, truncated, info = original(*args)
    return obs, state, jnp.where(terminated, 0.0, reward), terminated, truncated, info


def goal_pays_one(self: Any, original: Any, *args: Any) -> tuple:
    obs, state, reward, terminated, truncated, info = original(*args)
    return obs, state, jnp.where(terminated, 1.0, reward), terminated, truncated, info


def start_is_free(self: Any, original: Any, *args: Any) -> tuple:
    obs, state = original(*args)
    return obs, state.replace(free_cells=state.free_cells + 1)


def goal_must_be_explored(self: Any, original: Any, maze: jax.Array, start: jax.Array, goal: jax.Array) -> tuple:
    obs, state = original(maze, start, goal)
    return obs, state.replace(unvisited=state.unvisited + 1)


def centred_view(self: Any, original: Any, state: Any, action: jax.Array) -> jax.Array:
    view = jax.lax.dynamic_slice(jnp.pad(state.grid, 1, constant_values=OBSTACLE), state.position, (3, 3))
    return jnp.append(view.reshape(9), action)


MUTANTS = {
    "cartpole limit": ("PositionOnlyCartPoleEasy", altered(PositionOnlyCartPole, step_with_noise=late_limit)),
    "cartpole fall": ("PositionOnlyCartPoleEasy", altered(PositionOnlyCartPole, step_with_noise=no_reward_for_falling)),
    "cartpole noise": ("NoisyPositionOnlyCartPoleHard", altered(NoisyPositionOnlyCartPole, observe=unclipped_cartpole)),
    "velocity reset": ("VelocityOnlyCartpoleEasy", altered(VelocityOnlyCartpole, state_from=velocities_at_reset)),
    "pendulum limit": ("PositionOnlyPendulumHard", altered(PositionOnlyPendulum, step_with_noise=late_limit)),
    "pendulum noise": ("NoisyPositionOnlyPendulumEasy", altered(NoisyPositionOnlyPendulum, observe=unclipped_pendulum)),
    "explore limit": ("LabyrinthExploreEasy", altered(LabyrinthExplore, step=late_limit)),
    "explore count": ("LabyrinthExploreEasy", altered(LabyrinthExplore, state_from=start_is_free)),
    "explore goal": ("LabyrinthExploreEasy", altered(LabyrinthExplore, state_from=goal_must_be_explored)),
    "escape reward": ("LabyrinthEscapeEasy", altered(LabyrinthEscape, step=goal_pays_one)),
    "escape view": ("LabyrinthEscapeEasy", altered(LabyrinthEscape, _observe=centred_view)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str) -> None:
    name, family = MUTANTS[mutant]
    ours = family(**vars(make(name)))
    check = CHECKS[name.removesuffix("Easy").removesuffix("Hard")]
    assert check(name, ours, 6, 1).mismatches


# ---------------------------------------------------------------------------------------- physics with other constants


def test_cartpole_constants_are_gymnasiums() -> None:
    params = CartPoleParams(*np.array([3.7, 1.4, 0.3, 0.8, 6.0, 0.05], np.float32))
    env: Any = CartPoleEnv()
    env.gravity, env.masscart, env.masspole, env.length, env.force_mag, env.tau = (
        float(p) for p in vars(params).values()
    )
    env.total_mass, env.polemass_length = env.masscart + env.masspole, env.masspole * env.length
    ours = make("PositionOnlyCartPoleEasy")
    env.reset(seed=0)
    for physics in np.random.default_rng(0).uniform(-0.2, 0.2, (10, 4)).astype(np.float32):
        for action in range(2):
            env.state = physics.astype(np.float64)
            env.step(action)
            _, state = ours.state_from(physics, jnp.zeros(2))
            _, state, *_ = ours.step(jax.random.key(0), state, action, params)
            np.testing.assert_allclose(state.physics, env.state, atol=1e-6)


def test_pendulum_constants_are_gymnasiums() -> None:
    params = PendulumParams(*np.array([3.7, 1.4, 0.6, 0.02], np.float32))
    env: Any = PendulumEnv()
    env.g, env.m, env.l, env.dt = (float(p) for p in vars(params).values())
    ours = make("PositionOnlyPendulumEasy")
    env.reset(seed=0)
    for physics in np.random.default_rng(0).uniform(-3, 3, (10, 2)).astype(np.float32):
        env.state = physics.astype(np.float64)
        torque = np.array([0.7], np.float32)
        env.step(torque)
        _, state = ours.state_from(physics, jnp.zeros(2))
        _, state, *_ = ours.step(jax.random.key(0), state, torque, params)
        np.testing.assert_allclose(state.physics, env.state, atol=2e-6)


def test_constants_may_differ_within_a_batch() -> None:
    ours = make("PositionOnlyCartPoleEasy")
    _, state = ours.state_from(jnp.array([0.0, 0.0, 0.1, 0.0]), jnp.zeros(2))

    def step(gravity: jax.Array) -> jax.Array:
        _, after, *_ = ours.step(jax.random.key(0), state, 1, CartPoleParams(gravity=gravity))
        return after.physics[3]

    velocities = jax.vmap(step)(jnp.array([0.0, 9.8, 20.0]))
    assert np.all(np.diff(velocities) > 0), "a leaning pole falls faster under more gravity"


# ------------------------------------------------------------------------------------------------- limits and oddities


@pytest.mark.parametrize(
    ("name", "length"), [(f"{f}{l}", n) for f in CARTPOLES[:2] for l, n in zip(LEVELS, (200, 400, 600), strict=True)]
)
def test_a_balanced_cartpole_is_truncated_not_terminated(name: str, length: int) -> None:
    ours = make(name)
    params = ours.default_params

    def step(state: Any, key: jax.Array) -> tuple:
        action = (state.physics @ BALANCE > 0).astype(jnp.int32)
        _, state, _, terminated, truncated, _ = ours.step(key, state, action, params)
        return state, (terminated, truncated)

    _, state = ours.reset(jax.random.key(3), params)
    _, (terminated, truncated) = jax.lax.scan(step, state, jax.random.split(jax.random.key(4), length))
    assert not terminated.any()
    assert np.flatnonzero(truncated).tolist() == [length - 1]


def test_velocity_only_shows_positions_first() -> None:
    ours = make("VelocityOnlyCartpoleEasy")
    physics = jnp.array([0.01, 0.02, 0.03, 0.04])
    obs, state = ours.state_from(physics, jnp.zeros(2))
    np.testing.assert_array_equal(obs, physics[jnp.array([0, 2])])
    obs, state, *_ = ours.step(jax.random.key(0), state, 1, ours.default_params)
    np.testing.assert_array_equal(obs, state.physics[jnp.array([1, 3])])


def rollout(name: str, episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Random-policy episodes `(episodes, max_steps, ...)`; what follows an episode's end is marked by `alive`."""
    ours = make(name)
    params = ours.default_params
    space = ours.action_space(params)

    def step(carry: tuple, key: jax.Array) -> tuple:
        state, alive = carry
        action_key, step_key = jax.random.split(key)
        obs, state, reward, terminated, truncated, _ = ours.step(step_key, state, space.sample(action_key), params)
        row = {"obs": obs, "reward": reward * alive, "terminated": terminated, "truncated": truncated, "alive": alive}
        return (state, alive & ~terminated & ~truncated), row

    def episode(key: jax.Array) -> dict:
        reset_key, steps_key = jax.random.split(key)
        first_obs, state = ours.reset(reset_key, params)
        keys = jax.random.split(steps_key, ours.max_steps(params))
        return {"first_obs": first_obs} | jax.lax.scan(step, (state, jnp.bool_(True)), keys)[1]

    return jax.device_get(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), episodes)))


@pytest.mark.parametrize(
    ("name", "bounds"),
    [("NoisyPositionOnlyPendulumHard", (1.0, 1.0)), ("NoisyPositionOnlyCartPoleHard", (4.8, math.radians(24)))],
)
def test_noisy_observations_stay_in_their_space(name: str, bounds: tuple[float, float]) -> None:
    rows = rollout(name, episodes=100, seed=0)
    obs = np.concatenate([rows["first_obs"], rows["obs"][rows["alive"]]])
    bounds_f32 = np.array(bounds, np.float32)
    assert np.all(np.abs(obs) <= bounds_f32)
    assert np.any(obs[:, 1] == bounds_f32[1]), "some noise reaches the bound, so clipping was exercised"
    space = reference(name).observation_space
    assert all(space.contains(row) for row in obs[:200])


@pytest.mark.parametrize("name", ids(("NoisyPositionOnlyCartPole", "NoisyPositionOnlyPendulum")))
def test_noise_is_normal_with_the_levels_sigma(name: str) -> None:
    ours = make(name)
    noise = np.asarray(jax.vmap(ours.draw_noise)(jax.random.split(jax.random.key(5), 4000)))
    sigma = {"Easy": 0.1, "Medium": 0.2, "Hard": 0.3}[next(level for level in LEVELS if name.endswith(level))]
    for column in noise.T:
        assert stats.kstest(column, stats.norm(0, sigma).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(*noise.T)[0, 1]) < 4 / math.sqrt(len(noise))


@pytest.mark.parametrize(
    ("name", "high"), [("PositionOnlyCartPoleEasy", (0.05,) * 4), ("PositionOnlyPendulumEasy", (math.pi, 1.0))]
)
def test_initial_states_are_uniform(name: str, high: tuple[float, ...]) -> None:
    ours = make(name)
    keys = jax.random.split(jax.random.key(6), 4000)
    _, state = jax.jit(jax.vmap(ours.reset, in_axes=(0, None)))(keys, ours.default_params)
    for column, bound in zip(np.asarray(state.physics).T, high, strict=True):
        assert stats.kstest(column, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_noise_does_not_follow_the_physics() -> None:
    """The first observation's noise and the initial state come from different keys."""
    ours = make("NoisyPositionOnlyCartPoleEasy")
    obs, state = jax.vmap(ours.reset, in_axes=(0, None))(jax.random.split(jax.random.key(7), 4000), ours.default_params)
    noise = np.asarray(obs[:, 0] - state.physics[:, 0])
    assert stats.kstest(noise, stats.norm(0, 0.1).cdf)[1] > 1e-3
    assert abs(np.corrcoef(noise, state.physics[:, 0])[0, 1]) < 4 / math.sqrt(4000)


# --------------------------------------------------------------------------------------------------------------- mazes


def package_mazes(name: str, count: int) -> dict[str, np.ndarray]:
    """Grids, starts and goals of the package's resets."""
    env = reference(name)
    grids, starts, goals = [], [], []
    with global_randomness(0):
        for _ in range(count):
            env.reset()
            grids.append(env.maze.grid)
            starts.append(env.maze.start)
            goals.append(env.maze.end)
    return {"grid": np.stack(grids), "start": np.array(starts), "goal": np.array(goals)}


@cache
def our_mazes(name: str, count: int = 4000) -> dict[str, np.ndarray]:
    ours = make(name)
    keys = jax.random.split(jax.random.key(8), count)
    _, state = jax.jit(jax.vmap(ours.reset, in_axes=(0, None)))(keys, ours.default_params)
    grid = np.asarray(state.grid)
    start, goal = (np.argwhere(grid == cell)[:, 1:] for cell in (2, 3))
    return {"grid": grid, "start": start, "goal": goal}


def two_sample_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Chi-square p-value that two samples of small integers come from one distribution; rare values are pooled."""
    low, high = np.quantile(np.concatenate([ours, theirs]), [0.02, 0.98])
    counts = [
        np.bincount((np.clip(x, low, high) - low).astype(int), minlength=int(high - low) + 1) for x in (ours, theirs)
    ]
    table = np.array(counts)
    test: Any = stats.chi2_contingency(table[:, table.sum(0) > 0])
    return float(test.pvalue)


def maze_differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """p-values that two samples of mazes come from one distribution, by statistics of the mazes."""
    features: list[dict[str, np.ndarray]] = []
    for mazes in (ours, theirs):
        free = (mazes["grid"] != OBSTACLE)[:, 1:-1, 1:-1].astype(int)  # the outer wall holds only start and goal
        padded = np.pad(free, ((0, 0), (1, 1), (1, 1)))
        degree = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
        degree = degree[:, ::2, ::2]
        paths = zip(mazes["grid"], mazes["start"], mazes["goal"], strict=True)
        features.append(
            {
                "passages": np.concatenate(
                    [free[:, 1::2, ::2].reshape(len(free), -1), free[:, ::2, 1::2].reshape(len(free), -1)], 1
                ),
                "dead ends": (degree == 1).sum((1, 2)),
                "junctions": (degree >= 3).sum((1, 2)),
                "crossings": (degree == 4).sum((1, 2)),
                "corner degree": degree[:, 0, 0],
                "path length": np.array([len(shortest_path(g, tuple(s), tuple(e))) for g, s, e in paths]),
            }
        )
    a, b = features
    rates = a["passages"].mean(0), b["passages"].mean(0)
    pooled = (rates[0] * len(a["passages"]) + rates[1] * len(b["passages"])) / (len(a["passages"]) + len(b["passages"]))
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(a["passages"]) + 1 / len(b["passages"])))
    passages = 2 * stats.norm.sf(np.abs(rates[0] - rates[1]) / error)
    p_values = {"passages": float(passages.min() * passages.size)}  # Bonferroni
    lengths: Any = stats.ks_2samp(a["path length"], b["path length"])
    p_values["path length"] = float(lengths.pvalue)
    for key in ("dead ends", "junctions", "crossings", "corner degree"):
        p_values[key] = two_sample_p(a[key], b[key])
    return p_values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("LabyrinthEscapeEasy", 2000), pytest.param("LabyrinthEscapeHard", 400, marks=pytest.mark.slow)]
)
def test_mazes_are_distributed_as_the_packages(name: str, count: int) -> None:
    ours = {key: value[: 2 * count] for key, value in our_mazes(name).items()}
    p_values = maze_differences(ours, package_mazes(name, count))
    assert min(p_values.values()) > 1e-3, p_values


def test_another_maze_distribution_is_noticed() -> None:
    """The same generator hunting row by row instead of at random: the smallest deviation mazelib offers."""
    with global_randomness(1):
        grids = [HuntAndKill(5, 5, "serpentine").generate() for _ in range(1000)]
    ours = {key: value[:2000] for key, value in our_mazes("LabyrinthEscapeEasy").items()}
    serpentine = {"grid": np.stack(grids), "start": ours["start"][:1000], "goal": ours["goal"][:1000]}
    for grid, start, goal in zip(*serpentine.values(), strict=True):
        grid[tuple(start)] = grid[tuple(goal)] = FREE
    p_values = maze_differences(ours, serpentine)
    assert min(p_values.values()) < 1e-9, p_values


def test_hunting_stops_after_the_same_number_of_trials() -> None:
    """With few trials rooms stay closed, about as many as in mazelib (which would need millions of mazes uncapped)."""
    trials, side = 6, 5

    class Capped(HuntAndKill):
        def _hunt_random(self, grid: np.ndarray, count: int) -> tuple[int, int]:
            return (-1, -1) if count >= trials else super()._hunt_random(grid, count)

    with global_randomness(2):
        theirs = np.array([(Capped(side, side).generate()[1::2, 1::2] == FREE).sum() for _ in range(2000)])

    @jax.jit
    def open_rooms(max_trials: int) -> jax.Array:
        keys = jax.random.split(jax.random.key(9), 4000)
        mazes = jax.vmap(generate_maze, in_axes=(0, None, None))(keys, side, max_trials)
        return jnp.sum(mazes[:, 1::2, 1::2] == FREE, axis=(1, 2))

    assert two_sample_p(np.asarray(open_rooms(trials)), theirs) > 1e-3
    assert two_sample_p(np.asarray(open_rooms(trials + 2)), theirs) < 1e-6


@pytest.mark.parametrize("name", easy_first(["LabyrinthEscapeEasy", "LabyrinthEscapeHard"]))
def test_mazes_are_trees(name: str) -> None:
    """n rooms and n - 1 passages, all connected, start and goal included."""
    for grid in our_mazes(name)["grid"][:50]:
        rooms = (len(grid) // 2) ** 2
        assert np.sum(grid == FREE) == 2 * rooms - 1
        components: Any = ndimage.label(grid != OBSTACLE)
        assert components[1] == 1


def test_entrances_are_uniform_on_opposite_walls() -> None:
    mazes = our_mazes("LabyrinthEscapeEasy")
    start, goal = mazes["start"], mazes["goal"]
    north_south = np.isin(start[:, 0], (0, 10))
    across = np.where(north_south, start[:, 0], start[:, 1]), np.where(north_south, goal[:, 0], goal[:, 1])
    along = np.where(north_south, start[:, 1], start[:, 0]), np.where(north_south, goal[:, 1], goal[:, 0])
    assert np.all(across[0] + across[1] == 10)
    wall = 2 * north_south + across[0] // 10
    place = (wall * 5 + along[0] // 2) * 5 + along[1] // 2
    assert np.all(np.stack(along) % 2 == 1)
    assert stats.chisquare(np.bincount(place, minlength=100)).pvalue > 1e-3


def test_view_at_the_borders() -> None:
    """Numbers worked out by hand from the package's slicing: top-left aligned, filled with walls at the end."""
    grid = jnp.arange(25).reshape(5, 5) + 10
    np.testing.assert_array_equal(local_view(grid, jnp.array([2, 2])), grid[1:4, 1:4])
    np.testing.assert_array_equal(local_view(grid, jnp.array([0, 1])), [[10, 11, 12], [15, 16, 17], [1, 1, 1]])
    np.testing.assert_array_equal(local_view(grid, jnp.array([1, 0])), [[10, 11, 1], [15, 16, 1], [20, 21, 1]])
    np.testing.assert_array_equal(local_view(grid, jnp.array([4, 3])), [[27, 28, 29], [32, 33, 34], [1, 1, 1]])
    np.testing.assert_array_equal(local_view(grid, jnp.array([3, 4])), [[23, 24, 1], [28, 29, 1], [33, 34, 1]])


@pytest.mark.parametrize("name", ["LabyrinthExploreEasy", "LabyrinthEscapeEasy"])
def test_labyrinth_limit_is_1023(name: str) -> None:
    ours = make(name)
    params = ours.default_params
    _, state = jax.jit(ours.reset)(jax.random.key(11), params)
    for t, expected in ((EPISODE_LENGTH - 3, False), (EPISODE_LENGTH - 2, True)):
        *_, terminated, truncated, _ = jax.jit(ours.step)(jax.random.key(0), state.replace(t=jnp.int32(t)), 0, params)
        assert not terminated
        assert bool(truncated) is expected
    assert ours.max_steps(params) == 1023


# ------------------------------------------------------------------------------------------------------ the other facts


RANDOM_POLICY = {
    "PositionOnlyCartPole": (0.1086, 0.0028),
    "VelocityOnlyCartpole": (0.1086, 0.0028),
    "NoisyPositionOnlyCartPole": (0.1124, 0.0029),
    "PositionOnlyPendulum": (0.2413, 0.0043),
    "NoisyPositionOnlyPendulum": (0.2413, 0.0043),
    "LabyrinthExplore": (-0.3073, 0.0263),
    "LabyrinthEscape": (-0.5368, 0.1082),
}
"""Mean return and standard error of popgym 1.0.7's Easy levels under random actions: 400 episodes, Pendulums 1,700,
Labyrinths 40."""


@pytest.mark.slow
@pytest.mark.parametrize("family", RANDOM_POLICY)
def test_random_policy_return(family: str) -> None:
    returns = rollout(family + "Easy", episodes=300, seed=12)["reward"].sum(1)
    mean, error = RANDOM_POLICY[family]
    assert abs(returns.mean() - mean) < 4 * math.hypot(error, returns.std() / math.sqrt(len(returns)))


@pytest.mark.parametrize("name", ids(CARTPOLES + PENDULUMS + LABYRINTHS))
def test_spaces_dtypes_and_pictures(name: str) -> None:
    ours = make(name)
    params = ours.default_params
    theirs: Any = reference(name)
    mine = ours.observation_space(params), ours.action_space(params)
    for space, other in zip(mine, (theirs.observation_space, theirs.action_space), strict=True):
        assert space.shape == other.shape
        if isinstance(other, gymnasium.spaces.Box):
            np.testing.assert_array_equal(np.broadcast_to(np.float32(space.low), space.shape), other.low)
            np.testing.assert_array_equal(np.broadcast_to(np.float32(space.high), space.shape), other.high)
        elif isinstance(other, gymnasium.spaces.MultiDiscrete):
            assert space.nvec == tuple(other.nvec)
        else:
            assert space.n == other.n
    obs, state = jax.jit(ours.reset)(jax.random.key(13), params)
    action = ours.action_space(params).sample(jax.random.key(14))
    next_obs, next_state, reward, terminated, truncated, _ = jax.jit(ours.step)(
        jax.random.key(15), state, action, params
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), next_state)
    assert (
        (obs.shape, obs.dtype)
        == (next_obs.shape, next_obs.dtype)
        == (theirs.observation_space.shape, jnp.float32 if isinstance(mine[0], Box) else jnp.int32)
    )
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (jnp.float32, jnp.bool_, jnp.bool_)
    before, after = ours.render(jax.device_get(state), params), ours.render(jax.device_get(next_state), params)
    assert before.dtype == np.uint8
    assert before.shape == after.shape
    assert min(before.shape[:2]) >= 240
    assert np.any(before != after), "at least the step counter moved"
