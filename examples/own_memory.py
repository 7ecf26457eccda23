"""A memory of your own: a leaky average. Prove it against the contract, then train PPO with it.

    python examples/own_memory.py

On the command line the same memory is `--memory own_memory:Leaky`, where this file is in the working directory.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import engram
from engram.memory import Memory, where_reset
from engram.testing import check_memory


class Leaky(Memory):
    """`h = keep * h + (1 - keep) * W x`, and a dense layer that reads it. State: `h [B, width]`."""

    keep: float = 0.9
    """Share of the state that is kept at each step."""

    @nn.nowrap
    def initial_state(self, batch):
        return jnp.zeros((batch, self.width), self.param_dtype)

    @nn.compact
    def __call__(self, state, x, reset):
        inputs = nn.Dense(self.width, param_dtype=self.param_dtype, name="write")(x)

        def one_step(h, now):
            new, opens = now
            h = where_reset(opens, jnp.zeros_like(h), h)
            h = self.keep * h + (1 - self.keep) * new
            return h, h

        state, h = jax.lax.scan(one_step, state, (inputs, reset))
        return state, nn.Dense(self.width, param_dtype=self.param_dtype, name="read")(h)


def main(total_steps: int = 60_000, out: str = "runs/examples/leaky") -> None:
    check_memory(Leaky(width=6))
    print("Leaky acts as it trains")
    run = engram.train("popgym-fast", memory="own_memory:Leaky", total_steps=total_steps, out=out, resume=True)
    print("final return:", run.summary["eval_return"]["mean"])


if __name__ == "__main__":
    main()
