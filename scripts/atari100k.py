"""The Atari 100k benchmark: games x seeds, and human-normalised scores beside published ones.

    python scripts/atari100k.py [PRESET] [--games Pong Boxing ...] [--seeds N]
        [--episodes N] [--hours H] [--out DIR] [any option of train.py]

Each game and seed is a run folder `<out>/<Game>/seed<k>`, trained in a process of its own. Repeating the command skips
finished runs and resumes broken ones; commands with other games or seeds may share the folder, also at the same time.
Writes `scores.json`, `table.md` and `scores.png` of all runs in the folder after every run. Exit code 0 if every run is
there, 1 if some failed, 130 if stopped or out of time.
"""

from collections.abc import Sequence

from engram.errors import BadRequest
from engram.experiments.options import Atari100k, Output, Watch
from engram.scripts.command_line import experiment_named, help_if_asked, parse, run_script

DEFAULT = "atari100k"
"""The preset that is run when none is named."""


def main(arguments: Sequence[str]) -> int:
    about = ("atari100k.py PRESET", __doc__ or "")
    help_if_asked([Atari100k(), Watch()], arguments, *about)
    preset, experiment, rest = experiment_named(arguments, DEFAULT)
    options, looking, output, changed = parse([Atari100k(), Watch(), Output(), experiment], rest, *about)
    if changed.env != experiment.env:
        raise BadRequest("atari100k sets --env itself: use --games")
    from engram.experiments.atari100k import atari100k, folder_of  # with JAX, which help does without

    missing = atari100k(changed, preset, options, output, looking.watch)
    print((folder_of(changed, preset, options) / "table.md").read_text())
    return 1 if missing else 0


if __name__ == "__main__":
    run_script(main)
