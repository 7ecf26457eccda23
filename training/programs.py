"""The compiled programs of a run: all seeds side by side, a chunk of updates in one program."""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from engram.training.types import Agent, Key, PyTree


def seed_keys(seed: int, seeds: int) -> Key:
    """One key per seed, `[seeds]`: the i-th of a run with `seed` is the only one of a run with `seed + i`."""
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds, dtype=jnp.uint32))


def over_seeds(f: Callable, seeds: int) -> Callable:
    """`f` of one seed as a function of all: arguments and results get a leading axis `[seeds, ...]`, named "seeds".

    A single seed is not batched: programs of many small products are three times slower with an axis of one.
    """
    if seeds > 1:
        return jax.vmap(f, axis_name="seeds")

    def alone(*args):
        return jax.tree.map(lambda x: x[None], f(*jax.tree.map(lambda x: x[0], args)))

    return alone


def evaluation(agent: Agent, seeds: int) -> Callable:
    """`agent.evaluate` for all seeds: states and keys `[seeds, ...]` -> metrics `[seeds]`."""
    return over_seeds(functools.partial(agent.evaluate, axis_name="seeds" if seeds > 1 else None), seeds)


def with_data(agent: Agent, data: PyTree) -> Agent:
    """`agent` with `data` in place of its own, if it has any."""
    return agent if data is None else dataclasses.replace(cast(Any, agent), data=data)


@dataclass(frozen=True)
class Compiled:
    """The three programs of a run, compiled ahead of time for all seeds."""

    init: Callable[[Key], PyTree]
    """Keys `[seeds]` -> states `[seeds, ...]`."""
    chunk: Callable[[PyTree], tuple[PyTree, dict[str, jax.Array]]]
    """States -> states, metrics `[updates, seeds, ...]`. Consumes the states that it is given."""
    evaluate: Callable[[PyTree, Key], dict[str, jax.Array]]
    """States, keys -> metrics `[seeds]`."""
    template: PyTree
    """Structure, shapes and dtypes of the states."""
    action: jax.ShapeDtypeStruct | None
    """Shape and dtype of one update's actions, `[seeds, T, B, ...]`; None unless they are logged."""
    seconds: float
    """Seconds that compilation took."""


def compile_agent(agent: Agent, seeds: int, updates_per_chunk: int) -> Compiled:
    """Compiles `init`, one chunk of updates, and `evaluate`, for all seeds together."""
    started = time.perf_counter()
    data = getattr(agent, "data", None)

    def init_all(keys, data):
        return over_seeds(with_data(agent, data).init, seeds)(keys)

    def chunk(states, data):
        update_all = over_seeds(with_data(agent, data).update, seeds)
        return jax.lax.scan(lambda s, _: update_all(s), states, None, length=updates_per_chunk)

    def evaluate_all(states, keys, data):
        return evaluation(with_data(agent, data), seeds)(states, keys)

    def compiled(lowered):
        return functools.partial(lowered.compile(), data=data)

    keys = jax.eval_shape(lambda: seed_keys(0, seeds))
    init = jax.jit(init_all).lower(keys, data=data)
    template = init.out_info
    update = jax.jit(chunk, donate_argnums=0).lower(template, data=data)
    action = update.out_info[1].get("replay/action")
    return Compiled(
        init=compiled(init),
        chunk=compiled(update),
        evaluate=compiled(jax.jit(evaluate_all).lower(template, keys, data=data)),
        template=template,
        action=None if action is None else jax.ShapeDtypeStruct(action.shape[1:], action.dtype),
        seconds=time.perf_counter() - started,
    )
