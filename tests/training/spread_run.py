"""Runs on four virtual devices, for `test_devices`: prints what was found as one line of JSON.

python -m tests.training.spread_run (seeds | groups MEMORY | checkpoints FOLDER | empty)
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents import registry
from engram.agents.common.experiment import Experiment
from engram.configs.presets import PRESETS
from engram.experiments.options import Output
from engram.experiments.runs import Run
from engram.experiments.train import train
from engram.kernels.cache import keep_compiled_programs
from engram.training.devices import mesh_of
from engram.training.metrics import read_metrics
from engram.training.programs import compile_agent, seed_keys

PRESET: Any = PRESETS["popgym-fast"]
SMALL = replace(
    PRESET,
    memory="s5",
    network=replace(PRESET.network, width=16, layers=1),
    ppo=replace(PRESET.ppo, num_envs=8, num_steps=16, eval_envs=4, minibatches=2, epochs=1),
    total_steps=8 * 16 * 4,
    log_points=4,
    eval_points=2,
    checkpoint_seconds=0.0,
)
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def arrays(tree: Any) -> list[np.ndarray]:
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return [np.asarray(raw(leaf)) for leaf in jax.tree.leaves(tree)]


class Trained:
    """Two chunks of the seeds from `first` on."""

    def __init__(self, first: int, seeds: int, devices: int):
        agent = registry.build(SMALL)
        made = compile_agent(agent, seeds, 2, mesh=mesh_of(seeds, devices))
        keys = seed_keys(first, seeds)
        states = made.init(keys)
        self.begun = arrays(states)
        states, metrics = made.chunk(made.chunk(states)[0])
        self.states, self.metrics = arrays(states), [np.moveaxis(x, 1, 0) for x in arrays(metrics)]
        self.evaluated = arrays(made.evaluate(states, keys, np.uint32(1)))
        text = made.chunk.compiled.as_text() or ""
        self.collectives = sum(text.count(name) for name in COLLECTIVES)
        self.devices = len(jax.tree.leaves(states)[0].sharding.device_set)

    @property
    def all(self) -> list[np.ndarray]:
        return [*self.begun, *self.states, *self.metrics, *self.evaluated]

    def equals(self, other: "Trained", seed: int, seeds: int) -> bool:
        """Whether the seeds from `seed` on are those of `other`, bit for bit."""
        pairs = zip(self.all, other.all, strict=True)
        return all(np.array_equal(own[seed : seed + seeds], its, equal_nan=True) for own, its in pairs)


def grouped(memory: str) -> Experiment:
    """Four groups, whose running statistics are shared."""
    view = replace(PRESET.observation, normalise=True, normalise_reward=True)
    return replace(SMALL, memory=memory, observation=view, ppo=replace(SMALL.ppo, num_envs=16, groups=4))


class Grouped:
    """Three updates of one seed of four groups."""

    def __init__(self, memory: str, devices: int):
        agent = registry.build(grouped(memory))
        made = compile_agent(agent, 1, 1, mesh=mesh_of(1, devices, groups=4))
        first, metrics = made.chunk(made.init(seed_keys(0, 1)))
        self.env, self.valued = arrays(first.env), float(metrics["loss/value"][0, 0])
        last = made.chunk(made.chunk(first)[0])[0]
        self.params = arrays(last.params)
        text = made.chunk.compiled.as_text() or ""
        self.moves = sum(text.count(name) for name in COLLECTIVES if name != "all-reduce")
        self.devices = len(jax.tree.leaves(last)[0].sharding.device_set)

    def difference(self, other: "Grouped") -> float:
        """Of parameters, relative to the largest of each array."""
        return max(
            float(np.abs(own - its).max() / np.abs(its).max())
            for own, its in zip(self.params, other.params, strict=True)
            if its.any()
        )

    def same_env(self, other: "Grouped") -> bool:
        """Whether integers and flags are the same after an update, and real numbers up to rounding."""
        return all(
            np.allclose(own, its, rtol=1e-5, atol=1e-6) if own.dtype.kind == "f" else np.array_equal(own, its)
            for own, its in zip(self.env, other.env, strict=True)
        )


def resumed(finished: Run, devices: int) -> Run:
    """A copy of a finished run, as if it had been killed after the third chunk, which then went on."""
    folder = finished.folder.with_name(f"on_{devices}")
    shutil.copytree(finished.folder, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    return train(finished.config, "", Output(folder, resume=True, quiet=True, devices=devices))


def rows_of(run: Run) -> list[dict[str, Any]]:
    clocks = ("wall_s", "steps_per_s")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_metrics(run.folder / "metrics.jsonl")]


def of_seeds() -> dict[str, Any]:
    four, eight = Trained(0, 4, 4), Trained(0, 8, 4)
    return {
        "devices": four.devices,
        "collectives": four.collectives + eight.collectives,
        "lone": [four.equals(Trained(seed, 1, 1), seed, 1) for seed in range(4)],
        "pairs": [eight.equals(Trained(seed, 2, 1), seed, 2) for seed in (0, 4)],
    }


def of_groups(memory: str) -> dict[str, Any]:
    one, two, four = (Grouped(memory, devices) for devices in (1, 2, 4))
    return {
        "devices": [each.devices for each in (one, two, four)],
        "moves": two.moves + four.moves,
        "env": [one.same_env(each) for each in (two, four)],
        "params": max(one.difference(each) for each in (two, four)),
    }


def of_checkpoints(out: Path) -> dict[str, Any]:
    """Two seeds of four groups, each on two devices."""
    whole = train(replace(grouped("gru"), seeds=2, total_steps=4 * 16 * 16), "", Output(out / "whole", quiet=True))
    same, other = resumed(whole, 4), resumed(whole, 1)
    losses = [np.array([row["loss/total"] for row in rows_of(run)]) for run in (whole, other)]
    return {
        "recorded": json.loads((whole.folder / "versions.json").read_text())["devices"],
        "same_devices": rows_of(same) == rows_of(whole),
        "other_devices": float(np.abs(losses[0] - losses[1]).max()),
        "rows": len(rows_of(other)),
        "evaluated": np.isfinite(other.evaluate(episodes=4, gif_steps=0)["eval_return"]["mean"]).item(),
    }


def of_empty_arrays() -> dict[str, Any]:
    """A bandit whose state has an array without entries."""
    made = compile_agent(registry.build(PRESETS["neucb+debug"]), 4, 1, mesh=mesh_of(4, 4))
    states = made.chunk(made.chunk(made.init(seed_keys(0, 4)))[0])[0]
    leaves = jax.tree.leaves(states)
    return {"empty": sum(not leaf.size for leaf in leaves), "devices": len(leaves[0].sharding.device_set)}


def main() -> None:
    keep_compiled_programs()
    kind, *given = sys.argv[1:]
    kinds: dict[str, Any] = {
        "seeds": of_seeds,
        "groups": of_groups,
        "checkpoints": lambda out: of_checkpoints(Path(out)),
        "empty": of_empty_arrays,
    }
    print(json.dumps(kinds[kind](*given)))


if __name__ == "__main__":
    main()
