"""Tune memories, or algorithms: settings searched with the same space, trials, seeds and steps for each.

    python scripts/sweep.py PRESET --memories s5 gru --envs ID ...
        --space ppo.learning-rate=log:1e-4:1e-2 network.layers=choice:1,2
        [--trials N] [--seeds N] [--sampler tpe|random|grid] [--out DIR] [--jobs N] [any option of train.py]
    python scripts/compare.py PRESET --tuned DIR/best.json       # the winners, on fresh seeds

A trial is a run folder `<out>/trials/<memory>/<number>`, trained in a process of its own. Repeating the command resumes
broken trials under their number, and goes on; several commands share the trials of one folder. Writes `sweep.md`,
`sweep.csv`, `sweep.png` and `best.json` after every run. Needs the extra `sweep`. Exit code 0 if every trial has ended,
else 1.
"""

from collections.abc import Sequence

from engram.configs.arguments import given
from engram.errors import BadRequest
from engram.experiments.options import Output, Sweep
from engram.scripts.command_line import experiment_named, help_if_asked, parse, run_script


def main(arguments: Sequence[str]) -> int:
    about = ("sweep.py PRESET", __doc__ or "")
    help_if_asked([Sweep()], arguments, *about)
    preset, experiment, rest = experiment_named(arguments)
    from engram.experiments.sweep import refuse_set, sweep  # with JAX, which help does without

    options, output, changed = parse([Sweep(), Output(), experiment], rest, *about)
    refuse_set(experiment, options, given(rest))
    if output.resume:
        raise BadRequest("the sweep sets --resume itself")
    swept = sweep(changed, preset, options, output)
    print(swept.report)
    return 0 if swept.is_complete else 1


if __name__ == "__main__":
    run_script(main)
