"""How many updates each memory takes until it remembers, on three tasks that need nothing else.

    python -m benchmarks.memory_probe [--tasks bit first previous] [--memories gru "mamba2 start=published" ...]
        [--seeds 5] [--updates 3000] [--rate 1e-3] [--out FILE.jsonl]

- `bit`: a bit is shown at the first step and asked for at the 31st. In between six of eight categorical inputs are
  noise, as the latents of a world model are.
- `first`: one of four suits is shown at each of 52 steps, and at each the first one is asked for.
- `previous`: the same, and at each step the suit of 4 steps ago is asked for.

Two layers of width 64 between small networks, batches of 16, LaProp, as in the small presets of the world model. A task
is learned at the first check, every 250 updates, at which the last 100 batches were answered correctly to 98 %. A
memory may have options after its name. Prints a Markdown table: updates of each seed, "-" for those that have not
learned it, with the accuracy of these. With `--out`, results go to that file as lines of JSON, and those that are there
are not computed again.

As in a world model, every step counts in the loss, those at which nothing is asked too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from engram.agents.drama.laprop import laprop
from engram.errors import BadRequest
from engram.kernels.malloc import keep_freed_memory
from engram.memory import MEMORIES, Memory, make_memory
from engram.memory.layers import Dense

BATCH, WIDTH, CHECK, LAST, ENOUGH = 16, 64, 250, 100, 0.98
"""Episodes of an update, width, updates between checks, batches that a check looks at, accuracy that is enough."""


class Batch(NamedTuple):
    x: jax.Array
    """`[T, B, features]`."""
    answer: jax.Array
    """`[T, B]`: 0 where nothing is asked."""


def bit(key: jax.Array, hold: int = 30, categoricals: int = 8, classes: int = 8) -> Batch:
    """A bit at step 0 among noise; asked for at step `hold`."""
    bit_key, noise_key = jax.random.split(key)
    shown = jax.random.bernoulli(bit_key, 0.5, (BATCH,)).astype(jnp.int32)
    inputs = jax.random.randint(noise_key, (hold + 1, BATCH, categoricals), 0, classes)
    inputs = inputs.at[:, :, :2].set(0).at[0, :, 0].set(1 + shown).at[hold, :, 1].set(1)
    answer = jnp.zeros((hold + 1, BATCH), jnp.int32).at[hold].set(1 + shown)
    return Batch(jax.nn.one_hot(inputs, classes).reshape(hold + 1, BATCH, -1), answer)


def suits(back: int | None, steps: int = 52) -> Callable[[jax.Array], Batch]:
    """One of four suits a step. Asked for at every step: the first one, or that of `back` steps ago."""

    def batch(key):
        shown = jax.random.randint(key, (steps, BATCH), 0, 4)
        if back is None:
            answer = jnp.broadcast_to(1 + shown[0], shown.shape)
        else:
            answer = jnp.where(jnp.arange(steps)[:, None] >= back, 1 + jnp.roll(shown, back, 0), 0)
        return Batch(jax.nn.one_hot(shown, 4), answer)

    return batch


TASKS: dict[str, Callable[[jax.Array], Batch]] = {"bit": bit, "first": suits(None), "previous": suits(4)}


class Model(nn.Module):
    """`[T, B, features]` -> logits of the answers 0 to 4, `[T, B, 5]`."""

    memory: Memory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Not a constant, which the compiler would take seconds to compute with.
        opened = (jnp.arange(len(x))[:, None] == 0) & (x[..., 0] >= 0)
        y = nn.silu(nn.RMSNorm(1e-5)(Dense(WIDTH)(x)))
        _, y = self.memory(self.memory.initial_state(x.shape[1]), y, opened)
        y = nn.silu(nn.RMSNorm(1e-5)(Dense(WIDTH)(nn.RMSNorm(1e-5)(y))))
        return Dense(5)(y)


def learn(task: str, memory: Memory, seeds: int, updates: int, rate: float) -> tuple[list[int | None], list[float]]:
    """Train one model a seed. -> updates until each had learned, None for those that did not; their last accuracies."""
    model, make = Model(memory), TASKS[task]
    optimiser = optax.chain(optax.clip_by_global_norm(1000.0), laprop(rate, warmup=100))

    def init(key):
        parameters = model.init(key, make(key).x)
        return parameters, optimiser.init(parameters)

    def update(carry, key):
        parameters, optimiser_state = carry
        batch = make(key)
        asked = batch.answer > 0

        def loss(p):
            logits: Any = model.apply(p, batch.x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.answer)
            return losses.mean(), ((logits.argmax(-1) == batch.answer) & asked).sum() / asked.sum()

        (_, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        change, optimiser_state = optimiser.update(gradient, optimiser_state, parameters)
        return (optax.apply_updates(parameters, change), optimiser_state), accuracy

    @jax.jit
    @jax.vmap
    def check(carry, key):
        carry, accuracy = jax.lax.scan(update, carry, jax.random.split(key, CHECK))
        return carry, accuracy[-LAST:].mean()

    keys = jax.random.split(jax.random.key(0), seeds)
    carry = jax.jit(jax.vmap(init))(keys)
    learned: list[int | None] = [None] * seeds
    accuracies = np.zeros(seeds)
    for done in range(CHECK, updates + 1, CHECK):
        carry, accuracy = check(carry, jax.vmap(lambda key, done=done: jax.random.fold_in(key, done))(keys))
        for seed, value in enumerate(np.asarray(accuracy)):
            if learned[seed] is None:
                accuracies[seed] = value
                learned[seed] = done if value >= ENOUGH else None
        if None not in learned:
            break
    return learned, [round(float(value), 3) for value in accuracies]


def parse(memory: str) -> tuple[str, dict[str, Any]]:
    """`mamba2 start=published` -> the name and the options."""
    name, *options = memory.split()
    return name, dict(option.split("=") for option in options)


def row(result: dict[str, Any]) -> str:
    cells = [
        str(learned or f"- ({accuracy:.2f})")
        for learned, accuracy in zip(result["learned"], result["accuracy"], strict=True)
    ]
    return f"| {result['task']} | {result['memory']} | {', '.join(cells)} | {result['wall_s']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--memories", nargs="+", default=sorted(MEMORIES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        made = {}
        for memory in arguments.memories:
            name, options = parse(memory)
            made[memory] = make_memory(name, WIDTH, arguments.layers, rms=True, **options)
    except BadRequest as error:
        parser.error(str(error))

    old = []
    if arguments.out and arguments.out.exists():
        old = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    print("| task | memory | updates until learned, each seed | wall s |\n|---|---|---|---|")
    for task in arguments.tasks:
        for memory, stack in made.items():
            asked = {"task": task, "memory": memory} | {
                key: getattr(arguments, key) for key in ("seeds", "updates", "rate", "layers")
            }
            result = next((line for line in old if asked.items() <= line.items()), None)
            if result is None:
                start = time.perf_counter()
                learned, accuracy = learn(task, stack, arguments.seeds, arguments.updates, arguments.rate)
                seconds = round(time.perf_counter() - start, 1)
                result = {**asked, "learned": learned, "accuracy": accuracy, "wall_s": seconds}
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(result) + "\n")
            print(row(result), flush=True)


if __name__ == "__main__":
    main()
