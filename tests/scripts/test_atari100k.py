"""The benchmark Atari 100k from the command line: killed and repeated, on real games; what is refused."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engram.errors import BadRequest, Interrupted
from engram.experiments import cells
from engram.scripts import atari100k
from engram.training import checkpoint
from tests.experiments.runs import train_here
from tests.experiments.test_atari100k import table
from tests.scripts import kill_resume

TINY = [
    *("--episodes", "2", "--eval-env", "?max_episode_steps=100", "--memory", "none", "--network.width", "16"),
    *("--ppo.num-envs", "2", "--ppo.num-steps", "16", "--ppo.epochs", "1", "--ppo.minibatches", "1", "--quiet"),
    *("--total-steps", "320", "--log-points", "10", "--checkpoint-seconds", "1000"),
]


def everything(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in out.glob("*/seed*/**/*")}


# ----------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two games, politely killed in the first one's training, and the same command again, in this process."""
    out = tmp_path_factory.mktemp("runs") / "benchmark"
    arguments = ["ppo-atari", "--games", "Alien", "MsPacman", "--seeds", "1", "--out", str(out), *TINY]
    command = [sys.executable, str(kill_resume.ROOT / "scripts" / "atari100k.py"), *arguments]
    process = subprocess.Popen(command, cwd=out.parent, stderr=subprocess.PIPE, text=True)
    kill_resume.first_chunk(out / "Alien" / "seed0", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == Interrupted.exit_code, errors
    assert "repeat the command" in errors
    done = checkpoint.checkpoints(out / "Alien" / "seed0" / "checkpoints")
    assert done, errors
    assert done[-1] < 10, "it was to be stopped before its end"
    assert not (out / "Alien" / "seed0" / "summary.json").exists()
    assert json.loads((out / "scores.json").read_text()) == {}
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "train_apart", train_here)
        assert atari100k.main(arguments) == 0
    assert f"resuming after {done[-1]} of 10 chunks" in said.getvalue()
    return out, arguments


@pytest.mark.slow
def test_scores_are_the_last_evaluations(finished):
    out, _ = finished
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores) == ["Alien", "MsPacman"]
    for game, (score,) in scores.items():
        folder = out / game / "seed0"
        assert score == json.loads((folder / "summary.json").read_text())["eval_return"]["mean"]
        assert score > 0, "even random play eats something in 100 steps"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["env_steps"] for line in lines] == [32 * (i + 1) for i in range(10)]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["env"] == f"atari/{game}?episodic_life=true&reward_clip=true", "the preset's options are kept"
        assert (config["seeds"], config["seed"], config["ppo"]["eval_envs"]) == (1, 0, 2)
    rows = table(out)
    hns = (scores["Alien"][0] - 227.8) / (7127.7 - 227.8)
    assert rows["Alien"][3] == f"{hns:.3f}"
    assert rows["Alien"][:2] == ["227.8", "7,128"]
    text = (out / "table.md").read_text()
    assert "Episodes of an evaluation: 2." in text
    assert "Environment steps per run: 320." in text
    assert "not comparable" in text
    assert (out / "scores.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_repeated_command_trains_nothing(finished, capsys):
    out, arguments = finished
    before, scores = everything(out), (out / "scores.json").read_text()
    assert len(before) > 10
    assert atari100k.main(arguments) == 0
    assert before == everything(out)
    assert scores == (out / "scores.json").read_text()
    assert "| Alien |" in capsys.readouterr().out


@pytest.mark.slow
def test_other_options_are_refused_in_the_same_folder(finished):
    out, arguments = finished
    before = everything(out)
    with pytest.raises(BadRequest, match="Alien/seed0 was trained with other options"):
        atari100k.main([*arguments, "--ppo.discount", "0.9"])
    assert before == everything(out)


# -------------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--games", "Pnog"], "unknown game .* 'Pnog': did you mean Pong"),
        (["--games", "pong"], "did you mean Pong"),
        (["--games", "Boxing", "Zzz"], "'Zzz': choose from Alien, Amidar"),
        (["popgym"], "not a game of Atari"),
        (["atari100q"], "did you mean atari100k"),
        (["--env", "atari/Pong"], "use --games"),
        (["--eval-env", "atari/Pong"], "options alone"),
        (["--memory", "mamba4"], "did you mean mamba"),
        (["--seeds", "0"], "at least 1"),
        (["--episodes", "0"], "at least 1"),
    ],
)
def test_bad_requests_write_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message) as error:
        atari100k.main(arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
