"""Train an agent: PPO with a memory, a world model, a policy on recorded episodes, or a planner.

    python scripts/train.py PRESET [--env ID] [--memory NAME] [--seeds N] [--total-steps N] [--out DIR] [--resume] ...

Exit codes: 0 done, 2 bad request, 3 training diverged, 130 interrupted (checkpointed; continue with --resume).
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import jax
import numpy as np
import tyro

from engram.agents.drama.agent import Drama
from engram.agents.planners.stepmix import StepMix
from engram.configs.experiment import Experiment, OfflineExperiment, ValueExperiment
from engram.configs.presets import PRESETS
from engram.errors import BadRequest, Interrupted
from engram.scripts.common import default_folder, describe, parse, run_script, split_preset
from engram.scripts.dream import draw_dream
from engram.scripts.factory import divide, make_agent, resolve
from engram.scripts.plot import draw_curves
from engram.training.folder import RunFolder, say
from engram.training.loop import Agent, LoopSettings, seed_keys, train
from engram.training.metrics import Row, read_metrics
from engram.training.statistics import summarise

LAST = 5
"""Evaluations in the mean of the last ones."""
VIEWS = 50_000
"""Seed, counted from the run's, of the emulators that are only looked at."""

Kind = TypeVar("Kind", bound=Experiment)


@dataclass(frozen=True)
class Options(Generic[Kind]):
    """Where a run goes and what it tells."""

    experiment: Annotated[Kind, tyro.conf.arg(name="")]
    out: Path | None = None
    """Run folder (default: runs/<preset>/<env or dataset>-<memory>-<time>)."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --out from its newest intact checkpoint (a folder without one starts from the beginning)."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """No progress display."""


def main(arguments: Sequence[str]) -> int:
    preset, rest = split_preset(arguments)
    options = options_for(preset, rest, "train.py PRESET", "Train an agent.")
    run(preset, options)
    return 0


def options_for(preset: str, arguments: Sequence[str], prog: str, title: str) -> "Options[Experiment]":
    """`arguments` over the values of `preset`."""
    experiment = PRESETS[preset]
    description = (
        f"{title} Presets (the first argument): {', '.join(PRESETS)}. Shown is {preset}, with its defaults: "
        f"{experiment.__doc__}"
    )
    return parse(Options[type(experiment)], Options(experiment), arguments, prog, description)


def run(
    preset: str,
    options: "Options[Experiment]",
    agent: Agent | None = None,
    keep: Callable[[Path, int, Any, Any], None] | None = None,
) -> Path:
    """Trains as `options` say and returns the run folder.

    Args:
        agent: of the configuration, on functional environments (default: made here).
        keep: as for `engram.training.loop.train`, with the run folder first.
    """
    if options.resume and options.out is None:
        raise BadRequest("--resume needs --out, the folder to continue")
    config = resolve(options.experiment)
    agent = agent or make_agent(config)  # refuses what cannot be built before anything is written
    refuse_unsafe(agent, config)
    described = describe(preset, config)
    folder = RunFolder(options.out or default_folder(preset, config), described, options.resume)
    if folder.is_finished:
        say(f"{folder.path} is already complete")
        return folder.path
    settings = LoopSettings(
        label=f"{config.task} {config.label}",
        seeds=config.seeds,
        seed=config.seed,
        plan=divide(config, agent),
        eval_points=config.eval_points,
        checkpoint_seconds=config.checkpoint_seconds,
        wandb=options.wandb,
        quiet=options.quiet,
    )

    def views(states):
        """The world model's, if the agent has one; an emulator that was evaluated cannot be opened again."""
        if not isinstance(agent, Drama):
            return []
        if not agent.env.is_host_pool:
            return draw_dream(agent, states, folder.path)
        fresh = make_agent(config, config.seed + VIEWS)
        assert isinstance(fresh, Drama)
        try:
            return draw_dream(fresh, states, folder.path)
        finally:
            fresh.close()

    record = None if keep is None else partial(keep, folder.path)
    numbers = train(agent, lambda seed: make_agent(config, seed), settings, folder, described, views, record)
    draw_curves([folder.path], folder.path / "curves.png")
    described_task = {"env": config.env}
    if isinstance(config, OfflineExperiment):
        described_task["dataset"] = config.dataset
        numbers |= other_evaluations(read_metrics(folder.path / "metrics.jsonl"))
    described_task[config.choice] = config.chosen
    if isinstance(config, ValueExperiment):
        described_task["memory"] = config.memory
    folder.write_summary({"preset": preset, **described_task, **numbers})
    final = numbers["eval_return"]["mean"]
    say(
        f"done: eval return {'n/a' if final is None else f'{final:.3f}'} (mean of {config.seeds}), "
        f"{numbers['steps_per_s']:,.0f} steps/s, {numbers['wall_s']:.0f} s + {numbers['compile_s']:.0f} s to compile, "
        f"in {folder.path}"
    )
    return folder.path


def other_evaluations(rows: list[Row]) -> dict[str, Any]:
    """What papers report beside the final evaluation: the mean of the last ones, and (optimistic) the greatest."""
    returns = np.array([row["eval/return"] for row in rows if "eval/return" in row], float)
    return {
        f"eval_return_last_{LAST}_mean": summarise(returns[-LAST:].mean(0).tolist()),
        "eval_return_max": summarise(returns.max(0).tolist()),
    }


def run_apart(arguments: Sequence[str], seconds: float | None = None) -> str | None:
    """Trains as `arguments` say in a process of its own; returns why it failed, or None.

    Args:
        seconds: politely stopped after this time (None: never).

    Raises:
        Interrupted: by Ctrl-C, a polite kill of either process, or the time; the run was checkpointed if it had begun.
    """
    process = subprocess.Popen([sys.executable, __file__, *arguments], stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(seconds or 0.0, process.terminate)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    last = ""
    assert process.stderr is not None
    try:
        if seconds is not None:
            timer.start()
        for line in process.stderr:
            last = line.strip() or last
            print(line, end="", file=sys.stderr, flush=True)
        code = process.wait()
    except KeyboardInterrupt:  # the same Ctrl-C reached the child: let it write its checkpoint
        process.wait()
        code = Interrupted.exit_code
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    if code in (Interrupted.exit_code, -signal.SIGTERM):  # the latter before it listened
        raise Interrupted("stopped; repeat the command to go on where it was")
    return None if code == 0 else f"exit code {code}: {last}"


def refuse_unsafe(agent: Agent, config: Experiment) -> None:
    """Raises BadRequest where a planner's baseline is not as good as it must be; only the drawn instances show that."""
    if isinstance(agent, StepMix):
        states = jax.jit(jax.vmap(agent.init))(seed_keys(config.seed, config.seeds))
        try:
            agent.check(states)
        except ValueError as error:
            raise BadRequest(str(error)) from None


if __name__ == "__main__":
    run_script(main)
