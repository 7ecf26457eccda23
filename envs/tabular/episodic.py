"""Episodic tabular MDPs: a fixed number of steps, kernels and rewards that depend on the step, one start.

An instance is drawn at reset, so every seed has its own; `instance_seed` fixes it. Below the environment are exact
values by dynamic programming over the horizon: of optimal play, and of a Markov policy.

Arrays are indexed [step, state, action, next state]; the functions of values also take instances with further trailing
axes (many instances side by side), which are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from engram.envs.base import Info, NoParams, UniformEnvironment
from engram.envs.spaces import Discrete, MultiDiscrete, Space
from engram.errors import BadRequest

START = 0
"""The state in which every episode begins."""


@struct.dataclass
class Instance:
    """An episodic MDP of H steps, S states and A actions."""

    transition: jax.Array
    """`[H, S, A, S]`: probability of the next state."""
    reward: jax.Array
    """`[H, S, A]` in [0, 1], deterministic."""


@struct.dataclass
class EpisodicState:
    """State of an episode."""

    instance: Instance
    state: jax.Array
    """State of the MDP, int32."""
    t: jax.Array
    """Steps taken, int32."""


def inverse_cdf(probabilities: jax.Array, uniform: jax.Array) -> jax.Array:
    """The index, int32, that a uniform in [0, 1) draws: how many of the cumulative sums of `probabilities [n, ...]` are
    at most the uniform. Further axes are separate draws with a `uniform [...]` each.
    """
    below = jnp.sum(jnp.cumsum(probabilities, axis=0) <= uniform, axis=0, dtype=jnp.int32)
    return jnp.minimum(below, probabilities.shape[0] - 1)


@dataclass(frozen=True, eq=False)
class EpisodicMDP(UniformEnvironment):
    """Observation: the state, Discrete(S); with `show_step` (state, steps taken), MultiDiscrete((S, H + 1)).

    Action: Discrete(A). The reward is that of the instance; one uniform draws the next state by inverse CDF.
    Terminates after H steps, never truncates.
    """

    draw: Callable[[jax.Array], Instance]
    """Draws an instance from a key."""
    horizon: int
    """Steps H of an episode."""
    num_states: int
    num_actions: int
    instance_seed: int | None = None
    """Seed of the one instance that every reset opens (None: each reset draws a new one from its key)."""
    show_step: bool = False
    """Whether the observation holds the step."""

    @staticmethod
    def from_arrays(transition: ArrayLike, reward: ArrayLike, show_step: bool = False) -> "EpisodicMDP":
        """The MDP with these arrays, `[H, S, A, S]` and `[H, S, A]`.

        Raises:
            BadRequest: shapes that do not fit, rows that are not distributions, rewards outside [0, 1].
        """
        transition, reward = np.asarray(transition, np.float64), np.asarray(reward, np.float64)
        if reward.ndim != 3 or transition.shape != (*reward.shape, reward.shape[1] if reward.ndim == 3 else 0):
            raise BadRequest(
                f"transition must be [H, S, A, S] and reward [H, S, A], got {transition.shape} and {reward.shape}"
            )
        fits = (np.abs(transition.sum(-1) - 1.0) <= 1e-5) & np.all(transition >= 0.0, axis=-1)
        if not np.all(fits):
            h, s, a = (int(i) for i in np.argwhere(~fits)[0])
            row = np.array2string(transition[h, s, a], threshold=8, max_line_width=1000)
            raise BadRequest(f"transition must hold distributions, got rows like [{h}, {s}, {a}] = {row}")
        if not np.all((reward >= 0.0) & (reward <= 1.0)):
            raise BadRequest(f"reward must lie in [0, 1], got values from {np.min(reward)} to {np.max(reward)}")

        def draw(_: jax.Array) -> Instance:
            dtype = jnp.result_type(float)
            return Instance(jnp.asarray(transition, dtype), jnp.asarray(reward, dtype))

        horizon, states, actions = reward.shape
        return EpisodicMDP(draw, horizon, states, actions, show_step=show_step)

    def state_from(self, instance: Instance) -> tuple[jax.Array, EpisodicState]:
        """Opens an episode of `instance`."""
        state = EpisodicState(instance, state=jnp.int32(START), t=jnp.int32(0))
        return self._observe(state), state

    def reset(self, key: jax.Array, params: NoParams) -> tuple[jax.Array, EpisodicState]:
        return self.state_from(self.draw(key if self.instance_seed is None else jax.random.key(self.instance_seed)))

    def transition(
        self, state: EpisodicState, action: jax.Array, uniforms: jax.Array, params: NoParams
    ) -> tuple[jax.Array, EpisodicState, jax.Array, jax.Array, jax.Array, Info]:
        at = (state.t, state.state, action)
        reward = state.instance.reward[at]
        following = inverse_cdf(state.instance.transition[at], uniforms[0])
        state = EpisodicState(state.instance, following, state.t + 1)
        return self._observe(state), state, reward, state.t >= self.horizon, jnp.bool_(False), {}

    def _observe(self, state: EpisodicState) -> jax.Array:
        return jnp.stack([state.state, state.t]) if self.show_step else state.state

    def observation_space(self, params: NoParams) -> Space:
        return MultiDiscrete((self.num_states, self.horizon + 1)) if self.show_step else Discrete(self.num_states)

    def action_space(self, params: NoParams) -> Discrete:
        return Discrete(self.num_actions)

    def max_steps(self, params: NoParams) -> int:
        return self.horizon


# ------------------------------------------------------------------------------------------------------- instances


def _check(name: str, least: dict[str, tuple[int, int]], instance_seed: int | None) -> None:
    for option, (value, bound) in least.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise BadRequest(f"episodic/{name}: {option} must be an integer of at least {bound}, got {value!r}")
    if instance_seed is not None and (not isinstance(instance_seed, int) or not 0 <= instance_seed < 2**32):
        raise BadRequest(f"episodic/{name}: instance_seed must be an integer in 0 .. 2^32 - 1, got {instance_seed!r}")


def _simplex(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Rows drawn uniformly from the simplex over the last axis (normalised exponentials)."""
    weights = jax.random.exponential(key, shape)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def random(
    horizon: int = 3, states: int = 5, actions: int = 5, instance_seed: int | None = None, show_step: bool = False
) -> EpisodicMDP:
    """Rewards U[0, 1], kernels uniform on the simplex, all independent."""
    _check("Random", {"horizon": (horizon, 1), "states": (states, 1), "actions": (actions, 1)}, instance_seed)

    def draw(key: jax.Array) -> Instance:
        transition_key, reward_key = jax.random.split(key)
        shape = (horizon, states, actions)
        return Instance(_simplex(transition_key, (*shape, states)), jax.random.uniform(reward_key, shape))

    return EpisodicMDP(draw, horizon, states, actions, instance_seed, show_step)


def bad_action(
    horizon: int = 3, states: int = 5, actions: int = 3, instance_seed: int | None = None, show_step: bool = False
) -> EpisodicMDP:
    """Action 0 pays nothing and leads to the last state, a pit where nothing pays and from which nothing leads.

    The other actions pay U[1/2, 1] and lead to the other states, by kernels uniform on their simplex.
    """
    _check("BadAction", {"horizon": (horizon, 1), "states": (states, 2), "actions": (actions, 2)}, instance_seed)
    pit = states - 1

    def draw(key: jax.Array) -> Instance:
        transition_key, reward_key = jax.random.split(key)
        shape = (horizon, states, actions)
        transition = jnp.zeros((*shape, states)).at[..., :pit].set(_simplex(transition_key, (*shape, pit)))
        into_pit = jax.nn.one_hot(pit, states)
        transition = transition.at[:, :, 0].set(into_pit).at[:, pit].set(into_pit)
        reward = jax.random.uniform(reward_key, shape, minval=0.5, maxval=1.0).at[:, :, 0].set(0.0).at[:, pit].set(0.0)
        return Instance(transition, reward)

    return EpisodicMDP(draw, horizon, states, actions, instance_seed, show_step)


def chain(
    horizon: int = 4, states: int = 3, actions: int = 2, instance_seed: int | None = None, show_step: bool = False
) -> EpisodicMDP:
    """A corridor: action 0 stays and pays U[0.4, 0.6], the others go one state on with probability U[0.8, 1] and pay
    U[0, 0.2]; in the last state every action stays and pays U[0.8, 1]. One draw per state and action, for all steps.
    """
    _check("Chain", {"horizon": (horizon, 1), "states": (states, 2), "actions": (actions, 2)}, instance_seed)
    last = states - 1

    def draw(key: jax.Array) -> Instance:
        advance_key, reward_key = jax.random.split(key)
        shape = (states, actions)
        advance = jax.random.uniform(advance_key, shape, minval=0.8, maxval=1.0).at[:, 0].set(0.0).at[last].set(0.0)
        here = jnp.arange(states)
        stay, on = jax.nn.one_hot(here, states), jax.nn.one_hot(jnp.minimum(here + 1, last), states)
        transition = advance[..., None] * on[:, None] + (1.0 - advance)[..., None] * stay[:, None]
        least = jnp.zeros(shape).at[:, 0].set(0.4).at[last].set(0.8)
        reward = least + 0.2 * jax.random.uniform(reward_key, shape)
        return Instance(
            jnp.broadcast_to(transition, (horizon, *transition.shape)), jnp.broadcast_to(reward, (horizon, *shape))
        )

    return EpisodicMDP(draw, horizon, states, actions, instance_seed, show_step)


NAMES: dict[str, Callable[..., EpisodicMDP]] = {"Random": random, "BadAction": bad_action, "Chain": chain}
"""Public names of the family `episodic`."""


# --------------------------------------------------------------------------------------------------- --- exact values


def total(x: jax.Array, axis: int) -> jax.Array:
    """The sum over a short axis as a row of additions, because XLA's reductions do not use a CPU's vector units."""
    terms = jnp.moveaxis(x, axis, 0)
    out = terms[0]
    for i in range(1, x.shape[axis]):
        out = out + terms[i]
    return out


def optimal_values(instance: Instance) -> tuple[jax.Array, jax.Array]:
    """Optimal `Q [H, S, A]` and `V [H + 1, S]` (zero after the last step), by Bellman's equation backwards."""
    value = jnp.zeros_like(instance.reward[0, :, 0])
    q, v = [], [value]
    for transition, reward in zip(instance.transition[::-1], instance.reward[::-1], strict=True):
        q.append(reward + total(transition * value, 2))
        value = jnp.max(q[-1], axis=1)
        v.append(value)
    return jnp.stack(q[::-1]), jnp.stack(v[::-1])


def policy_values(instance: Instance, policy: jax.Array) -> jax.Array:
    """`V [H + 1, S]` of the Markov policy with probabilities `policy [H, S, A]`."""
    value = jnp.zeros_like(instance.reward[0, :, 0])
    v = [value]
    for transition, reward, pi in zip(instance.transition[::-1], instance.reward[::-1], policy[::-1], strict=True):
        value = total(pi * (reward + total(transition * value, 2)), 1)
        v.append(value)
    return jnp.stack(v[::-1])


# --------------------------------------------------------------------------------------------------------- policies


def boltzmann(q: jax.Array, eta: float) -> jax.Array:
    """Policy `[H, S, A]` proportional to `exp(eta * q)`; `eta` is an inverse temperature, 0 is uniform."""
    return jax.nn.softmax(eta * q, axis=2)


def second_best(q: jax.Array) -> jax.Array:
    """The deterministic policy `[H, S, A]` of the action with the second largest `q` (of the only one if A = 1)."""
    action = jnp.argsort(q, axis=2)[:, :, -min(2, q.shape[2])]
    return jax.nn.one_hot(action, q.shape[2], dtype=q.dtype)
