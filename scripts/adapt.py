"""How trained agents adapt within the trials of a `meta/` environment, on tasks that they know and on others.

    python scripts/adapt.py RUN_DIR... [--splits train test heldout]
        [--lengths 1 4 16] [--ablations frozen reset] [--changes off on oracle]
        [--trials N] [--out DIR]

Writes `adaptation.json` in each run folder, and `adaptation.md` (also printed) and `adaptation.png` of all in `--out`.
"""

from collections.abc import Sequence

from engram.experiments.options import Adapt
from engram.scripts.command_line import parse, run_script


def main(arguments: Sequence[str]) -> int:
    (options,) = parse([Adapt], arguments, "adapt.py", __doc__ or "")
    from engram.experiments.adapt import adapt  # with JAX, which help does without

    adapt(options.runs, options)
    return 0


if __name__ == "__main__":
    run_script(main)
