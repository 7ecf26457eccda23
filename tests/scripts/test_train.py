"""Training from the command line: what is refused, how it is stopped, and that kills lose nothing."""

import fcntl
import runpy
import signal
import subprocess
import sys
import time

import pytest
import yaml

from engram.configs.presets import PRESETS
from engram.configs.store import describe
from engram.errors import BadRequest
from engram.scripts import train
from engram.training import checkpoint
from tests.scripts import kill_resume

TINY = ["debug", "--quiet", "--memory", "none", "--total-steps", "1024", "--log-points", "2", "--eval-points", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["popgim-fast"], "did you mean popgym"),
        (["debug", "--memory", "grru"], "did you mean gru"),
        (["debug", "--env", "popgym/RepeatPrevEasy"], "did you mean popgym/RepeatPreviousEasy"),
        (["debug", "--env", "attari/Pong"], "ids are|did you mean atari"),
        (["ppo-atari", "--env", "atari/Pnog"], "did you mean atari/Pong"),
        (["debug", "--eval-env", "gymnax/CartPole-v1"], "does not fit env .* observation space"),
        (["debug", "--eval-env", "?level=3"], "no option 'level': it takes none"),
        (["debug", "--env", "gymnax/CartPole-v1", "--eval-env", "envpool/CartPole-v1"], "does not fit|emulators"),
        (["stepmix", "--eval-env", "episodic/Random"], "not for stepmix"),
        (["debug", "--env", "envpool/CartPole-v1", "--observation.time-limit", "5"], "not for emulators"),
        (["debug", "--total-steps", "-5"], "at least 1"),
        (["debug", "--resume"], "needs --out"),
        (["debug", "--network.memory-options", "gru.size=3"], "no option 'size'"),
        (["debug", "--network.memory-options", "state=3"], "not of the form"),
        (["debug", "--observation.previous-reward", "--observation.no-previous-action"], "needs"),
        (["debug", "--out", "/proc/nowhere/run"], "cannot write"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["lsd", "--algorithm", "ucb"], "unknown algorithm 'ucb'"),
        (["lsd", "--env", "popgym/RepeatPreviousEasy"], "lsd does not plan popgym"),
        (["lsd", "--env", "envpool/Pong-v5"], "lsd does not plan envpool"),
        (["lsd", "--env", "lsd/Randon"], "did you mean lsd/Random"),
        (["lsd", "--env", "lsd/Random?arm=3"], "no option 'arm': did you mean arms"),
        (["lsd", "--env", "lsd/Random?arms=many"], "arms must be int .*, got 'many'"),
        (["lsd", "--env", "lsd/Random?arms=2.5"], "arms must be int .*, got 2.5"),
        (["lsd", "--env", "lsd/Random?arms=true"], "arms must be int .*, got True"),
        (["lsd", "--env", "lsd/Random?instance_seed=-1"], "instance_seed must lie in"),
        (["lsd", "--env", "lsd/DelayThree"], "needs payoffs that never fall"),
        (["lsd", "--total-steps", "3000000000"], "at most 16,777,216"),
        (["rbocpd-ucrl2", "--env", "switching/Random?concentration=Infinity"], "concentration must be float"),
        (["rbocpd-ucrl2", "--env", "switching/Random?changes=3000000000"], "below 2\\^31"),
        (["rbocpd-ucrl2", "--env", "switching/Random?changes=[1.5,3]"], "changes must be whole"),
        (["neucb", "--env", "classification/wine?name=iris"], "no option 'name'"),
        (["stepmix", "--seeds", "2", "--stepmix.gamma", "3"], "needs a safe baseline"),
        (["conservative", "--env", "gymnax/Acrobot-v1"], "is a policy for gymnax/CartPole-v1"),
        (["conservative", "--observation.noise", "0.1"], "observation.noise"),
        (["conservative", "--conservative.horizon", "100", "--conservative.baseline-value", "50"], "last 200 steps"),
        (["popgym-fast", "--env", "lsd/Random"], "never ends"),
    ],
)
def test_bad_requests_say_so_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message) as error:
        train.main([*arguments, "--quiet"])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.mark.parametrize(
    "arguments",
    [
        ["debug", "--ppo.minibatches", "3"],
        ["debug", "--sed", "1"],
        ["debug", "--seeds", "many"],
        ["rbocpd-ucrl2", "--ucrl.cap", "1"],
        ["lsd", "--lsd.explore", "inf"],
        ["stepmix", "--stepmix.eta", "1e39"],
        ["conservative", "--conservative.deviations", "nan"],
    ],
)
def test_impossible_values_exit_with_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, BadRequest)) as error:
        train.main(arguments)
    assert getattr(error.value, "code", 2) == 2
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_run_wrote_is_a_preset(tmp_path, monkeypatch):
    """Its options can be changed as those of a preset, and the name of the preset that it began from is kept."""
    trained = []
    monkeypatch.setattr("engram.experiments.train.train", lambda *arguments: trained.append(arguments))
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(describe("lsd", PRESETS["lsd"])))
    assert train.main([str(path), "--seeds", "7", "--quiet"]) == 0
    ((config, preset, output),) = trained
    assert (preset, config.agent, config.seeds, output.quiet) == ("lsd", "lsd", 7, True)
    assert config.lsd == PRESETS["lsd"].lsd  # type: ignore[attr-defined]


LONG = ["--total-steps", "20480000", "--log-points", "40000", "--checkpoint-seconds", "1000"]
"""Far from its end, though chunks are short."""


def test_ctrl_c_checkpoints_and_exits_130(tmp_path):
    folder = tmp_path / "run"
    command = [*kill_resume.TRAIN, *TINY, *LONG, "--out", str(folder)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    kill_resume.first_chunk(folder, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "continue with --resume" in errors
    assert checkpoint.checkpoints(folder / "checkpoints")


@pytest.mark.slow
def test_a_closed_terminal_stops_a_run_and_the_lost_reader_of_its_lines_does_not(tmp_path):
    """It trains on without a reader, and what was trained is kept when the terminal hangs up."""
    folder = tmp_path / "run"
    command = [*kill_resume.TRAIN, *(word for word in TINY if word != "--quiet"), *LONG, "--out", str(folder)]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which is inherited
    try:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        assert process.stderr is not None
        assert "compiling" in process.stderr.readline()
        process.stderr.close()
        for _ in range(3):
            kill_resume.first_chunk(folder, process)
        assert process.poll() is None
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
    (chunk,) = checkpoint.checkpoints(folder / "checkpoints")
    assert chunk == len((folder / "metrics.jsonl").read_text().splitlines()) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [True, False])
def test_a_run_whose_comparison_was_killed_checkpoints_and_frees_its_folder(tmp_path, quiet):
    """Nobody waits for it any more: it would hold its folder against the one that goes on with the comparison."""
    out = tmp_path / "comparison"
    script = str(kill_resume.ROOT / "scripts" / "compare.py")
    options = [word for word in TINY if word not in ("--memory", "none", "--quiet")] + ["--quiet"] * quiet
    command = [sys.executable, script, *options, *LONG, "--memories", "none", "--out", str(out)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    while process.poll() is None and not list(out.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    (folder,) = (path.parent for path in out.glob("*/metrics.jsonl"))
    kill_resume.first_chunk(folder, process)
    process.kill()
    process.communicate()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for the end of the run
    assert checkpoint.checkpoints(folder / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("env", ["popgym/RepeatPreviousEasy", "envpool/CartPole-v1"])
def test_killed_runs_end_bit_for_bit_where_unbroken_ones_end(env, tmp_path):
    kill_resume.compare(tmp_path, kills=3, seed=int(time.time()), env=env)


@pytest.mark.slow
def test_killed_runs_of_a_world_model_on_ale_frames_end_bit_for_bit_where_unbroken_ones_end(tmp_path):
    sizes = ("--total-steps", "640", "--log-points", "20", "--drama.replay", "640", "--checkpoint-seconds", "0")
    evaluation = ("--drama.eval-envs", "1", "--drama.eval-episodes", "1", "--eval-env", "?max_episode_steps=20")
    env = "atari/Breakout?episodic_life=true&max_episode_steps=60"  # many openings, of games and within them
    kill_resume.compare(tmp_path, 2, int(time.time()), env, ("atari100k+debug", *sizes, *evaluation, "--quiet"))


def test_scripts_run_as_a_user_starts_them(tmp_path, monkeypatch, capsys):
    """From another folder, with --help: the first in a process of its own, whose output nobody reads to its end, the
    others in this one, which has imported what all of them take seconds to import."""
    monkeypatch.chdir(tmp_path)
    folder = kill_resume.ROOT / "scripts"
    command = f"set -o pipefail; {' '.join(kill_resume.TRAIN)} --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert not done.stderr
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path[1:]])
    for script in sorted(path.stem for path in folder.glob("[a-z]*.py")):
        if script in ("train", "command_line"):
            continue
        monkeypatch.setattr(sys, "argv", [str(folder / f"{script}.py"), "--help"])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert not ending.value.code
        assert "usage:" in capsys.readouterr().out
