"""State tracking: which memories can follow a state that never fades, and go on for longer than they were trained.

    python -m benchmarks.state_tracking [--tasks parity s3] [--seeds 3] [--updates 1000] [--models NAME ...]

Two word problems, every prefix of the word asked: the parity of a string of bits, and the product of a word of
permutations of three things (the group S3, which is not commutative). Trained on words of 40, of which the first 3
count at the start and all after 60 % of the updates; tested on words of 256. A memory whose state only decays, by
factors in (0, 1), cannot learn even parity for all lengths (Grazzi et al. 2025); a factor of -1 can, and two
reflections a step (DeltaProduct, n = 2) make any permutation of three things (Siems et al. 2025).

Prints a Markdown table: accuracy on the last 32 steps of words of 40 and of 256, each seed, with chance beside it.
"""

import argparse
import itertools
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from engram.kernels.malloc import keep_freed_memory
from engram.memory import Memory, make_memory

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {}),
    "deltanet": ("deltanet", {"conv": 1}),
    "deltanet, negative": ("deltanet", {"conv": 1, "negative": True}),
    "deltanet, negative, 2 updates": ("deltanet", {"conv": 1, "negative": True, "updates": 2}),
}
"""The delta rule is left without its convolution: to see other letters beside the last makes S3 harder to learn."""
TRAINED, TESTED, LAST = 40, 256, 32
"""Steps of the words trained on and tested on, and how many of their last steps count in a test."""
SHORT, GROWING = 3, 0.6
"""Steps that count in the loss at first, and the part of the updates after which all do."""


class Task(NamedTuple):
    """A group: `product[state, letter]` is the state after the letter. State 0 is its unit."""

    product: np.ndarray

    @property
    def size(self) -> int:
        return len(self.product)


def permutations(n: int) -> np.ndarray:
    """The table of products of the permutations of n things."""
    elements = list(itertools.permutations(range(n)))
    index = {element: i for i, element in enumerate(elements)}
    return np.array([[index[tuple(a[b[i]] for i in range(n))] for b in elements] for a in elements])


TASKS = {"parity": Task(permutations(2)), "s3": Task(permutations(3))}


class Model(nn.Module):
    """Letters `[T, B]` -> logits of the state after each `[T, B, size]`."""

    memory: Memory
    size: int

    @nn.compact
    def __call__(self, letters: jax.Array) -> jax.Array:
        x = nn.Embed(self.size, self.memory.width)(letters)
        # Not a constant, which the compiler would take seconds to compute with.
        opened = (jnp.arange(len(letters))[:, None] == 0) & (letters >= 0)
        _, y = self.memory(self.memory.initial_state(letters.shape[1]), x, opened)
        return nn.Dense(self.size)(y)


def words(task: Task, key: jax.Array, steps: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Random letters `[steps, batch]`, and the state after each."""
    letters = jax.random.randint(key, (steps, batch), 0, task.size)
    product = jnp.asarray(task.product)

    def follow(state, letter):
        state = product[state, letter]
        return state, state

    return letters, jax.lax.scan(follow, jnp.zeros(batch, jnp.int32), letters)[1]


def accuracies(task: Task, memory: Memory, key: jax.Array, updates: int, batch: int, rate: float) -> jax.Array:
    """Train one model; its accuracy on the last steps of fresh words of `TRAINED` and of `TESTED` steps."""
    model = Model(memory, task.size)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, updates // 10, updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    init_key, train_key, *test_keys = jax.random.split(key, 4)
    parameters: Any = model.init(init_key, jnp.zeros((TRAINED, 1), jnp.int32))

    def update(carry, now):
        (parameters, optimiser_state), (i, key) = carry, now
        letters, states = words(task, key, TRAINED, batch)
        length = SHORT + (TRAINED - SHORT) * jnp.minimum(i / (GROWING * updates), 1)
        counts = (jnp.arange(TRAINED) < length)[:, None]

        def loss(p):
            logits: Any = model.apply(p, letters)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, states)
            return jnp.sum(losses * counts) / (counts.sum() * batch)

        change, optimiser_state = optimiser.update(jax.grad(loss)(parameters), optimiser_state, parameters)
        return (optax.apply_updates(parameters, change), optimiser_state), None

    sequence = jnp.arange(updates), jax.random.split(train_key, updates)
    (parameters, _), _ = jax.lax.scan(update, (parameters, optimiser.init(parameters)), sequence)

    def test(key, steps):
        letters, states = words(task, key, steps, 256)
        logits: Any = model.apply(parameters, letters)
        return (logits.argmax(-1) == states)[-LAST:].mean()

    return jnp.stack([test(k, steps) for k, steps in zip(test_keys, (TRAINED, TESTED), strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=str([*MODELS])
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64, help="words per update")
    parser.add_argument("--rate", type=float, default=2e-2, help="highest learning rate")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()

    print(f"| task | memory | chance | at {TRAINED} steps (trained) | at {TESTED} steps | wall s |")
    print("|---|---|---|---|---|---|")
    for task_name, name in itertools.product(arguments.tasks, arguments.models):
        task, (kind, options) = TASKS[task_name], MODELS[name]
        memory = make_memory(kind, arguments.width, arguments.layers, **options)
        start = time.perf_counter()

        @jax.jit
        def run(keys, task=task, memory=memory):
            settings = (arguments.updates, arguments.batch, arguments.rate)
            return jax.vmap(lambda key: accuracies(task, memory, key, *settings))(keys)

        result = np.asarray(run(jax.random.split(jax.random.key(0), arguments.seeds)))
        seconds = time.perf_counter() - start
        trained, tested = (", ".join(f"{x:.3f}" for x in column) for column in result.T)
        print(f"| {task_name} | {name} | {1 / task.size:.3f} | {trained} | {tested} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
