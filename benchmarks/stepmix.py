"""StepMix: episodes per second against NumPy, and whether it keeps its promise.

    python -m benchmarks.stepmix
    python -m benchmarks.stepmix --safety theory --seeds 128
    python -m benchmarks.stepmix --safety practice --seeds 128
    python -m benchmarks.stepmix --safety corridor --seeds 128

Without `--safety`: one compiled update of many seeds against the float64 NumPy version that the tests compare with (one
seed), taken in turn in the same run so that a noisy machine is noisy for both; compilation is not counted.

With it: exact regret and the number of episodes whose policy is worth less than the threshold, for every algorithm on
the same instances. "theory": bonuses as proven, 2 states, 2 actions, 2 steps, 120,000 episodes, by the middle of which
the bounds are tight enough to leave the baseline. "practice": bonuses scaled by 0.002, 5 states, 5 actions, 3 steps,
12,000 episodes, the size of the paper's experiments. "corridor": a deterministic baseline, which does not explore by
itself, in a chain of 3 states, 2 actions, 4 steps; bonuses scaled by 0.0005, 12,000 episodes.
"""

import argparse
import time

import jax
import numpy as np

from engram.agents.planners.stepmix import ALGORITHMS, StepMix, StepMixSettings
from engram.envs.tabular import episodic as episodic_mdp
from engram.kernels.malloc import keep_freed_memory
from tests.oracles.stepmix import Mirror


def paper(algorithm: str, episodes: int, update: int) -> StepMix:
    settings = StepMixSettings(episodes_per_update=update)
    return StepMix(episodic_mdp.random(), settings, algorithm, 3 * episodes)


def small(algorithm: str, episodes: int, update: int) -> StepMix:
    settings = StepMixSettings(episodes_per_update=update, eta=2.0, alpha=0.3, bonus_scale=1.0)
    return StepMix(episodic_mdp.random(horizon=2, states=2, actions=2), settings, algorithm, 2 * episodes)


def corridor(algorithm: str, episodes: int, update: int) -> StepMix:
    settings = StepMixSettings(episodes_per_update=update, baseline="deterministic", alpha=0.3, bonus_scale=0.0005)
    return StepMix(episodic_mdp.chain(), settings, algorithm, 4 * episodes)


def speed(seeds: int, rounds: int) -> None:
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {seeds} seeds; 5 states, 5 actions, 3 steps\n")
    print("| algorithm | compiled, episodes/s | microseconds | NumPy, episodes/s | microseconds | ratio |")
    print("|---|---|---|---|---|---|")
    for algorithm in ("stepmix", "epsmix", "bpi-ucbvi"):
        agent = paper(algorithm, 12_000, 500)
        states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), seeds))
        update = jax.jit(jax.vmap(agent.update)).lower(states).compile()
        states, _ = jax.block_until_ready(update(states))
        one = jax.device_get(jax.tree.map(lambda x: x[0], states.replace(key=None)))
        instance = one.env.instance
        settings = agent.settings
        mirror = Mirror(
            instance.transition.astype(np.float64),
            instance.reward.astype(np.float64),
            one.baseline.astype(np.float64),
            float(one.threshold),
            settings.delta,
            settings.bonus_scale,
            algorithm,
            one.counts,
        )
        uniforms = np.random.default_rng(0).random((500, agent.num_uniforms))
        compiled, plain = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            states, _ = jax.block_until_ready(update(states))
            compiled.append((time.perf_counter() - start) / (settings.episodes_per_update * seeds))
            start = time.perf_counter()
            for row in uniforms:
                mirror.episode(row)
            plain.append((time.perf_counter() - start) / len(uniforms))
        ours, theirs = np.median(compiled), np.median(plain)
        columns = (algorithm, f"{1 / ours:,.0f}", f"{1e6 * ours:.2f}", f"{1 / theirs:,.0f}", f"{1e6 * theirs:.0f}")
        print("| " + " | ".join(columns) + f" | {theirs / ours:.0f}x |", flush=True)


def safety(make, episodes: int, seeds: int) -> None:
    update = episodes // 40
    print(f"{seeds} seeds, {episodes:,} episodes, {make('stepmix', episodes, update).settings}\n")
    print(
        "| algorithm | regret | by quarter | violating episodes | seeds with any | least value - gamma | episodes/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for algorithm in ALGORITHMS:
        agent = make(algorithm, episodes, update)
        states = jax.jit(jax.vmap(agent.init))(jax.vmap(jax.random.key)(np.arange(seeds, dtype=np.uint32)))
        agent.check(states)
        run = jax.jit(lambda states: jax.lax.scan(lambda s, _: jax.vmap(agent.update)(s), states, None, length=10))
        run = run.lower(states).compile()
        quarters, least, before = [], np.full(seeds, np.inf), np.zeros(seeds)
        start = time.perf_counter()
        for _ in range(4):
            states, metrics = run(states)
            regret = np.asarray(states.regret)
            quarters.append(np.mean(regret - before))
            before = regret
            least = np.minimum(least, np.min(metrics["train/margin_min"], axis=0))
        seconds = time.perf_counter() - start
        violations = np.asarray(states.violations)
        error = np.std(before, ddof=1) / np.sqrt(seeds)
        columns = (
            algorithm,
            f"{np.mean(before):.1f} +- {error:.1f}",
            ", ".join(f"{x:.1f}" for x in quarters),
            f"{violations.sum():,} ({violations.mean():.1f} a seed)",
            f"{np.sum(violations > 0)} of {seeds}",
            f"{np.min(least):.6f}",
            f"{episodes * seeds / seconds:,.0f}",
        )
        print("| " + " | ".join(columns) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--safety", choices=["theory", "practice", "corridor"], help="regret and violations instead of speed"
    )
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison of speeds; medians are printed")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.safety is None:
        speed(arguments.seeds, arguments.rounds)
    else:
        make, episodes = {"theory": (small, 120_000), "practice": (paper, 12_000), "corridor": (corridor, 12_000)}[
            arguments.safety
        ]
        safety(make, episodes, arguments.seeds)


if __name__ == "__main__":
    main()
