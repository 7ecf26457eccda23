"""Planners and bandits."""

from collections.abc import Mapping
from typing import Any

from engram.configs.presets.differences import Difference, Kind, Preset

CLASSES = "engram.agents.planners.experiment"


def kind(experiment: str, steps: int, debug: Mapping[str, Any]) -> Kind:
    """A kind of planner.

    Args:
        experiment: class of its experiments.
        steps: total steps of `small`.
        debug: what `debug` changes beside seeds, log points and evaluations.
    """
    return Kind(
        f"{CLASSES}:{experiment}",
        {
            "small": Difference("Four seeds and a part of the steps.", {"seeds": 4, "total_steps": steps}),
            "debug": Difference(
                "A few steps, to see that things run.", {"seeds": 2, "log_points": 2, "eval_points": 1, **debug}
            ),
        },
    )


LSD = kind("LSDExperiment", 6_400, {"lsd.steps_per_update": 20, "total_steps": 200})
UCRL = kind("UCRLExperiment", 4_000, {"ucrl.steps_per_update": 50, "total_steps": 200})
STEPMIX = kind("StepMixExperiment", 6_000, {"stepmix.episodes_per_update": 10, "total_steps": 120})
DYNLIN = kind("DynLinExperiment", 20_000, {"dynlin.steps_per_update": 50, "total_steps": 200})
NEUCB = kind("NeuCBExperiment", 1_000, {"neucb.steps_per_update": 20, "neucb.width": 8, "total_steps": 80})

PRESETS = {
    "lsd": Preset("A bandit whose payoffs depend on the last switch.", LSD, {"seeds": 256, "total_steps": 64_000}),
    "rbocpd-ucrl2": Preset("An MDP that changes now and then.", UCRL, {"seeds": 8, "total_steps": 16_000}),
    "stepmix": Preset(
        "An episodic MDP; returns stay above a share of a baseline's.", STEPMIX, {"seeds": 128, "total_steps": 36_000}
    ),
    "stepmix-corridor": Preset(
        "The same in a corridor, where exploration pays late.",
        "stepmix",
        {
            "stepmix.baseline": "deterministic",
            "stepmix.eta": 0.0,
            "stepmix.alpha": 0.3,
            "stepmix.bonus_scale": 0.0005,
            "env": "episodic/Chain",
            "total_steps": 48_000,
        },
    ),
    "dynlin": Preset("A linear bandit with a hidden state.", DYNLIN, {"seeds": 10, "total_steps": 200_000}),
    "neucb": Preset("A contextual bandit, learned with a network.", NEUCB, {"seeds": 10, "total_steps": 4_000}),
}
