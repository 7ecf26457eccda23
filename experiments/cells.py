"""Cells: the runs that a comparison consists of, each in its own folder, skipped when done and resumed when not."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engram.agents import registry
from engram.agents.common.experiment import Experiment
from engram.configs import store
from engram.errors import BadRequest
from engram.experiments.options import Output
from engram.experiments.runs import read_summary
from engram.experiments.train import train_apart
from engram.training.folder import read_config


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    config: Experiment = field(repr=False)
    folder: Path
    preset: str = ""

    @property
    def task(self) -> str:
        return self.config.task

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def is_finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The numbers of the finished run, None before. Raises BadRequest where the file is damaged."""
        return read_summary(self.folder)

    def scores(self) -> list[float | None]:
        """Final evaluation return per seed, None for a seed without one; empty while the run is not finished."""
        summary = self.summary
        return [] if summary is None else summary["eval_return"]["per_seed"]

    def refuse_impossible(self) -> None:
        """Raises BadRequest for a configuration that cannot be built, before hours of training and not after."""
        registry.build(self.config).close()

    def refuse_other(self) -> None:
        """Raises BadRequest if the folder holds a run of another configuration: its scores would stand in one table."""
        if not (self.folder / "config.yaml").exists():
            return
        if store.upgrade(read_config(self.folder)) != store.describe(self.preset, self.config):
            raise BadRequest(f"{self.folder} was trained with other options: choose another --out")

    def train(self, output: Output = Output(), seconds: float | None = None) -> str | None:
        """Trains in a process of its own; returns why it failed, or None. `seconds` as in `train_apart`."""
        output = dataclasses.replace(output, out=self.folder)
        return train_apart(self.config, self.preset, self.folder, output, seconds)


def make_folder(out: Path) -> None:
    """Makes the folder of a comparison. Raises BadRequest where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"cannot write to {out}: {error.strerror}") from None
