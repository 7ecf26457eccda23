"""Every agent by its name. A new agent is one folder (or file) and one line here.

A line names the agent's `AgentSpec` by where it stands, and the module is imported when the agent is first used. Agents
of other packages come as entry points of the group `engram.agents`, or by the name `my_module:SPEC`.
"""

import jax

from engram import plugins
from engram.agents.common.experiment import Experiment
from engram.agents.common.spec import AgentSpec, Build
from engram.errors import BadRequest, UnknownName
from engram.training.types import Agent

AGENTS: dict[str, str] = {
    "ppo": "engram.agents.ppo.build:PPO_SPEC",
    "conservative": "engram.agents.ppo.build:CONSERVATIVE_SPEC",
    "drama": "engram.agents.drama.build:SPEC",
    "sequence": "engram.agents.offline.build:SEQUENCE_SPEC",
    "values": "engram.agents.offline.build:VALUES_SPEC",
    "lsd": "engram.agents.planners.build:LSD_SPEC",
    "ucrl": "engram.agents.planners.build:UCRL_SPEC",
    "stepmix": "engram.agents.planners.build:STEPMIX_SPEC",
    "dynlin": "engram.agents.planners.build:DYNLIN_SPEC",
    "neucb": "engram.agents.planners.build:NEUCB_SPEC",
}
"""Agents of this suite."""
GROUP = "engram.agents"
"""Group of the entry points of other packages' agents."""


def names() -> list[str]:
    """Names of all registered agents."""
    return list(dict.fromkeys((*AGENTS, *plugins.entry_points(GROUP))))


def find(name: str) -> AgentSpec:
    """The agent of this name.

    Raises:
        UnknownName: there is none.
        BadRequest: what has the name is no agent, or calls itself by another.
    """
    if name in AGENTS or ":" in name:
        spec = plugins.load("agent", AGENTS.get(name, name))
    elif name in plugins.entry_points(GROUP):
        spec = plugins.entry_points(GROUP)[name].load()
    else:
        raise UnknownName.among("agent", name, names())
    if not isinstance(spec, AgentSpec):
        raise BadRequest(f"agent {name!r} is not an AgentSpec but {type(spec).__name__}")
    if spec.name != name:  # runs are found again by what their experiment calls itself
        raise BadRequest(f"agent {name!r} calls itself {spec.name!r}: set `agent` of its experiment to {name!r}")
    return spec


def spec_of(config: Experiment) -> AgentSpec:
    """The agent of a configuration."""
    return find(config.agent)


def build(config: Experiment, circumstances: Build = Build()) -> Agent:
    """The agent of `config`.

    Raises:
        BadRequest: unknown names or impossible combinations; JAX computes in float64.
    """
    if jax.config.values["jax_enable_x64"]:
        raise BadRequest("agents compute in float32 alone: take JAX_ENABLE_X64 (jax_enable_x64) back")
    return spec_of(config).build(config, circumstances)
