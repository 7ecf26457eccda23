"""Compare memories, or algorithms: each on every environment or dataset, several seeds, one command.

    python scripts/compare.py PRESET --memories s5 gru none --envs ID ...
        [--seeds N] [--out DIR] [any option of train.py]
    python scripts/compare.py PRESET --memories dm attention --datasets FILE ...
    python scripts/compare.py PRESET --algorithms epoch-ucb greedy --envs ID ...
    python scripts/compare.py PRESET --tuned SWEEP/best.json [--match params|flops|state]

Each cell is a run folder `<out>/<env or dataset>-<memory or algorithm>`, trained in a process of its own. Repeating the
command skips finished cells and resumes broken ones. Writes `table.md`, `table.csv`, `curves.png` and `bars.png` after
every cell; a cell that failed is named with its reason. In meta/ environments it ends with how the agents adapt within
trials (see `adapt.py`): `adaptation.md` and `adaptation.png`. Exit code 0 if every cell is there, else 1.
"""

from collections.abc import Sequence

from engram.configs.arguments import given
from engram.errors import BadRequest
from engram.experiments.options import Compare, Output, Watch
from engram.scripts.command_line import experiment_named, help_if_asked, parse, run_script


def main(arguments: Sequence[str]) -> int:
    about = ("compare.py PRESET", __doc__ or "")
    help_if_asked([Compare(), Watch()], arguments, *about)
    preset, experiment, rest = experiment_named(arguments)
    from engram.experiments.compare import compare, refuse_fixed  # with JAX, which help does without

    options, looking, output, changed = parse([Compare(), Watch(), Output(), experiment], rest, *about)
    refuse_fixed(experiment, options, given(rest))
    if output.resume:
        raise BadRequest("compare sets --resume itself")
    compared = compare(changed, preset, options, output, looking.watch)
    print(compared.table)
    return 0 if all(cell.is_finished for cell in compared.cells) else 1


if __name__ == "__main__":
    run_script(main)
