"""The world model: Drama with a memory."""

from engram.configs.presets.differences import Difference, Kind, Preset

SIZES = {
    "drama.prefill": 512,
    "drama.batch_size": 8,
    "drama.batch_length": 16,
    "drama.world_learning_rate": 1e-3,
    "drama.imagine_batch": 64,
    "drama.context": 4,
    "drama.horizon": 9,
    "drama.actor": (64, 64),
    "drama.critic": (64, 64),
    "drama.behaviour_learning_rate": 1e-3,
    "drama.entropy": 0.03,
    "drama.warmup": 100,
    "world.categoricals": 8,
    "world.classes": 8,
    "world.width": 64,
    "world.head": 64,
    "world.dense": (128,),
    "world.memory_options": ("mamba2.head=32",),
}
"""Sizes that two cores train in minutes, and the steps that go with them."""

DRAMA = Kind(
    "engram.agents.drama.experiment:DramaExperiment",
    {
        "small": Difference(
            "Sizes that two cores train in minutes.",
            {
                **SIZES,
                "drama.train_every": 8,
                "drama.eval_envs": 4,
                "drama.eval_episodes": 4,
                "world.channels": (2, 4, 6, 8, 8),
                "total_steps": 4_000,
                "log_points": 20,
                "checkpoint_seconds": 60,
            },
        ),
        "debug": Difference(
            "Smallest sizes, to see that things run; learns nothing.",
            {
                **SIZES,
                "drama.num_envs": 2,
                "drama.prefill": 64,
                "drama.train_every": 8,
                "drama.batch_size": 2,
                "drama.batch_length": 8,
                "drama.imagine_batch": 8,
                "drama.context": 2,
                "drama.horizon": 3,
                "drama.actor": (8,),
                "drama.critic": (8,),
                "drama.eval_envs": 2,
                "drama.eval_episodes": 2,
                "world.channels": (2, 2, 2, 2, 2),
                "world.categoricals": 4,
                "world.classes": 4,
                "world.width": 16,
                "world.layers": 1,
                "world.head": 8,
                "world.dense": (8,),
                "total_steps": 256,
                "log_points": 2,
                "eval_points": 1,
            },
        ),
        "parity": Difference(
            "What the published code does, faults included.",
            {
                "drama.act_on": "prior",
                "drama.first_action": "random",
                "drama.seq_reset": False,
                "drama.acting_state": "window",
                "drama.lambda_boot": "same",
                "drama.reward_index": "early",
                "drama.mask_after_term": False,
                "drama.actor_norm": "forward",
                "drama.eval_quota": "first",
            },
        ),
    },
)

MINATAR = {
    f"drama-minatar-{name.lower()}": Preset(
        f"{name} of MinAtar.",
        "drama-catch",
        {
            "drama.replay": 100_000,
            "drama.entropy": 0.01,
            "world.categoricals": 16,
            "world.classes": 16,
            "world.dense": (256, 256),
            "env": f"gymnax/{name}-MinAtar",
            "total_steps": 100_000,
            "log_points": 50,
            "eval_points": 10,
        },
    )
    for name in ("Breakout", "Asterix", "SpaceInvaders", "Freeway")
}

PRESETS = {
    "drama-catch": Preset(
        "Catch of bsuite, in a few minutes.",
        DRAMA,
        {
            **SIZES,
            "drama.num_envs": 8,
            "drama.replay": 20_000,
            "drama.eval_envs": 64,
            "drama.eval_episodes": 64,
            "drama.eval_greedy": False,
            "world.encoder": "mlp",
            "world.reconstruction": "binary",
            "env": "gymnax/Catch-bsuite",
            "total_steps": 20_000,
            "log_points": 25,
        },
    ),
    "drama-memorychain": Preset(
        "MemoryChain of bsuite: the first observation must be remembered.",
        "drama-catch",
        {
            "drama.prefill": 1024,
            "drama.batch_length": 32,
            "drama.context": 32,
            "drama.imagine_from": "every",
            "drama.imagine_batch": 256,
            "drama.behaviour_learning_rate": 3e-4,
            "drama.entropy": 3e-3,
            # An observation holds a few bits. What the latent could say beyond them is noise, which the memory must
            # first learn to ignore: with 8 x 8 a model needed four times the updates until it remembered.
            "world.reconstruction": "symlog",
            "world.categoricals": 4,
            "world.classes": 4,
            "env": "gymnax/MemoryChain-bsuite?memory_length=10",
        },
    ),
    "atari100k": Preset(
        "The Atari 100k games at the published sizes.",
        DRAMA,
        {"eval_env": "?noop_max=30", "log_points": 100, "checkpoint_seconds": 300},
    ),
    "atari100k-parity": Preset(
        "The same as atari100k+parity, in the environments of the published code.",
        "atari100k+parity",
        {"env": "atari/Boxing?skip_break_on_life=true&env_seed_fixed=true", "eval_env": ""},
    ),
    "atari100k-small": Preset("The same as atari100k+small.", "atari100k+small"),
    **MINATAR,
}
