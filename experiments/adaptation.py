"""How a trained agent adapts within a trial: it plays whole trials of `engram.envs.meta`, each inner episode scored.

One compiled loop plays one trial in each environment of a batch. What the memory may do is an argument:

- kept: as in training, cleared where a trial opens;
- frozen: never changed again after some inner episodes, of which it has seen how the last one ended (the observation
  that follows tells of the last action and its reward). Each later step still sees its own observation, in which the
  action and the reward before it are, but nothing adds up;
- reset: cleared where an inner episode opens, so that the trial is a row of trials of one episode each.

Where the task switches within a trial, something may clear the memory while it acts: nothing (off), a change-point
detector (on), or the switch itself (oracle). The detector watches the returns of inner episodes: one stream for each
action where an episode is one step, as in bandits, else one stream in all.

Wherever the memory is cleared amid a trial, the observation is shown as a trial opens (see `shown_as_opening`): the
action and the reward before it would be a memory of their own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.planners import change_points as rbocpd
from engram.agents.ppo.agent import PPO
from engram.envs.base import VectorEnvironment
from engram.envs.spaces import Box, Discrete
from engram.errors import BadRequest
from engram.kernels.rows import select_rows
from engram.training.programs import jit
from engram.training.statistics import t_interval

MEMORY = ("kept", "frozen", "reset")
CHANGES = ("off", "on", "oracle")
NEVER = np.iinfo(np.int32).max
Opening = tuple[tuple[slice, float], ...]
"""Entries of the observation that opens a trial: those that tell of the step before, and flags."""


@dataclass(frozen=True)
class Detector:
    """A change-point detector over the returns of inner episodes."""

    edges: tuple[float, ...]
    """Increasing; a return is the symbol that counts how many of them it exceeds."""
    eta: rbocpd.Eta
    """The prior of a change."""

    def __post_init__(self):
        if not self.edges or list(self.edges) != sorted(set(self.edges)):
            raise BadRequest(f"a detector needs increasing edges between returns, got {self.edges}")


class Played(NamedTuple):
    """One trial in each of `B` environments, by inner episode `[B, K]`; an episode that was not begun is all zeros."""

    returns: jax.Array
    """Returns of inner episodes in the family's own reward; where the trial ends first, up to there."""
    lengths: jax.Array
    """Steps, int32."""
    finished: jax.Array
    """bool: the episode ended of itself."""
    success: jax.Array | None
    """bool; None where the family does not say."""
    regret: jax.Array | None
    """Summed over the steps of the episode; None where the family does not say."""
    steps_to_goal: jax.Array | None
    """int32, the horizon where it was not reached; None where the family does not say."""
    over: jax.Array
    """`[B]` bool: the trial ended within the limit of steps."""
    switches: jax.Array
    """`[B]` how often the task switched."""
    detected: jax.Array
    """`[B]` switches that an alarm followed before the next one."""
    delay: jax.Array
    """`[B]` steps from the switch to the alarm, summed over those."""
    false_alarms: jax.Array
    """`[B]` further alarms."""


class Treatment(NamedTuple):
    """Treatment of the memory, as arrays, so that one program serves all."""

    reset: jax.Array
    """bool: clear it where an inner episode opens."""
    freeze_after: jax.Array
    """Inner episodes after which it is never changed, int32."""
    changes: jax.Array
    """Index of `CHANGES`, int32."""


def treatment(memory: str = "kept", changes: str = "off", freeze_after: int = 1) -> Treatment:
    """Raises BadRequest for unknown names, or fewer than 0 episodes."""
    for value, known in ((memory, MEMORY), (changes, CHANGES)):
        if value not in known:
            raise BadRequest(f"{value!r} is unknown: it must be one of {', '.join(known)}")
    if freeze_after < 0:
        raise BadRequest(f"freeze_after must not be negative, got {freeze_after}")
    freeze = freeze_after if memory == "frozen" else NEVER
    return Treatment(jnp.bool_(memory == "reset"), jnp.int32(freeze), jnp.int32(CHANGES.index(changes)))


def opening_of(layout: Mapping[str, slice]) -> Opening:
    """The opening of observations with this layout (see `engram.envs.meta.trials.Trials.layout`)."""
    parts = {"action": 0.0, "reward": 0.0, "episode_start": 1.0, "trial_start": 1.0}
    return tuple((layout[name], value) for name, value in parts.items())


def shown_as_opening(opening: Opening, obs: jax.Array, mask: jax.Array) -> jax.Array:
    """`obs [B, width]`, as if a trial opened there where `mask [B]`."""
    for part, value in opening:
        obs = obs.at[:, part].set(jnp.where(mask[:, None], value, obs[:, part]))
    return obs


# ----------------------------------------------------------------------------------------------------------- detector


class Watch(NamedTuple):
    """Detectors of a batch, and how they did."""

    bank: rbocpd.Grid
    counts: jax.Array
    """`[B, streams, symbols]` since the last alarm."""
    waiting: jax.Array
    """`[B]` steps since a switch that no alarm has followed yet, -1 where there is none."""


def _watch(detector: Detector, batch: int, streams: int, episodes: int) -> Watch:
    symbols = len(detector.edges) + 1
    bank = rbocpd.grid_bank(streams, symbols, max(episodes, 2))
    bank = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), bank)
    return Watch(bank, jnp.zeros((batch, streams, symbols)), jnp.full(batch, -1, jnp.int32))


def _listen(
    detector: Detector, watch: Watch, stream: jax.Array, value: jax.Array, active: jax.Array
) -> tuple[Watch, jax.Array]:
    """One value `[B]` in a stream `[B]` of each environment, where `active` -> watch, alarm `[B]`.

    After an alarm all detectors of that environment begin anew: what switches is the task and not an arm.
    """
    lanes = jnp.arange(stream.shape[0])
    symbol = jnp.sum(value[:, None] > jnp.asarray(detector.edges), axis=-1, dtype=jnp.int32)
    before = watch.counts[lanes, stream]
    bank, alarm = rbocpd.update_grid_bank(watch.bank, before, stream, symbol, active, detector.eta)
    counts = watch.counts.at[lanes, stream, symbol].add(active.astype(before.dtype))
    return watch._replace(bank=bank, counts=jnp.where(alarm[:, None, None], 0.0, counts)), alarm


# ------------------------------------------------------------------------------------------------------------ playing


def make_player(
    agent: PPO,
    env: VectorEnvironment,
    opening: Opening,
    episodes: int,
    limit: int,
    detector: Detector | None = None,
) -> Callable[[Any, Any, jax.Array, Treatment], Played]:
    """A compiled function that plays one trial in each environment.

    It maps the network's parameters, those of the environment (with the running statistics of training, where there
    are any: `agent.env.evaluation_params`), a key and a treatment to a `Played`.

    Args:
        env: trials, in the wrappers of the agent's own environment.
        opening: of the observations that the agent sees.
        episodes: K, at least the inner episodes of a trial.
        limit: steps of a trial after which the loop gives up.
        detector: what is asked with `changes` on; None: such a treatment clears nothing.
    """
    batch, lanes = env.num_envs, jnp.arange(env.num_envs)
    space = env.action_space(env.default_params)
    one_step = env.max_steps(env.default_params) == episodes
    per_action = one_step and isinstance(space, Discrete)
    streams = space.n if per_action and isinstance(space, Discrete) else 1

    def apply(params: Any, method: str, *args: Any) -> Any:
        return agent.network.apply({"params": params}, *args, method=method)

    def play(params: Any, env_params: Any, key: jax.Array, treat: Treatment) -> Played:
        start_key, key = jax.random.split(key)
        obs, env_state = env.reset(start_key, env_params)
        no_action = jnp.zeros((batch, *getattr(space, "shape", ())), getattr(space, "dtype", jnp.int32))
        shapes = jax.eval_shape(env.step, start_key, env_state, no_action, env_params)[-1]
        zeros, nothing = jnp.zeros((batch, episodes)), jnp.zeros(batch, jnp.int32)
        played = Played(
            returns=zeros,
            lengths=zeros.astype(jnp.int32),
            finished=zeros.astype(bool),
            success=zeros.astype(bool) if "success" in shapes else None,
            regret=zeros if "regret" in shapes else None,
            steps_to_goal=zeros.astype(jnp.int32) if "steps_to_goal" in shapes else None,
            over=jnp.zeros(batch, bool),
            switches=nothing,
            detected=nothing,
            delay=nothing,
            false_alarms=nothing,
        )
        watch = None if detector is None else _watch(detector, batch, streams, episodes)

        def unfinished(loop: tuple) -> jax.Array:
            step, *_, played = loop
            return (step < limit) & ~jnp.all(played.over)

        def one_step_of_all(loop: tuple) -> tuple:
            step, env_state, obs, reset, memory, episode, watch, played = loop  # episode: that which led to obs
            action_key, env_key = jax.random.split(jax.random.fold_in(key, step))
            moved, features = apply(params, "features_step", memory, obs, reset)
            memory = select_rows(episode >= treat.freeze_after, memory, moved)
            policy = apply(params, "policy", features, env.action_mask(env_state))
            action = policy.mode() if agent.settings.eval_greedy else policy.sample(action_key)
            obs, env_state, _, _, _, info = env.step(env_key, env_state, action, env_params)
            playing = ~played.over & info["valid"]
            played = _record(played, info, playing)

            clear = treat.reset & info["inner_reset"]
            switched = info.get("switched", jnp.zeros(batch, bool)) & playing
            clear |= switched & (treat.changes == CHANGES.index("oracle"))
            if detector is not None:
                assert watch is not None
                stream = action if per_action else jnp.zeros(batch, jnp.int32)
                active = info["inner_done"] & playing & (treat.changes == CHANGES.index("on"))
                watch, alarm = _listen(detector, watch, stream, info["inner_return"], active)
                watch, played = _judge(watch, played, alarm, switched)
                clear |= alarm
            played = played._replace(switches=played.switches + switched)
            obs = shown_as_opening(opening, obs, clear)
            episode = jnp.where(info["reset"], 0, info["episode"])
            return step + 1, env_state, obs, info["reset"] | clear, memory, episode, watch, played

        start = (jnp.int32(0), env_state, obs, jnp.ones(batch, bool), agent.network.initial_state(batch), nothing)
        return jax.lax.while_loop(unfinished, one_step_of_all, (*start, watch, played))[-1]

    def _record(played: Played, info: dict[str, jax.Array], playing: jax.Array) -> Played:
        """`played` after one step; out of range is dropped."""
        at = (lanes, jnp.where(playing, info["episode"], episodes))

        regret, success, steps_to_goal = played.regret, played.success, played.steps_to_goal
        return played._replace(
            returns=played.returns.at[at].set(info["inner_return"], mode="drop"),
            lengths=played.lengths.at[at].set(info["inner_length"], mode="drop"),
            finished=played.finished.at[at].set(info["inner_done"], mode="drop"),
            success=None if success is None else success.at[at].max(info["success"], mode="drop"),
            steps_to_goal=None
            if steps_to_goal is None
            else steps_to_goal.at[at].set(info["steps_to_goal"], mode="drop"),
            regret=None if regret is None else regret.at[at].add(info["regret"], mode="drop"),
            over=played.over | info["episode_done"],
        )

    def _judge(watch: Watch, played: Played, alarm: jax.Array, switched: jax.Array) -> tuple[Watch, Played]:
        """Whether alarms `[B]` follow a switch. One in the very step of a switch is of what was before it."""
        right = alarm & (watch.waiting >= 0)
        played = played._replace(
            detected=played.detected + right,
            delay=played.delay + jnp.where(right, watch.waiting, 0),
            false_alarms=played.false_alarms + (alarm & ~right),
        )
        waiting = jnp.where(right, -1, watch.waiting + (watch.waiting >= 0))
        return watch._replace(waiting=jnp.where(switched, 1, waiting)), played

    return jit(play)


# ------------------------------------------------------------------------------------------------------------ numbers

PerSeed = Sequence[np.ndarray | jax.Array]
"""One array `[trials, ...]` a seed."""


class Curve(NamedTuple):
    """Means over trials by inner episode `[K]`, with 95 % intervals."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(values: PerSeed) -> Curve:
    """Means of values `[trials, K]` of every seed, each seed with equal weight.

    The interval is that of the mean of these very agents over trials, a t interval from the variance within seeds; how
    agents differ from seed to seed is not in it.
    """
    return Curve(*t_interval(values))


def scalar(values: PerSeed) -> dict[str, Any]:
    """Mean of values `[trials]` of every seed, its interval over the n trials as that of `curve`, and the mean of each
    seed."""
    mean, low, high = t_interval(values)
    return {
        "n": sum(len(v) for v in values),
        "mean": float(mean),
        "ci95": [float(low), float(high)],
        "ci95_of": "mean",
        "per_seed": [float(np.mean(v, dtype=np.float64)) for v in values],
    }


def summarise_trials(played: list[Played]) -> dict[str, Any]:
    """Summary of the trials of all seeds (host arrays).

    Returns:
        `episodes`, the inner episodes that every trial finished; `by_episode`, curves over these of `return`, `length`,
        and where known `success`, `steps_to_goal` and `regret` (cumulated from the trial's first step); of these steps
        `first_steps_to_goal` and `last_steps_to_goal`, like `first` and `last`; and of whole trials `total`,
        `regret`, `first` and `last`: the return of the first inner episode and that of the last tenth of them (at least
        one); where tasks switched, `switches`, `detected`, `delay` and `false_alarms`, means over trials.

    Raises:
        BadRequest: a trial did not end, or finished no episode.
    """
    if not all(p.over.all() for p in played):
        raise BadRequest("some trials did not end within the limit of steps")
    complete = min(int(p.finished.sum(axis=1).min()) for p in played)
    if not complete:
        raise BadRequest("some trials ended before their first inner episode did: lengthen them")
    tenth = max(1, complete // 10)
    returns = [p.returns[:, :complete] for p in played]
    curves = {"return": curve(returns), "length": curve([p.lengths[:, :complete] for p in played])}
    if played[0].success is not None:
        curves["success"] = curve([np.asarray(p.success, float)[:, :complete] for p in played])
    result: dict[str, Any] = {
        "episodes": complete,
        "trials": sum(len(p.over) for p in played),
        "first": scalar([r[:, 0] for r in returns]),
        "last": scalar([r[:, -tenth:].mean(axis=1) for r in returns]),
        "total": scalar([p.returns.sum(axis=1, dtype=np.float64) for p in played]),
    }
    if played[0].steps_to_goal is not None:
        steps = [np.asarray(p.steps_to_goal, np.float64)[:, :complete] for p in played]
        curves["steps_to_goal"] = curve(steps)
        result["first_steps_to_goal"] = scalar([n[:, 0] for n in steps])
        result["last_steps_to_goal"] = scalar([n[:, -tenth:].mean(axis=1) for n in steps])
    if played[0].regret is not None:
        cumulated = [np.cumsum(np.asarray(p.regret), axis=1, dtype=np.float64) for p in played]
        curves["regret"] = curve([c[:, :complete] for c in cumulated])
        result["regret"] = scalar([c[:, -1] for c in cumulated])
    if any(p.switches.any() for p in played):
        switches, detected, delay, false_alarms = (
            sum(float(getattr(p, name).sum()) for p in played)
            for name in ("switches", "detected", "delay", "false_alarms")
        )
        result["detection"] = {
            "switches": switches / result["trials"],
            "detected": detected / switches,
            "delay": delay / detected if detected else None,
            "false_alarms": false_alarms / result["trials"],
        }
    result["by_episode"] = {
        name: {part: np.round(value, 5).tolist() for part, value in c._asdict().items()} for name, c in curves.items()
    }
    return result


def gain(played: list[Played], base: list[Played]) -> dict[str, Any]:
    """By how much the returns of whole trials exceed those of the same trials under another treatment: a `scalar`."""
    pairs = zip(played, base, strict=True)
    return scalar([np.asarray(p.returns - b.returns, np.float64).sum(axis=1) for p, b in pairs])


def quartiles(returns: np.ndarray) -> tuple[float, ...]:
    """Edges for a `Detector`: the quartiles of these returns, but below their maximum.

    Raises:
        BadRequest: all returns are the same.
    """
    below = returns[returns < returns.max()]
    if not below.size:
        raise BadRequest("all returns are the same: there is nothing for a detector to see")
    edges = np.quantile(returns, (0.25, 0.5, 0.75), method="lower")
    return tuple(sorted({float(edge) for edge in np.minimum(edges, below.max())}))


# --------------------------------------------------------------------------------------------------------------- cost


def state_bytes(agent: PPO) -> int:
    """Size of the memory's state of one environment."""
    state = jax.eval_shape(lambda: agent.network.initial_state(1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def step_seconds(agent: PPO, params: Any, batch: int, steps: int = 256, repeats: int = 5) -> float:
    """Wall time of one acting step of `batch` environments: memory, policy and sampling, without the environments.

    The least of some repeats of a compiled loop of `steps` steps, so what starts a program is not in it.
    """
    space = agent.env.observation_space(agent.env.default_params)
    assert isinstance(space, Box)
    # Observations that change: XLA would take the encoder of a constant one out of the loop.
    obs = jax.random.normal(jax.random.key(0), (steps, batch, *space.shape))

    @jax.jit
    def act(params: Any, memory: Any, obs: jax.Array, keys: jax.Array):
        apply = partial(agent.network.apply, {"params": params})

        def one_step(memory: Any, row: tuple[jax.Array, jax.Array]):
            memory, features = apply(memory, row[0], jnp.zeros(batch, bool), method="features_step")
            policy: Any = apply(features, method="policy")
            return memory, policy.sample(row[1])

        return jax.lax.scan(one_step, memory, (obs, keys))

    arguments = (params, agent.network.initial_state(batch), obs, jax.random.split(jax.random.key(1), steps))
    jax.block_until_ready(act(*arguments))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(act(*arguments))
        times.append(time.perf_counter() - begun)
    return min(times) / steps
