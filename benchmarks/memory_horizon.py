"""How far back each memory sees before it has learned anything: the response of its output to its first input.

    python -m benchmarks.memory_horizon [--memories gru "mamba2 start=published" ...] [--steps 301] [--seeds 4]
        [--picture docs/images/memory-horizon.png]

The size (Frobenius norm) of the derivative of a step's output by the first input, relative to that of the first output,
by the steps between them: one new layer of width 64 after its norm, without the residual, fed with white noise.
Estimated by central differences along random directions; the geometric mean over seeds counts. Rounding hides what is
below about 1e-6. A memory may have options after its name. Prints a Markdown table, and draws a picture of it.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.memory_probe import parse
from engram.errors import BadRequest
from engram.memory import MEMORIES, Memory, find_memory, make_memory
from engram.memory.base import GROUPS

WIDTH, BATCH, DIRECTIONS, STEP = 64, 4, 3, 0.1
"""Width, rows, random directions and the length of a difference along them."""
FLOOR = 1e-6
"""Smallest response that is told from rounding."""
DISTANCES = (1, 3, 10, 30, 100, 300)
ALSO = (
    "gru max_timescale=64",
    "lru min_phase=0",
    "mamba start=published",
    "mamba2 start=published",
    "s5 gain=zoh blocks=1",
)
"""What is shown beside the registered memories as they come."""


def response(memory: Memory, steps: int, seeds: int) -> np.ndarray:
    """Response to the first input `[steps]`, 1 at the first step."""

    def of_seed(key):
        init_key, input_key, direction_key = jax.random.split(key, 3)
        x = jax.random.normal(input_key, (steps, BATCH, WIDTH))
        opened, state = jnp.zeros((steps, BATCH), bool), memory.initial_state(BATCH)
        parameters = memory.init(init_key, state, x[:2], opened[:2])

        def output(first):
            y: Any = memory.apply(parameters, state, x.at[0].add(first), opened)[1]
            return y

        def squares(direction):
            difference = (output(STEP * direction) - output(-STEP * direction)) / (2 * STEP)
            return jnp.square(difference).sum((1, 2))

        directions = jax.random.normal(direction_key, (DIRECTIONS, BATCH, WIDTH))
        return jnp.sqrt(jax.lax.map(squares, directions).sum(0))

    sizes = np.asarray(jax.jit(jax.vmap(of_seed))(jax.random.split(jax.random.key(0), seeds)))
    return np.exp(np.log(np.maximum(sizes / sizes[:, :1], FLOOR / 10)).mean(0))


def row(name: str, values: np.ndarray) -> str:
    cells = [f"{values[k]:.1g}" if values[k] > FLOOR else "0" for k in DISTANCES if k < len(values)]
    return f"| {name} | {' | '.join(cells)} |"


def draw(found: dict[str, np.ndarray], out: Path) -> None:
    """One panel a group of memories; registered defaults are solid lines, those with options dashed."""
    import matplotlib.pyplot as plt  # slow to import

    plt.switch_backend("Agg")
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in sorted(found):
        about = find_memory(parse(name)[0]).about
        groups[about.group if about else "recurrent"].append(name)
    shown = {group: names for group, names in groups.items() if names}
    figure, axes = plt.subplots(2, 3, figsize=(11, 8), layout="constrained", sharex=True, sharey=True)
    for axis, (group, names) in zip(axes.flat, shown.items(), strict=False):
        kinds = list(dict.fromkeys(parse(name)[0] for name in names))
        for name in names:
            kind, options = parse(name)
            values = np.where(found[name] > FLOOR, found[name], np.nan)
            style, color = "--" if options else "-", f"C{kinds.index(kind)}"
            axis.plot(range(1, len(values)), values[1:], style, color=color, label=name, linewidth=1.4)
        axis.set_title(group, fontsize=9)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        # Below the panel, where it hides no line.
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
    for spare in axes.flat[len(shown) :]:
        spare.axis("off")
    figure.supxlabel("steps since the first input", fontsize=9)
    figure.supylabel("response to the first input, relative to that of its own step", fontsize=9)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", default=[*sorted(MEMORIES), *ALSO], metavar="NAME")
    parser.add_argument("--steps", type=int, default=301)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    try:
        layers = {}
        for memory in sorted(arguments.memories):
            name, options = parse(memory)
            layers[memory] = make_memory(name, WIDTH, residual=False, **options)
    except BadRequest as error:
        parser.error(str(error))

    distances = [k for k in DISTANCES if k < arguments.steps]
    print(f"| memory | {' | '.join(f'{k} steps' for k in distances)} |\n|---|{'---|' * len(distances)}")
    found = {}
    for name, layer in layers.items():
        found[name] = response(layer, arguments.steps, arguments.seeds)
        print(row(name, found[name]), flush=True)
    if arguments.picture:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
