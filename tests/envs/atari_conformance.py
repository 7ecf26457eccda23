"""Our Atari environments and the bare emulator, step by step under the same actions.

`python -m tests.envs.atari_conformance --steps 1000` prints a table; the exit code is 1 when anything differs.

The reference knows ale-py's bare `ALEInterface` alone: it keeps the list of all raw screens of a game and makes of them
what the Atari 100k protocol says.
"""

import argparse
import sys
import time
from typing import Any

import ale_py
import cv2
import jax
import numpy as np
from ale_py import roms

from engram.envs.host.pool import lane_seeds
from engram.envs.registry import make_vector

GAMES = {
    "Pong": "pong",
    "Breakout": "breakout",
    "MsPacman": "ms_pacman",
    "Qbert": "qbert",
    "RoadRunner": "road_runner",
}


def bare(rom: str, seed: int, sticky: float = 0.0) -> ale_py.ALEInterface:
    """The emulator with a game in it."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setInt("frame_skip", 1)
    ale.setFloat("repeat_action_probability", sticky)
    ale.loadROM(str(roms.get_rom_path(rom)))
    return ale


def small(screen: np.ndarray) -> np.ndarray:
    return cv2.resize(screen, (64, 64), interpolation=cv2.INTER_AREA)


def reference(rom: str, actions: np.ndarray, seed: int, sticky: float = 0.0) -> dict[str, np.ndarray]:
    """Rows of playing `actions[steps]`, the first one that of the opening: observation, reward, lives, over, opens."""
    ale = bare(rom, seed, sticky)
    minimal = ale.getMinimalActionSet()
    rows, raw = [], []

    def opening() -> dict[str, Any]:
        ale.reset_game()
        raw[:] = [ale.getScreenRGB()]
        return {"obs": small(raw[0]), "reward": 0.0, "lives": ale.lives(), "over": False, "opens": True}

    rows.append(opening())
    for action in actions:
        if rows[-1]["over"]:
            rows.append(opening())
            continue
        reward = 0.0
        for _ in range(4):
            reward += ale.act(minimal[action])
            raw.append(ale.getScreenRGB())
            if ale.game_over():
                break
        obs = small(np.maximum(raw[-2], raw[-1]))
        rows.append(
            {"obs": obs, "reward": reward, "lives": ale.lives(), "over": ale.game_over(), "opens": False},
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def play(env: Any, actions: Any) -> tuple[np.ndarray, tuple]:
    """First observation and, stacked over time, `(obs, reward, terminated, truncated, info)` of a compiled roll-out."""

    def run(key, actions):
        first, state = env.reset(key, env.default_params)

        def one(state, action):
            obs, state, *rest = env.step(key, state, action, env.default_params)
            return state, (obs, *rest)

        return first, jax.lax.scan(one, state, actions)[1]

    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0), np.asarray(actions, np.int32)))


def compare(game: str, steps: int, seed: int) -> tuple[dict[str, int], dict[str, int]]:
    """What two lanes of `game` met under random actions, and how many of their rows differ from the reference."""
    env = make_vector(f"atari/{game}", 2, seed=seed)
    space: Any = env.action_space(env.default_params)
    actions = np.random.default_rng(seed).integers(0, space.n, (steps, 2))
    first, (obs, reward, terminated, truncated, info) = play(env, actions)
    met = {"ends": 0, "lives lost": 0, "rewards": 0}
    differ: dict[str, int] = dict.fromkeys(
        ("observation", "reward", "life_lost", "terminated", "truncated", "reset", "valid"), 0
    )
    for lane, lane_seed in enumerate(lane_seeds(seed, 2)):
        truth = reference(GAMES[game], actions[:, lane], lane_seed)
        lost = (truth["lives"][1:] < truth["lives"][:-1]) & ~truth["opens"][1:]
        pictures = np.concatenate([first[None, lane], obs[:, lane]])
        differ["observation"] += int((pictures != truth["obs"]).any(axis=(1, 2, 3)).sum())
        for name, ours, theirs in (
            ("reward", reward, truth["reward"][1:]),
            ("life_lost", info["life_lost"], lost),
            ("terminated", terminated, truth["over"][1:]),
            ("truncated", truncated, np.zeros(steps, bool)),
            ("reset", info["reset"], truth["opens"][1:]),
            ("valid", info["valid"], ~truth["opens"][1:]),
        ):
            differ[name] += int((ours[:, lane] != theirs).sum())
        met["ends"] += int(truth["over"].sum())
        met["lives lost"] += int(lost.sum())
        met["rewards"] += int((truth["reward"] != 0).sum())
    env.close()
    return met, differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="agent steps per game, of each of two lanes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{'game':12}{'steps':>8}{'ends':>6}{'lives lost':>12}{'rewards':>9}{'s':>7}  rows that differ")
    total = 0
    for game in GAMES:
        start = time.perf_counter()
        met, differ = compare(game, args.steps, args.seed)
        total += sum(differ.values())
        print(
            f"{game:12}{2 * args.steps:8}{met['ends']:6}{met['lives lost']:12}{met['rewards']:9}"
            f"{time.perf_counter() - start:7.1f}  {differ if any(differ.values()) else 'none'}",
            flush=True,
        )
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
