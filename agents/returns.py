"""Returns and advantages over time-major arrays."""

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
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) that tells cut episodes from ended ones.

    Args:
        reward: `[T, B]`, reward of the step from `x[t]`.
        value: `[T, B]`, value of `x[t]`.
        final_value: `[T, B]`, value of the last observation of the episode where `truncated`; ignored elsewhere.
        last_value: `[B]`, value of `x[T]`.
        terminated: `[T, B]` bool, the task ended: what follows is worth 0.
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
