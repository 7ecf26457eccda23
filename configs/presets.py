"""Named experiments. The only place where values live."""

from dataclasses import replace
from typing import Any

from engram.agents.common.experiment import Experiment
from engram.agents.drama.agent import DramaSettings
from engram.agents.drama.experiment import DramaExperiment, WorldSettings
from engram.agents.offline.bc import BCSettings, RCBCSettings
from engram.agents.offline.bisimulation import BisimulationSettings
from engram.agents.offline.cql import CQLSettings
from engram.agents.offline.experiment import HistorySettings, MixerSettings, SequenceExperiment, ValueExperiment
from engram.agents.offline.iql import IQLSettings
from engram.agents.offline.odice import ODICESettings
from engram.agents.offline.sequence_policy import SequenceSettings
from engram.agents.offline.td3bc import TD3BCSettings
from engram.agents.planners.dynlin import DynLinSettings
from engram.agents.planners.experiment import (
    DynLinExperiment,
    LSDExperiment,
    NeuCBExperiment,
    StepMixExperiment,
    UCRLExperiment,
)
from engram.agents.planners.lsd import LSDSettings
from engram.agents.planners.neucb import NeuCBSettings
from engram.agents.planners.stepmix import StepMixSettings
from engram.agents.planners.ucrl import UCRLSettings
from engram.agents.ppo.agent import PPOSettings
from engram.agents.ppo.conservative import ConservativeSettings
from engram.agents.ppo.experiment import ConservativeExperiment, NetworkSettings, ObservationSettings, PPOExperiment

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

ATARI = replace(
    FAST,
    num_envs=8,
    num_steps=128,
    learning_rate=2.5e-4,
    clip=0.1,
    value_clip=0.1,
    eval_envs=16,
)
"""After Schulman et al.'s settings for Atari, whose step size falls to zero. Theirs: 3 epochs, value weight 1, a clip
that falls too."""

META = replace(
    FAST,
    num_envs=256,
    num_steps=100,
    epochs=2,
    minibatches=8,
    learning_rate=1e-3,
    value_clip=0.0,
    entropy=0.02,
    entropy_end=0.0,
    eval_envs=256,
)
"""Trials of 100 steps, each whole within one update, so that what is learnt at its end reaches its beginning."""

META_EXPERIMENT = PPOExperiment(
    # Undiscounted: exploring pays at the trial's end.
    ppo=replace(META, num_envs=512, discount=1.0, eval_envs=1024, eval_greedy=True),
    env="meta/Bandit?arms=10&pulls=100",
    eval_env="?arms=10&pulls=100&split=heldout",
    memory="s5",
    total_steps=60_000_000,
    # A GRU whose gates start half open forgets the first pulls before it learns to keep them.
    network=NetworkSettings(width=64, heads=(64,), memory_options=("gru.max_timescale=100",)),
    observation=ObservationSettings(previous_action=False, normalise_reward=True),  # trials show both themselves
)

META_CONTROL = replace(
    META,
    num_envs=64,
    num_steps=256,
    epochs=4,
    minibatches=4,
    value_clip=0.2,
    entropy=0.01,
    eval_envs=64,
)
"""Trials of thousands of steps: memory goes on from update to update, gradients do not."""

META_CARTPOLE = (
    "vary=false&velocities=false&limit=200&episodes=16&same_start=true"
    "&project_observations=4&gain=1.4142135&end_reward=-5"
)
"""After the released task of Lu et al.: CartPole without velocities, whose trials differ by the projection alone.
Falling costs something, which it does not there: every step pays 1, and the next episode begins at once."""

META_CONTROL_EXPERIMENT = replace(
    META_EXPERIMENT,
    ppo=META_CONTROL,
    env=f"meta/CartPole?{META_CARTPOLE}",
    eval_env=f"?{META_CARTPOLE}&split=heldout",
    total_steps=10_000_000,
    network=NetworkSettings(width=128, layers=2, heads=(64,)),
)

META_MIXTURE = "episodes=8&limit=200&scaled=true&project_observations=8&project_actions=true"

META_BRAX = "episodes=4&limit=200&project_observations=32&project_actions=true&actions=8"

DRAMA = DramaSettings(
    num_envs=1,
    train_every=1,
    prefill=1032,
    replay=100_000,
    sampling="frequency",
    temperature=10.0,
    imagine_temperature=10.0,
    batch_size=16,
    batch_length=128,
    world_learning_rate=4e-5,
    world_max_norm=1000.0,
    free_nats=1.0,
    representation=0.1,
    imagine_batch=1024,
    context=8,
    imagine_from="last",
    horizon=16,
    actor=(256, 256, 256),
    critic=(512, 512, 512),
    behaviour_learning_rate=4e-5,
    behaviour_max_norm=100.0,
    discount=0.985,
    return_lambda=0.95,
    entropy=3e-4,
    slow_critic=0.98,
    return_scale=0.99,
    behaviour="reinforce",
    ppo_clip=0.2,
    ppo_epochs=3,
    ppo_minibatch=16_384,
    ppo_kl=0.01,
    optimiser="laprop",
    warmup=1000,
    weight_decay=0.0,
    act_on="posterior",
    first_action="policy",
    seq_reset=True,
    acting_state="carried",
    acting_window=16,
    lambda_boot="next",
    reward_index="after",
    mask_after_term=True,
    actor_norm="update",
    life_loss_term=True,
    eval_envs=10,
    eval_episodes=100,
    eval_greedy=True,
    eval_quota="fixed",
)
"""The published sizes, with what is wrong in the published code mended."""

PARITY = replace(
    DRAMA,
    act_on="prior",
    first_action="random",
    seq_reset=False,
    acting_state="window",
    lambda_boot="same",
    reward_index="early",
    mask_after_term=False,
    actor_norm="forward",
    eval_quota="first",
)
"""What the published code does."""

DRAMA_WORLD = WorldSettings(
    encoder="conv",
    reconstruction="pixels",
    categoricals=32,
    classes=32,
    width=512,
    layers=2,
    head=256,
    memory_options=("mamba2.state=16", "mamba2.expand=2", "mamba2.head=64"),
)

ATARI_100K = DramaExperiment(
    drama=DRAMA,
    world=DRAMA_WORLD,
    env="atari/Boxing",
    eval_env="?noop_max=30",
    total_steps=100_000,
    log_points=100,
    checkpoint_seconds=300,
)

DRAMA_SMALL = replace(
    DRAMA,
    num_envs=8,
    prefill=512,
    replay=20_000,
    batch_size=8,
    batch_length=16,
    world_learning_rate=1e-3,
    imagine_batch=64,
    context=4,
    horizon=9,
    actor=(64, 64),
    critic=(64, 64),
    behaviour_learning_rate=1e-3,
    entropy=0.03,
    warmup=100,
    eval_envs=64,
    eval_episodes=64,
    eval_greedy=False,
)
"""Sizes that two cores train in minutes."""

SMALL_WORLD = WorldSettings(
    encoder="mlp",
    reconstruction="binary",
    categoricals=8,
    classes=8,
    width=64,
    layers=2,
    head=64,
    dense=(128,),
    memory_options=("mamba2.head=32",),
)

LSD_SETTINGS = LSDSettings(
    steps_per_update=50,
    select="actual",
    explore=0.5,
    first_epoch=16,
    epoch_growth=1.5,
    block_length=4,
)

DYNLIN = DynLinSettings(
    steps_per_update=1000,
    confidence_scale=1.0,
    delta=None,
    regularisation=None,
    radius=None,
    omega=None,
    theta=None,
    gain=None,
    action=None,
    growth=None,
    sigma=None,
    discount=0.999999,
)

NEUCB = NeuCBSettings(
    steps_per_update=500,
    width=100,
    learning_rate=1.0,
    learning_rate_decay=0.0,
    ball=100.0,
    perturbation=0.02,
    perturbations=5,
    exploration=None,
    ucb_scale=0.05,
    ucb_regularisation=1.0,
    epsilon=0.05,
)

STEPMIX = StepMixSettings(
    episodes_per_update=100,
    baseline="boltzmann",
    eta=5.0,
    data_episodes=0,
    alpha=0.2,
    gamma=None,
    delta=0.1,
    bonus_scale=0.002,
)

UCRL = UCRLSettings(
    steps_per_update=500,
    delta=0.05,
    conf_scale=0.1,
    episode_test="post",
    evi_iterations=2000,
    eta="squared",
    eta_delta=0.05,
    forecasters="grid",
    cap=50_000,
    known_changes=3,
    window=0,
    diameter=4.0,
    reward_variation=1.0,
    transition_variation=1.0,
)

PENDULUM = "runs/datasets/pendulum-noise.npz"
"""What `make_dataset.py pendulum-noise` makes, where the documentation puts it."""

SEQUENCE = SequenceSettings(
    context=20,
    batch_size=64,
    learning_rate=1e-4,
    learning_rate_end=1e-4,
    warmup=2500,
    weight_decay=1e-5,
    adam_eps=1e-6,
    max_grad_norm=0.25,
    return_scale=1000.0,
    action_weight=0.9,
    obs_weight=0.05,
    to_go_weight=0.05,
    alpha_T=0.85,
    alpha_cap=0.5,
    epoch=2500,
    targets=(),
    eval_episodes=20,
    acting="window",
)
"""The published settings of Decision Mamba for locomotion."""

SEQUENCE_SMALL = replace(
    SEQUENCE,
    context=10,
    learning_rate=2e-3,
    learning_rate_end=0.0,
    warmup=200,
    weight_decay=1e-4,
    alpha_T=0.0,
    obs_weight=0.0,
    to_go_weight=0.0,
    action_weight=1.0,
    epoch=250,
    targets=(-1200.0, -800.0, -400.0, -250.0, -150.0),
    eval_episodes=64,
    acting="both",
)

IMITATION = {"batch_size": 256, "hidden": (256, 256), "learning_rate": 3e-4, "normalise": False, "eval_episodes": 20}
VALUES = {**IMITATION, "discount": 0.99, "target_rate": 0.005, "reward_scale": 1.0, "reward_shift": 0.0}

OFFLINE = ValueExperiment(
    bc=BCSettings(**IMITATION),
    rcbc=RCBCSettings(
        **{**IMITATION, "batch_size": 16_384, "hidden": (1024, 1024), "learning_rate": 1e-3},
        return_scale=1000.0,
        targets=(-150.0,),
    ),
    td3bc=TD3BCSettings(**{**VALUES, "normalise": True}, alpha=2.5, policy_noise=0.2, noise_clip=0.5, policy_delay=2),
    iql=IQLSettings(
        **{**VALUES, "reward_scale": 0.0},
        expectile=0.7,
        temperature=3.0,
        greatest_weight=100.0,
        decay_steps=1_000_000,
    ),
    cql=CQLSettings(**{**VALUES, "hidden": (256, 256, 256)}, weight=5.0, policy_learning_rate=1e-4, samples=10),
    odice=ODICESettings(
        **{**VALUES, "reward_scale": 0.0, "learning_rate": 2e-4},
        policy_hidden=(1024, 1024),
        policy_weight_decay=1e-4,
        residual_weight=0.6,
        eta=1.0,
        variant="orthogonal",
        layer_norm=True,
        bounded=False,
    ),
    history=HistorySettings(width=256, layers=1),
    bisimulation=BisimulationSettings(window=20, weight=0.5, model=(512,)),
    dataset=PENDULUM,
    total_steps=1_000_000,
    log_points=100,
    eval_points=100,
)
"""The published settings of each method for locomotion; the target of RCBC and what concerns histories are ours."""


def small(settings: Any, **changed: Any) -> Any:
    """Of a method, the sizes that Pendulum needs."""
    common = {"hidden": (64, 64), "learning_rate": 1e-3, "normalise": True, "eval_episodes": 50}
    return replace(settings, **{**common, **changed})


OFFLINE_SMALL = replace(
    OFFLINE,
    bc=small(OFFLINE.bc),
    rcbc=small(OFFLINE.rcbc, batch_size=256, targets=(-150.0, -400.0, -800.0, -1200.0)),
    td3bc=small(OFFLINE.td3bc, reward_scale=0.1),
    iql=small(OFFLINE.iql, reward_scale=0.1, decay_steps=0),
    cql=small(OFFLINE.cql, weight=0.5, policy_learning_rate=1e-3, samples=4),
    odice=small(OFFLINE.odice, policy_hidden=(64, 64)),
    history=HistorySettings(width=32, layers=1),
    bisimulation=BisimulationSettings(window=8, weight=0.1, model=(64,)),
    total_steps=5_000,
    log_points=20,
    eval_points=5,
)

PPO_PRESETS: dict[str, PPOExperiment] = {
    "popgym": PPOExperiment(
        ppo=POPGYM,
        env="popgym/RepeatPreviousMedium",
        memory="s5",
        total_steps=5_000_000,
        network=NetworkSettings(width=128, memory_options=("s5.state=128",)),
    ),
    "popgym-fast": PPOExperiment(
        ppo=FAST,
        env="popgym/RepeatPreviousEasy",
        memory="s5",
        total_steps=400_000,
        network=NetworkSettings(width=64),
    ),
    "gymnax": PPOExperiment(
        ppo=FAST,
        env="gymnax/CartPole-v1",
        memory="gru",
        total_steps=500_000,
        network=NetworkSettings(width=64),
        observation=ObservationSettings(normalise=True, normalise_reward=True),
    ),
    "brax": PPOExperiment(
        ppo=CONTROL,
        env="brax/inverted_pendulum",
        memory="none",
        total_steps=1_000_000,
        network=NetworkSettings(width=64, encoder=(64,), heads=(64,), activation="tanh"),
        observation=ObservationSettings(normalise=True, normalise_reward=True),
    ),
    "ppo-atari": PPOExperiment(
        ppo=ATARI,
        env="atari/Breakout?episodic_life=true&reward_clip=true",
        eval_env="?noop_max=30",
        memory="s5",
        total_steps=100_000,
        network=NetworkSettings(width=256),
    ),
    "paper/popgym-s5": PPOExperiment(
        ppo=PAPER,
        env="popgym/RepeatPreviousEasy",
        memory="s5",
        total_steps=15_000_000,
        network=replace(PAPER_NETWORK, layers=4, memory_options=("s5.state=256", "s5.dt_max=0.1")),
    ),
    "paper/popgym-gru": PPOExperiment(
        ppo=PAPER,
        env="popgym/RepeatPreviousEasy",
        memory="gru",
        total_steps=15_000_000,
        network=replace(PAPER_NETWORK, layers=1, residual=False),
    ),
    "meta-bandit": META_EXPERIMENT,
    "meta-tabular": replace(
        META_EXPERIMENT,
        ppo=META,
        env="meta/TabularMDP?episodes=10",
        eval_env="?episodes=10&split=heldout",
        total_steps=10_000_000,
    ),
    "meta-darkroom": replace(
        META_EXPERIMENT,
        ppo=replace(META, num_steps=200),
        env="meta/DarkRoom?episodes=10&coordinates=true",
        eval_env="?episodes=10&coordinates=true&split=heldout",
        total_steps=12_000_000,
        network=replace(META_EXPERIMENT.network, encoder=(64,)),
    ),
    "meta-nonstationary": replace(
        META_EXPERIMENT,
        ppo=replace(META, num_steps=200),
        env="meta/SwitchingBandit?arms=10&pulls=200&hazard=0.02",
        eval_env="?arms=10&pulls=200&hazard=0.02&split=heldout",
        total_steps=10_000_000,
    ),
    "meta-cartpole": META_CONTROL_EXPERIMENT,
    "meta-control": replace(
        META_CONTROL_EXPERIMENT,
        env=f"meta/Mixture?members=CartPole+Acrobot+MountainCar&{META_MIXTURE}",
        eval_env=f"?members=CartPole+Acrobot+MountainCar&{META_MIXTURE}&split=heldout",
        total_steps=20_000_000,
    ),
    "meta-brax": replace(
        META_CONTROL_EXPERIMENT,
        ppo=replace(META_CONTROL, learning_rate=3e-4),
        # walker2d and the double pendulum are never trained on.
        env=f"meta/Mixture?members=brax-ant+brax-halfcheetah+brax-hopper+brax-reacher+brax-inverted_pendulum&{META_BRAX}",
        eval_env=f"?members=brax-walker2d+brax-inverted_double_pendulum&{META_BRAX}&split=heldout",
        total_steps=50_000_000,
    ),
    "debug": PPOExperiment(
        ppo=replace(FAST, num_envs=8, num_steps=32, epochs=2, minibatches=2, eval_envs=4),
        env="popgym/RepeatPreviousEasy",
        memory="gru",
        total_steps=4096,
        log_points=4,
        eval_points=2,
        network=NetworkSettings(width=8),
    ),
}
"""Presets of PPO with a memory."""

DRAMA_PRESETS: dict[str, DramaExperiment] = {
    "drama-catch": DramaExperiment(
        drama=DRAMA_SMALL,
        world=SMALL_WORLD,
        env="gymnax/Catch-bsuite",
        total_steps=20_000,
        log_points=25,
        eval_points=5,
    ),
    "drama-memorychain": DramaExperiment(
        drama=replace(
            DRAMA_SMALL,
            prefill=1024,
            batch_length=32,
            context=32,
            imagine_from="every",
            imagine_batch=256,
            behaviour_learning_rate=3e-4,
            entropy=3e-3,
        ),
        # An observation holds a few bits. What the latent could say beyond them is noise, which the memory must first
        # learn to ignore: with 8 x 8 a model needed four times the updates until it remembered.
        world=replace(SMALL_WORLD, reconstruction="symlog", categoricals=4, classes=4),
        env="gymnax/MemoryChain-bsuite?memory_length=10",
        total_steps=20_000,
        log_points=25,
        eval_points=5,
    ),
    "atari100k": ATARI_100K,
    "atari100k-parity": replace(
        ATARI_100K,
        drama=PARITY,
        env="atari/Boxing?skip_break_on_life=true&env_seed_fixed=true",
        eval_env="",
    ),
    "atari100k-small": replace(
        ATARI_100K,
        drama=replace(
            DRAMA_SMALL, num_envs=1, train_every=8, replay=100_000, eval_envs=4, eval_episodes=4, eval_greedy=True
        ),
        world=replace(SMALL_WORLD, encoder="conv", reconstruction="pixels", channels=(2, 4, 6, 8, 8)),
        total_steps=4_000,
        log_points=20,
        checkpoint_seconds=60,
    ),
    **{
        f"drama-minatar-{name.lower()}": DramaExperiment(
            drama=replace(DRAMA_SMALL, replay=100_000, entropy=0.01),
            world=replace(SMALL_WORLD, categoricals=16, classes=16, dense=(256, 256)),
            env=f"gymnax/{name}-MinAtar",
            total_steps=100_000,
            log_points=50,
            eval_points=10,
        )
        for name in ("Breakout", "Asterix", "SpaceInvaders", "Freeway")
    },
}
"""Presets of the world-model agent."""

PLANNER_PRESETS: dict[str, Experiment] = {
    "conservative": ConservativeExperiment(
        ppo=replace(FAST, discount=0.995, learning_rate=1e-3, learning_rate_end=1e-3),
        conservative=ConservativeSettings(
            baseline="cartpole",
            baseline_value=163.0,
            alpha=0.2,
            horizon=200,
            reward_low=0.0,
            reward_high=1.0,
            members=8,
            width=64,
            deviations=2.0,
            prior_scale=0.1,
            learning_rate=1e-3,
            epochs=16,
        ),
        env="gymnax/CartPole-v1",
        algorithm="conservative",
        memory="none",
        seeds=5,
        total_steps=1_000_000,
        network=NetworkSettings(width=64, encoder=(64,), heads=(64,), activation="tanh"),
        observation=ObservationSettings(previous_action=False, time_limit=200),
    ),
    "lsd": LSDExperiment(
        lsd=LSD_SETTINGS,
        env="lsd/Random?arms=3&played=2&idle=3",
        algorithm="explore-then-commit",
        seeds=256,
        total_steps=64_000,
    ),
    "rbocpd-ucrl2": UCRLExperiment(
        ucrl=UCRL,
        env="switching/Random?states=4&actions=3&changes=4000,8000,12000",
        algorithm="rbocpd-ucrl2",
        seeds=8,
        total_steps=16_000,
    ),
    "stepmix": StepMixExperiment(
        stepmix=STEPMIX,
        env="episodic/Random",
        algorithm="stepmix",
        seeds=128,
        total_steps=36_000,
    ),
    "stepmix-corridor": StepMixExperiment(
        stepmix=replace(STEPMIX, baseline="deterministic", eta=0.0, alpha=0.3, bonus_scale=0.0005),
        env="episodic/Chain",
        algorithm="stepmix",
        seeds=128,
        total_steps=48_000,
    ),
    "paper/stepmix": StepMixExperiment(
        stepmix=STEPMIX,
        env="episodic/Random?horizon=3&states=5&actions=5",
        algorithm="stepmix",
        seeds=10,
        total_steps=36_000,
    ),
    "paper/stepmix-theory": StepMixExperiment(
        stepmix=replace(STEPMIX, episodes_per_update=1000, eta=2.0, alpha=0.3, bonus_scale=1.0),
        env="episodic/Random?horizon=2&states=2&actions=2",
        algorithm="stepmix",
        seeds=128,
        total_steps=240_000,
    ),
    "dynlin": DynLinExperiment(
        dynlin=DYNLIN,
        env="dynamical/Diagonal",
        algorithm="dynlin-ucb",
        seeds=10,
        total_steps=200_000,
    ),
    "paper/lsd-delay-three": LSDExperiment(
        lsd=replace(LSD_SETTINGS, steps_per_update=30),
        env="lsd/DelayThree",
        algorithm="isi-combucb1",
        seeds=10,
        total_steps=3_600,
    ),
    "paper/lsd-delay-two": LSDExperiment(
        lsd=replace(LSD_SETTINGS, steps_per_update=30, first_epoch=30, block_length=11),
        env="lsd/DelayTwo",
        algorithm="isi-combucb1",
        seeds=10,
        total_steps=3_300,
    ),
    "paper/dynlin": DynLinExperiment(
        dynlin=replace(DYNLIN, sigma=0.01),
        env="dynamical/Diagonal?sigma=0.01",
        algorithm="dynlin-ucb",
        seeds=10,
        total_steps=1_000_000,
    ),
    "neucb": NeuCBExperiment(
        neucb=NEUCB,
        env="classification/wine",
        algorithm="neufastcb",
        seeds=10,
        total_steps=4_000,
    ),
    "paper/neucb": NeuCBExperiment(
        neucb=replace(NEUCB, exploration=500.0),
        env="classification/digits",
        algorithm="neufastcb",
        seeds=20,
        total_steps=10_000,
    ),
    **{
        f"paper/rbocpd-{states}x{actions}": UCRLExperiment(
            ucrl=replace(UCRL, known_changes=14),
            env=f"switching/Random?states={states}&actions={actions}&random_changes=14&horizon=50000",
            algorithm="rbocpd-ucrl2",
            seeds=20,
            total_steps=50_000,
        )
        for states, actions in ((4, 7), (8, 10), (12, 15), (16, 20))
    },
}
"""Presets of bandit and tabular algorithms."""

DM = SequenceExperiment(
    sequence=SEQUENCE,
    mixer=MixerSettings(width=128, layers=3, deep=True),
    dataset=PENDULUM,
    total_steps=100_000,
    log_points=40,
    eval_points=40,
)

SEQUENCE_PRESETS: dict[str, SequenceExperiment] = {
    "dm-pendulum": SequenceExperiment(
        sequence=SEQUENCE_SMALL,
        mixer=MixerSettings(width=32, layers=2, deep=False),
        dataset=PENDULUM,
        total_steps=2_000,
        log_points=20,
        eval_points=5,
    ),
    "dm": DM,
    "paper/dm": replace(DM, mixer=MixerSettings(width=768, layers=24, deep=True)),
}
"""Presets of the sequence policy."""

VALUE_PRESETS: dict[str, ValueExperiment] = {"offline-pendulum": OFFLINE_SMALL, "offline": OFFLINE}
"""Presets of methods that learn from recorded single steps."""

PRESETS: dict[str, Experiment] = {
    **PPO_PRESETS,
    **DRAMA_PRESETS,
    **SEQUENCE_PRESETS,
    **VALUE_PRESETS,
    **PLANNER_PRESETS,
}
"""Presets by name; `popgym` is the one that scripts take when none is named."""

DEFAULT = "popgym"
