"""POPGym's card, board and bandit families: the package as oracle, known mistakes, reset distributions."""

import dataclasses
from fractions import Fraction
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from popgym.envs.battleship import Battleship as PackageBattleship
from scipy import stats

from engram.envs import spaces
from engram.envs.popgym import POPGYM
from engram.envs.popgym.autoencode import PLAY, WATCH, Autoencode
from engram.envs.popgym.battleship import Battleship
from engram.envs.popgym.concentration import Concentration
from engram.envs.popgym.count_recall import CountRecall
from engram.envs.popgym.deck import shuffle
from engram.envs.popgym.higher_lower import HigherLower
from engram.envs.popgym.mine_sweeper import MineSweeper
from engram.envs.popgym.multiarmed_bandit import MultiarmedBandit
from engram.envs.popgym.repeat_first import RepeatFirst
from engram.envs.popgym.repeat_previous import RepeatPrevious
from tests.envs.popgym_conformance import CHECKS, GAMES, LEVELS, easy_first, play_ours, random_actions, reference

pytestmark = pytest.mark.usefixtures("quickly_compiled")
NAMES = [family + level for family in GAMES for level in LEVELS]


def family_of(name: str) -> str:
    return next(family for family in GAMES if name in [family + level for level in LEVELS])


def episodes_from_reset(env: Any, actions: np.ndarray, seed: int) -> tuple:
    """`play_ours` on content that our own reset draws: obs, reward, terminated, truncated."""

    def run(key: jax.Array, actions: jax.Array) -> tuple:
        _, state = env.reset(key, env.default_params)

        def step(state: Any, inputs: tuple) -> tuple:
            obs, state, reward, terminated, truncated, _ = env.step(inputs[1], state, inputs[0], env.default_params)
            return state, (obs, reward, terminated, truncated)

        return jax.lax.scan(step, state, (actions, jax.random.split(jax.random.fold_in(key, 1), len(actions))))[1]

    keys = jax.random.split(jax.random.key(seed), len(actions))
    return jax.device_get(jax.jit(jax.vmap(run))(keys, jnp.asarray(actions)))


def returns_and_lengths(reward: np.ndarray, done: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the first episode in each row; every row must end."""
    assert done.any(axis=1).all()
    lengths = done.argmax(axis=1) + 1
    counted = np.arange(done.shape[1]) < lengths[:, None]
    return np.where(counted, reward, 0).astype(np.float64).sum(axis=1), lengths


# ------------------------------------------------------------------------------------------------ package as oracle


@pytest.mark.parametrize("name", easy_first(NAMES))
def test_agrees_with_the_package(name: str) -> None:
    report = CHECKS[family_of(name)](name, POPGYM[name](), 9, 1)
    assert report.episodes == 9
    assert report.mismatches == []


@pytest.mark.parametrize("name", NAMES)
def test_spaces_are_the_package_s(name: str) -> None:
    def ours(space: gymnasium.Space) -> spaces.Space:
        if isinstance(space, gymnasium.spaces.Discrete):
            return spaces.Discrete(int(space.n))
        if isinstance(space, gymnasium.spaces.MultiDiscrete):
            return spaces.MultiDiscrete(tuple(int(n) for n in space.nvec))
        assert isinstance(space, gymnasium.spaces.Tuple)
        return spaces.Tuple(tuple(ours(part) for part in space.spaces))

    env, theirs = POPGYM[name](), reference(name)
    assert env.observation_space(env.default_params) == ours(theirs.observation_space)
    assert env.action_space(env.default_params) == ours(theirs.action_space)


@dataclasses.dataclass(frozen=True)
class LateModeFlip(Autoencode):
    """PLAY is announced one observation after the last card."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        (mode, card), *rest = super().step(key, state, action, params)
        return (jnp.where(state.t == self.num_cards - 2, WATCH, mode), card), *rest


@dataclasses.dataclass(frozen=True)
class SameCardMatches(Concentration):
    """One card flipped twice counts as a pair."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        obs, new, reward, terminated, truncated, info = super().step(key, state, action, params)
        same = state.first == action
        new = dataclasses.replace(new, face_up=new.face_up | (same & (jnp.arange(self.num_cards) == action)))
        return obs, new, jnp.where(same, 2 / self.num_cards, reward), terminated, truncated, info


@dataclasses.dataclass(frozen=True)
class TruncatesWins(MineSweeper):
    """The limit truncates an episode that the same step terminated."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        obs, new, reward, terminated, _, info = super().step(key, state, action, params)
        return obs, new, reward, terminated, new.t == self.num_clear, info


@dataclasses.dataclass(frozen=True)
class MinesMustBeOpened(MineSweeper):
    """A cleared board is not yet won."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        obs, new, reward, terminated, truncated, info = super().step(key, state, action, params)
        return obs, new, reward, terminated & (new.unopened > 0), truncated, info


@dataclasses.dataclass(frozen=True)
class ForgetsShots(Battleship):
    """A ship cell can be hit again and again."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        obs, new, *rest = super().step(key, state, action, params)
        return obs, dataclasses.replace(new, cells=state.cells), *rest


@dataclasses.dataclass(frozen=True)
class ExcludesCardOnDisplay(CountRecall):
    """Counts only the values dealt before the one on display."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        shown = self.kind(state.value_deck[self.num_cards - 1 - state.t])
        before = state.counts - (jnp.arange(self.num_kinds) == shown)
        reward = super().step(key, dataclasses.replace(state, counts=before), action, params)[2]
        obs, new, _, *rest = super().step(key, state, action, params)
        return obs, new, reward, *rest


@dataclasses.dataclass(frozen=True)
class TiesCount(HigherLower):
    """Equal ranks count as lower."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        obs, new, reward, *rest = super().step(key, state, action, params)
        tie = jnp.where(action == 1, 1 / self.num_cards, -1 / self.num_cards)
        return obs, new, jnp.where(reward == 0, tie, reward), *rest


@dataclasses.dataclass(frozen=True)
class OneStepLonger(MultiarmedBandit):
    """Truncates one step late."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        *front, _, info = super().step(key, state, action, params)
        return *front, state.t >= self.episode_length, info


@dataclasses.dataclass(frozen=True)
class FirstScoredLate(RepeatFirst):
    """No reward on the first step."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        obs, new, reward, *rest = super().step(key, state, action, params)
        return obs, new, jnp.where(state.t == 0, 0.0, reward), *rest


@dataclasses.dataclass(frozen=True)
class OneStepFurtherBack(RepeatPrevious):
    """Asks for the suit at t - k instead of t - k + 1, at the reward scale of k."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        further = RepeatPrevious(self.num_decks, self.k + 1).step(key, state, action, params)
        scale = (self.num_cards - self.k - 1) / (self.num_cards - self.k)
        return *further[:2], further[2] * scale, *further[3:]


MUTANTS = {
    "RepeatFirst": [FirstScoredLate],
    "RepeatPrevious": [OneStepFurtherBack],
    "Autoencode": [LateModeFlip],
    "CountRecall": [ExcludesCardOnDisplay],
    "HigherLower": [TiesCount],
    "Concentration": [SameCardMatches],
    "MineSweeper": [TruncatesWins, MinesMustBeOpened],
    "Battleship": [ForgetsShots],
    "MultiarmedBandit": [OneStepLonger],
}


@pytest.mark.parametrize("level", easy_first(LEVELS))
@pytest.mark.parametrize(("family", "mutant"), [(f, m) for f, mutants in MUTANTS.items() for m in mutants])
def test_the_oracle_catches_mutants(family: str, mutant: type, level: str) -> None:
    name = family + level
    # As many episodes as it takes to meet the case: one card flipped twice by chance, or a board cleared.
    report = CHECKS[family](name, mutant(**vars(POPGYM[name]())), 9, 1)
    assert report.mismatches


# ------------------------------------------------------------------------------------- mistakes of an earlier port


LENGTHS = {
    "RepeatFirst": (51, 415, 831),
    "RepeatPrevious": (51, 103, 155),
    "Autoencode": (103, 207, 311),
    "CountRecall": (51, 103, 207),
    "HigherLower": (51, 103, 155),
    "Concentration": (104, 208, 104),
    "MineSweeper": (14, 30, 54),
    "Battleship": (64, 100, 144),
    "MultiarmedBandit": (200, 400, 600),
}
PERFECT_RETURN_IS_ONE = ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall", "MineSweeper", "Battleship")
TERMINATED_ONLY = ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall", "HigherLower")


@pytest.mark.parametrize("family", TERMINATED_ONLY)
@pytest.mark.parametrize("level", easy_first(LEVELS))
def test_deck_games_last_exactly_one_deck(family: str, level: str) -> None:
    env = POPGYM[family + level]()
    length = LENGTHS[family][LEVELS.index(level)]
    assert env.max_steps(env.default_params) == length
    _, _, terminated, truncated = episodes_from_reset(env, np.zeros((2, length), np.int32), 0)
    np.testing.assert_array_equal(terminated, np.tile(np.arange(length) == length - 1, (2, 1)))
    assert not truncated.any()


@pytest.mark.parametrize("family", ["Concentration", "Battleship", "MultiarmedBandit"])
def test_time_limits_truncate(family: str) -> None:
    """Doing the same thing for ever ends at the limit, truncated and not terminated."""
    for level, length in zip(LEVELS, LENGTHS[family], strict=True):
        env = POPGYM[family + level]()
        assert env.max_steps(env.default_params) == length
    env, length = POPGYM[family + "Easy"](), LENGTHS[family][0]
    actions = np.zeros_like(random_actions(env.action_space(env.default_params), length, np.random.default_rng(0)))
    _, _, terminated, truncated = episodes_from_reset(env, actions[None].astype(np.int32), 0)
    assert not terminated.any()
    np.testing.assert_array_equal(truncated[0], np.arange(length) == length - 1)


@pytest.mark.parametrize("family", PERFECT_RETURN_IS_ONE)
@pytest.mark.parametrize("level", easy_first(LEVELS))
def test_perfect_play_returns_one(family: str, level: str) -> None:
    name = family + level
    env, theirs, rng = POPGYM[name](), reference(name), np.random.default_rng(0)
    best = -np.inf
    for seed in range(8):  # informed MineSweeper and Battleship play is perfect in every second episode
        theirs.reset(seed=seed)
        content = GAMES[family].content(theirs)
        length = env.max_steps(env.default_params)
        actions = GAMES[family].informed(theirs, content, rng)[:length].astype(np.int32)
        keys = jax.random.split(jax.random.key(0), (1, len(actions)))
        _, reward, terminated, truncated = play_ours(env, tuple(part[None] for part in content), actions[None], keys)
        best = max(best, returns_and_lengths(reward, terminated | truncated)[0][0])
        if best > 0.999:
            break
    assert best == pytest.approx(1, abs=1e-5)


def test_autoencode_shows_the_deck_and_says_when_to_play() -> None:
    env = Autoencode(num_decks=1)
    deck = np.random.default_rng(0).permutation(52).astype(np.int32)
    suits = deck[::-1] % 4
    actions = np.concatenate([np.zeros(51), suits[::-1]]).astype(np.int32)
    obs, reward, terminated, _ = play_ours(
        env, (deck[None],), actions[None], jax.random.split(jax.random.key(0), (1, 103))
    )
    np.testing.assert_array_equal(obs[0, :52, 1], suits)
    np.testing.assert_array_equal(obs[0, :, 0], [WATCH] * 51 + [PLAY] * 53)
    np.testing.assert_array_equal(obs[0, 52:, 1], 0)
    np.testing.assert_allclose(reward[0], [0] * 51 + [1 / 52] * 52, rtol=1e-6)
    assert terminated[0].argmax() == 102


@pytest.mark.parametrize(("level", "actions"), [("Easy", 27), ("Medium", 27), ("Hard", 17)])
def test_count_recall_can_name_every_count(level: str, actions: int) -> None:
    env = POPGYM["CountRecall" + level]()
    assert env.action_space(env.default_params) == spaces.Discrete(actions)


def test_count_recall_includes_the_card_on_display() -> None:
    env = CountRecall(num_decks=1, deck_type="colors")
    black_then_red = np.concatenate([np.arange(1, 52, 2), np.arange(0, 52, 2)]).astype(np.int32)  # dealt from the end
    obs, state = env.state_from(jnp.asarray(black_then_red), jnp.asarray(black_then_red))
    assert obs.tolist() == [0, 0]
    _, state, reward, *_ = env.step(jax.random.key(0), state, jnp.int32(1), env.default_params)
    assert float(reward) == pytest.approx(1 / 51)
    _, _, reward, *_ = env.step(jax.random.key(0), state, jnp.int32(1), env.default_params)
    assert float(reward) == pytest.approx(-1 / 51)


def test_repeat_previous_asks_three_cards_back_at_easy() -> None:
    env = POPGYM["RepeatPreviousEasy"]()
    deck = np.random.default_rng(0).permutation(52).astype(np.int32)
    suits = deck[::-1] % 4
    actions = np.concatenate([np.zeros(3), suits[:48]]).astype(np.int32)
    _, reward, _, _ = play_ours(env, (deck[None],), actions[None], jax.random.split(jax.random.key(0), (1, 51)))
    np.testing.assert_allclose(reward[0], [0] * 3 + [1 / 48] * 48, rtol=1e-6)


def test_mine_sweeper_is_won_with_the_mines_closed() -> None:
    env = MineSweeper(size=4, num_mines=2)
    mines = np.zeros((4, 4), bool)
    mines[0, 0] = mines[1, 1] = True
    clear = np.argwhere(~mines).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), (1, 14))
    obs, reward, terminated, truncated = play_ours(env, (mines[None],), clear[None], keys)
    assert obs[0, 0] == 0
    # Mines around each clear cell in row-major order, counted by hand.
    assert obs[0, 1:, 0].tolist() == [2, 1, 0, 2, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(terminated[0], np.arange(14) == 13)
    assert not truncated.any()
    assert reward.sum() == pytest.approx(1)


def test_mine_sweeper_can_show_every_count() -> None:
    """A mine counts itself: all `num_mines` of a corner block of four appear in its observation."""
    env = MineSweeper(size=4, num_mines=4)
    mines = jnp.zeros((4, 4), bool).at[:2, :2].set(True)
    _, state = env.state_from(mines)
    obs, _, reward, terminated, truncated, _ = env.step(jax.random.key(0), state, jnp.array([0, 0]), env.default_params)
    assert int(obs) == 4
    assert env.observation_space(env.default_params) == spaces.Discrete(5)
    assert float(reward) == pytest.approx(-0.5 - 1 / 12)
    assert (bool(terminated), bool(truncated)) == (True, False)


@pytest.mark.parametrize("family", list(GAMES))
def test_no_index_leaves_its_array(family: str) -> None:
    """Index clamping would hide a read past the end of a deck or a board."""
    env = POPGYM[family + "Easy"]()
    params, length = env.default_params, LENGTHS[family][0]

    def episode(key: jax.Array) -> jax.Array:
        reset_key, action_key, step_key = jax.random.split(key, 3)
        _, state = env.reset(reset_key, params)
        actions: Any = jax.vmap(env.action_space(params).sample)(jax.random.split(action_key, length))

        def step(carry: tuple, action: jax.Array) -> tuple:
            state, done = carry
            _, new, reward, terminated, truncated, _ = env.step(step_key, state, action, params)
            state = jax.tree.map(lambda old, new: jnp.where(done, old, new), state, new)
            return (state, done | terminated | truncated), reward

        return jax.lax.scan(step, (state, jnp.bool_(False)), actions)[1]

    checked = jax.jit(checkify.checkify(episode, errors=checkify.index_checks | checkify.nan_checks))
    error, _ = checked(jax.random.key(0))
    assert error.get() is None


# ----------------------------------------------------------------------------------------------- reset distributions


def chi_square_p(counts: np.ndarray, expected: np.ndarray | float) -> float:
    """P value of independent counts against expected ones."""
    expected = np.broadcast_to(expected, counts.shape)
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


def test_shuffles_are_uniform() -> None:
    n = 20_000
    small = jax.device_get(jax.jit(jax.vmap(lambda key: shuffle(key, 5)))(jax.random.split(jax.random.key(0), n)))
    _, counts = np.unique(small @ 5 ** np.arange(5), return_counts=True)
    assert len(counts) == 120
    assert chi_square_p(counts, n / 120) > 1e-3

    decks = jax.device_get(jax.jit(jax.vmap(lambda key: shuffle(key, 52)))(jax.random.split(jax.random.key(1), n)))
    assert (np.sort(decks, axis=1) == np.arange(52)).all()
    last_two = np.bincount(decks[:, -1] * 52 + decks[:, -2], minlength=52**2).reshape(52, 52)
    assert (np.diag(last_two) == 0).all()
    assert chi_square_p(last_two[~np.eye(52, dtype=bool)], n / (52 * 51)) > 1e-3

    large = jax.device_get(jax.jit(jax.vmap(lambda key: shuffle(key, 208)))(jax.random.split(jax.random.key(2), 4_000)))
    assert (np.sort(large, axis=1) == np.arange(208)).all()
    assert chi_square_p(np.bincount(large[:, -1], minlength=208), 4_000 / 208) > 1e-3


def test_count_recall_shuffles_its_decks_independently() -> None:
    env = CountRecall(num_decks=1, deck_type="suits")
    keys = jax.random.split(jax.random.key(0), 8_000)
    obs, _ = jax.jit(jax.vmap(lambda key: env.reset(key, env.default_params)))(keys)
    pairs = np.asarray(obs) @ [4, 1]
    assert chi_square_p(np.bincount(pairs, minlength=16), 500.0) > 1e-3


def test_mines_are_a_uniform_subset() -> None:
    env = MineSweeper(size=4, num_mines=2)
    keys = jax.random.split(jax.random.key(0), 12_000)
    _, state = jax.jit(jax.vmap(lambda key: env.reset(key, env.default_params)))(keys)
    mines = np.asarray(state.cells)[:, 1:-1, 1:-1].reshape(-1, 16) == 1
    assert (mines.sum(axis=1) == 2).all()
    _, counts = np.unique(mines @ 2 ** np.arange(16), return_counts=True)
    assert len(counts) == 120
    assert chi_square_p(counts, 100.0) > 1e-3
    assert not np.asarray(state.cells)[:, [0, -1], :].any()
    assert not np.asarray(state.cells)[:, :, [0, -1]].any()


def our_boards(env: Battleship, count: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    _, state = jax.jit(jax.vmap(lambda key: env.reset(key, env.default_params)))(keys)
    return np.asarray(state.cells).reshape(count, -1) == 1


def exact_board_probabilities(size: int, lengths: tuple[int, ...]) -> dict[frozenset, Fraction]:
    """popgym's rejection sampler, by enumeration of its (start, axis, sign) draws and Bayes' rule."""

    def segments(length: int) -> list[frozenset]:
        found = []
        for start in np.ndindex(size, size):
            for axis in range(2):
                for sign in (1, -1):
                    cells = [tuple(np.add(start, np.eye(2, dtype=int)[axis] * sign * k)) for k in range(length)]
                    if all(0 <= c < size for cell in cells for c in cell):
                        found.append(frozenset(int(i * size + j) for i, j in cells))
        return found

    boards = {frozenset(): Fraction(1)}
    for length in lengths:
        following: dict[frozenset, Fraction] = {}
        for board, probability in boards.items():
            valid = [segment for segment in segments(length) if not segment & board]
            for segment in valid:
                key = board | segment
                following[key] = following.get(key, Fraction(0)) + probability / len(valid)
        boards = following
    return boards


def test_battleship_placement_is_exactly_the_rejection_sampler_s() -> None:
    n = 20_000
    exact = exact_board_probabilities(4, (2, 3))
    index = {board: i for i, board in enumerate(exact)}
    drawn = our_boards(Battleship(size=4, ship_sizes=(2, 3)), n)
    counts = np.zeros(len(exact))
    for board in drawn:
        counts[index[frozenset(np.flatnonzero(board).tolist())]] += 1
    assert chi_square_p(counts, np.array([float(p) for p in exact.values()]) * n) > 1e-3


def test_battleship_cells_are_occupied_as_often_as_in_the_package() -> None:
    """Every cell and every pair of neighbours, at 4.5 sigma of the difference of two samples."""
    theirs = PackageBattleship(board_size=8, ship_sizes=[2, 3, 3, 4])
    theirs.reset(seed=0)
    boards = []
    for _ in range(4_000):
        theirs.reset()
        boards.append(theirs.board == 1)
    package, ours = np.array(boards), our_boards(Battleship(size=8), 20_000).reshape(-1, 8, 8)
    for select in (lambda b: b, lambda b: b[:, 1:] & b[:, :-1], lambda b: b[:, :, 1:] & b[:, :, :-1]):
        p, q = select(package).mean(axis=0), select(ours).mean(axis=0)
        sigma = np.sqrt(p * (1 - p) / len(package) + q * (1 - q) / len(ours))
        assert np.abs((p - q) / sigma).max() < 4.5
    assert (ours.sum(axis=(1, 2)) == 12).all()


def test_bandit_arms_are_uniform() -> None:
    env = POPGYM["MultiarmedBanditEasy"]()
    keys = jax.random.split(jax.random.key(0), 1_000)
    _, state = jax.jit(jax.vmap(lambda key: env.reset(key, env.default_params)))(keys)
    assert stats.kstest(np.asarray(state.probabilities).ravel(), "uniform").pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------ random policy


# Mean return of a uniformly random policy and its standard error: 400 episodes of popgym 1.0.7, or exact.
RANDOM_POLICY = {
    "RepeatFirst": (-0.5, 0.0),
    "RepeatPrevious": (-0.5, 0.0),
    "Autoencode": (-0.5, 0.0),
    "CountRecall": (-1 + 2 / 27, 0.0),
    "HigherLower": (0.0, 0.0),
    "Concentration": (-0.1956, 0.0053),
    "MineSweeper": (-0.2236, 0.0161),
    "Battleship": (-0.4575, 0.0080),
    "MultiarmedBandit": (0.0, 0.0),
}


@pytest.mark.parametrize("family", list(RANDOM_POLICY))
def test_random_policy_mean(family: str) -> None:
    env, episodes = POPGYM[family + "Easy"](), 1_000
    space = env.action_space(env.default_params)
    length = LENGTHS[family][0]
    actions = random_actions(space, episodes * length, np.random.default_rng(7))
    actions = actions.reshape(episodes, length, *actions.shape[1:]).astype(np.int32)
    _, reward, terminated, truncated = episodes_from_reset(env, actions, 11)
    returns, _ = returns_and_lengths(reward, terminated | truncated)
    mean, error = RANDOM_POLICY[family]
    assert abs(returns.mean() - mean) < 4 * np.hypot(error, returns.std() / np.sqrt(episodes))


@pytest.mark.parametrize("family", list(GAMES))
def test_pictures(family: str) -> None:
    """First and later states are drawn as RGB pictures of one size, and a step changes the picture."""
    env = POPGYM[family + "Medium"]()
    params = env.default_params

    @jax.jit
    def two_states(key: jax.Array) -> tuple:
        _, state = env.reset(key, params)
        return state, env.step(key, state, env.action_space(params).sample(key), params)[1]

    first, second = (env.render(state, params) for state in jax.device_get(two_states(jax.random.key(0))))
    assert first.dtype == np.uint8
    assert first.shape == second.shape
    assert min(first.shape[:2]) >= 240
    assert first.shape[2] == 3
    assert (first != second).any()
