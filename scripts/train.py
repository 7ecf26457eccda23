"""Train an agent: PPO with a memory, a world model, a policy on recorded episodes, or a planner.

    python scripts/train.py PRESET [--env ID] [--memory NAME] [--seeds N] [--total-steps N] [--out DIR] [--resume] ...
    python scripts/train.py FILE.yaml [...]

Exit codes: 0 done, 2 bad request, 3 training diverged, 4 in use elsewhere, 130 interrupted (checkpointed; continue with
--resume).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import tyro

from engram.agents.common.experiment import Experiment
from engram.configs.presets import PRESETS
from engram.experiments.train import Output, train
from engram.scripts.command_line import experiment_named, output_of, parse, run_script

Kind = TypeVar("Kind", bound=Experiment)


@dataclass(frozen=True, kw_only=True)
class Options(Output, Generic[Kind]):
    """Where a run goes, what it shows, and its experiment."""

    experiment: Annotated[Kind, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> int:
    preset, experiment, rest = experiment_named(arguments)
    options = options_for(preset, experiment, rest, "train.py PRESET", "Train an agent.")
    train(options.experiment, preset, output_of(options))
    return 0


def options_for(preset: str, experiment: Experiment, arguments: Sequence[str], prog: str, title: str) -> Any:
    """`arguments` over the values of `experiment`."""
    description = (
        f"{title} Presets (the first argument): {', '.join(PRESETS)}. Shown is {preset or 'the file'}, with its "
        f"defaults: {experiment.__doc__}"
    )
    return parse(Options[type(experiment)], Options(experiment=experiment), arguments, prog, description)


if __name__ == "__main__":
    run_script(main)
