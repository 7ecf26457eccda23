"""Types that the training loop and all agents share."""

from typing import Any, Protocol, TypeAlias, TypeVar

import jax

from engram.envs.base import Environment, VectorEnvironment

Key: TypeAlias = jax.Array
"""A random key of JAX (`jax.random.key`)."""
PyTree: TypeAlias = Any
"""Any nest of containers with arrays as leaves."""
Params: TypeAlias = Any
"""Parameters of a flax module: nested dicts of arrays."""
Metrics: TypeAlias = dict[str, jax.Array]
"""Scalars by name; those of an update are recorded under `loss/` and `train/`, those of an evaluation under `eval/`."""

State = TypeVar("State")


class Agent(Protocol[State]):
    """What the training loop needs of an agent. `init`, `update` and `evaluate` are pure and traceable.

    `State` is one pytree that holds everything that training carries.

    Attributes that an agent names in `ARGUMENTS` are handed to the compiled programs as arguments, once for all seeds,
    so they are neither part of the state nor constants of the programs: recorded experience, and the numbers of its
    settings that another program is not worth (see `engram.training.arguments`).

    If `env` is a host pool, `update` also returns the `executed` actions of its info, `[T, B, ...]`, as the metric
    `replay/action`, and what they led to as `replay/played` (see `engram.training.action_log.played_of`). The state
    has the fields `env`, `obs` and `reset`. Where `update` steps environments it may also return the metric
    `replay/fault` (see `engram.training.faults`).
    """

    @property
    def env(self) -> Environment | VectorEnvironment:
        """Its environment: a batch in wrappers, or a single one."""
        ...

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one update."""
        ...

    def init(self, key: Key) -> State:
        """The state in which training begins."""
        ...

    def update(self, state: State) -> tuple[State, Metrics]:
        """One round of collecting and learning."""
        ...

    def evaluate(self, state: State, key: Key, axis_name: str | None = None) -> Metrics:
        """Plays with the policy of `state`. `axis_name` names the `vmap` over seeds, where there is one."""
        ...

    def close(self) -> None:
        """Frees what the agent holds on the host."""
        ...
