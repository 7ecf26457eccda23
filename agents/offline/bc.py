"""Behaviour cloning (BC), and behaviour cloning conditioned on the return (RCBC).

BC imitates the dataset: squared error of a deterministic policy, or cross-entropy where actions are discrete.

The policy of RCBC sees, beside the observation, the undiscounted return from here to the end of the episode and the
time, both known in hindsight (Emmons et al. 2021, "RvS: What is essential for offline RL via supervised learning?",
arXiv 2112.10751; here with the return to go of Decision Transformers). When it acts, the return to go begins at a
target and falls by each reward received.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from engram.agents.common.checks import require_positive
from engram.agents.common.distributions import head_size
from engram.agents.offline.base import OPENING_OVER, Network, OfflineAgent, OfflineSettings, OfflineState
from engram.agents.offline.data import OfflineData
from engram.envs.spaces import Discrete
from engram.errors import BadRequest
from engram.training.types import Metrics


@dataclass(frozen=True)
class BCSettings(OfflineSettings):
    """Hyperparameters of behaviour cloning. The defaults are those of Fujimoto and Gu (2021)."""

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
        """The policy's outputs: logits, or the action in [-1, 1]."""
        out: Any = self.policy.apply({"params": params["policy"]}, x)
        return out if isinstance(self.action_space, Discrete) else jnp.tanh(out)

    def inputs(self, batch: Any) -> jax.Array:
        """The policy's inputs, from a batch."""
        return batch.obs

    def loss(
        self, params: Any, target: Any, batch: Any, key: jax.Array, updates: jax.Array | int = OPENING_OVER
    ) -> tuple[jax.Array, Metrics]:
        out = self._out(params, self.inputs(batch))
        if isinstance(self.action_space, Discrete):
            taken = jax.nn.one_hot(batch.action, self.action_space.n)
            loss = -jnp.mean(jnp.sum(jax.nn.log_softmax(out) * taken, axis=-1))
        else:
            loss = jnp.mean((out - batch.action) ** 2)
        return loss, {"loss/policy": loss}

    def _greedy(self, params: Any, x: jax.Array) -> jax.Array:
        out = self._out(params, x)
        return jnp.argmax(out, axis=-1) if isinstance(self.action_space, Discrete) else out

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        return acting, self._greedy(params, obs)


@dataclass(frozen=True)
class RCBCSettings(BCSettings):
    """Hyperparameters of return-conditioned behaviour cloning. The defaults are those of Emmons et al. (2021) for
    locomotion; the target is one for Pendulum."""

    batch_size: int = 16_384
    """Steps of the dataset in a batch (published: 16384)."""
    hidden: tuple[int, ...] = (1024, 1024)
    """Sizes of the hidden layers of the policy (published: 1024 1024). Without any it is linear."""
    learning_rate: float = 1e-3
    """Learning rate of Adam (published: 1e-3)."""
    return_scale: float = 1000.0
    """Divisor of the returns to go (usual for locomotion: 1000)."""
    targets: tuple[float, ...] = (-150.0,)
    """Undiscounted returns that an evaluation asks for, one after the other; `eval/return` is the return that the first
    one achieves."""

    method: ClassVar[str] = "rcbc"

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "rcbc.", "return_scale")
        finite = all(abs(target) < float("inf") for target in self.targets)
        if not self.targets or not finite or len(set(self.targets)) < len(self.targets):
            raise BadRequest(f"rcbc.targets must be one or more finite and different returns, got {self.targets}")


@dataclass(frozen=True, eq=False)
class RCBC(BC):
    """Return-conditioned behaviour cloning."""

    settings: RCBCSettings

    def init_params(self, key: jax.Array, size: int) -> dict[str, Any]:
        return super().init_params(key, size + 2)

    def batch(self, data: OfflineData, step: jax.Array) -> Any:
        rows = jax.tree.map(lambda x: x[0], data.windows(step, 1))
        return rows.replace(action=self.view.to_unit(rows.action))

    def condition(self, obs: jax.Array, to_go: jax.Array, timestep: jax.Array) -> jax.Array:
        """The policy's inputs `[B, O + 2]`: observation, return to go, and time as a share of the longest episode."""
        time = timestep / self.data.scale.longest
        return jnp.concatenate([obs, (to_go / self.settings.return_scale)[:, None], time[:, None]], axis=-1)

    def inputs(self, batch: Any) -> jax.Array:
        return self.condition(batch.obs, batch.to_go, batch.timestep)

    def start_acting(self, n: int) -> Any:
        """The target, the return to go, and the time, each `[n]`."""
        target = jnp.full(n, self.settings.targets[0])
        return target, target, jnp.zeros(n)

    def act(self, params: Any, acting: Any, obs: jax.Array, reward: jax.Array, reset: jax.Array) -> tuple[Any, Any]:
        target, to_go, time = acting
        to_go = jnp.where(reset, target, to_go - reward)
        time = jnp.where(reset, 0.0, time + 1.0)
        return (target, to_go, time), self._greedy(params, self.condition(obs, to_go, time))

    def evaluate(self, state: OfflineState, key: jax.Array, axis_name: str | None = None) -> Metrics:
        """Metrics as those of every agent, for the first target; and the return that each target achieves,
        `eval/return_at_<target>`. The episodes of all targets begin alike."""
        start_key, key = jax.random.split(key)

        def play(target):
            *carry, acting = self._start_play(start_key)
            wanted = jnp.full_like(acting[0], target)
            return self._play(state.params, (*carry, (wanted, wanted, acting[2])), key, axis_name)

        metrics = jax.lax.map(play, jnp.asarray(self.settings.targets))
        first = jax.tree.map(lambda x: x[0], metrics)
        achieved = zip(self.settings.targets, metrics["eval/return"], strict=True)
        return self.view.with_scores(first | {f"eval/return_at_{target:g}": x for target, x in achieved})
