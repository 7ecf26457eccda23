"""The sequence policy: what it may see, acting as in training, losses, self-evolution, optimiser, evaluation."""

from dataclasses import dataclass, replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy import stats

from engram.agents.offline.data import OfflineData, draw
from engram.agents.offline.sequence_policy import SequenceAgent, SequencePolicy, SequenceSettings, is_decayed
from engram.agents.offline.view import DataView
from engram.configs.presets import PRESETS
from engram.envs.base import Environment
from engram.envs.datasets import Episodes, Origin
from engram.envs.spaces import Box, Discrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import FlattenObservation
from engram.errors import BadRequest
from engram.memory import make_memory
from engram.memory.base import Memory
from engram.memory.layers import Dense
from engram.memory.mamba import Mamba
from engram.memory.mixers import MIXERS, StepMixer, TokenMixer, make_mixer
from engram.memory.stack import Stack
from tests.memory.small import SMALL

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
QUICK = ("attention", "dm", "gru")
"""Mixers that stand for the others: what holds for tokens mixed by one memory holds for all that keep the contract."""
EACH = pytest.mark.parametrize(
    "mixer", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(MIXERS)]
)
K, WIDTH, OBS, LIMIT = 5, 8, 2, 8
KEY = jax.random.key(0, impl="unsafe_rbg")  # the default generator takes long to compile
WHOLE, SHORT, GARBAGE, CUT = range(4)  # rows of the batch of windows


def mixer_of(name: str) -> TokenMixer:
    """One layer of `name`; two of dm, whose layers hand on what two tokens of a step share."""
    whole = {"attention": {"window": 3 * K - 1}, "framestack": {"frames": 3 * K}, "tcn": {"taps": 3 * K, "dilation": 1}}
    options = SMALL.get(name, {}) | whole.get(name, {})
    return make_mixer(name, WIDTH, 2 if name == "dm" else 1, **options)


def policy_of(mixer: TokenMixer, discrete: bool = False) -> SequencePolicy:
    deep = isinstance(mixer, StepMixer)
    return SequencePolicy(
        mixer, OBS, actions=2 if discrete else 1, discrete=discrete, max_timestep=LIMIT, span=LIMIT, deep=deep
    )


def parameters(policy: SequencePolicy, w: dict[str, Any]) -> Any:
    """Random parameters none of which is at a special value."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, KEY, **w)
    return jax.tree.map(lambda p: rng.normal(scale=0.4, size=p.shape).astype(p.dtype), shapes)


def window(steps: int, batch: int) -> dict[str, Any]:
    """The policy's inputs of whole windows."""
    rng = np.random.default_rng(3)
    return {
        "to_go": rng.normal(size=(steps, batch)).astype(np.float32),
        "obs": rng.normal(size=(steps, batch, OBS)).astype(np.float32),
        "action": rng.normal(size=(steps, batch, 1)).astype(np.float32),
        "timestep": np.repeat(np.arange(steps, dtype=np.int32)[:, None] % LIMIT, batch, 1),
        "mask": np.ones((steps, batch), bool),
        "reset": np.arange(steps)[:, None] + np.zeros(batch) == 0,
    }


def windows() -> dict[str, Any]:
    """A whole window, its first three steps behind two pads, the same with other pads, one with a reset inside."""
    w = window(K, 4)
    for name, x in w.items():
        x[:, SHORT] = x[:, GARBAGE] = np.roll(x[:, WHOLE], 2, 0)
        if name in ("to_go", "obs", "action"):
            x[:2, GARBAGE] = 1e6
    w["mask"][:2, [SHORT, GARBAGE]] = False
    w["reset"][:3, [SHORT, GARBAGE]] = True
    w["reset"][3, CUT] = True
    return w


INPUTS = ("to_go", "obs", "action")


def perturbed(w: dict[str, Any], row: int = 0) -> dict[str, Any]:
    """One row of `w` again for each input and step, with that input changed at that step: `[T, 3 T]`."""
    steps = len(w["mask"])
    copies = {name: np.repeat(x[:, row : row + 1], len(INPUTS) * steps, 1) for name, x in w.items()}
    for i, name in enumerate(INPUTS):
        for step in range(steps):
            copies[name][step, i * steps + step] += 1.0
    return copies


def joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {name: np.concatenate([a[name], b[name]], 1) for name in a}


def is_seen(out: Any, changed: Any) -> dict[str, np.ndarray]:
    """By input: bool `[2, T, T]`, whether the action predicted at step `t` (0), and what is predicted after it (1),
    change with the input of step `s`. `out` `[T, ...]`: the predictions of a row; `changed` `[T, 3 T, ...]`: those of
    `perturbed`."""

    def moved(heads):
        each = [np.abs(np.asarray(new) - np.asarray(old)[:, None]) for old, new in heads]
        return np.max([x.reshape(*x.shape[:2], -1).max(-1) for x in each], 0) > 1e-6

    steps = len(out.action)
    seen = np.stack(
        [
            moved([(out.action, changed.action)]),
            moved([(out.next_obs, changed.next_obs), (out.next_to_go, changed.next_to_go)]),
        ]
    )
    return {name: seen[..., i * steps : (i + 1) * steps] for i, name in enumerate(INPUTS)}


@cache
def facts(name: str) -> SimpleNamespace:
    """What one mixer's policy predicts of `windows()`: at once, by steps, and what that depends on."""
    policy, w = policy_of(mixer_of(name)), windows()
    params = parameters(policy, w)

    def by_steps(w):
        def step(state, now):
            state, out = policy.apply(
                params, state, now["to_go"], now["obs"], now["timestep"], now["reset"], method="observe"
            )
            return policy.apply(params, state, now["action"], now["timestep"], method="act"), out

        return jax.lax.scan(step, policy.initial_state(w["mask"].shape[1]), w)[1]

    out, steps = quick(lambda all_rows, w: (policy.apply(params, **all_rows), by_steps(w)))(joined(w, perturbed(w)), w)
    rows, changed = (jax.tree.map(lambda x, part=part: x[:, part], out) for part in (slice(None, 4), slice(4, None)))
    return SimpleNamespace(seen=is_seen(jax.tree.map(lambda x: x[:, WHOLE], rows), changed), out=rows, steps=steps)


# ----------------------------------------------------------------------------------------------------- what it may see


@EACH
def test_no_prediction_sees_what_it_predicts(mixer):
    seen = facts(mixer).seen
    future, now = np.triu(np.ones((K, K), bool), 1), np.eye(K, dtype=bool)
    for head in (0, 1):
        for name in ("to_go", "obs", "action"):
            assert not seen[name][head][future].any(), (head, name)
    assert not seen["action"][0][now].any()
    assert seen["obs"][0][now].all()
    assert seen["action"][1][now].all()
    if mixer != "none":
        assert seen["to_go"][0][now].all()
        assert seen["action"][0][np.eye(K, k=-1, dtype=bool)].all()


class Released(Memory):
    """The wiring of the published code: groups hold the step's own action and are tiled, not repeated in place."""

    @nn.nowrap
    def initial_state(self, batch):
        return ()

    @nn.compact
    def __call__(self, state, x, reset):
        def mamba(x, reset, **options):
            layer = Mamba(self.width, **options)
            return layer(layer.initial_state(x.shape[1]), x, reset)[1]

        steps, batch = len(x) // 3, x.shape[1]
        groups = x.at[-1].set(0).reshape(steps, 3, batch, -1).swapaxes(1, 2).reshape(steps, batch, -1)
        fine = mamba(Dense(self.width)(groups), reset[::3])
        return state, mamba(x, reset) + nn.LayerNorm()(jnp.tile(fine, (3, 1, 1)))


@pytest.mark.parametrize(("layers", "leaking"), [(1, [*range(7), 10, 11, 12]), (2, range(19))])
def test_the_published_wiring_leaks_the_action(layers, leaking):
    """The check above can fail: 10 of 20 steps leak with one layer, 19 with two."""
    policy = policy_of(TokenMixer(Stack(WIDTH, layers=tuple(Released(WIDTH) for _ in range(layers)), rms=True)))
    w = window(20, 1)
    params = parameters(policy, w)
    out: Any = quick(lambda w: policy.apply(params, **w))(joined(w, perturbed(w)))
    row, changed = jax.tree.map(lambda x: x[:, 0], out), jax.tree.map(lambda x: x[:, 1:], out)
    seen = is_seen(row, changed)["action"][0]
    assert np.flatnonzero(np.triu(seen).any(1)).tolist() == list(leaking)


@EACH
def test_steps_equal_windows(mixer):
    f = facts(mixer)
    for row in (WHOLE, CUT):
        np.testing.assert_allclose(f.steps[:, row], f.out.action[:, row], atol=1e-5)
    np.testing.assert_allclose(f.steps[2:, SHORT], f.out.action[2:, SHORT], atol=1e-5)


@EACH
def test_padding_is_inert(mixer):
    """A window of three steps padded to five is the beginning of a whole one, whatever the pads hold."""
    for x in jax.tree.leaves(facts(mixer).out):
        np.testing.assert_allclose(x[:3, WHOLE], x[2:, SHORT], atol=1e-6)
        np.testing.assert_array_equal(x[2:, SHORT], x[2:, GARBAGE])


@pytest.mark.parametrize("deep", [False, True])
def test_how_large_a_return_is_asked_for_is_seen_from_the_beginning(deep):
    """Normalised, the embedding of one number keeps its sign alone if nothing is added to it."""
    policy = policy_of(mixer_of("none")).copy(deep=deep)
    to_go, timestep = jnp.array([-0.2, -0.4, -0.8, -1.6]), jnp.zeros(4, jnp.int32)
    tokens = quick(lambda: policy.init_with_output(KEY, to_go, timestep, method="to_go_token")[0])()
    distance = np.linalg.norm(tokens[:, None] - tokens[None], axis=-1)
    assert np.all(np.diff(distance[0]) > 0.05 * np.linalg.norm(tokens[0]))


def test_times_that_are_near_begin_alike():
    """A readout of the time, fitted to every other row of the table as it begins, tells the rows between. Rows that
    begin at random tell nothing of each other."""

    def error(table):
        steps = np.linspace(-1, 1, len(table))
        readout = np.linalg.lstsq(table[::2], steps[::2], rcond=None)[0]
        return np.abs(table[1::2] @ readout - steps[1::2]).max()

    def table_of(limit: int) -> np.ndarray:
        policy = policy_of(mixer_of("none")).copy(max_timestep=limit, span=99)
        variables: Any = quick(lambda: policy.init(KEY, jnp.zeros(1), jnp.zeros(1, jnp.int32), method="to_go_token"))()
        return np.asarray(variables["params"]["embed_timestep"]["embedding"])

    table = table_of(99)
    assert error(table) < 0.05
    # A limit beyond the recorded episodes does not bring their times closer to each other.
    np.testing.assert_allclose(table_of(999)[:100], table, atol=1e-6)
    assert error(np.random.default_rng(0).normal(size=table.shape)) > 0.5


def test_blank_actions_are_seen_by_nothing():
    policy, w = policy_of(mixer_of("gru")).copy(see_actions=False), windows()
    params = parameters(policy, w)
    both = quick(lambda w, action: (policy.apply(params, **w), policy.apply(params, **(w | {"action": action}))))
    one, other = both(w, np.random.default_rng(1).normal(size=w["action"].shape).astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --------------------------------------------------------------------------------------------------------------- agents


@dataclass(frozen=True)
class Pay(Environment):
    """Eight steps whose reward is the action, within [0, 2]; the observation is time and a random number."""

    discrete: bool = False

    def reset(self, key, params):
        noise = jax.random.uniform(key)
        return jnp.stack([jnp.zeros(()), noise]), (jnp.zeros((), jnp.int32), noise)

    def step(self, key, state, action, params):
        t, noise = state[0] + 1, state[1]
        reward = jnp.asarray(action, jnp.float32).reshape(())
        obs = jnp.stack([t.astype(jnp.float32), noise])
        return obs, (t, noise), reward, jnp.zeros((), bool), t >= LIMIT, {}

    def observation_space(self, params):
        return Box(-np.inf, np.inf, (2,))

    def action_space(self, params):
        return Discrete(2) if self.discrete else Box(0.0, 2.0, (1,))

    def max_steps(self, params):
        return LIMIT


@cache
def episodes_of(discrete: bool = False) -> Episodes:
    """Forty episodes, each with a level around which its actions lie."""
    rng = np.random.default_rng(0)
    n = 40
    level = rng.uniform(0.1, 0.9, (n, 1))
    action = (
        rng.uniform(size=(n, LIMIT)) < level if discrete else 2 * np.clip(rng.normal(level, 0.03, (n, LIMIT)), 0, 1)
    )
    obs = np.stack([np.tile(np.arange(LIMIT + 1.0), (n, 1)), np.repeat(rng.uniform(size=(n, 1)), LIMIT + 1, 1)], -1)
    bounds: dict[str, Any] = (
        {"num_actions": 2} if discrete else {"action_low": np.zeros(1), "action_high": np.full(1, 2.0)}
    )
    return Episodes(
        obs=obs.reshape(-1, 2).astype(np.float32),
        action=action.reshape(-1).astype(np.int32) if discrete else action.reshape(-1, 1).astype(np.float32),
        reward=action.reshape(-1).astype(np.float32),
        terminated=np.zeros(n, bool),
        lengths=np.full(n, LIMIT),
        origin=Origin(env="", ref_min=1.0, ref_max=9.0),
        **bounds,
    )


SETTINGS = replace(
    SequenceSettings(),
    context=LIMIT,
    batch_size=32,
    learning_rate=1e-2,
    learning_rate_end=1e-2,
    warmup=10,
    return_scale=8.0,
    epoch=25,
    targets=(4.0, 12.0),
    eval_episodes=4,
    acting="both",
)
EPOCH = 2


@cache
def agent_of(mixer: str = "gru", discrete: bool = False, total_updates: int = 100, **settings: Any) -> SequenceAgent:
    s = replace(SETTINGS, **settings)
    episodes = episodes_of(discrete)
    view = DataView.of(episodes, s.targets)
    data = OfflineData.of(episodes, view.mean, view.deviation)
    env = FlattenObservation(Vectorised(Pay(discrete), s.eval_episodes))
    return SequenceAgent(env, policy_of(mixer_of(mixer), discrete), data, s, view, total_updates)


@cache
def params_of(seed: int, mixer: str = "gru") -> Any:
    """Random parameters of `agent_of(mixer)`."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(agent_of(mixer).init, KEY).params
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(scale=0.3, size=p.shape), p.dtype), shapes)


@cache
def history() -> tuple[list[Any], list[Any]]:
    """States and metrics of seven updates, in epochs of two."""
    agent = agent_of("none", epoch=EPOCH, total_updates=4 * EPOCH)
    update = quick(agent.update)
    states, metrics = [quick(agent.init)(KEY)], []
    for _ in range(7):
        state, out = update(states[-1])
        states.append(state)
        metrics.append(out)
    return states, metrics


@cache
def evaluated() -> Any:
    return quick(agent_of().evaluate)


def state_of(params: Any) -> Any:
    return jax.eval_shape(agent_of().init, KEY).replace(params=params, teacher=None, optimiser=(), key=None, updates=0)


@pytest.mark.slow
def test_it_gets_the_return_it_is_asked_for():
    agent = agent_of()
    run = quick(lambda state: jax.lax.scan(lambda s, _: (agent.update(s)[0], None), state, None, length=200)[0])
    metrics = evaluated()(state_of(run(quick(agent.init)(KEY)).params), jax.random.key(1))
    for mode in ("", "recurrent_"):
        for target in (4, 12):
            assert float(metrics[f"eval/{mode}return_at_{target}"]) == pytest.approx(target, abs=0.8)
        assert float(metrics[f"eval/{mode}target"]) == 12.0


def test_both_ways_of_acting_are_the_same_where_the_window_holds_the_episode():
    metrics = evaluated()(state_of(params_of(0)), jax.random.key(1))
    for name in ("return", "return_at_4", "return_at_12"):
        assert float(metrics[f"eval/{name}"]) == pytest.approx(float(metrics[f"eval/recurrent_{name}"]), abs=1e-4)
    assert abs(float(metrics["eval/return_at_4"]) - float(metrics["eval/return_at_12"])) > 1e-3
    assert float(metrics["eval/length"]) == float(metrics["eval/recurrent_length"]) == LIMIT
    score = episodes_of().score(float(metrics["eval/return_at_12"]))
    assert float(metrics["eval/score_at_12"]) == pytest.approx(score, abs=1e-3)


class Spender(SequenceAgent):
    """Takes as reward, at each step, all that is left of the return asked for, at most 2."""

    def windowed(self, lanes: int) -> Any:
        return (), lambda params, memory, to_go, obs, t, mask: (memory, jnp.minimum(to_go * 8.0, 2.0)[:, None])


def test_the_return_to_go_falls_by_the_rewards():
    agent = agent_of()
    spender = Spender(agent.env, agent.policy, agent.data, agent.settings, agent.view, agent.total_updates)
    returns, lengths = quick(lambda key: spender.play((), key, "window"))(jax.random.key(0))
    np.testing.assert_allclose(returns, np.repeat([[4.0], [12.0]], SETTINGS.eval_episodes, 1), atol=1e-5)
    np.testing.assert_array_equal(lengths, LIMIT)


def test_targets_are_played_from_the_same_openings():
    """A policy that is blind to its target earns the same with each, but not the same with other openings."""
    params = params_of(1)
    state = state_of({**params, "embed_to_go": jax.tree.map(jnp.zeros_like, params["embed_to_go"])})
    metrics = evaluated()(state, jax.random.key(1))
    assert float(metrics["eval/return_at_4"]) == pytest.approx(float(metrics["eval/return_at_12"]), abs=1e-5)
    others = evaluated()(state, jax.random.key(2))
    assert abs(float(others["eval/return_at_4"]) - float(metrics["eval/return_at_4"])) > 1e-4
    assert evaluated()._cache_size() == 1, "compiled once, whatever the parameters"


def test_discrete_actions_are_the_likeliest_ones():
    view = DataView.of(episodes_of(True))
    action, numbers = view.decide(jnp.asarray([[1.0, 2.0], [0.5, -3.0]]))
    np.testing.assert_array_equal(action, [1, 0])
    np.testing.assert_array_equal(numbers, [[0, 1], [1, 0]])
    assert action.dtype == jnp.int32


def test_continuous_actions_are_scaled_to_their_bounds():
    view = DataView.of(episodes_of())
    np.testing.assert_allclose(view.numbers(jnp.asarray([[0.0], [2.0], [0.5]])), [[-1], [1], [-0.5]])
    action, numbers = view.decide(jnp.asarray([[0.5], [-7.0]]))
    np.testing.assert_allclose(action, [[1.5], [0.0]])
    np.testing.assert_allclose(numbers, [[0.5], [-1.0]])


def test_observations_are_normalised_by_the_steps():
    """By those that were acted on, not by those that ended an episode."""
    episodes = episodes_of()
    obs = episodes.obs.reshape(-1, LIMIT + 1, 2)[:, :-1].reshape(-1, 2).astype(np.float64)
    view = DataView.of(episodes)
    np.testing.assert_allclose(view.mean, obs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(view.deviation, obs.std(0) + 1e-6, rtol=1e-5)
    assert view.targets == tuple(float(f"{q:.4g}") for q in np.quantile(episodes.returns, (0.1, 0.5, 0.9, 1.0)))


def test_the_target_is_chosen_on_other_episodes_than_counted():
    returns = jnp.asarray([[9.0, 9.0, 1.0, 3.0], [8.0, 8.0, 7.0, 7.0]])
    metrics = agent_of().report("eval/", returns, jnp.full((2, 4), LIMIT))
    assert float(metrics["eval/target"]) == 4.0
    assert float(metrics["eval/return"]) == 2.0
    assert float(metrics["eval/return_at_12"]) == 7.5


# --------------------------------------------------------------------------------------------------------------- losses


def uneven() -> OfflineData:
    """Episodes of 3, 8, 1 and 6 steps; the first entry of an observation is the number of its step."""
    lengths = np.array([3, 8, 1, 6])
    steps, rows = lengths.sum(), lengths.sum() + len(lengths)
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(rows, OBS)).astype(np.float32)
    which = np.repeat(np.arange(4), lengths)
    obs[np.arange(steps) + which, 0] = np.arange(steps)
    return OfflineData.of(
        Episodes(
            obs=obs,
            action=rng.uniform(0, 2, (steps, 1)).astype(np.float32),
            reward=rng.normal(size=steps).astype(np.float32),
            terminated=np.zeros(4, bool),
            lengths=lengths,
            origin=Origin(env=""),
            action_low=np.zeros(1),
            action_high=np.full(1, 2.0),
        )
    )


def test_returns_to_go_are_suffix_sums():
    data, reward = uneven(), np.asarray(uneven().reward, np.float64)
    for start, length in zip(np.asarray(data.start), np.asarray(data.length), strict=True):
        for t in range(start, start + length):
            assert float(data.to_go[t]) == pytest.approx(reward[t : start + length].sum(), abs=1e-6)


def test_windows_begin_at_every_step_alike():
    """The first and the last of an episode, and short episodes, among them: chi-square over the 18 steps."""
    data, n = uneven(), 40_000
    drawn = quick(lambda key: data.windows(draw(key, data, n), K))(jax.random.key(0))
    first = np.asarray(drawn.obs)[np.argmax(np.asarray(drawn.mask), 0), np.arange(n), 0].astype(int)
    counts = np.bincount(first, minlength=data.steps)
    assert stats.chisquare(counts).pvalue > 1e-3
    ends = np.asarray(data.start + data.length)[np.asarray(data.episode)[first]]
    length = np.minimum(ends - first, K)
    np.testing.assert_array_equal(np.asarray(drawn.mask).sum(0), length)
    # Memory begins anew at the first step that is there, or it would hold the blank steps before it.
    np.testing.assert_array_equal(drawn.reset, np.arange(K)[:, None] <= K - length)


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def test_losses_are_means_over_the_steps_that_are_there():
    agent = agent_of()
    s = agent.settings
    data = uneven()
    windows = data.windows(jnp.arange(data.steps), s.context)
    out, (total, parts) = quick(lambda p: (agent.predict(p, windows), agent.loss(p, None, windows, 0.0)))(params_of(0))
    action, obs, to_go = [], [], []
    for b in range(data.steps):
        steps = np.flatnonzero(np.asarray(windows.mask)[:, b])
        for t in steps:
            action.append((float(out.action[t, b, 0]) - (float(windows.action[t, b, 0]) - 1.0)) ** 2)
            if t + 1 in steps:
                obs.append(huber(np.asarray(out.next_obs[t, b] - windows.obs[t + 1, b])).mean())
                to_go.append(huber(float(out.next_to_go[t, b]) - float(windows.to_go[t + 1, b]) / 8.0))
    assert len(obs) < len(action) < windows.mask.size
    for name, values in (("action", action), ("next_obs", obs), ("next_to_go", to_go)):
        assert float(parts[f"loss/{name}"]) == pytest.approx(np.mean(values), rel=1e-4), name
    expected = 0.9 * np.mean(action) + 0.05 * np.mean(obs) + 0.05 * np.mean(to_go)
    assert float(total) == pytest.approx(expected, rel=1e-4)


def test_discrete_actions_are_learned_by_cross_entropy():
    agent = agent_of(discrete=True)
    batch = agent.data.windows(jnp.arange(30), LIMIT)
    w: Any = dict(zip(("to_go", "obs", "action", "timestep", "mask", "reset"), agent.inputs(batch), strict=True))
    params = parameters(agent.policy, w)["params"]
    teacher = jax.tree.map(lambda p: -p, params)
    mask, alpha = np.asarray(batch.mask), 0.3
    out, taught, (_, parts) = quick(
        lambda p, q: (agent.predict(p, batch), agent.predict(q, batch), agent.loss(p, q, batch, alpha))
    )(params, teacher)
    logits = np.asarray(out.action, np.float64)
    earlier = scipy.special.softmax(np.asarray(taught.action, np.float64), -1)
    target = 0.7 * np.eye(2)[np.asarray(batch.action)] + alpha * earlier
    expected = -(target * scipy.special.log_softmax(logits, -1)).sum(-1)[mask].mean()
    assert float(parts["loss/action"]) == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------------- self-evolution


@cache
def action_gradient() -> Any:
    """Compiled: the gradient of the action's loss for parameters, teacher and share; and that without a teacher."""
    agent = agent_of("none", obs_weight=0.0, to_go_weight=0.0, action_weight=1.0)
    windows = agent.data.windows(jnp.arange(0, 320, 5), LIMIT)

    def flat(tree):
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])

    def gradients(params, teacher, alpha):
        both = jax.value_and_grad(lambda p, t: agent.loss(p, t, windows, alpha)[0], argnums=(0, 1))
        value, (of_student, of_teacher) = both(params, teacher)
        return value, flat(of_student), flat(of_teacher)

    return quick(gradients), quick(jax.value_and_grad(lambda p: agent.loss(p, None, windows, 0.0)[0]))


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.slow
def test_a_share_of_nothing_is_plain_imitation():
    with_teacher, without = action_gradient()
    student, teacher = params_of(3, "none"), params_of(1, "none")
    value, gradient, _ = with_teacher(student, teacher, 0.0)
    plain_value, plain = without(student)
    assert float(value) == pytest.approx(float(plain_value), rel=1e-6)
    plain = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(plain)])
    np.testing.assert_allclose(gradient, plain, rtol=1e-5, atol=1e-6 * np.abs(plain).max())


def test_the_teacher_moves_the_target_and_gets_no_gradient():
    with_teacher, _ = action_gradient()
    student, teacher, other = (params_of(seed, "none") for seed in (3, 1, 2))
    value, _, of_teacher = with_teacher(student, teacher, 0.5)
    assert not np.any(np.asarray(of_teacher))
    assert abs(float(value) - float(with_teacher(student, other, 0.5)[0])) > 1e-7


def test_only_an_earlier_teacher_changes_the_direction():
    """With the policy itself as its teacher the gradient is (1 - alpha) times that of imitation."""
    with_teacher, _ = action_gradient()
    student, earlier = params_of(2, "none"), params_of(1, "none")
    plain = with_teacher(student, student, 0.0)[1]
    same = with_teacher(student, student, 0.5)[1]
    assert cosine(same, plain) > 0.99999
    np.testing.assert_allclose(same, 0.5 * np.asarray(plain), atol=1e-5 * np.max(np.abs(plain)))
    assert cosine(with_teacher(student, earlier, 0.5)[1], plain) < 0.999


@pytest.mark.slow
def test_teacher_is_the_policy_at_the_end_of_the_epoch_before():
    states = history()[0]
    for i, later in enumerate(states):
        before = states[i - i % EPOCH]
        for kept, old in zip(jax.tree.leaves(later.teacher), jax.tree.leaves(before.params), strict=True):
            np.testing.assert_array_equal(kept, old)
    kernel = lambda state: np.asarray(state.params["action_out"]["kernel"])  # noqa: E731
    assert np.all(kernel(states[2]) != kernel(states[3]))
    assert jax.eval_shape(agent_of(alpha_T=0.0).init, KEY).teacher is None


def test_share_of_the_teacher():
    """`min(cap, alpha_T k / K)` in epoch `k` of `K`, and 0 in the first."""
    agent = agent_of(total_updates=40 * 25)
    expected = [min(0.5, 0.85 * (i // 25) / 40) for i in range(1000)]
    np.testing.assert_allclose(jax.vmap(agent.alpha)(jnp.arange(1000)), expected, rtol=1e-6)
    assert float(agent.alpha(jnp.asarray(24))) == 0.0
    shares = [float(m["train/alpha"]) for m in history()[1]]
    np.testing.assert_allclose(shares, [min(0.5, 0.85 * (i // EPOCH) / 4) for i in range(7)], rtol=1e-6)


# ------------------------------------------------------------------------------------------ the Decision Transformer's


@pytest.mark.parametrize("time_first", [False, True])
def test_time_is_added_after_or_before_the_normalisation(time_first):
    """Against NumPy in float64: LayerNorm of a linear map, and the row of the time."""
    policy = policy_of(mixer_of("none")).copy(time_first=time_first)
    rng = np.random.default_rng(2)
    obs, timestep = rng.normal(size=(6, OBS)), np.arange(6)
    shapes: Any = jax.eval_shape(partial(policy.init, method="obs_token"), KEY, obs, timestep)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), shapes)["params"]
    linear, norm = params["embed_obs"]["Dense_0"], params["norm"]

    def normalised(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]

    h, time = obs @ linear["kernel"] + linear["bias"], params["embed_timestep"]["embedding"][:6]
    expected = normalised(h + time) if time_first else normalised(h) + time
    float32 = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    token: Any = policy.apply({"params": float32}, jnp.asarray(obs, jnp.float32), timestep, method="obs_token")
    np.testing.assert_allclose(token, expected, atol=1e-4)


def test_entries_of_tokens_are_dropped():
    """A quarter becomes 0, the rest grows by 4/3; without a key nothing is dropped."""
    policy = policy_of(mixer_of("none")).copy(dropout=0.25)
    obs, timestep = jax.random.normal(jax.random.key(1), (4000, OBS)), jnp.zeros(4000, jnp.int32)
    variables: Any = policy.init(KEY, obs, timestep, method="obs_token")
    whole = np.asarray(policy.apply(variables, obs, timestep, method="obs_token"))
    dropped: Any = policy.apply(variables, obs, timestep, method="obs_token", rngs={"dropout": KEY})
    zero = np.asarray(dropped) == 0
    assert zero.mean() == pytest.approx(0.25, abs=0.01)  # four deviations of 32,000 entries
    np.testing.assert_allclose(dropped, np.where(zero, 0, whole / 0.75), rtol=1e-5)
    assert not np.any(whole == 0)


def test_outputs_of_layers_are_dropped_before_they_are_added():
    stack = make_memory("none", WIDTH, dropout=0.25)
    x = jax.random.normal(jax.random.key(1), (1, 4000, WIDTH))
    inputs = (stack.initial_state(4000), x, jnp.ones((1, 4000), bool))
    variables: Any = stack.init(KEY, *inputs)
    outputs: Any = [stack.apply(variables, *inputs, rngs=rngs) for rngs in ({}, {"dropout": KEY})]
    added, dropped = (np.asarray(y - x) for _, y in outputs)
    kept = np.isclose(dropped, added / 0.75, atol=1e-5)
    assert 1 - kept.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(dropped[~kept], 0, atol=1e-5)


def test_weights_of_attention_are_dropped_by_head():
    """A step that sees itself alone has weight 1, which becomes 0 or 2 in each of two heads: NumPy in float64."""
    rows = 2000
    layer = MIXERS["attention"](WIDTH, window=1, heads=2, weight_dropout=0.5)  # type: ignore[call-arg]
    x = jax.random.normal(jax.random.key(1), (1, rows, WIDTH))
    inputs = (layer.initial_state(rows), x, jnp.ones((1, rows), bool))
    variables: Any = layer.init(KEY, *inputs)
    y: Any = layer.apply(variables, *inputs, rngs={"dropout": KEY})
    whole: Any = layer.apply(variables, *inputs)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    values = np.asarray(x[0], np.float64) @ params["qkv"]["kernel"][:, 2 * WIDTH :]

    def output(weights):
        u = np.repeat(weights, WIDTH // 2) * values
        u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        value, gate = np.split(u @ params["out"]["out"]["kernel"] + params["out"]["out"]["bias"], 2, -1)
        return value * scipy.special.expit(gate)

    found = np.stack(
        [np.isclose(y[1][0], output(np.array(w)), atol=1e-4).all(-1) for w in ([0, 0], [0, 2], [2, 0], [2, 2])]
    )
    np.testing.assert_array_equal(found.sum(0), 1)
    np.testing.assert_allclose(found.mean(1), 0.25, atol=0.04)  # four deviations
    np.testing.assert_allclose(whole[1][0], output(np.ones(2)), atol=1e-4)
    with pytest.raises(BadRequest, match=r"weight_dropout must lie in \[0, 1\)"):
        layer.copy(weight_dropout=1.0)


@cache
def dropping() -> SequenceAgent:
    """An agent with dropout everywhere and an earlier policy."""
    agent = agent_of("attention", epoch=EPOCH, total_updates=4 * EPOCH)
    layers = tuple(layer.copy(weight_dropout=0.4) for layer in agent.policy.mixer.stack.layers)
    mixer = agent.policy.mixer.copy(stack=agent.policy.mixer.stack.copy(layers=layers, dropout=0.4))
    return replace(agent, policy=agent.policy.copy(mixer=mixer, dropout=0.4))


@pytest.mark.slow
def test_dropout_is_of_training_alone():
    """Evaluations and the earlier policy drop nothing."""
    agent, plain = dropping(), agent_of("attention", epoch=EPOCH, total_updates=4 * EPOCH)
    params = params_of(0, "attention")
    metrics = [
        quick(lambda params, agent=agent: [agent.play(params, KEY, mode) for mode in ("window", "recurrent")])(params)
        for agent in (agent, plain)
    ]
    jax.tree.map(np.testing.assert_array_equal, *metrics)
    windows = agent.data.windows(jnp.arange(0, 320, 5), LIMIT)
    taught = {name: x.predict(params, windows).action for name, x in (("dropping", agent), ("plain", plain))}
    np.testing.assert_array_equal(taught["dropping"], taught["plain"])
    assert np.all(taught["plain"] != agent.predict(params, windows, KEY).action)


@pytest.mark.slow
def test_updates_with_dropout_are_repeated_by_their_state():
    """What is dropped follows from the state's key alone, and differs from update to update. Runs without dropout go on
    with the keys that they had before there was any."""
    agent = dropping()
    update, start = quick(agent.update), quick(agent.init)(KEY)
    once, again = update(start), update(start)
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(_plain, x) for x in (once, again)))
    np.testing.assert_array_equal(_plain(once[0].key), _plain(jax.random.split(start.key)[0]))
    windows = agent.data.windows(jnp.arange(0, 320, 5), LIMIT)
    keys = [jax.random.split(state.key, 3)[2] for state in (start, once[0])]
    losses = [float(agent.loss(start.params, None, windows, 0.0, key)[0]) for key in (*keys, None)]
    assert len(set(losses)) == 3


def _plain(leaf: jax.Array) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_gradients_flow_through_dropout():
    """Every parameter has a gradient."""
    agent = dropping()
    params = params_of(0, "attention")
    windows = agent.data.windows(jnp.arange(0, 320, 5), LIMIT)
    gradient = quick(jax.grad(lambda p, key: agent.loss(p, None, windows, 0.0, key)[0]))(params, KEY)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


def test_the_preset_has_the_published_values():
    """Those of `gym/experiment.py` in kzl/decision-transformer; the dropout of tokens is the default of GPT2Config."""
    preset: Any = PRESETS["dt"]
    s, sizes = preset.sequence, preset.mixer
    assert (s.context, s.batch_size, s.learning_rate, s.learning_rate_end) == (20, 64, 1e-4, 1e-4)
    assert (s.warmup, s.weight_decay, s.max_grad_norm, s.adam_eps) == (10_000, 1e-4, 0.25, 1e-8)
    assert (s.action_weight, s.obs_weight, s.to_go_weight, s.alpha_T) == (1.0, 0.0, 0.0, 0.0)
    assert (s.return_scale, s.eval_episodes, preset.total_steps) == (1000.0, 100, 100_000)
    assert (preset.memory, sizes.width, sizes.layers, sizes.memory_options) == (
        "attention",
        128,
        3,
        ("attention.heads=1",),
    )
    assert (sizes.deep, sizes.dropout, sizes.add_time) == (False, 0.1, "before")


# ------------------------------------------------------------------------------------------------------------ optimiser


@pytest.mark.parametrize("end", [1e-2, 2e-3])
def test_step_size_rises_and_then_stays_or_falls(end):
    """Under a constant gradient an update of Adam is the step size."""
    agent = agent_of(total_updates=200, learning_rate_end=end, weight_decay=0.0, adam_eps=1e-12)
    params = {"kernel": jnp.ones((3, 3))}
    optimiser: Any = agent.optimiser

    def step(state, _):
        change, state = optimiser.update({"kernel": jnp.ones((3, 3))}, state, params)
        return state, change["kernel"][0, 0]

    changes: Any = jax.lax.scan(step, optimiser.init(params), None, length=200)[1]
    expected = -np.interp(np.arange(200), (0, 200), (SETTINGS.learning_rate, end))
    expected *= np.minimum(np.arange(1, 201) / 10, 1.0)
    np.testing.assert_allclose(changes, expected, rtol=1e-3)


@EACH
def test_weight_decay_takes_matrices_alone(mixer):
    policy = policy_of(mixer_of(mixer))
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(policy.init, KEY, **windows())["params"])
    spared = {path[-1].key for path, leaf in leaves if not is_decayed(path, leaf)}
    decayed = {path[-1].key for path, leaf in leaves if is_decayed(path, leaf)}
    assert spared >= {"bias", "scale"}
    assert decayed >= {"kernel", "embedding"}
    assert not decayed & {"bias", "scale", "conv_bias", "A_log", "D", "dt_bias"}
    assert not spared & {"kernel", "embedding", "conv_weight"}


def test_weight_decay_is_the_step_size_times_its_share():
    optimiser: Any = agent_of(weight_decay=0.1).optimiser
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2), "A_log": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    change = quick(lambda p: optimiser.update(jax.tree.map(jnp.zeros_like, p), optimiser.init(p), p)[0])(params)
    np.testing.assert_allclose(change.pop("kernel"), -1e-3 * 0.1 * 3.0, rtol=1e-6)  # the first of ten rising steps
    for leaf in change.values():
        np.testing.assert_array_equal(leaf, 0)


def test_gradients_are_scaled_down():
    optimiser: Any = agent_of().optimiser
    big = {"kernel": jnp.full((4, 4), 100.0)}
    after = quick(lambda p: optimiser.update(p, optimiser.init(p), p)[1])(big)
    first_moment = after[1][0].mu["kernel"]
    assert float(jnp.sqrt(jnp.sum(first_moment**2))) == pytest.approx(0.1 * 0.25, rel=1e-5)


def test_published_size():
    """24 layers of width 768: parameters by hand; 224 million with the published wiring, two whole blocks a layer."""
    preset = PRESETS["paper/dm"]
    D, layers = preset.mixer.width, preset.mixer.layers
    assert (D, layers) == (768, 24)
    x, opened = jnp.zeros((6, 1, D)), jnp.zeros((6, 1), bool)

    def count(make):
        """Of all layers, each of which adds the same number."""

        def of(module):
            shapes = jax.eval_shape(module.init, KEY, module.initial_state(1), x, opened)
            return sum(leaf.size for leaf in jax.tree.leaves(shapes))

        one, two = of(make(1)), of(make(2))
        return one + (layers - 1) * (two - one)

    channels, rank, N = 2 * D, 48, 16
    space = channels * (rank + 2 * N) + (rank + 1) * channels + channels * N + channels
    block = 2 * D * channels + 5 * channels + channels * D
    ours = layers * (block + 2 * space + 3 * D * channels + D) + D
    assert count(lambda n: make_mixer("dm", D, n)) == ours == 180_837_120
    released = count(lambda n: TokenMixer(Stack(D, layers=tuple(Released(D) for _ in range(n)), rms=True)))
    assert released == pytest.approx(224e6, rel=0.01)
