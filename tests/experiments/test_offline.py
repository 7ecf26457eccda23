"""Learning from recorded episodes: what a run leaves behind, how it resumes, what is compared, what is refused."""

import dataclasses
import json
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from engram import api
from engram.agents import registry
from engram.configs.presets import PRESETS
from engram.envs import datasets
from engram.envs.datasets import Episodes, Origin
from engram.errors import BadRequest
from engram.experiments import cells, compare, evaluate
from engram.experiments.train import Output
from engram.experiments.train import train as train_run
from engram.training import loop
from engram.training.programs import EVALUATION, seed_keys
from tests.experiments.runs import assert_same_end, rows_of, train_here

pytestmark = pytest.mark.usefixtures("quickly_compiled")
STEPS, EPISODES = 6, 7
RUN = {"total_steps": 12, "log_points": 4, "eval_points": 2, "checkpoint_seconds": 0}


def tiny(path: Any, **changes: Any) -> Any:
    """A sequence policy, as small as can be."""
    evolving = {"alpha_T": 0.85, "epoch": 4, "targets": [-40, -20], "acting": "window"}
    sequence = {"context": 3, "batch_size": 4, "eval_episodes": 2} | evolving
    sizes = {"mixer": {"width": 8, "layers": 1, "dropout": 0.3} | changes.pop("mixer", {}), "sequence": sequence}
    values: dict[str, Any] = {"dataset": path, "memory": "none", "seeds": 2, **sizes, **RUN, **changes}
    return api.make_config("dm-pendulum", **values)[1]


def sizes_of(*algorithms: str) -> dict[str, Any]:
    """Fields of small runs of methods that learn from single steps."""
    return RUN | {name: {"hidden": [8], "batch_size": 4, "eval_episodes": 2} for name in algorithms}


def histories(path: Any) -> Any:
    """Implicit Q-learning on histories."""
    small = {"history": {"width": 4}, "bisimulation": {"window": 3, "model": [4]}}
    return api.make_config("offline-pendulum", dataset=path, memory="gru", seeds=2, **small, **sizes_of("iql"))[1]


def write(path: Any, **origin: Any) -> None:
    rng = np.random.default_rng(0)
    recorded = Origin(**({"env": "gymnax/Pendulum-v1", "time_limit": STEPS, "ref_min": -60.0, "ref_max": 0.0} | origin))
    episodes = Episodes(
        obs=rng.normal(size=(EPISODES * (STEPS + 1), 3)).astype(np.float32),
        action=rng.uniform(-2, 2, (EPISODES * STEPS, 1)).astype(np.float32),
        reward=rng.uniform(-8, 0, EPISODES * STEPS).astype(np.float32),
        terminated=np.zeros(EPISODES, bool),
        lengths=np.full(EPISODES, STEPS),
        origin=recorded,
        action_low=np.full(1, -2.0, np.float32),
        action_high=np.full(1, 2.0, np.float32),
    )
    datasets.save(episodes, path)


def trained(folder: Any, configure: Any) -> SimpleNamespace:
    """A run, and the programs that it compiled."""
    data = folder / "recorded.npz"
    write(data)
    kept, compile_agent, config = [], loop.compile_agent, configure(str(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_agent", lambda *arguments: kept.append(compile_agent(*arguments)) or kept[-1])
        run = train_run(config, "own", Output(folder / "run", quiet=True))
    return SimpleNamespace(run=run.folder, data=data, programs=kept[0], config=config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sequence policy."""
    return trained(tmp_path_factory.mktemp("offline"), tiny)


@pytest.fixture(scope="module")
def valued(tmp_path_factory):
    """Implicit Q-learning on histories."""
    return trained(tmp_path_factory.mktemp("values"), histories)


def test_a_run_leaves_everything_behind(finished):
    summary = json.loads((finished.run / "summary.json").read_text())
    rows = rows_of(finished.run)
    assert summary["dataset"] == str(finished.data)
    assert summary["env"] == "gymnax/Pendulum-v1"
    assert summary["memory"] == "none"
    assert summary["env_steps"] == rows[-1]["env_steps"] == 12
    returns = np.array([row["eval/return"] for row in rows if "eval/return" in row])
    assert returns.shape == (2, 2)
    assert summary["eval_return"]["per_seed"] == pytest.approx(returns[-1])
    assert summary["eval_return_last_5_mean"]["per_seed"] == pytest.approx(returns.mean(0))
    assert summary["eval_return_max"]["per_seed"] == pytest.approx(returns.max(0))
    assert {f"eval/{kind}_at_-{target}" for kind in ("return", "score") for target in (40, 20)} <= set(rows[-1])
    assert rows[-1]["eval/score"][0] == pytest.approx(100 * (rows[-1]["eval/return"][0] + 60) / 60, abs=1e-3)
    assert rows[-1]["eval/length"] == [STEPS, STEPS], "the time limit of the recording holds"
    assert (finished.run / "curves.png").stat().st_size > 1000
    assert yaml.safe_load((finished.run / "config.yaml").read_text())["env"] == "gymnax/Pendulum-v1"


@pytest.mark.parametrize("kind", ["finished", "valued"])
def test_a_broken_run_ends_bit_for_bit_where_an_unbroken_one_ends(kind, request, tmp_path):
    finished, broken = request.getfixturevalue(kind), tmp_path / "broken"
    shutil.copytree(finished.run, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    (broken / "summary.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_agent", lambda *_: finished.programs)
        train_run(finished.config, "own", Output(broken, resume=True, quiet=True))
    assert_same_end(finished.run, broken)


@pytest.mark.parametrize(("kind", "loss"), [("finished", "loss/action"), ("valued", "loss/policy")])
def test_the_data_are_an_argument_of_the_program(kind, loss, request):
    """Not in the state, not in the program, and once for both seeds."""
    programs = request.getfixturevalue(kind).programs
    sizes = {size for leaf in jax.tree.leaves(programs.template) for size in leaf.shape}
    assert not sizes & {EPISODES * STEPS, EPISODES * (STEPS + 1)}
    data = programs.chunk.arguments["data"]
    assert data.reward.shape == (EPISODES * STEPS,)
    losses = []
    for given in (data, data.replace(action=-data.action)):
        states = programs.init(seed_keys(0, 2))
        losses.append(programs.chunk.compiled(states, arguments=programs.chunk.arguments | {"data": given})[1][loss])
    assert np.abs(losses[0] - losses[1]).min() > 1e-4


@pytest.mark.parametrize("kind", ["finished", "valued"])
def test_the_memory_of_a_policy_is_its_window(kind, request):
    """From the oldest step to the newest one, without the batch."""
    policy = api.load(request.getfixturevalue(kind).run).policy()
    for obs in ([1.0, 0.0, 0.1], [0.0, 1.0, 0.2]):
        policy(np.array(obs))
    leaves = jax.tree.leaves(policy.memory)
    (window,) = [leaf for leaf in leaves if leaf.shape == (3, 3)]
    assert not window[0].any(), "nothing was seen yet"
    assert (window[1] != window[2]).all()


def test_evaluate_and_plot(finished, tmp_path):
    result = api.evaluate(finished.run, episodes=4)
    assert result == json.loads((finished.run / "evaluation.json").read_text())
    assert set(result["targets"]) == {f"{kind}_at_-{t}" for kind in ("return", "score") for t in (40, 20)}
    assert any(line.startswith("return_at_-40: mean -") for line in evaluate.lines(result, 0))
    assert api.plot([finished.run], tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(BadRequest, match="none to sample"):
        api.evaluate(finished.run, greedy=False)


def test_an_evaluation_shares_no_key_with_a_run_of_its_seed(finished, monkeypatch):
    """Neither with those that training splits, nor with those of the run's own evaluations."""
    handed, jit = [], evaluate.jit
    monkeypatch.setattr(
        evaluate, "jit", lambda f, **how: lambda *given: handed.append(given[1]) or jit(f, **how)(*given)
    )
    api.evaluate(finished.run, episodes=2, seed=finished.config.seed, gif_steps=0)

    def words(keys):
        return {tuple(key) for key in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()}

    trained = seed_keys(finished.config.seed, finished.config.seeds)
    evaluated = jax.vmap(lambda key: jax.random.fold_in(key, EVALUATION))(trained)
    own, used = words(handed[0]), set()
    for keys in (trained, evaluated):
        used |= words(keys) | words(jax.vmap(lambda key: jax.random.split(key, 1000))(keys))
    assert len(own) == finished.config.seeds
    assert not own & used


def test_single_steps_are_trained_and_evaluated(valued):
    summary = json.loads((valued.run / "summary.json").read_text())
    row = rows_of(valued.run)[-1]
    assert (summary["algorithm"], summary["env"], summary["env_steps"]) == ("iql", "gymnax/Pendulum-v1", 12)
    assert summary["eval_return"]["per_seed"] == pytest.approx(row["eval/return"])
    assert {"eval_return_last_5_mean", "eval_return_max"} <= set(summary)
    assert row["eval/score"] == pytest.approx([100 * (x + 60) / 60 for x in row["eval/return"]], abs=1e-3)
    assert row["eval/length"] == [STEPS, STEPS]
    config = yaml.safe_load((valued.run / "config.yaml").read_text())
    assert (config["agent"], config["memory"]) == ("values", "gru")
    result = api.evaluate(valued.run, episodes=4, gif_steps=2)
    assert result["finished"] == [1.0, 1.0]
    mean = result["eval_return"]["mean"]
    assert result["eval_score"]["mean"] == pytest.approx(100 * (mean + 60) / 60, abs=1e-3)
    assert any("normalised score" in line for line in evaluate.lines(result, 0))


@pytest.mark.slow
def test_single_step_methods_are_compared_across_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "train_apart", train_here)
    monkeypatch.chdir(tmp_path)
    write("a.npz")
    write("b.npz")
    small = sizes_of("rcbc")
    small["rcbc"]["targets"] = [-30, -9]
    names = {"algorithms": ["rcbc"], "datasets": ["a.npz", "b.npz"]}
    compared = api.compare("offline-pendulum", **names, seeds=1, out="out", quiet=True, **small)
    assert not compared.failures
    table = compared.table
    assert table.startswith("| dataset | rcbc |")
    for data in "ab":
        row = rows_of(tmp_path / "out" / f"{data}.npz-rcbc")[-1]
        assert {"eval/return_at_-30", "eval/score_at_-9"} <= set(row)
        assert row["eval/return"] == row["eval/return_at_-30"]
        (score,) = row["eval/return"]
        assert f"| {data}.npz | {score:.3f} (n = 1) |" in table
    # The reference returns are known: a row over both, though there is one column.
    summaries = [json.loads((tmp_path / "out" / f"{d}.npz-rcbc" / "summary.json").read_text()) for d in "ab"]
    mean = np.mean([summary["eval_score"]["mean"] for summary in summaries]) / 100
    assert f"| **all** (normalised) | {mean:.3f} (n = 2 in 2 tasks) |" in table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "iqi"}, "unknown algorithm 'iqi': did you mean iql"),
        ({"algorithm": "ppo"}, "choose from bc, cql, iql, odice, rcbc, td3bc"),
        ({"algorithm": "td3bc", "memory": "gru"}, "memory of histories is for iql and cql, not for td3bc"),
        ({"memory": "gruu"}, "did you mean gru"),
        ({"memory": "gru", "history": {"memory_options": ["gru.size=3"]}}, "no option 'size'"),
        ({"env": "gymnax/CartPole-v1"}, r"does not fit gymnax/CartPole-v1.*2 discrete actions"),
    ],
)
def test_bad_requests_of_single_step_methods(changes, message, tmp_path, monkeypatch):
    refused("offline-pendulum", {}, changes, message, tmp_path, monkeypatch)


def refused(preset: Any, origin: Any, changes: Any, message: str, tmp_path: Any, monkeypatch: Any) -> None:
    """Asserts that training on `recorded.npz` is refused in one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    write("recorded.npz", **origin)
    with pytest.raises(BadRequest, match=message) as error:
        api.train(preset, **({"dataset": "recorded.npz"} | changes))
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["recorded.npz"], "nothing may be written"


def test_td3bc_refuses_discrete_actions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    discrete = Episodes(
        obs=np.zeros((4, 4), np.float32),
        action=np.array([0, 1, 1], np.int32),
        reward=np.ones(3, np.float32),
        terminated=np.ones(1, bool),
        lengths=np.array([3]),
        origin=Origin("gymnax/CartPole-v1"),
        num_actions=2,
    )
    datasets.save(discrete, "recorded.npz")
    with pytest.raises(BadRequest, match="td3bc is for continuous actions: take iql, cql or odice"):
        api.train("offline-pendulum", dataset="recorded.npz", algorithm="td3bc")


def test_the_preset_of_decision_transformers_drops_everywhere(tmp_path):
    write(tmp_path / "recorded.npz")
    _, config = api.make_config("dt", dataset=str(tmp_path / "recorded.npz"), env="gymnax/Pendulum-v1")
    agent: Any = registry.build(config)
    policy = agent.policy
    assert policy.time_first
    assert policy.dropout == policy.mixer.stack.dropout == 0.1
    assert [(layer.heads, layer.weight_dropout, layer.window) for layer in policy.mixer.stack.layers] == [
        (1, 0.1, 59)
    ] * 3


@pytest.mark.parametrize(
    ("origin", "changes", "message"),
    [
        ({}, {"memory": "mambo"}, "did you mean mamba"),
        ({}, {"mixer": {"memory_options": ["dm.size=3"]}}, "no option 'size'"),
        ({}, {"mixer": {"dropout": 1.0}}, r"mixer.dropout must lie in \[0, 1\)"),
        ({}, {"dataset": "nowhere.npz"}, "nowhere.npz: no such file"),
        ({}, {"env": "gymnax/CartPole-v1"}, r"does not fit gymnax/CartPole-v1.*2 discrete actions"),
        ({}, {"eval_env": "gymnax/CartPole-v1"}, r"does not fit gymnax/CartPole-v1"),
        ({"env": ""}, {}, "name it with --env"),
        ({"env": "gymnasium/Pendulum-v1"}, {}, "emulator"),
        ({"env": "gymnax/Pendulum-v3"}, {}, "did you mean gymnax/Pendulum-v1"),
        ({"keep": (0, 1)}, {}, r"observations of shape \(3,\).*environment \(2,\)"),
    ],
)
def test_bad_requests_say_so_in_one_line(origin, changes, message, tmp_path, monkeypatch):
    refused(tiny("recorded.npz"), origin, changes, message, tmp_path, monkeypatch)


def test_a_table_of_ones_own_is_learned_from_by_the_bounds_of_its_environment(tmp_path, capsys):
    """It says nothing of actions; Pendulum's lie in [-2, 2], and one that was recorded does not."""
    header = "observations_0,observations_1,observations_2,actions,rewards,terminals,timeouts"
    rows = [f"1.0,0.0,{step / 10},{7.3 if step == 3 else 1.0},-1.0,0,{int(step % 5 == 4)}" for step in range(20)]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([header, *rows]))
    config = api.make_config("offline-pendulum", dataset=str(path), env="gymnax/Pendulum-v1", **sizes_of("iql"))[1]
    agent: Any = registry.build(config)
    unit = np.asarray(agent.view.to_unit(agent.data.action))[:, 0]
    assert sorted(unit.tolist()) == [0.5] * 15 + [1.0]
    assert "mine.csv: 1 of 16 actions lie outside of their bounds, [-2.0] to [2.0]" in capsys.readouterr().err


def test_histories_are_compared_by_their_memory_too():
    preset = PRESETS["offline-pendulum"]
    two = compare.Options(algorithms=("iql", "cql"), memories=("gru", "s5"))
    columns = compare.columns_of(preset, two)
    assert [(c["algorithm"], c["memory"]) for c in columns] == [
        ("iql", "gru"),
        ("iql", "s5"),
        ("cql", "gru"),
        ("cql", "s5"),
    ]
    labels = [dataclasses.replace(preset, **column).label for column in columns]  # type: ignore[arg-type]
    assert labels == ["iql-gru", "iql-s5", "cql-gru", "cql-s5"]
    assert preset.label == "iql"
    with pytest.raises(BadRequest, match="needs --algorithms"):
        compare.columns_of(preset, compare.Options(memories=("gru",)))
