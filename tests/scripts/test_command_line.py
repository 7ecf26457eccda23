"""How scripts end: errors of ours are one line and an exit code, all others show their traceback."""

import errno
import os
import sys

import numpy as np
import pytest
import yaml

import engram
from engram import __main__
from engram.configs.presets import PRESETS
from engram.configs.store import describe
from engram.errors import BadRequest, Diverged, EngramError, Interrupted, InUse, MissingExtra, UnknownName
from engram.scripts import evaluate, train
from engram.scripts.command_line import run_script
from engram.training.folder import RunFolder
from tests.experiments.test_offline import write
from tests.scripts import kill_resume


def ending(main, *arguments: str) -> int:
    """The exit code of a script's `main` with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *arguments])
        with pytest.raises(SystemExit) as end:
            run_script(main)
    assert isinstance(end.value.code, int)
    return end.value.code


def raising(error: BaseException):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BadRequest("no"), 2, "error: no\n"),
        (UnknownName.among("word", "onw", ["one"]), 2, "error: unknown word 'onw': did you mean one?\n"),
        (
            MissingExtra.of("atari", "atari"),
            2,
            'error: atari needs an optional dependency: pip install "engram[atari]"',
        ),
        (Diverged("nan"), 3, "error: nan\n"),
        (InUse("busy"), 4, "error: busy\n"),
        (Interrupted("stopped"), 130, "stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "curves.png"),
            2,
            "error: cannot write curves.png: No space left on device; what was written before is intact\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "table.csv"), 2, "error: table.csv: Permission denied\n"),
    ],
)
def test_what_a_request_can_cause_is_one_line(error, code, line, capsys):
    assert ending(raising(error)) == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_every_error_of_ours_has_a_code_of_its_own_kind():
    kinds = {kind.__name__: kind.exit_code for kind in (EngramError, *EngramError.__subclasses__())}
    assert kinds == {"EngramError": 2, "BadRequest": 2, "InUse": 4, "Diverged": 3, "Interrupted": 130}


@pytest.mark.parametrize("error", [ValueError("shapes"), TypeError("x"), KeyError("x"), OSError("without a file")])
def test_any_other_error_shows_its_traceback(error):
    with pytest.raises(type(error)) as shown:
        run_script(raising(error))
    assert shown.value is error


def test_a_bad_request_of_a_real_script_ends_with_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ending(train.main, "debug", "--memory", "grru") == 2
    assert capsys.readouterr().err.startswith("error: unknown memory 'grru': did you mean gru or ")
    assert ending(evaluate.main, "nowhere") == 2
    assert "nowhere is not a run folder" in capsys.readouterr().err


def test_a_run_in_use_ends_with_4(tmp_path, capsys):
    config = PRESETS["lsd"]
    held = RunFolder(tmp_path / "run", describe("lsd", config), resume=False)
    assert ending(train.main, "lsd", "--out", str(held.path), "--resume") == 4
    assert capsys.readouterr().err == f"error: {held.path} is in use by another process ({os.getpid()})\n"


def test_engram_runs_the_script_that_is_named_first(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["engram", *arguments])
        try:
            code = __main__.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()  # type: ignore[return-value]

    assert run("--version") == (None, f"{engram.__version__}\n", "")
    assert run("evaluate", "nowhere")[0] == 2
    code, out, errors = run("evalute", "nowhere")
    assert (code, errors) == (2, "error: unknown script 'evalute': did you mean evaluate?\n")
    assert out.startswith("usage: engram {train,")
    assert run()[0] is None
    assert {path.stem for path in (kill_resume.ROOT / "scripts").glob("[a-z]*.py")} == {
        *__main__.SCRIPTS,
        "command_line",
    }


def broken(*_, **__):
    """A defect of ours: NumPy's own complaint, which is a ValueError."""
    return np.zeros(3) + np.zeros(4)


@pytest.mark.parametrize(
    ("preset", "place"),
    [
        ("debug", "engram.agents.ppo.build.ActorCritic"),
        ("debug", "engram.agents.common.environments.registry.make_vector"),
        ("conservative", "engram.agents.ppo.build.Conservative"),
        ("drama-catch", "engram.agents.drama.build.coders"),
        ("dm-pendulum", "engram.agents.offline.build.make_mixer"),
        ("offline-pendulum", "engram.agents.offline.build.data_view.refuse_mismatch"),
        ("lsd", "engram.agents.planners.build.registry.make"),
        ("stepmix", "engram.agents.planners.stepmix.StepMix.check"),
    ],
)
def test_a_defect_in_a_builder_shows_its_traceback(preset, place, tmp_path, monkeypatch):
    """Not one line that blames the user. Nothing is written either."""
    monkeypatch.chdir(tmp_path)
    write("recorded.npz")
    path = tmp_path / "own.yaml"
    values = describe(preset, PRESETS[preset])
    path.write_text(yaml.safe_dump(values | ({"dataset": "recorded.npz"} if "dataset" in values else {})))
    monkeypatch.setattr(place, broken)
    monkeypatch.setattr(sys, "argv", ["train.py", str(path)])
    with pytest.raises(ValueError, match="could not be broadcast") as shown:
        run_script(train.main)
    assert not isinstance(shown.value, EngramError)
    assert shown.traceback[-1].name == "broken"
    assert {p.name for p in tmp_path.iterdir()} == {"recorded.npz", "own.yaml"}
