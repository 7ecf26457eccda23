"""The calls that scripts and notebooks share. `import engram` offers them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engram.agents.common.experiment import Experiment
from engram.configs import store

if TYPE_CHECKING:
    from engram.experiments.compare import Comparison
    from engram.experiments.options import Launcher
    from engram.experiments.runs import Run
    from engram.experiments.sweep import Sweep

Preset = str | Path | Experiment
"""Name of a preset, with modifiers or without, a YAML file such as the `config.yaml` of a run, or an experiment."""


def presets() -> Mapping[str, Any]:
    """Every preset by its name. Printed, it lists them with a sentence each."""
    from engram.configs.presets import PRESETS

    return PRESETS


def make_config(preset: Preset, config: str | Path | None = None, **changes: Any) -> tuple[str, Experiment]:
    """Name and experiment of a preset with other values.

    Args:
        preset: name of a preset, with modifiers or without (`popgym-fast+debug`), a YAML file, or an experiment.
        config: YAML file with values on top of the preset's.
        changes: values by field (`seeds=3`), nested as mappings (`ppo={"num_envs": 8}`) or with two underscores
            (`ppo__num_envs=8`).

    Raises:
        UnknownName: no such preset or field; the message offers close matches.
        BadRequest: impossible values.
    """
    from engram.configs import sources

    name, experiment = sources.find(preset)
    if config is not None:
        experiment = sources.overlay(experiment, config)
    return name, store.override(experiment, changes)


def train(
    preset: Preset = "popgym",
    *,
    out: Path | str | None = None,
    resume: bool = False,
    wandb: Literal["disabled", "offline", "online"] = "disabled",
    quiet: bool = False,
    devices: int | None = None,
    mirror: str | None = None,
    **changes: Any,
) -> "Run":
    """Trains a preset with other values, and returns the finished run.

    Args:
        preset, changes: see `make_config`.
        out: run folder (default: runs/<preset>/<env or dataset>-<memory>-<time>).
        resume: whether to go on with the run in `out`.
        wandb: Weights & Biases.
        quiet: whether to show no progress.
        devices: of this machine, over which the seeds are spread (default: as many as there are and divide them).
        mirror: URL of a copy of the run folder, or of those of the cells.

    Raises:
        EngramError: see `engram.errors`. A run that was interrupted or diverged can be resumed.
    """
    from engram.experiments.train import Output
    from engram.experiments.train import train as run

    name, config = make_config(preset, **changes)
    return run(config, name, make_options(Output, out=out, resume=resume, wandb=wandb, quiet=quiet, devices=devices, mirror=mirror))


def load(folder: Path | str) -> "Run":
    """The run in a folder: its configuration, metrics, states and policy.

    Raises:
        BadRequest: it is no run folder.
    """
    from engram.experiments.runs import Run

    return Run.load(folder)


def evaluate(run: "Run | Path | str", **options: Any) -> dict[str, Any]:
    """Evaluates a run from its newest checkpoint; writes `evaluation.json` and `eval.gif` where it can be drawn.

    Args:
        run: a run or its folder.
        options: `episodes`, `seed`, `greedy` and `gif_steps`, see `engram.experiments.evaluate.Options`.

    Returns:
        the contents of `evaluation.json`.
    """
    from engram.experiments.evaluate import Options
    from engram.experiments.evaluate import evaluate as evaluate_run

    return evaluate_run(make_options(Options, run=folder_of(run), **options))


def compare(
    preset: Preset = "popgym",
    *,
    memories: Sequence[str] = (),
    algorithms: Sequence[str] = (),
    envs: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seeds: int = 3,
    tuned: Path | str | None = None,
    match: Literal["none", "params", "flops", "state"] = "none",
    out: Path | str | None = None,
    x: Literal["env_steps", "wall_s"] = "env_steps",
    pictures: Sequence[Literal["png", "pdf", "svg"]] = ("png",),
    jobs: int = 1,
    launcher: "Launcher | str" = "local",
    wandb: Literal["disabled", "offline", "online"] = "disabled",
    quiet: bool = False,
    devices: int | None = None,
    mirror: str | None = None,
    **changes: Any,
) -> "Comparison":
    """Trains every memory or algorithm on every environment or dataset, and reports: tables and pictures in `out`.

    Args:
        preset, changes: see `make_config`.
        memories, algorithms: columns of the table (default: the agent's own choice).
        envs, datasets: rows of the table (default: the preset's).
        seeds: seeds per cell.
        tuned: file with the winners of a sweep, `sweep(...).best`, whose settings the columns have.
        match: size that memories are made equal in by their width.
        out: folder of the comparison (default: runs/compare/<preset>). Finished cells in it are not trained again.
        x: horizontal axis of the curves: steps, or seconds of training.
        pictures: formats of the pictures, each of which is written in all of them.
        jobs: cells that are trained at the same time, each in a process of its own.
        launcher: engine that trains them: `local`, `slurm` or `ray`, or these with settings, `engram.Launcher("slurm",
            partition="gpu", hours=4)`.
        wandb: Weights & Biases.
        quiet: whether to show no progress.
        devices: of this machine, over which the seeds are spread (default: as many as there are and divide them).
        mirror: URL of a copy of the run folder, or of those of the cells.

    Raises:
        EngramError: see `engram.errors`. A comparison that was interrupted goes on where it was.
    """
    from engram.experiments.compare import Options
    from engram.experiments.compare import compare as run
    from engram.experiments.compare import refuse_fixed
    from engram.experiments.train import Output

    name, config = make_config(preset, **changes)
    lists = {"memories": memories, "algorithms": algorithms, "envs": envs, "datasets": datasets, "pictures": pictures}
    how = {"tuned": tuned, "match": match, "out": out, "x": x, "jobs": jobs, "launcher": launcher}
    options = make_options(Options, **lists, seeds=seeds, **how)
    refuse_fixed(config, options, store.dotted(changes))
    return run(config, name, options, make_options(Output, wandb=wandb, quiet=quiet, devices=devices, mirror=mirror))


def sweep(
    preset: Preset = "popgym",
    *,
    space: Mapping[str, str] | Sequence[str],
    memories: Sequence[str] = (),
    algorithms: Sequence[str] = (),
    envs: Sequence[str] = (),
    datasets: Sequence[str] = (),
    trials: int | None = None,
    seeds: int = 2,
    seed: int = 1_000_000,
    sampler: Literal["tpe", "random", "grid"] = "tpe",
    match: Literal["none", "params", "flops", "state"] = "none",
    out: Path | str | None = None,
    jobs: int = 1,
    launcher: "Launcher | str" = "local",
    wandb: Literal["disabled", "offline", "online"] = "disabled",
    quiet: bool = False,
    devices: int | None = None,
    mirror: str | None = None,
    **changes: Any,
) -> "Sweep":
    """Searches the settings of every memory or algorithm with the same space, trials, seeds and steps, and reports.

    Args:
        preset, changes: see `make_config`.
        space: ranges by setting, `{"ppo.learning_rate": "log:1e-4:1e-2", "network.layers": "choice:1,2"}`, or as
            written on the command line, `["ppo.learning_rate=log:1e-4:1e-2"]`.
        memories, algorithms: what is tuned (default: the agent's own choice).
        envs, datasets: tasks on all of which a trial is trained (default: the preset's).
        trials: trials of each memory or algorithm (default: 32, or all combinations of a grid).
        seeds: seeds per trial.
        seed: seed of the search; a comparison of the winners needs other seeds.
        sampler: way to choose settings.
        match: size that memories are made equal in by their width, see `compare`.
        out: folder of the sweep (default: runs/sweep/<preset>). Trials in it that have ended are not trained again.
        jobs: runs that are trained at the same time, each in a process of its own.
        launcher: engine that trains them, see `compare`.
        wandb: Weights & Biases.
        quiet: whether to show no progress.
        devices: of this machine, over which the seeds are spread (default: as many as there are and divide them).
        mirror: URL of a copy of the run folder, or of those of the cells.

    Raises:
        EngramError: see `engram.errors`. A sweep that was interrupted goes on where it was.
    """
    from engram.experiments.sweep import Options, refuse_set
    from engram.experiments.sweep import sweep as run
    from engram.experiments.train import Output

    name, config = make_config(preset, **changes)
    entries = [f"{setting}={values}" for setting, values in space.items()] if isinstance(space, Mapping) else space
    lists = {"space": entries, "memories": memories, "algorithms": algorithms, "envs": envs, "datasets": datasets}
    how = {"trials": trials, "seeds": seeds, "seed": seed, "sampler": sampler, "out": out, "jobs": jobs}
    options = make_options(Options, **lists, **how, match=match, launcher=launcher)
    refuse_set(config, options, store.dotted(changes))
    return run(config, name, options, make_options(Output, wandb=wandb, quiet=quiet, devices=devices, mirror=mirror))


def plot(
    runs: "Run | Path | str | Sequence[Run | Path | str]", out: Path | str = "curves.png", **options: Any
) -> Path:
    """Draws the learning curves of a run, or of several, into one picture, and returns its path.

    Args:
        runs: a run or several, or their folders.
        out: the picture, in the format of its ending.
        options: `x` ("env_steps" or "wall_s"), `metrics` and `labels`; see `engram.experiments.options.Plot`.
    """
    from engram.experiments.figures import draw_curves
    from engram.experiments.options import Plot

    plotted = make_options(Plot, runs=tuple(folders_of(runs)), out=Path(out), **options)
    draw_curves(plotted.runs, plotted.out, plotted.x, plotted.metrics, plotted.labels)
    return Path(out)


def adapt(runs: "Run | Path | str | Sequence[Run | Path | str]", **options: Any) -> list[dict[str, Any]]:
    """Measures how agents that were trained in `meta/` environments adapt within trials.

    Args:
        runs: a run or several, or their folders.
        options: see `engram.experiments.adapt.Options`.

    Returns:
        the contents of each run's `adaptation.json`.
    """
    from engram.experiments.adapt import Options
    from engram.experiments.adapt import adapt as measure

    return measure(folders_of(runs), make_options(Options, **options))


def make_env(env: str, num_envs: int | None = None, **options: Any) -> Any:
    """An environment by its id, such as popgym/RepeatPreviousEasy or my_module:MyEnvironment.

    Args:
        env: its id. `meta/CartPole?episodes=16` is the written form of `make_env("meta/CartPole", episodes=16)`.
        num_envs: environments in a batch that restart themselves (None: one functional environment).
        options: of the environment; `copies`, `seed` of emulators, which only come in batches.

    Returns:
        an `engram.envs.base.Environment`, or a `VectorEnvironment` where `num_envs` is given.
    """
    from engram.envs import registry

    if num_envs is None:
        return registry.make(env, **options)
    return registry.make_vector(env, num_envs, **options)


def make_memory(memory: str, width: int, **options: Any) -> Any:
    """A stack of memory layers by name, such as s5 or my_module:MyMemory: see `engram.memory.make_memory`."""
    from engram.memory import make_memory as make

    return make(memory, width, **options)


def folder_of(run: "Run | Path | str") -> Path:
    """The folder of a run."""
    return run if isinstance(run, Path) else Path(run) if isinstance(run, str) else run.folder


def folders_of(runs: "Run | Path | str | Sequence[Run | Path | str]") -> list[Path]:
    """The folders of a run or of several."""
    from engram.experiments.runs import Run

    return [folder_of(run) for run in ([runs] if isinstance(runs, Run | Path | str) else runs)]


def make_options(kind: type, **values: Any) -> Any:
    """The options `kind` of an experiment. Raises UnknownName for one that it has not."""
    return store.build(kind, {k: list(v) if isinstance(v, tuple | list) else v for k, v in values.items()})
