"""Cells: the runs that a comparison consists of, each in its own folder, skipped when done and resumed when not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import LeaseSettingsMismatch, SoftFileLease

from engram.agents import registry
from engram.agents.common.experiment import Experiment
from engram.atomic_files import remove_leftovers
from engram.configs import store
from engram.errors import BadRequest, Diverged
from engram.experiments.attempts import failure_file, keep_trying
from engram.experiments.children import Children, Job, train_job
from engram.experiments.options import Output
from engram.experiments.runs import read_summary
from engram.regular_files import read_json
from engram.training.claim import LENGTH, is_claimed, lease_seconds
from engram.training.folder import read_config

State = Literal["done", "running", "failed", "not run"]
"""How far a cell is."""


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
    def is_running(self) -> bool:
        """Whether a process trains it at this moment, here or on another machine."""
        return is_claimed(self.folder)

    @property
    def failure(self) -> str | None:
        """Why its last training failed, None where it did not, or is under way again."""
        file = failure_file(self.folder)
        if self.is_finished or not file.exists() or self.is_running:
            return None
        try:
            return str(read_json(file)["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return "for a reason that cannot be read any more"

    @property
    def divergence(self) -> str | None:
        """Why its last training failed, where that is that it diverged, which another attempt would do too."""
        reason = self.failure or ""
        return reason if reason.startswith(f"exit code {Diverged.exit_code}:") else None

    @property
    def state(self) -> State:
        """How far it is."""
        if self.is_finished:
            return "done"
        if self.is_running:
            return "running"
        return "not run" if self.failure is None else "failed"

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

    def job(self, output: Output) -> Job:
        """What a process that trains it is told."""
        return Job.of(self.config, self.preset, self.folder, output)

    def train(self, output: Output, children: Children, cores: Sequence[int] = (), retries: int = 0) -> None:
        """Trains in a process of its own, after a crash anew; why that fails is kept beside the folder. Arguments and
        what is raised are those of `train_job` and `keep_trying`."""

        def attempt() -> str | None:
            return train_apart(self.config, self.preset, self.folder, output, children, cores)

        keep_trying(self.folder, attempt, retries, children.wait)


def train_apart(
    config: Experiment, preset: str, folder: Path, output: Output, children: Children, cores: Sequence[int] = ()
) -> str | None:
    """Trains `config` in a process of its own, see `train_job`."""
    return train_job(Job.of(config, preset, folder, output), children, cores)


@contextmanager
def reporting(out: Path, name: str = ".report") -> Iterator[None]:
    """The sole right to write the report of a comparison, for which others wait, or another right of that `name`.
    Raises BadRequest where it cannot be had."""
    lease = SoftFileLease(out / name, lease_duration=lease_seconds(), poll_interval=0.1)
    try:
        lease.acquire()
    except LeaseSettingsMismatch:
        raise BadRequest(f"{out} is used with another {LENGTH}: it must be the same") from None
    except OSError as error:
        raise BadRequest(f"cannot write to {out}: {error.strerror}") from None
    try:
        yield
    finally:
        lease.release()


def make_folder(out: Path) -> None:
    """Makes the folder of a comparison. Raises BadRequest where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
    except OSError as error:
        raise BadRequest(f"cannot write to {out}: {error.strerror}") from None
