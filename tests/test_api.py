"""Engram from Python: the names and checks of the scripts, runs as objects, and policies that act as evaluations do."""

import dataclasses
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engram
from engram import api
from engram.agents.common.spec import Build
from engram.configs.presets import PRESETS
from engram.envs import registry
from engram.envs.host.pool import HostPool
from engram.envs.spaces import Box
from engram.errors import BadRequest, EngramError, UnknownName
from engram.experiments import adapt, compare, evaluate, sweep
from engram.experiments.train import Output
from engram.scripts import train as script
from tests.experiments.runs import TINY, begun

pytestmark = pytest.mark.usefixtures("quickly_compiled")
ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "fixtures" / "runs"

# --------------------------------------------------------------------------------------------------------- the surface


def test_importing_is_cheap_and_lazy():
    code = """
import sys
before = set(sys.modules)
import engram
new = sorted(set(sys.modules) - before)
assert engram.__version__
assert "train" in dir(engram)
assert {name.split(".")[0] for name in new} <= sys.stdlib_module_names | {"engram"}, new
assert [name for name in new if name.startswith("engram")] == ["engram"], new
assert len(new) < 60, new
import engram.errors
assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "numpy")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there():
    for name in engram.__all__:
        assert getattr(engram, name) is not None, name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        engram.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert engram.presets() == PRESETS
    assert engram.Run is type(engram.load(OLD / "ppo"))


def test_calls_take_what_the_scripts_take():
    """Options of a script are the keywords of its call, or the fields that it passes on."""

    def fields(kind: type) -> set[str]:
        return {f.name for f in dataclasses.fields(kind)}

    def keywords(call: Any) -> set[str]:
        kinds = inspect.signature(call).parameters.values()
        return {p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY}

    assert keywords(engram.train) == fields(Output)
    assert keywords(engram.compare) == fields(compare.Options) | {"wandb", "quiet", "devices", "mirror"}
    assert keywords(engram.sweep) == fields(sweep.Options) | {"wandb", "quiet", "devices", "mirror"}
    for call, options in ((engram.evaluate, evaluate.Options), (engram.adapt, adapt.Options)):
        assert all(name in (call.__doc__ or "") for name in ("episodes", "gif_steps") if name in fields(options))
        with pytest.raises(UnknownName, match="unknown key 'sed': did you mean seed"):
            cast(Any, call)([OLD / "ppo"] if call is engram.adapt else OLD / "ppo", sed=1)


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"memory": "grru"}, ["--memory", "grru"]),
        ({"env": "popgym/RepeatPrevEasy"}, ["--env", "popgym/RepeatPrevEasy"]),
        ({"network__memory_options": ["gru.size=3"]}, ["--network.memory-options", "gru.size=3"]),
        ({"eval_env": "gymnax/CartPole-v1"}, ["--eval-env", "gymnax/CartPole-v1"]),
        ({"resume": True}, ["--resume"]),
    ],
)
def test_a_call_refuses_what_its_script_refuses(changes, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngramError) as by_call:
        engram.train("debug", **changes)
    with pytest.raises(EngramError) as by_script:
        script.main(["debug", *arguments])
    assert str(by_call.value) == str(by_script.value)
    assert not list(tmp_path.iterdir())


def test_words_mean_the_same_in_a_call(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadRequest, match="already exists"):  # "no" is not to resume
        engram.train("debug", out=tmp_path / "taken", resume=cast(Any, "no"))
    with pytest.raises(BadRequest, match="unknown value of wandb 'yes': choose from disabled"):
        engram.train("debug", out=tmp_path / "new", wandb=cast(Any, "yes"))
    assert not (tmp_path / "new").exists()
    wrong: dict[str, Any]
    for wrong in ({"memories": "gru"}, {"envs": "popgym/RepeatFirstEasy"}):
        with pytest.raises(BadRequest, match=f"{next(iter(wrong))} must be a list"):
            engram.compare("debug", **wrong)


def test_names_offer_close_matches():
    wrong: dict[str, Any]
    for wrong, message in (
        ({"preset": "debugg"}, "unknown preset 'debugg': did you mean debug"),
        ({"preset": "debug", "sed": 1}, "unknown setting 'sed': did you mean seed"),
        ({"preset": "debug", "ppo": {"epoch": 1}}, "unknown setting 'ppo.epoch': did you mean ppo.epochs"),
    ):
        with pytest.raises(UnknownName, match=message):
            engram.train(**wrong)
    with pytest.raises(BadRequest, match="is not a run folder"):
        engram.load("nowhere")
    fixed: dict[str, Any]
    for fixed in ({"memory": "s5"}, {"env": "popgym/RepeatFirstEasy"}):
        with pytest.raises(BadRequest, match=f"compare sets --{next(iter(fixed))} itself"):
            engram.compare("debug", memories=["gru"], **fixed)


def test_environments_and_memories_are_made_by_name():
    assert engram.make_env("meta/CartPole", episodes=3) == registry.make("meta/CartPole?episodes=3")
    batch = engram.make_env("popgym/RepeatPreviousEasy", num_envs=3)
    assert batch.reset(jax.random.key(0), batch.default_params)[0].shape[0] == 3
    assert engram.make_memory("s5", width=8, state=16, layers=2).width == 8
    with pytest.raises(UnknownName, match="did you mean state"):
        engram.make_memory("s5", width=8, states=16)
    with pytest.raises(UnknownName, match="did you mean popgym/RepeatPreviousEasy"):
        engram.make_env("popgym/RepeatPrevEasy")
    with pytest.raises(BadRequest, match="num_envs must be at least 1, got 0"):
        engram.make_env("popgym/RepeatPreviousEasy", num_envs=0)
    with pytest.raises(BadRequest, match="only comes in batches"):
        engram.make_env("gymnasium/CartPole-v1")


# ---------------------------------------------------------------------------------------------------- runs as objects


def test_metrics_are_tidy_rows(monkeypatch):
    run = engram.load(OLD / "ppo")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    monkeypatch.setitem(sys.modules, "pandas", None)  # not installed
    rows = run.metrics()
    assert {row["seed"] for row in rows} == {0, 1}
    assert len(rows) == sum(len(v) for line in lines for v in line.values() if isinstance(v, list))
    last = [row["value"] for row in rows if row["metric"] == "eval/return" and row["env_steps"] == 4096]
    assert last == lines[-1]["eval/return"]
    assert set(rows[0]) == {"seed", "env_steps", "metric", "value"}


def test_metrics_are_a_frame_where_pandas_is_installed(monkeypatch):
    pandas = pytest.importorskip("pandas")
    run = engram.load(OLD / "ppo")
    frame = run.metrics()
    assert isinstance(frame, pandas.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert frame.to_dict("records") == run.metrics()


def test_a_run_knows_what_is_in_its_folder(tmp_path):
    shutil.copytree(OLD / "ppo", tmp_path / "ppo")
    run = engram.load(tmp_path / "ppo")
    assert (run.preset, run.config.memory) == ("debug", "gru")  # type: ignore[attr-defined]
    assert (
        run.summary["eval_return"]["per_seed"]
        == json.loads((OLD / "ppo" / "summary.json").read_text())["eval_return"]["per_seed"]
    )
    assert {leaf.shape[0] for leaf in jax.tree.leaves(run.states.params)} == {2}
    assert run.plot().read_bytes()[:4] == b"\x89PNG"
    (run.folder / "summary.json").write_text("{")
    with pytest.raises(BadRequest, match="is damaged: remove it"):
        _ = run.summary
    (run.folder / "summary.json").unlink()
    assert not run.is_finished
    with pytest.raises(BadRequest, match="is not finished: continue it with --resume"):
        _ = run.summary


def test_one_run_is_drawn_or_several(tmp_path):
    for runs in (OLD / "ppo", str(OLD / "ppo"), engram.load(OLD / "ppo"), [OLD / "ppo"]):
        assert engram.plot(runs, tmp_path / "new" / "curves.svg").exists()
    with pytest.raises(BadRequest, match="name at least one run"):
        engram.plot([])
    for name in ("curves.doc", "curves", "/", str(tmp_path)):
        with pytest.raises(BadRequest, match=f"^{name}: the ending of a picture is one of .*png"):
            engram.plot(OLD / "ppo", name)
    with pytest.raises(BadRequest, match="there is no adaptation to measure"):
        engram.adapt(engram.load(OLD / "ppo"))


# ------------------------------------------------------------------------------------------------------------ policies


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """A run whose observations are normalised and hold the action before, with a memory."""
    view = {"previous_action": True, "normalise": True}
    small = TINY | {"memory": "gru", "ppo": {"num_envs": 8, "num_steps": 16, "bootstrap_truncated": True}}
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    return engram.train("debug", env="gymnax/CartPole-v1", observation=view, **small, seeds=2, out=folder, quiet=True)


def evaluated(run: Any, seed: int, key: jax.Array, steps: int) -> Any:
    """Actions and values `[steps]` and memories of the agent's own evaluation of one environment, and beside them the
    bare environment's observations: it is drawn with the same keys."""
    config = run.spec.play.configure(run.config, 1, True)
    agent = dataclasses.replace(run, config=config).build(Build())
    state = jax.tree.map(lambda x: x[seed], run.restore(agent)[0])
    env_params, carry = agent._start_play(state, key)
    bare = registry.make_vector(run.config.env, 1)
    obs, env_state = bare.reset(key, bare.default_params)

    @jax.jit
    def step(carry: Any, env_state: Any, key: jax.Array) -> Any:
        memory, features = agent._apply(state.params, "features_step", carry.memory, carry.obs, carry.reset)
        value = agent._apply(state.params, "value", features)
        carry, _, action = agent._play_step(state.params, env_params, carry, key)
        obs, env_state, *_, info = bare.step(jax.random.split(key)[1], env_state, action, bare.default_params)
        return (action[0], value[0], jax.tree.map(lambda x: x[0], memory)), obs, carry, env_state, info["reset"][0]

    for t in range(steps):
        seen = obs[0]
        looked, obs, carry, env_state, over = step(carry, env_state, jax.random.fold_in(key, t))
        yield jax.device_get((seen, *looked))
        if over:
            return


def assert_acts_as_evaluated(policy: Any, run: Any, seed: int, key: int, steps: int = 60) -> int:
    """Asserts this of one episode, and returns its length."""
    length = 0
    for obs, action, value, memory in evaluated(run, seed, jax.random.key(key), steps):
        assert policy(obs) == action
        assert policy.value == pytest.approx(value, abs=1e-5)
        for ours, theirs in zip(jax.tree.leaves(policy.memory), jax.tree.leaves(memory), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        length += 1
    return length


def test_a_policy_acts_exactly_as_the_evaluation_does(cartpole):
    """One episode after the other, each begun by `reset`."""
    policy = engram.load(cartpole.folder).policy(seed=1, greedy=True)
    assert policy.memory is None
    assert policy.value is None
    lengths = []
    for key in (3, 4):
        policy.reset()
        lengths.append(assert_acts_as_evaluated(policy, cartpole, 1, key))
    assert min(lengths) > 5
    # Without the reset the episode before is still in its memory.
    obs, _, value, _ = next(iter(evaluated(cartpole, 1, jax.random.key(5), 1)))
    policy(obs)
    assert abs(policy.value - value) > 1e-4


def test_seeds_have_policies_of_their_own(cartpole):
    obs = np.array([0.01, 0.02, -0.03, 0.04], np.float32)
    values = []
    for seed in (0, 1):
        policy = cartpole.policy(seed=seed)
        policy(obs)
        values.append(policy.value)
    assert values[0] != values[1]
    for seed in (-1, 2):
        with pytest.raises(BadRequest, match=f"has seeds 0 to 1, not {seed}"):
            cartpole.policy(seed=seed)
    with pytest.raises(BadRequest, match="greedy must be true or false, got 'maybe'"):
        cartpole.policy(greedy="maybe")
    assert len(repr(cartpole.policy())) < 300, "without its parameters"


def test_sampled_actions_repeat_by_their_key(cartpole):
    def actions(key: int) -> list[int]:
        policy = cartpole.policy(greedy=False, key=key)
        return [policy(np.zeros(4)) for _ in range(30)]

    assert actions(0) == actions(0) != actions(1)
    assert len(set(actions(0))) == 2, "sampled, not greedy"


def test_observations_of_another_kind_are_refused(cartpole):
    policy = cartpole.policy()
    with pytest.raises(BadRequest, match=r"has shape \(4,\) here, got \(3,\)"):
        policy(np.zeros(3))
    for wrong in ({"image": np.zeros(4)}, ["left"] * 4, [0.0, [1.0]]):
        with pytest.raises(BadRequest, match="holds float32 numbers here"):
            policy(wrong)
    assert policy([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    assert cast(Box, policy.observation_space).shape == (4,)
    assert policy.action_space.n == 2


def test_a_policy_sees_the_reward_where_its_agent_does(tmp_path):
    view = {"previous_action": True, "previous_reward": True}
    run = begun(api.make_config("debug", **TINY, observation=view)[1], tmp_path / "run")
    obs = jax.tree.map(np.asarray, registry.make("popgym/RepeatPreviousEasy").reset(jax.random.key(0), None)[0])
    values = []
    for reward in (0.0, 5.0):
        policy = run.policy(greedy=True)
        policy(obs)
        policy(obs, reward)
        values.append(policy.value)
    assert values[0] != values[1]


def test_a_world_model_acts_one_step_at_a_time():
    policy = engram.load(OLD / "drama").policy(greedy=True)
    board = np.zeros(cast(Box, policy.observation_space).shape, np.float32)
    board.flat[2] = board.flat[-3] = 1.0
    assert {policy(board) for _ in range(3)} <= {0, 1, 2}
    assert policy.value is not None
    assert np.isfinite(policy.value)
    first = jax.tree.map(np.copy, policy.memory)
    policy(board)
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, policy.memory)), strict=True))


def test_what_learned_from_single_steps_acts(monkeypatch):
    monkeypatch.chdir(ROOT)
    policy = engram.load(OLD / "odice").policy(seed=1)
    action = policy(np.array([1.0, 0.0, 0.5]))
    assert action.shape == (1,)
    assert abs(float(action[0])) <= 2.0
    np.testing.assert_array_equal(action, policy(np.array([1.0, 0.0, 0.5])))
    assert policy.value is None


def test_planners_have_no_policy():
    with pytest.raises(BadRequest, match="stepmix learns while it acts and has no policy"):
        engram.load(OLD / "stepmix").policy()


def test_emulators_are_closed_and_policies_open_none(tmp_path, monkeypatch):
    closed, close = [], HostPool.close
    monkeypatch.setattr(HostPool, "close", lambda pool: closed.append(pool) or close(pool))
    folder, changes = tmp_path / "run", {**TINY, "ppo": {"num_envs": 4, "num_steps": 16, "eval_envs": 1}}
    run = engram.train("debug", env="gymnasium/CartPole-v1", **changes, out=folder, quiet=True)
    assert len(closed) == 2, "that of training and that of evaluations"
    assert run.evaluate(episodes=2, gif_steps=0)["finished"] == [1.0]
    assert len(closed) == 4

    def refuse(*_, **__):
        raise AssertionError("an emulator was opened")

    monkeypatch.setattr(registry, "make_vector", refuse)
    loaded = engram.load(run.folder)
    policy = loaded.policy()
    assert policy(np.zeros(4)) in (0, 1)
    assert cast(Box, policy.observation_space).shape == (4,)
    assert jnp.shape(jax.tree.leaves(loaded.states.params)[0])[0] == 1


# ----------------------------------------------------------------------------------------------------- configurations


def test_configurations_come_from_presets_files_and_objects(tmp_path):
    name, config = api.make_config("debug", seeds=3)
    assert (name, config.seeds) == ("debug", 3)
    folder = OLD / "drama"
    name, config = api.make_config(folder / "config.yaml", drama__entropy=0.5)
    assert (name, config.drama.entropy) == ("drama-catch", 0.5)  # type: ignore[attr-defined]
    assert api.make_config(config) == ("", config)
    assert api.make_config(config, seeds=2)[1].seeds == 2
