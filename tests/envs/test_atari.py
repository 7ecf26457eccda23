"""The Atari 100k protocol, against ale-py's bare emulator and envpool."""

from functools import cache
from typing import Any

import envpool
import numpy as np
import pytest

from engram.envs.host.atari import ATARI_100K, AtariOptions, Emulator, games
from engram.envs.host.pool import lane_seeds
from engram.envs.registry import UnknownEnvironment, env_ids, make, make_vector
from engram.envs.spaces import Box, Discrete
from tests.envs.atari_conformance import bare, compare, play, reference, small

SEED = 3
STEPS = {"Pong": 150, "Breakout": 240, "MsPacman": 460, "Qbert": 340, "RoadRunner": 300}
"""Of the comparison: until a game ended (but of Pong). `python -m tests.envs.atari_conformance` plays longer."""
# fmt: off
ACTIONS = {
    "Alien": 18, "Amidar": 10, "Assault": 7, "Asterix": 9, "BankHeist": 18, "BattleZone": 18, "Boxing": 18,
    "Breakout": 4, "ChopperCommand": 18, "CrazyClimber": 9, "DemonAttack": 6, "Freeway": 3, "Frostbite": 18,
    "Gopher": 8, "Hero": 18, "Jamesbond": 18, "Kangaroo": 18, "Krull": 18, "KungFuMaster": 14, "MsPacman": 9, "Pong": 6,
    "PrivateEye": 18, "Qbert": 6, "RoadRunner": 18, "Seaquest": 18, "UpNDown": 6,
}
# fmt: on
"""Sizes of the minimal action sets, from ALE's documentation of its games."""


def actions_for(n: int, steps: int, lanes: int = 1) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, n, (steps, lanes))


@cache
def breakout(options: str = "") -> tuple[np.ndarray, tuple]:
    """One lane of 260 steps."""
    return play(make_vector(f"atari/Breakout{options}", 1, seed=SEED), actions_for(4, 260))


@pytest.mark.parametrize("game", STEPS)
def test_frames_rewards_lives_and_ends_are_the_bare_emulators(game):
    met, differ = compare(game, STEPS[game], seed=1)
    assert not any(differ.values()), differ
    # Pong has no lives, and a game of it lasts longer; by chance the RoadRunner earns nothing.
    assert (met["ends"] > 0) == (game != "Pong")
    assert (met["lives lost"] > 0) == (game != "Pong")
    assert (met["rewards"] > 0) == (game != "RoadRunner")


def test_a_game_of_breakout_loses_five_lives_and_dummy_rows_none():
    _, (_, reward, terminated, truncated, info) = breakout()
    ends = np.flatnonzero(terminated)
    assert len(ends) > 0
    assert not truncated.any()
    for start, end in zip([0, *ends[:-1] + 1], ends, strict=True):
        assert info["life_lost"][start : end + 1].sum() == 5
        assert info["life_lost"][end], "the last life is a lost life, too"
    assert not info["valid"][ends + 1].any()
    assert info["life_lost"].dtype == bool
    assert reward.dtype == np.float32


def test_a_new_game_brings_lives_and_loses_none():
    """Games cut at 60 steps, with lives lost: the next one has more of them."""
    _, (_, _, terminated, truncated, info) = breakout("?max_episode_steps=60")
    cuts = np.flatnonzero(truncated)
    np.testing.assert_array_equal(cuts, np.arange(59, 260, 61))
    assert not terminated.any()
    assert info["life_lost"].sum() > 4
    assert not info["life_lost"][~info["valid"]].any()
    np.testing.assert_array_equal(info["reset"][1:], truncated[:-1])


def test_every_game_opens_with_some_no_ops_and_without_them_always_alike():
    emulator = bare("asterix", 0)
    emulator.reset_game()
    openings = [small(emulator.getScreenRGB())]
    for _ in range(30):
        emulator.act(0)
        openings.append(small(emulator.getScreenRGB()))
    assert len(np.unique(openings, axis=0)) == 31, "Asterix moves at once, so a picture tells the number of no-ops"

    def counts(options: str) -> list[int]:
        env = make_vector(f"atari/Asterix?max_episode_steps=1&{options}", 2, seed=SEED)
        first, (obs, _, _, _, info) = play(env, np.zeros((80, 2)))
        assert info["reset"][1::2].all()
        pictures = np.concatenate([first[None], obs[1::2]]).swapaxes(0, 1).reshape(-1, 64, 64, 3)
        return [next(n for n, known in enumerate(openings) if (known == picture).all()) for picture in pictures]

    drawn = counts("noop_max=30")
    assert drawn[:41] != drawn[41:]
    assert (min(drawn), max(drawn)) == (1, 30)
    assert len(set(drawn)) > 20, "82 draws from 30 leave out 2 on average"
    assert set(counts("noop_max=0")) == {0}


def test_limits_cut_and_do_not_terminate():
    assert make_vector("atari/Pong", 1).max_steps(None) == 108_000 / 4
    env = make_vector("atari/Pong?max_episode_steps=5", 2)
    assert env.max_steps(None) == 5
    _, (_, _, terminated, truncated, info) = play(env, actions_for(6, 14, 2))
    rows = np.tile([False] * 4 + [True, False], 3)[:14, None].repeat(2, axis=1)
    np.testing.assert_array_equal(truncated, rows)
    assert not terminated.any()
    np.testing.assert_array_equal(info["valid"].sum(axis=0), [12, 12])


def test_spaces_and_games():
    assert len(set(ATARI_100K)) == 26
    assert set(ATARI_100K) == set(ACTIONS)
    assert {f"atari/{game}" for game in ATARI_100K} < set(env_ids("atari/"))
    for game, actions in ACTIONS.items():
        emulator = Emulator(games()[game], AtariOptions(), seed=0)
        assert len(emulator.actions) == actions, game
        assert emulator.observation.shape == (64, 64, 3)
    pong = make_vector("atari/Pong", 2)
    assert pong.is_host_pool
    assert pong.observation_space(None) == Box(0.0, 255.0, (64, 64, 3), "uint8")
    assert pong.action_space(None) == Discrete(6)
    assert make_vector("atari/Pong?full_action_space=true", 1).action_space(None) == Discrete(18)
    assert play(pong, np.zeros((2, 2)))[1][0].dtype == np.uint8


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("atari/Pnog", "unknown environment 'atari/Pnog'; did you mean atari/Pong"),
        ("atari/pong", "did you mean atari/Pong"),
        ("atari/Pong?noops=3", "Pong has no option 'noops': did you mean noop_max"),
        ("atari/Pong?noop_max=-1", "noop_max must be at least 0, got -1"),
        ("atari/Pong?noop_max=2.5", "noop_max must be int"),
        ("atari/Pong?size=0", "size must be at least 1"),
        ("atari/Pong?stack=0", "stack must be at least 1"),
        ("atari/Pong?max_episode_steps=0", "max_episode_steps must be at least 1"),
        ("atari/Pong?grayscale=1", "grayscale must be bool"),
        ("atari/Pong?repeat_action_probability=1.5", r"must lie in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_is_one_clear_error(env_id, message):
    with pytest.raises(ValueError, match=message) as error:
        make_vector(env_id, 1)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UnknownEnvironment) == ("no option" in message or "did you mean" in message)
    with pytest.raises(ValueError, match=r"use make_vector|did you mean"):
        make(env_id)


def test_sticky_actions_are_the_emulators():
    actions = actions_for(4, 100)
    _, (obs, *_) = play(make_vector("atari/Breakout?repeat_action_probability=0.25", 1, seed=SEED), actions)
    np.testing.assert_array_equal(
        obs[:, 0], reference("breakout", actions[:, 0], *lane_seeds(SEED, 1), sticky=0.25)["obs"][1:]
    )
    assert not np.array_equal(obs, breakout()[1][0][:100])


def test_grey_stacked_pictures_are_envpools():
    actions = actions_for(18, 250).astype(np.int32)
    env = make_vector("atari/RoadRunner?size=84&grayscale=true&stack=4&noop_max=1", 1, seed=SEED)
    first, (obs, reward, terminated, *_) = play(env, actions)
    theirs = envpool.make(
        "RoadRunner-v5", env_type="gymnasium", num_envs=1, seed=lane_seeds(SEED, 1), noop_max=1, use_fire_reset=False
    )
    their_first, _ = theirs.reset()
    rows = [theirs.step(action)[:3] for action in actions]
    their_obs, their_reward, their_terminated = (np.stack(column) for column in zip(*rows, strict=True))
    np.testing.assert_array_equal(first, np.moveaxis(their_first, 1, -1))
    np.testing.assert_array_equal(reward, their_reward)
    np.testing.assert_array_equal(terminated, their_terminated)
    assert terminated.any()
    going = ~terminated  # where a game ends within the four frames, envpool shows an earlier frame
    np.testing.assert_array_equal(obs[going], np.moveaxis(their_obs, 2, -1)[going])


def test_with_episodic_life_the_same_game_goes_on():
    first, (obs, reward, terminated, truncated, info) = breakout("?episodic_life=true")
    lost = np.flatnonzero(info["life_lost"])
    np.testing.assert_array_equal(np.flatnonzero(terminated), lost)
    assert not truncated.any()
    assert len(lost) > 5
    np.testing.assert_array_equal(np.flatnonzero(info["reset"]), lost + 1)
    within = np.array([row + 1 for i, row in enumerate(lost) if i % 5 != 4])  # a game has five lives
    np.testing.assert_array_equal(obs[within], obs[within - 1])
    # Without the dummy rows in between, it is the whole game under the remaining actions.
    truth = reference("breakout", np.delete(actions_for(4, 260)[:, 0], within), SEED)
    np.testing.assert_array_equal(np.delete(obs[:, 0], within, axis=0), truth["obs"][1:])
    np.testing.assert_array_equal(np.delete(reward[:, 0], within), truth["reward"][1:])
    assert truth["over"].sum() > 0
    np.testing.assert_array_equal(first[0], truth["obs"][0])


def test_clipped_rewards_are_signs():
    actions = actions_for(9, 200)
    _, (_, reward, *_) = play(make_vector("atari/MsPacman?reward_clip=true", 1, seed=SEED), actions)
    truth = reference("ms_pacman", actions[:, 0], SEED)["reward"][1:]
    assert truth.max() >= 10
    np.testing.assert_array_equal(reward[:, 0], np.sign(truth))


def test_broken_skips_mix_old_frames_into_the_maximum():
    """Frames three and four have a buffer each; a lost life ends the skip, and what it did not fill is old."""
    _, (obs, _, _, _, info) = breakout("?skip_break_on_life=true")
    emulator = bare("breakout", SEED)
    emulator.reset_game()
    third = fourth = emulator.getScreenRGB()
    minimal, stale = emulator.getMinimalActionSet(), 0
    for row, action in enumerate(actions_for(4, 260)[:, 0]):
        if row and info["reset"][row, 0]:
            emulator.reset_game()
            third = fourth = emulator.getScreenRGB()
        else:
            lives = emulator.lives()
            for frame in (1, 2, 3, 4):
                emulator.act(minimal[action])
                if frame == 3:
                    third = emulator.getScreenRGB()
                elif frame == 4:
                    fourth = emulator.getScreenRGB()
                if emulator.lives() < lives:
                    break
            lost = emulator.lives() < lives
            stale += lost and frame < 4
            assert info["life_lost"][row, 0] == lost
        np.testing.assert_array_equal(obs[row, 0], small(np.maximum(third, fourth)))
    assert stale > 3


def test_a_fixed_seed_opens_every_game_alike():
    """The second game of ChopperCommand does not open as the first does."""

    def openings(options: str) -> Any:
        env = make_vector(f"atari/ChopperCommand?max_episode_steps=3{options}", 1, seed=SEED)
        first, (obs, *_, info) = play(env, np.ones((24, 1)))
        return np.unique([first[0], *obs[info["reset"]]], axis=0)

    assert len(openings("")) > 1
    assert len(openings("&env_seed_fixed=true")) == 1
