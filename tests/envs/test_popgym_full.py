"""POPGym with nothing hidden: what stands beside the observation is what the package hides, and enough to play well."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs import registry
from engram.envs.popgym import FULL, POPGYM
from engram.envs.popgym.full_information import NOTHING, PARTNER
from engram.envs.wrappers import flat_size, flatten
from tests.envs.popgym_conformance import GAMES, LEVELS, easy_first, episode_actions, reference

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def shown_along(env: Any, content: tuple, actions: np.ndarray, seed: int = 0) -> np.ndarray:
    """What is shown before each of the `actions` of an episode with this content, and after the last."""

    def step(state: Any, inputs: tuple) -> tuple:
        (_, shown), state, *_ = env.step(inputs[1], state, inputs[0], env.default_params)
        return state, shown

    @jax.jit
    def run(content: tuple, inputs: tuple) -> jax.Array:
        _, state = env.task.state_from(*content)
        _, shown = jax.lax.scan(step, state, inputs)
        return jnp.concatenate([env._shown(state)[None], shown])

    return np.asarray(run(content, (actions, jax.random.split(jax.random.key(seed), len(actions)))))


def hidden(env: Any, family: str) -> np.ndarray:
    """The package's state, as we show it."""
    if family == "Battleship":
        return env.board.reshape(-1) + 2 * (env.guesses != 0).reshape(-1)
    return env.get_state()


@pytest.mark.parametrize("name", easy_first(family + level for family in GAMES for level in LEVELS))
def test_what_is_shown_is_what_the_package_hides(name: str) -> None:
    """In games that ask for something, the right answer; in the others, the package's own state."""
    family = name.removesuffix("Easy").removesuffix("Medium").removesuffix("Hard")
    env: Any = FULL[name]()
    theirs, rng = reference(name), np.random.default_rng(0)
    theirs.reset(seed=3)
    content = GAMES[family].content(theirs)
    informed = GAMES[family].informed(theirs, content, rng)
    actions = episode_actions(env.task, informed, 0.3, rng)
    shown = shown_along(env, content, actions)
    if family in ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall"):
        asked = shown[: len(informed)]
        silent = {"RepeatPrevious": getattr(env.task, "k", 1) - 1, "Autoencode": len(informed) // 2}.get(family, 0)
        np.testing.assert_array_equal(asked[silent:], informed[silent:])
        assert (asked[:silent] == NOTHING).all()
        return
    if family == "Concentration":
        kinds = theirs.deck_idx_type[content[0]]
        partners = shown == PARTNER
        assert partners.any()
        assert not partners[0].any()
        for t in np.flatnonzero(partners.any(axis=1)):
            np.testing.assert_array_equal(kinds[partners[t]], kinds[actions[t - 1]])
        return
    GAMES[family].script(theirs, jax.random.split(jax.random.key(0), len(actions)))
    for row, action in zip(shown, actions, strict=False):
        np.testing.assert_allclose(row, hidden(theirs, family), atol=1e-6)
        _, _, terminated, truncated, _ = theirs.step(action if action.ndim else int(action))
        if terminated or truncated:
            break


def plays(family: str, env: Any, shown: np.ndarray) -> Any:
    """The best action by what is shown alone."""
    match family:
        case "RepeatFirst" | "RepeatPrevious" | "Autoencode" | "CountRecall":
            return np.minimum(shown, env.action_space(env.default_params).n - 1)
        case "Concentration":
            return np.argmax(shown)
        case "MineSweeper":
            return np.array(divmod(int(np.argmax(shown == 0)), env.task.size))
        case "Battleship":
            return np.array(divmod(int(np.argmax(shown == 1)), env.task.size))
    raise AssertionError(family)


@pytest.mark.parametrize(
    "family",
    ["RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall", "Concentration", "MineSweeper", "Battleship"],
)
def test_a_player_without_memory_earns_the_most_there_is(family: str) -> None:
    env: Any = FULL[family + "Easy"]()
    params = env.default_params
    step = jax.jit(env.step)
    (_, shown), state = env.reset(jax.random.key(5), params)
    total, done, t = 0.0, False, 0
    while not done:
        (_, shown), state, reward, terminated, truncated, _ = step(
            jax.random.key(t), state, jnp.asarray(plays(family, env, np.asarray(shown)), jnp.int32), params
        )
        total, done, t = total + float(reward), bool(terminated | truncated), t + 1
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["VelocityOnlyCartpoleEasy", "NoisyPositionOnlyCartPoleHard"])
def test_cartpole_shows_its_physics_without_noise(name: str) -> None:
    env: Any = FULL[name]()
    (_, shown), state = env.reset(jax.random.key(1), env.default_params)
    np.testing.assert_array_equal(shown, state.physics)


def test_pendulum_shows_angle_and_speed_without_noise() -> None:
    env: Any = FULL["NoisyPositionOnlyPendulumHard"]()
    (_, shown), state = env.reset(jax.random.key(1), env.default_params)
    angle, speed = np.asarray(state.physics, float)
    np.testing.assert_allclose(shown, [np.cos(angle), np.sin(angle), speed], rtol=1e-5)


@pytest.mark.parametrize("name", FULL)
def test_the_task_is_the_same(name: str) -> None:
    """All but the observation: actions, limits, and the state that a key opens."""
    env, task = FULL[name](), POPGYM[name]()
    params = env.default_params
    assert env.action_space(params) == task.action_space(params)
    assert env.max_steps(params) == task.max_steps(params)
    (obs, shown), state = env.reset(jax.random.key(0), params)
    mine, theirs = ((obs, state), task.reset(jax.random.key(0), params))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    space = env.observation_space(params)
    assert flatten(space, (obs, shown)).shape == (flat_size(space),)


def test_labyrinths_have_no_twin() -> None:
    assert {*POPGYM} - {*FULL} == {name for name in POPGYM if name.startswith("Labyrinth")}
    with pytest.raises(registry.UnknownEnvironment, match="popgym-full/LabyrinthEscapeEasy"):
        registry.make("popgym-full/LabyrinthEscapeEasy")
