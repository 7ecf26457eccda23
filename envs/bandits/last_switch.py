"""Bandits whose payoffs depend on the last switch (Laforgue et al. 2022; Foussoul et al. 2023, arXiv 2306.00338).

Each of k arms has a state tau: b > 0 when it has been idle for the last b rounds, -m < 0 when it was played in each of
the last m rounds. Playing an arm pays p(tau) on average, and nothing else pays. Delay-dependent ("recharging") bandits
are the case M = 1, where it does not matter how often an arm was played in a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from engram.envs.base import Info, NoParams, UniformEnvironment
from engram.envs.spaces import Box, Discrete
from engram.errors import BadRequest


class LSDState(struct.PyTreeNode):
    """State of an `LSDBandit`."""

    payoffs: jax.Array
    """`[k, M + N]`: mean payoffs, columns in the order of tau: -M .. -1, 1 .. N."""
    tau: jax.Array
    """`[k]` int32: states of the arms."""


def column(tau: jax.Array, played_limit: int) -> jax.Array:
    """Column of a state in the table of payoffs."""
    return jnp.where(tau < 0, tau + played_limit, tau + played_limit - 1)


def after(tau, played, played_limit: int, idle_limit: int):
    """The states of the next round: playing counts down from -1 to -M, idling up from 1 to N. NumPy in, NumPy out."""
    xp = np if isinstance(tau, np.ndarray) else jnp
    when_played = xp.where(tau > 0, -1, xp.maximum(tau - 1, -played_limit))
    when_idle = xp.where(tau < 0, 1, xp.minimum(tau + 1, idle_limit))
    return xp.where(played, when_played, when_idle)


@dataclass(frozen=True, eq=False)
class LSDBandit(UniformEnvironment):
    """k arms and an endless horizon. Action: an arm, or k to play none. Observation: tau / max(M, N) of every arm.

    Arms begin fully rested. The step's uniform draws the Bernoulli payoff. `info`: `mean`, the payoff's expectation.
    """

    arms: int
    played_limit: int
    """Most plays in a row that make a difference, M."""
    idle_limit: int
    """Most idle rounds that make a difference, N."""
    draw: Callable[[jax.Array], jax.Array]
    """Draws payoffs `[k, M + N]` in [0, 1] from a key."""
    monotone: bool = True
    """Whether payoffs never fall with tau."""

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, LSDState]:
        state = LSDState(self.draw(key), jnp.full(self.arms, self.idle_limit, jnp.int32))
        return self._observe(state), state

    def _observe(self, state: LSDState) -> jax.Array:
        return (state.tau / max(self.played_limit, self.idle_limit)).astype(jnp.float32)

    def transition(
        self, state: LSDState, action: jax.Array, uniforms: jax.Array, params: NoParams
    ) -> tuple[jax.Array, LSDState, jax.Array, jax.Array, jax.Array, Info]:
        played = jnp.arange(self.arms) == action
        at = column(jnp.sum(jnp.where(played, state.tau, 0)), self.played_limit)
        payoff = state.payoffs.at[jnp.minimum(action, self.arms - 1), at].get(mode="clip")
        mean = jnp.where(jnp.any(played), payoff, 0)
        reward = (uniforms[0] < mean).astype(jnp.float32)
        state = state.replace(tau=after(state.tau, played, self.played_limit, self.idle_limit))
        return self._observe(state), state, reward, jnp.bool_(False), jnp.bool_(False), {"mean": mean}

    def observation_space(self, params: NoParams) -> Box:
        return Box(-1.0, 1.0, (self.arms,))

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.arms + 1)

    def max_steps(self, params: NoParams) -> None:
        return None


def from_payoffs(
    payoffs: Sequence[Sequence[float]] | np.ndarray, played_limit: int, monotone: bool = True
) -> LSDBandit:
    """The bandit with these mean payoffs, `[k, M + N]`, columns in the order of tau: -M .. -1, 1 .. N.

    Raises:
        BadRequest: payoffs outside [0, 1], not monotone although `monotone`, or without a column for each sign of tau.
    """
    try:
        table = np.asarray(payoffs, float)
    except ValueError:
        raise BadRequest("lsd: payoffs must have as many columns for every arm") from None
    if table.ndim != 2 or not 1 <= played_limit < table.shape[1] or not len(table):
        raise BadRequest(f"lsd: payoffs must be [arms, M + N] with M = {played_limit} and N >= 1, got {table.shape}")
    if not np.all((table >= 0) & (table <= 1)):
        raise BadRequest("lsd: payoffs must lie in [0, 1]")
    falling = np.flatnonzero((np.diff(table, axis=1) < 0).any(1))
    if monotone and len(falling):
        raise BadRequest(f"lsd: payoffs must not fall with tau, but those of arm {falling[0]} do")
    return LSDBandit(
        len(table),
        played_limit,
        table.shape[1] - played_limit,
        lambda key: jnp.asarray(table, jnp.result_type(float)),
        monotone,
    )


def random(arms: int = 3, played: int = 2, idle: int = 3, instance_seed: int | None = None) -> LSDBandit:
    """Payoffs drawn from U[0, 1] and sorted, anew at each reset or from `instance_seed`."""
    if min(arms, played, idle) < 1:
        raise BadRequest(f"lsd: arms, played and idle must be at least 1, got {arms}, {played}, {idle}")

    def draw(key):
        key = key if instance_seed is None else jax.random.key(instance_seed)
        return jnp.sort(jax.random.uniform(key, (arms, played + idle)), axis=1)

    return LSDBandit(arms, played, idle, draw)


def recharging(arms: int = 4, idle: int = 6, instance_seed: int | None = None) -> LSDBandit:
    """Delay-dependent payoffs: `random` with M = 1."""
    return random(arms, 1, idle, instance_seed)


def greedy_trap() -> LSDBandit:
    """Two arms: one pays 0.95 after a rest, else 0.06; the other always pays 0.05, so that greed never rests the first.

    The best average reward is 0.5 and the greedy policy's 0.06.
    """
    return from_payoffs([[0.05] * 5, [0.06, 0.95, 0.95, 0.95, 0.95]], played_limit=1)


def tight(arms: int = 4) -> LSDBandit:
    """k equal arms that pay 1 after k - 1 idle rounds, else nothing: rounding earns 1 - (1 - 1/k)^k of LP = 1."""
    if arms < 2:
        raise BadRequest(f"lsd: arms must be at least 2, got {arms}")
    return from_payoffs([[0.0] * (arms - 1) + [1.0]] * arms, played_limit=1)


def _by_delay(delays: int, *arms: dict[int, float]) -> np.ndarray:
    """Payoffs of arms given as {delay from which on: payoff}; delay d is d - 1 idle rounds since the last play."""
    table = np.zeros((len(arms), delays))
    for row, arm in zip(table, arms, strict=True):
        for delay, payoff in sorted(arm.items()):
            row[delay - 1 :] = payoff
    return table


def delay_three() -> LSDBandit:
    """Five arms of Laforgue et al. (2022): one pays 0.95 at a delay of three rounds only, which is not monotone."""
    peak, late = {1: 0.15, 3: 0.95, 4: 0.15}, {1: 0.14, 6: 0.16, 9: 0.96}
    return from_payoffs(_by_delay(9, {1: 0.15}, peak, late, {1: 0.15}, {1: 0.15}), played_limit=1, monotone=False)


def delay_two() -> LSDBandit:
    """Two arms of Laforgue et al. (2022, supplement): the greedy trap with long delays."""
    return from_payoffs(_by_delay(9, {1: 0.05}, {1: 0.06, 2: 0.95}), played_limit=1)


NAMES: dict[str, Callable[..., LSDBandit]] = {
    "Random": random,
    "Recharging": recharging,
    "GreedyTrap": greedy_trap,
    "Tight": tight,
    "DelayThree": delay_three,
    "DelayTwo": delay_two,
}
"""Public names of the family `lsd`."""
