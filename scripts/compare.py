"""Compare memories, or algorithms: each on every environment or dataset, several seeds, one command.

    python scripts/compare.py PRESET --memories s5 gru none --envs ID ... --seeds N [--out DIR] [any option of train.py]
    python scripts/compare.py PRESET --memories dm attention --datasets FILE ... --seeds N [--out DIR] [...]
    python scripts/compare.py PRESET --algorithms epoch-ucb greedy --envs ID ... --seeds N [--out DIR] [...]

Each cell is a run folder `<out>/<env or dataset>-<memory or algorithm>`, trained in a process of its own. Repeating the
command skips finished cells and resumes broken ones. Writes `table.md`, `table.csv`, `curves.png` and `bars.png` after
every cell; a cell that failed is named with its reason. In meta/ environments it ends with how the agents adapt within
trials (see `adapt.py`): `adaptation.md` and `adaptation.png`. Exit code 0 if every cell is there, 1 if some failed.
"""

from collections.abc import Sequence

from engram.configs.arguments import given
from engram.errors import BadRequest
from engram.experiments.compare import Options, compare, refuse_fixed
from engram.experiments.train import Output
from engram.scripts.command_line import experiment_named, parse, run_script


def main(arguments: Sequence[str]) -> int:
    preset, experiment, rest = experiment_named(arguments)
    options, output, changed = parse(
        [Options(), Output(), experiment], rest, "compare.py PRESET", __doc__ or "", shown=1
    )
    refuse_fixed(experiment, options, given(rest))
    if output.resume:
        raise BadRequest("compare sets --resume itself")
    compared = compare(changed, preset, options, output)
    print(compared.table)
    return 1 if compared.failures else 0


if __name__ == "__main__":
    run_script(main)
