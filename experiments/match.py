"""Sizes of memories, and widths at which the columns of a comparison have one size."""

import dataclasses
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.configs import store
from engram.errors import BadRequest
from engram.memory import Memory, Stack
from engram.memory.projected import Projected
from engram.training import work

TOLERANCE = 0.03
"""Largest difference from the reference that goes without a mark."""
LARGEST = 0.25
"""Largest difference from the reference that is compared at all."""
WIDEST = 8192
"""Largest width that is tried."""

Match = Literal["none", "params", "flops", "state"]


class Sizes(NamedTuple):
    """What a memory costs."""

    params: int
    """Its parameters."""
    flops: int
    """Operations of a step, as it is written: see `engram.training.work.operations`."""
    state: int
    """Bytes of the state of one environment."""


NAMES = {"params": "parameters", "flops": "operations a step", "state": "bytes of state"}
"""What they are called."""


def sizes(memory: Any) -> Sizes:
    """The sizes of a memory, from shapes alone. Raises BadRequest where it cannot be built."""
    try:
        hash(memory)
    except TypeError:  # one of somebody else's, with a field such as an array
        return _sizes.__wrapped__(memory)
    return _sizes(memory)


@cache
def _sizes(memory: Any) -> Sizes:
    memory = countable(memory)
    x, reset = jnp.zeros((1, memory.width)), jnp.zeros(1, bool)
    state = jax.eval_shape(lambda: memory.initial_state(1))
    parameters = jax.eval_shape(memory.init, jax.random.key(0), state, x[None], reset[None])
    step = jax.make_jaxpr(lambda *inputs: memory.apply(*inputs, method="step"))(parameters, state, x, reset)
    return Sizes(
        sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        round(work.operations(step.jaxpr)),
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    )


def countable(memory: Memory) -> Memory:
    """The same memory with its scans in XLA, as what a kernel in C++ computes cannot be counted."""
    if isinstance(memory, Projected):
        return memory.clone(memory=countable(memory.memory))
    if isinstance(memory, Stack):
        return memory.clone(layers=tuple(map(countable, memory.layers)))
    has_backend = "backend" in {field.name for field in dataclasses.fields(memory)}
    return memory.clone(**cast(Any, {"backend": "xla"})) if has_backend else memory


def matched(columns: dict[str, Any], match: Match) -> dict[str, Any]:
    """The experiments of columns, each with a memory of the width at which it comes closest to the first.

    The width of the network around the memory, and so its encoder and heads, are the same for all: linear projections
    lead from it to the memory and back, and count as the memory's.

    Args:
        columns: experiments by label. The first one's memory keeps its width.
        match: what shall be equal: parameters, operations of a step, or bytes of the state.

    Raises:
        BadRequest: the agent's memory has no such width, or no width of a memory comes close.
    """
    if match == "none":
        return columns
    (label, first), *others = columns.items()
    remembering = spec_of(first).remembering
    if remembering is None:
        raise BadRequest(f"--match is for agents with a memory of its own width, which {first.agent} has not")
    width = width_of(first)
    reference = at(first, width)
    target, found = getattr(measured(reference), match), {label: reference}
    if not target:
        raise BadRequest(f"--match takes the size of the first column, and {label} has no state: name another first")
    for name, config in others:
        if not getattr(measured(at(config, width)), match):  # the state of what has none
            found[name] = at(config, width)
            continue
        found[name] = nearest(config, target, match, width)
        size = getattr(measured(found[name]), match)
        if abs(size / target - 1) > LARGEST:
            raise BadRequest(
                f"{name} cannot be matched to {label} by its width: at {width_of(found[name])}, the nearest, its "
                f"{NAMES[match]} are {size:,}, and those of {label} {target:,}; set its options, or the width "
                "of the first"
            )
    return found


def nearest(config: Any, target: int, match: Match, start: int) -> Any:
    """`config` with its memory at the width where it comes closest to `target`; of equals, the one closest to `start`.

    Sizes grow with the width, and many memories take multiples of some number alone: so it is searched among multiples
    of 32 first, then among those of smaller numbers between the last two.
    """

    def size(width: int) -> int | None:
        """None for a width that the memory does not take."""
        try:
            return getattr(measured(at(config, width)), match)
        except BadRequest:
            return None

    known = {} if (found := size(start)) is None else {start: found}
    if known and size(2 * start) == known[start]:  # it does not depend on the width
        return at(config, start)
    low, high = 0, WIDEST  # of those that are known the last one below the target, and the first one not below it
    for step in (2048, 512, 128, 32, 16, 8, 4, 2, 1):
        taken = False
        for width in range(low + step, high, step):
            if (found := size(width)) is None:
                continue
            known[width], taken = found, True
            if found >= target:
                high = width
                break
            low = width
        if not taken and high - low <= 32:
            break
    if not known:
        raise BadRequest(f"{config.label} takes none of the widths that were tried")
    return at(config, min(known, key=lambda width: (abs(known[width] - target), abs(width - start))))


def width_of(config: Experiment) -> int:
    """The width of its memory."""
    remembering = spec_of(config).remembering
    assert remembering is not None
    values = store.to_dict(config)
    group, _, name = remembering.width.partition(".")
    return values[group][name] or values[group][remembering.outer.partition(".")[2]]


def at(config: Any, width: int) -> Any:
    """`config` with a memory of this width between projections."""
    remembering = spec_of(config).remembering
    assert remembering is not None
    return store.override(config, {remembering.width: width})


def measured(config: Any) -> Sizes:
    """The sizes of its memory. Raises BadRequest where it cannot be built."""
    remembering = spec_of(config).remembering
    assert remembering is not None
    return sizes(remembering.make(config))
