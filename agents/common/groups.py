"""Groups of environments of one run, each a part of its batch with random numbers of its own.

What an agent of several groups computes is a matter of the groups alone: they lie side by side under `vmap` on one
device, or are spread over several (see `engram.training.devices`), and agree up to the rounding of sums.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from engram.kernels.collectives import Axes, group_count
from engram.training.types import Key, Metrics, PyTree

GROUPS = "groups"
"""Axis of the groups on a device."""


class GroupedAgent(Protocol):
    """What `init_groups` and `update_groups` need of an agent."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        ...

    @property
    def axes(self) -> Axes:
        """Axes along which groups lie: of devices, where they are spread."""
        ...

    def over(self, axes: Axes) -> "GroupedAgent":
        """The agent whose groups lie along `axes`."""
        ...

    def layout(self, state: Any) -> Any:
        """The axis of groups of each part of a state: 0, or None for what all groups share."""
        ...

    def init_group(self, key: Key) -> Any:
        """The state in which one group begins, by the key of all groups."""
        ...

    def update_group(self, state: Any) -> tuple[Any, Metrics]:
        """One update of one group."""
        ...


def init_groups(agent: GroupedAgent, key: Key) -> Any:
    """The state in which an agent begins. Parts that differ between groups get an axis of the groups on this device in
    front, if the agent has several groups."""
    here = _groups_here(agent)
    if agent.groups == 1:
        return agent.init_group(key)
    if here == 1:
        state = agent.init_group(key)
        return _where_grouped(lambda x: x[None], agent.layout(state), state)
    own = agent.over((*agent.axes, GROUPS))
    state = jax.vmap(lambda _: own.init_group(key), axis_name=GROUPS)(jnp.arange(here))
    shared = jax.tree.map(lambda axis: 0 if axis is None else None, agent.layout(state), is_leaf=_is_none)
    return _where_grouped(lambda x: x[0], shared, state)  # of what all groups share, one


def update_groups(agent: GroupedAgent, state: Any) -> tuple[Any, Metrics]:
    """One update of all groups, in which they learn as one: parameters and metrics are the same in each."""
    if agent.groups == 1:
        return agent.update_group(state)
    layout = agent.layout(state)
    if _groups_here(agent) == 1:  # not batched: programs of many small products are slower with an axis of one
        state, metrics = agent.update_group(_where_grouped(lambda x: x[0], layout, state))
        return _where_grouped(lambda x: x[None], layout, state), metrics
    own = agent.over((*agent.axes, GROUPS))
    return jax.vmap(own.update_group, in_axes=(layout,), out_axes=(layout, None), axis_name=GROUPS)(state)


def _groups_here(agent: GroupedAgent) -> int:
    return agent.groups // group_count(agent.axes)


def _is_none(x: Any) -> bool:
    return x is None


def _where_grouped(f: Callable[[jax.Array], jax.Array], layout: PyTree, state: PyTree) -> PyTree:
    """`state` with `f` of the leaves that differ between groups."""
    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(f, part), layout, state, is_leaf=_is_none
    )
