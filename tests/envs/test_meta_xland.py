"""XLand against its package and a player in NumPy: every ruleset can be solved, and no split knows another's goals."""

from collections.abc import Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs.meta.splits import SPLITS, read
from engram.envs.meta.xland import ABOUT_ONE, ALL, COLOURS, GOALS, RULES, SHAPES, Ruleset, XLand
from engram.envs.registry import make

pytestmark = pytest.mark.usefixtures("quickly_compiled")

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
AHEAD, RIGHT, PICK_UP, PUT_DOWN = 0, 1, 3, 4
FLOOR = 1
DRAWS = 300
SETS = [("trivial", "train"), *(("small", split) for split in SPLITS)]


def test_splits_share_no_goal():
    goals = {
        split: {(s, c) for s, colours in read("xland", "goals")[split].items() for c in colours} for split in SPLITS
    }
    assert all(len(pairs) >= 2 for pairs in goals.values())
    assert sum(map(len, goals.values())) == len(set.union(*goals.values()))
    # `test` puts together otherwise what training knows; `heldout` has colours that no goal of training has.
    for part in (0, 1):
        assert {pair[part] for pair in goals["test"]} == {pair[part] for pair in goals["train"]}
    assert not {pair[1] for pair in goals["heldout"]} & {pair[1] for pair in goals["train"]}


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("xminigrid")


def test_options_are_checked(package):
    for option, message in (
        ("rulesets=large", "rulesets must be one of trivial, small"),
        ("layout=R3-9x9", "layout must be one of R1-9x9, "),
        ("horizon=-1", "horizon must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            make(f"meta/XLand?{option}")
    assert XLand().max_steps(None) == 3 * 81
    assert XLand(layout="R4-13x13", horizon=20).max_steps(None) == 20


def test_codes_are_those_of_the_package(package):
    goals, rules, constants = (
        pytest.importorskip(f"xminigrid.core.{name}") for name in ("goals", "rules", "constants")
    )
    assert {name: getattr(constants.Tiles, name.upper()) for name in SHAPES} == SHAPES
    assert {name: getattr(constants.Colors, name.upper()) for name in COLOURS} == COLOURS
    a, b, c = ALL[3], ALL[27], ALL[55]
    ways = ["", "Up", "Right", "Down", "Left"]
    ones = ["AgentHold", *(f"AgentNear{way}" for way in ways)]
    twos = [f"TileNear{way}" for way in ways]
    assert len(ones) == ABOUT_ONE
    for i, name in enumerate([*ones, *twos]):
        first = {"tile": a} if i < ABOUT_ONE else {"tile_a": a, "tile_b": b}
        things = [*a] if i < ABOUT_ONE else [*a, *b]
        goal, rule = [GOALS[i], *things], [RULES[i], *things, *c]
        np.testing.assert_array_equal(getattr(goals, f"{name}Goal")(**first).encode(), goal + [0] * (5 - len(goal)))
        encoded = getattr(rules, f"{name}Rule")(**first, prod_tile=c).encode()
        np.testing.assert_array_equal(encoded, rule + [0] * (7 - len(rule)))


@cache
def drawn(rulesets, split):
    draw = jax.jit(jax.vmap(partial(XLand(rulesets).draw, split=split)))
    return jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), DRAWS)))


def read_rule(row):
    """What a row of the package's encoding needs, and what it makes of it."""
    things = [tuple(map(int, row[i : i + 2])) for i in (1, 3, 5)]
    return (things[:1], things[1]) if row[0] in RULES[:ABOUT_ONE] else (things[:2], things[2])


@pytest.mark.parametrize(("rulesets", "split"), SETS)
def test_draws_follow_their_distribution(package, rulesets, split):
    tasks = drawn(rulesets, split)
    distribution = read("xland", "rulesets")[rulesets][split]
    names = read("xland", "goals")[split]
    allowed = {(SHAPES[shape], COLOURS[colour]) for shape, colours in names.items() for colour in colours}
    counts, codes = [], []
    for i in range(DRAWS):
        goal, rules, lying = tasks.goal[i], tasks.rules[i], [tuple(map(int, x)) for x in tasks.init_tiles[i] if any(x)]
        two = goal[0] in GOALS[ABOUT_ONE:]
        about = [tuple(map(int, goal[1:3])), *([tuple(map(int, goal[3:5]))] if two else [])]
        assert set(about) <= allowed
        assert two or not goal[3:].any()
        rows = [read_rule(row) for row in rules if row[0]]
        counts.append(len(rows))
        codes.append(int(goal[0]))
        # Each thing has one origin: it lies about, or one rule makes it; and one use, unless it distracts.
        needed = [thing for needs, _ in rows for thing in needs] + about
        origins = lying + [made for _, made in rows]
        assert len(set(origins)) == len(origins)
        assert len(set(needed)) == len(needed)
        assert set(needed) <= set(origins)
        assert len(origins) - len(needed) == distribution["distractors"]
    least, most = distribution["rules"]
    assert set(counts) == set(range(least, most + 1))
    shares = np.array([codes.count(code) for code in GOALS]) / DRAWS
    assert np.abs(shares - 1 / 11).max() < 4.5 * np.sqrt(10 / 121 / DRAWS)


class Player:
    """Knows the ruleset and sees everything. Walks by breadth-first search, and makes what it needs by the rules."""

    def __init__(self, functions, key, task):
        self.task, self.step_of = task, functions[1]
        self.state = functions[0](key, task)[1]
        self.rewards, self.over, self.steps = [], False, 0

    def act(self, action):
        if not self.over:
            self.steps += 1
            _, self.state, reward, reached, cut, info = self.step_of(
                jax.random.key(0), self.state, jnp.int32(action), self.task
            )
            assert info["success"] == reached
            self.rewards.append(float(reward))
            self.over = bool(reached | cut)

    @property
    def grid(self):
        return np.asarray(self.state.state.grid)

    def find(self, thing):
        found = np.argwhere((self.grid == thing).all(-1))
        return tuple(map(int, found[0])) if len(found) else None

    def face(self, cell, sides: Sequence[int] = range(4)):
        """Walks until `cell` is ahead, and the agent looks at it along one of the directions `sides`."""
        agent = self.state.state.agent
        start = (*map(int, np.asarray(agent.position)), int(agent.direction))
        free = self.grid[..., 0] == FLOOR
        came: dict[tuple, tuple | None] = {start: None}
        frontier = [start]
        while frontier:
            at = frontier.pop(0)
            y, x, d = at
            ahead = (y + int(MOVES[d][0]), x + int(MOVES[d][1]))
            if ahead == tuple(cell) and d in sides:
                break
            # Ahead only over floors that are not the cell itself.
            options = [(RIGHT, (y, x, (d + 1) % 4)), (2, (y, x, (d - 1) % 4))]
            options += [(AHEAD, (*ahead, d))] if free[ahead] and ahead != tuple(cell) else []
            for action, to in options:
                if to not in came:
                    came[to] = (at, action)
                    frontier.append(to)
        else:
            return False
        actions = []
        while (before := came[at]) is not None:
            at, action = before
            actions.append(action)
        for action in reversed(actions):
            self.act(action)
        return True

    def carry(self, thing):
        if tuple(np.asarray(self.state.state.agent.pocket).tolist()) != thing:
            assert self.face(self.find(thing))
            self.act(PICK_UP)

    def put_somewhere(self):
        """Puts down what it carries where all sides are free."""
        for cell in np.argwhere(self.grid[..., 0] == FLOOR):
            if all(self.grid[tuple(cell + move)][0] == FLOOR for move in MOVES) and self.face(tuple(map(int, cell))):
                return self.act(PUT_DOWN)
        raise AssertionError("no room")

    def meet(self, kind, things):
        """Brings about condition `kind`, an index into GOALS and RULES, of things that lie about or are carried."""
        if kind == 0:
            pocket = tuple(np.asarray(self.state.state.agent.pocket).tolist())
            if pocket == things[0]:
                self.put_somewhere()
            return self.carry(things[0])
        if kind < ABOUT_ONE:
            if self.find(things[0]) is None:
                self.put_somewhere()
            # One that looks up at a thing has it above, and a thing ahead is not walked over.
            sides = range(4) if kind == 1 else [kind - 2]
            if not self.over and not self.face(self.find(things[0]), sides):
                self.carry(things[0])
                self.put_somewhere()
                if self.find(things[0]) is None:  # to put it down has turned it
                    return None
                assert self.over or self.face(self.find(things[0]), sides)
            return self.act(AHEAD)
        for thing, other, turned in ((things[1], things[0], 0), (things[0], things[1], 2)):
            if self.find(other) is None:
                self.put_somewhere()
            for direction in range(4) if kind == ABOUT_ONE else [(kind - ABOUT_ONE - 1 + turned) % 4]:
                if self.over:
                    return None
                cell = tuple(int(i) for i in np.array(self.find(other)) + MOVES[direction])
                if self.grid[cell][0] == FLOOR:
                    self.carry(thing)
                    if self.over or self.face(cell):
                        return self.act(PUT_DOWN)
        # Both stand where nothing can be put beside them: move one to a free place first.
        self.carry(things[0])
        self.put_somewhere()
        return self.meet(kind, things)

    def has(self, thing):
        return self.find(thing) is not None or tuple(np.asarray(self.state.state.agent.pocket).tolist()) == thing

    def make(self, thing):
        """Plays until `thing` lies about or is carried; the agent's steps can turn things by the way."""
        for row in np.asarray(self.task.rules):
            needs, made = read_rule(row)
            if row[0] and made == thing and not self.has(thing):
                for need in needs:
                    self.make(need)
                if not self.has(thing):
                    self.meet(list(RULES).index(row[0]), needs)

    def play(self):
        goal = np.asarray(self.task.goal)
        kind = list(GOALS).index(goal[0])
        things = [tuple(map(int, goal[1:3])), tuple(map(int, goal[3:5]))][: 1 if kind < ABOUT_ONE else 2]
        for thing in things:
            self.make(thing)
        if not self.over:
            self.meet(kind, things)


@pytest.fixture(scope="module")
def functions(package):
    family = XLand()
    return jax.jit(family.reset), jax.jit(family.step)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_who_knows_the_ruleset_reaches_its_goal(functions, split):
    tasks, horizon = drawn("small", split), XLand().max_steps(None)
    goals = set()
    for i in range(24):
        task = Ruleset(*(jnp.asarray(x[i]) for x in (tasks.goal, tasks.rules, tasks.init_tiles)))
        player = Player(functions, jax.random.key(i), task)
        player.play()
        assert player.over, (i, task)
        assert not any(player.rewards[:-1])
        assert player.rewards[-1] == pytest.approx(1 - 0.9 * player.steps / horizon, abs=1e-6), (i, task)
        goals.add(int(task.goal[0]))
    assert len(goals) >= 9


def test_the_agent_sees_what_lies_before_it_and_the_horizon_truncates(functions):
    tasks = drawn("small", "train")
    task = Ruleset(*(jnp.asarray(x[0]) for x in (tasks.goal, tasks.rules, tasks.init_tiles)))
    reset, step = functions
    obs, state = reset(jax.random.key(5), task)
    for action in (RIGHT, RIGHT, AHEAD, RIGHT, AHEAD):
        obs, state, *_ = step(jax.random.key(0), state, jnp.int32(action), task)
        agent, grid = state.state.agent, np.pad(np.asarray(state.state.grid), ((5, 5), (5, 5), (0, 0)))
        forward, right = MOVES[int(agent.direction)], MOVES[(int(agent.direction) + 1) % 4]
        at = np.asarray(agent.position) + 5
        seen = [grid[tuple(at + (4 - row) * forward + (column - 2) * right)] for row in range(5) for column in range(5)]
        np.testing.assert_array_equal(obs, [*np.ravel(seen), int(agent.direction)])
    late = state.replace(state=state.state.replace(step_num=jnp.asarray(3 * 81 - 2)))
    for ends in (False, True):
        _, late, reward, reached, cut, _ = step(jax.random.key(0), late, jnp.int32(RIGHT), task)
        assert (float(reward), bool(reached), bool(cut)) == (0.0, False, ends)


def test_a_task_that_changes_changes_the_goal_at_once(functions):
    reset, step = functions
    tasks = drawn("trivial", "train")
    rules = jnp.zeros((2, 7), jnp.uint8)
    lying = jnp.asarray(np.concatenate([tasks.init_tiles[0], np.zeros((1, 2), np.uint8)])[:6])
    ball = jnp.asarray([3, 2], jnp.uint8)
    lying = lying.at[0].set(ball)
    before = Ruleset(jnp.asarray([1, 12, 11, 0, 0], jnp.uint8), rules, lying)
    player = Player((reset, step), jax.random.key(1), before)
    assert player.face(player.find((3, 2)))
    player.task = Ruleset(jnp.asarray([1, 3, 2, 0, 0], jnp.uint8), rules, lying)
    player.act(PICK_UP)
    assert player.rewards[-1] > 0.0
