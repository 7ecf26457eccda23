"""A sequence policy's gradient steps and evaluations as one program, against straightforward Python loops.

    python -m benchmarks.offline                                  # attention and dm, dm-pendulum's sizes
    python -m benchmarks.offline --memories dm --steps 200 --rounds 5
    python -m benchmarks.offline --contexts 10 20 40 80           # cost of acting, by window and by carried state
    python -m benchmarks.offline --learning --preset dm           # gradient steps alone, the memories in turns

The loop does what published code does. NumPy cuts out the windows, one after the other, and a compiled gradient step is
called with them. Evaluations step a compiled environment and a compiled policy (on a window of fixed size) from Python,
one episode after the other. A second, faster loop plays all episodes together. All do the same work, in turns.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.offline.build import make_sequence
from engram.agents.offline.data import Windows
from engram.agents.offline.sequence_policy import SequenceAgent
from engram.configs.presets import PRESETS, names
from engram.configs.presets.offline import SEQUENCE
from engram.envs.datasets import Episodes, Origin
from engram.envs.vector import Vectorised
from engram.kernels.malloc import keep_freed_memory
from engram.training.programs import compile_agent, seed_keys


def random_episodes(episodes: int = 400, steps: int = 200, references: bool = False) -> Episodes:
    """Random numbers in the shapes of Pendulum's episodes. `references`: with reference returns, from which scores
    follow."""
    rng = np.random.default_rng(0)
    return Episodes(
        obs=rng.normal(size=(episodes * (steps + 1), 3)).astype(np.float32),
        action=rng.uniform(-2, 2, (episodes * steps, 1)).astype(np.float32),
        reward=rng.uniform(-8, 0, episodes * steps).astype(np.float32),
        terminated=np.zeros(episodes, bool),
        lengths=np.full(episodes, steps),
        origin=Origin(
            "gymnax/Pendulum-v1", ref_min=-1200.0 if references else None, ref_max=0.0 if references else None
        ),
        action_low=np.full(1, -2.0, np.float32),
        action_high=np.full(1, 2.0, np.float32),
    )


def agent_of(
    memory: str, context: int | None = None, episodes: int | None = None, preset_name: str = "dm-pendulum"
) -> SequenceAgent:
    preset = PRESETS[preset_name]
    settings = replace(preset.sequence, targets=(-400.0,), acting="window")
    settings = replace(settings, context=context or settings.context, eval_episodes=episodes or settings.eval_episodes)
    return make_sequence(replace(preset, memory=memory, sequence=settings), episodes=random_episodes())


def loop_of_steps(agent: SequenceAgent) -> Callable[[Any, int], Any]:
    """A function that takes `n` gradient steps of `agent`, one call each, on windows that NumPy cuts out."""
    s, data = agent.settings, jax.device_get(agent.data)
    obs = np.asarray(data.observations(np.arange(len(data.obs))))
    rng = np.random.default_rng(0)

    @jax.jit
    def learn(state, windows):
        gradient = jax.grad(lambda p: agent.loss(p, state.teacher, windows, agent.alpha(state.updates))[0])(
            state.params
        )
        change, optimiser = agent.optimiser.update(gradient, state.optimiser, state.params)
        params = jax.tree.map(jnp.add, state.params, change)
        return state.replace(params=params, optimiser=optimiser, updates=state.updates + 1)

    def draw() -> Windows:
        columns: dict[str, list[np.ndarray]] = {}
        share = data.length / data.length.sum()
        for _ in range(s.batch_size):
            episode = rng.choice(len(share), p=share)
            first = rng.integers(data.length[episode])
            start, left = data.start[episode] + first, min(int(data.length[episode]) - first, s.context)
            pad = s.context - left
            rows = {
                "obs": obs[start + episode : start + episode + left],
                "action": data.action[start : start + left],
                "reward": data.reward[start : start + left],
                "to_go": data.to_go[start : start + left],
                "timestep": np.arange(first, first + left, dtype=np.int32),
                "mask": np.ones(left, bool),
            }
            for name, row in rows.items():
                padded = np.concatenate([np.zeros((pad, *row.shape[1:]), row.dtype), row])
                columns.setdefault(name, []).append(padded)
            columns.setdefault("reset", []).append(np.arange(s.context) <= pad)
        return Windows(**{name: jnp.asarray(np.stack(column, 1)) for name, column in columns.items()})

    def run(state: Any, n: int) -> Any:
        for _ in range(n):
            state = learn(state, draw())
        return state

    return run


def loop_of_episodes(agent: SequenceAgent, lanes: int) -> Callable[[Any, int], list[float]]:
    """A function that plays `rounds` times `lanes` episodes from Python and returns the mean return of each round."""
    env, view = Vectorised(agent.env.env.env.env, lanes), agent.view  # type: ignore[attr-defined]
    params_of_env = env.default_params
    empty, choose = agent.windowed(lanes)
    act = jax.jit(lambda params, past, to_go, obs, t: choose(params, past, to_go, view.normalise(obs), t))
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    limit, scale = env.max_steps(params_of_env), agent.settings.return_scale
    assert limit is not None

    def run(params: Any, rounds: int) -> list[float]:
        returns = []
        for i in range(rounds):
            key = jax.random.key(i)
            obs, state = reset(key, params_of_env)
            to_go, past, total = np.full(lanes, view.targets[0] / scale, np.float32), empty, np.zeros(lanes)
            for t in range(limit):
                past, action = act(params, past, to_go, obs, t)
                key, step_key = jax.random.split(key)
                obs, state, reward, *_ = step(step_key, state, action, params_of_env)
                reward = np.asarray(reward)
                total += reward
                to_go = to_go - reward / scale
            returns.append(float(total.mean()))
        return returns

    return run


def timed(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def report(name: str, seconds: dict[str, list[float]], unit: str, per: int) -> None:
    """Prints medians, and the ratio of each loop to the one program in the same round."""
    ours = np.array(seconds["one program"])
    for label, values in seconds.items():
        ratios = np.array(values) / ours
        text = f"{name:10s} {label:34s} {1e3 * np.median(values) / per:9.2f} ms a {unit}"
        if label != "one program":
            text += f"   ratio {np.median(ratios):6.2f} (least {ratios.min():.2f}, most {ratios.max():.2f})"
        print(text, flush=True)


def compare(memory: str, steps: int, rounds: int) -> None:
    agent = agent_of(memory)
    episodes, preset = agent.settings.eval_episodes, PRESETS["dm-pendulum"]
    programs = compile_agent(agent, 1, steps)
    states = programs.chunk(programs.init(seed_keys(0, 1)))[0]
    single = jax.tree.map(lambda x: x[0].copy(), states)
    learn, one_by_one, together = loop_of_steps(agent), loop_of_episodes(agent, 1), loop_of_episodes(agent, episodes)
    single = learn(single, 2)  # compiles
    one_by_one(single.params, 1)
    together(single.params, 1)
    programs.evaluate(states, seed_keys(1, 1))

    names = ("one program", "Python loop", "Python loop, episodes together")
    learning: dict[str, list[float]] = {name: [] for name in names[:2]}
    playing: dict[str, list[float]] = {name: [] for name in names}
    some = 4  # episodes that are played one after the other; the rest would cost the same

    def chunk():
        nonlocal states
        states = programs.chunk(states)[0]
        return states

    def learn_more():
        nonlocal single
        single = learn(single, steps)
        return single

    for _ in range(rounds):
        learning["one program"].append(timed(chunk))
        learning["Python loop"].append(timed(learn_more))
        playing["one program"].append(timed(lambda: programs.evaluate(states, seed_keys(1, 1))))
        playing["Python loop"].append(timed(lambda: one_by_one(single.params, some)) * episodes / some)
        playing["Python loop, episodes together"].append(timed(lambda: together(single.params, 1)))
    report(memory, learning, "gradient step", steps)
    report(memory, playing, "episode", episodes)
    between = preset.total_steps // preset.eval_points
    both = {
        name: [
            between / steps * a + b
            for a, b in zip(learning[name if name in learning else "Python loop"], c, strict=True)
        ]
        for name, c in playing.items()
    }
    report(memory, both, f"cycle of {between} gradient steps and {episodes} episodes", 1)


def cost_of_learning(preset: str, memories: list[str], steps: int, rounds: int) -> None:
    """Prints the time of a gradient step of each memory, measured in turns, and its ratio to the first memory's."""
    ready: dict[str, list[Any]] = {}
    for memory in memories:
        agent = agent_of(memory, preset_name=preset)
        start = time.perf_counter()
        chunk = jax.jit(lambda s, agent=agent: jax.lax.scan(lambda s, _: agent.update(s), s, None, steps)[0])
        state = jax.block_until_ready(chunk(jax.jit(agent.init)(jax.random.key(0))))
        ready[memory] = [chunk, state, time.perf_counter() - start]
    seconds: dict[str, list[float]] = {memory: [] for memory in memories}
    for _ in range(rounds):
        for memory, (chunk, state, _) in ready.items():
            start = time.perf_counter()
            ready[memory][1] = jax.block_until_ready(chunk(state))
            seconds[memory].append(time.perf_counter() - start)
    first = np.array(seconds[memories[0]])
    for memory, values in seconds.items():
        ratio = np.median(np.array(values) / first)
        print(
            f"{preset}: {memory:10s} {1e3 * np.median(values) / steps:8.3f} ms a gradient step, ratio {ratio:5.2f}; "
            f"compiled, with the first {steps} steps, in {ready[memory][2]:.0f} s",
            flush=True,
        )


def cost_of_acting(memory: str, contexts: list[int], rounds: int, episodes: int = 16) -> None:
    """Prints the best time of an environment step of all episodes, for each size of the window."""
    for context in contexts:
        agent = agent_of(memory, context, episodes)
        params = jax.jit(agent.init)(jax.random.key(0)).params
        play = jax.jit(agent.play, static_argnums=2)
        seconds: dict[str, list[float]] = {"recurrent": [], "window": []}
        for mode in seconds:
            play(params, jax.random.key(0), mode)
        for i in range(rounds):
            for mode, values in seconds.items():
                values.append(timed(lambda mode=mode, i=i: play(params, jax.random.key(i), mode)))
        limit = agent.env.max_steps(agent.env.default_params)
        assert limit is not None
        per_step = {mode: 1e6 * min(values) / limit for mode, values in seconds.items()}
        ratio = per_step["window"] / per_step["recurrent"]
        print(
            f"{memory:10s} context {context:3d}: window {per_step['window']:8.0f} us, "
            f"carried {per_step['recurrent']:8.0f} us a step of {episodes} episodes   ratio {ratio:6.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", default=["attention", "dm"])
    parser.add_argument("--steps", type=int, default=100, help="gradient steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", choices=names(SEQUENCE), default="dm-pendulum", help="with --learning")
    parser.add_argument("--learning", action="store_true", help="measure only gradient steps, without a Python loop")
    parser.add_argument("--contexts", type=int, nargs="*", default=[], help="measure only what acting costs")
    args = parser.parse_args()
    keep_freed_memory()
    if args.learning:
        return cost_of_learning(args.preset, args.memories, args.steps, args.rounds)
    for memory in args.memories:
        if args.contexts:
            cost_of_acting(memory, args.contexts, args.rounds)
        else:
            compare(memory, args.steps, args.rounds)


if __name__ == "__main__":
    main()
