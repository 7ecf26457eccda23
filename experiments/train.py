"""Training one run, in this process."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from engram.agents import registry
from engram.agents.common.environments import DREAM, RESUMED, divide
from engram.agents.common.experiment import Experiment
from engram.agents.common.spec import AgentSpec, Build
from engram.agents.registry import spec_of
from engram.configs import store
from engram.errors import BadRequest
from engram.experiments.options import Output
from engram.experiments.policy import write_spaces
from engram.experiments.runs import Run, default_folder
from engram.kernels.cache import keep_compiled_programs
from engram.training import team
from engram.training.devices import mesh_of
from engram.training.folder import RunFolder, read_config
from engram.training.loop import LoopSettings
from engram.training.loop import train as run_loop
from engram.training.metrics import read_metrics
from engram.training.mirror import Mirror
from engram.training.statistics import in_words
from engram.training.stderr import notify
from engram.training.stopping import least_checkpoint_seconds


def train(
    config: Experiment,
    preset: str = "",
    output: Output = Output(),
    agent: Any = None,
    keep: Callable[[Path, int, Any, Any], None] | None = None,
) -> Run:
    """Trains `config` to its end and returns the run.

    Args:
        preset: name of the preset that it began from.
        agent: of the configuration, on functional environments (default: made here).
        keep: as for `engram.training.loop.train`, with the run folder first.

    Raises:
        BadRequest, InUse, Diverged, Interrupted: see `engram.errors`.
    """
    if output.resume and output.out is None:
        raise BadRequest("--resume needs --out, the folder to continue")
    keep_compiled_programs()
    spec = spec_of(config)
    config = spec.resolve(config)
    if agent is not None:
        return _train(spec, agent, config, preset, output, keep)
    with closing(registry.build(config)) as made:  # refuses what cannot be built before anything is written
        return _train(spec, made, config, preset, output, keep)


def _train(
    spec: AgentSpec,
    agent: Any,
    config: Experiment,
    preset: str,
    output: Output,
    keep: Callable[[Path, int, Any, Any], None] | None,
) -> Run:
    """As `train`, with an agent whom somebody else closes."""
    if spec.check is not None:
        spec.check(agent, config)
    mesh = None
    if not agent.env.is_host_pool:
        mesh = mesh_of(config.seeds, output.devices, getattr(agent, "groups", 1))
    elif output.devices not in (None, 1) or not team.is_alone():
        raise BadRequest("emulators run in one process on one device; train several runs with --jobs")
    if not team.is_alone() and (keep is not None or getattr(agent, "feed", None) is not None):
        raise BadRequest("--distributed: data that stay on the host, or are recorded there, are of one process")
    if output.resume and output.out is not None and (output.out / "config.yaml").exists():
        preset = read_config(output.out).get("preset", preset)  # a run keeps the name under which it began
    described = store.describe(preset, config)
    if not team.leads():
        output = Output(quiet=True)
    devices = 1 if mesh is None else mesh.size
    with team.own_folder(lambda: output.out or default_folder(preset, config)) as place:
        try:
            mirror = None if output.mirror is None else Mirror(output.mirror, place)
            folder = RunFolder(place, described, output.resume, store.upgrade, devices, mirror)
        except BaseException:
            team.any_of(True)
            raise
        with closing(folder):
            if team.any_of(False):
                raise BadRequest("the process that owns the run folder cannot begin, and says why")
            return _train_in(folder, spec, agent, config, described, output, mesh, keep)


def _train_in(
    folder: RunFolder,
    spec: AgentSpec,
    agent: Any,
    config: Experiment,
    described: dict[str, Any],
    output: Output,
    mesh: Mesh | None,
    keep: Callable[[Path, int, Any, Any], None] | None,
) -> Run:
    preset = described["preset"]
    run = Run(folder.path, config, preset)
    if team.of_leader(np.bool_(folder.is_finished)):
        notify(f"{folder.path} is already complete")
        if folder.mirror is not None:
            folder.mirror.finish()
        return run
    if agent.env.is_host_pool:
        write_spaces(folder.path, agent.env)
    settings = LoopSettings(
        label=f"{config.task} {config.label}",
        seeds=config.seeds,
        seed=config.seed,
        plan=divide(config, agent),
        eval_points=config.eval_points,
        checkpoint_seconds=max(config.checkpoint_seconds, least_checkpoint_seconds()),
        wandb=output.wandb,
        quiet=output.quiet,
        mesh=mesh,
    )

    def remake(steps: int) -> Any:
        return registry.build(config, Build(emulator_seed=(config.seed, RESUMED, steps)))

    record = None if keep is None else partial(keep, folder.path)
    numbers = run_loop(agent, remake, settings, folder, described, partial(draw_views, run, agent), record)
    if not team.leads():
        return run
    folder.check_place()
    run.plot()
    if spec.summary is not None:
        numbers |= spec.summary(read_metrics(folder.path / "metrics.jsonl"))
    folder.write_summary({"preset": preset, **config.identity, **numbers})
    notify(
        f"done: eval return {in_words(numbers['eval_return'])}, "
        f"{numbers['steps_per_s']:,.0f} steps/s, {numbers['wall_s']:.0f} s + {numbers['compile_s']:.0f} s to compile, "
        f"in {folder.path}"
    )
    if folder.mirror is not None:
        folder.mirror.finish()
    return run


def draw_views(run: Run, agent: Any, states: Any) -> list[Path]:
    """Pictures of what the world model of an agent imagines, if it has one."""
    if run.spec.dreaming is None:
        return []
    from engram.experiments.dream import draw_dream

    if not agent.env.is_host_pool:
        return draw_dream(run.spec.dreaming, agent, states, run.folder)
    # An emulator that was evaluated cannot be opened again.
    with closing(registry.build(run.config, Build(emulator_seed=(run.config.seed, DREAM)))) as fresh:
        return draw_dream(run.spec.dreaming, fresh, states, run.folder)
