"""Returns and advantages over time-major arrays."""

from typing import Literal

import jax
import jax.numpy as jnp


def generalised_advantages(
    reward: jax.Array,
    value: jax.Array,
    final_value: jax.Array,
    last_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: float,
    gae_lambda: float,
) -> jax.Array:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) that distinguishes truncation from termination.

    Args:
        reward: `[T, B]`, rewards of the steps from `x[t]`.
        value: `[T, B]`, values of `x[t]`.
        final_value: `[T, B]`, values of the final observations of episodes where `truncated`; ignored elsewhere.
        last_value: `[B]`, values of `x[T]`.
        terminated: `[T, B]` bool, the task ended: what follows is worth 0. It wins where both are set.
        truncated: `[T, B]` bool, a limit cut the episode: what follows is worth `final_value`.
        discount: discount factor.
        gae_lambda: 0 gives one-step temporal differences, 1 gives discounted returns minus the value.

    Returns:
        advantages `[T, B]`. No sum crosses the end of an episode.
    """
    next_value = jnp.concatenate([value[1:], last_value[None]])
    next_value = jnp.where(truncated, final_value, next_value)
    next_value = jnp.where(terminated, 0.0, next_value)
    delta = reward + discount * next_value - value
    carry_on = jnp.where(terminated | truncated, 0.0, discount * gae_lambda)

    def backward(advantage, row):
        delta, carry_on = row
        advantage = delta + carry_on * advantage
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(last_value), (delta, carry_on), reverse=True)[1]


def lambda_returns(
    reward: jax.Array,
    value: jax.Array,
    continuation: jax.Array,
    discount: float,
    lambda_: float,
    bootstrap: Literal["next", "same"] = "next",
) -> jax.Array:
    """Lambda-returns of imagined trajectories (Sutton and Barto 2018, eq. 12.18, by recursion).

    Args:
        reward, continuation: `[T, B]`, of the step from `x[t]`; `continuation` is 0 where it ended the episode.
        value: `[T + 1, B]`, of `x[t]`.
        bootstrap: "next" mixes in the value of `x[t + 1]`; "same" that of `x[t]`, which is biased and there only to
            repeat published runs.

    Returns:
        returns `[T, B]`.
    """
    mixed = value[1:] if bootstrap == "next" else value[:-1]

    def backward(later, row):
        reward, mixed, continuation = row
        later = reward + discount * continuation * ((1.0 - lambda_) * mixed + lambda_ * later)
        return later, later

    return jax.lax.scan(backward, value[-1], (reward, mixed, continuation), reverse=True)[1]
