"""Making datasets from end to end: what the tiers of a small PPO run hold, what is refused, and resuming."""

import json
from dataclasses import dataclass

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram import api
from engram.envs.datasets import Episodes, Origin, load
from engram.envs.datasets.recorder import Recorder
from engram.envs.vector import Vectorised
from engram.envs.wrappers import FlattenObservation
from engram.errors import BadRequest, Interrupted
from engram.experiments import datasets
from engram.experiments.datasets import TIERS, Convert, Expert, Measured, Tiers
from engram.experiments.recording import Player, random_player
from engram.training import checkpoint, loop
from tests.agents.ppo.probes import ConstantReward

pytestmark = pytest.mark.usefixtures("quickly_compiled")
STEPS = 3000
CHANGES = {
    **{"memory": "gru", "network": {"width": 32}, "observation": {"normalise_reward": False}},
    **{"ppo": {"num_envs": 32, "num_steps": 64, "learning_rate": 4e-3}, "total_steps": 60_000},
    **{"log_points": 30, "eval_points": 1, "checkpoint_seconds": 0},
}


def make(out, **changes):
    """All tiers of CartPole."""
    _, config = api.make_config("gymnax", **CHANGES, **changes)
    datasets.make_tiers("gymnax", config, Tiers(out=out, steps=STEPS, quiet=True))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """All tiers of CartPole, in a run that was stopped after its fourth checkpoint and continued."""
    folder, save = tmp_path_factory.mktemp("data") / "cartpole", checkpoint.save

    def stop(root, state, progress, *rest):
        save(root, state, progress, *rest)
        if progress.chunk == 4:
            raise Interrupted("stopped after chunk 4 of 30; continue with --resume")

    compiled = []

    def once(*arguments):
        """Both halves are the same programs."""
        compiled.append(compiled[0] if compiled else compile_agent(*arguments))
        return compiled[-1]

    compile_agent = loop.compile_agent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_agent", once)
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(Interrupted, match="after chunk 4 of 30; repeat the command"):
            make(folder)
        patch.setattr(checkpoint, "save", save)
        make(folder)
    assert len(compiled) == 2
    return folder


@pytest.fixture(scope="module")
def tiers(out) -> dict[str, Episodes]:
    return {tier: load(out / f"{tier}.npz") for tier in TIERS}


def columns(episodes: Episodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observation, next observation, and whether the task ended, of every step."""
    last = np.cumsum(episodes.lengths + 1) - 1
    terminal = np.zeros(len(episodes.reward), bool)
    terminal[np.cumsum(episodes.lengths) - 1] = episodes.terminated
    first = np.append(0, last[:-1] + 1)
    return np.delete(episodes.obs, last, axis=0), np.delete(episodes.obs, first, axis=0), terminal


@pytest.mark.slow
def test_every_step_is_one_of_the_environment(tiers):
    """CartPole's observation is its state: what gymnax makes of it and the action is what was recorded, in every tier,
    though the policy saw normalised observations with the previous action."""
    env, params = gymnax.make("CartPole-v1")

    @jax.jit
    @jax.vmap
    def step(obs, action):
        _, state = env.reset_env(jax.random.key(0), params)
        state = state.replace(x=obs[0], x_dot=obs[1], theta=obs[2], theta_dot=obs[3], time=0)
        obs, state, reward, *_ = env.step_env(jax.random.key(0), state, action, params)
        return obs, reward, env.is_terminated(state, params)

    for tier, episodes in tiers.items():
        obs, next_obs, terminal = columns(episodes)
        pad = -len(obs) % 8192  # one compilation for all
        following, reward, ended = jax.device_get(
            step(jnp.pad(obs, ((0, pad), (0, 0))), jnp.pad(episodes.action, (0, pad)))
        )
        np.testing.assert_allclose(next_obs, following[: len(obs)], atol=1e-5, err_msg=tier)
        np.testing.assert_array_equal(episodes.reward, reward[: len(obs)])
        np.testing.assert_array_equal(terminal, ended[: len(obs)])
        # Whole episodes: they open as CartPole does, and end by its task or at its limit.
        opening = obs[episodes.starts]
        assert np.abs(opening).max() <= 0.05
        assert (episodes.terminated | (episodes.lengths == 500)).all()
        assert set(np.unique(episodes.action)) <= {0, 1}
        assert episodes.num_actions == 2


@pytest.mark.slow
def test_what_each_tier_is(out, tiers):
    measured = json.loads((out / "training" / "measured.json").read_text())
    low = measured["random"]["episode_return"]
    high = measured["checkpoint 30"]["episode_return"]
    assert low == pytest.approx(22.2, abs=4), "uniform actions on CartPole"
    for tier, episodes in tiers.items():
        assert (episodes.origin.ref_min, episodes.origin.ref_max) == (low, high)
        assert episodes.origin.tier == tier
        assert episodes.origin.env == "gymnax/CartPole-v1"
    for tier in ("random", "medium", "expert"):
        size, length = len(tiers[tier].reward), tiers[tier].lengths.mean()
        assert size == pytest.approx(STEPS, abs=max(0.3 * STEPS, 2 * length)), tier
        assert tiers[tier].origin.score == pytest.approx(tiers[tier].score(tiers[tier].returns.mean()))
    assert np.mean(tiers["random"].action) == pytest.approx(0.5, abs=0.04)

    # Medium is the first checkpoint that scores a third of the expert.
    numbers = [int(name.split()[1]) for name in measured if name.startswith("checkpoint")]
    medium = sorted(numbers)[-2]
    assert sorted(numbers) == [*range(1, medium + 1), 30]
    scores = [(measured[f"checkpoint {n}"]["episode_return"] - low) / (high - low) for n in range(1, medium + 1)]
    assert scores[-1] >= 1 / 3 > max(scores[:-1], default=0)
    assert f"after {medium * 2048:,} steps" in tiers["medium"].origin.algorithm

    # medium-expert: one after the other.
    for name in ("obs", "action", "reward", "terminated", "lengths"):
        both = np.concatenate([getattr(tiers[part], name) for part in ("medium", "expert")])
        np.testing.assert_array_equal(getattr(tiers["medium-expert"], name), both)


@pytest.mark.slow
def test_replay_tiers_are_all_that_training_played_in_order(out, tiers):
    """Their episodes are those that the run's metrics counted, chunk by chunk; the longer begins with the shorter."""
    full, short = tiers["full-replay"], tiers["medium-replay"]
    rows = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    counts = [int(row["train/episodes"][0]) for row in rows]
    assert len(rows) == 30
    assert len(full.lengths) == sum(counts)
    for row, first, count in zip(rows, np.cumsum([0, *counts]), counts, strict=False):
        if count:
            assert full.returns[first : first + count].mean() == pytest.approx(row["train/return"][0], rel=1e-5)
    measured = json.loads((out / "training" / "measured.json").read_text())
    medium = sorted(int(name.split()[1]) for name in measured if name.startswith("checkpoint"))[-2]
    episodes, steps = sum(counts[:medium]), len(short.reward)
    assert len(short.lengths) == episodes
    np.testing.assert_array_equal(short.obs, full.obs[: steps + episodes])
    np.testing.assert_array_equal(short.action, full.action[:steps])
    np.testing.assert_array_equal(short.terminated, full.terminated[:episodes])


@pytest.mark.slow
def test_repeating_the_command_makes_only_what_is_missing(out, tiers, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("played again")

    monkeypatch.setattr(Player, "play", refuse)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    make(out)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    (out / "medium-replay.npz").unlink()
    (out / "medium-expert.npz").write_bytes(b"damaged")
    make(out)
    for tier in ("medium-replay", "medium-expert"):
        remade = load(out / f"{tier}.npz")
        np.testing.assert_array_equal(remade.obs, tiers[tier].obs)
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"medium-replay.npz", "medium-expert.npz"}
    with pytest.raises(BadRequest, match="differ: seed"):
        make(out, seed=1)
    assert "full-replay" in capsys.readouterr().out


@pytest.mark.slow
def test_the_expert_of_a_finished_run_is_that_of_its_tiers(out, tiers, tmp_path):
    """From the run's own checkpoint, as if `train.py` had made it; written for Minari."""
    # As many steps as make the mean of some 200 episodes.
    datasets.record_expert(Expert(out / "training", tmp_path, ("expert",), 10 * STEPS, "minari"))
    expert = load(tmp_path / "minari" / "gymnax-CartPole-v1" / "expert-v0")
    high = tiers["expert"].origin.ref_max
    assert high is not None
    assert expert.origin.ref_max == pytest.approx(high, rel=0.15)
    assert expert.origin.ref_min == tiers["random"].origin.ref_min
    assert expert.returns.mean() == pytest.approx(high, rel=0.15)


@pytest.mark.slow
def test_convert(out, tiers, tmp_path, capsys):
    d4rl, minari, back = tmp_path / "a.hdf5", tmp_path / "bb" / "c-v0", tmp_path / "d.npz"
    for source, target in ((out / "medium.npz", d4rl), (d4rl, minari), (minari, back)):
        datasets.convert(Convert(source, target))
    np.testing.assert_array_equal(load(back).obs, tiers["medium"].obs)
    assert load(back).origin == tiers["medium"].origin
    assert "steps: " in capsys.readouterr().out
    with pytest.raises(BadRequest, match="no such file"):
        datasets.convert(Convert(tmp_path / "none.npz", back))
    with pytest.raises(BadRequest, match="not the name of a dataset"):
        datasets.convert(Convert(back, tmp_path / "x.pkl"))


@dataclass(frozen=True)
class Uneven(ConstantReward):
    """Episodes of 1 or of 9 steps, by the toss of a coin; the return is the length."""

    def step(self, key, state, action, params):
        obs, state, reward, _, truncated, info = super().step(key, state, action, params)
        return obs, state, reward, state.time == jnp.where(state.cue > 0, 1, 9), truncated, info


def test_short_and_long_episodes_are_as_frequent_as_they_are_played():
    """Half of them have 9 steps. Of the first 256 to end anywhere, three quarters and more would have one."""
    env = Recorder(FlattenObservation(Vectorised(Uneven(length=10), 64)))
    player, each = random_player(env), np.full(64, 4)
    episodes = player.play(None, jax.random.key(0), each).episodes(Origin(env=""), player.actions, each)
    assert len(episodes.lengths) == 256
    assert set(episodes.lengths.tolist()) == {1, 9}
    assert episodes.lengths.mean() == pytest.approx(5, abs=4 * 4 / 16)
    np.testing.assert_array_equal(episodes.returns, episodes.lengths)


@pytest.mark.slow
def test_an_expert_that_is_no_better_than_chance_is_refused(out, tiers, monkeypatch):
    monkeypatch.setattr(datasets.Workshop, "measure", lambda *_: Measured(22.0, 22.0))
    with pytest.raises(BadRequest, match=r"not above that of random actions, .* train longer"):
        make(out)


@pytest.mark.slow
def test_a_recorded_run_is_a_run_like_others(out, tiers):
    # Many episodes: the return of the expert is the mean of only 100, which is off by 4 to 10 % already.
    mean = api.evaluate(out / "training", episodes=2000, gif_steps=0)["eval_return"]["mean"]
    assert mean == pytest.approx(tiers["expert"].origin.ref_max, rel=0.2)
