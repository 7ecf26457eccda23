"""What tests of runs share: small options, reading what runs leave behind, and cells trained in this process."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engram.agents import registry
from engram.agents.common.experiment import Experiment
from engram.configs import store
from engram.configs.presets import PRESETS
from engram.experiments.cells import Cell
from engram.experiments.runs import Run
from engram.experiments.train import Output, train
from engram.training import checkpoint
from engram.training.folder import RunFolder
from engram.training.programs import over_seeds, seed_keys

TINY: dict[str, Any] = {"memory": "none", "total_steps": 1024, "log_points": 2, "eval_points": 1}
"""Fields of a run of the preset `debug` that trains for a moment."""
CLOCKS = {"wall_s", "steps_per_s"}
CHECKPOINTED: dict[str, Any] = {
    "env": "popgym/RepeatFirstEasy",
    "memory": "gru",
    "seeds": 1,
    "total_steps": 40_960,
    "log_points": 20,
    "eval_points": 1,
    "checkpoint_seconds": 0.0,
    **{"ppo.num_envs": 8, "ppo.num_steps": 16, "ppo.epochs": 1, "ppo.minibatches": 2, "ppo.eval_envs": 8},
    "network.width": 16,
}
"""Fields of a run of the preset `popgym-fast` with a checkpoint after each of its chunks."""


def checkpointed(out: Path) -> Cell:
    """A cell with many checkpoints."""
    return Cell(store.override(PRESETS["popgym-fast"], CHECKPOINTED), out / "cell", "popgym-fast")


def checkpoints_of(cell: Cell) -> list[Path]:
    """The finished checkpoints of a cell."""
    return [path for path in (cell.folder / "checkpoints").glob("*") if path.name.isdecimal()]


def eventually(what: Callable[[], Any]) -> Any:
    """What `what()` gives as soon as it gives something."""
    until = time.monotonic() + 240
    while not (found := what()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found


def train_here(config: Experiment, preset: str, folder: Path, output: Output, *_: Any) -> None:
    """Stands in for `train_apart`: the same in this process, which has imported and compiled before."""
    train(config, preset, dataclasses.replace(output, out=folder, resume=True))


def begun(config: Experiment, folder: Path, preset: str = "own") -> Run:
    """A run with a checkpoint of its initial state: enough where it does not matter what it learned."""
    agent = registry.build(config)
    states = jax.jit(over_seeds(agent.init, config.seeds))(seed_keys(config.seed, config.seeds))
    RunFolder(folder, store.describe(preset, config), resume=False)
    checkpoint.save(folder / "checkpoints", states, checkpoint.Progress(1))
    return Run.load(folder)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics, without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def final_state(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path in the state."""
    import orbax.checkpoint as ocp

    newest = max((folder / "checkpoints").iterdir(), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((newest / "state").absolute())


def assert_same_end(whole: Path, broken: Path) -> None:
    """Asserts that two runs have the same metrics and the same last state, bit for bit."""
    assert rows_of(whole) == rows_of(broken), "metrics differ"
    states = [{name: array.tobytes() for name, array in final_state(run).items()} for run in (whole, broken)]
    assert states[0] == states[1], "final states differ"
