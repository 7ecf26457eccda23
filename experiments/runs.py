"""Runs as objects: a run folder, its configuration, its metrics, and the agent at its newest checkpoint."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from engram.agents import registry
from engram.agents.common.experiment import Experiment
from engram.agents.common.spec import AgentSpec, Build
from engram.agents.registry import spec_of
from engram.configs import store
from engram.errors import BadRequest
from engram.regular_files import is_number, read_json
from engram.training import checkpoint
from engram.training.folder import read_config
from engram.training.metrics import read_metrics
from engram.training.programs import over_seeds, seed_keys

if TYPE_CHECKING:
    from engram.experiments.policy import Policy

RECORDINGS = "recordings"
"""Folder, in that of a run, with the steps of its training, where these were recorded."""


@dataclass(frozen=True)
class Run:
    """A run folder. `engram.load(path)` and `engram.train(...)` give one.

    Attributes:
        folder: the run folder.
        config: the experiment that it holds.
        preset: name of the preset that it began from.
    """

    folder: Path
    config: Experiment = field(repr=False)
    preset: str = ""

    @classmethod
    def load(cls, folder: Path | str) -> "Run":
        """The run in `folder`.

        Raises:
            BadRequest: it is no run folder, or its configuration cannot be read.
        """
        folder = Path(folder)
        stored = read_config(folder)
        return cls(
            folder,
            store.from_dict(stored, str(folder / "config.yaml")),
            store.preset_of(stored, str(folder / "config.yaml")),
        )

    @property
    def spec(self) -> AgentSpec:
        """The declaration of its agent."""
        return spec_of(self.config)

    @property
    def is_finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of `summary.json`. Raises BadRequest where the run is not finished or the file is damaged."""
        summary = read_summary(self.folder)
        if summary is None:
            raise BadRequest(f"{self.folder} is not finished: continue it with --resume")
        return summary

    @property
    def is_recorded(self) -> bool:
        """Whether its agent was made with `record`, which its checkpoints show."""
        return (self.folder / RECORDINGS).is_dir()

    def metrics(self) -> Any:
        """All metrics as tidy rows with the columns `seed`, `env_steps`, `metric` and `value`.

        Returns:
            a pandas DataFrame where pandas is installed, else a list of dicts.
        """
        rows = list(self._tidy())
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=["seed", "env_steps", "metric", "value"])

    def _tidy(self) -> Iterator[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        for row in read_metrics(path) if path.exists() else ():
            for name, values in row.items():
                for index, value in enumerate(values if isinstance(values, list) else ()):
                    yield {
                        "seed": self.config.seed + index,
                        "env_steps": row["env_steps"],
                        "metric": name,
                        "value": value,
                    }

    def build(self, circumstances: Build = Build()) -> Any:
        """The agent of the run, untrained. An emulator that was played needs a new one."""
        return registry.build(self.config, dataclasses.replace(circumstances, record=self.is_recorded))

    def restore(self, agent: Any) -> tuple[Any, checkpoint.Progress]:
        """The states of all seeds, leaves `[seeds, ...]`, and how far the run was, of the newest intact checkpoint.

        Args:
            agent: one that was built from the run's configuration; of its state only what is in the checkpoint too.

        Raises:
            BadRequest: there is none.
        """
        seeds = self.config.seeds
        template = jax.eval_shape(over_seeds(agent.init, seeds), seed_keys(self.config.seed, seeds))
        found = checkpoint.restore(self.folder / "checkpoints", template)
        if found is None:
            raise BadRequest(f"{self.folder} has no intact checkpoint")
        return found

    @cached_property
    def states(self) -> Any:
        """The trained states of all seeds, leaves `[seeds, ...]`."""
        from engram.experiments.policy import offscreen

        return self.restore(offscreen(self))[0]

    def policy(self, seed: int = 0, greedy: bool | None = None, key: int = 0) -> "Policy":
        """The trained policy, to act one step at a time in any environment of its spaces. Opens no emulator.

        Args:
            seed: which of the run's seeds, counted from 0.
            greedy: whether it takes the most likely action instead of a sampled one (None: as configured).
            key: seed of the sampling.

        Raises:
            BadRequest: the agent has no policy to act with, or no such seed.
        """
        from engram.experiments.policy import Policy

        return Policy.of(self, seed, greedy, key)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Evaluates the run: see `engram.evaluate`."""
        from engram.experiments.evaluate import Options, evaluate

        return evaluate(store.build(Options, {"run": self.folder, **options}))

    def plot(self, out: Path | str | None = None) -> Path:
        """Draws the learning curves into `out` (default: `curves.png` in the run folder)."""
        from engram.experiments.figures import draw_curves

        path = self.folder / "curves.png" if out is None else Path(out)
        draw_curves([self.folder], path)
        return path


COUNTS = ("seeds", "env_steps", "wall_s", "compile_s", "steps_per_s")
"""Numbers of every summary."""
RETURNS = ("eval_return", "train_return")
"""Statistics over seeds of every summary."""


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The contents of a run's `summary.json`, None where it is not finished. Raises BadRequest for a damaged one."""
    path = folder / "summary.json"
    try:
        summary = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    except BadRequest:
        summary = None
    if not _is_summary(summary):
        raise BadRequest(f"{path} is damaged: remove it, and the run is resumed from its checkpoint")
    return summary


def _is_summary(summary: Any) -> bool:
    """Whether what a file holds has what every summary has."""
    if not isinstance(summary, dict) or not all(is_number(summary.get(name)) for name in COUNTS):
        return False
    ended = summary.get("eval_finished", [1.0])
    if not isinstance(ended, list) or not ended or not all(map(is_number, ended)):
        return False
    for of_seeds in (summary.get(name) for name in (*RETURNS, *(["eval_score"] if "eval_score" in summary else []))):
        if not isinstance(of_seeds, dict) or "mean" not in of_seeds:
            return False
        per_seed = of_seeds.get("per_seed")
        if not isinstance(per_seed, list):
            return False
        if not all(value is None or is_number(value) for value in (*per_seed, of_seeds["mean"])):
            return False
    return True


def default_folder(preset: str, config: Experiment) -> Path:
    """`runs/<preset>/<env or dataset>-<label>-<time>`, with a number behind it where that is taken."""
    name = f"{folder_name(config.task, config.label)}-{time.strftime('%Y%m%d-%H%M%S')}"
    base = Path("runs") / (preset or "own") / name
    for number in itertools.count(2):
        try:
            base.mkdir(parents=True)  # whoever makes it has it
            return base
        except FileExistsError:
            base = base.with_name(f"{name}.{number}")
        except OSError as error:
            raise BadRequest(f"cannot write to {base}: {error.strerror}") from None
    raise AssertionError


def folder_name(*parts: str) -> str:
    """`<env or dataset>-<label>` without the characters that a shell or a file system would take for its own."""
    return "-".join(part.translate(str.maketrans("/?&:*", "-----")).strip("-.") for part in parts)
