"""Stepping alone: environment steps per second of functional environments under a random policy.

    python -m benchmarks.envs --ids popgym/RepeatPreviousEasy popgym/BattleshipEasy

64 environments in one compiled scan with auto-reset and the wrappers an agent uses (`EpisodeStatistics`,
`FlattenObservation`, `PreviousAction`), against two alternatives in the same run, taken in turn so that a noisy machine
is noisy for all: the same environments when auto-reset makes a fresh reset at every step and selects (as gymnax does),
and, for POPGym, the popgym package itself (NumPy, one environment, no wrappers), where it is installed. Compilation is
not counted. CPU-seconds are those of the whole process, all threads.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.base import VectorEnvironment
from engram.envs.registry import make, make_vector
from engram.envs.vector import Vectorised
from engram.envs.wrappers import EpisodeStatistics, FlattenObservation, PreviousAction


class ResetEveryStep(Vectorised):
    """Auto-reset by a fresh reset of every environment at every step, of which most are thrown away."""

    @property
    def keeps_spares(self) -> bool:
        return False


def compiled(env: VectorEnvironment, steps: int) -> Callable[[], int]:
    """A function that takes `steps` steps of all environments and goes on from there when called again."""
    wrapped = PreviousAction(FlattenObservation(EpisodeStatistics(env)))
    params = wrapped.default_params
    sample = jax.vmap(jax.vmap(wrapped.action_space(params).sample))

    def one(carry, now):
        obs_sum, state = carry
        action, key = now
        obs, state, _, _, _, info = wrapped.step(key, state, action, params)
        # What an agent would store has to be computed: keep a trace of each of these.
        used = sum(leaf.sum(dtype=jnp.float32) for leaf in jax.tree.leaves((obs, info)))
        return (obs_sum + used, state), None

    @jax.jit
    def run(state, key):
        action_key, step_key = jax.random.split(key)
        # All actions at once: the policy is not what is measured.
        actions = sample(jax.random.split(action_key, (steps, env.num_envs)))
        return jax.lax.scan(one, (jnp.zeros(()), state), (actions, jax.random.split(step_key, steps)))[0]

    state = jax.jit(wrapped.reset)(jax.random.key(0), params)[1]
    calls = 0

    def again() -> int:
        nonlocal state, calls
        calls += 1
        state = jax.block_until_ready(run(state, jax.random.key(calls)))[1]
        return steps * env.num_envs

    again()
    return again


def popgym_package(name: str, steps: int) -> Callable[[], int]:
    """The same task in the popgym package, `steps` steps of one environment."""
    import gymnasium
    import popgym  # noqa: F401  (registers its environments)

    env = gymnasium.make(f"popgym-{name}-v0", disable_env_checker=True)
    env.reset(seed=0)
    env.action_space.seed(0)

    def again() -> int:
        for _ in range(steps):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        return steps

    return again


@dataclass
class Timing:
    steps: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, run: Callable[[], int]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.steps += run()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def contenders(env_id: str, num_envs: int, steps: int) -> dict[str, Callable[[], int]]:
    env = make_vector(env_id, num_envs)
    assert isinstance(env, Vectorised)
    runs = {
        "ours": compiled(env, steps),
        "reset at every step": compiled(ResetEveryStep(make(env_id), num_envs), steps),
    }
    family, _, name = env_id.partition("/")
    if family == "popgym" and importlib.util.find_spec("popgym"):
        runs["popgym package"] = popgym_package(name, steps)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["popgym/RepeatPreviousEasy", "popgym/BattleshipEasy", "popgym/ConcentrationEasy", "gymnax/CartPole-v1"]
    parser.add_argument("--ids", nargs="+", default=default, help="ids of functional environments")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000, help="steps of each environment per round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, in each of which every contender runs once")
    arguments = parser.parse_args()

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {arguments.num_envs} environments\n")
    print("| environment | contender | steps/s | wall s | CPU s | steps per CPU-second | ours is (CPU) |")
    print("|---|---|---|---|---|---|---|")
    for env_id in arguments.ids:
        runs = contenders(env_id, arguments.num_envs, arguments.steps)
        timings = {label: Timing() for label in runs}
        for _ in range(arguments.rounds):
            for label, run in runs.items():
                timings[label].add(run)
        ours = timings["ours"].steps / timings["ours"].cpu
        for label, t in timings.items():
            rate = t.steps / t.cpu
            ratio = f"{np.round(ours / rate, 1)}x" if label != "ours" else ""
            columns = (
                env_id,
                label,
                f"{t.steps / t.wall:,.0f}",
                f"{t.wall:.2f}",
                f"{t.cpu:.2f}",
                f"{rate:,.0f}",
                ratio,
            )
            print("| " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    main()
