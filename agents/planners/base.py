"""What planners share. A planner acts in an environment whose steps are functions of uniforms drawn beforehand, so that
the same algorithm in plain NumPy can be given the same uniforms."""

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp

from engram.envs.base import UniformEnvironment
from engram.errors import BadRequest, UnknownName
from engram.training.types import Key, Metrics


class PlannerState(Protocol):
    """What the state of every planner has."""

    @property
    def key(self) -> Key: ...

    def replace(self, **changes: Any) -> Self: ...


class BanditState(PlannerState, Protocol):
    """What the state of a `BanditPlanner` has."""

    @property
    def t(self) -> jax.Array: ...

    @property
    def regret(self) -> jax.Array: ...

    @property
    def reward_sum(self) -> jax.Array: ...


class BanditStep(Protocol):
    """What one round of a `BanditPlanner` has."""

    @property
    def reward(self) -> jax.Array: ...

    @property
    def mean(self) -> jax.Array: ...

    @property
    def optimal(self) -> jax.Array: ...


State = TypeVar("State", bound=PlannerState)
Trace = TypeVar("Trace")
RoundState = TypeVar("RoundState", bound=BanditState)
RoundStep = TypeVar("RoundStep", bound=BanditStep)


@dataclass(frozen=True, eq=False)
class Planner(Generic[State, Trace]):
    """An agent of the training loop: pure `init`, `update` and `evaluate` over a state, and `play` on given uniforms.

    Nothing is played in an evaluation: a planner is scored while it acts.
    """

    algorithms: ClassVar[tuple[str, ...]]
    """Names that `algorithm` may have."""
    family: ClassVar[str]
    """Family of the environments that it plans."""
    env_type: ClassVar[type[UniformEnvironment] | tuple[type[UniformEnvironment], ...]]
    """Class of these environments, or classes."""

    env: UniformEnvironment
    settings: Any
    """Settings of the planner's own class."""
    algorithm: str
    total_steps: int
    """Environment steps of the run, for the algorithms that know their horizon."""

    def __post_init__(self):
        if self.algorithm not in self.algorithms:
            raise UnknownName.among("algorithm", self.algorithm, self.algorithms)
        if not isinstance(self.env, self.env_type):
            raise BadRequest(f"{self.algorithm} needs an environment of the family {self.family}/, got {self.env.name}")

    @property
    def rounds_per_update(self) -> int:
        """Rows of uniforms that an update plays."""
        return self.settings.steps_per_update

    @property
    def steps_per_update(self) -> int:
        """Environment steps of an update."""
        return self.rounds_per_update

    @property
    def num_uniforms(self) -> int:
        """Uniforms of one row."""
        return self.env.num_uniforms

    def close(self) -> None:
        """Does nothing: all is in the state."""

    def init(self, key: Key) -> State:
        raise NotImplementedError

    def play(self, state: State, uniforms: jax.Array) -> tuple[State, Trace]:
        """Plays the rows of `uniforms [rounds, num_uniforms]`; the new state and what happened, `[rounds, ...]`."""
        raise NotImplementedError

    def draw_uniforms(self, state: State) -> tuple[State, jax.Array]:
        """The uniforms of an update, and the state with the next key."""
        key, draw_key = jax.random.split(state.key)
        return state.replace(key=key), jax.random.uniform(draw_key, (self.rounds_per_update, self.num_uniforms))

    def summarise(self, state: State, trace: Trace) -> tuple[State, Metrics]:
        """Adds the trace of an update to the totals in the state; the metrics of the update."""
        raise NotImplementedError

    def update(self, state: State) -> tuple[State, Metrics]:
        """Plays one update. Pure: `jit`, `vmap` over seeds, `scan` over updates."""
        return self.summarise(*self.play(*self.draw_uniforms(state)))

    def evaluate(self, state: State, key: Key, axis_name: str | None = None) -> Metrics:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class BanditPlanner(Planner[RoundState, RoundStep]):
    """A planner of bandits whose rounds tell the mean reward of the action and that of the best one.

    Regret is the sum of the differences between the two.
    """

    def play_round(self, state: RoundState, uniforms: jax.Array) -> tuple[RoundState, RoundStep]:
        """Plays one round from `uniforms [num_uniforms]`, all but the totals."""
        raise NotImplementedError

    def play(self, state: RoundState, uniforms: jax.Array) -> tuple[RoundState, RoundStep]:
        state, steps = jax.lax.scan(self.play_round, state, uniforms)
        # Sums of an update are small, so the totals of long runs stay accurate in float32.
        regret = state.regret + jnp.sum(steps.optimal - steps.mean)
        return state.replace(regret=regret, reward_sum=state.reward_sum + steps.reward.sum()), steps

    def evaluate(self, state: RoundState, key: Key, axis_name: str | None = None) -> Metrics:
        """Reward and regret a round so far."""
        rounds = jnp.maximum(state.t, 1)
        return {"eval/return": state.reward_sum / rounds, "eval/regret_per_step": state.regret / rounds}
