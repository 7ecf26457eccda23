"""Train an agent: PPO with a memory, a world model, a policy on recorded episodes, or a planner.

    python scripts/train.py PRESET [--env ID] [--memory NAME] [--out DIR] ...
    python scripts/train.py PRESET+MODIFIER ...        # such as atari100k+small
    python scripts/train.py PRESET --config FILE ...   # a YAML file on top
    python scripts/train.py FILE.yaml ...              # such as a run's config.yaml
    python scripts/train.py --list                     # all presets and modifiers

Exit codes: 0 done, 2 bad request, 3 training diverged, 4 in use elsewhere, 130 interrupted (checkpointed; continue with
--resume).
"""

from collections.abc import Sequence

from engram.configs.presets import listing
from engram.experiments.options import Distributed, Output
from engram.scripts.command_line import about, experiment_named, parse, run_script


def main(arguments: Sequence[str]) -> int:
    if "--list" in arguments:
        print(listing())
        return 0
    preset, experiment, rest = experiment_named(arguments)
    title = f"{__doc__}\n\n{about(preset, experiment)}"
    output, several, experiment = parse([Output(), Distributed(), experiment], rest, "train.py PRESET", title)
    from engram.experiments.train import train  # with JAX, which a list does without
    from engram.training import team

    if several.distributed:
        team.join(several.coordinator, several.processes, several.process)
    train(experiment, preset, output)
    return 0


if __name__ == "__main__":
    run_script(main)
