"""Last-switch-dependent bandits: speed of rounding and of the relaxation, and the learners' regret.

    python -m benchmarks.lsd
    python -m benchmarks.lsd --regret

Speed, each against its alternative in the same run and taken in turn, so that a noisy machine is noisy for both:
rounding for 256 seeds in one compiled scan against the NumPy mirror of the tests (one seed), in rounds; the relaxation
for a batch of instances against scipy's HiGHS on the same cycle program, one instance a call, in solves. Compilation is
not counted; neither is building HiGHS's matrices. CPU-seconds are those of the whole process, all threads.

`--regret`: what learners earn less than full information over T rounds, on the same random instances. An instance's
benchmark is the planner's mean reward, averaged over draws of its cycles.
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

from engram.agents.planners.lsd import LSD, LSDSettings, relax
from engram.envs.bandits import last_switch as lsd
from engram.kernels.malloc import keep_freed_memory
from tests.oracles import lsd as mirror

SETTINGS = LSDSettings(steps_per_update=250, block_length=3)
SIZES = [(3, 2, 3), (10, 10, 10)]
HORIZONS = [4_000, 8_000, 16_000, 32_000, 64_000]


@dataclass
class Timing:
    done: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, run: Callable[[], int]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.done += run()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def in_turn(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, Timing]:
    timings = {label: Timing() for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            timings[label].add(run)
    return timings


def rounding(size: tuple[int, int, int], seeds: int) -> dict[str, Callable[[], int]]:
    """Rounds under a plan made beforehand."""
    agent = LSD(lsd.random(*size), SETTINGS, "planner", 10**9)
    state = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), seeds))
    updates = 16

    @jax.jit
    @jax.vmap
    def go(state):
        return jax.lax.scan(lambda state, _: agent.update(state), state, None, updates)

    draw = np.random.default_rng(0).random
    payoffs = mirror.dicts(np.asarray(state.env.payoffs[0], float), size[1])
    shares = mirror.solve_cycles(payoffs)[1]

    def ours() -> int:
        nonlocal state
        state = jax.block_until_ready(go(state))[0]
        return seeds * updates * agent.steps_per_update

    def numpy() -> int:
        coins, uniforms = draw(16_000), draw((2, size[0]))
        mirror.rounding(mirror.Bandit(payoffs), coins, lambda plan: uniforms, "actual", lambda worth: shares)
        return 16_000

    ours()
    return {"ours": ours, "NumPy mirror": numpy}


def relaxation(size: tuple[int, int, int], batch: int, programs: int) -> dict[str, Callable[[], int]]:
    """`batch` instances a call, eight calls, against `programs` of them one after the other."""
    k, M, N = size
    payoffs = np.sort(np.random.default_rng(0).random((batch, k, M + N)), axis=2)
    solve = jax.jit(jax.vmap(functools.partial(relax, played_limit=M)))
    on_device = jnp.asarray(payoffs, jnp.float32)
    matrices = [mirror.cycle_lp(mirror.dicts(p, M)) for p in payoffs[:programs]]

    def ours() -> int:
        for _ in range(8):
            jax.block_until_ready(solve(on_device))
        return 8 * batch

    def highs() -> int:
        for reward, A, b in matrices:
            linprog(-reward, A_ub=A, b_ub=b)
        return programs

    ours()
    return {"ours": ours, "HiGHS": highs}


def speed(arguments: argparse.Namespace) -> None:
    print("| what | (k, M, N) | contender | a second | wall s | CPU s | ours is (wall) | ours is (CPU) |")
    print("|---|---|---|---|---|---|---|---|")
    for what in ("rounds", "solves"):
        for size in SIZES:
            if what == "rounds":
                runs = rounding(size, arguments.seeds)
            else:
                small = size == SIZES[0]
                runs = relaxation(size, arguments.batch, 100 if small else 40)
            timings = in_turn(runs, arguments.rounds)
            ours = timings["ours"]
            for label, t in timings.items():
                ratios = ["", ""]
                if label != "ours":
                    ratios = [
                        f"{(ours.done / ours.wall) / (t.done / t.wall):,.0f}x",
                        f"{(ours.done / ours.cpu) / (t.done / t.cpu):,.0f}x",
                    ]
                row = (what, str(size), label, f"{t.done / t.wall:,.0f}", f"{t.wall:.2f}", f"{t.cpu:.2f}", *ratios)
                print("| " + " | ".join(row) + " |", flush=True)


def planner_means(agent: LSD, keys: jax.Array, draws: int) -> np.ndarray:
    """What the planner earns a round once warm, per seed's instance, averaged over draws of cycles."""
    warm, rounds = 40, 120

    @jax.jit
    @jax.vmap
    def go(key):
        state = agent.init(key)

        def one(key):
            again = agent.plan(state.replace(key=key, epoch=jnp.int32(0)))
            return agent.play(again, jnp.zeros((warm + rounds, 1)))[1].mean[warm:].mean()

        return jnp.mean(jax.vmap(one)(jax.random.split(jax.random.fold_in(key, 1), draws)))

    return np.concatenate([np.asarray(go(chunk)) for chunk in jnp.split(keys, max(1, len(keys) // 64))])


def earned(agent: LSD, keys: jax.Array) -> np.ndarray:
    """Expected reward of a whole run, per seed: the payoffs' means, not the coins."""

    @jax.jit
    @jax.vmap
    def go(key):
        def update(state, key):
            state, trace = agent.play(state, jax.random.uniform(key, (agent.steps_per_update, 1)))
            return state, trace.mean.sum()

        updates = jax.random.split(jax.random.fold_in(key, 2), agent.total_steps // agent.steps_per_update)
        return jnp.sum(jax.lax.scan(update, agent.init(key), updates)[1])

    return np.concatenate([np.asarray(go(chunk)) for chunk in jnp.split(keys, max(1, len(keys) // 1024))])


def log_slope(horizons: np.ndarray, regret: np.ndarray) -> np.ndarray:
    """Least-squares slope of log regret over log T, `regret [..., T]`; NaN where some regret is not positive."""
    x = np.log(horizons) - np.log(horizons).mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(np.where(regret > 0, regret, np.nan)) @ x / (x @ x)


def regret(arguments: argparse.Namespace) -> None:
    size = SIZES[0]
    keys = jax.random.split(jax.random.key(0), arguments.instances)
    planner = planner_means(LSD(lsd.random(*size), SETTINGS, "planner", 10**9), keys, arguments.draws)
    print(f"(k, M, N) = {size}, {len(keys)} instances, planner's mean reward {planner.mean():.4f}\n")
    print("| algorithm | T | mean reward | regret | 95% |")
    print("|---|---|---|---|---|")
    resampled = np.random.default_rng(0).integers(0, len(keys), (1000, len(keys)))
    slopes = []
    for algorithm in ("explore-then-commit", "epoch-ucb"):
        regrets = []  # (T, instances)
        for T in HORIZONS:
            total = earned(LSD(lsd.random(*size), SETTINGS, algorithm, T), keys)
            regrets.append(T * planner - total)
            low, high = np.quantile(regrets[-1][resampled].mean(1), [0.025, 0.975])
            row = (
                algorithm,
                f"{T:,}",
                f"{total.mean() / T:.4f}",
                f"{regrets[-1].mean():.0f}",
                f"[{low:.0f}, {high:.0f}]",
            )
            print("| " + " | ".join(row) + " |", flush=True)
        slope = log_slope(np.array(HORIZONS), np.mean(regrets, axis=1))
        again = log_slope(np.array(HORIZONS), np.stack([r[resampled].mean(1) for r in regrets], axis=-1))
        low, high = np.nanquantile(again, [0.025, 0.975]) if np.isfinite(again).any() else (np.nan, np.nan)
        slopes.append((algorithm, f"{slope:.2f}", f"[{low:.2f}, {high:.2f}]", f"{np.isfinite(again).mean():.0%}"))
    print("\n| algorithm | slope of log regret over log T | 95% (bootstrap) | resamples in which regret is positive |")
    print("|---|---|---|---|")
    for row in slopes:
        print("| " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regret", action="store_true", help="the learners' regret instead of speed")
    parser.add_argument("--seeds", type=int, default=256, help="seeds that round at once")
    parser.add_argument("--batch", type=int, default=1024, help="instances relaxed at once")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, in each of which every contender runs once")
    parser.add_argument("--instances", type=int, default=4096, help="instances of --regret")
    parser.add_argument("--draws", type=int, default=256, help="draws of cycles for an instance's benchmark")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {arguments.seeds} seeds, batch {arguments.batch}\n")
    regret(arguments) if arguments.regret else speed(arguments)


if __name__ == "__main__":
    main()
