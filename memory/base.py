"""The contract of every memory: it acts exactly as it trains.

Arrays are time-major: `x[T, B, width]`. `reset[t, b]` True means that `x[t, b]` opens an episode: the state is
cleared, by select, before `x[t, b]` is consumed. A state is any pytree whose leaves have shape `[B, ...]` and fixed
dtypes; everything a module needs from the past (convolution taps, cached keys and values) is in it.
"""

from typing import Any, ClassVar, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from engram.kernels.rows import select_rows

State = Any
METRICS = "intermediates"
"""flax collection in which a memory leaves numbers to log, `self.sow(METRICS, name, scalar)`; read by `sown`."""


def where_reset(reset: jax.Array, fresh: State, old: State) -> State:
    """`fresh` where `reset[B]`, else `old`, leaf by leaf: the clearing of a state before a step.

    The contract's name for `engram.kernels.rows.select_rows`, which says how it selects.
    """
    return select_rows(reset, fresh, old)


def sown(variables: Any) -> dict[str, jax.Array]:
    """Numbers that memories left in what `apply(..., mutable=[METRICS])` returns beside its results, float32, by name;
    the mean over layers and calls."""
    numbers: dict[str, list[jax.Array]] = {}
    for path, number in jax.tree_util.tree_flatten_with_path(variables.get(METRICS, {}))[0]:
        name = next(key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey))
        numbers.setdefault(name, []).append(jnp.asarray(number, jnp.float32))
    return {name: jnp.stack(values).mean() for name, values in numbers.items()}


Group = Literal["windows", "recurrent", "diagonal", "matrix", "attention"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Groups of memories, in the order of the documentation."""


class About(NamedTuple):
    """What the documentation says of a memory beside what can be counted: a row of its tables."""

    group: Group
    """Kind of state: the last inputs, units that see each other, a diagonal or a matrix that is linear in its past, or
    averages by attention."""
    equation: str
    """The recurrence of the default in a line of plain text; `'` marks the state before, `*` a product by elements."""
    source: str
    """Authors, venue and year; then the relatives that options make."""
    home: str = ""
    """Address of the paper."""


class Memory(nn.Module):
    """Maps `x[T, B, width]` to `y[T, B, width]` and carries a state from chunk to chunk."""

    about: ClassVar[About | None] = None
    """The row in the tables of the documentation, which every registered memory has."""
    whole: ClassVar[bool] = False
    """Whether it is a block with norms and sums of its own: `Stack` then gives it its input as it is, and takes its
    output as it is."""

    width: int
    """Number of features of input and output."""
    param_dtype: Any = jnp.float32
    """Dtype of parameters and states. Computation follows parameters, state and input."""

    @property
    def forgets_nan_inside(self) -> bool:
        """Whether a reset inside a sequence drops even a NaN from the inputs before it.

        False for memories that multiply steps by weights which can be zero, as `0 * NaN` is NaN: there only a reset at
        the first step of a sequence does.
        """
        return True

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """The state before anything was seen, leaves `[batch, ...]`. Needs no parameters."""
        raise NotImplementedError

    def __call__(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """Learner: a whole sequence. `x[T, B, width]`, `reset[T, B]` bool -> state after it, `y[T, B, width]`."""
        raise NotImplementedError

    def step(self, state: State, x: jax.Array, reset: jax.Array) -> tuple[State, jax.Array]:
        """Actor and imagination: one step. `x[B, width]`, `reset[B]` -> state after it, `y[B, width]`."""
        state, y = self(state, x[None], reset[None])
        return state, y[0]
