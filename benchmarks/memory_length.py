"""What each memory can learn, and whether it goes on for longer than it was trained.

    python -m benchmarks.memory_length [--memories s5 gru ...] [--tasks parity first ... | --all] [--seeds 3]
        [--updates 1000] [--workers 2] [--out FILE.csv] [--figure FILE.png]

Sequences of 64 steps to train on, of 64, 256, 1,024 and 4,096 to test on, with no reset inside. Every prefix is asked,
where a task has an answer for it; the last 32 steps count in a test. A finished cell is a row of the CSV file for each
length, and a run that was broken off goes on behind the last one. Prints a Markdown table and draws it.

What is asked:

- `parity`, `counting`, `s3`, `s5`: the product of all letters so far, in the cyclic groups of 2 and of 3 and in those
  of the permutations of 3 and of 5 things. Nothing may fade, and in the last two nothing may be swapped.
- `first`: the first letter, which is marked, behind random ones.
- `repeat4`, `repeat32`: the letter so many steps before.
- `recall8`, `recall32`: the value that came with a key, of so many pairs (after the multi-query associative recall of
  Arora et al. 2024). Keys are asked again and again.
- `match`: whether the letter is that of 8 steps before.
- `filter`: the state of a hidden Markov chain of two states, of which noisy signs are seen. The score is the part of
  what the exact filter knows beyond the last sign (in nats).
- `selective`: 16 letters among blanks, in their order, at the end (Gu and Dao 2023). `blank`: 8 letters at the start,
  at the end (Arjovsky et al. 2016). The former has two layers, all others one.

Beside these, of the model that was trained on `first`, on letters without a mark: how the root mean square of state and
output grows from step 64 to step 4,096 (`state`, `output`), and how many steps ago an input can be and matter at least
a tenth as much as the current one, of at most 256 (`reach`, by derivatives of the output).
"""

import argparse
import csv
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import one_hot

from benchmarks.memory_probe import parse
from benchmarks.state_tracking import Task as Group
from benchmarks.state_tracking import permutations, words
from engram.atomic_files import replacing
from engram.errors import BadRequest
from engram.kernels.malloc import keep_freed_memory
from engram.memory import MEMORIES, Memory, make_memory
from engram.memory.base import GROUPS

TRAINED, LAST = 64, 32
"""Steps of the sequences trained on, and how many of the last ones count in a test."""
FACTORS = (1, 4, 16, 64)
"""Lengths of the tests, in those of training."""
SHORT, GROWING = 4, 0.6
"""Steps that count in the loss at first, and the part of the updates after which all do."""
WIDTH, BATCH, TESTS = 64, 32, 64
LETTERS = 4
"""How many letters there are where a task does not say otherwise."""
FIELDS = ["memory", "task", "updates", "rate", "seed", "length", "score"]
RESULTS = Path(__file__).parent / "measured" / "memory_length.csv"


class Sequences(NamedTuple):
    """Inputs `x [T, B, features]`, `answer [T, B]`, and the steps at which it is `asked`. For the score of `filter` the
    log probabilities of the `exact` filter, and of who sees the `last` sign alone, `[T, B, classes]`."""

    x: jax.Array
    answer: jax.Array
    asked: jax.Array
    exact: jax.Array | None = None
    last: jax.Array | None = None


class Task(NamedTuple):
    """`draw(key, steps, batch)` makes sequences of any length."""

    draw: Callable[[jax.Array, int, int], Sequences]
    classes: int
    layers: int = 1
    every_prefix: bool = True
    """Whether a longer sequence has the answers of a shorter one at its steps."""

    @property
    def chance(self) -> float:
        return 1 / self.classes


def word_problem(product: np.ndarray) -> Task:
    """The product of all letters so far. `product[state, letter]` is a group's table, state 0 its unit."""
    group = Group(product)

    def draw(key, steps, batch):
        letters, states = words(group, key, steps, batch)
        return Sequences(one_hot(letters, group.size), states, jnp.ones(states.shape, bool))

    return Task(draw, group.size)


def first(key, steps, batch):
    letters = jax.random.randint(key, (steps, batch), 0, LETTERS)
    opening = jnp.zeros((steps, batch, 1)).at[0].set(1)
    answer = jnp.broadcast_to(letters[0], letters.shape)
    return Sequences(jnp.concatenate([one_hot(letters, LETTERS), opening], -1), answer, jnp.ones(answer.shape, bool))


def repeat(distance: int) -> Task:
    def draw(key, steps, batch):
        letters = jax.random.randint(key, (steps, batch), 0, LETTERS)
        answer = jnp.roll(letters, distance, 0)
        return Sequences(
            one_hot(letters, LETTERS), answer, jnp.broadcast_to(jnp.arange(steps)[:, None] >= distance, answer.shape)
        )

    return Task(draw, LETTERS)


def match(key, steps, batch, distance=8):
    """Letters are drawn so that one in two is that of `distance` steps before."""
    fresh_key, same_key = jax.random.split(key)
    fresh = jax.random.randint(fresh_key, (steps, batch), 0, LETTERS)
    same = jax.random.bernoulli(same_key, 0.5, (steps, batch))

    def tick(past, now):
        fresh, same = now
        other = jnp.where(fresh == past[0], (fresh + 1) % LETTERS, fresh)
        letter = jnp.where(same, past[0], other)
        return jnp.concatenate([past[1:], letter[None]]), letter

    letters = jax.lax.scan(tick, jnp.full((distance, batch), -1), (fresh, same))[1]
    letters = jnp.maximum(letters, 0)
    answer = (letters == jnp.roll(letters, distance, 0)).astype(jnp.int32)
    asked = jnp.broadcast_to(jnp.arange(steps)[:, None] >= 2 * distance, answer.shape)
    return Sequences(one_hot(letters, LETTERS), answer, asked)


KEYS, VALUES = 64, 8


def recall(pairs: int) -> Task:
    """A key and its value are one input. Once all pairs were shown, any of their keys is asked at each step."""

    def draw(key, steps, batch):
        order_key, value_key, ask_key = jax.random.split(key, 3)
        keys = jax.vmap(lambda k: jax.random.permutation(k, KEYS)[:pairs])(jax.random.split(order_key, batch))
        values = jax.random.randint(value_key, (batch, pairs), 0, VALUES)
        rows, step = jnp.arange(batch), jnp.arange(steps)[:, None]
        asked = jnp.broadcast_to(step >= pairs, (steps, batch))
        which = jnp.where(asked, jax.random.randint(ask_key, asked.shape, 0, pairs), step)
        answer = values[rows, which]
        shown = jnp.where(asked[..., None], 0, one_hot(answer, VALUES))
        x = jnp.concatenate([one_hot(keys[rows, which], KEYS), shown, asked[..., None]], -1)
        return Sequences(x, answer, asked)

    return Task(draw, VALUES)


STAYS, RIGHT = 0.95, 0.8
"""Probabilities that the hidden state stays, and that a sign shows it."""


def hidden(key, steps, batch):
    start_key, move_key, sign_key = jax.random.split(key, 3)
    state = jax.random.bernoulli(start_key, 0.5, (batch,)).astype(jnp.int32)
    moves = jax.random.bernoulli(move_key, 1 - STAYS, (steps, batch)).astype(jnp.int32).at[0].set(0)
    states = (state + jnp.cumsum(moves, 0)) % 2
    signs = jnp.where(jax.random.bernoulli(sign_key, RIGHT, (steps, batch)), states, 1 - states)
    likelihood = jnp.where(one_hot(signs, 2) == 1, RIGHT, 1 - RIGHT)

    def forward(belief, likelihood):
        belief = (belief * STAYS + belief[:, ::-1] * (1 - STAYS)) * likelihood
        belief /= belief.sum(-1, keepdims=True)
        return belief, belief

    exact = jax.lax.scan(forward, jnp.full((batch, 2), 0.5), likelihood)[1]
    return Sequences(one_hot(signs, 2), states, jnp.ones(states.shape, bool), jnp.log(exact), jnp.log(likelihood))


COPIED, CHOICES = 16, 8


def selective(key, steps, batch):
    place_key, letter_key = jax.random.split(key)
    places = jax.random.uniform(place_key, (steps - COPIED, batch)).argsort(0)[:COPIED]
    letters = jax.random.randint(letter_key, (COPIED, batch), 0, CHOICES)
    at = jnp.full((steps, batch), CHOICES).at[jnp.sort(places, 0), jnp.arange(batch)].set(letters)
    return at_the_end(at, letters)


def blank(key, steps, batch):
    letters = jax.random.randint(key, (8, batch), 0, CHOICES)
    return at_the_end(jnp.full((steps, batch), CHOICES).at[:8].set(letters), letters)


def at_the_end(shown: jax.Array, letters: jax.Array) -> Sequences:
    """Letters shown among blanks (CHOICES), asked for at the end by another sign (CHOICES + 1)."""
    asked = jnp.broadcast_to(jnp.arange(len(shown))[:, None] >= len(shown) - len(letters), shown.shape)
    x = one_hot(jnp.where(asked, CHOICES + 1, shown), CHOICES + 2)
    return Sequences(x, jnp.zeros_like(shown).at[-len(letters) :].set(letters), asked)


def cyclic(n: int) -> np.ndarray:
    return (np.arange(n)[:, None] + np.arange(n)) % n


TASKS = {
    "parity": word_problem(cyclic(2)),
    "s3": word_problem(permutations(3)),
    "first": Task(first, LETTERS),
    "repeat4": repeat(4),
    "recall8": recall(8),
    "counting": word_problem(cyclic(3)),
    "s5": word_problem(permutations(5)),
    "repeat32": repeat(32),
    "recall32": recall(32),
    "match": Task(match, 2),
    "filter": Task(hidden, 2),
    "selective": Task(selective, CHOICES, layers=2, every_prefix=False),
    "blank": Task(blank, CHOICES, every_prefix=False),
}
DEFAULT = ["parity", "s3", "first", "repeat4", "recall8"]
DIAGNOSES = ["state", "output", "reach"]
"""What is said of the model that was trained on `first`."""


class Model(nn.Module):
    """Inputs `[T, B, features]` -> logits of the answer after each `[T, B, classes]`, and the memory's output."""

    memory: Memory
    classes: int

    @nn.compact
    def __call__(self, state: Any, x: jax.Array, reset: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        state, y = self.memory(state, nn.Dense(self.memory.width)(x), reset)
        return state, nn.Dense(self.classes)(y), y


def opened(x: jax.Array, at_start: bool | jax.Array = True) -> jax.Array:
    """A reset at the first step alone; not a constant, which the compiler would take seconds to compute with."""
    return (jnp.arange(len(x))[:, None] == 0) & at_start & (x[..., 0] > -jnp.inf)


def train(task: Task, model: Model, key: jax.Array, updates: int, rate: float) -> Any:
    """The parameters after so many updates."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, updates // 10, updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    init_key, train_key = jax.random.split(key)
    x = jax.eval_shape(lambda: task.draw(key, TRAINED, 1)).x
    fresh = model.memory.initial_state(BATCH)
    empty = jnp.zeros((2, *x.shape[1:]))
    parameters: Any = model.init(init_key, model.memory.initial_state(1), empty, opened(empty))

    def update(carry, now):
        (parameters, optimiser_state), (i, key) = carry, now
        data = task.draw(key, TRAINED, BATCH)
        length = SHORT + (TRAINED - SHORT) * jnp.minimum(i / (GROWING * updates), 1)
        counts = data.asked & ((jnp.arange(TRAINED)[:, None] < length) | (not task.every_prefix))
        first_asked = jnp.argmax(data.asked.any(-1))
        counts |= data.asked & (jnp.arange(TRAINED)[:, None] < first_asked + SHORT)  # something always counts

        def loss(p):
            logits: Any = model.apply(p, fresh, data.x, opened(data.x))[1]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.answer)
            return jnp.sum(losses * counts) / counts.sum()

        change, optimiser_state = optimiser.update(jax.grad(loss)(parameters), optimiser_state, parameters)
        return (optax.apply_updates(parameters, change), optimiser_state), None

    sequence = jnp.arange(updates), jax.random.split(train_key, updates)
    return jax.lax.scan(update, (parameters, optimiser.init(parameters)), sequence)[0][0]


def score(data: Sequences, logits: jax.Array) -> jax.Array:
    """Share of right answers in the steps given that are asked; for `filter` see there."""
    if data.exact is None or data.last is None:
        return jnp.sum((logits.argmax(-1) == data.answer) & data.asked) / data.asked.sum()

    exact = data.exact
    model, last = (jnp.sum(jnp.exp(exact) * (exact - other)) for other in (jax.nn.log_softmax(logits), data.last))
    return 1 - model / last


def scores(task: Task, model: Model, parameters: Any, key: jax.Array, factors: Sequence[int] = FACTORS) -> jax.Array:
    """The score at each length, of the last steps of fresh sequences, which are run a part at a time."""

    def run(data):
        def part(state, now):
            i, data = now
            results: Any = model.apply(parameters, state, data.x, opened(data.x, i == 0))
            state, logits, _ = results
            end = jax.tree.map(lambda leaf: leaf[-LAST:], (data, logits))
            return state, score(*end)

        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, TRAINED, *leaf.shape[1:]), data)
        return jax.lax.scan(part, model.memory.initial_state(TESTS), (jnp.arange(len(parts.x)), parts))[1]

    if task.every_prefix:
        every = run(task.draw(key, TRAINED * max(factors), TESTS))
        return every[jnp.array(factors) - 1]
    return jnp.stack([run(task.draw(key, TRAINED * factor, TESTS))[-1] for factor in factors])


def diagnose(task: Task, model: Model, parameters: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Growth of state and output on letters without an opening, and the reach of a derivative; see the module."""
    data = task.draw(key, TRAINED * max(FACTORS), TESTS)
    x = data.x.at[0, :, -1].set(0)

    def size(tree):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in leaves)) if leaves else jnp.zeros(())

    def part(state, now):
        i, x = now
        results: Any = model.apply(parameters, state, x, opened(x, i == 0))
        state, _, y = results
        return state, (size(state), size(y))

    parts = x.reshape(-1, TRAINED, *x.shape[1:])
    _, sizes = jax.lax.scan(part, model.memory.initial_state(TESTS), (jnp.arange(len(parts)), parts))
    growth = {name: s[-1] / s[0] for name, s in zip(DIAGNOSES[:2], sizes, strict=True)}

    rows, steps = 4, 4 * TRAINED + 1
    weights = jax.random.normal(key, (rows, model.memory.width))

    def seen(x):
        results: Any = model.apply(parameters, model.memory.initial_state(rows), x, opened(x))
        return jnp.sum(results[2][-1] * weights)

    felt = jnp.linalg.norm(jax.grad(seen)(x[:steps, :rows]), axis=(1, 2))[::-1]  # by distance
    near = felt >= 0.1 * felt[0]
    return growth | {"reach": jnp.max(jnp.where(near, jnp.arange(steps), 0))}


Row = dict[str, str]


def layers(name: str, count: int) -> Memory:
    """The stack of a memory, whose options may stand behind its name."""
    kind, options = parse(name)
    return make_memory(kind, WIDTH, count, **options)


def run_cell(name: str, task_name: str, seeds: int, updates: int, rate: float) -> list[Row]:
    """Trains and tests all seeds of one memory on one task: rows of the file."""
    keep_freed_memory()
    task = TASKS[task_name]
    model = Model(layers(name, task.layers), task.classes)

    def one(key):
        train_key, test_key, noise_key = jax.random.split(key, 3)
        parameters = train(task, model, train_key, updates, rate)
        told = diagnose(task, model, parameters, noise_key) if task_name == "first" else {}
        return scores(task, model, parameters, test_key), told

    scored, told = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))
    found = [(task_name, TRAINED * factor, np.asarray(scored)[:, i]) for i, factor in enumerate(FACTORS)]
    found += [(diagnosis, TRAINED * max(FACTORS), np.asarray(values)) for diagnosis, values in told.items()]
    return [
        dict(zip(FIELDS, (name, what, str(updates), str(rate), str(seed), str(length), f"{value:.4g}"), strict=True))
        for what, length, values in found
        for seed, value in enumerate(values)
        if not np.isnan(value)  # the growth of no state
    ]


def read(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    """All rows, sorted, in place of the file."""
    memories = {name: i for i, name in enumerate(MEMORIES)}
    tasks = {name: i for i, name in enumerate([*TASKS, *DIAGNOSES])}
    rows.sort(key=lambda r: (memories.get(r["memory"], len(memories)), r["memory"], tasks[r["task"]], int(r["seed"])))
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def values(rows: list[Row], memory: str, task: str, length: int) -> list[float]:
    """The numbers of all seeds."""
    wanted = (memory, task, str(length))
    return [float(r["score"]) for r in rows if (r["memory"], r["task"], r["length"]) == wanted]


def lasts(rows: list[Row], memory: str, task: str) -> bool:
    """Learned (the median seed is over halfway from chance to all), and at 16 times the length as good but for a tenth
    of that."""
    chance = TASKS[task].chance
    short, long = (np.median(values(rows, memory, task, TRAINED * factor)) for factor in (1, 16))
    return bool(short - chance > 0.5 * (1 - chance) and long - chance >= 0.9 * (short - chance))


def table(rows: list[Row], names: Sequence[str]) -> str:
    """Rows are memories. A cell has all seeds, in percent, at 64 and at 1,024 steps."""
    present = {row["task"] for row in rows}
    tasks = [task for task in TASKS if task in present]
    heads = [f"{task} ({100 * TASKS[task].chance:.0f})" for task in tasks]
    heads += ["state at 4,096 / 64", "reach"] if "reach" in present else []
    lines = [f"| memory | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in names:
        cells = []
        for task in tasks:
            short, long = (values(rows, name, task, TRAINED * factor) for factor in (1, 16))
            words = [" ".join(f"{100 * value:.0f}" for value in seeds) for seeds in (short, long)]
            cells.append(f"{words[0]}; {words[1]}" + (" *" if lasts(rows, name, task) else "") if short else "")
        if "reach" in present:
            grown, reach = (values(rows, name, what, TRAINED * max(FACTORS)) for what in ("state", "reach"))
            cells += [" ".join(f"{x:.2g}" for x in grown), " ".join(f"{x:.0f}" for x in reach)]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], names: Sequence[str], out: Path) -> None:
    """A field of squares: memories below each other, tasks side by side, each at all lengths."""
    from matplotlib.figure import Figure

    present = {row["task"] for row in rows}
    tasks = [task for task in TASKS if task in present]
    figure = Figure(figsize=(2.2 + 1.5 * len(tasks), max(3.0, 1.4 + 0.24 * len(names))), layout="constrained")
    grid: Any = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    image: Any = None
    for axes, task in zip(grid, tasks, strict=True):
        chance, field = TASKS[task].chance, np.full((len(names), len(FACTORS)), np.nan)
        for (i, name), (j, factor) in itertools.product(enumerate(names), enumerate(FACTORS)):
            if seeds := values(rows, name, task, TRAINED * factor):
                field[i, j] = (np.median(seeds) - chance) / (1 - chance)
        image = axes.imshow(field, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_title(task, fontsize=10)
        axes.set_xticks(range(len(FACTORS)), [f"{TRAINED * factor:,}" for factor in FACTORS], fontsize=7, rotation=60)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    figure.supxlabel("steps of the test (trained on 64)", fontsize=9)
    figure.colorbar(image, ax=list(grid), label="median seed: 0 chance, 1 all right", fraction=0.03)
    with replacing(out) as partial:
        figure.savefig(partial, dpi=110, format=out.suffix[1:] or "png")


def by_group(names: Iterable[str]) -> list[str]:
    """Registered memories in the order of their groups, then others."""
    groups = [*GROUPS, None]

    def place(name):
        about = getattr(MEMORIES.get(name), "about", None)
        return groups.index(about.group if about else None)

    return sorted(names, key=lambda name: (place(name), name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--memories",
        nargs="+",
        default=sorted(MEMORIES),
        metavar="NAME",
        help='names, each with options or without: "deltanet negative=true updates=2" (default: all registered)',
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=DEFAULT, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--all", action="store_true", help="all tasks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1e-2, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells at once")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE.csv")
    parser.add_argument("--figure", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    try:
        for name in arguments.memories:
            layers(name, 1)
    except BadRequest as error:
        parser.error(str(error))

    rows = read(arguments.out)
    settings = (arguments.seeds, arguments.updates, arguments.rate)
    same = [r for r in rows if (r["updates"], r["rate"]) == (str(arguments.updates), str(arguments.rate))]
    wanted = [
        (name, task)
        for name in arguments.memories
        for task in (TASKS if arguments.all else arguments.tasks)
        if len(values(same, name, task, TRAINED)) < arguments.seeds
    ]
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        futures = {pool.submit(run_cell, name, task, *settings): (name, task) for name, task in wanted}
        for done, future in enumerate(as_completed(futures), 1):
            name, task = futures[future]
            new = future.result()
            replaced = {(r["memory"], r["task"]) for r in new}
            rows = [r for r in rows if (r["memory"], r["task"]) not in replaced] + new
            write(arguments.out, rows)
            shown = ", ".join(f"{x:.2f}" for x in values(rows, name, task, TRAINED))
            print(f"{done} of {len(wanted)}: {name}, {task}: {shown}", file=sys.stderr, flush=True)
    names = by_group(dict.fromkeys(r["memory"] for r in rows))
    print(table(rows, names))
    if arguments.figure:
        draw(rows, names, arguments.figure)


if __name__ == "__main__":
    main()
