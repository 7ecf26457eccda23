"""Configuration of learning from recorded episodes. The defaults are the published settings for locomotion; what
concerns histories is ours."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from engram.agents.common.checks import (
    require_at_least,
    require_not_negative,
    require_positive,
    require_share_below_one,
)
from engram.agents.common.experiment import Experiment
from engram.agents.offline.bc import BCSettings, RCBCSettings
from engram.agents.offline.bisimulation import BisimulationSettings
from engram.agents.offline.cql import CQLSettings
from engram.agents.offline.iql import IQLSettings
from engram.agents.offline.odice import ODICESettings
from engram.agents.offline.sequence_policy import SequenceSettings
from engram.agents.offline.td3bc import TD3BCSettings


@dataclass(frozen=True)
class DataSettings:
    """Place of the dataset while it is learned from. What is drawn and learned does not depend on it."""

    device_gb: float = 4.0
    """Gigabytes of data, with a fifth to spare, up to which they are held on the device. Larger ones stay on the host,
    as files where the dataset is a folder NAME.engram, and batches are gathered there."""
    chunk_gb: float = 0.064
    """Gigabytes of batches that are gathered at a time where the data are on the host; they are held twice."""

    def __post_init__(self):
        require_not_negative(self, "data.", "device_gb")
        require_positive(self, "data.", "chunk_gb")


@dataclass(frozen=True, kw_only=True)
class OfflineExperiment(Experiment):
    """Learning from recorded episodes alone."""

    row: ClassVar[str] = "dataset"

    dataset: str = "runs/datasets/pendulum-noise.npz"
    """File or folder of recorded episodes, of any format on the page of datasets in docs. The default is what
    `make_dataset.py pendulum-noise` makes, where the documentation puts it."""
    env: str = ""
    """Environment id of the dataset, for evaluations (default: as the dataset says)."""
    total_steps: int = 100_000
    """Gradient steps per seed (rounded up to whole log points)."""
    data: DataSettings = field(default_factory=DataSettings)
    """Place of the dataset."""

    @property
    def identity(self) -> dict[str, str]:
        return {"env": self.env, "dataset": self.dataset, self.choice: self.chosen}


@dataclass(frozen=True)
class MixerSettings:
    """Sizes of the sequence policy."""

    width: int = 128
    """Width of tokens and of the mixer's layers."""
    layers: int = 3
    """Number of layers of the mixer, one after another."""
    deep: bool = True
    """Hidden layer in the embeddings and in the action head; without it they are linear, and a tanh bounds the
    action."""
    see_actions: bool = True
    """Earlier actions in the input. Recorded ones may tell which policy took them; the policy's own then mislead it."""
    add_time: Literal["after", "before"] = "after"
    """Place where the embedding of the time is added to a token: after its normalisation, or before (published Decision
    Transformer)."""
    dropout: float = 0.0
    """Dropout rate, in training, of tokens, of each layer's output and of the weights of attention (published Decision
    Transformer: 0.1)."""
    memory_options: tuple[str, ...] = ()
    """Options of mixers as `mixer.option=value` (see the memory page in docs; dm has those of mamba)."""

    def __post_init__(self):
        require_at_least(self, "mixer.", 1, "width", "layers")
        require_share_below_one(self, "mixer.", "dropout")


@dataclass(frozen=True, kw_only=True)
class SequenceExperiment(OfflineExperiment):
    """A policy that continues recorded sequences."""

    agent: ClassVar[str] = "sequence"
    choice: ClassVar[str] = "memory"

    memory: str = "dm"
    """Mixer of the tokens: dm (Decision Mamba), attention (Decision Transformer) or any other memory."""
    sequence: SequenceSettings = field(default_factory=SequenceSettings)
    """Hyperparameters of the agent."""
    mixer: MixerSettings = field(default_factory=MixerSettings)
    """Sizes of the network."""


@dataclass(frozen=True)
class HistorySettings:
    """Sizes of the memory that encodes histories."""

    width: int = 256
    """Width of the memory's input and output, and of the code of a history that the value method sees."""
    layers: int = 1
    """Number of memory layers, one after another."""
    memory_options: tuple[str, ...] = ()
    """Options of memories as `memory.option=value` (see the memory page in docs)."""

    def __post_init__(self):
        require_at_least(self, "history.", 1, "width", "layers")


@dataclass(frozen=True, kw_only=True)
class ValueExperiment(OfflineExperiment):
    """Imitation, or a value that keeps to the data, from recorded single steps or histories."""

    agent: ClassVar[str] = "values"
    choice: ClassVar[str] = "algorithm"

    total_steps: int = 1_000_000
    """Gradient steps per seed (rounded up to whole log points)."""
    algorithm: str = "iql"
    """Algorithm: bc, rcbc, td3bc, iql, cql or odice."""
    memory: str = ""
    """Memory that encodes histories, by its registered name, for iql and cql (empty: single steps)."""
    bc: BCSettings = field(default_factory=BCSettings)
    """Hyperparameters of behaviour cloning; those of algorithms other than the chosen one have no effect."""
    rcbc: RCBCSettings = field(default_factory=RCBCSettings)
    """Hyperparameters of behaviour cloning conditioned on the return."""
    td3bc: TD3BCSettings = field(default_factory=TD3BCSettings)
    """Hyperparameters of TD3+BC."""
    iql: IQLSettings = field(default_factory=IQLSettings)
    """Hyperparameters of implicit Q-learning."""
    cql: CQLSettings = field(default_factory=CQLSettings)
    """Hyperparameters of conservative Q-learning."""
    odice: ODICESettings = field(default_factory=ODICESettings)
    """Hyperparameters of ODICE."""
    history: HistorySettings = field(default_factory=HistorySettings)
    """Sizes of the memory that encodes histories."""
    bisimulation: BisimulationSettings = field(default_factory=BisimulationSettings)
    """Hyperparameters of learning to encode histories."""

    @property
    def label(self) -> str:
        return f"{self.algorithm}-{self.memory}" if self.memory else self.algorithm

    @property
    def identity(self) -> dict[str, str]:
        return {**super().identity, "memory": self.memory}
