"""Whole PPO updates, learning included: environment steps per second, interleaved over memories.

    python -m benchmarks.ppo popgym-fast --memories s5 gru mamba none
    python -m benchmarks.ppo paper/popgym-s5 --memories s5 gru --num-envs 16 --num-steps 128 --epochs 4 --minibatches 4

Each round runs every memory once; the table gives the median and best round, and each memory's ratio to the first one.
A memory may have options after its name, as in `--memories "gru backend=xla" gru`. `--width gru=304` sets the width of
one memory, to compare at equal arithmetic per step (`mflop` in the table, forward pass of one step of one environment
as XLA counts it: without what a kernel in C++ computes).
"""

import argparse
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from benchmarks.memory_probe import parse
from engram.agents.ppo.build import make_ppo
from engram.configs.presets import PRESETS, names
from engram.configs.presets.ppo import PPO
from engram.kernels.malloc import keep_freed_memory
from engram.training.programs import compile_agent, seed_keys


@dataclass
class Contender:
    """One memory, compiled and warm."""

    name: str
    steps: int
    compile_wall: float
    compile_cpu: float
    mflop: float
    parameters: int
    program: Any
    state: Any

    def run(self) -> tuple[float, float]:
        """Environment steps per second of wall time and of process CPU time, of one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, metrics = self.program(self.state)
        jax.block_until_ready(metrics)
        return self.steps / (time.perf_counter() - wall), self.steps / (time.process_time() - cpu)


def prepare(name: str, config: Any, updates: int) -> Contender:
    """Compiles `updates` updates of `config` and runs them once."""
    wall, cpu = time.perf_counter(), time.process_time()
    agent = make_ppo(config)
    programs = compile_agent(agent, config.seeds, updates)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    state = programs.init(seed_keys(0, config.seeds))
    first = jax.tree.map(lambda x: x[0], state)
    step = jax.jit(lambda p, m, o, r: agent.network.apply({"params": p}, m, o[None], r[None]))
    cost = step.lower(first.params, first.memory, first.obs, first.reset).compile().cost_analysis()
    contender = Contender(
        name=name,
        steps=updates * agent.steps_per_update * config.seeds,
        compile_wall=wall,
        compile_cpu=cpu,
        mflop=(cost or {}).get("flops", 0.0) / config.ppo.num_envs / 1e6,
        parameters=sum(x.size for x in jax.tree.leaves(first.params)),
        program=programs.chunk,
        state=state,
    )
    contender.run()
    return contender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=names(PPO))
    parser.add_argument("--memories", nargs="+", default=["s5", "gru", "none"])
    parser.add_argument("--env")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=4, help="updates per call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", nargs="*", default=[], help="memory=width, where it differs from the preset's")
    for name in ("num-envs", "num-steps", "epochs", "minibatches"):
        parser.add_argument(f"--{name}", type=int)
    arguments = parser.parse_args()
    keep_freed_memory()
    preset = PRESETS[arguments.preset]
    given = {k: getattr(arguments, k) for k in ("num_envs", "num_steps", "epochs", "minibatches")}
    ppo = replace(preset.ppo, **{k: v for k, v in given.items() if v is not None})
    widths = {name: int(width) for name, width in (pair.split("=") for pair in arguments.width)}

    contenders = []
    for memory in arguments.memories:
        name, options = parse(memory)
        own = PRESETS.get(f"paper/popgym-{name}", preset) if arguments.preset.startswith("paper/") else preset
        entries = (*own.network.memory_options, *(f"{name}.{key}={value}" for key, value in options.items()))
        network = replace(own.network, width=widths.get(name, own.network.width), memory_options=entries)
        config = replace(own, ppo=ppo, memory=name, seeds=arguments.seeds, network=network)
        if arguments.env:
            config = replace(config, env=arguments.env, eval_env="")
        contenders.append(prepare(memory, config, arguments.updates))
    rounds = [[contender.run() for contender in contenders] for _ in range(arguments.rounds)]

    rollout = f"{ppo.num_envs} x {ppo.num_steps} steps"
    learning = f"{ppo.epochs} epochs x {ppo.minibatches} minibatches"
    device = jax.devices()[0].device_kind
    print(f"{arguments.preset}: {rollout}, {learning},")
    print(f"{arguments.seeds} seed(s), jax {jax.__version__}, {device}, load {os.getloadavg()[0]:.1f}")
    print("| memory | parameters | mflop | steps/s median | best | per CPU-s | ratio | compile s (CPU-s) |")
    print("|---|---|---|---|---|---|---|---|")
    for index, c in enumerate(contenders):
        wall, cpu = np.array([row[index] for row in rounds]).T
        ratio = np.median([row[index][0] / row[0][0] for row in rounds])
        speeds = f"{np.median(wall):,.0f} | {wall.max():,.0f} | {np.median(cpu):,.0f} | {ratio:.2f}"
        print(
            f"| {c.name} | {c.parameters:,} | {c.mflop:.3f} | {speeds} | {c.compile_wall:.1f} ({c.compile_cpu:.1f}) |"
        )


if __name__ == "__main__":
    main()
