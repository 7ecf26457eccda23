"""Learning curves of one or more runs in one picture.

python scripts/plot.py RUN_DIR [RUN_DIR ...] [--out FILE] [--x wall_s] [--metrics NAME ...] [--labels NAME ...]
"""

from collections.abc import Sequence

from engram.experiments.options import Plot
from engram.scripts.command_line import parse, run_script


def main(arguments: Sequence[str]) -> int:
    (options,) = parse([Plot], arguments, "plot.py", Plot.__doc__ or "")
    from engram.experiments.figures import draw_curves  # with JAX, which help does without
    from engram.training.stderr import notify

    draw_curves(options.runs, options.out, options.x, options.metrics, options.labels)
    notify(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
