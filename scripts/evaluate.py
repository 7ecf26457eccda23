"""Evaluate a finished or running run from its newest checkpoint.

    python scripts/evaluate.py RUN_DIR [--episodes N] [--seed K] [--greedy True] [--gif-steps N]

Prints the return of every seed, writes `evaluation.json` and, where the environment can be drawn, `eval.gif`.
"""

from collections.abc import Sequence

from engram.experiments.options import Evaluate
from engram.scripts.command_line import parse, run_script


def main(arguments: Sequence[str]) -> int:
    (options,) = parse([Evaluate], arguments, "evaluate.py", Evaluate.__doc__ or "")
    from engram.experiments.evaluate import evaluate, lines  # with JAX, which help does without
    from engram.experiments.runs import Run

    print("\n".join(lines(evaluate(options), Run.load(options.run).config.seed)))
    return 0


if __name__ == "__main__":
    run_script(main)
