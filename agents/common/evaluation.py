"""Playing under a fixed policy, in one compiled loop."""

from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from engram.envs.base import Info
from engram.training.types import Key, Metrics, PyTree

GIVE_UP = 10_000
"""Steps of an episode after which an evaluation gives up, where the environment states no limit."""

Carry = TypeVar("Carry", bound=tuple)
Played = TypeVar("Played")


def play_episodes(
    play: Callable[[Played, Key], tuple[Played, Info]],
    carry: Played,
    key: Key,
    num_envs: int,
    episodes: int,
    limit: int | None,
    axis_name: str | None = None,
    quota: Literal["fixed", "first"] = "fixed",
) -> Metrics:
    """Plays until `episodes` episodes have ended.

    Args:
        play: one step of `num_envs` environments: carry, key -> carry, info (with the entries of
            `engram.envs.wrappers.EpisodeStatistics`).
        carry: what `play` begins with.
        episodes: number of episodes, a multiple of `num_envs`.
        limit: steps of the longest episode, as the environment states it; None: `GIVE_UP`.
        axis_name: name of the `vmap` over seeds, where there is one. All seeds then stop together, as emulators need
            it; this also saves the masking of those that are done.
        quota: "fixed" counts the first `episodes / num_envs` episodes of every environment. "first" counts the first
            that end in any environment, which favours short episodes. It only serves to repeat published runs.

    Returns:
        `eval/return` and `eval/length`, means over the episodes that ended (NaN if none did), and `eval/finished`, the
        share of episodes that ended (below 1 only if the loop gave up).
    """
    each = episodes // num_envs
    # Emulators put a dummy row between two episodes of a lane.
    rows = each * (limit or GIVE_UP) + each - 1

    def unfinished(loop):
        time, _, ended, _, _ = loop
        done = jnp.all(ended >= each) if quota == "fixed" else jnp.sum(ended) >= episodes
        if axis_name is not None:
            done = jax.lax.pmin(done.astype(jnp.int32), axis_name) == 1
        return (time < rows) & ~done

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
    play: Callable[[Carry, Key], tuple[Carry, Info, jax.Array]],
    carry: Carry,
    key: Key,
    num_steps: int,
) -> tuple[PyTree, jax.Array, jax.Array]:
    """Plays `num_steps` steps, to draw them.

    Args:
        play: one step: carry, key -> carry, info, action. The first entry of a carry is the environment state.
        carry: what `play` begins with.

    Returns:
        environment states before each step, actions, and returns of the episode after each, `[num_steps, B, ...]`.
    """

    def one_step(carry, key):
        after, info, action = play(carry, key)
        return after, (carry[0], action, info["episode_return"])

    return jax.lax.scan(one_step, carry, jax.random.split(key, num_steps))[1]
