"""What the scripts share: from a command line to a configuration and a run folder, from an error to an exit code."""

import dataclasses
import difflib
import errno
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import tyro

from engram.configs.experiment import (
    EXPERIMENTS,
    DramaExperiment,
    Experiment,
    OfflineExperiment,
    PPOExperiment,
    ValueExperiment,
)
from engram.configs.presets import DEFAULT, PRESETS
from engram.errors import BadRequest, Diverged, Interrupted
from engram.kernels.cache import keep_compiled_programs
from engram.kernels.malloc import keep_freed_memory
from engram.training import checkpoint
from engram.training.loop import Agent, over_seeds, seed_keys

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
FILE_TROUBLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
Episodic = TypeVar("Episodic", bound=PPOExperiment | DramaExperiment | OfflineExperiment)
"""Experiments whose agents play episodes after training."""
RECORDINGS = "recordings"
"""Folder, in that of a run, with the steps of its training, where these were recorded."""


def run_script(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a script's `main(arguments)`; every expected failure becomes one line on stderr and its exit code."""
    keep_freed_memory()
    keep_compiled_programs()
    try:
        code = main(sys.argv[1:])
    except (BadRequest, Diverged, Interrupted) as error:
        print(f"error: {error}" if not isinstance(error, Interrupted) else str(error), file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        if error.errno in DISK_FULL:
            print(f"error: cannot write{where}: {error.strerror}; what was written before is intact", file=sys.stderr)
        elif where and error.errno in FILE_TROUBLE:
            print(f"error:{where}: {error.strerror}", file=sys.stderr)
        else:
            raise
        code = BadRequest.exit_code
    sys.exit(code)


def split_preset(arguments: Sequence[str], default: str = DEFAULT) -> tuple[str, list[str]]:
    """The preset named first (or `default`) and the other arguments.

    Raises:
        BadRequest: there is no preset of that name.
    """
    if not arguments or arguments[0].startswith("-"):
        return default, list(arguments)
    name = arguments[0]
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"presets are {', '.join(PRESETS)}"
        raise BadRequest(f"unknown preset {name!r}; {hint}")
    return name, list(arguments[1:])


def parse(options: type, default: Any, arguments: Sequence[str], prog: str, description: str) -> Any:
    """`options`, filled from the command line over `default`. Values that a dataclass refuses are a bad request."""
    try:
        return tyro.cli(
            options,
            default=default,
            args=list(arguments),
            prog=prog,
            description=description,
        )
    except ValueError as error:
        raise BadRequest(str(error)) from None


def with_episodes(config: Episodic, episodes: int) -> Episodic:
    """`config` with evaluations of `episodes` episodes a seed. Raises BadRequest where its agent needs more."""
    if isinstance(config, PPOExperiment):
        return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, eval_envs=episodes))
    if isinstance(config, OfflineExperiment):
        group = config.chosen if isinstance(config, ValueExperiment) else config.agent
        try:
            settings = dataclasses.replace(getattr(config, group), eval_episodes=episodes)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return dataclasses.replace(config, **{group: settings})
    played = {"eval_envs": math.gcd(config.drama.eval_envs, episodes), "eval_episodes": episodes}
    return dataclasses.replace(config, drama=dataclasses.replace(config.drama, **played))


def restored(run: Path, agent: Agent, config: Experiment) -> tuple[Any, dict[str, Any]]:
    """The states of all seeds, leaves `[seeds, ...]`, and the manifest of the newest intact checkpoint of a run.

    Raises:
        BadRequest: there is none.
    """
    template = jax.eval_shape(over_seeds(agent.init, config.seeds), seed_keys(config.seed, config.seeds))
    found = checkpoint.restore(run / "checkpoints", template)
    if found is None:
        raise BadRequest(f"{run} has no intact checkpoint")
    return found


def is_recorded(run: Path) -> bool:
    """Whether the agent of a run folder was made with `record`, which its checkpoints show."""
    return (run / RECORDINGS).is_dir()


def to_dict(config: Experiment) -> dict[str, Any]:
    """`config` in plain YAML types."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def describe(preset: str, config: Experiment) -> dict[str, Any]:
    """What `config.yaml` of a run holds."""
    return {"preset": preset, "agent": config.agent, **to_dict(config)}


def from_dict(values: dict[str, Any]) -> Experiment:
    """The experiment of a `config.yaml` (see `describe`).

    Raises:
        BadRequest: missing or unknown keys, or values of the wrong kind.
    """

    def build(kind, data):
        if not isinstance(data, dict):
            raise TypeError(f"{kind.__name__} is not a mapping")
        fields = {f.name: f for f in dataclasses.fields(kind)}
        arguments = {}
        for name, value in data.items():
            if name not in fields:
                raise TypeError(f"unknown key {name!r}")
            field_type = fields[name].type
            if dataclasses.is_dataclass(field_type):
                value = build(field_type, value)
            elif isinstance(value, list):
                value = tuple(value)
            arguments[name] = value
        return kind(**arguments)

    values = {key: value for key, value in values.items() if key != "preset"}
    agent = values.pop("agent", PPOExperiment.agent)
    sequence = values.get("sequence")
    if isinstance(sequence, dict) and "learning_rate" in sequence:
        # Runs that were made before their step size could fall keep it as it was.
        values["sequence"] = {"learning_rate_end": sequence["learning_rate"], **sequence}
    if isinstance(values.get("odice"), dict):
        values["odice"] = {"bounded": True, **values["odice"]}  # as it was before there was a choice
    try:
        if agent not in EXPERIMENTS:
            raise BadRequest(f"unknown agent {agent!r}")
        return build(EXPERIMENTS[agent], values)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"config.yaml does not describe an experiment: {error}") from None


def default_folder(preset: str, config: Experiment) -> Path:
    """`runs/<preset>/<env or dataset>-<label>-<time>`."""
    return Path("runs") / preset / f"{folder_name(config.task, config.label)}-{time.strftime('%Y%m%d-%H%M%S')}"


def folder_name(task: str, label: str) -> str:
    """`<env or dataset>-<label>` without the characters that a shell would take for its own."""
    return f"{task.translate(str.maketrans('/?&', '---')).strip('-.')}-{label}"
