"""Learning to learn: PPO with a memory in meta/ environments."""

from engram.configs.presets.differences import Preset

CARTPOLE = (
    "vary=false&velocities=false&limit=200&episodes=16&same_start=true"
    "&project_observations=4&gain=1.4142135&end_reward=-5"
)
"""After the released task of Lu et al.: CartPole without velocities, whose trials differ by the projection alone.
Falling costs something, which it does not there: every step pays 1, and the next episode begins at once."""
MIXTURE = "episodes=8&limit=200&scaled=true&project_observations=8&project_actions=true"
BRAX = "episodes=4&limit=200&project_observations=32&project_actions=true&actions=8"

PRESETS = {
    "meta-bandit": Preset(
        "Bandits that are learned while acting, in trials of 100 pulls.",
        "meta-tabular",
        {
            # Undiscounted: exploring pays at the trial's end.
            "ppo.num_envs": 512,
            "ppo.discount": 1.0,
            "ppo.eval_envs": 1024,
            "ppo.eval_greedy": True,
            "env": "meta/Bandit?arms=10&pulls=100",
            "eval_env": "?arms=10&pulls=100&split=heldout",
            "total_steps": 60_000_000,
        },
    ),
    "meta-tabular": Preset(
        "Tabular MDPs, in trials of 10 episodes of 10 steps.",
        "popgym-fast",
        {
            "ppo.num_envs": 256,
            # A trial is whole within one update, so that what is learned at its end reaches its beginning.
            "ppo.num_steps": 100,
            "ppo.epochs": 2,
            "ppo.minibatches": 8,
            "ppo.learning_rate": 1e-3,
            "ppo.value_clip": 0.0,
            "ppo.entropy": 0.02,
            "ppo.entropy_end": 0.0,
            "ppo.eval_envs": 256,
            "env": "meta/TabularMDP?episodes=10",
            "eval_env": "?episodes=10&split=heldout",
            "total_steps": 10_000_000,
            "network.heads": (64,),
            # A GRU whose gates start half open forgets the first pulls before it learns to keep them.
            "network.memory_options": ("gru.max_timescale=100",),
            "observation.previous_action": False,  # trials show it, and the reward
            "observation.normalise_reward": True,
        },
    ),
    "meta-darkroom": Preset(
        "A hidden goal, found and found again in 10 episodes of 20 steps.",
        "meta-tabular",
        {
            "ppo.num_steps": 200,
            "env": "meta/DarkRoom?episodes=10&coordinates=true",
            "eval_env": "?episodes=10&coordinates=true&split=heldout",
            "total_steps": 12_000_000,
            "network.encoder": (64,),
        },
    ),
    "meta-nonstationary": Preset(
        "Bandits that change within a trial.",
        "meta-tabular",
        {
            "ppo.num_steps": 200,
            "env": "meta/SwitchingBandit?arms=10&pulls=200&hazard=0.02",
            "eval_env": "?arms=10&pulls=200&hazard=0.02&split=heldout",
        },
    ),
    "meta-cartpole": Preset(
        "CartPole without velocities, under a projection that is new in every trial.",
        "meta-tabular",
        {
            # Trials of thousands of steps: memory goes on from update to update, gradients do not.
            "ppo.num_envs": 64,
            "ppo.num_steps": 256,
            "ppo.epochs": 4,
            "ppo.minibatches": 4,
            "ppo.value_clip": 0.2,
            "ppo.entropy": 0.01,
            "ppo.eval_envs": 64,
            "env": f"meta/CartPole?{CARTPOLE}",
            "eval_env": f"?{CARTPOLE}&split=heldout",
            "network.width": 128,
            "network.layers": 2,
            "network.memory_options": (),
        },
    ),
    "meta-control": Preset(
        "Three classic control tasks in one batch, with varied physics.",
        "meta-cartpole",
        {
            "env": f"meta/Mixture?members=CartPole+Acrobot+MountainCar&{MIXTURE}",
            "eval_env": f"?members=CartPole+Acrobot+MountainCar&{MIXTURE}&split=heldout",
            "total_steps": 20_000_000,
        },
    ),
    "meta-brax": Preset(
        "Five brax bodies in one batch, evaluated on two others; for an accelerator.",
        "meta-cartpole",
        {
            "ppo.learning_rate": 3e-4,
            # walker2d and the double pendulum are never trained on.
            "env": "meta/Mixture?members=brax-ant+brax-halfcheetah+brax-hopper+brax-reacher+brax-inverted_pendulum&"
            + BRAX,
            "eval_env": f"?members=brax-walker2d+brax-inverted_double_pendulum&{BRAX}&split=heldout",
            "total_steps": 50_000_000,
        },
    ),
}
