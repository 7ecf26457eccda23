"""Updates per second of Drama as one program, against a Python loop over the same compiled pieces.

    python -m benchmarks.drama                      # drama-catch
    python -m benchmarks.drama --memory gru --updates 20 --rounds 7
    python -m benchmarks.drama --preset atari100k --parts [--precision bfloat16]

The loop does what a straightforward port does: one compiled call for each environment step, each sample from the
replay, each imagined step and each gradient step. Both do the same work, in turns.

`--parts` times the one program and its parts instead, each compiled by itself: the gradient steps of the world model
and of the behaviour, with sampling from the replay, and acting (except in emulators, which cannot be rewound). It also
prints the arithmetic that XLA counts in them and the memory that they need.
"""

import argparse
import collections
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.drama.agent import Drama, DramaState
from engram.agents.drama.build import make_drama
from engram.configs.presets import PRESETS, names
from engram.configs.presets.drama import DRAMA
from engram.kernels.malloc import keep_freed_memory
from engram.training.programs import compile_agent, seed_keys


def stepwise(agent: Drama) -> Callable[[DramaState, int], DramaState]:
    """A function that takes `n` updates of `agent`, one call for each piece of an update."""
    s, replay = agent.settings, agent.replay
    collect = jax.jit(lambda state, key: agent._collect(state, key)[0], donate_argnums=0)
    draw_training = jax.jit(lambda kept, key: replay.draw_training(kept, key, s.batch_size, s.batch_length))
    draw_imagination = jax.jit(lambda kept, key: replay.draw_imagination(kept, key, s.contexts, s.context))
    windows = jax.jit(replay.windows, static_argnums=2)
    learn_world, learn_behaviour = jax.jit(agent.learn_world), jax.jit(agent.learn_behaviour)
    encode_context, imagine_step, predict_outcomes = (
        jax.jit(f) for f in (agent.encode_context, agent.imagine_step, agent.predict_outcomes)
    )
    split = jax.jit(jax.random.split, static_argnums=1)

    def learn(state: DramaState) -> DramaState:
        key, *keys = split(state.key, 5 + s.horizon)
        # Each piece gets only what it needs: handing the whole replay to each of them would copy it.
        light = state.replace(replay=())
        counted, starts = draw_training(state.replay, keys[0])
        light, _ = learn_world(light, windows(counted, starts, s.batch_length), keys[1])
        counted, starts = draw_imagination(counted, keys[2])
        imagination, ended = encode_context(light, windows(counted, starts, s.context), keys[3])
        steps = []
        for step_key in keys[4:]:
            imagination, step = imagine_step(light, imagination, step_key)
            steps.append(step)
        trajectory = jax.tree.map(lambda *column: jnp.stack(column), *steps)
        imagined = predict_outcomes(light, imagination, *trajectory, ended)
        light, _ = learn_behaviour(light, imagined, imagination.statistics)
        return light.replace(replay=counted, key=key)

    def run(state: DramaState, n: int) -> DramaState:
        for _ in range(n):
            for _ in range(s.train_every):
                key, collect_key = split(state.key, 2)
                state = collect(state.replace(key=key), collect_key)
            state = learn(state)
        return state

    return run


def parts(agent: Drama) -> dict[str, Callable[[DramaState, jax.Array], Any]]:
    """The parts of an update by name, functions of a state and a key. They do not return the whole state, so that
    copying a replay is not timed."""
    s, replay = agent.settings, agent.replay

    def collect(state, key):
        after, _ = agent._collect(state, key)
        return after.obs, after.env  # the results that a step waits for; writing to the replay is timed too

    def learn_world(state, key):
        draw_key, key = jax.random.split(key)
        counted, starts = replay.draw_training(state.replay, draw_key, s.batch_size, s.batch_length)
        after, metrics = agent.learn_world(state, replay.windows(counted, starts, s.batch_length), key)
        return after.world, after.world_optimiser, metrics

    def encode_context(state, key):
        draw_key, key = jax.random.split(key)
        counted, starts = replay.draw_imagination(state.replay, draw_key, s.contexts, s.context)
        return agent.encode_context(state, replay.windows(counted, starts, s.context), key)

    def learn_behaviour(state, key):
        draw_key, key = jax.random.split(key)
        counted, starts = replay.draw_imagination(state.replay, draw_key, s.contexts, s.context)
        imagined, statistics = agent.imagine(state, replay.windows(counted, starts, s.context), key)
        after, metrics = agent.learn_behaviour(state, imagined, statistics)
        return after.behaviour, after.behaviour_optimiser, after.slow_critic, metrics

    works = {"world model": learn_world, "behaviour": learn_behaviour, "behaviour: encoding contexts": encode_context}
    if not agent.env.is_host_pool:  # an emulator's state can be stepped once
        works["acting"] = collect
    return works


def time_parts(agent: Drama, programs: Any, states: Any, updates: int, rounds: int) -> Any:
    """Prints medians over all rounds but the first; returns the states after the whole updates."""
    state = jax.tree.map(lambda x: x[0].copy(), states)
    calls, work = {}, {}
    for name, part in parts(agent).items():
        lowered = jax.jit(part).lower(state, jax.random.key(0))
        # Counted before XLA hands convolutions to libraries, whose arithmetic it does not count.
        work[name] = float((lowered.cost_analysis() or {}).get("flops", np.nan)) / 1e12
        calls[name] = lowered.compile()
    times: dict[str, list[float]] = {name: [] for name in ("whole update", *calls)}
    losses = []
    for round_ in range(rounds):
        start = time.perf_counter()
        states, metrics = jax.block_until_ready(programs.chunk(states))
        times["whole update"].append((time.perf_counter() - start) / updates)
        losses.append(float(jnp.mean(metrics["loss/world"])))
        for name, program in calls.items():
            keys = list(jax.random.split(jax.random.key(round_), updates))
            result, start = None, time.perf_counter()
            for key in keys:
                result = program(state, key)
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / updates)
    print(
        f"compiled in {programs.seconds:.1f} s, with evaluation and initialisation, on {jax.devices()[0].device_kind}"
    )
    for name, values in times.items():
        line = f"{name:24s} {1e3 * np.median(values[1:] or values):9.2f} ms"
        if name in calls:
            temporary = getattr(calls[name].memory_analysis(), "temp_size_in_bytes", 0) / 2**30
            rate = work[name] / np.median(values[1:] or values)
            line += f"  {work[name]:7.3f} TFLOP {rate:7.2f} TFLOP/s {temporary:6.2f} GiB temporary"
        print(line)
    plan = programs.chunk.compiled.memory_analysis()
    if plan:
        kept, temporary = plan.argument_size_in_bytes / 2**30, plan.temp_size_in_bytes / 2**30
        print(f"whole program            state {kept:.2f} GiB, temporary {temporary:.2f} GiB")
    print(f"loss of the world model  {losses[0]:.2f} in the first round, {losses[-1]:.2f} in the last")
    return states


def profile(call: Any, folder: str, most: int = 25) -> None:
    """Prints which kernels of a GPU took how much of `call()`, by XLA's own profiler."""
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        jax.block_until_ready(call())
    trace = max(Path(folder).rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    places = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    gpu = [e for e in events if e.get("ph") == "X" and "GPU" in places.get(e["pid"], "")]
    busy, count = collections.Counter(), collections.Counter()
    for event in gpu:
        name = (event.get("args") or {}).get("hlo_op") or event["name"]
        busy[name] += event["dur"]
        count[name] += 1
    total = sum(busy.values())
    print(f"{len(gpu)} kernels in {total / 1e3:.2f} ms of GPU time ({', '.join(sorted(set(places.values())))})")
    for name, dur in busy.most_common(most):
        print(f"{dur / 1e3:9.3f} ms {dur / max(total, 1):6.1%} {count[name]:7d} times  {name[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=names(DRAMA), default="drama-catch")
    parser.add_argument("--memory")
    parser.add_argument("--updates", type=int, default=25, help="updates per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", action="store_true", help="time the parts of an update instead of a Python loop")
    parser.add_argument("--profile", metavar="DIR", help="with --parts: also which kernels of the GPU take the time")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="arithmetic of the convolutions")
    args = parser.parse_args()
    keep_freed_memory()
    config = PRESETS[args.preset]
    config = replace(config, memory=args.memory or config.memory)
    if args.precision:
        config = replace(config, world=replace(config.world, precision=args.precision))
    agent = make_drama(config)
    programs = compile_agent(agent, 1, args.updates)
    states = programs.init(seed_keys(0, 1))
    while int(jnp.sum(states.replay.filled)) < config.drama.prefill:
        states = programs.chunk(states)[0]
    print(f"{args.preset}, {config.memory}, {config.world.precision}")
    if args.parts:
        states = time_parts(agent, programs, states, args.updates, args.rounds)
        if args.profile:
            profile(lambda: programs.chunk(states), args.profile)
        return
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
