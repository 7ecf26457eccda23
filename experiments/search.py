"""Choosing the settings of trials, with Optuna: its journal says which trials there are, their run folders what became
of them.

A trial is *running* in the journal until its runs have ended. Whoever asks for work gets those whose command is gone
before new ones, so that a trial that was killed is resumed under its number. All of this is done by one command at a
time.
"""

import itertools
import math
import os
import platform
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engram.errors import BadRequest, MissingExtra
from engram.experiments.cells import reporting
from engram.experiments.trials import Plan, Trial
from engram.training.claim import Claim, is_claimed

JOURNAL = "journal.log"
"""File with what Optuna knows."""
DRIVER = "driver"
"""Attribute of a trial in the journal: the command that trains it."""


def optuna() -> Any:
    """Optuna, which is slow to import and optional. Raises MissingExtra."""
    try:
        import optuna
    except ImportError:
        raise MissingExtra.of("a sweep", "sweep") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """The sole right to ask for trials of the sweep in `out`, for which others wait."""
    with reporting(out, ".asking"):
        yield


class Search:
    """The trials of a sweep, as one of the commands that work on it sees them."""

    def __init__(self, plan: Plan):
        """Joins the sweep in the folder of the plan, which exists. Raises BadRequest where another one is there."""
        self._optuna = known = optuna()
        self._known: dict[tuple[str, int], Trial] = {}
        drivers, name = plan.out / "drivers", f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        with alone(plan.out):
            self.plan = plan.join()
            path = str(plan.out / JOURNAL)
            journal = known.storages.journal
            backend = journal.JournalFileBackend(path, lock_obj=journal.JournalFileOpenLock(path))
            with readable(plan.out):
                storage = known.storages.JournalStorage(backend)
                self._studies = {
                    column: known.create_study(
                        storage=storage, study_name=column, direction="maximize", load_if_exists=True
                    )
                    for column in self.plan.columns
                }
            for old in drivers.glob("*"):
                if not is_claimed(old):
                    shutil.rmtree(old)
            self._home = drivers / name
            self._home.mkdir(parents=True)
            self._claim = Claim(self._home)

    def close(self) -> None:
        """Leaves the sweep: others may take over what is not finished."""
        self._claim.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def trials(self) -> list[Trial]:
        """All trials, column by column."""
        return [trial for column in self._studies for trial in self._trials(column)]

    def take(self, jobs: int, given_up: Collection[tuple[str, int]] = ()) -> list[Trial]:
        """Trials to train now; none when all have ended or were `given_up` (columns and numbers).

        With the sampler tpe these are few: each can be chosen better with the scores of those before it.
        """
        with alone(self.plan.out):
            open_ = {column: self._open(column, given_up) for column in self._studies}
            if self.plan.sampler != "tpe":
                return by_number([[*old, *self._ask(column, self.plan.trials)] for column, old in open_.items()])
            free = {column: [trial for trial in old if self._is_free(trial)] for column, old in open_.items()}
            busy = [c for c in self._studies if free[c] or len(self._trials(c)) < self.plan.trials]
            if not busy:  # others train what is left: it is waited for, and taken over where they give it up
                return by_number([*open_.values()])
            each, batch = math.ceil(jobs / len(busy)), []
            for column in busy:
                mine = free[column][:each]
                mine += self._ask(column, each - len(mine))
                for trial in mine:
                    self._call_mine(trial)
                batch.append(mine)
            return by_number(batch)

    # ------------------------------------------------------------------------------------------------- the journal

    def _open(self, column: str, given_up: Collection[tuple[str, int]]) -> list[Trial]:
        """Trials that have not ended. The others get their scores in the journal."""
        open_ = []
        for frozen in self._frozen(column):
            trial = self._trial(column, frozen)
            if not trial.has_ended:  # whatever the journal says: its folder may have been removed
                open_ += [] if (column, trial.number) in given_up else [trial]
            elif not frozen.state.is_finished():
                self._studies[column].tell(frozen.number, trial.score)
        return open_

    def _ask(self, column: str, count: int) -> list[Trial]:
        """New trials, so many as long as there are fewer than planned; those that cannot be built are none."""
        trials = []
        while len(trials) < count and (number := len(self._frozen(column))) < self.plan.trials:
            self._add(column, number)
            trial = self._trial(column, self._frozen(column)[number])
            if trial.has_ended:  # it cannot be built, or its runs are there from a journal that was lost
                self._studies[column].tell(number, trial.score)
            else:
                trials.append(trial)
        return trials

    def _add(self, column: str, number: int) -> None:
        """Chooses a new trial, which the journal has from now on."""
        study, space, seed = self._studies[column], self.plan.space, self.plan.config.seed
        distributions = {d.name: d.distribution(self._optuna) for d in space.dimensions}
        if self.plan.sampler == "tpe":
            # Made anew for each trial: a command that goes on chooses as one that was never stopped.
            own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            study.sampler = self._optuna.samplers.TPESampler(seed=own)
            study.ask(distributions)
            return
        values = space.grid()[number] if self.plan.sampler == "grid" else space.draw(seed, number)
        parameters = {d.name: d.encode(value) for d, value in zip(space.dimensions, values, strict=True)}
        running = self._optuna.trial.TrialState.RUNNING
        study.add_trial(self._optuna.trial.create_trial(state=running, params=parameters, distributions=distributions))

    def _frozen(self, column: str) -> list[Any]:
        """Trials as the journal has them. Raises BadRequest where it cannot be read."""
        with readable(self.plan.out):
            return self._studies[column].get_trials(deepcopy=False)

    def _trials(self, column: str) -> list[Trial]:
        return [self._trial(column, frozen) for frozen in self._frozen(column)]

    def _trial(self, column: str, frozen: Any) -> Trial:
        """A trial of the journal, as it is now."""
        key = column, frozen.number
        if key not in self._known:
            with readable(self.plan.out):
                values = [d.decode(frozen.params[d.name]) for d in self.plan.space.dimensions]
            self._known[key] = self.plan.trial(column, frozen.number, self.plan.space.settings(values))
        return replace(self._known[key], driver=frozen.user_attrs.get(DRIVER, ""))

    def _call_mine(self, trial: Trial) -> None:
        """Says in the journal that this command trains a trial."""
        frozen = self._frozen(trial.column)[trial.number]
        if not frozen.state.is_finished():
            running = self._optuna.trial.Trial(self._studies[trial.column], frozen._trial_id)
            running.set_user_attr(DRIVER, self._home.name)

    def _is_free(self, trial: Trial) -> bool:
        """Whether no other command trains it."""
        return trial.driver in ("", self._home.name) or not is_claimed(self._home.with_name(trial.driver))


def by_number(batches: Sequence[Sequence[Trial]]) -> list[Trial]:
    """First trials first, so that columns are as far as each other."""
    return sorted(itertools.chain(*batches), key=lambda trial: trial.number)


@contextmanager
def readable(out: Path) -> Iterator[None]:
    """Raises BadRequest where the journal of the sweep in `out` is damaged."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AssertionError):
        raise BadRequest(
            f"{out / JOURNAL} is damaged: remove it, and trials are chosen anew; if others than before, take another "
            "--out"
        ) from None
