"""Drama: imagination, returns and losses by definition; acting; exact repetition; requests that are refused."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from engram.agents.drama.agent import Drama, ImaginationState, Imagined, Step
from engram.agents.drama.build import make_drama
from engram.agents.drama.experiment import DramaExperiment, WorldSettings
from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.training import checkpoint

pytestmark = pytest.mark.usefixtures("quickly_compiled")
LATENT, WIDTH, CONTEXT, HORIZON, N, LAMBDA = 12, 16, 3, 6, 64, 0.95
TINY = replace(
    PRESETS["drama-catch"].drama,
    num_envs=3,
    train_every=2,
    prefill=27,
    replay=60,
    batch_size=4,
    batch_length=6,
    imagine_batch=16,
    context=CONTEXT,
    horizon=HORIZON,
    return_lambda=LAMBDA,
    actor=(8,),
    critic=(8,),
    free_nats=0.0,
    warmup=5,
    acting_window=12,
    eval_envs=4,
    eval_episodes=4,
)
WORLD = WorldSettings(
    encoder="mlp",
    reconstruction="binary",
    categoricals=3,
    classes=4,
    width=WIDTH,
    layers=1,
    head=8,
    dense=(12,),
    unimix=1e-6,
)


def experiment(**settings: Any) -> DramaExperiment:
    return replace(PRESETS["drama-catch"], memory="gru", world=WORLD, drama=replace(TINY, **settings))


def agent_of(**settings: Any) -> Drama:
    """The agent with these settings, one for all tests."""
    return _agent(*((name, value) for name, value in settings.items() if value != getattr(TINY, name)))


@cache
def _agent(*settings: tuple[str, Any]) -> Drama:
    return make_drama(experiment(**dict(settings)))


@cache
def program(agent: Drama, method: str) -> Any:
    """A method of `agent`, compiled once."""
    return jax.jit(getattr(agent, method))


@cache
def fresh() -> Any:
    """The state in which training begins. No test donates it."""
    return program(agent_of(), "init")(jax.random.key(0))


@cache
def started() -> Any:
    """A state whose networks have an opinion: large outputs of all heads, and a posterior that is all but certain, so
    that samples of the latent are known."""
    state = fresh()
    rng = np.random.default_rng(0)
    noise = lambda p, scale: jnp.asarray(p + scale * rng.normal(size=p.shape), jnp.float32)  # noqa: E731
    world = dict(state.world)
    world["posterior_out"] = jax.tree.map(lambda p: 1e6 * noise(p, 0.3), world["posterior_out"])
    for head in ("prior_out", "reward_head"):
        world[head] = jax.tree.map(lambda p: noise(p, 0.5), world[head])
    rng = np.random.default_rng(2)  # with which about as many imagined steps end an episode as not
    world["terminal_head"] = jax.tree.map(lambda p: noise(0.0 * p, 1.0), world["terminal_head"])
    return state.replace(
        world=world,
        behaviour=jax.tree.map(lambda p: noise(p, 0.4), state.behaviour),
        slow_critic=jax.tree.map(lambda p: noise(p, 0.4), state.slow_critic),
        return_scale=jnp.asarray(0.7),
        actor_norm=state.actor_norm.update(noise(jnp.zeros((50, LATENT + WIDTH)), 0.5), jnp.ones(50, bool)),
    )


def context(seed: int = 0, resets: float = 0.0) -> Step:
    """Replayed steps `[CONTEXT, N]`. In the first half of the batch an episode ends with the context."""
    rng = np.random.default_rng(seed)
    return Step(
        obs=jnp.asarray(rng.integers(2, size=(CONTEXT, N, 50)), jnp.float32),
        action=jnp.asarray(rng.integers(3, size=(CONTEXT, N)), jnp.int32),
        reward=jnp.zeros((CONTEXT, N)),
        terminal=jnp.zeros((CONTEXT, N), bool).at[-1, : N // 2].set(True).at[0].set(True),
        reset=jnp.asarray(rng.random((CONTEXT, N)) < resets),
    )


@cache
def imagined() -> Imagined:
    return program(agent_of(), "imagine")(started(), context(), jax.random.key(1))[0]


def outcomes(**settings: Any) -> Imagined:
    """The same trajectories, whose rewards and continuations are predicted by an agent with other settings."""
    agent, out = agent_of(**settings), imagined()
    z, d = out.features[-1, :, :LATENT], out.features[-1, :, LATENT:]
    last = ImaginationState((), z, d, started().actor_norm)
    ended = context().terminal[-1].astype(jnp.float32)
    return program(agent, "predict_outcomes")(started(), last, out.features[:-1], out.action, None, ended)


def read(agent: Drama, method: str, *args: Any) -> Any:
    """A method of the world model."""
    return jax.jit(lambda: agent.world.apply({"params": started().world}, *args, method=method))()


# ---------------------------------------------------------------------------------------------------------------------
# Imagination


@pytest.mark.slow
def test_imagined_states_are_those_of_one_long_sequence():
    agent, out = agent_of(), imagined()
    assert out.features.shape == (HORIZON + 1, N, LATENT + WIDTH)
    steps = context()
    posterior = np.asarray(read(agent, "posterior", steps.obs))
    assert np.exp(posterior).max(-1).min() > 0.999
    z = (posterior == posterior.max(-1, keepdims=True)).reshape(CONTEXT, N, LATENT)
    z = jnp.concatenate([z, out.features[:-1, :, :LATENT]])
    action = jax.nn.one_hot(jnp.concatenate([steps.action, out.action]), 3)
    never = jnp.zeros(z.shape[:2], bool)
    _, d = read(agent, "sequence", agent.world.memory.initial_state(N), z, action, never)
    np.testing.assert_allclose(out.features[:, :, LATENT:], d[CONTEXT - 1 :], atol=1e-5)


@pytest.mark.slow
def test_imagined_latents_are_drawn_from_the_prior_and_actions_from_the_policy():
    agent, out, state = agent_of(), imagined(), started()
    z, d = out.features[..., :LATENT], out.features[..., LATENT:]
    np.testing.assert_allclose(np.sort(z.reshape(-1, 4), -1), np.eye(4)[[3]].repeat(z.size // 4, 0), atol=1e-6)
    p = np.exp(np.asarray(read(agent, "prior", d), np.float64)).reshape(z.shape)
    score = (np.asarray(z) - p).sum((0, 1)) / np.sqrt((p * (1 - p)).sum((0, 1)))
    assert np.abs(score).max() < 5

    p = scipy.special.softmax(policy_logits(state, out.features[:-1]), -1)
    assert p.std((0, 1)).min() > 0.02, "the policy depends on the state"
    score = (np.eye(3)[np.asarray(out.action)] - p).sum((0, 1)) / np.sqrt((p * (1 - p)).sum((0, 1)))
    assert np.abs(score).max() < 5


def policy_logits(state, x) -> np.ndarray:
    """The policy of the published agent: inputs by running mean and deviation, cut at 10."""
    norm = state.actor_norm
    x = (np.asarray(x, np.float64) - np.asarray(norm.mean)) / np.sqrt(np.asarray(norm.var) + 1e-8)
    x = jnp.asarray(np.clip(x, -10, 10), jnp.float32)
    return np.asarray(agent_of().actor.apply({"params": state.behaviour["actor"]}, x), np.float64)


@pytest.mark.parametrize(("index", "shift"), [("after", 1), ("early", 0)])
def test_rewards_and_ends_are_read_after_the_action(index, shift):
    agent, out = agent_of(), imagined() if index == "after" else outcomes(reward_index=index)
    d = out.features[shift : shift + HORIZON, :, LATENT:]
    np.testing.assert_allclose(out.reward, read(agent, "reward", d), rtol=1e-4, atol=1e-5)
    continuation = np.asarray(read(agent, "terminal_logit", d)) <= 0
    assert 0.1 < continuation.mean() < 0.9
    np.testing.assert_array_equal(out.continuation, continuation)


@pytest.mark.parametrize(("index", "late"), [("after", 0), ("early", 1)])
def test_nothing_counts_after_an_end(index, late):
    out = imagined() if index == "after" else outcomes(reward_index=index)
    ended = np.asarray(context().terminal[-1])
    weight = np.zeros((HORIZON, N))
    for b in range(N):
        alive = 0.0 if ended[b] else 1.0
        for t in range(HORIZON):
            weight[t, b] = alive
            alive *= float(out.continuation[min(t + late, HORIZON - 1), b])
    assert 0 < weight[1:].mean() < 0.5
    np.testing.assert_array_equal(out.weight, weight)


def test_imagined_ends_can_be_ignored():
    np.testing.assert_array_equal(outcomes(mask_after_term=False).weight, 1.0)


@pytest.mark.parametrize("seq_reset", [True, False])
def test_imagination_remembers_nothing_from_before_a_reset(seq_reset):
    """The first frame and action of the context change; the second step opens an episode."""
    steps = context()
    steps = steps.replace(reset=steps.reset.at[1].set(True))
    other = steps.replace(obs=steps.obs.at[0].set(1.0 - steps.obs[0]), action=steps.action.at[0].set(1))
    encode = program(agent_of(seq_reset=seq_reset), "encode_context")
    a, b = (encode(started(), s, jax.random.key(1))[0].d for s in (steps, other))
    assert np.allclose(a, b, atol=1e-6) == seq_reset


@pytest.mark.parametrize(("moves", "rows"), [("update", 0), ("forward", HORIZON * N)])
def test_when_the_statistics_of_the_policy_s_input_move(moves, rows):
    """Asked in imagination, the policy of the published code moves them at every step."""
    before = started().actor_norm
    after = program(agent_of(actor_norm=moves), "imagine")(started(), context(), jax.random.key(1))[1]
    assert float(after.count - before.count) == rows
    assert np.array_equal(after.mean, before.mean) == (rows == 0)


# ---------------------------------------------------------------------------------------------------------------------
# Behaviour


def decode64(logits):
    mean = scipy.special.softmax(np.asarray(logits, np.float64), -1) @ np.linspace(-20, 20, 255)
    return np.sign(mean) * np.expm1(np.abs(mean))


def two_hot64(x):
    place = (np.clip(np.sign(x) * np.log1p(np.abs(x)), -20, 20) + 20) * 254 / 40
    return np.maximum(0, 1 - np.abs(place[..., None] - np.arange(255)))


@pytest.mark.slow
@pytest.mark.parametrize("bootstrap", ["next", "same"])
def test_losses_of_behaviour_by_definition(bootstrap):
    agent, state, s = agent_of(lambda_boot=bootstrap), started(), TINY
    out = imagined()
    after, metrics = program(agent, "learn_behaviour")(state, out, state.actor_norm)
    reward, continuation, weight = (np.asarray(x, np.float64) for x in (out.reward, out.continuation, out.weight))

    def critic(params) -> Any:
        return agent.critic.apply({"params": params}, out.features)

    returns, values = [], []
    for params in (state.behaviour["critic"], state.slow_critic):
        v = decode64(critic(params))
        g, later = np.zeros((HORIZON, N)), v[-1]
        for t in reversed(range(HORIZON)):
            mixed = v[t + 1] if bootstrap == "next" else v[t]
            g[t] = later = reward[t] + s.discount * continuation[t] * ((1 - LAMBDA) * mixed + LAMBDA * later)
        returns.append(g)
        values.append(v[:-1])
    ordered = np.sort(returns[0], axis=None)
    spread = ordered[int(0.95 * ordered.size)] - ordered[int(0.05 * ordered.size)]
    scale = 0.99 * 0.7 + 0.01 * spread
    advantage = (returns[0] - values[0]) / max(1.0, scale)
    targets = two_hot64(returns[0]) + two_hot64(returns[1])
    norm = state.actor_norm
    x = np.clip((np.asarray(out.features[:-1]) - np.asarray(norm.mean)) / np.sqrt(np.asarray(norm.var) + 1e-8), -10, 10)

    def loss(params):
        """All but the networks are numbers: no gradient flows through returns or trajectories."""
        actor_out: Any = agent.actor.apply({"params": params["actor"]}, jnp.asarray(x, jnp.float32))
        log_pi = jax.nn.log_softmax(actor_out)
        log_prob = jnp.take_along_axis(log_pi, out.action[..., None], -1)[..., 0]
        entropy = -jnp.sum(jnp.exp(log_pi) * log_pi, -1)
        log_bins = jax.nn.log_softmax(critic(params["critic"])[:-1])
        policy = jnp.mean(weight * (-log_prob * advantage - s.entropy * entropy))
        value = jnp.mean(weight * -jnp.sum(targets * log_bins, -1))
        return policy + value, (policy, value)

    gradient, (policy, value) = jax.jit(jax.grad(loss, has_aux=True))(state.behaviour)
    norms = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(gradient)))
    assert float(metrics["loss/policy"]) == pytest.approx(float(policy), rel=1e-3)
    assert float(metrics["loss/value"]) == pytest.approx(float(value), rel=1e-3)
    assert float(metrics["loss/behaviour_grad_norm"]) == pytest.approx(float(norms), rel=1e-3)
    assert float(metrics["train/return_scale"]) == pytest.approx(scale, rel=1e-3)
    assert float(after.return_scale) == float(metrics["train/return_scale"])
    for slow, old, new in zip(
        *map(jax.tree.leaves, (after.slow_critic, state.slow_critic, after.behaviour["critic"])), strict=True
    ):
        np.testing.assert_allclose(slow, 0.98 * old + 0.02 * new, rtol=1e-5, atol=1e-6)
    rows = np.asarray(out.features[:-1], np.float64).reshape(-1, LATENT + WIDTH)
    total = 50 + len(rows)
    expected = (50 * np.asarray(state.actor_norm.mean) + rows.sum(0)) / total
    np.testing.assert_allclose(after.actor_norm.mean, expected, atol=1e-5)
    assert float(after.actor_norm.count) == total


def test_steps_of_weight_zero_teach_nothing():
    out = imagined()
    learn = program(agent_of(), "learn_behaviour")
    _, metrics = learn(started(), out.replace(weight=jnp.zeros_like(out.weight)), started().actor_norm)
    assert float(metrics["loss/behaviour_grad_norm"]) == 0.0


def test_weight_decay_is_a_share_of_the_parameters_whatever_the_step_size():
    out, state = imagined(), started()
    plain, decayed = (
        program(agent_of(weight_decay=decay), "learn_behaviour")(state, out, state.actor_norm)[0].behaviour
        for decay in (0.0, 1e-2)
    )
    for a, b, old in zip(*map(jax.tree.leaves, (plain, decayed, state.behaviour)), strict=True):
        np.testing.assert_allclose(a - b, 1e-2 * old, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Acting


def act_along(steps: int, reset: np.ndarray, **settings: Any):
    """Inputs of the policy `[steps, B, n]` and actions over the same frames, resets and keys."""
    agent = agent_of(**settings)
    rng = np.random.default_rng(4)
    obs = jnp.asarray(rng.integers(2, size=(steps, reset.shape[1], 50)), jnp.float32)
    rows = (obs, jnp.asarray(reset), jax.random.split(jax.random.key(2), steps))
    return acting_program(agent)(agent.start_acting(obs[0]), rows)


@cache
def acting_program(agent: Drama) -> Any:
    def one_step(acting, row):
        acting, action, features = agent.act(started(), acting, *row)
        return acting, (features, action)

    return jax.jit(lambda carry, rows: jax.lax.scan(one_step, carry, rows)[1])


@pytest.mark.slow
def test_a_carried_state_acts_as_a_window_over_the_whole_episode():
    rng = np.random.default_rng(5)
    reset = rng.random((12, 4)) < 0.2
    reset[0] = True
    x, action = act_along(12, reset)
    windowed, same_action = act_along(12, reset, acting_state="window")
    np.testing.assert_allclose(x, windowed, atol=1e-5)
    np.testing.assert_array_equal(action, same_action)
    assert len(np.unique(action)) == 3
    # A window that is shorter than the episode forgets.
    reset = np.zeros((12, 4), bool)
    reset[0] = True
    full, short = (act_along(12, reset, acting_state="window", acting_window=w)[0] for w in (12, 3))
    np.testing.assert_allclose(full[:4], short[:4], atol=1e-5)
    assert np.abs(full[4:] - short[4:]).max() > 1e-3


def test_an_opening_clears_what_was_carried():
    reset = np.zeros((12, 4), bool)
    reset[[0, 3]] = True
    x = np.asarray(act_along(12, reset)[0])
    np.testing.assert_array_equal(x[[0, 3], :, LATENT:], 0.0)
    assert np.abs(np.delete(x, [0, 3], 0)[..., LATENT:]).min(-1).max() > 0


@pytest.mark.parametrize("act_on", ["posterior", "prior"])
def test_the_policy_sees_the_observation_or_only_what_was_predicted(act_on):
    agent, state = agent_of(act_on=act_on), started()
    acting = agent.start_acting(jnp.zeros((8, 50)))
    act = jax.jit(lambda obs: agent.act(state, acting, obs, jnp.ones(8, bool), jax.random.key(3))[2])
    obs = jnp.asarray(np.random.default_rng(6).integers(2, size=(8, 50)), jnp.float32)
    seen = np.asarray(act(obs))
    assert np.array_equal(seen, act(1.0 - obs)) == (act_on == "prior")
    if act_on == "posterior":
        posterior = np.asarray(read(agent, "posterior", obs))
        expected = (posterior == posterior.max(-1, keepdims=True)).reshape(8, LATENT)
        np.testing.assert_allclose(seen[:, :LATENT], expected, atol=1e-6)


def test_first_actions():
    """Greedy on one observation, all environments would do the same."""
    reset = jnp.arange(600) < 300
    obs, key = jnp.ones((600, 50)), jax.random.key(7)
    acts = {}
    for first in ("policy", "random"):
        agent = agent_of(first_action=first)
        acting = agent.start_acting(obs)
        act = partial(agent.act, started(), acting, obs, reset, key, greedy=True)
        acts[first] = jax.jit(lambda random, act=act: act(random=random)[1])
    for first, random in (("policy", False), ("random", False), ("policy", True)):
        action = np.asarray(acts[first](random))
        counts = [np.bincount(half, minlength=3) for half in (action[:300], action[300:])]
        for half, blind in zip(counts, (random or first == "random", random), strict=True):
            # 300 draws of 1/3: deviation 8.
            assert (half.min() > 60) if blind else (half.max() == 300), (first, random)


# ---------------------------------------------------------------------------------------------------------------------
# Updates


def leaves(state):
    """Arrays by path, random keys as their bits."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return {
        jax.tree_util.keystr(path): np.asarray(jax.random.key_data(x) if is_key(x) else x)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


def assert_same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def history():
    """The compiled update, and states and metrics of ten updates, six of which learn."""
    agent = agent_of()
    traces = []

    def counted(state):
        traces.append(1)
        return agent.update(state)

    update = jax.jit(counted)
    states, metrics = [fresh()], []
    for _ in range(10):
        state, out = update(states[-1])
        states.append(state)
        metrics.append(jax.tree.map(float, out))
    return agent, update, traces, states, metrics


def test_one_compilation_and_the_same_run_from_the_same_key(history):
    _, update, traces, states, _ = history
    state = fresh()
    for _ in range(10):
        state, _ = update(state)
    assert_same(state, states[-1])
    assert len(traces) == 1


def test_a_restored_state_goes_on_bit_for_bit(history, tmp_path):
    agent, update, _, states, _ = history
    checkpoint.save(tmp_path, states[6], checkpoint.Progress(6))
    found = checkpoint.restore(tmp_path, jax.eval_shape(agent.init, jax.random.key(0)))
    assert found is not None
    state = found[0]
    assert_same(state, states[6])
    for _ in range(4):
        state, _ = update(state)
    assert_same(state, states[-1])


def test_learning_begins_with_the_prefill(history):
    _, _, _, states, metrics = history
    # 6 steps an update: 27 are reached in the fifth.
    assert [m["train/learned"] for m in metrics] == [0.0] * 4 + [1.0] * 6
    for before, after in pairwise(states[:5]):
        for part in ("world", "behaviour", "slow_critic", "world_optimiser", "behaviour_optimiser", "actor_norm"):
            assert_same(getattr(before, part), getattr(after, part))
    for part in ("world", "behaviour", "slow_critic"):
        for old, new in zip(*map(jax.tree.leaves, (getattr(states[4], part), getattr(states[5], part))), strict=True):
            assert not np.array_equal(old, new), part
    last = states[-1]
    assert int(last.updates) == 10
    assert int(last.env_steps) == 60
    assert int(np.sum(last.replay.trained)) == 6 * TINY.batch_size
    assert int(np.sum(last.replay.imagined)) == 6 * TINY.imagine_batch
    assert all(np.isfinite(list(m.values())).all() for m in metrics)


def test_replayed_steps_of_catch_line_up(history):
    """Nine steps an episode; the ball falls by one row a step, and only the last pays."""
    rows = history[3][-1].replay.rows
    obs = np.asarray(rows.obs).reshape(20, 3, 10, 5)
    opened = np.arange(20) % 9 == 0
    np.testing.assert_array_equal(rows.reset, np.broadcast_to(opened[:, None], (20, 3)))
    ended = np.arange(20) % 9 == 8
    np.testing.assert_array_equal(rows.terminal, np.broadcast_to(ended[:, None], (20, 3)))
    np.testing.assert_array_equal(np.abs(rows.reward), np.asarray(rows.terminal, float))
    for t in range(20):
        assert (obs[t, :, t % 9].sum(-1) == 1).all(), "the ball"
    paddle = obs[:, :, 9].argmax(-1)
    for t in range(8):  # and the paddle goes where the action of the row sends it
        np.testing.assert_array_equal(paddle[t + 1], np.clip(paddle[t] + np.asarray(rows.action[t]) - 1, 0, 4))


# ---------------------------------------------------------------------------------------------------------------------
# Requests


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prefill", 20, "prefill must be at least 22 for 16 contexts of 3 steps and 4 windows of 6 from 3"),
        ("batch_length", 20, "prefill must be at least 61"),
        ("replay", 26, "replay must hold the prefill of 27"),
        ("batch_length", 1, "batch_length must be at least 2"),
        ("eval_episodes", 6, "must be a multiple of drama.eval_envs"),
        ("num_envs", 0, "num_envs must be positive"),
        ("train_every", 0, "train_every must be positive"),
        ("horizon", -1, "horizon must be positive"),
        ("temperature", 0.0, "temperature must be positive"),
        ("world_learning_rate", float("nan"), "world_learning_rate must be positive and finite"),
        ("behaviour_max_norm", float("inf"), "behaviour_max_norm must be positive and finite"),
        ("discount", 1.5, r"discount must lie in \[0, 1\]"),
        ("return_lambda", -0.1, r"return_lambda must lie in \[0, 1\]"),
        ("warmup", -1, "warmup must be finite and at least 0"),
        ("weight_decay", float("nan"), "weight_decay must be finite and at least 0"),
        ("reward_index", "before", "reward_index must be one of after, early, got 'before'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(field, value, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(TINY, **{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": "gymnax/Catch"}, "Catch-bsuite"),
        ({"memory": "mamba4"}, "mamba2"),
        ({"world": replace(WORLD, encoder="conv")}, "pictures"),
        ({"world": replace(WORLD, memory_options=("mamba2.heads=3",))}, "mamba2"),
    ],
)
def test_bad_requests_are_refused_in_one_line(fields, message):
    with pytest.raises(BadRequest, match=message) as error:
        make_drama(replace(experiment(), **fields))
    assert "\n" not in str(error.value)
