"""A sweep: the settings of each memory searched with the same space, trials, seeds and steps.

A trial is a run folder `<out>/trials/<memory>/<number>` (with several tasks a folder for each within), trained in a
process of its own. Repeating a sweep resumes what was broken under its number, and goes on; several commands on one
folder share its trials. `sweep.md`, `sweep.csv`, `sweep.png` and `best.json` are written after every run; the last has
the winner of each memory, which `compare` takes on fresh seeds.
"""

from collections import Counter
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.errors import BadRequest
from engram.experiments.cells import make_folder
from engram.experiments.compare import fields_of, refuse_given
from engram.experiments.launch import require_engine, run_cells
from engram.experiments.options import Output
from engram.experiments.options import Sweep as Options
from engram.experiments.search import Search, optuna
from engram.experiments.space import words
from engram.experiments.sweep_report import report, winners
from engram.experiments.trials import Plan, Trial
from engram.experiments.tuned import BEST
from engram.training.stderr import notify


@dataclass(frozen=True)
class Sweep:
    """A sweep that was run. `engram.sweep(...)` gives one.

    Attributes:
        out: its folder, with `sweep.md`, `sweep.csv`, `sweep.png` and `best.json`.
        trials: its trials, each with its run folders (`trial.cells`), settings and score.
        planned: number of trials of each column.
    """

    out: Path
    trials: list[Trial] = field(repr=False)
    planned: int

    @property
    def is_complete(self) -> bool:
        """Whether each column has all its trials, and all have ended."""
        counts = Counter(trial.column for trial in self.trials if trial.has_ended)
        return bool(counts) and all(counts[trial.column] == self.planned for trial in self.trials)

    @property
    def winners(self) -> dict[str, Trial]:
        """The best trial of each memory or algorithm, by its label."""
        return winners(self.trials)

    @property
    def best(self) -> Path:
        """The file with the winners, for `compare(..., tuned=...)`."""
        return self.out / BEST

    @property
    def report(self) -> str:
        """The report, in Markdown."""
        return (self.out / "sweep.md").read_text()


def sweep(config: Experiment, preset: str, options: Options, output: Output = Output()) -> Sweep:
    """Trains every trial that has not ended, and reports.

    Args:
        config: what all trials have in common.
        preset: name of the preset that it began from.
        output: `wandb` and `quiet` of the runs.

    Raises:
        BadRequest: a space that cannot be searched, runs that cannot be built, or another sweep in the same folder.
        MissingExtra: Optuna is not installed.
        Interrupted: stopped; the same sweep goes on where it was.
    """
    optuna()
    require_engine(options.launcher)
    plan = Plan.of(config, preset, options)
    make_folder(plan.out)
    failed: set[tuple[str, int]] = set()
    with closing(Search(plan)) as search:

        def write() -> None:
            report(search.plan, search.trials())

        while batch := search.take(options.jobs, failed):
            for trial in batch:
                if trial.state == "not run":
                    notify(f"trial {trial.number} of {trial.column}: {words(trial.settings)}")
            cells = [cell for trial in batch for cell in trial.cells]
            run_cells(cells, output, options.jobs, write, launcher=options.launcher, out=plan.out)
            failed |= {(trial.column, trial.number) for trial in batch if trial.now().state == "failed"}
        write()
        notify(f"wrote sweep.md, sweep.csv, sweep.png and {BEST} in {plan.out}")
        return Sweep(plan.out, search.trials(), search.plan.trials)


def refuse_set(config: Experiment, options: Options, given: Collection[str]) -> None:
    """Raises BadRequest where fields that are `given` are those that a sweep varies."""
    searched = [name for entry in options.space for name in entry.partition("=")[0].replace("-", "_").split("+")]
    varied = [*fields_of(config, options), *searched]
    if options.match != "none" and (memory := spec_of(config).remembering):
        varied.append(memory.width)
        if memory.width in searched:
            raise BadRequest(f"--match chooses {memory.width} itself: leave it out of --space")
    refuse_given(varied, given, "the sweep")
