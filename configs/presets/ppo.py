"""PPO with a memory."""

from engram.configs.presets.differences import Difference, Kind, Preset

DEBUG = {
    "ppo.num_envs": 8,
    "ppo.num_steps": 32,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.eval_envs": 4,
    "total_steps": 4096,
    "log_points": 4,
    "eval_points": 2,
    "network.width": 8,
    "network.layers": 1,
}
MODIFIERS = {
    "small": Difference(
        "Sizes that two cores train in minutes.",
        {
            "ppo.num_envs": 64,
            "ppo.epochs": 4,
            "ppo.minibatches": 4,
            "ppo.eval_envs": 64,
            "total_steps": 400_000,
            "network.width": 64,
            "network.layers": 1,
        },
    ),
    "debug": Difference("Smallest sizes, to see that things run; learns nothing.", DEBUG),
    "normalised": Difference(
        "Observations and rewards are normalised by running statistics.",
        {"observation.normalise": True, "observation.normalise_reward": True},
    ),
}
PPO = Kind("engram.agents.ppo.experiment:PPOExperiment", MODIFIERS)
CONSERVATIVE = Kind(
    "engram.agents.ppo.experiment:ConservativeExperiment",
    {
        **MODIFIERS,
        "debug": Difference(
            MODIFIERS["debug"].sentence,
            {**DEBUG, "seeds": 1, "conservative.members": 2, "conservative.width": 8, "conservative.epochs": 2},
        ),
    },
)

FAST = {
    "ppo.num_steps": 128,
    "ppo.epochs": 4,
    "ppo.minibatches": 4,
    "ppo.learning_rate": 2e-3,
    "ppo.learning_rate_end": 0.0,
    "ppo.gae_lambda": 0.95,
    "ppo.bootstrap_truncated": True,
    "ppo.value_coefficient": 0.5,
    "ppo.entropy": 0.01,
    "ppo.entropy_end": 0.01,
}
"""Values that learn a POPGym task in minutes on a laptop: fewer and larger steps than the published ones."""

PRESETS = {
    "popgym": Preset(
        "The harder POPGym tasks, on a laptop.",
        "popgym-fast",
        {
            # Longer backpropagation and smaller steps, for the harder tasks.
            "ppo.num_steps": 256,
            "ppo.learning_rate": 1e-3,
            "env": "popgym/RepeatPreviousMedium",
            "total_steps": 5_000_000,
            "network.width": 128,
            "network.memory_options": ("s5.state=128",),
        },
    ),
    "popgym-fast": Preset("The easy POPGym tasks, in a minute or so.", PPO, {**FAST, "total_steps": 400_000}),
    "gymnax": Preset(
        "Small control tasks.",
        "popgym-fast+normalised",
        {"env": "gymnax/CartPole-v1", "memory": "gru", "total_steps": 500_000},
    ),
    "brax": Preset(
        "Continuous control.",
        "popgym-fast+normalised",
        {
            "ppo.num_steps": 256,
            "ppo.learning_rate": 3e-4,
            "ppo.entropy": 0.0,
            "ppo.entropy_end": 0.0,
            "ppo.value_clip": 0.0,
            "env": "brax/inverted_pendulum",
            "memory": "none",
            "total_steps": 1_000_000,
            "network.encoder": (64,),
            "network.heads": (64,),
            "network.activation": "tanh",
        },
    ),
    "ppo-atari": Preset(
        "The Atari 100k games, without a world model.",
        "popgym-fast",
        {
            # After Schulman et al.'s settings for Atari, whose step size falls to zero. Theirs: 3 epochs, value weight
            # 1, a clip that falls too.
            "ppo.num_envs": 8,
            "ppo.learning_rate": 2.5e-4,
            "ppo.clip": 0.1,
            "ppo.value_clip": 0.1,
            "ppo.eval_envs": 16,
            "env": "atari/Breakout?episodic_life=true&reward_clip=true",
            "eval_env": "?noop_max=30",
            "total_steps": 100_000,
            "network.width": 256,
        },
    ),
    "conservative": Preset(
        "CartPole; returns stay above a share of a baseline's.",
        CONSERVATIVE,
        {
            **FAST,
            "ppo.discount": 0.995,
            "ppo.learning_rate": 1e-3,
            "ppo.learning_rate_end": 1e-3,
            "seeds": 5,
            "network.encoder": (64,),
            "network.heads": (64,),
            "network.activation": "tanh",
            "observation.previous_action": False,
            "observation.time_limit": 200,
        },
    ),
    "debug": Preset("The same as popgym-fast+debug, with a GRU.", "popgym-fast+debug", {"memory": "gru"}),
}
