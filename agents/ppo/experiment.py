"""Configuration of PPO and of its conservative variant."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from engram.agents.common.experiment import Experiment, require_at_least_one
from engram.agents.ppo.agent import PPOSettings
from engram.agents.ppo.conservative import ConservativeSettings
from engram.errors import BadRequest


@dataclass(frozen=True)
class ObservationSettings:
    """What the agent sees of the environment, and how rewards are scaled for learning."""

    previous_action: bool = True
    """Append the previous action and a flag that marks the first step of an episode."""
    previous_reward: bool = False
    """Append the previous reward too (needs previous_action)."""
    keep: tuple[int, ...] = ()
    """Keep only these entries of the observation vector, which hides the others (empty: keep all)."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the observation vector."""
    normalise: bool = False
    """Shift and scale observations by their running mean and deviation."""
    normalise_reward: bool = False
    """Divide the rewards that PPO learns from by the running deviation of the discounted return."""
    time_limit: int = 0
    """Cut episodes after this many steps, as truncation (0: the environment's own limit only)."""


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the actor-critic."""

    width: int = 64
    """Width of the memory's input and output."""
    layers: int = 1
    """Memory layers, one after another."""
    norm: bool = True
    """Normalise the input of each layer (pre-norm)."""
    residual: bool = True
    """Add each layer's input to its output."""
    encoder: tuple[int, ...] = ()
    """Sizes of the encoder's layers before its last one, which has the memory's width."""
    heads: tuple[int, ...] = ()
    """Sizes of the hidden layers of the policy head and of the value head."""
    activation: Literal["relu", "leaky_relu", "tanh", "silu", "gelu"] = "relu"
    """Activation of encoder and heads."""
    head_scale: float = 1.4142135
    """Gain of the orthogonal initialisation of the heads' hidden layers."""
    memory_options: tuple[str, ...] = ()
    """Options of memories as `memory.option=value`, e.g. `s5.state=128 mamba.expand=1` (see the memory page in docs).
    Those of memories other than the chosen one have no effect."""

    def __post_init__(self):
        require_at_least_one(self, "network.", "width", "layers")


@dataclass(frozen=True, kw_only=True)
class PPOExperiment(Experiment):
    """PPO with a memory, on one environment."""

    agent: ClassVar[str] = "ppo"
    choice: ClassVar[str] = "memory"

    memory: str = "s5"
    """Memory by its registered name, such as s5, gru, mamba or none (an unknown name lists them all)."""
    ppo: PPOSettings
    """Hyperparameters of PPO."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Sizes of the network."""
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    """What the agent sees."""

    def __post_init__(self):
        super().__post_init__()
        if self.observation.previous_reward and not self.observation.previous_action:
            raise BadRequest("observation.previous_reward needs observation.previous_action")


@dataclass(frozen=True, kw_only=True)
class ConservativeExperiment(PPOExperiment):
    """PPO that keeps above a share of a baseline's return while it learns."""

    agent: ClassVar[str] = "conservative"
    choice: ClassVar[str] = "algorithm"

    algorithm: str
    """conservative (the baseline first, then the learner), learner (PPO alone) or baseline (alone)."""
    conservative: ConservativeSettings
    """When the baseline hands over."""
