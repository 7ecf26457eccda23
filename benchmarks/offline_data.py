"""Gradient steps on a dataset that stays on the host, in its files, against the same on the device: one ratio a method.

    python -m benchmarks.offline_data                       # 1 GB of random numbers; dm and iql, at published batches
    python -m benchmarks.offline_data --gb 4 --presets dm --rounds 9
    python -m benchmarks.offline_data --peak host SET.engram # memory that one process takes, see below

Both learn from the same data, in turns; how far their parameters are apart at the end is said. The set is written to a
temporary folder just before, so that what is measured is a set whose files the system holds in memory. `--peak` prints
the greatest anonymous memory (`RssAnon`: not the pages of files, which the system drops as it likes) of a process that
loads a set and trains on it for some chunks, above what it had before it began, in MB.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents import registry
from engram.configs.presets import PRESETS
from engram.envs.base import Environment
from engram.envs.datasets import Origin, folder
from engram.envs.datasets.episodes import About
from engram.envs.spaces import Box
from engram.kernels.malloc import keep_freed_memory
from engram.training.programs import compile_agent, seed_keys

WIDTH, STEPS = 64, 1000
"""Entries of an observation, steps of an episode."""


@dataclass(frozen=True)
class Blank(Environment):
    """Where nothing happens: an environment for the set to be of."""

    cheap_reset = True

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(WIDTH), jnp.zeros((), jnp.int32)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any):
        no = jnp.zeros((), bool)
        return jnp.zeros(WIDTH), state + 1, jnp.zeros(()), state >= 1, no, {}

    def observation_space(self, params: Any) -> Box:
        return Box(-np.inf, np.inf, (WIDTH,))

    def action_space(self, params: Any) -> Box:
        return Box(-1.0, 1.0, (6,))

    def max_steps(self, params: Any) -> int:
        return 2


def write_random(path: Path, gigabytes: float) -> None:
    """A set of random numbers whose observations take so much."""
    rng, count = np.random.default_rng(0), max(2, round(gigabytes * 1e9 / (4 * WIDTH * (STEPS + 1))))

    def parts() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(count):
            yield {
                "obs": rng.standard_normal((STEPS + 1, WIDTH), np.float32),
                "action": rng.uniform(-1, 1, (STEPS, 6)).astype(np.float32),
                "reward": rng.standard_normal(STEPS, np.float32),
            }

    low, high = np.full((2, 6), [[-1.0], [1.0]], np.float32)
    origin = Origin(f"{__name__ if __name__ != '__main__' else 'benchmarks.offline_data'}:Blank")
    ends = {"lengths": [STEPS] * count, "terminated": [False] * count}
    folder.write_parts(parts(), About(origin, action_low=low, action_high=high, **ends), path)


def agent_of(preset: str, path: Path, device_gb: float) -> Any:
    config = PRESETS[preset]
    config = replace(config, dataset=str(path), env="", data=replace(config.data, device_gb=device_gb))
    group = "sequence" if hasattr(config, "sequence") else config.chosen
    return registry.build(replace(config, **{group: replace(getattr(config, group), eval_episodes=2)}))


def compare(preset: str, path: Path, updates: int, rounds: int) -> None:
    """Prints times of a gradient step, measured in turns."""
    programs, states = {}, {}
    for place, most in (("device", 1e3), ("host", 0.0)):
        programs[place] = compile_agent(agent_of(preset, path, most), 1, updates, False, 100)
        states[place] = programs[place].init(seed_keys(0, 1))
    seconds: dict[str, list[float]] = {place: [] for place in programs}
    for index in range(rounds + 1):
        for place, program in programs.items():
            started = time.perf_counter()
            states[place] = jax.block_until_ready(program.chunk(states[place])[0])
            if index:  # the first round finds nothing that was gathered ahead
                seconds[place].append(time.perf_counter() - started)
    ends = (jax.tree.leaves(states[place].params) for place in ("device", "host"))
    apart = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*ends, strict=True))
    ratios = np.array(seconds["host"]) / seconds["device"]
    device, host = (1e3 * np.median(seconds[place]) / updates for place in ("device", "host"))
    print(
        f"{preset}: device {device:.3f} ms, host {host:.3f} ms a gradient step, ratio {np.median(ratios):.3f} "
        f"(least {ratios.min():.3f}, most {ratios.max():.3f}); parameters differ by at most {apart:.3g}",
        flush=True,
    )


def anonymous() -> float:
    """Anonymous memory of this process in MB, without the pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def peak(preset: str, path: Path, place: str, updates: int) -> None:
    """Prints the most memory that loading and learning take, above what the process had before."""
    jax.block_until_ready(jnp.zeros(1))
    before, most, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    programs = compile_agent(agent_of(preset, path, 0.0 if place == "host" else 1e3), 1, updates)
    states = programs.init(seed_keys(0, 1))
    for _ in range(3):
        states = programs.chunk(states)[0]
    done.set()
    watcher.join()
    print(f"{max(most[0], anonymous()) - before:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["dm", "offline"])
    parser.add_argument("--gb", type=float, default=1.0, help="gigabytes of observations")
    parser.add_argument("--updates", type=int, default=100, help="gradient steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("PLACE", "SET"), help="measure only memory, with the first preset")
    args = parser.parse_args()
    if args.peak:
        return peak(args.presets[0], Path(args.peak[1]), args.peak[0], args.updates)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "random.engram"
        write_random(path, args.gb)
        for preset in args.presets:
            compare(preset, path, args.updates, args.rounds)


if __name__ == "__main__":
    main()
