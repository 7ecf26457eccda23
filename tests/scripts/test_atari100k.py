"""The benchmark from end to end: what it leaves behind, that it resumes; its arithmetic against published numbers."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from engram.errors import BadRequest, Interrupted
from engram.scripts import atari100k, train
from engram.training import checkpoint
from tests.scripts import kill_resume

TINY = [
    *("--episodes", "2", "--eval-env", "?max_episode_steps=100", "--memory", "none", "--network.width", "16"),
    *("--ppo.num-envs", "2", "--ppo.num-steps", "16", "--ppo.epochs", "1", "--ppo.minibatches", "1", "--quiet"),
    *("--total-steps", "320", "--log-points", "10", "--checkpoint-seconds", "1000"),
]
AGGREGATES = {
    "random": (0.000, 0.000, 0.000),
    "human": (1.000, 1.000, 1.000),
    "Drama": (1.049, 0.270, 0.416),
    "STORM": (1.222, 0.425, 0.606),
    "DreamerV3": (1.247, 0.494, 0.543),
    "IRIS": (1.046, 0.289, 0.543),
    "TWM": (0.956, 0.505, 0.530),
    "REM": (1.222, 0.280, 0.725),
    "DIAMOND": (1.459, 0.373, 0.757),
    "TWISTER": (1.621, 0.773, 0.746),
    "Simulus": (1.645, 0.982, 1.091),
    "EfficientZero": (1.943, 1.090, 1.047),
    "BBF": (2.247, 0.917, 1.139),
}
"""Mean, median and interquartile mean over games, from unrounded scores; mean and median as their authors print."""


def table(out: Path) -> dict[str, list[str]]:
    """Rows of `table.md` by their first cell, the first of a name."""
    rows: dict[str, list[str]] = {}
    for line in (out / "table.md").read_text().splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
            rows.setdefault(name, cells)
    return rows


def everything(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in out.glob("*/seed*/**/*")}


# ---------------------------------------------------------------------------------------------------- published scores


def test_aggregates_of_the_table_are_the_published_ones():
    scores = atari100k.published()
    assert set(scores) == set(AGGREGATES)
    for name, expected in AGGREGATES.items():
        assert list(scores[name]) == list(atari100k.ATARI_100K)
        games = list(atari100k.normalise(scores[name], scores).values())
        found = [atari100k.AGGREGATES[kind](games) for kind in ("mean", "median", "IQM of game means")]
        np.testing.assert_allclose(found, expected, atol=0.002, err_msg=name)


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
        patch.setattr(train, "run_apart", lambda arguments, seconds=None: train.main(arguments) or None)
        assert atari100k.main(arguments) == 0
    assert f"resuming after {done[-1]} of 10 chunks" in said.getvalue()
    return out, arguments


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


def test_repeated_command_trains_nothing(finished, capsys):
    out, arguments = finished
    before, scores = everything(out), (out / "scores.json").read_text()
    assert len(before) > 10
    assert atari100k.main(arguments) == 0
    assert before == everything(out)
    assert scores == (out / "scores.json").read_text()
    assert "| Alien |" in capsys.readouterr().out


def test_other_options_are_refused_in_the_same_folder(finished):
    out, arguments = finished
    before = everything(out)
    with pytest.raises(BadRequest, match="Alien/seed0 was trained with other options"):
        atari100k.main([*arguments, "--ppo.discount", "0.9"])
    assert before == everything(out)


# ------------------------------------------------------------------------------------------------- games x seeds, faked

SCORES = {("Boxing", 3): 12.1, ("Boxing", 4): 24.1, ("Pong", 3): -20.7, ("Pong", 4): 14.6}
"""Human-normalised 1, 2, 0, 1."""


def play(arguments, seconds=None):
    """Stands in for a training process: the summary of one which earns `SCORES`, or a failure."""
    options = train.options_for(arguments[0], arguments[1:], "", "")
    config, folder = options.experiment, options.out
    assert folder is not None
    game = config.env.removeprefix("atari/").partition("?")[0]
    if (game, config.seed) not in SCORES:
        return "exit code 3: training diverged"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(atari100k.describe(arguments[0], config)))
    (folder / "metrics.jsonl").write_text('{"env_steps": 99000}\n{"env_steps": 100000, "eval/finished": [1.0]}\n')
    result = {"per_seed": [SCORES[game, config.seed]]}
    numbers = {"env_steps": 100_000, "compile_s": 60.0, "wall_s": 540.0, "steps_per_s": 185.2}
    (folder / "summary.json").write_text(json.dumps({**numbers, "eval_return": result}))
    return None


def test_table_of_games_and_seeds(tmp_path, monkeypatch):
    """Numbers by hand; published ones are taken over the same two games."""
    monkeypatch.setattr(train, "run_apart", play)
    arguments = ["--games", "Pong", "Boxing", "--seeds", "2", "--seed", "3", "--out", str(tmp_path)]
    assert atari100k.main(arguments) == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == {"Boxing": [12.1, 24.1], "Pong": [-20.7, 14.6]}
    rows = table(tmp_path)
    drama = rows["game"].index("Drama")
    assert rows["Boxing"][2:4] == ["18.1** (12.1, 24.1)", "1.500"]
    assert rows["Pong"][2:4] == ["-3** (-20.7, 14.6)", "0.500"]
    assert rows["HNS mean"][2] == "1.000** [0.500, 1.500]"
    assert rows["HNS IQM of runs"][2].startswith("1.000**")
    assert rows["HNS mean"][drama] == f"{(77.9 / 12 + 35.7 / 35.3) / 2:.3f}"
    text = (tmp_path / "table.md").read_text()
    assert "Episodes of an evaluation: 100." in text
    assert "| Pong | 2 | 10.0 | 185.2 |" in text
    assert "not comparable" not in text


def test_failed_runs_are_named_and_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "run_apart", play)
    arguments = ["--games", "Boxing", "Krull", "Pong", "--seeds", "1", "--seed", "4", "--out", str(tmp_path)]
    assert atari100k.main(arguments) == 1
    assert "- **failed**: Krull, seed 4: exit code 3: training diverged" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "scores.json").read_text())) == {"Boxing", "Pong"}
    assert table(tmp_path)["HNS mean"][2] == "1.500", "one run a game has no interval"


def test_no_run_begins_when_time_is_up(tmp_path):
    with pytest.raises(Interrupted, match="repeat the command"):
        atari100k.main(["--games", "Pong", "--hours", "0", "--out", str(tmp_path)])
    assert not list(tmp_path.glob("Pong/*"))


def test_time_stops_a_running_run(tmp_path):
    """Even one that does not listen for signals yet; it would train for days."""
    with pytest.raises(Interrupted):
        train.run_apart(["ppo-atari", "--total-steps", "100000000", "--out", str(tmp_path / "run")], seconds=0.2)


# -------------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--games", "Pnog"], "no game 'Pnog'; did you mean Pong"),
        (["--games", "pong"], "did you mean Pong"),
        (["--games", "Boxing", "Zzz"], "no game 'Zzz'; it has Alien, Amidar"),
        (["popgym"], "not for Atari; take ppo-atari, atari100k"),
        (["atari100q"], "did you mean atari100k"),
        (["--env", "atari/Pong"], "use --games"),
        (["--eval-env", "atari/Pong"], "options alone"),
        (["--memory", "mamba3"], "did you mean mamba"),
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
