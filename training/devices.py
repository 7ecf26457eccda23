"""Spreading a run over the devices of one machine: its seeds, which need nothing of each other.

The program of each device is that of a run with its share of the seeds, so its bits depend on the number of seeds per
device, and not on how many devices there are. `jax.shard_map` is told not to check what varies (`check_vma=False`): the
loops of agents, environments and kernels carry values that are alike on all devices beside those that are not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from engram.errors import BadRequest
from engram.training.stderr import notify
from engram.training.types import PyTree

SEEDS = "seeds_over_devices"
"""Axis of the mesh over which seeds are spread."""


def mesh_of(seeds: int, devices: int | None = None) -> Mesh | None:
    """The devices that share out the seeds, None for a single one.

    Args:
        devices: how many (default: all of this machine). Where that does not divide `seeds`, the largest number below
            that does.

    Raises:
        BadRequest: there are fewer devices.
    """
    here = jax.local_devices()
    if devices is not None and devices > len(here):
        raise BadRequest(f"--devices {devices}: this machine has {len(here)} ({here[0].device_kind})")
    most = min(len(here) if devices is None else devices, seeds)
    used = max(count for count in range(1, most + 1) if seeds % count == 0)
    if devices is not None and used < devices:
        notify(f"{seeds} seeds cannot be shared out equally over {devices} devices: using {used}")
    if used == 1:
        return None
    return Mesh(np.array(here[:used]), (SEEDS,), axis_types=(AxisType.Auto,))


def spread(f: Callable, mesh: Mesh | None, seed_axis_of_results: Any = 0) -> Callable:
    """`f(*states, arguments=...)` of a device's share of the seeds as a function of all seeds.

    Args:
        f: takes pytrees with the axis of seeds in front, and `arguments`, which are the same for all.
        seed_axis_of_results: where the results have it: a number, or a tree of numbers in front of the results'.
    """
    if mesh is None:
        return f
    seeds, all_alike = PartitionSpec(SEEDS), PartitionSpec()
    results = jax.tree.map(lambda axis: PartitionSpec(*[None] * axis, SEEDS), seed_axis_of_results)

    @functools.wraps(f)
    def on_all(*states: PyTree, arguments: PyTree) -> PyTree:
        def on_one(states: PyTree, arguments: PyTree) -> PyTree:
            return f(*states, arguments=arguments)

        return jax.shard_map(on_one, mesh=mesh, in_specs=(seeds, all_alike), out_specs=results, check_vma=False)(
            states, arguments
        )

    return on_all


def placed(template: PyTree, mesh: Mesh | None) -> PyTree:
    """`template`, shapes and dtypes `[seeds, ...]`, with where its seeds lie."""
    if mesh is None:
        return template
    where = NamedSharding(mesh, PartitionSpec(SEEDS))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), template)


def on_every_device(arguments: PyTree, mesh: Mesh | None) -> PyTree:
    """`arguments` with a copy of its arrays on every device."""
    if mesh is None:
        return arguments
    where = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, where) if isinstance(x, jax.Array | np.ndarray) else x, arguments)
