"""Configuration of learning from recorded episodes."""

from dataclasses import dataclass
from typing import ClassVar

from engram.agents.common.experiment import Experiment, require_at_least_one
from engram.agents.offline.bc import BCSettings, RCBCSettings
from engram.agents.offline.bisimulation import BisimulationSettings
from engram.agents.offline.cql import CQLSettings
from engram.agents.offline.iql import IQLSettings
from engram.agents.offline.odice import ODICESettings
from engram.agents.offline.sequence_policy import SequenceSettings
from engram.agents.offline.td3bc import TD3BCSettings


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

    @property
    def identity(self) -> dict[str, str]:
        return {"env": self.env, "dataset": self.dataset, self.choice: self.chosen}


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

    @property
    def identity(self) -> dict[str, str]:
        return {**super().identity, "memory": self.memory}
