"""What an agent declares in its line of `engram.agents.registry`: how it is built, and what it can do.

Scripts and experiments ask this declaration and never for an agent's type, so that a new agent needs no edit of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from engram.agents.common.environments import make_vector
from engram.agents.common.experiment import Experiment
from engram.envs.base import VectorEnvironment
from engram.envs.external import Seen
from engram.memory.base import Memory

Agent = Any
"""An agent: see `engram.training.types.Agent`."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes in the picture of a run: a metric over time, and what is drawn with it."""

    key: str
    """Name of the metric: a line for its mean over seeds, a band for their spread."""
    label: str
    """Label of the vertical axis."""
    dots: str | None = None
    """Name of a metric at few points, drawn as dots."""
    floor: str | None = None
    """Name of a metric that `key` must not fall below, drawn dashed."""
    zero: bool = False
    """Whether the line at 0 is drawn too."""
    events: str | None = None
    """Name of a metric of steps, where `key` also holds steps: two kinds of events, drawn as bars and dots."""
    targets: bool = False
    """Whether the latest metrics `<key><number>` are drawn over these numbers, with the line where both are equal."""


MakeVector = Callable[..., VectorEnvironment]
"""Makes a batch of environments: the signature of `engram.agents.common.environments.make_vector`."""


@dataclass(frozen=True)
class Build:
    """Circumstances in which an agent is built."""

    emulator_seed: tuple[int, ...] = ()
    """Seed of its emulators, if any, and behind it what sets them apart (see `engram.envs.host.pool.lane_seeds`;
    default: the configured seed alone)."""
    record: bool = False
    """Whether its steps say what was there before noise and normalisation (see `engram.envs.datasets.recorder`)."""
    make_vector: MakeVector = make_vector
    """Maker of its environments, which a policy that acts elsewhere replaces."""

    def seed_for(self, config: Experiment) -> tuple[int, ...]:
        """The seed of the emulators of `config`, and behind it what sets them apart."""
        return self.emulator_seed or (config.seed,)


@dataclass(frozen=True)
class Play:
    """How the policy of a trained agent plays episodes."""

    configure: Callable[[Any, int, bool | None], Any]
    """Configuration, episodes a seed, greedy (None: as configured) -> the configuration of such an evaluation. Raises
    BadRequest where the agent cannot be evaluated so."""
    is_greedy: Callable[[Any], bool]
    """Configuration -> whether its evaluations take the most likely action."""
    episodes: Callable[[Any], int]
    """Configuration -> episodes a seed of its evaluations."""
    least: int = 1
    """Episodes a seed that an evaluation needs at least."""
    player: Callable[[Agent, Any], tuple[Agent, Any]] = lambda agent, states: (agent, states)
    """Agent and its states -> the agent that plays, which has `evaluate`, and its states."""
    scene: Callable[[Agent], VectorEnvironment] | None = None
    """Agent that plays -> the environment that its `record` plays in, to be drawn (None: it cannot be drawn)."""


@dataclass(frozen=True)
class Acting:
    """How the policy of a trained agent acts one step at a time in an `engram.envs.external.External`: pure functions
    of the state of one seed."""

    start: Callable[[Agent, Any, Seen, jax.Array], Any]
    """Agent, state, what opens an episode, key -> carry."""
    observe: Callable[[Agent, Any, Any, Any, Seen, jax.Array], Any]
    """Agent, state, carry, the last action `[1, ...]`, what followed it, key -> carry."""
    act: Callable[[Agent, Any, Any, jax.Array], tuple[Any, Any, dict[str, Any]]]
    """Agent, state, carry, key -> carry, action `[1, ...]`, and by name what can be looked at: `memory`, the state of
    the memory, and `value` `[1]` where the agent has one."""


@dataclass(frozen=True)
class Dreaming:
    """How a world model shows what it imagines."""

    dream: Callable[[Agent, Any, jax.Array, int, int], Any]
    """Agent, state, key, context, horizon -> what was played, reconstructed and imagined."""
    shape: Callable[[Agent], tuple[int, ...]]
    """Agent -> shape of an observation before it was flattened."""


@dataclass(frozen=True)
class Remembering:
    """The memory of an agent, by itself."""

    make: Callable[[Any], Memory]
    """Configuration -> the memory, with the projections around it if it has any."""
    width: str
    """Dotted name of the setting that gives it a width of its own, between projections (0: that of its network)."""
    outer: str
    """Dotted name of the setting with the width of its network."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """An agent as the rest of the suite knows it."""

    experiment: type[Experiment]
    """Class of its configurations; its `agent` is the name."""
    build: Callable[[Any, Build], Agent]
    """Configuration, circumstances -> the agent. Raises BadRequest for impossible combinations."""
    panels: tuple[Panel, ...]
    """Panels of the picture of a run; `compare` draws the first."""
    columns: tuple[str, ...] = ()
    """Values of the field `choice` that `compare` takes when none is named."""
    second_choice: str | None = None
    """Field that `compare` can vary beside `choice`."""
    resolve: Callable[[Any], Any] = lambda config: config
    """Configuration -> the same with what only its files can tell, such as the environment of a dataset."""
    check: Callable[[Agent, Any], None] | None = None
    """Agent, configuration, before it trains: raises BadRequest where only the drawn instances show that a run is
    impossible, and says what only the agent knows."""
    summary: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    """Rows of metrics -> numbers of the summary beside the common ones."""
    play: Play | None = None
    """How its policy plays episodes after training (None: it is scored while it learns)."""
    acting: Acting | None = None
    """How its policy acts one step at a time (None: it cannot)."""
    dreaming: Dreaming | None = None
    """How its world model imagines (None: it has none)."""
    remembering: Remembering | None = None
    """Its memory, by which columns of a comparison can be measured and matched (None: it has none, or more than
    that)."""
    adapts: bool = False
    """Whether it is a recurrent PPO, whose adaptation within trials can be measured and whose steps can be recorded."""

    @property
    def name(self) -> str:
        return self.experiment.agent
