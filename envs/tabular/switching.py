"""Piecewise-stationary tabular MDPs with average reward: at some steps the kernels and the mean rewards jump.

The setting of Alami, Mahfoud and Moulines 2023 (arXiv 2304.00232). Nothing ends: the value of a policy is its reward
per step, and regret is measured against the best gain of the MDP in force at each step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from engram.envs.base import Environment, Info, NoParams, UniformEnvironment
from engram.envs.spaces import Discrete
from engram.errors import BadRequest

REWARDS = ("bernoulli", "mean")


class SwitchingState(struct.PyTreeNode):
    """The MDPs of all segments, and where the agent is."""

    kernels: jax.Array
    """`[segments, S, A, S]`: probability of the next state."""
    cumulative: jax.Array
    """`[segments, S, A, S]`: their cumulative sums over the next state."""
    means: jax.Array
    """`[segments, S, A]`: mean reward, in [0, 1]."""
    starts: jax.Array
    """`[segments]` int32, increasing, the first is 0: steps taken when a segment comes into force."""
    position: jax.Array
    """State of the MDP, int32."""
    t: jax.Array
    """Steps taken, int32."""

    @property
    def segment(self) -> jax.Array:
        """Index of the segment that rules the next step, int32."""
        return jnp.sum(self.starts <= self.t, dtype=jnp.int32) - 1


@dataclass(frozen=True)
class RandomChanges:
    """`count` change points, uniform among those that leave every segment of 0 .. horizon at least `minimal` steps."""

    count: int
    minimal: int
    horizon: int

    def __post_init__(self):
        if self.count < 1:
            raise BadRequest(f"random_changes must be at least 1, got {self.count}")
        if self.minimal < 1 or (self.count + 1) * self.minimal > self.horizon:
            raise BadRequest(
                f"horizon must hold {self.count + 1} segments of {self.minimal} (at least 1) steps, got {self.horizon}"
            )

    def draw(self, key: jax.Array) -> jax.Array:
        """The change points `[count]`, increasing."""
        slack = self.horizon - (self.count + 1) * self.minimal
        free = jnp.sort(jax.random.randint(key, (self.count,), 0, slack + 1))
        return free + self.minimal * jnp.arange(1, self.count + 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class SwitchingMDP(UniformEnvironment):
    """Observation: the state, Discrete(S), 0 at reset. Action: Discrete(A). Never ends.

    A step takes two uniforms: the next state by inverse CDF of the row in force, then, with Bernoulli rewards, 1 where
    the second lies below the mean reward of the pair left behind. `info` holds `segment` (int32), in force during the
    step, and `mean_reward`.

    A subclass draws the MDPs; the fields here are the options that all of them have.
    """

    changes: str | int | tuple = ""
    """Steps after which the MDP changes, with commas between: `4000,8000`."""
    random_changes: int = 0
    """Number of change points drawn at reset, instead of `changes`."""
    minimal_segment: int = 1000
    """Smallest number of steps between drawn change points."""
    horizon: int = 50_000
    """Steps within which change points are drawn."""
    rewards: str = "bernoulli"
    """Kind of rewards: `bernoulli`, or `mean` for rewards equal to their means."""
    instance_seed: int | None = None
    """Seed of the MDPs and the change points, whatever the key of `reset`; None: they are drawn from that key."""

    def __post_init__(self):
        if self.rewards not in REWARDS:
            raise BadRequest(f"rewards must be one of {', '.join(REWARDS)}, got {self.rewards!r}")
        points = self.change_points
        if isinstance(points, tuple) and (
            sorted(set(points)) != [*points] or min(points, default=1) < 1 or max(points, default=1) >= 2**31
        ):
            raise BadRequest(f"changes must be increasing positive steps below 2^31, got {points}")

    @property
    def num_uniforms(self) -> int:
        return 2

    @property
    def num_states(self) -> int:
        """S."""
        raise NotImplementedError

    @property
    def num_actions(self) -> int:
        """A."""
        raise NotImplementedError

    def draw(self, key: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
        """Kernels `[segments, S, A, S]` and mean rewards `[segments, S, A]`."""
        raise NotImplementedError

    @property
    def change_points(self) -> tuple[int, ...] | RandomChanges:
        """Steps after which the MDP changes, or how they are drawn."""
        if isinstance(self.changes, str):
            try:
                given = tuple(int(part) for part in self.changes.split(",") if part.strip())
            except ValueError:
                raise BadRequest(
                    f"changes must be steps with commas between, like 4000,8000, got {self.changes!r}"
                ) from None
        else:
            given = (self.changes,) if isinstance(self.changes, int) else tuple(self.changes)
            if not all(isinstance(point, int) for point in given):
                raise BadRequest(f"changes must be whole numbers of steps, got {list(given)}")
        if self.random_changes and given:
            raise BadRequest("changes and random_changes exclude each other")
        if self.random_changes:
            return RandomChanges(self.random_changes, self.minimal_segment, self.horizon)
        return given

    @property
    def segments(self) -> int:
        """Number of segments."""
        points = self.change_points
        return 1 + (points.count if isinstance(points, RandomChanges) else len(points))

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, SwitchingState]:
        if self.instance_seed is not None:
            key = jax.random.key(self.instance_seed)
        draw_key, change_key = jax.random.split(key)
        kernels, means = self.draw(draw_key, self.segments)
        points = self.change_points
        changes = points.draw(change_key) if isinstance(points, RandomChanges) else jnp.asarray(points, jnp.int32)
        state = SwitchingState(
            kernels=kernels,
            cumulative=jnp.cumsum(kernels, axis=-1),
            means=means,
            starts=jnp.concatenate([jnp.zeros(1, jnp.int32), changes.astype(jnp.int32)]),
            position=jnp.int32(0),
            t=jnp.int32(0),
        )
        return state.position, state

    def transition(
        self, state: SwitchingState, action: jax.Array, uniforms: jax.Array, params: NoParams
    ) -> tuple[jax.Array, SwitchingState, jax.Array, jax.Array, jax.Array, Info]:
        segment = state.segment
        row = state.cumulative[segment, state.position, action]
        mean = state.means[segment, state.position, action]
        position = jnp.minimum(jnp.sum(row <= uniforms[0], dtype=jnp.int32), self.num_states - 1)
        reward = (uniforms[1] < mean).astype(mean.dtype) if self.rewards == "bernoulli" else mean
        state = state.replace(position=position, t=state.t + 1)
        info = {"segment": segment, "mean_reward": mean}
        return position, state, reward, jnp.bool_(False), jnp.bool_(False), info

    def observation_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_states)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_actions)

    def max_steps(self, params: NoParams) -> None:
        return None


def refuse_separate(kernels: np.ndarray, what: str = "the MDP") -> None:
    """Raises BadRequest where an MDP does not communicate: from some state another cannot be reached by any policy. Its
    best gain then depends on where it begins, and regret has no meaning.

    Args:
        kernels: `[segments, S, A, S]`.
    """
    for segment, kernel in enumerate(kernels):
        reached = np.any(kernel > 0, axis=1) | np.eye(len(kernel), dtype=bool)
        for _ in range(len(kernel).bit_length()):  # in twice as many steps each time
            reached = reached @ reached
        if not reached.all():
            here, there = (int(i) for i in np.argwhere(~reached)[0])
            raise BadRequest(
                f"{what} does not communicate: in segment {segment} state {there} cannot be reached from state {here}, "
                "so that there is no one best gain to measure regret against"
            )


def optimal_gain(kernel: jax.Array, means: jax.Array, max_iterations: int = 20_000) -> jax.Array:
    """The largest reward per step of a communicating MDP, by relative value iteration (see `refuse_separate`).

    Args:
        kernel: `[S, A, S]`.
        means: `[S, A]`.
        max_iterations: bound on the sweeps; they stop when the gain is known to rounding.

    Returns:
        the gain, NaN where the bound came first: some states are reached too seldom, or not at all.

    Every step is taken with probability 0.9 only (Puterman 1994, 8.5.4), which scales the gain, keeps the best policy
    and makes periodic MDPs converge.
    """
    stay = 0.1
    precision = 64 * jnp.finfo(means.dtype).eps

    def sweep(loop):
        u, _, count = loop
        new = (1 - stay) * jnp.max(means + kernel @ u, axis=-1) + stay * u
        return new - jnp.min(new), new - u, count + 1

    def unfinished(loop):
        u, change, count = loop
        return (count < max_iterations) & (jnp.max(change) - jnp.min(change) > precision * (1 + jnp.max(u)))

    start = jnp.zeros(means.shape[0], means.dtype)
    u, change, _ = jax.lax.while_loop(unfinished, sweep, sweep((start, start, 0)))
    gain = (jnp.max(change) + jnp.min(change)) / (2 * (1 - stay))
    return jnp.where(unfinished((u, change, 0)), jnp.nan, gain)


@dataclass(frozen=True, eq=False)
class GivenMDP(SwitchingMDP):
    """Segments given by their arrays. Made by `from_arrays`, which checks them."""

    kernels: np.ndarray
    """`[segments, S, A, S]`"""
    means: np.ndarray
    """`[segments, S, A]`"""

    @property
    def num_states(self) -> int:
        return self.kernels.shape[1]

    @property
    def num_actions(self) -> int:
        return self.kernels.shape[2]

    def draw(self, key: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
        dtype = jnp.result_type(float)
        return jnp.asarray(self.kernels, dtype), jnp.asarray(self.means, dtype)


def from_arrays(
    kernels: ArrayLike, means: ArrayLike, changes: tuple[int, ...] = (), rewards: str = "bernoulli"
) -> GivenMDP:
    """The MDPs `kernels [segments, S, A, S]`, `means [segments, S, A]` in turn; the i-th change opens segment i + 1.

    Raises:
        BadRequest: shapes that do not fit, rows that are not distributions, means outside [0, 1], an MDP that does not
            communicate.
    """
    kernels, means = np.asarray(kernels), np.asarray(means)
    if kernels.ndim != 4 or kernels.shape[1] != kernels.shape[3] or means.shape != kernels.shape[:3]:
        raise BadRequest(
            f"kernels [segments, S, A, S] and means [segments, S, A] must fit, got {kernels.shape}, {means.shape}"
        )
    if len(changes) != len(kernels) - 1:
        raise BadRequest(f"changes must be one fewer than the {len(kernels)} segments, got {len(changes)}")
    off = np.abs(kernels.sum(-1) - 1.0)
    if kernels.min() < 0 or not off.max() <= 1e-5:
        worst = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
        raise BadRequest(
            f"every row of kernels must be a distribution, but row {worst} sums to {kernels[worst].sum():.6g}"
        )
    if not (means.min() >= 0 and means.max() <= 1):
        raise BadRequest(f"mean rewards must lie in [0, 1], got {means.min():.6g} .. {means.max():.6g}")
    refuse_separate(kernels)
    return GivenMDP(kernels, means, changes=tuple(changes), rewards=rewards)


@dataclass(frozen=True, eq=False)
class RandomMDP(SwitchingMDP):
    """Rows from a symmetric Dirichlet of this concentration, means from U[0, 1], all redrawn at each change."""

    states: int = 4
    actions: int = 3
    concentration: float = 0.3

    def __post_init__(self):
        if self.states < 2 or self.actions < 1:
            raise BadRequest(f"states must be at least 2 and actions at least 1, got {self.states} and {self.actions}")
        if not self.concentration > 0:
            raise BadRequest(f"concentration must be positive, got {self.concentration}")
        super().__post_init__()

    @property
    def num_states(self) -> int:
        return self.states

    @property
    def num_actions(self) -> int:
        return self.actions

    def draw(self, key: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
        kernel_key, mean_key = jax.random.split(key)
        shape = (segments, self.states, self.actions)
        alpha = jnp.full(self.states, self.concentration, jnp.result_type(float))
        return jax.random.dirichlet(kernel_key, alpha, shape), jax.random.uniform(mean_key, shape)


@dataclass(frozen=True, eq=False)
class RiverSwim(SwitchingMDP):
    """RiverSwim (Strehl and Littman 2008) with six states: swimming right is hard, and only the far right pays well.

    At a change, with `change=swap`, the two actions swap their roles; with `change=redraw` the probability to get
    ahead, 0.35 in the first segment, is drawn from U[0.2, 0.6).
    """

    change: str = "swap"

    def __post_init__(self):
        if self.change not in ("swap", "redraw"):
            raise BadRequest(f"change must be swap or redraw, got {self.change!r}")
        super().__post_init__()

    @property
    def num_states(self) -> int:
        return 6

    @property
    def num_actions(self) -> int:
        return 2

    def draw(self, key: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
        n = self.num_states
        ahead = jnp.full(segments, 0.35, jnp.result_type(float))
        means = jnp.zeros((segments, n, 2), ahead.dtype).at[:, 0, 0].set(0.005).at[:, -1, 1].set(1.0)
        if self.change == "redraw":
            drawn = jax.random.uniform(key, (segments,), minval=0.2, maxval=0.6)
            return jax.vmap(self._river)(jnp.where(jnp.arange(segments) == 0, ahead, drawn)), means
        kernels, odd = jax.vmap(self._river)(ahead), jnp.arange(segments) % 2 == 1
        return (
            jnp.where(odd[:, None, None, None], kernels[:, :, ::-1], kernels),
            jnp.where(odd[:, None, None], means[:, :, ::-1], means),
        )

    def _river(self, ahead: jax.Array) -> jax.Array:
        """The kernel `[S, A, S]` with probability `ahead` to get ahead."""
        n = self.num_states
        left = jnp.eye(n, k=-1, dtype=ahead.dtype).at[0, 0].set(1.0)
        # In the middle: back with 0.05, ahead with `ahead`; the ends keep what would leave the river.
        right = ahead * jnp.eye(n, k=1) + 0.05 * jnp.eye(n, k=-1) + (0.95 - ahead) * jnp.eye(n)
        right = right.at[0].set(jnp.zeros(n).at[0].set(0.4).at[1].set(0.6))
        right = right.at[-1].set(jnp.zeros(n).at[-1].set(0.6).at[-2].set(0.4))
        return jnp.stack([left, right], axis=1)


@dataclass(frozen=True, eq=False)
class Grid(SwitchingMDP):
    """A room of size x size cells, actions up, right, down, left; at each change the goal and the walls move.

    The goal pays 1 whatever is done there and leads back to the start, the upper left corner. A move goes in a random
    direction with probability `slip`; one through a wall or out of the room stays put. Walls stand, with probability
    `walls` each, between neighbours in a row, but not in the first and the last row: whatever cell the goal is in,
    every cell can be reached.
    """

    size: int = 4
    walls: float = 0.5
    slip: float = 0.1

    def __post_init__(self):
        if self.size < 2:
            raise BadRequest(f"size must be at least 2, got {self.size}")
        for name in ("walls", "slip"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadRequest(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        super().__post_init__()

    @property
    def num_states(self) -> int:
        return self.size * self.size

    @property
    def num_actions(self) -> int:
        return 4

    def draw(self, key: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(self._room)(jax.random.split(key, segments))

    def _room(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Kernel `[S, A, S]` and mean rewards `[S, A]` of one room."""
        size, cells, slip = self.size, self.num_states, self.slip
        rows, columns = np.divmod(np.arange(cells), size)
        moves = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
        to_row, to_column = rows[:, None] + moves[:, 0], columns[:, None] + moves[:, 1]
        inside = (to_row >= 0) & (to_row < size) & (to_column >= 0) & (to_column < size)
        neighbour = np.where(inside, to_row * size + to_column, np.arange(cells)[:, None])
        inner = (rows > 0) & (rows < size - 1)

        wall_key, goal_key = jax.random.split(key)
        wall = (jax.random.uniform(wall_key, (cells,)) < self.walls) & inner  # to the right of a cell
        at_goal = jnp.arange(cells) == 1 + jax.random.randint(goal_key, (), 0, cells - 1)
        no_wall = jnp.zeros(cells, bool)
        blocked = jnp.stack([no_wall, wall, no_wall, jnp.roll(wall, 1) & (columns > 0)], axis=1)
        target = jnp.where(blocked, jnp.arange(cells)[:, None], neighbour)
        move = jax.nn.one_hot(target, cells, dtype=jnp.result_type(float))
        kernel = (1 - slip) * move + slip * jnp.mean(move, axis=1, keepdims=True)
        kernel = jnp.where(at_goal[:, None, None], jax.nn.one_hot(0, cells, dtype=kernel.dtype), kernel)
        return kernel, jnp.broadcast_to(at_goal[:, None], (cells, 4)).astype(kernel.dtype)


NAMES: dict[str, Callable[..., Environment]] = {"Random": RandomMDP, "RiverSwim": RiverSwim, "Grid": Grid}
"""Public names of the family `switching`."""
