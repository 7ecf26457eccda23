"""What it costs to step trials of different environments in one batch.

    python -m benchmarks.meta
    python -m benchmarks.meta --members brax-inverted_pendulum brax-reacher --num-envs 32 --steps 50

A mixture, in which every member has its share of the environments, against each member alone with all of them. The
ratio is of the mixture's time per step of the batch to the mean of the members' times, once by the wall clock and once
in CPU-seconds of the whole process. All take turns in the same run, so that a noisy machine is noisy for all, and of
each the median over rounds counts. Compilation is not counted. Actions are random.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks.envs import compiled
from engram.envs.registry import make_vector
from engram.kernels.malloc import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", nargs="+", default=["CartPole", "Acrobot", "MountainCar"])
    parser.add_argument("--options", default="project_observations=8&project_actions=true", help="of ids, for all")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=500, help="of each environment per round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, in each of which every contender runs once")
    arguments = parser.parse_args()
    keep_freed_memory()

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {'+'.join(arguments.members)}\n")
    print("| environments | contender | microseconds per step of the batch, wall | CPU | mixture is (wall) | (CPU) |")
    print("|---|---|---|---|---|---|")
    for num_envs in arguments.num_envs:
        ids = {name: f"meta/{name}?{arguments.options}" for name in dict.fromkeys(arguments.members)}
        ids["mixture"] = f"meta/Mixture?members={'+'.join(arguments.members)}&{arguments.options}"
        runs = {label: compiled(make_vector(env_id, num_envs), arguments.steps) for label, env_id in ids.items()}
        times = {label: [] for label in runs}
        for _ in range(arguments.rounds):
            for label, run in runs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                times[label].append((time.perf_counter() - wall, time.process_time() - cpu))
        medians = {label: np.median(rows, axis=0) * 1e6 / arguments.steps for label, rows in times.items()}
        ratios = medians["mixture"] / np.mean([medians[name] for name in arguments.members], axis=0)
        for label, (wall, cpu) in medians.items():
            last = f"{ratios[0]:.2f}x | {ratios[1]:.2f}x" if label == "mixture" else " | "
            print(f"| {num_envs} | {label} | {wall:,.1f} | {cpu:,.1f} | {last} |", flush=True)


if __name__ == "__main__":
    main()
