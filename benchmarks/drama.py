"""Updates per second of Drama as one program, against a Python loop over the same compiled pieces.

    python -m benchmarks.drama                      # drama-catch
    python -m benchmarks.drama --memory gru --updates 20 --rounds 7

The loop is what a straightforward port does: one call for each environment step, each draw from the replay, each
imagined step and each gradient step, with the time spent only in calling. Both do the same work; they alternate.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.drama import Drama, DramaState
from agents.run.loop import compile_agent, seed_keys
from configs.presets import DRAMA_PRESETS
from kernels.malloc import keep_freed_memory
from scripts.common import make_drama


def stepwise(agent: Drama) -> Callable[[DramaState, int], DramaState]:
    """`n` updates of `agent`, a call at a time."""
    s, replay = agent.settings, agent.replay
    collect = jax.jit(lambda state, key: agent._collect(state, key)[0], donate_argnums=0)
    draw_training = jax.jit(lambda kept, key: replay.draw_training(kept, key, s.batch_size, s.batch_length))
    draw_imagination = jax.jit(lambda kept, key: replay.draw_imagination(kept, key, s.contexts, s.context))
    windows = jax.jit(replay.windows, static_argnums=2)
    learn_world, remember, imagine_step, judge, learn_behaviour = (
        jax.jit(f) for f in (agent.learn_world, agent.remember, agent.imagine_step, agent.judge, agent.learn_behaviour)
    )
    split = jax.jit(jax.random.split, static_argnums=1)

    def learn(state: DramaState) -> DramaState:
        key, *keys = split(state.key, 5 + s.horizon)
        # The pieces take what they need: handing the whole replay to each of them would copy it.
        kept, light = state.replay, state.replace(replay=())
        counted, starts = draw_training(kept, keys[0])
        light, _ = learn_world(light, windows(counted, starts, s.batch_length), keys[1])
        counted, starts = draw_imagination(counted, keys[2])
        imagination, ended = remember(light, windows(counted, starts, s.context), keys[3])
        steps = []
        for step_key in keys[4:]:
            imagination, step = imagine_step(light, imagination, step_key)
            steps.append(step)
        x, action = (jnp.stack(column) for column in zip(*steps, strict=True))
        light, _ = learn_behaviour(light, judge(light, imagination, x, action, ended), imagination.statistics)
        return light.replace(replay=counted, key=key)

    def run(state: DramaState, n: int) -> DramaState:
        for _ in range(n):
            for _ in range(s.train_every):
                key, collect_key = split(state.key, 2)
                state = collect(state.replace(key=key), collect_key)
            state = learn(state)
        return state

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(DRAMA_PRESETS), default="drama-catch")
    parser.add_argument("--memory")
    parser.add_argument("--updates", type=int, default=25, help="updates per round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()
    config = DRAMA_PRESETS[args.preset]
    config = replace(config, memory=args.memory or config.memory)
    agent = make_drama(config)
    programs = compile_agent(agent, 1, args.updates)
    states = programs.init(seed_keys(0, 1))
    while int(jnp.sum(states.replay.filled)) < config.drama.prefill:
        states = programs.chunk(states)[0]
    state: Any = jax.tree.map(lambda x: x[0].copy(), states)
    loop = stepwise(agent)
    state = loop(state, 2)  # compiles
    rates: dict[str, list[float]] = {"one program": [], "Python loop": []}
    for _ in range(args.rounds):
        start = time.perf_counter()
        states = jax.block_until_ready(programs.chunk(states)[0])
        rates["one program"].append(args.updates / (time.perf_counter() - start))
        start = time.perf_counter()
        state = jax.block_until_ready(loop(state, args.updates))
        rates["Python loop"].append(args.updates / (time.perf_counter() - start))
    print(f"{args.preset}, {config.memory}: compiled in {programs.seconds:.1f} s, with evaluation and initialisation")
    for name, values in rates.items():
        print(f"{name:12s} {np.median(values):7.1f} updates/s (best {max(values):.1f})")
    ratios = np.array(rates["one program"]) / np.array(rates["Python loop"])
    print(f"ratio        {np.median(ratios):7.2f} (least {ratios.min():.2f}, most {ratios.max():.2f})")


if __name__ == "__main__":
    main()
