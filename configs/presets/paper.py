"""Published experiments, at their full length."""

from engram.configs.presets.differences import Preset
from engram.configs.presets.ppo import PPO

POPGYM = {
    "total_steps": 15_000_000,
    "network.width": 256,
    "network.norm": False,
    "network.encoder": (128,),
    "network.heads": (128, 128),
    "network.activation": "leaky_relu",
    "network.head_scale": 2.0,
}
"""The network and the length of the POPGym runs of Lu et al. (NeurIPS 2023); PPO's settings are the defaults."""

S5_START = ("s5.blocks=1", "s5.dt_max=0.1", "s5.gain=zoh")
"""The initial values of S5 as its paper has them."""

RBOCPD = {
    f"paper/rbocpd-{states}x{actions}": Preset(
        f"R-BOCPD-UCRL2 in MDPs of {states} states and {actions} actions that change 14 times.",
        "rbocpd-ucrl2",
        {
            "ucrl.known_changes": 14,
            "env": f"switching/Random?states={states}&actions={actions}&random_changes=14&horizon=50000",
            "seeds": 20,
            "total_steps": 50_000,
        },
    )
    for states, actions in ((4, 7), (8, 10), (12, 15), (16, 20))
}

PRESETS = {
    "paper/popgym-s5": Preset(
        "S5 on POPGym, as in Lu et al. (NeurIPS 2023); hours on a CPU.",
        PPO,
        {**POPGYM, "network.layers": 4, "network.memory_options": ("s5.state=256", *S5_START)},
    ),
    "paper/popgym-gru": Preset(
        "GRU on POPGym, as in Lu et al. (NeurIPS 2023); hours on a CPU.",
        PPO,
        {**POPGYM, "memory": "gru", "network.residual": False},
    ),
    "paper/dm": Preset("Decision Mamba at its full size.", "dm", {"mixer.width": 768, "mixer.layers": 24}),
    "paper/lsd-delay-three": Preset(
        "ISI-CombUCB1 on a bandit with delays of up to three rounds.",
        "lsd",
        {
            "lsd.steps_per_update": 30,
            "env": "lsd/DelayThree",
            "algorithm": "isi-combucb1",
            "seeds": 10,
            "total_steps": 3_600,
        },
    ),
    "paper/lsd-delay-two": Preset(
        "ISI-CombUCB1 on a bandit with delays of up to two rounds.",
        "lsd",
        {
            "lsd.steps_per_update": 30,
            "lsd.first_epoch": 30,
            "lsd.block_length": 11,
            "env": "lsd/DelayTwo",
            "algorithm": "isi-combucb1",
            "seeds": 10,
            "total_steps": 3_300,
        },
    ),
    **RBOCPD,
    "paper/stepmix": Preset(
        "StepMix in random MDPs of horizon 3.",
        "stepmix",
        {"env": "episodic/Random?horizon=3&states=5&actions=5", "seeds": 10},
    ),
    "paper/stepmix-theory": Preset(
        "StepMix with the bonus of the theory, in the smallest random MDPs.",
        "stepmix",
        {
            "stepmix.episodes_per_update": 1000,
            "stepmix.eta": 2.0,
            "stepmix.alpha": 0.3,
            "stepmix.bonus_scale": 1.0,
            "env": "episodic/Random?horizon=2&states=2&actions=2",
            "total_steps": 240_000,
        },
    ),
    "paper/dynlin": Preset(
        "DynLin-UCB with noise, for a million steps.",
        "dynlin",
        {"dynlin.sigma": 0.01, "env": "dynamical/Diagonal?sigma=0.01", "total_steps": 1_000_000},
    ),
    "paper/neucb": Preset(
        "NeuFastCB on handwritten digits.",
        "neucb",
        {"neucb.exploration": 500.0, "env": "classification/digits", "seeds": 20, "total_steps": 10_000},
    ),
}
