"""Learning from recorded episodes on the command line: what a run leaves behind, how it resumes, what is refused."""

import json
import shutil
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from agents.run import checkpoint, loop
from agents.run.errors import BadRequest
from agents.run.loop import seed_keys
from envs import datasets
from envs.datasets import Episodes, Origin
from scripts import compare, evaluate, plot, train

STEPS, EPISODES = 6, 7


def tiny(path: Any) -> list[str]:
    sizes = "--mixer.width 8 --mixer.layers 1 --sequence.context 3 --sequence.batch-size 4 --sequence.eval-episodes 2"
    evolving = "--sequence.alpha-T 0.85 --sequence.epoch 4 --sequence.targets -40 -20 --sequence.acting window"
    run = "--memory none --total-steps 12 --log-points 4 --eval-points 2 --seeds 2 --checkpoint-seconds 0 --quiet"
    return ["dm-pendulum", "--dataset", str(path), *f"{sizes} {evolving} {run}".split()]


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and the programs that it compiled."""
    folder = tmp_path_factory.mktemp("offline")
    write(folder / "recorded.npz")
    kept, compile_agent = [], loop.compile_agent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_agent", lambda *arguments: kept.append(compile_agent(*arguments)) or kept[-1])
        assert train.main([*tiny(folder / "recorded.npz"), "--out", str(folder / "run")]) == 0
    return SimpleNamespace(run=folder / "run", data=folder / "recorded.npz", programs=kept[0])


def rows_of(run: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("wall_s", "steps_per_s")} for row in rows]


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


def test_a_broken_run_ends_bit_for_bit_where_an_unbroken_one_ends(finished, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(finished.run, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    (broken / "summary.json").unlink()
    assert train.main([*tiny(finished.data), "--out", str(broken), "--resume"]) == 0
    assert rows_of(broken) == rows_of(finished.run)
    states = []
    for run in (finished.run, broken):
        found = checkpoint.restore(run / "checkpoints", finished.programs.template)
        assert found is not None
        assert found[1]["chunk"] == 4
        states.append(found[0])
    for a, b in zip(*(jax.tree.leaves(state) for state in states), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_the_data_are_an_argument_of_the_program(finished):
    """Not in the state, not in the program, and once for both seeds."""
    programs = finished.programs
    sizes = {size for leaf in jax.tree.leaves(programs.template) for size in leaf.shape}
    assert not sizes & {EPISODES * STEPS, EPISODES * (STEPS + 1)}
    data = programs.chunk.keywords["data"]
    assert data.reward.shape == (EPISODES * STEPS,)
    losses = []
    for given in (data, data.replace(action=-data.action)):
        states = programs.init(seed_keys(0, 2))
        losses.append(partial(programs.chunk.func, data=given)(states)[1]["loss/action"])
    assert np.abs(losses[0] - losses[1]).min() > 1e-4


def test_evaluate_and_plot(finished, capsys, tmp_path):
    assert evaluate.main([str(finished.run), "--episodes", "4"]) == 0
    result = json.loads((finished.run / "evaluation.json").read_text())
    assert set(result["targets"]) == {f"{kind}_at_-{t}" for kind in ("return", "score") for t in (40, 20)}
    assert "return_at_-40: mean -" in capsys.readouterr().out
    assert plot.main([str(finished.run), "--out", str(tmp_path / "c.png")]) == 0
    with pytest.raises(BadRequest, match="none to sample"):
        evaluate.main([str(finished.run), "--greedy", "False"])


@pytest.mark.parametrize(
    ("origin", "arguments", "message"),
    [
        ({}, ["--memory", "mambo"], "did you mean mamba"),
        ({}, ["--mixer.memory-options", "dm.size=3"], "no option 'size'"),
        ({}, ["--dataset", "nowhere.npz"], "nowhere.npz: no such file"),
        ({}, ["--env", "gymnax/CartPole-v1"], r"does not fit gymnax/CartPole-v1.*2 discrete actions"),
        ({}, ["--eval-env", "gymnax/CartPole-v1"], r"does not fit gymnax/CartPole-v1"),
        ({"env": ""}, [], "name it with --env"),
        ({"env": "gymnasium/Pendulum-v1"}, [], "emulator"),
        ({"env": "gymnax/Pendulum-v3"}, [], "did you mean gymnax/Pendulum-v1"),
        ({"keep": (0, 1)}, [], r"observations of shape \(3,\).*environment \(2,\)"),
    ],
)
def test_bad_requests_say_so_in_one_line(origin, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("recorded.npz", **origin)
    with pytest.raises(BadRequest, match=message) as error:
        train.main([*tiny("recorded.npz"), *arguments])
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["recorded.npz"], "nothing may be written"


def test_comparisons_are_by_dataset():
    with pytest.raises(BadRequest, match="use --datasets"):
        compare.main(["dm-pendulum", "--envs", "gymnax/Pendulum-v1"])
    with pytest.raises(BadRequest, match="use --envs"):
        compare.main(["popgym-fast", "--datasets", "recorded.npz"])
    with pytest.raises(BadRequest, match="sets --dataset itself"):
        compare.main(["dm-pendulum", "--dataset", "recorded.npz"])
