"""An environment of your own in JAX: recall a cue at the end of a corridor. Train with and without a memory.

    python examples/own_environment.py

On the command line the same environment is `--env own_environment:Recall` or `--env "own_environment:Recall?length=8"`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

import engram
from engram.envs.base import Environment, NoParams
from engram.envs.spaces import Box, Discrete


@dataclass(frozen=True)
class Recall(Environment):
    """A cue of 1 or -1 is shown at the first step; at the last, action 0 is right for 1 and action 1 for -1."""

    length: int = 4
    """Steps of an episode."""

    cheap_reset = True

    def reset(self, key, params):
        state = (jax.random.rademacher(key, (), jnp.float32), jnp.zeros((), jnp.int32))
        return self._see(state), state

    def step(self, key, state, action, params):
        cue, time = state
        time = time + 1
        done = time >= self.length
        right = (action == 0) == (cue > 0)
        reward = jnp.where(done, jnp.where(right, 1.0, -1.0), 0.0)
        state = (cue, time)
        return self._see(state), state, reward, done, jnp.zeros((), bool), {}

    def _see(self, state):
        cue, time = state
        return jnp.stack([jnp.where(time == 0, cue, 0.0), time / self.length])

    def observation_space(self, params: NoParams):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params: NoParams):
        return Discrete(2)

    def max_steps(self, params: NoParams):
        return self.length


def main(total_steps: int = 60_000, out: str = "runs/examples/recall") -> None:
    compared = engram.compare(
        "popgym-fast",
        memories=["gru", "none"],
        envs=["own_environment:Recall"],
        seeds=2,
        total_steps=total_steps,
        out=out,
    )
    print(compared.table)


if __name__ == "__main__":
    main()
