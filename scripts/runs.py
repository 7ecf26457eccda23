"""List run folders, filter them by their settings, and show in which settings they differ.

python scripts/runs.py [FOLDER ...] [--where memory=gru ppo.learning-rate=0.001] [--diff]
"""

from collections.abc import Sequence

from engram.experiments.options import Runs
from engram.scripts.command_line import parse, run_script


def main(arguments: Sequence[str]) -> int:
    (options,) = parse([Runs], arguments, "runs.py", Runs.__doc__ or "")
    from engram.experiments.run_list import Listed, chosen, differences, find, listing  # with JAX

    runs = chosen([Listed.of(folder) for folder in find(options.folders)], options.where)
    print(differences(runs) if options.diff else listing(runs))
    return 0


if __name__ == "__main__":
    run_script(main)
