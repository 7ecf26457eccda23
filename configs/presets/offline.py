"""Recorded episodes: sequence policies and value methods."""

from engram.configs.presets.differences import Difference, Kind, Preset

METHODS = ("bc", "rcbc", "td3bc", "iql", "cql", "odice")


def of_each(name: str, value: object, methods: tuple[str, ...] = METHODS) -> dict[str, object]:
    """The same value for several methods."""
    return {f"{method}.{name}": value for method in methods}


SEQUENCE = Kind(
    "engram.agents.offline.experiment:SequenceExperiment",
    {
        "small": Difference(
            "Sizes that two cores train in a minute or two.",
            {
                "sequence.context": 10,
                "sequence.warmup": 200,
                "sequence.epoch": 250,
                "sequence.learning_rate": 2e-3,
                "sequence.learning_rate_end": 0.0,
                "mixer.width": 32,
                "mixer.layers": 2,
                "mixer.deep": False,
                "total_steps": 2_000,
                "log_points": 20,
                "eval_points": 5,
            },
        ),
        "debug": Difference(
            "Smallest sizes, to see that things run; learns nothing.",
            {
                "sequence.context": 4,
                "sequence.batch_size": 8,
                "sequence.warmup": 2,
                "sequence.epoch": 10,
                "sequence.eval_episodes": 2,
                "mixer.width": 8,
                "mixer.layers": 1,
                "mixer.deep": False,
                "total_steps": 20,
                "log_points": 2,
                "eval_points": 1,
            },
        ),
    },
)
VALUES = Kind(
    "engram.agents.offline.experiment:ValueExperiment",
    {
        "small": Difference(
            "Sizes that two cores train in a minute or two.",
            {
                **of_each("hidden", (64, 64)),
                **of_each("learning_rate", 1e-3),
                **of_each("eval_episodes", 50),
                "rcbc.batch_size": 256,
                "cql.policy_learning_rate": 1e-3,
                "cql.samples": 4,
                "cql.clone_steps": 0,
                "odice.policy_hidden": (64, 64),
                "history.width": 32,
                "bisimulation.window": 8,
                "bisimulation.model": (64,),
                "total_steps": 5_000,
                "log_points": 20,
                "eval_points": 5,
            },
        ),
        "debug": Difference(
            "Smallest sizes, to see that things run; learns nothing.",
            {
                **of_each("hidden", (8,)),
                **of_each("batch_size", 8),
                **of_each("eval_episodes", 2),
                "cql.samples": 2,
                "cql.clone_steps": 0,
                "odice.policy_hidden": (8,),
                "history.width": 8,
                "bisimulation.window": 2,
                "bisimulation.model": (8,),
                "total_steps": 20,
                "log_points": 2,
                "eval_points": 1,
            },
        ),
    },
)

PRESETS = {
    "dm-pendulum": Preset(
        "Decision Mamba on Pendulum, in a minute or two.",
        "dm+small",
        {
            "sequence.weight_decay": 1e-4,
            "sequence.action_weight": 1.0,
            "sequence.obs_weight": 0.0,
            "sequence.to_go_weight": 0.0,
            "sequence.alpha_T": 0.0,
            "sequence.targets": (-1200.0, -800.0, -400.0, -250.0, -150.0),
            "sequence.eval_episodes": 64,
            "sequence.acting": "both",
        },
    ),
    "dm": Preset(
        "Decision Mamba for locomotion, with a smaller network.", SEQUENCE, {"log_points": 40, "eval_points": 40}
    ),
    "dt": Preset(
        "Decision Transformer for locomotion, trained as published.",
        "dm",
        {
            "memory": "attention",
            "mixer.memory_options": ("attention.heads=1",),
            "mixer.deep": False,
            "mixer.add_time": "before",
            "mixer.dropout": 0.1,
            "sequence.warmup": 10_000,
            "sequence.weight_decay": 1e-4,
            "sequence.adam_eps": 1e-8,
            "sequence.action_weight": 1.0,
            "sequence.obs_weight": 0.0,
            "sequence.to_go_weight": 0.0,
            "sequence.alpha_T": 0.0,
            "sequence.eval_episodes": 100,
        },
    ),
    "offline-pendulum": Preset(
        "Value methods on Pendulum, in a minute.",
        "offline+small",
        {
            **of_each("normalise", True, ("bc", "rcbc", "iql", "cql", "odice")),
            **of_each("reward_scale", 0.1, ("td3bc", "iql")),
            "rcbc.targets": (-150.0, -400.0, -800.0, -1200.0),
            "iql.decay_steps": 0,
            "cql.weight": 0.5,
            "bisimulation.weight": 0.1,
        },
    ),
    "offline": Preset("Value methods for locomotion, as published.", VALUES, {"log_points": 100, "eval_points": 100}),
}
