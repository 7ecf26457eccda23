"""Learning curves of one or more runs in one picture.

python scripts/plot.py RUN_DIR [RUN_DIR ...] [--out FILE]
"""

from collections.abc import Sequence

from engram.errors import BadRequest
from engram.experiments.figures import Options, draw_curves
from engram.scripts.command_line import parse, run_script
from engram.training.folder import notify


def main(arguments: Sequence[str]) -> int:
    options = parse([Options], arguments, "plot.py", Options.__doc__ or "")[0]
    if not options.runs:
        raise BadRequest("name at least one run folder")
    draw_curves(options.runs, options.out)
    notify(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
