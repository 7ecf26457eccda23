"""Training data that stay on the host: what updates draw is gathered there, ahead of the program that learns from it.

Which steps an update draws depends on the agent's random key alone. So a small program draws them, from the keys of the
states, for some updates at once, a piece of the chunk; a thread gathers their rows while the piece before is learned
from. Nothing is added to the state, and no call to the host runs inside of the program.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from engram.training.types import Key, Metrics, PyTree


class Feed(Protocol):
    """How an agent, whose attribute `data` is on the host, is given what it draws of them."""

    @property
    def most(self) -> int:
        """Bytes that are gathered at a time."""
        ...

    @property
    def on_device(self) -> PyTree:
        """Shapes and dtypes of the same data on the device."""
        ...

    def draw(self, key: Key) -> tuple[Key, jax.Array]:
        """What one update does with the key of the state: the key after it, and the numbers `[draws, B]` it draws."""
        ...

    def gather(self, numbers: np.ndarray) -> tuple[np.ndarray, PyTree]:
        """What has these numbers `[..., draws, B]`: its numbers among what was gathered, and that, as data."""
        ...


@dataclass(frozen=True)
class Pieces:
    """How a chunk of updates is divided, so that what a piece draws takes no more than `Feed.most` bytes."""

    counts: tuple[int, ...]
    """Updates of each piece; the first is the longest."""
    numbers: jax.ShapeDtypeStruct
    """Shape and dtype of what the longest piece draws, `[seeds, updates, draws, B]`."""
    data: PyTree
    """Shapes and dtypes of the data that are gathered of it."""
    draw: Any
    """Compiled: keys `[seeds]` -> keys after each of the updates, numbers `[updates, seeds, draws, B]`."""

    @classmethod
    def of(cls, feed: Feed, updates: int, keys: jax.ShapeDtypeStruct) -> "Pieces":
        """Of `updates` of states with such `keys[seeds]`."""
        draw_all = jax.vmap(feed.draw)
        drawn = jax.eval_shape(draw_all, keys)[1]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(feed.gather(np.zeros(drawn.shape, drawn.dtype))))
        # Loops over one update would be compiled away, to other bits. So there are none, unless chunks have one.
        longest = max(min(updates, 2), -(-updates // -(-updates // max(1, min(feed.most // size, updates)))))
        whole, rest = divmod(updates, longest)

        def draw(keys: Key) -> tuple[Key, jax.Array]:
            def step(keys, _):
                keys, drawn = draw_all(keys)
                return keys, (keys, drawn)

            return jax.lax.scan(step, keys, None, length=longest)[1]

        shape = (drawn.shape[0], longest, *drawn.shape[1:])
        return cls(
            counts=(longest,) * whole + ((rest,) if rest else ()),
            numbers=jax.ShapeDtypeStruct(shape, drawn.dtype),
            data=jax.eval_shape(lambda: feed.gather(np.zeros(shape, drawn.dtype))[1]),
            draw=jax.jit(draw).lower(keys).compile(),
        )

    def arguments(self, agent: dict[str, PyTree]) -> tuple[dict[str, PyTree], Any]:
        """Arguments of the program that learns: those of the agent, and how many updates there are."""
        return {**agent, "data": self.data}, np.int32(0)


def learn(
    update: Callable[[PyTree, jax.Array], tuple[PyTree, Metrics]], states: PyTree, numbers: jax.Array, count: jax.Array
) -> tuple[PyTree, Metrics]:
    """The first `count` of the updates that draw `numbers[updates, seeds, ...]` -> states, metrics `[updates, ...]`,
    of which the rest are 0. So one program does pieces of every length."""
    if len(numbers) == 1:
        states, metrics = update(states, numbers[0])
        return states, jax.tree.map(lambda x: x[None], metrics)

    # The numbers are carried, so that an update finds them as they are. When it looked them up, last bits of gradients
    # were others than with data on the device (seen with `dm` at full size; why was not found out).
    def step(index: jax.Array, carry: tuple[PyTree, Metrics, jax.Array]) -> tuple[PyTree, Metrics, jax.Array]:
        states, metrics = update(carry[0], carry[2])
        following = jax.lax.dynamic_index_in_dim(numbers, index + 1, keepdims=False)
        return states, jax.tree.map(lambda all, new: all.at[index].set(new), carry[1], metrics), following

    made = jax.eval_shape(update, states, numbers[0])[1]
    blank = jax.tree.map(lambda x: jnp.zeros((len(numbers), *x.shape), x.dtype), made)
    states, metrics, _ = jax.lax.fori_loop(0, count, step, (states, blank, numbers[0]))
    return states, metrics


class Ahead:
    """What one piece after another draws, gathered in a thread while the piece before is learned from."""

    def __init__(self, feed: Feed, pieces: Pieces):
        self._feed, self._pieces = feed, pieces
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._next: Future[tuple[Key, np.ndarray, PyTree]] | None = None
        self._expected = np.zeros(0)

    def run(self, program: Callable[..., Any], states: PyTree, arguments: dict[str, PyTree]) -> tuple[PyTree, Metrics]:
        """One chunk of `program`: states, numbers, arguments of `Pieces.arguments` -> states, metrics."""
        metrics, counts = [], self._pieces.counts
        now = _on_host(states.key)
        if self._next is None or not np.array_equal(self._expected, now):
            self._begin(jax.random.wrap_key_data(jnp.asarray(now), impl=jax.random.key_impl(states.key)), 0)
        for index, count in enumerate(counts):
            assert self._next is not None
            keys, numbers, data = self._next.result()
            # This piece and the next one are all that is held.
            self._begin(keys, (index + 1) % len(counts))
            states, made = program(states, numbers, arguments=({**arguments, "data": data}, np.int32(count)))
            metrics.append(jax.tree.map(lambda x, count=count: x[:count], jax.device_get(made)))
            del data
        self._expected = _on_host(states.key)
        return states, jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)

    def _begin(self, keys: Key, index: int) -> None:
        """Has a piece gathered, for states with these keys."""
        self._next = self._thread.submit(self._gather, keys, self._pieces.counts[index])

    def _gather(self, keys: Key, count: int) -> tuple[Key, np.ndarray, PyTree]:
        after, numbers = self._pieces.draw(keys)
        return after[count - 1], *self._feed.gather(np.asarray(numbers).swapaxes(0, 1))


def _on_host(keys: Key) -> np.ndarray:
    return np.array(jax.random.key_data(keys))  # a copy, as states are consumed
