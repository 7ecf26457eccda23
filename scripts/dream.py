"""Look at what the world model of a run makes of fresh episodes.

    python scripts/dream.py RUN_DIR [--context N] [--horizon N] [--seed K]

Draws `world_model.png` and `world_model.gif` into the run folder: what was played above, below it what the model
reconstructs of the first `context` steps and then imagines from the actions alone. Under each frame stand the reward
(played above, predicted below) and "end" where the episode ends or the model expects it to; what it imagines after
that is pale.
"""

from collections.abc import Sequence

from engram.experiments.options import Dream
from engram.scripts.command_line import parse, run_script


def main(arguments: Sequence[str]) -> int:
    (options,) = parse([Dream], arguments, "dream.py", Dream.__doc__ or "")
    from engram.experiments.dream import dream  # with JAX, which help does without
    from engram.training.stderr import notify

    for picture in dream(options):
        notify(f"wrote {picture}")
    return 0


if __name__ == "__main__":
    run_script(main)
