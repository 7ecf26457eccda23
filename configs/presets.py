"""Named experiments. The only place where values live."""

from dataclasses import replace

from agents.ppo import PPOSettings
from configs.experiment import Experiment, NetworkSettings, ObservationSettings

FAST = PPOSettings(
    num_envs=64,
    num_steps=128,
    epochs=4,
    minibatches=4,
    learning_rate=2e-3,
    learning_rate_end=0.0,
    adam_eps=1e-5,
    max_grad_norm=0.5,
    discount=0.99,
    gae_lambda=0.95,
    bootstrap_truncated=True,
    clip=0.2,
    value_clip=0.2,
    value_coefficient=0.5,
    entropy=0.01,
    entropy_end=0.01,
    normalise_advantage=True,
    eval_envs=64,
    eval_greedy=False,
)
"""Settings that learn a POPGym task in minutes on a laptop."""

POPGYM = replace(FAST, num_steps=256, learning_rate=1e-3)
"""Longer stretches of backpropagation and smaller steps, for the harder tasks."""

PAPER = PPOSettings(
    num_envs=64,
    num_steps=1024,
    epochs=30,
    minibatches=8,
    learning_rate=5e-5,
    learning_rate_end=5e-5,
    adam_eps=1e-5,
    max_grad_norm=0.5,
    discount=0.99,
    gae_lambda=1.0,
    bootstrap_truncated=False,
    clip=0.2,
    value_clip=0.2,
    value_coefficient=1.0,
    entropy=0.0,
    entropy_end=0.0,
    normalise_advantage=True,
    eval_envs=64,
    eval_greedy=False,
)
"""The published POPGym runs of Lu et al. (NeurIPS 2023), whose environments only terminate."""

PAPER_NETWORK = NetworkSettings(
    width=256,
    norm=False,
    encoder=(128,),
    heads=(128, 128),
    activation="leaky_relu",
    head_scale=2.0,
)

CONTROL = replace(
    FAST,
    num_envs=64,
    num_steps=256,
    epochs=4,
    minibatches=4,
    learning_rate=3e-4,
    entropy=0.0,
    entropy_end=0.0,
    value_clip=0.0,
)

PRESETS: dict[str, Experiment] = {
    "popgym": Experiment(
        ppo=POPGYM,
        env="popgym/RepeatPreviousMedium",
        memory="s5",
        total_steps=5_000_000,
        network=NetworkSettings(width=128, memory_options=("s5.state=128",)),
    ),
    "popgym-fast": Experiment(
        ppo=FAST,
        env="popgym/RepeatPreviousEasy",
        memory="s5",
        total_steps=400_000,
        network=NetworkSettings(width=64),
    ),
    "gymnax": Experiment(
        ppo=FAST,
        env="gymnax/CartPole-v1",
        memory="gru",
        total_steps=500_000,
        network=NetworkSettings(width=64),
        observation=ObservationSettings(normalise=True, normalise_reward=True),
    ),
    "brax": Experiment(
        ppo=CONTROL,
        env="brax/inverted_pendulum",
        memory="none",
        total_steps=1_000_000,
        network=NetworkSettings(width=64, encoder=(64,), heads=(64,), activation="tanh"),
        observation=ObservationSettings(normalise=True, normalise_reward=True),
    ),
    "paper/popgym-s5": Experiment(
        ppo=PAPER,
        env="popgym/RepeatPreviousEasy",
        memory="s5",
        total_steps=15_000_000,
        network=replace(PAPER_NETWORK, layers=4, memory_options=("s5.state=256", "s5.dt_max=0.1")),
    ),
    "paper/popgym-gru": Experiment(
        ppo=PAPER,
        env="popgym/RepeatPreviousEasy",
        memory="gru",
        total_steps=15_000_000,
        network=replace(PAPER_NETWORK, layers=1, residual=False),
    ),
    "debug": Experiment(
        ppo=replace(FAST, num_envs=8, num_steps=32, epochs=2, minibatches=2, eval_envs=4),
        env="popgym/RepeatPreviousEasy",
        memory="gru",
        total_steps=4096,
        log_points=4,
        eval_points=2,
        network=NetworkSettings(width=8),
    ),
}
"""Presets by name; `popgym` is the one that scripts take when none is named."""

DEFAULT = "popgym"
