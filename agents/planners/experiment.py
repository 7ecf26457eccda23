"""Configuration of bandit and tabular algorithms."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from engram.agents.common.experiment import Experiment
from engram.agents.planners.dynlin import DynLinSettings
from engram.agents.planners.lsd import LSDSettings
from engram.agents.planners.neucb import NeuCBSettings
from engram.agents.planners.stepmix import StepMixSettings
from engram.agents.planners.ucrl import UCRLSettings


@dataclass(frozen=True, kw_only=True)
class PlannerExperiment(Experiment):
    """A bandit or tabular algorithm."""

    choice: ClassVar[str] = "algorithm"

    algorithm: str
    """Algorithm by its name (an unknown name shows close matches)."""

    @property
    def settings(self) -> Any:
        """The settings of the planner, which stand under its name."""
        return getattr(self, self.agent)


@dataclass(frozen=True, kw_only=True)
class LSDExperiment(PlannerExperiment):
    """Planning and learning in a bandit whose payoffs depend on the last switch."""

    agent: ClassVar[str] = "lsd"

    env: str = "lsd/Random?arms=3&played=2&idle=3"
    """Environment id, such as lsd/Random (an unknown id shows close matches)."""
    algorithm: str = "explore-then-commit"
    """Algorithm by its name (an unknown name shows close matches)."""
    lsd: LSDSettings = field(default_factory=LSDSettings)
    """Settings of the planner."""


@dataclass(frozen=True, kw_only=True)
class UCRLExperiment(PlannerExperiment):
    """Optimism in an MDP that changes now and then."""

    agent: ClassVar[str] = "ucrl"

    env: str = "switching/Random?states=4&actions=3&changes=4000,8000,12000"
    """Environment id, such as switching/Random (an unknown id shows close matches)."""
    algorithm: str = "rbocpd-ucrl2"
    """Algorithm by its name (an unknown name shows close matches)."""
    ucrl: UCRLSettings = field(default_factory=UCRLSettings)
    """Settings of UCRL2 and its variants."""


@dataclass(frozen=True, kw_only=True)
class StepMixExperiment(PlannerExperiment):
    """Exploration in an episodic MDP that never falls below a share of a baseline."""

    agent: ClassVar[str] = "stepmix"

    env: str = "episodic/Random"
    """Environment id, such as episodic/Random (an unknown id shows close matches)."""
    algorithm: str = "stepmix"
    """Algorithm by its name (an unknown name shows close matches)."""
    stepmix: StepMixSettings = field(default_factory=StepMixSettings)
    """Settings of StepMix and EpsMix."""


@dataclass(frozen=True, kw_only=True)
class DynLinExperiment(PlannerExperiment):
    """Optimism in a linear bandit with a hidden state."""

    agent: ClassVar[str] = "dynlin"

    env: str = "dynamical/Diagonal"
    """Environment id, such as dynamical/Diagonal (an unknown id shows close matches)."""
    algorithm: str = "dynlin-ucb"
    """Algorithm by its name (an unknown name shows close matches)."""
    dynlin: DynLinSettings = field(default_factory=DynLinSettings)
    """Settings of DynLin-UCB and its rivals."""


@dataclass(frozen=True, kw_only=True)
class NeuCBExperiment(PlannerExperiment):
    """A contextual bandit with a network."""

    agent: ClassVar[str] = "neucb"

    env: str = "classification/wine"
    """Environment id, such as classification/wine (an unknown id shows close matches)."""
    algorithm: str = "neufastcb"
    """Algorithm by its name (an unknown name shows close matches)."""
    neucb: NeuCBSettings = field(default_factory=NeuCBSettings)
    """Settings of NeuFastCB, NeuSquareCB and their rivals."""
