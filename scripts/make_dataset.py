"""Make a dataset for offline learning: tiers of a PPO run, a scripted set, or an existing file in another format.

    python scripts/make_dataset.py [PRESET] [--tiers random medium ...] [--steps N]
        [--out DIR] [any option of train.py]
    python scripts/make_dataset.py expert RUN_DIR [--steps N] [--out DIR]
    python scripts/make_dataset.py pendulum-noise --out FILE [--mask-velocity]
    python scripts/make_dataset.py convert FILE OUT

The first trains PPO once in `<out>/training` and records it; with `--tiers random` alone nothing is trained. Repeating
the command goes on where it was stopped, and makes what is missing. Exit codes: 0 done, 2 bad request, 3 training
diverged, 130 interrupted.
"""

from collections.abc import Sequence

from engram.experiments.options import Convert, Expert, PendulumNoise, Tiers
from engram.scripts.command_line import about, experiment_named, parse, run_script

COMMANDS = {"expert": Expert, "pendulum-noise": PendulumNoise, "convert": Convert}
"""Options of what is made without training, by the first word."""


def main(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ("",)
    if name in COMMANDS:
        (options,) = parse([COMMANDS[name]], rest, f"make_dataset.py {name}", COMMANDS[name].__doc__ or "")
        from engram.experiments import datasets  # with JAX, which help does without

        commands = {
            "expert": datasets.record_expert,
            "pendulum-noise": datasets.make_pendulum,
            "convert": datasets.convert,
        }
        commands[name](options)
        return 0
    preset, experiment, rest = experiment_named(arguments)
    title = f"{__doc__}\n\n{about(preset, experiment)}"
    options, experiment = parse([Tiers(), experiment], rest, "make_dataset.py PRESET", title)
    from engram.experiments.datasets import make_tiers, refuse_other_agents

    refuse_other_agents(experiment)
    make_tiers(preset, experiment, options)
    return 0


if __name__ == "__main__":
    run_script(main)
