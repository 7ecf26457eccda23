"""Spreading a run over the devices of one machine: its seeds first, which need nothing of each other, then the groups
of environments of a seed, whose gradients and statistics are summed.

The program of each device is that of a run with its share of the seeds, so bits depend on the number of seeds per
device, and not on how many devices there are. Of groups, sums are rounded otherwise when they are spread otherwise.
`jax.shard_map` is told not to check what varies (`check_vma=False`): the loops of agents, environments and kernels
carry values that are alike on all devices beside those that are not. The gradient of a `psum` then is a `psum`, on
which agents rely (see `engram.agents.ppo.agent.PPO.learn`).
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from engram.errors import BadRequest
from engram.training.stderr import notify
from engram.training.types import PyTree

SEEDS, GROUPS_OVER_DEVICES = "seeds_over_devices", "groups_over_devices"
"""Axes of the mesh."""
ALIKE, BY_SEED = PartitionSpec(), PartitionSpec(SEEDS)
"""Where arrays lie: a copy on every device, or the seeds `[seeds, ...]` shared out."""


def mesh_of(seeds: int, devices: int | None = None, groups: int = 1) -> Mesh | None:
    """The devices that share out seeds and groups, None for a single one.

    Args:
        devices: how many (default: all there are). Where that cannot be, as many as divide the seeds, times as
            many as divide the groups.

    Raises:
        BadRequest: there are fewer devices, or some of another process would be left out.
    """
    here = jax.devices()  # of all processes
    if devices is not None and devices > len(here):
        raise BadRequest(f"--devices {devices}: there are {len(here)} ({here[0].device_kind})")
    most = len(here) if devices is None else devices
    over_seeds = _largest_divisor(seeds, most)
    over_groups = _largest_divisor(groups, most // over_seeds)
    used = over_seeds * over_groups
    shared = f"{seeds} seeds" + (f" of {groups} groups" if groups > 1 else "")
    if used < len(here) and jax.process_count() > 1:
        raise BadRequest(f"{shared} cannot be shared out equally over the {len(here)} devices of all processes")
    if devices is not None and used < devices:
        notify(f"{shared} cannot be shared out equally over {devices} devices: using {used}")
    if used == 1:
        return None
    grid = np.array(here[:used]).reshape(over_seeds, over_groups)
    return Mesh(grid, (SEEDS, GROUPS_OVER_DEVICES), axis_types=(AxisType.Auto,) * 2)


def _largest_divisor(number: int, most: int) -> int:
    return max(count for count in range(1, min(number, most) + 1) if number % count == 0)


def by_group(layout: PyTree) -> PyTree:
    """Where the parts of states `[seeds, ...]` lie, for an agent of several groups.

    Args:
        layout: the axis of groups of each part: 0, or None for what all groups share.
    """
    grouped = PartitionSpec(SEEDS, GROUPS_OVER_DEVICES)
    return jax.tree.map(lambda axis: BY_SEED if axis is None else grouped, layout, is_leaf=lambda x: x is None)


def spread(f: Callable, mesh: Mesh | None, given: tuple[PyTree, ...], results: PyTree) -> Callable:
    """`f(*given, arguments=...)` of a device's share as a function of all.

    Args:
        given, results: where they lie, each a `PartitionSpec` or a tree of them in front of the values'. `arguments`
            are alike on all devices.
    """
    if mesh is None:
        return f

    def on_all(*values: PyTree, arguments: PyTree) -> PyTree:
        def on_one(values: tuple[PyTree, ...], arguments: PyTree) -> PyTree:
            return f(*values, arguments=arguments)

        on_each = jax.shard_map(on_one, mesh=mesh, in_specs=(given, ALIKE), out_specs=results, check_vma=False)
        return on_each(values, arguments)

    return on_all


def placed(template: PyTree, mesh: Mesh | None, where: PyTree) -> PyTree:
    """`template`, shapes and dtypes, with where they lie: a `PartitionSpec` or a tree of them in front of it."""
    if mesh is None:
        return template

    def place(spec: PartitionSpec, part: PyTree) -> PyTree:
        def place_array(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            # XLA gives arrays without entries to every device, whatever it is told.
            lies = NamedSharding(mesh, spec if x.size else ALIKE)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies)

        return jax.tree.map(place_array, part)

    return jax.tree.map(place, where, template, is_leaf=lambda x: isinstance(x, PartitionSpec))


def on_every_device(arguments: PyTree, mesh: Mesh | None) -> PyTree:
    """`arguments` with a copy of its arrays on every device."""
    if mesh is None:
        return arguments
    lies = NamedSharding(mesh, ALIKE)

    def place(x: PyTree) -> PyTree:
        if not isinstance(x, jax.Array | np.ndarray):
            return x
        array = np.asarray(x)
        return jax.make_array_from_callback(array.shape, lies, lambda index: array[index])

    return jax.tree.map(place, arguments)
