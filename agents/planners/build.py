"""From a configuration to a planner, and what each shows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from engram.agents.common.environments import divide, is_emulator
from engram.agents.common.spec import AgentSpec, Build, Panel
from engram.agents.planners import dynlin, lsd, neucb, stepmix, ucrl
from engram.agents.planners.base import Planner
from engram.agents.planners.experiment import (
    DynLinExperiment,
    LSDExperiment,
    NeuCBExperiment,
    PlannerExperiment,
    StepMixExperiment,
    UCRLExperiment,
)
from engram.envs import registry
from engram.errors import BadRequest
from engram.training.programs import seed_keys

MOST_STEPS = 2**24
"""Steps that a planner can count in float32."""


def builder(planner: type[Planner]) -> Callable[[PlannerExperiment, Build], Any]:
    """What builds `planner`."""

    def build(config: PlannerExperiment, circumstances: Build = Build()) -> Any:
        family = config.env.partition("/")[0]
        if config.eval_env:
            raise BadRequest(f"eval_env is not for {config.agent}, which is scored while it acts")
        # An emulator cannot be made here at all.
        env = None if is_emulator(config.env) else registry.make(config.env)
        if not isinstance(env, planner.env_type):
            raise BadRequest(f"{config.agent} does not plan {family}/... environments: see the planners' page in docs")
        if config.total_steps > MOST_STEPS:
            raise BadRequest(
                f"total_steps must be at most {MOST_STEPS:,} for planners, which count in float32, "
                f"got {config.total_steps:,}"
            )
        agent = planner(env, config.settings, config.algorithm, config.total_steps)
        # Runs are rounded up to whole log points; the horizon that planners know is the true one.
        return dataclasses.replace(agent, total_steps=divide(config, agent).updates * agent.steps_per_update)

    return build


def check_stepmix(agent: Any, config: StepMixExperiment) -> None:
    """Raises BadRequest where the baseline of a drawn instance is not as good as it must be."""
    agent.check(jax.jit(jax.vmap(agent.init))(seed_keys(config.seed, config.seeds)))


def check_ucrl(agent: Any, config: UCRLExperiment) -> None:
    """Raises BadRequest where a drawn MDP has no one best gain to measure regret against."""
    gains = np.asarray(jax.jit(jax.vmap(agent.init))(seed_keys(config.seed, config.seeds)).gains)
    if np.isnan(gains).any():
        seed, segment = (int(i) for i in np.argwhere(np.isnan(gains))[0])
        raise BadRequest(
            f"{config.env}: the MDP of segment {segment}, seed {config.seed + seed}, has no one best gain: some of its "
            "states are reached too seldom, or not at all"
        )


LSD_SPEC = AgentSpec(
    experiment=LSDExperiment,
    build=builder(lsd.LSD),
    panels=(
        Panel("train/regret", "cumulative regret against (1 - 1/e) LP"),
        Panel("train/return", "reward a round"),
    ),
    columns=lsd.ALGORITHMS,
)

UCRL_SPEC = AgentSpec(
    experiment=UCRLExperiment,
    build=builder(ucrl.UCRL),
    panels=(
        Panel("train/regret", "cumulative regret"),
        Panel("train/return", "reward a step"),
        Panel("train/last_alarm", "seed (bars: true changes, dots: alarms)", events="train/last_change"),
    ),
    columns=ucrl.ALGORITHMS,
    check=check_ucrl,
)

STEPMIX_SPEC = AgentSpec(
    experiment=StepMixExperiment,
    build=builder(stepmix.StepMix),
    panels=(
        Panel("train/regret", "cumulative regret"),
        Panel("train/return", "exact value an episode", floor="train/threshold"),
        Panel("train/margin_min", "least value of an episode above the safety line", zero=True),
    ),
    columns=stepmix.ALGORITHMS,
    check=check_stepmix,
)

DYNLIN_SPEC = AgentSpec(
    experiment=DynLinExperiment,
    build=builder(dynlin.DynLin),
    panels=(Panel("train/regret", "cumulative regret"), Panel("train/best_action", "share of best actions")),
    columns=dynlin.ALGORITHMS,
)

NEUCB_SPEC = AgentSpec(
    experiment=NeuCBExperiment,
    build=builder(neucb.NeuCB),
    panels=(Panel("train/regret", "cumulative mistakes"), Panel("train/return", "reward a round")),
    columns=neucb.ALGORITHMS,
)
