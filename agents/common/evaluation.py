"""Playing under a fixed policy, in one compiled loop."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp


def play_episodes(
    play: Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array]]],
    carry: Any,
    key: jax.Array,
    num_envs: int,
    episodes: int,
    limit: int,
    axis_name: str | None = None,
    quota: Literal["fixed", "first"] = "fixed",
) -> dict[str, jax.Array]:
    """Plays until `episodes` episodes have ended.

    Args:
        play: one step of `num_envs` environments: carry, key -> carry, info (see
            `engram.envs.wrappers.EpisodeStatistics`).
        episodes: a multiple of `num_envs`.
        limit: steps of one episode after which the loop gives up.
        axis_name: of the `vmap` over seeds, where there is one. All seeds then stop together, which spares the masking
            of those that are done, and which emulators need.
        quota: "fixed" counts the first `episodes / num_envs` of every environment. "first" counts the first that end
            anywhere, which favours short episodes; there only to repeat published runs.

    Returns:
        `eval/return` and `eval/length`, means over the episodes that ended (NaN if none did), and `eval/finished`,
        their share (below 1 only where the limit cut in).
    """
    each = episodes // num_envs

    def unfinished(loop):
        time, _, ended, _, _ = loop
        done = jnp.all(ended >= each) if quota == "fixed" else jnp.sum(ended) >= episodes
        if axis_name is not None:
            done = jax.lax.pmin(done.astype(jnp.int32), axis_name) == 1
        return (time < limit * each) & ~done

    def play_on(loop):
        time, carry, ended, returns, lengths = loop
        carry, info = play(carry, jax.random.fold_in(key, time))
        counts = info["episode_done"]
        if quota == "fixed":
            counts &= ended < each
        else:
            counts &= jnp.sum(ended) + jnp.cumsum(counts) <= episodes
        returns += jnp.where(counts, info["episode_return"], 0.0)
        lengths += jnp.where(counts, info["episode_length"], 0)
        return time + 1, carry, ended + counts, returns, lengths

    zeros = jnp.zeros(num_envs, jnp.int32)
    loop = (0, carry, zeros, jnp.zeros(num_envs), zeros)
    _, _, ended, returns, lengths = jax.lax.while_loop(unfinished, play_on, loop)
    total = jnp.sum(ended)
    mean = lambda x: jnp.where(total > 0, jnp.sum(x) / jnp.maximum(total, 1), jnp.nan)  # noqa: E731
    return {"eval/return": mean(returns), "eval/length": mean(lengths), "eval/finished": total / episodes}


def record_steps(
    play: Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array], Any]],
    carry: tuple,
    key: jax.Array,
    num_steps: int,
) -> tuple[Any, Any, jax.Array]:
    """`num_steps` steps to draw, each `[num_steps, B, ...]`: the environment state before the step, the action, and the
    return of the episode after it.

    Args:
        play: one step: carry, key -> carry, info, action; the carry begins with the environment state.
    """

    def one_step(carry, key):
        after, info, action = play(carry, key)
        return after, (carry[0], action, info["episode_return"])

    return jax.lax.scan(one_step, carry, jax.random.split(key, num_steps))[1]
