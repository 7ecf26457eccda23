"""Make a dataset for offline learning: tiers of a PPO run, a scripted set, or an existing file in another format.

    python scripts/make_dataset.py [PRESET] [--tiers random medium ...] [--steps N] [--out DIR] [any option of train.py]
    python scripts/make_dataset.py expert RUN_DIR [--steps N] [--out DIR]
    python scripts/make_dataset.py pendulum-noise --out FILE [--mask-velocity]
    python scripts/make_dataset.py convert FILE OUT

The first trains PPO once in `<out>/training` and records it; with `--tiers random` alone nothing is trained. Repeating
the command goes on where it was stopped, and makes what is missing. Exit codes: 0 done, 2 bad request, 3 training
diverged, 130 interrupted.
"""

from collections.abc import Callable, Sequence
from typing import Any

from engram.experiments.datasets import (
    Convert,
    Expert,
    PendulumNoise,
    Tiers,
    convert,
    make_pendulum,
    make_tiers,
    record_expert,
    refuse_other_agents,
)
from engram.scripts.command_line import about, experiment_named, parse, run_script

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "expert": (Expert, record_expert),
    "pendulum-noise": (PendulumNoise, make_pendulum),
    "convert": (Convert, convert),
}


def main(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ("",)
    if name in COMMANDS:
        options, command = COMMANDS[name]
        command(parse([options], rest, f"make_dataset.py {name}", options.__doc__ or "")[0])
        return 0
    preset, experiment, rest = experiment_named(arguments)
    refuse_other_agents(experiment)
    title = f"{__doc__}\n{about(preset, experiment)}"
    options, experiment = parse([Tiers(), experiment], rest, "make_dataset.py PRESET", title)
    make_tiers(preset, experiment, options)
    return 0


if __name__ == "__main__":
    run_script(main)
