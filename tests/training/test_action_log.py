"""The log of actions: emulators are brought back to where a run was, or one line says why they cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.envs import registry
from engram.envs.spaces import Discrete
from engram.envs.wrappers import EpisodeStatistics
from engram.errors import BadRequest
from engram.training import action_log
from engram.training.action_log import ActionLog, played_of
from engram.training.checkpoint import Progress
from engram.training.programs import seed_keys

SEEDS, LANES, STEPS, UPDATES = 2, 2, 5, 6
ACTION = jax.ShapeDtypeStruct((SEEDS, STEPS, LANES), jnp.int32)
"""Of one update."""
TWO = Discrete(2)


def pool(seed: int = 3) -> EpisodeStatistics:
    return EpisodeStatistics(registry.make_vector("gymnasium/CartPole-v1", LANES, copies=SEEDS, seed=seed))


def play(env, actions):
    """Steps a fresh pool, actions `[seeds, steps, B]` -> the states at the end, what it did `[seeds, steps, B, 2]`."""
    params = env.default_params

    def one_seed(key, actions):
        def step(env_state, action):
            _, env_state, _, _, _, info = env.step(key, env_state, action, params)
            return env_state, played_of(info["episode_return"], info["episode_length"])

        return jax.lax.scan(step, env.reset(key, params)[1], actions)

    return jax.jit(jax.vmap(one_seed))(seed_keys(0, SEEDS), actions)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A log of two chunks, the state that they reach, and what a checkpoint keeps."""
    path = tmp_path_factory.mktemp("log") / "actions.bin"
    actions = np.random.default_rng(0).integers(0, 2, (UPDATES, *ACTION.shape)).astype(np.int32)
    env = pool()
    state, outcomes = play(env, np.moveaxis(actions, 0, 1).reshape(SEEDS, UPDATES * STEPS, LANES))
    env.close()
    outcomes = np.moveaxis(np.asarray(outcomes).reshape(SEEDS, UPDATES, STEPS, LANES, 2), 1, 0)
    assert np.any(outcomes[-1, :, -1, :, 1] < UPDATES * STEPS), "some episodes have ended"
    progress = Progress(0)
    for chunk in (slice(0, 2), slice(2, UPDATES)):
        log = ActionLog(path, progress, TWO)
        log.write(actions[chunk], outcomes[chunk])
        progress = replace(progress, **log.so_far)
        log.close()
    assert path.read_bytes() == actions.astype(np.int8).tobytes()
    return path, state, progress


def repeat(path: Path, progress: Progress, state, seed: int = 3) -> None:
    env = pool(seed)
    try:
        action_log.repeat(env, seed_keys(0, SEEDS), path, progress, ACTION, UPDATES, state)
    finally:
        env.close()


def test_the_log_brings_a_fresh_pool_to_where_the_run_was(played, tmp_path):
    path, state, progress = played
    repeat(path, progress, state)
    repeat(path, replace(progress, action_crc32=None, played_crc32=None), state)  # of an earlier version
    longer = tmp_path / "longer"
    longer.write_bytes(path.read_bytes() + b"\x07")  # of a chunk after the checkpoint
    repeat(longer, progress, state)
    log = ActionLog(longer, replace(progress, action_crc32=None), TWO)
    assert log.so_far == {name: getattr(progress, name) for name in ("action_bytes", "action_crc32", "played_crc32")}
    log.close()


@pytest.mark.parametrize(
    ("options", "bytes_each"),
    [("actions=128", 1), ("actions=129", 2), ("actions=1000&pair=true", 2), ("actions=32768", 2), ("actions=70000", 4)],
)
def test_large_numbers_of_actions_are_logged_and_repeated(options, bytes_each, tmp_path):
    """The greatest action among them; the reward is the action."""
    env_id, path = f"gymnasium/tests.envs.own_faults:Many-v0?{options}", tmp_path / "actions.bin"
    env = EpisodeStatistics(registry.make_vector(env_id, LANES, copies=SEEDS, seed=3))
    space: Any = env.action_space(env.default_params)
    greatest, more = (space.n, ()) if isinstance(space, Discrete) else (space.nvec[0], (2,))
    actions = np.zeros((1, SEEDS, STEPS, LANES, *more), np.int32)
    actions[0, :, :, 0] = [greatest - 1, 1] if more else greatest - 1
    state, outcomes = play(env, actions[0])
    env.close()
    sums = np.asarray(outcomes)[:, :4, 0, 0].view(np.float32)
    np.testing.assert_array_equal(sums, np.tile((greatest - 1 + len(more)) * np.arange(1, 5), (SEEDS, 1)))
    log = ActionLog(path, Progress(0), space)
    log.write(actions, np.asarray(outcomes)[None])
    progress = replace(Progress(1), **log.so_far)
    log.close()
    assert progress.action_bytes == actions.size * bytes_each
    env = EpisodeStatistics(registry.make_vector(env_id, LANES, copies=SEEDS, seed=3))
    action_log.repeat(
        env, seed_keys(0, SEEDS), path, progress, jax.ShapeDtypeStruct(actions.shape[1:], jnp.int32), 1, state
    )
    env.close()


def test_emulators_that_did_something_else_on_the_way_are_refused(played):
    """Also where they end in the same state."""
    path, state, progress = played
    with pytest.raises(BadRequest, match="did not repeat the logged actions"):
        repeat(path, replace(progress, played_crc32=(progress.played_crc32 or 0) ^ 1), state)
    with pytest.raises(BadRequest, match="did not repeat the logged actions"):
        repeat(path, replace(progress, played_crc32=None), state, seed=4)


@pytest.mark.parametrize("damage", ["one bit", "cut short", "gone", "of other chunks"])
def test_a_damaged_log_is_one_line(played, tmp_path, damage):
    path, state, progress = played
    data, other = path.read_bytes(), tmp_path / "actions.bin"
    contents = {
        "one bit": data[:20] + bytes([data[20] ^ 1]) + data[21:],
        "cut short": data[:-1],
        "of other chunks": data,
    }
    if damage in contents:
        other.write_bytes(contents[damage])
    if damage == "of other chunks":
        progress = replace(progress, action_bytes=progress.action_bytes + 1)
    line = {"cut short": "is cut short", "gone": "^cannot read .*No such file"}.get(damage, "is damaged")
    with pytest.raises(BadRequest, match=f"{line}.*the emulators cannot be brought back") as error:
        repeat(other, progress, state)
    assert "\n" not in str(error.value)
