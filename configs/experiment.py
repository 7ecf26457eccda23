"""The configuration of an experiment: every key, its type and its meaning. `presets.py` gives the values."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from engram.agents.drama.agent import DramaSettings
from engram.agents.offline.bc import BCSettings, RCBCSettings
from engram.agents.offline.bisimulation import BisimulationSettings
from engram.agents.offline.cql import CQLSettings
from engram.agents.offline.iql import IQLSettings
from engram.agents.offline.odice import ODICESettings
from engram.agents.offline.sequence_policy import SequenceSettings
from engram.agents.offline.td3bc import TD3BCSettings
from engram.agents.planners.dynlin import DynLinSettings
from engram.agents.planners.lsd import LSDSettings
from engram.agents.planners.neucb import NeuCBSettings
from engram.agents.planners.stepmix import StepMixSettings
from engram.agents.planners.ucrl import UCRLSettings
from engram.agents.ppo.agent import PPOSettings
from engram.agents.ppo.conservative import ConservativeSettings
from engram.errors import BadRequest


def require_at_least_one(settings: Any, prefix: str, *names: str) -> None:
    """Raises BadRequest where one of these fields is below 1; the message calls it `prefix` and its name."""
    for name in names:
        if getattr(settings, name) < 1:
            raise BadRequest(f"{prefix}{name} must be at least 1, got {getattr(settings, name)}")


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
class Experiment:
    """What the experiments of all agents have in common."""

    agent: ClassVar[str]
    """The agent's name, also that of the field with its settings."""
    choice: ClassVar[str]
    """The field that `compare` varies."""
    row: ClassVar[str] = "env"
    """The field with what is to be learned, the rows of a comparison."""

    env: str
    """Environment id, such as popgym/RepeatPreviousEasy, gymnax/CartPole-v1, atari/Pong or lsd/Random."""
    eval_env: str = ""
    """Environment of evaluations where it differs from env: an id, or `?option=value&...` alone for the same one with
    these options in place of env's. Not for planners."""
    seeds: int = 1
    """Independent runs side by side in one program."""
    seed: int = 0
    """Seed of the first of them; the others count up from it."""
    total_steps: int = 1_000_000
    """Environment steps per seed (rounded up to whole log points)."""
    log_points: int = 50
    """Lines of metrics.jsonl; also how often the run can be checkpointed, interrupted and shown."""
    eval_points: int = 5
    """Evaluations during the run, the last one at its end."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints (0: one at every log point)."""

    def __post_init__(self):
        require_at_least_one(self, "", "seeds", "total_steps", "log_points", "eval_points")
        if not 0 <= self.seed < 2**32 - self.seeds:
            raise BadRequest(f"seed must lie in [0, 2^32 - seeds), got {self.seed}")

    @property
    def evaluated(self) -> str:
        """The id of the environment of evaluations."""
        if self.eval_env.startswith("?"):
            return self.env.partition("?")[0] + self.eval_env.removesuffix("?")
        return self.eval_env or self.env

    @property
    def chosen(self) -> str:
        """The memory or algorithm of this run."""
        return getattr(self, self.choice)

    @property
    def label(self) -> str:
        """What tells this run from others of its task: in names of folders, tables and pictures."""
        return self.chosen

    @property
    def task(self) -> str:
        """What is to be learned: the environment, or the dataset."""
        return getattr(self, self.row)


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


@dataclass(frozen=True)
class WorldSettings:
    """Sizes of the world model."""

    encoder: Literal["conv", "mlp"]
    """Of observations, and decoder likewise: convolutions for pictures, dense layers for vectors."""
    reconstruction: Literal["pixels", "binary", "symlog"]
    """What observations are: pixels (0 .. 255), entries that are 0 or 1, or numbers of any size."""
    categoricals: int
    """Categorical variables of the latent."""
    classes: int
    """Classes of each."""
    width: int
    """Width of the memory's input and output."""
    layers: int
    """Memory layers, one after another."""
    head: int
    """Hidden width of the predictors of reward and end."""
    channels: tuple[int, ...] = (16, 32, 48, 64, 64)
    """Of the convolutions."""
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    """Of the convolutions."""
    kernel: int = 5
    """Width of the convolutions' kernels, odd."""
    norm: Literal["batch", "rms", "layer"] = "batch"
    """Normalisation of the convolutions: of the batch, or of each place."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions."""
    dense: tuple[int, ...] = ()
    """Sizes of the dense layers of an mlp encoder, and backwards of the decoder."""
    unimix: float = 0.01
    """Share of the uniform distribution in the latent's."""
    unimix_denominator: Literal["classes", "categoricals"] = "classes"
    """Spreads that share over the classes, or (wrong where they differ) over the number of categoricals."""
    dropout: float = 0.0
    """Of the output of each memory layer, in training."""
    memory_options: tuple[str, ...] = ()
    """Options of memories as `memory.option=value` (see the memory page in docs)."""

    def __post_init__(self):
        require_at_least_one(self, "world.", "categoricals", "classes", "width", "layers", "head")
        for name in ("unimix", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise BadRequest(f"world.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.encoder == "conv" and (self.kernel % 2 == 0 or len(self.channels) != len(self.strides)):
            raise BadRequest("world.kernel must be odd, and world.channels and world.strides of one length")


@dataclass(frozen=True, kw_only=True)
class DramaExperiment(Experiment):
    """A world model with a memory, and behaviour learned in its imagination."""

    agent: ClassVar[str] = "drama"
    choice: ClassVar[str] = "memory"

    memory: str = "mamba2"
    """Memory by its registered name, such as mamba2, s5, gru or none (an unknown name lists them all)."""
    drama: DramaSettings
    """Hyperparameters of the agent."""
    world: WorldSettings
    """Sizes of the world model."""


@dataclass(frozen=True, kw_only=True)
class OfflineExperiment(Experiment):
    """Learning from recorded episodes alone."""

    row: ClassVar[str] = "dataset"

    dataset: str
    """The recorded episodes: a file or folder of any format on the page of offline learning in docs."""
    env: str = ""
    """Environment that the dataset is from, for evaluations (default: as the dataset says)."""
    total_steps: int = 100_000
    """Gradient steps per seed (rounded up to whole log points)."""


@dataclass(frozen=True)
class MixerSettings:
    """Sizes of the sequence policy."""

    width: int
    """Width of tokens and of the mixer's layers."""
    layers: int
    """Layers of the mixer, one after another."""
    deep: bool
    """Embeddings and action head have a hidden layer; else they are linear, and a tanh bounds the action."""
    see_actions: bool = True
    """Show it the actions before: recorded ones may tell which policy took them, and its own then mislead it."""
    memory_options: tuple[str, ...] = ()
    """Options of mixers as `mixer.option=value` (see the memory page in docs; dm has those of mamba)."""

    def __post_init__(self):
        require_at_least_one(self, "mixer.", "width", "layers")


@dataclass(frozen=True, kw_only=True)
class SequenceExperiment(OfflineExperiment):
    """A policy that continues recorded sequences."""

    agent: ClassVar[str] = "sequence"
    choice: ClassVar[str] = "memory"

    memory: str = "dm"
    """What mixes the tokens: dm (Decision Mamba), attention (Decision Transformer) or any other registered memory."""
    sequence: SequenceSettings
    """Hyperparameters of the agent."""
    mixer: MixerSettings
    """Sizes of the network."""


@dataclass(frozen=True)
class HistorySettings:
    """Sizes of the memory that encodes histories."""

    width: int
    """Width of the memory's input and output, and of what the value method sees."""
    layers: int
    """Memory layers, one after another."""
    memory_options: tuple[str, ...] = ()
    """Options of memories as `memory.option=value` (see the memory page in docs)."""

    def __post_init__(self):
        require_at_least_one(self, "history.", "width", "layers")


@dataclass(frozen=True, kw_only=True)
class ValueExperiment(OfflineExperiment):
    """Imitation, or a value that keeps to the data, from recorded single steps or histories."""

    agent: ClassVar[str] = "values"
    choice: ClassVar[str] = "algorithm"

    algorithm: str = "iql"
    """bc, rcbc, td3bc, iql, cql or odice."""
    memory: str = ""
    """Registered memory that encodes histories, for iql and cql (empty: single steps)."""
    bc: BCSettings
    """Hyperparameters of behaviour cloning; those of algorithms other than the chosen one have no effect."""
    rcbc: RCBCSettings
    """Of cloning that is told which return to achieve."""
    td3bc: TD3BCSettings
    """Of TD3+BC."""
    iql: IQLSettings
    """Of implicit Q-learning."""
    cql: CQLSettings
    """Of conservative Q-learning."""
    odice: ODICESettings
    """Of ODICE."""
    history: HistorySettings
    """Sizes of the memory."""
    bisimulation: BisimulationSettings
    """How histories are seen."""

    @property
    def label(self) -> str:
        return f"{self.algorithm}-{self.memory}" if self.memory else self.algorithm


@dataclass(frozen=True, kw_only=True)
class PlannerExperiment(Experiment):
    """A bandit or tabular algorithm."""

    choice: ClassVar[str] = "algorithm"

    algorithm: str
    """One of the agent's algorithms (an unknown name lists them all)."""


@dataclass(frozen=True, kw_only=True)
class LSDExperiment(PlannerExperiment):
    """Planning and learning in a bandit whose payoffs depend on the last switch."""

    agent: ClassVar[str] = "lsd"

    lsd: LSDSettings
    """Settings of the planner."""


@dataclass(frozen=True, kw_only=True)
class UCRLExperiment(PlannerExperiment):
    """Optimism in an MDP that changes now and then."""

    agent: ClassVar[str] = "ucrl"

    ucrl: UCRLSettings
    """Settings of UCRL2 and its variants."""


@dataclass(frozen=True, kw_only=True)
class StepMixExperiment(PlannerExperiment):
    """Exploration in an episodic MDP that never falls below a share of a baseline."""

    agent: ClassVar[str] = "stepmix"

    stepmix: StepMixSettings
    """Settings of StepMix and EpsMix."""


@dataclass(frozen=True, kw_only=True)
class DynLinExperiment(PlannerExperiment):
    """Optimism in a linear bandit with a hidden state."""

    agent: ClassVar[str] = "dynlin"

    dynlin: DynLinSettings
    """Settings of DynLin-UCB and its rivals."""


@dataclass(frozen=True, kw_only=True)
class NeuCBExperiment(PlannerExperiment):
    """A contextual bandit with a network."""

    agent: ClassVar[str] = "neucb"

    neucb: NeuCBSettings
    """Settings of NeuFastCB, NeuSquareCB and their rivals."""


EXPERIMENTS: dict[str, type[Experiment]] = {
    kind.agent: kind
    for kind in (
        PPOExperiment,
        ConservativeExperiment,
        DramaExperiment,
        SequenceExperiment,
        ValueExperiment,
        LSDExperiment,
        UCRLExperiment,
        StepMixExperiment,
        DynLinExperiment,
        NeuCBExperiment,
    )
}
"""Kinds of experiments by their agents' names."""
