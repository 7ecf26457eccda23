"""Configuration of bandit and tabular algorithms."""

from dataclasses import dataclass
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
    """Algorithm, one of the agent's (an unknown name lists them all)."""

    @property
    def settings(self) -> Any:
        """The settings of the planner, which stand under its name."""
        return getattr(self, self.agent)


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
