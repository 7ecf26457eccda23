"""Behaviour cloning, and cloning that is told which return to achieve.

BC imitates the dataset: squared error of a deterministic policy, or cross-entropy where actions are discrete.

Return-conditioned BC (RCBC) gives the policy, beside the observation, the undiscounted return from here to the end of
the episode and the time, both known in hindsight (Emmons et al. 2021, "RvS: What is essential for offline RL via
supervised learning?", arXiv 2112.10751; here with the return to go that Decision Transformers take). When it acts, the
return to go begins at a target and falls by the rewards that come in.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from engram.agents.common.distributions import head_size
from engram.agents.offline.base import Metrics, Network, OfflineAgent, OfflineSettings, OfflineState
from engram.envs.spaces import Discrete
from engram.errors import BadRequest


@dataclass(frozen=True)
class BCSettings(OfflineSettings):
    """Hyperparameters of behaviour cloning. Published by Fujimoto and Gu (2021): batch_size 256, hidden 256 256,
    learning_rate 3e-4."""

    method: ClassVar[str] = "bc"


@dataclass(frozen=True, eq=False)
class BC(OfflineAgent):
    """Behaviour cloning."""

    settings: BCSettings

    @property
    def policy(self) -> Network:
        return Network(self.settings.hidden, head_size(self.action_space))

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        return {"policy": self.policy.init(key, jnp.zeros((1, size)))["params"]}

    def _out(self, params: Any, x: jax.Array) -> Any:
        """The policy's outputs: logits, or the action itself."""
        out: Any = self.policy.apply({"params": params["policy"]}, x)
        return out if isinstance(self.action_space, Discrete) else jnp.tanh(out)

    def inputs(self, batch: Any) -> jax.Array:
        """What the policy sees of a batch."""
        return batch.obs

    def loss(self, params: Any, target: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        out = self._out(params, self.inputs(batch))
        if isinstance(self.action_space, Discrete):
            likely = jax.nn.one_hot(batch.action, self.action_space.n)
            loss = -jnp.mean(jnp.sum(jax.nn.log_softmax(out) * likely, axis=-1))
        else:
            loss = jnp.mean((out - batch.action) ** 2)
        return loss, {"loss/policy": loss}

    def _best(self, params: Any, x: jax.Array) -> jax.Array:
        out = self._out(params, x)
        return jnp.argmax(out, axis=-1) if isinstance(self.action_space, Discrete) else out

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        return acting, self._best(params, obs)


@dataclass(frozen=True)
class RCBCSettings(BCSettings):
    """Hyperparameters of return-conditioned behaviour cloning. Published by Emmons et al. (2021) for locomotion:
    batch_size 16384, hidden 1024 1024, learning_rate 1e-3."""

    return_scale: float
    """Returns to go are divided by this (usual: 1000 for locomotion)."""
    targets: tuple[float, ...]
    """Undiscounted returns that are asked for in turn; `eval/return` is what the first one brings."""

    method: ClassVar[str] = "rcbc"

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("return_scale")
        finite = all(abs(target) < float("inf") for target in self.targets)
        if not self.targets or not finite or len(set(self.targets)) < len(self.targets):
            raise BadRequest(f"rcbc.targets must be one or more finite and different returns, got {self.targets}")


@dataclass(frozen=True, eq=False)
class RCBC(BC):
    """Return-conditioned behaviour cloning."""

    settings: RCBCSettings

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        return super().init_params(key, size + 2)

    def draw(self, key: jax.Array) -> Any:
        rows = jax.tree.map(lambda x: x[0], self.data.draw_windows(key, self.settings.batch_size, 1))
        return rows.replace(action=self.view.to_unit(rows.action))

    def told(self, obs: jax.Array, to_go: jax.Array, timestep: jax.Array) -> jax.Array:
        """Observation, return to go, and time as a share of the longest episode."""
        time = timestep / jnp.max(self.data.length)
        return jnp.concatenate([obs, (to_go / self.settings.return_scale)[:, None], time[:, None]], axis=-1)

    def inputs(self, batch: Any) -> jax.Array:
        return self.told(batch.obs, batch.to_go, batch.timestep)

    def start_acting(self, n: int) -> Any:
        """The target, what is left of it, and the time, each `[n]`."""
        target = jnp.full(n, self.settings.targets[0])
        return target, target, jnp.zeros(n)

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        target, to_go, time = acting
        to_go = jnp.where(reset, target, to_go - reward)
        time = jnp.where(reset, 0.0, time + 1.0)
        return (target, to_go, time), self._best(params, self.told(obs, to_go, time))

    def evaluate(self, state: OfflineState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """As of every agent, for the first target; and the return of each target, `eval/return_at_<target>`. All
        targets meet the same openings."""
        start_key, key = jax.random.split(key)

        def play(target):
            *carry, acting = self._start_play(start_key)
            asked = jnp.full_like(acting[0], target)
            return self._play(state.params, (*carry, (asked, asked, acting[2])), key, axis_name)

        metrics = jax.lax.map(play, jnp.asarray(self.settings.targets))
        first = jax.tree.map(lambda x: x[0], metrics)
        achieved = zip(self.settings.targets, metrics["eval/return"], strict=True)
        return self.view.with_scores(first | {f"eval/return_at_{target:g}": x for target, x in achieved})
