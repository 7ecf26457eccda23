"""Configuration of PPO and of its conservative variant."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from engram.agents.common.checks import require_at_least, require_not_negative, require_positive, require_sizes
from engram.agents.common.experiment import Experiment
from engram.agents.ppo.agent import PPOSettings
from engram.agents.ppo.conservative import ConservativeSettings
from engram.errors import BadRequest


@dataclass(frozen=True)
class ObservationSettings:
    """Observations and rewards as the agent sees them."""

    previous_action: bool = True
    """Previous action in the observation, with a flag that marks the first step of an episode."""
    previous_reward: bool = False
    """Previous reward in the observation (needs previous_action)."""
    keep: tuple[int, ...] = ()
    """Entries of the observation vector that are kept; the others are hidden (empty: all are kept)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the observation vector."""
    normalise: bool = False
    """Normalisation of observations by their running mean and standard deviation."""
    normalise_reward: bool = False
    """Division of the rewards that PPO learns from by the running standard deviation of the discounted return."""
    action_mask: bool = True
    """Masks of actions, where the environment says which are allowed: the policy takes no others. When off, masks are
    dropped."""
    time_limit: int = 0
    """Steps after which an episode is truncated (0: the environment's own limit only)."""

    def __post_init__(self):
        require_not_negative(self, "observation.", "noise", "time_limit")


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the actor-critic."""

    width: int = 64
    """Width of the memory's input and output."""
    memory_width: int = 0
    """Width of the memory where it differs from width: linear projections lead to it and back (0: the same, without
    projections)."""
    layers: int = 1
    """Number of memory layers, one after another."""
    norm: bool = True
    """LayerNorm on the input of each memory layer (pre-norm)."""
    residual: bool = True
    """Residual connection around each memory layer."""
    encoder: tuple[int, ...] = ()
    """Sizes of the encoder's layers before its last one, which has the memory's width."""
    heads: tuple[int, ...] = ()
    """Sizes of the hidden layers of the policy head and of the value head."""
    activation: Literal["relu", "leaky_relu", "tanh", "silu", "gelu"] = "relu"
    """Activation function of encoder and heads."""
    head_scale: float = 1.4142135
    """Gain of the orthogonal initialisation of the heads' hidden layers."""
    memory_options: tuple[str, ...] = ()
    """Options of memories as `memory.option=value`, e.g. `s5.state=128 mamba.expand=1` (see the memory page in docs).
    Those of memories other than the chosen one have no effect."""

    def __post_init__(self):
        require_at_least(self, "network.", 1, "width", "layers")
        require_at_least(self, "network.", 0, "memory_width")
        require_sizes(self, "network.", "encoder", "heads")
        require_positive(self, "network.", "head_scale")


@dataclass(frozen=True, kw_only=True)
class PPOExperiment(Experiment):
    """PPO with a memory, on one environment."""

    agent: ClassVar[str] = "ppo"
    choice: ClassVar[str] = "memory"

    env: str = "popgym/RepeatPreviousEasy"
    """Environment id, such as popgym/RepeatPreviousEasy, gymnax/CartPole-v1, atari/Pong or my_module:MyEnvironment."""
    memory: str = "s5"
    """Memory by its registered name, such as s5, gru, mamba or none, or as my_module:MyMemory (an unknown name shows
    close matches)."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    """Hyperparameters of PPO."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Sizes of the network."""
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    """Observations and rewards as the agent sees them."""

    def __post_init__(self):
        super().__post_init__()
        if self.observation.previous_reward and not self.observation.previous_action:
            raise BadRequest("observation.previous_reward needs observation.previous_action")


@dataclass(frozen=True, kw_only=True)
class ConservativeExperiment(PPOExperiment):
    """PPO that keeps above a share of a baseline's return while it learns."""

    agent: ClassVar[str] = "conservative"
    choice: ClassVar[str] = "algorithm"

    env: str = "gymnax/CartPole-v1"
    """Environment id, one that conservative.baseline can act in."""
    memory: str = "none"
    """Memory of the learner by its registered name, such as none or gru (an unknown name shows close matches)."""
    algorithm: str = "conservative"
    """Algorithm: conservative (the baseline first, then the learner), learner (PPO alone) or baseline (alone)."""
    conservative: ConservativeSettings = field(default_factory=ConservativeSettings)
    """Hyperparameters of the handover from the baseline to the learner."""
