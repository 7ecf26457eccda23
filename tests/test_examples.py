"""The examples and the README's program do what they say, with few steps."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def in_the_examples_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)
    yield
    for path in (ROOT / "examples").glob("*.py"):
        sys.modules.pop(path.stem, None)


def run(name: str, capsys) -> str:
    importlib.import_module(name).main(total_steps=8192, out="runs/example")
    return capsys.readouterr().out


@pytest.mark.slow
def test_training_shows_returns_and_draws_curves(capsys):
    out = run("train_and_plot", capsys)
    assert out.count("'metric': 'eval/return'") == 2
    assert Path("runs/example/curves.png").exists()


@pytest.mark.slow
def test_a_policy_acts_in_gymnasium_and_its_memory_is_drawn(capsys):
    assert re.search(r"balanced for \d+ steps", run("policy_in_gymnasium", capsys))
    assert Path("runs/example/memory.png").exists()


@pytest.mark.slow
def test_a_memory_of_ones_own_is_proven_and_trained(capsys):
    out = run("own_memory", capsys)
    assert "acts as it trains" in out
    assert "final return: " in out


@pytest.mark.slow
def test_an_environment_of_ones_own_is_compared(capsys):
    assert "| own_environment:Recall |" in run("own_environment", capsys)


@pytest.mark.slow
def test_a_sweep_by_hand(capsys):
    assert run("sweep", capsys).count("learning rate") == 4


@pytest.mark.slow
def test_the_readmes_program(capsys):
    """As it stands there: a GRU balances a pole whose speeds it is not shown."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    steps = re.search(r"balanced gymnasium's pole for (\d+) steps", capsys.readouterr().out)
    assert steps is not None
    assert int(steps[1]) > 300
