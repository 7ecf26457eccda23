"""Numbers of an agent's settings are arguments of its programs: another value needs no other program, and is heeded."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.extend.core import Jaxpr, Var

from engram.agents import registry
from engram.agents.offline.cql import CQL, CQLSettings
from engram.agents.offline.iql import IQL, IQLSettings
from engram.agents.offline.odice import ODICE, ODICESettings
from engram.configs.presets import PRESETS
from engram.training.arguments import arguments_of, with_arguments
from engram.training.programs import compile_agent, seed_keys
from tests.agents.drama.test_drama import agent_of as drama_agent_of
from tests.agents.offline import cases
from tests.agents.offline.test_sequence_policy import agent_of as sequence_agent_of
from tests.agents.offline.test_td3bc import agent as td3bc_agent

PPO: Any = PRESETS["debug"]


def ppo(**changed: Any) -> Any:
    return registry.build(replace(PPO, memory="none", ppo=replace(PPO.ppo, num_envs=4, num_steps=8, **changed)))


def conservative() -> Any:
    config: Any = PRESETS["conservative"]
    return registry.build(replace(config, memory="none", ppo=replace(config.ppo, num_envs=4, num_steps=8)))


def values(kind: Any, settings: Any) -> Any:
    return kind.of(cases.grid_episodes(), cases.grid_environment(), settings(**cases.VALUE))


AGENTS = {
    "ppo": ppo,
    "conservative": conservative,
    "drama": lambda: drama_agent_of(behaviour="ppo"),
    "sequence": sequence_agent_of,
    "iql": lambda: values(IQL, IQLSettings),
    "cql": lambda: values(CQL, CQLSettings),
    "odice": lambda: values(ODICE, ODICESettings),
    "td3bc": td3bc_agent,
}


def other_numbers(owner: Any) -> Any:
    """`owner` with another value of every number that is an argument."""
    changed = {}
    for name, value in ((name, getattr(owner, name)) for name in owner.ARGUMENTS):
        if hasattr(value, "ARGUMENTS"):
            changed[name] = other_numbers(value)
        elif isinstance(value, int | float):
            changed[name] = value + 1 if isinstance(value, int) else 0.9 * value or 0.1
    return replace(owner, **changed)


def numbers_in(arguments: Any) -> dict[str, Any]:
    """Paths and values of the numbers in `arguments`."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, int | float)}


def traced(agent: Any) -> Any:
    def update(arguments: Any, state: Any) -> Any:
        return with_arguments(agent, arguments).update(state)

    return jax.jit(update).trace(arguments_of(agent), jax.eval_shape(agent.init, jax.random.key(0)))


def read(program: Jaxpr) -> Iterator[Var]:
    """Variables that equations of `program` read. Those of calls are read where what they call reads them."""
    for equation in program.eqns:
        inner = [x.jaxpr for x in equation.params.values() if hasattr(x, "jaxpr") and hasattr(x, "consts")]
        if equation.primitive.name in ("jit", "pjit") and len(inner) == 1:
            heeded = set(read(inner[0])) | {x for x in inner[0].outvars if isinstance(x, Var)}
            pairs = zip(equation.invars, inner[0].invars, strict=True)
            yield from (outer for outer, own in pairs if own in heeded and isinstance(outer, Var))
        else:
            yield from (x for x in equation.invars if isinstance(x, Var))


@pytest.mark.parametrize("kind", AGENTS)
def test_another_value_is_the_same_program_which_heeds_each_number(kind):
    agent = AGENTS[kind]()
    first, second = traced(agent), traced(other_numbers(agent))
    before, after = numbers_in(arguments_of(agent)), numbers_in(arguments_of(other_numbers(agent)))
    assert before
    assert all(before[name] != after[name] for name in before)
    assert first.lower().as_text() == second.lower().as_text()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arguments_of(agent))]
    program = first.jaxpr.jaxpr
    heeded = set(read(program))
    ignored = [name for name, x in zip(paths, program.invars, strict=False) if name in before and x not in heeded]
    assert not ignored


def test_arguments_give_what_constants_give():
    agent = ppo(learning_rate=1e-2, entropy=0.1)
    made = compile_agent(agent, 1, 1)
    state, _ = made.chunk(made.init(seed_keys(0, 1)))
    constants = jax.jit(lambda key: agent.update(agent.init(key))[0])(seed_keys(0, 1)[0])
    start = agent.init(seed_keys(0, 1)[0])
    for got, wanted, began in zip(*map(jax.tree.leaves, (state.params, constants.params, start.params)), strict=True):
        np.testing.assert_allclose(got[0], wanted, rtol=0, atol=1e-4)  # Adam divides by small numbers
        assert np.abs(got[0] - began).max() > 1e-3
