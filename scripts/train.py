"""Train an agent: PPO with a memory, a world model, a policy on recorded episodes, or a planner.

    python scripts/train.py PRESET[+MODIFIER...] [--env ID] [--memory NAME] [--seeds N] [--out DIR] [--resume] ...
    python scripts/train.py FILE.yaml [...]                       # such as the config.yaml of a run; - reads stdin
    python scripts/train.py PRESET --config FILE.yaml [...]       # the file's values on top of the preset's
    python scripts/train.py --list                                # all presets and modifiers

Exit codes: 0 done, 2 bad request, 3 training diverged, 4 in use elsewhere, 130 interrupted (checkpointed; continue with
--resume).
"""

from collections.abc import Sequence

from engram.configs.presets import listing
from engram.scripts.command_line import about, experiment_named, parse, run_script


def main(arguments: Sequence[str]) -> int:
    if "--list" in arguments:
        print(listing())
        return 0
    preset, experiment, rest = experiment_named(arguments)
    from engram.experiments.train import Output, train  # with JAX, which a list does without

    output, experiment = parse([Output(), experiment], rest, "train.py PRESET", about(preset, experiment))
    train(experiment, preset, output)
    return 0


if __name__ == "__main__":
    run_script(main)
