"""Control with a drawn physics against gymnax, NumPy and brax, and mixtures against their members stepped alone."""

from functools import partial

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.configs.presets import PRESETS
from engram.envs.base import NoParams
from engram.envs.meta import TRIALS
from engram.envs.meta.brax_control import BraxControl, Multipliers, multiplied
from engram.envs.meta.control import BODIES, Control
from engram.envs.meta.mixture import Member, Mixture
from engram.envs.meta.ranges import draw_values
from engram.envs.meta.splits import SPLITS, read
from engram.envs.registry import make, make_vector
from engram.envs.spaces import Box, Discrete
from engram.envs.vector import Vectorised
from engram.envs.wrappers import EpisodeStatistics

# ------------------------------------------------------------------------------------------------------------- splits

DRAWN = [("control", body) for body in BODIES] + [("brax", "multipliers")]


def inside(value, intervals):
    return np.any([(low - 1e-6 <= value) & (value <= high + 1e-6) for low, high in intervals], axis=0)


@pytest.mark.parametrize(("file", "name"), DRAWN)
def test_held_out_ranges_lie_outside_those_of_training(file, name):
    splits = read(file, name)
    assert set(splits) == set(SPLITS)
    assert splits["test"] == splits["train"]
    assert [*splits["heldout"]] == [*splits["train"]]
    for quantity, trained in splits["train"].items():
        for low, high in splits["heldout"][quantity]:
            assert low < high
            assert all(high < least or low > most for least, most in trained), quantity


def test_draws_are_uniform_over_a_union_of_intervals():
    draw = jax.jit(jax.vmap(partial(draw_values, intervals={"a": [[0.0, 1.0], [3.0, 6.0]], "b": [[-1.0, 1.0]]})))
    drawn = {name: np.asarray(x) for name, x in draw(jax.random.split(jax.random.key(0), 20_000)).items()}
    assert inside(drawn["a"], [[0.0, 1.0], [3.0, 6.0]]).all()
    # Shares of pieces of length 1, of 4 in all; 4.5 standard deviations.
    for low in (0.0, 3.0, 4.0, 5.0):
        assert np.mean((drawn["a"] >= low) & (drawn["a"] < low + 1)) == pytest.approx(0.25, abs=0.014)
    assert abs(np.corrcoef(drawn["a"], drawn["b"])[0, 1]) < 0.03


@pytest.mark.parametrize("body", BODIES)
def test_tasks_come_from_their_split_alone(body):
    family = Control(body)
    keys = jax.random.split(jax.random.key(1), 500)
    for split in SPLITS:
        tasks = np.asarray(jax.jit(jax.vmap(partial(family.draw, split=split)))(keys))
        for value, name in zip(tasks.T, family.drawn, strict=True):
            assert inside(value, read("control", body)[split][name]).all()
    fixed = Control(body, vary=False)
    np.testing.assert_array_equal(fixed.draw(keys[0], "heldout"), family.default_params)
    theirs = gymnax.make(BODIES[body].gymnax)[1]
    np.testing.assert_array_equal(family.default_params, [np.float32(getattr(theirs, name)) for name in family.drawn])


def test_unknown_split_is_refused():
    for family in (Control("CartPole"), BraxControl("hopper")):
        with pytest.raises(ValueError, match="split must be one of"):
            family.draw(jax.random.key(0), "dev")


# ------------------------------------------------------------------------------------------------------------- physics


def play(family, task, key, steps=30):
    """Observations `[steps + 1, n]` (the first is that of the reset), actions and rewards of a random policy."""
    obs, state = family.reset(key, task)
    space = family.action_space(task)

    def one(state, key):
        action = space.sample(key)
        obs, state, reward, *_ = family.step(key, state, action, task)
        return state, (obs, action, reward)

    _, (after, action, reward) = jax.lax.scan(one, state, jax.random.split(key, steps))
    return jnp.concatenate([obs[None], after]), action, reward


@pytest.fixture(scope="module")
def played():
    """By body: held-out tasks `[16, n]`, and what `play` gives for each."""
    keys = jax.random.split(jax.random.key(2), 16)

    def of(body):
        family = Control(body)
        tasks = jax.vmap(partial(family.draw, split="heldout"))(keys)
        return tasks, *jax.jit(jax.vmap(partial(play, family)))(tasks, keys)

    return {body: [np.asarray(x, np.float64) for x in of(body)] for body in BODIES}


def test_cartpole_follows_the_equations_of_barto_sutton_and_anderson(played):
    tasks, obs, action, reward = played["CartPole"]
    gravity, cart, pole, half, force = (x[:, None] for x in tasks.T)  # `half`: half the length of the pole
    x, v, angle, spin = np.moveaxis(obs[:, :-1], 2, 0)
    total = cart + pole
    push = (force * (2 * action - 1) + pole * half * spin**2 * np.sin(angle)) / total
    twist = (gravity * np.sin(angle) - np.cos(angle) * push) / (half * (4 / 3 - pole * np.cos(angle) ** 2 / total))
    dv = push - pole * half * twist * np.cos(angle) / total
    after = np.stack([x + 0.02 * v, v + 0.02 * dv, angle + 0.02 * spin, spin + 0.02 * twist], axis=2)
    np.testing.assert_allclose(obs[:, 1:], after, rtol=1e-4, atol=1e-4)
    assert (reward[:, :5] == 1).all()


def test_pendulum_and_mountain_cars_follow_their_equations(played):
    tasks, obs, action, reward = played["Pendulum"]
    g, m, length = (x[:, None] for x in tasks.T)
    angle, spin = np.arctan2(obs[:, :-1, 1], obs[:, :-1, 0]), obs[:, :-1, 2]
    torque = action[..., 0]
    expected = np.clip(spin + 0.05 * (1.5 * g / length * np.sin(angle) + 3 * torque / (m * length**2)), -8, 8)
    np.testing.assert_allclose(obs[:, 1:, 2], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reward, -(angle**2 + 0.1 * spin**2 + 0.001 * torque**2), rtol=1e-3, atol=1e-3)

    for body, thrust in (
        ("MountainCar", lambda action: action - 1),
        ("MountainCarContinuous", lambda action: action[..., 0]),
    ):
        tasks, obs, action, _ = played[body]
        force, gravity = (x[:, None] for x in tasks.T)
        position, velocity = np.moveaxis(obs[:, :-1], 2, 0)
        expected = np.clip(velocity + thrust(action) * force - np.cos(3 * position) * gravity, -0.07, 0.07)
        np.testing.assert_allclose(obs[:, 1:, 1], expected, atol=1e-6)


def test_acrobot_is_that_of_gymnax_with_the_same_links(played):
    env, params = gymnax.make("Acrobot-v1")
    tasks, obs, action, _ = played["Acrobot"]
    length_1, length_2, mass_1, mass_2 = tasks.T.astype(np.float32)

    def one(length_1, length_2, mass_1, mass_2, obs, action):
        here = params.replace(
            link_length_1=length_1,
            link_length_2=length_2,
            link_mass_1=mass_1,
            link_mass_2=mass_2,
            link_com_pos_1=length_1 / 2,
            link_com_pos_2=length_2 / 2,
        )
        _, state = env.reset_env(jax.random.key(0), here)
        state = state.replace(
            joint_angle1=jnp.arctan2(obs[1], obs[0]),
            joint_angle2=jnp.arctan2(obs[3], obs[2]),
            velocity_1=obs[4],
            velocity_2=obs[5],
        )
        return env.step_env(jax.random.key(0), state, action, here)[0]

    theirs = jax.jit(jax.vmap(one))(length_1, length_2, mass_1, mass_2, np.float32(obs[:, 9]), np.int32(action[:, 9]))
    np.testing.assert_allclose(obs[:, 10], theirs, atol=1e-4)
    # Another physics would have been seen.
    default = np.ones(16, np.float32)
    theirs = jax.jit(jax.vmap(one))(default, default, default, default, np.float32(obs[:, 9]), np.int32(action[:, 9]))
    assert np.abs(obs[:, 10] - theirs).max() > 0.01


def test_default_task_is_gymnax_itself():
    ours, theirs = Control("CartPole", limit=500), make("gymnax/CartPole-v1")
    key = jax.random.key(3)
    a = jax.jit(partial(play, ours))(ours.default_params, key)
    b = jax.jit(partial(play, theirs))(theirs.default_params, key)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_options_hide_velocities_scale_and_cut():
    obs, state = Control("CartPole").reset(jax.random.key(0), Control("CartPole").default_params)
    hidden = Control("CartPole", velocities=False, scaled=True, limit=1)
    seen, state = hidden.reset(jax.random.key(0), hidden.default_params)
    np.testing.assert_allclose(seen, np.asarray(obs)[[0, 2]] / [2.4, 0.2], rtol=1e-6)
    assert hidden.observation_space(None) == Box(-np.inf, np.inf, (2,))
    *_, terminated, truncated, _ = hidden.step(jax.random.key(0), state, jnp.int32(0), hidden.default_params)
    assert truncated
    assert not terminated
    with pytest.raises(ValueError, match="limit must be at least 1"):
        Control("Acrobot", limit=0)


# ---------------------------------------------------------------------------------------------------------------- brax


@pytest.fixture(scope="module")
def pendulum():
    """The family; joint positions and velocities `[30, 4]` by row of multipliers, under the same random actions; those
    without multipliers; rewards and ends of the last row, whose physics is broken."""
    family = BraxControl("inverted_pendulum")
    ones = np.ones((7, 4), np.float32)
    rows = ones.copy()
    rows[1, 0] = 2.0  # mass
    rows[2, 2] = 0.0  # gravity
    rows[3, 2], rows[3, 3] = 0.0, 0.0  # gravity and gain
    rows[4, 3] = 0.5  # gain
    rows[5, 1] = 3.0  # friction: nothing touches anything here
    rows[6, 0] = np.nan

    def play(env, params, key):
        _, state = env.reset(key, params)

        def one(state, key):
            obs, state, reward, end, *_ = env.step(key, state, jax.random.uniform(key, (1,), minval=-1), params)
            return state, (obs, reward, end)

        return jax.lax.scan(one, state, jax.random.split(key, 30))[1]

    keys = jnp.broadcast_to(jax.random.key(5), (7,))
    ours, *outcome = jax.jit(jax.vmap(partial(play, family)))(Multipliers(*jnp.asarray(rows.T)), keys)
    theirs = jax.jit(jax.vmap(partial(play, family.env), in_axes=(None, 0)))(None, keys)[0]
    return family, np.asarray(ours), np.asarray(theirs), [np.asarray(x[6]) for x in outcome]


@pytest.mark.slow
def test_multipliers_of_one_leave_brax_exactly_as_it_is(pendulum):
    _, ours, theirs, _ = pendulum
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.slow
def test_each_multiplier_changes_what_it_must(pendulum):
    family, ours, *_ = pendulum
    sys = family.env.env.sys
    changed = multiplied(sys, Multipliers(*jnp.asarray([2.0, 3.0, 0.5, 4.0])))
    np.testing.assert_array_equal(changed.link.inertia.mass, 2 * sys.link.inertia.mass)
    np.testing.assert_array_equal(changed.link.inertia.i, 2 * sys.link.inertia.i)
    np.testing.assert_array_equal(changed.geom_friction, 3 * sys.geom_friction)
    np.testing.assert_array_equal(changed.gravity, sys.gravity / 2)
    np.testing.assert_array_equal(changed.actuator.gain, 4 * sys.actuator.gain)
    np.testing.assert_array_equal(changed.actuator.gear, sys.actuator.gear)

    plain, heavy, weightless, still, weak, rough, _ = ours
    assert all(np.abs(plain - other).max() > 1e-2 for other in (heavy, weightless, still, weak))
    np.testing.assert_array_equal(plain, rough)
    # Without weight and motor nothing sets the cart in motion.
    assert np.abs(still[:, 2]).max() < 0.1 * np.abs(plain[:, 2]).max()
    # Force over mass: the cart's first velocities are half as large.
    start = slice(0, 3)
    np.testing.assert_allclose(heavy[start, 2], weak[start, 2], rtol=0.25, atol=0.02)


@pytest.mark.slow
def test_physics_that_breaks_down_ends_the_episode(pendulum):
    _, ours, _, (reward, end) = pendulum
    np.testing.assert_array_equal(ours[6], 0.0)
    np.testing.assert_array_equal(reward, 0.0)
    assert end.all()


def test_each_body_has_its_backend():
    """On springs the reacher's light links break down under multipliers of training."""
    names = [TRIALS[f"brax-{body}"]().family.name for body in ("reacher", "ant")]
    assert names == ["brax-reacher?backend=positional", "brax-ant?backend=spring"]


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of spring, positional, generalized, got 'mjx'"):
        make("meta/brax-ant?backend=mjx")


# ------------------------------------------------------------------------------------------------------------- members


def member(name, width=8, actions=4, project_actions=True, **options):
    return Member(TRIALS[name](**{"episodes": 2, "limit": 6, **options}), width, actions, project_actions)


def test_common_actions_reach_all_of_a_members_own_ones():
    acrobot = member("Acrobot", actions=5)
    assert acrobot.action_space(NoParams()) == Discrete(5)
    layout = acrobot.layout
    orders = set()
    reset = jax.jit(acrobot.reset)
    for seed in range(8):
        obs, state = reset(jax.random.key(seed), NoParams())
        own = np.asarray([acrobot.own_action(state.scramble, a) for a in jnp.arange(5)])
        mask = np.asarray(obs)[layout["mask"]]
        assert mask.sum() == 3
        assert sorted(own[mask == 1]) == [0, 1, 2]  # each of its own actions once
        assert set(own[mask == 0]) <= {0, 1, 2}
        orders.add(tuple(own))
        assert (np.asarray(obs)[layout["action"]] == 0).all()
    assert len(orders) > 4
    plain = member("Acrobot", actions=5, project_actions=False)
    obs, state = jax.jit(plain.reset)(jax.random.key(0), NoParams())
    np.testing.assert_array_equal(obs[layout["mask"]], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal([plain.own_action(state.scramble, a) for a in jnp.arange(5)], [0, 1, 2, 0, 1])


def test_common_boxes_are_rotated_cut_and_scaled():
    pendulum = member("Pendulum", actions=3)
    assert pendulum.action_space(NoParams()) == Box(-1.0, 1.0, (3,))
    _, state = jax.jit(pendulum.reset)(jax.random.key(0), NoParams())
    rotation = np.asarray(state.scramble)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    for key in jax.random.split(jax.random.key(1), 5):
        action = jax.random.uniform(key, (3,), minval=-1)
        expected = 2.0 * np.clip((rotation @ np.asarray(action))[:1], -1, 1)  # the torque lies in -2 .. 2
        np.testing.assert_allclose(pendulum.own_action(state.scramble, action), expected, atol=1e-6)
    plain = member("Pendulum", actions=3, project_actions=False)
    obs, _ = jax.jit(plain.reset)(jax.random.key(0), NoParams())
    np.testing.assert_array_equal(obs[plain.layout["mask"]], [1, 0, 0])
    np.testing.assert_allclose(plain.own_action(None, jnp.asarray([0.5, -1.0, 1.0])), [1.0])


def test_a_member_is_its_trials_in_another_dress():
    cartpole = member("CartPole", project_observations=6)
    trials, layout = cartpole.trials, cartpole.layout
    key = jax.random.key(7)
    step, own_step = jax.jit(cartpole.step), jax.jit(trials.step)
    obs, state = jax.jit(cartpole.reset)(key, NoParams())
    own_obs, own = jax.jit(trials.reset)(jax.random.split(key)[0], NoParams())
    for t in range(11):
        np.testing.assert_array_equal(obs[layout["observation"]][:6], own_obs[:6])
        np.testing.assert_array_equal(obs[layout["observation"]][6:], 0.0)
        for part in ("reward", "episode_start", "trial_start"):
            np.testing.assert_array_equal(obs[layout[part]], own_obs[trials.layout[part]])
        key, action = jax.random.key(t), t % 4
        obs, state, reward, terminated, _, info = step(key, state, jnp.int32(action), NoParams())
        np.testing.assert_array_equal(obs[layout["action"]], np.eye(4)[action])
        own_obs, own, own_reward, over, _, own_info = own_step(key, own, state.scramble[action] % 2, NoParams())
        assert (reward, terminated) == (own_reward, over)
        assert {name: float(x) for name, x in info.items()} == {name: float(x) for name, x in own_info.items()}


def test_members_too_large_for_the_common_sizes_are_refused():
    with pytest.raises(ValueError, match="width must be at least 6 for Acrobot, got 4"):
        member("Acrobot", width=4)
    with pytest.raises(ValueError, match="actions must be at least 3 for Acrobot, got 2"):
        member("Acrobot", actions=2)


# ------------------------------------------------------------------------------------------------------------ mixtures

MIXTURE = "meta/Mixture?members=CartPole+Bandit&pulls=9&episodes=2&limit=7&arms=3"


def rollout(step, actions, state, keys):
    def one(state, row):
        obs, state, reward, terminated, truncated, info = step(row[0], state, row[1])
        return state, (obs, reward, terminated, truncated, info)

    return jax.lax.scan(one, state, (keys, actions))[1]


@pytest.mark.slow
def test_each_block_is_its_member_stepped_alone():
    mixture = make_vector(MIXTURE, 7)
    assert isinstance(mixture, Mixture)
    assert [block.num_envs for block in mixture.blocks] == [4, 3]
    env = EpisodeStatistics(mixture)
    assert env.max_steps(NoParams()) == 14
    obs, state = jax.jit(env.reset)(jax.random.key(0), NoParams())
    assert obs.shape == (7, mixture.layout["mask"].stop)
    keys = jax.random.split(jax.random.key(1), 40)
    actions = jax.random.randint(jax.random.key(2), (40, 7), 0, 3)
    run = jax.jit(partial(rollout, lambda key, state, action: env.step(key, state, action, NoParams())))
    together = run(actions, state, keys)
    info = together[-1]
    np.testing.assert_array_equal(info["member"], np.tile([0, 0, 0, 0, 1, 1, 1], (40, 1)))
    # Only bandits know their regret.
    assert np.isnan(info["regret"][:, :4]).all()
    assert (np.asarray(info["regret"])[:, 4:] >= 0).all()
    assert np.asarray(info["reset"]).sum(axis=0).min() >= 2

    for i, (block, rows) in enumerate(zip(mixture.blocks, mixture.rows, strict=True)):
        first_obs, alone = jax.jit(block.reset)(jax.random.fold_in(jax.random.key(0), i), NoParams())
        np.testing.assert_array_equal(obs[rows], first_obs)
        whole = Vectorised(block.env, 7)  # keys are those of a batch of all rows

        def step(key, state, action):
            return block.step_rows(key, whole.step_keys(key)[rows], state, action, NoParams(), rows.start)

        separate = jax.jit(partial(rollout, step))(actions[:, rows], alone, keys)
        for name, x in separate[-1].items():
            np.testing.assert_array_equal(info[name][:, rows], x, err_msg=name)
        for x, y in zip(together[:-1], separate[:-1], strict=True):
            np.testing.assert_array_equal(x[:, rows], y)


def test_rows_of_a_batch_step_as_the_batch_does():
    whole = Vectorised(make("meta/Bandit?arms=3&pulls=1"), 4)  # every step ends a trial and draws the next

    @jax.jit
    def both(key):
        _, state = whole.reset(key, NoParams())
        key, action = jax.random.fold_in(key, 1), jnp.asarray([0, 1, 2, 0])
        half = jax.tree.map(lambda x: x[2:], state)
        rows = Vectorised(whole.env, 2).step_rows(key, whole.step_keys(key)[2:], half, action[2:], NoParams(), first=2)
        return whole.step(key, state, action, NoParams()), rows

    batch, rows = both(jax.random.key(0))
    assert len(np.unique(batch[1].env_state.task.means)) == 12
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[2:], y), batch, rows)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "members must be some of Bandit, "),
        ("?members=CartPole+Car", "joined by [+], got 'CartPole[+]Car'"),
        ("?members=CartPole&backend=spring", "no member of CartPole has an option 'backend'"),
        ("?members=CartPole+Pendulum", "members of a mixture must share their action space"),
        ("?members=CartPole&episodes=0", "a trial must end"),
        ("?members=" + "+".join(["CartPole"] * 9), "a mixture of 9 members needs as many environments, got 8"),
        ("?members=CartPole&speed=1", "Mixture has no option 'speed': did you mean"),
    ],
)
def test_impossible_mixtures_are_refused(query, message):
    with pytest.raises(ValueError, match=message) as refused:
        make_vector("meta/Mixture" + query, 8)
    assert "\n" not in str(refused.value)


def test_a_mixture_is_no_single_environment():
    with pytest.raises(ValueError, match="there is no single one"):
        make(MIXTURE)


@pytest.mark.parametrize("preset", ["meta-cartpole", "meta-control"])
def test_evaluations_of_presets_fit_training_and_are_held_out(preset):
    config = PRESETS[preset]
    trained, evaluated = make_vector(config.env, 8), make_vector(config.evaluated, 8)
    assert trained.observation_space(NoParams()) == evaluated.observation_space(NoParams())
    assert trained.action_space(NoParams()) == evaluated.action_space(NoParams())
    assert "split=heldout" in config.evaluated
    assert "split" not in config.env
