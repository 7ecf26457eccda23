"""Configurations, and what runs leave behind, as others may write them: one line each, at once."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engram import api
from engram.configs import sources, store
from engram.envs.datasets.recorder import Tape
from engram.envs.spaces import Box, Discrete
from engram.errors import BadRequest
from engram.experiments import policy, recording
from engram.experiments.cells import Cell
from engram.experiments.datasets import Workshop
from engram.experiments.runs import Run, read_summary
from engram.training.folder import read_config
from engram.training.metrics import read_metrics


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content in (os.mkfifo, os.mkdir):
        content(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def laughs(levels: int) -> str:
    """A few lines that describe 10^levels words."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, levels)]
    return "\n".join(lines)


NOT_TEXT: dict[str, Any] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "bytes": b"\xff\xfe\x00\x01",
    "zeros": bytes(100),
    "nothing": "",
    "deep": "[" * 100_000,
    "deep mappings": '{"a":' * 100_000,
    "a list": "[1, 2]",
    "text": '"text"',
    "a number": "3",
    "digits": "9" * 5000,
}
"""What no file of a run may be."""

YAML = NOT_TEXT | {
    "ten million words": laughs(7),
    "itself": "a: &a [*a]",
    "a mapping of itself": "a: &a {b: *a}",
    "an object": "a: !!python/object/apply:os.abort []",
    "a name": "a: !!python/name:os.abort",
    "an impossible date": "a: 2020-99-99",
    "no date": "a: !!timestamp x",
    "no number": "a: !!int ''",
    "no float": "a: !!float x",
    "no flag": "a: !!bool x",
    "no binary": "a: !!binary '*'",
    "no alias": "a: *b",
    "two documents": "a: 1\n---\nb: 2",
    "a tab": "a:\n\tb: 1",
    "a huge number": "agent: ppo\nseed: 0x" + "f" * 5000,
    "many digits": "agent: ppo\nseed: " + "9" * 5000,
    "a key of two lines": 'agent: ppo\n"a\\nb": 1',
    "a key of numbers": "agent: ppo\n1: 1",
    "a deep key of numbers": "agent: ppo\nppo: {clip: {1: 1}}",
    "a key of lists": "agent: ppo\n[1, 2]: 1",
    "a long key": "agent: ppo\n" + "k" * 5000 + ": 1",
    "a NUL": 'agent: ppo\nenv: "a\\0b"',
    "no agent": "seeds: 3",
    "a version that is a flag": "schema: true\nagent: ppo",
    "a version of digits": "schema: 0x" + "f" * 5000,
    "a preset that is a list": "agent: ppo\npreset: [a]",
    "an agent that is a list": "agent: [ppo]",
    "a group that is text": "agent: ppo\nppo: x",
    "a group that is a list": "agent: ppo\nppo: [1]",
    "300,000 letters": "a: " + "x" * 300_000,
}


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize("read", ["file", "run"])
def test_configurations_that_are_none(name, read, tmp_path):
    path = tmp_path / "config.yaml"
    write(path, YAML[name])
    with pytest.raises(BadRequest) as error:
        sources.find(path) if read == "file" else Run.load(tmp_path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600


def test_a_configuration_may_refer_to_parts_of_itself(tmp_path):
    (tmp_path / "own.yaml").write_text("agent: ppo\nmemory: gru\nseeds: &two 2\nseed: *two\n")
    config = sources.find(tmp_path / "own.yaml")[1]
    assert (config.label, config.seeds, config.seed) == ("gru", 2, 2)


OF_SEEDS = {"per_seed": [1.0, None], "mean": 1.0}
SUMMARY = {"seeds": 2, "env_steps": 10, "wall_s": 1.0, "compile_s": 1.0, "steps_per_s": 10.0}
SUMMARY |= {"eval_return": OF_SEEDS, "train_return": OF_SEEDS}
SUMMARIES = NOT_TEXT | {
    f"{name} is {value!r}": json.dumps(SUMMARY | {name: value})
    for name in (*SUMMARY, "eval_finished", "eval_score")
    for value in (None, "a", True, [], {}, float("nan"), {"per_seed": 3, "mean": 1}, {"per_seed": ["a"], "mean": 1})
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_summaries_that_are_none(name, tmp_path):
    write(tmp_path / "summary.json", SUMMARIES[name])
    config = api.make_config("debug")[1]
    readers: tuple[Callable[[], Any], ...] = (
        lambda: Run(tmp_path, config).summary,
        lambda: Cell(config, tmp_path).summary,
        lambda: Cell(config, tmp_path).scores(),
    )
    for read in readers:
        with pytest.raises(BadRequest, match=r"summary\.json is damaged: remove it, and the run is resumed"):
            read()


def test_summaries_that_are_whole_or_not_there(tmp_path):
    assert read_summary(tmp_path) is None
    assert read_summary(tmp_path / "nothing") is None
    write(tmp_path / "summary.json", SUMMARY)
    assert read_summary(tmp_path) == SUMMARY


@pytest.mark.parametrize("name", [name for name in NOT_TEXT if name not in ("nothing",)])
def test_records_of_spaces_that_are_none(name, tmp_path):
    write(tmp_path / "spaces.json", NOT_TEXT[name])
    run = Run(tmp_path, api.make_config("debug")[1])
    with pytest.raises(BadRequest, match=r"spaces\.json"):
        policy.spaces_of(run, "gymnasium/CartPole-v1", 0)


@pytest.mark.parametrize(
    "space",
    [
        {"kind": "Discrete", "n": "a"},
        {"kind": "Discrete", "n": 0},
        {"kind": "Discrete", "n": 1.5},
        {"kind": "Discrete"},
        {"kind": "Box", "low": 0, "high": 1, "shape": 3},
        {"kind": "Box", "low": 0, "high": 1, "shape": [-1]},
        {"kind": "Box", "low": "a", "high": 1, "shape": [1]},
        {"kind": "Box", "low": 0, "high": 1, "shape": [1], "dtype": "O"},
        {"kind": "Tuple", "spaces": [3]},
        {"kind": "Dict", "spaces": [["a", 3]]},
        {"kind": "MultiDiscrete", "nvec": ["a"]},
        {"kind": []},
        [],
        None,
    ],
)
def test_spaces_that_are_none(space, tmp_path):
    write(tmp_path / "spaces.json", {"observation": {"kind": "Discrete", "n": 3}, "action": space})
    run = Run(tmp_path, api.make_config("debug")[1])
    with pytest.raises(BadRequest, match=r"spaces\.json is damaged"):
        policy.spaces_of(run, "gymnasium/CartPole-v1", 0)


def test_spaces_that_are_whole(tmp_path):
    box = {"kind": "Box", "low": ["-inf", 0], "high": 1, "shape": [2], "dtype": "float32"}
    write(tmp_path / "spaces.json", {"observation": box, "action": {"kind": "Discrete", "n": 3}})
    run = Run(tmp_path, api.make_config("debug")[1])
    spaces, _ = policy.spaces_of(run, "gymnasium/CartPole-v1", 0)
    assert spaces == (Box((float("-inf"), 0), 1, (2,)), Discrete(3))


ROW = '{"env_steps": 1, "eval/return": [1.0]}\n'
METRICS = {
    "a pipe": os.mkfifo,
    "bytes in the middle": ROW.encode() + b"\xff\xfe\n" + ROW.encode(),
    "no row in the middle": ROW + "[1]\n" + ROW,
    "a deep row in the middle": ROW + "[" * 100_000 + "\n" + ROW,
    "digits in the middle": ROW + "9" * 5000 + "\n" + ROW,
    "a row without steps in the middle": ROW + '{"eval/return": [1.0]}\n' + ROW,
    "more seeds in the middle": ROW + '{"env_steps": 1, "eval/return": [1.0, 2.0]}\n' + ROW,
    "no seeds in the middle": ROW + '{"env_steps": 1, "eval/return": []}\n' + ROW,
    "one number for all seeds in the middle": ROW + '{"env_steps": 1, "eval/return": 1.0}\n' + ROW,
    "steps of each seed in the middle": ROW + '{"env_steps": 1, "wall_s": [1.0], "eval/return": [1.0]}\n' + ROW,
    "words in the middle": ROW + '{"env_steps": 1, "eval/return": ["a"]}\n' + ROW,
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_that_are_none(name, tmp_path):
    config = api.make_config("debug")[1]
    (tmp_path / "config.yaml").write_text(json.dumps(store.describe("debug", config)))
    write(tmp_path / "metrics.jsonl", METRICS[name])
    run = Run.load(tmp_path)
    for read in (run.metrics, run.plot):
        with pytest.raises(BadRequest, match=r"metrics\.jsonl"):
            read()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: &a [*a]", b"a: " + b"x" * 10**6, b""])
def test_a_standard_input_that_is_no_configuration(content, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
    with pytest.raises(BadRequest, match="the standard input"):
        sources.find("-")


@pytest.mark.parametrize("name", [*NOT_TEXT, "an entry", "words", "infinity"])
def test_measurements_that_are_none(name, tmp_path):
    damaged = {"an entry": {"random": 3}, "infinity": {"random": {"episode_return": math.inf, "episode_length": 1.0}}}
    damaged["words"] = {"random": {"episode_return": "a", "episode_length": 1.0}}
    write(tmp_path / "measured.json", damaged.get(name, NOT_TEXT.get(name)))
    config: Any = api.make_config("debug")[1]
    workshop = Workshop(config, tmp_path, 10, "npz", tmp_path / "measured.json")
    with pytest.raises(BadRequest, match=r"measured\.json"):
        workshop.measure(cast(Any, None), None, "random")


TAPE = {
    "obs": np.zeros((4, 2, 3), np.float32),
    "action": np.zeros((4, 2), np.int32),
    "reward": np.zeros((4, 2), np.float32),
    "terminated": np.zeros((4, 2), bool),
    "done": np.arange(8).reshape(4, 2) > 5,
    "final": np.zeros((2, 3), np.float32),
}


@pytest.mark.parametrize("name", TAPE)
def test_recordings_that_do_not_fit_together(name, tmp_path):
    np.savez(tmp_path / "1.npz", **TAPE)
    assert Tape.load(tmp_path / "1.npz").done.sum() == 2
    for change in (None, np.zeros(7, np.float32), np.zeros((4, 3, 3)), np.full((4, 2), "a"), np.float32(1)):
        arrays = {**TAPE, name: change}
        np.savez(tmp_path / "1.npz", **{key: array for key, array in arrays.items() if array is not None})
        with pytest.raises(BadRequest, match=r"1\.npz: "):
            Tape.load(tmp_path / "1.npz")


@pytest.mark.parametrize("leaf", [np.zeros(2), np.zeros(3, np.float32), np.zeros(2, "U1"), None])
def test_policies_that_are_none(leaf, tmp_path):
    policy = recording.Policy({"a": np.zeros(2, np.float32)}, [])
    recording.save_policy(policy, tmp_path / "1.npz")
    np.testing.assert_array_equal(recording.load_policy(tmp_path / "1.npz", policy).params["a"], [0, 0])
    np.savez(tmp_path / "1.npz", **({} if leaf is None else {"arr_0": leaf}))
    with pytest.raises(BadRequest, match="not a policy of this configuration"):
        recording.load_policy(tmp_path / "1.npz", policy)


def test_a_last_line_that_was_cut_is_left_out(tmp_path):
    write(tmp_path / "metrics.jsonl", ROW + ROW[:20])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_run_folder_without_a_configuration(tmp_path):
    with pytest.raises(BadRequest, match="is not a run folder"):
        read_config(tmp_path)
