"""Memories of one size: what is counted, how close widths come, what is refused, what tables say."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from engram.agents.registry import build
from engram.configs import store
from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.experiments import match
from engram.experiments.cells import Cell
from engram.experiments.compare import cells_of
from engram.experiments.options import Compare
from engram.experiments.tables import columns_table
from engram.memory import MEMORIES, make_memory
from engram.memory.projected import Projected

CONFIG: Any = store.override(PRESETS["popgym-fast"], {"network.width": 128})


def compared(memories: tuple[str, ...], how: Any, config: Any = CONFIG) -> list[Cell]:
    return cells_of(config, "popgym-fast", Compare(memories=memories, match=how), Path("nowhere"))


def parameters_of(config: Any) -> Any:
    """The shapes of a whole agent's parameters."""
    agent: Any = build(config)
    return jax.eval_shape(agent.init, jax.random.key(0)).params


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_of_agents_are_within_the_tolerance_and_the_rest_is_the_same():
    """Counted in whole agents, as training makes them."""
    cells = compared(("gru", "s5", "attention"), "params")
    shapes = [parameters_of(cell.config) for cell in cells]
    sizes = [count(shape["memory"]) for shape in shapes]
    widths = [match.width_of(cell.config) for cell in cells]
    assert len({*widths}) == 3
    assert widths[0] == 128
    assert all(abs(size / sizes[0] - 1) <= match.TOLERANCE for size in sizes), sizes
    around = [jax.tree.map(jnp.shape, {k: v for k, v in shape.items() if k != "memory"}) for shape in shapes]
    assert around[0] == around[1] == around[2]
    unmatched = [count(parameters_of(cell.config)["memory"]) for cell in compared(("gru", "s5"), "none")]
    assert abs(unmatched[1] / unmatched[0] - 1) > 0.3, "at one width they differ"


@pytest.mark.parametrize("how", ["flops", "state"])
def test_operations_and_states_match(how):
    cells = compared(("gru", "lstm"), how)
    sizes = [getattr(match.measured(cell.config), how) for cell in cells]
    assert all(abs(size / sizes[0] - 1) <= match.TOLERANCE for size in sizes), sizes
    if how == "state":
        agents: list[Any] = [build(cell.config) for cell in cells]
        states = [jax.eval_shape(lambda agent=agent: agent.network.initial_state(1)) for agent in agents]
        assert {sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) for state in states} == {512}


FAST = ("gru", "mamba", "s5", "deltanet")
COUNTED_OTHERWISE = ("attention", "s4d")
"""XLA counts selections too, of which attention has many, and several operations for those of complex numbers."""


@pytest.mark.parametrize(
    "memory",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MEMORIES],
)
def test_operations_are_about_those_that_xla_counts(memory):
    """XLA counts exponentials and the like by themselves."""
    stack: Any = match.countable(Projected(64, memory=make_memory(memory, 64)))
    state, x, reset = stack.initial_state(1), jnp.zeros((1, 64)), jnp.zeros(1, bool)
    parameters = jax.eval_shape(stack.init, jax.random.key(0), state, x[None], reset[None])
    step = jax.jit(lambda *inputs: stack.apply(*inputs, method="step"))
    cost = step.lower(parameters, state, x, reset).cost_analysis()
    assert cost is not None
    share = match.sizes(stack).flops / (cost["flops"] + cost.get("transcendentals", 0))
    assert (0.8 < share < 1.2) == (memory not in COUNTED_OTHERWISE), share


def test_what_a_kernel_in_cpp_computes_is_counted_too():
    """A step of attention has one on CPUs."""
    memories: list[Any] = [make_memory("attention", 48, layers=2, backend=backend) for backend in ("auto", "xla")]
    assert match.sizes(memories[0]) == match.sizes(memories[1])


def synthetic(monkeypatch, size, takes=lambda width: True) -> None:
    """Memories whose sizes are a function of their width."""

    def measured(config: Any) -> match.Sizes:
        if not takes(width := config.network.memory_width):
            raise BadRequest("not this width")
        return match.Sizes(*([size(width)] * 3))

    monkeypatch.setattr(match, "measured", measured)


@pytest.mark.parametrize("target", [1, 500, 4097, 70_000, 3_000_000])
@pytest.mark.parametrize("divisor", [1, 4, 12, 32])
def test_no_other_width_is_closer(target, divisor, monkeypatch):
    synthetic(monkeypatch, lambda width: width * width + 3 * width, lambda width: width % divisor == 0)
    found = match.nearest(CONFIG, target, "params", 128).network.memory_width
    best = min(range(divisor, 4000, divisor), key=lambda width: abs(width * width + 3 * width - target))
    assert found == best


def test_of_equal_widths_the_one_at_the_start_is_taken(monkeypatch):
    synthetic(monkeypatch, lambda width: 64)
    assert match.nearest(CONFIG, 64, "state", 128).network.memory_width == 128


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(BadRequest, match=r"s5 cannot be matched to gru by its width.*bytes of state are 128"):
        compared(("gru", "s5"), "state", store.override(CONFIG, {"network.memory_options": ["s5.state=32"]}))
    with pytest.raises(BadRequest, match="none has no state: name another first"):
        compared(("none", "gru"), "state")
    with pytest.raises(BadRequest, match="--match is for agents with a memory of its own width, which lsd has not"):
        cells_of(PRESETS["lsd"], "lsd", Compare(match="params"), Path("nowhere"))


def test_tables_show_sizes_whatever_was_matched():
    plain = columns_table(compared(("gru", "none"), "none"), "none", {})
    assert "| gru | 128 | 99,072 | " in plain, "3 gates of 2 products of 128 x 128 and their biases, and a LayerNorm"
    assert "| none | 128 | 49,792 | " in plain, "3 products and their biases, and a LayerNorm"
    assert "projections" not in plain
    cells = compared(("gru", "lstm", "mamba2", "none"), "params")
    table = columns_table(cells, "params", {"gru": {"ppo.clip": 0.1}})
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert rows["gru"].endswith("| 512 | ppo.clip=0.1 |")
    assert "%" not in rows["gru"]
    assert "%) | " in rows["none"]
    assert re.search(r" \([+-]0\.\d%\) \|", rows["lstm"])
    assert "%) ! |" in rows["mamba2"], "it takes multiples of 32 alone"
    assert f"with ! where it is over {match.TOLERANCE:.0%}" in table
    assert columns_table([Cell(replace(PRESETS["lsd"]), Path("nowhere"))], "none", {}) == ""


def test_drama_matches_its_memory_too():
    preset: Any = PRESETS["drama-catch"]
    cells = cells_of(preset, "drama-catch", Compare(memories=("gru", "lstm"), match="params"), Path("nowhere"))
    sizes = []
    for cell in cells:
        agent: Any = build(cell.config)
        shapes = jax.eval_shape(agent.init, jax.random.key(0))
        sizes.append(count(shapes.world["memory"]))
    assert abs(sizes[1] / sizes[0] - 1) <= match.TOLERANCE
