"""The trials of a sweep: what each consists of, how it is scored, and what is the same for all."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.configs import store
from engram.errors import BadRequest
from engram.experiments.cells import Cell
from engram.experiments.compare import columns_of, rows_of
from engram.experiments.match import Match, matched
from engram.experiments.options import Sweep
from engram.experiments.runs import folder_name
from engram.experiments.space import Settings, Space, parse
from engram.experiments.tables import known_scale, reference_scores
from engram.regular_files import read_json
from engram.training.folder import write_atomically

TRIALS = 32
"""Trials of each column, where nothing else is said and there is no grid."""
STORED = "sweep.json"
"""File that says what a folder's sweep is."""
SCHEMA = 1
WORST = -math.inf
"""Score of a trial that diverged, cannot be built, or has a seed without a number."""


@dataclass(frozen=True)
class Trial:
    """Settings of one column, and the runs that try them, at one moment: `now` looks again."""

    column: str
    """Label of the memory or algorithm."""
    number: int
    settings: Settings
    cells: tuple[Cell, ...]
    """A run for each task; none where the settings cannot be built."""
    refused: str | None = None
    """Why the settings cannot be built."""
    driver: str = ""
    """The command that trains it, or did."""
    is_raw: bool = True
    """Whether returns are compared as they are, and not on the scale of random play and a reference."""

    @property
    def diverged(self) -> str | None:
        """How training diverged, None where it did not."""
        return next((reason for cell in self.cells if (reason := cell.divergence)), None)

    def now(self) -> "Trial":
        """The same trial as it is now."""
        return replace(self)

    @cached_property
    def state(self) -> Literal["done", "diverged", "refused", "running", "failed", "not run"]:
        """How far it is. After the first three it has a score, for good."""
        if self.refused is not None:
            return "refused"
        states = {cell.state for cell in self.cells}
        if states == {"done"}:
            return "done"
        if self.diverged is not None:
            return "diverged"
        return next(state for state in ("running", "failed", "not run") if state in states)

    @property
    def has_ended(self) -> bool:
        return self.state in ("done", "diverged", "refused")

    @cached_property
    def score(self) -> float:
        """Mean over tasks of the mean over seeds of the final evaluation, of a trial that has ended."""
        if self.state != "done":
            return WORST
        scores = [cell.scores() if self.is_raw else reference_scores(cell) for cell in self.cells]
        if any(not of_task or None in of_task for of_task in scores):
            return WORST
        return sum(math.fsum(of_task) / len(of_task) for of_task in scores) / len(scores)  # type: ignore[arg-type]

    @property
    def why(self) -> str:
        """Why it has no score of its own, in words; empty where it has one."""
        if self.state == "done":
            return "a seed has no number" if self.score == WORST else ""
        failures = [cell.failure for cell in self.cells if cell.failure is not None]
        return self.refused or self.diverged or next(iter(failures), "")


@dataclass(frozen=True)
class Plan:
    """A sweep before its first trial."""

    config: Experiment
    """What all trials have in common, with the seeds of the search."""
    preset: str
    out: Path
    space: Space
    tasks: tuple[str, ...]
    columns: dict[str, dict[str, str]]
    """Fields of the experiment, by the label of the memory or algorithm that they choose."""
    trials: int
    """Trials of each column."""
    sampler: Literal["tpe", "random", "grid"]
    match: Match = "none"
    """Size in which memories are made equal to the first column's, with the settings that all have in common."""

    @cached_property
    def experiments(self) -> dict[str, Any]:
        """The experiment of each column, of the size that it is given. Raises BadRequest where it cannot be."""
        return matched({label: replace(self.config, **fields) for label, fields in self.columns.items()}, self.match)

    @classmethod
    def of(cls, config: Experiment, preset: str, options: Sweep) -> "Plan":
        """The sweep that `options` ask for. Raises BadRequest where it is impossible: nothing was written then."""
        config = replace(config, seeds=options.seeds, seed=options.seed)
        space, trials = parse(options.space, config), options.trials
        if options.sampler == "grid":
            points = len(space.grid())
            if trials not in (None, points):
                raise BadRequest(f"the grid has {points} combinations, all of which are tried: leave --trials out")
            trials = points
        columns = {replace(config, **column).label: column for column in columns_of(config, options)}
        tasks = rows_of(config, options)
        refuse_scale(tasks)
        out = options.out or Path("runs") / "sweep" / (preset or "own")
        plan = cls(config, preset, out, space, tasks, columns, trials or TRIALS, options.sampler, options.match)
        plan._refuse_impossible()
        return plan

    def _refuse_impossible(self) -> None:
        """Raises BadRequest where a column cannot be built as the preset has it."""
        for label in self.columns:
            for cell in self._cells(label, 0, {}):
                cell.refuse_impossible()

    def _cells(self, column: str, number: int, settings: Settings) -> Iterator[Cell]:
        """Raises BadRequest where settings do not go together."""
        config = store.override(self.experiments[column], settings)
        folder = self.out / "trials" / folder_name(column) / str(number)
        for task in self.tasks:
            chosen = spec_of(config).resolve(replace(config, **{config.row: task}))
            yield Cell(chosen, folder if len(self.tasks) == 1 else folder / folder_name(task), self.preset)

    def trial(self, column: str, number: int, settings: Settings) -> Trial:
        """A trial of these settings. Raises BadRequest where its folder holds a finished run of others."""
        try:
            cells = tuple(self._cells(column, number, settings))
            trial = Trial(column, number, settings, cells, is_raw=is_raw(self.tasks))
            if trial.state == "not run":
                for cell in cells:
                    cell.refuse_impossible()
        except BadRequest as error:  # they do not go together
            return Trial(column, number, settings, (), str(error))
        for cell in cells:
            if cell.is_finished:
                cell.refuse_other()
        return trial

    # -------------------------------------------------------------------------------------------------- its folder

    @property
    def description(self) -> dict[str, Any]:
        """What must be the same for two commands on one folder."""
        config, spec = store.to_dict(self.config), spec_of(self.config)
        for name in (self.config.row, self.config.choice, spec.second_choice):
            config.pop(name or "", None)
        return {
            "schema": SCHEMA,
            "preset": self.preset,
            "agent": self.config.agent,
            "tasks": [*self.tasks],
            "space": [dimension.entry for dimension in self.space.dimensions],
            "sampler": self.sampler,
            **({} if self.match == "none" else {"match": self.match}),
            "config": config,
        }

    def join(self) -> "Plan":
        """Writes down what the folder's sweep is, or joins the one that is there, which may grow by columns and trials:
        the plan of all.

        Raises:
            BadRequest: it holds another sweep, or more trials.
        """
        path, columns = self.out / STORED, {**self.columns}
        if path.exists():
            found = read_json(path)
            if not self._is_whole(found):
                raise BadRequest(f"{path} is damaged: remove it, if the folder is of this sweep")
            mine, theirs = ({"match": "none", **each} for each in (self.description, found))
            other = sorted(k for k in mine if mine[k] != theirs.get(k))
            if other:
                raise BadRequest(
                    f"{self.out} holds another sweep; these differ: {', '.join(other)}: take another --out"
                )
            if found["trials"] > self.trials:
                raise BadRequest(f"the sweep in {self.out} has {found['trials']} trials already: say --trials again")
            columns = {**found["columns"], **columns}
        plan = replace(self, columns=columns)
        known = {**self.description, "columns": columns, "trials": self.trials}
        write_atomically(path, json.dumps(known, indent=2) + "\n")
        return plan

    def _is_whole(self, found: Any) -> bool:
        """Whether JSON has what the file has that says what a sweep is."""
        if not isinstance(found, dict) or type(found.get("trials")) is not int:
            return False
        columns, known = found.get("columns"), {self.config.choice, spec_of(self.config).second_choice}
        return isinstance(columns, dict) and all(
            isinstance(fields, dict) and {*fields} <= known and all(isinstance(value, str) for value in fields.values())
            for fields in columns.values()
        )


def is_raw(tasks: tuple[str, ...]) -> bool:
    """Whether returns of these tasks can be averaged as they are: there is one, or all lie between -1 and 1."""
    return len(tasks) == 1 or all(task.startswith("popgym/") for task in tasks)


def refuse_scale(tasks: tuple[str, ...]) -> None:
    """Raises BadRequest where returns of several tasks have no common scale."""
    if not is_raw(tasks) and not all(known_scale(task) for task in tasks):
        raise BadRequest(
            f"returns of {', '.join(tasks)} have no common scale, by which a trial on all of them could be scored: "
            "make a sweep for each"
        )
