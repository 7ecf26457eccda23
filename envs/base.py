"""The two interfaces of every environment: one environment, and a batch of them.

`Environment` is gymnax 1.0's functional form for a single environment, without auto-reset: a step past the
end of an episode is undefined. `VectorEnvironment` is what agents see: a batch of `num_envs` environments
that restart themselves, with the same six-value step over arrays with a leading batch axis.
`engram.envs.vector.Vectorised` turns the first into the second; emulators on the host implement the second directly.
"""

from typing import Any

import jax
import numpy as np
from flax import struct

from engram.envs.spaces import Space

Info = dict[str, Any]


@struct.dataclass
class NoParams:
    """Parameters of an environment that has none beyond its constructor's arguments."""


class Environment:
    """One environment. Subclasses are frozen dataclasses: static settings are fields, everything else is state.

    `reset(key, params) -> obs, state` and
    `step(key, state, action, params) -> obs, state, reward, terminated, truncated, info`, both pure and traceable.
    `obs` is in `observation_space(params)`; `reward` is a float32 scalar; `terminated` and `truncated` are bool
    scalars. When both are True the episode was terminated (no bootstrapping).
    """

    cheap_reset: bool = False
    """True when a reset costs about as much as a step (a few random numbers): auto-reset then selects
    between a fresh and the old state at every step instead of branching."""

    is_host_pool: bool = False
    """See `VectorEnvironment`; never True here."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def default_params(self) -> Any:
        return NoParams()

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    def step(
        self, key: jax.Array, state: Any, action: Any, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, Info]:
        raise NotImplementedError

    def observation_space(self, params: Any) -> Space:
        raise NotImplementedError

    def action_space(self, params: Any) -> Space:
        raise NotImplementedError

    def max_steps(self, params: Any) -> int | None:
        """The largest number of steps of an episode, or None when there is no bound."""
        raise NotImplementedError

    def render(self, state: Any, params: Any) -> np.ndarray:
        """One state (host arrays, no batch axis) as an RGB picture `[height, width, 3]` uint8."""
        raise NotImplementedError(f"{self.name} cannot be drawn")


class UniformEnvironment(Environment):
    """An environment whose step is a function of a fixed number of uniforms, for agents that draw them beforehand.

    `transition` is the step itself; `step` draws the uniforms from its key. A mirror in plain NumPy that is given the
    same uniforms must do the same, which is how the bandits and tabular environments and their planners are tested.
    """

    @property
    def num_uniforms(self) -> int:
        """Uniforms that a step takes."""
        return 1

    def transition(
        self, state: Any, action: Any, uniforms: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, Info]:
        """As `step`, from `uniforms [num_uniforms]` in [0, 1)."""
        raise NotImplementedError

    def step(
        self, key: jax.Array, state: Any, action: Any, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, Info]:
        return self.transition(state, action, jax.random.uniform(key, (self.num_uniforms,)), params)


class VectorEnvironment:
    """A batch of `num_envs` environments that restart themselves.

    `reset(key, params) -> obs[B], state`: opens the first episode of every environment.
    `step(key, state, action[B], params) -> obs[B], state, reward[B], terminated[B], truncated[B], info`, where
    `info` always holds:

    - `reset[B]`: the returned observation opens an episode;
    - `valid[B]`: this transition really happened (False on the dummy row that emulators with next-step
      auto-reset insert after an episode; losses, statistics and counters leave it out);
    - `final_observation[B]`: where `terminated | truncated`, the last observation of the episode that
      ended; elsewhere the same as the returned observation.
    """

    num_envs: int
    is_host_pool: bool = False
    """True when the episodes live in an emulator on the host: its state cannot be copied, rewound or saved, so exact
    resume makes the environment again from its seed and steps it through the logged actions."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def default_params(self) -> Any:
        raise NotImplementedError

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    def step(
        self, key: jax.Array, state: Any, action: Any, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, Info]:
        raise NotImplementedError

    def observation_space(self, params: Any) -> Space:
        """The space of one environment's observation (no batch axis)."""
        raise NotImplementedError

    def action_space(self, params: Any) -> Space:
        """The space of one environment's action (no batch axis)."""
        raise NotImplementedError

    def max_steps(self, params: Any) -> int | None:
        raise NotImplementedError

    def action_mask(self, state: Any) -> jax.Array | None:
        """Which actions are allowed in `state`, bool `[B, n]`, one entry for each action of each component; None where
        all are, always (see `engram.envs.wrappers.ActionMask`)."""
        return None

    def render(self, state: Any, params: Any, index: int = 0) -> np.ndarray:
        """Environment `index` of a batch state (host arrays) as an RGB picture `[height, width, 3]` uint8."""
        raise NotImplementedError(f"{self.name} cannot be drawn")

    def close(self) -> None:
        """Frees what the environment holds on the host; it cannot be stepped afterwards."""
