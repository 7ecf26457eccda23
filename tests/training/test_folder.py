"""Run folders: who may open them, what they record of where they were made, and whose fault an error is."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from engram.errors import BadRequest, InUse
from engram.training.folder import RunFolder, git_commit, is_disk_trouble, versions

CONFIG = {"preset": "debug", "seeds": 2}


def test_a_folder_in_use_is_refused_with_an_exit_code_of_its_own(tmp_path):
    """The lock is the process's: it is free as soon as the process is gone, however it ended."""
    program = (
        "import sys; from pathlib import Path; from engram.training.folder import RunFolder\n"
        f"folder = RunFolder(Path(sys.argv[1]), {CONFIG!r}, False); print('open', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(InUse, match="in use by another process") as error:
            RunFolder(tmp_path / "run", CONFIG, resume=True)
        assert error.value.exit_code == 4
        assert not isinstance(error.value, BadRequest)
    finally:
        holder.kill()
        holder.communicate()
    RunFolder(tmp_path / "run", CONFIG, resume=True)


def test_another_configuration_is_refused_by_the_names_of_what_differs(tmp_path):
    RunFolder(tmp_path, CONFIG | {"ppo": {"clip": 0.2, "epochs": 4}}, resume=False)
    with pytest.raises(BadRequest, match=r"differ: ppo\.clip, seeds$"):
        RunFolder(tmp_path, {"preset": "debug", "seeds": 3, "ppo": {"clip": 0.1, "epochs": 4}}, resume=True)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_package_s_own_checkout(tmp_path, monkeypatch):
    """Not that of a repository in which an installed package happens to lie, and not that of a running git hook."""
    installed = tmp_path / "project" / "site-packages" / "engram"
    installed.mkdir(parents=True)
    assert git_commit(installed) is None
    git(tmp_path / "project", "init", "-q")
    assert git_commit(tmp_path / "project") is None  # nothing was committed yet
    git(tmp_path / "project", "commit", "-q", "--allow-empty", "-m", "first")
    commit = git(tmp_path / "project", "rev-parse", "HEAD")
    assert git_commit(tmp_path / "project") == commit
    assert git_commit(installed) is None
    (tmp_path / "link").symlink_to(tmp_path / "project")
    assert git_commit(tmp_path / "link") == commit
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "project" / ".git"))
    assert git_commit(installed) is None


def test_versions_need_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = versions()
    assert found["git_commit"] is None
    assert found["packages"]["jax"]
    assert found["packages"]["engram"]


def test_versions_name_what_random_numbers_and_pictures_depend_on():
    with jax.default_prng_impl("rbg"):
        found = versions()
    assert found["random_generator"] == "rbg"
    assert {"ale-py", "opencv-python", "opencv-python-headless"} <= found["packages"].keys()
    assert versions()["random_generator"] == "threefry2x32"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EFBIG, "File too large", "/elsewhere"), True),
        (PermissionError(errno.EACCES, "Permission denied", "run/metrics.jsonl"), True),
        (FileNotFoundError(errno.ENOENT, "No such file", Path("run/checkpoints/1.partial").absolute()), True),
        (FileNotFoundError(errno.ENOENT, "No such file", "fonts/missing.ttf"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), False),
        (OSError("something of a library"), False),
    ],
)
def test_trouble_with_the_disk_is_told_from_other_errors(error, expected):
    assert is_disk_trouble(error, Path("run")) is expected


REPLACER = """
import sys
from pathlib import Path
from engram.training.folder import write_atomically
sys.stdin.readline()
for number in range(300):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 1000)
    assert set(Path(sys.argv[1]).read_text()) in ({"a"}, {"b"}, {"c"})
"""


def test_processes_may_replace_the_same_file_at_the_same_time(tmp_path):
    """No error, and whoever reads it finds a whole file; nothing is left beside it."""
    path, pipes = tmp_path / "table.md", {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-c", REPLACER, str(path), letter] for letter in "abc"]
    processes: list[Any] = [subprocess.Popen(command, **pipes) for command in commands]
    for process in processes:  # together, as far as that goes
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len(path.read_text()) == 1000
    assert [*tmp_path.iterdir()] == [path]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    old, new = (tmp_path / f".table.md.host.{pid}.0a.partial" for pid in (1, 2))
    for path, age in ((old, 90_000), (new, 60)):
        path.write_text("half")
        then = time.time() - age
        os.utime(path, (then, then))
    RunFolder(tmp_path, CONFIG, resume=True).close()
    assert not old.exists()
    assert new.exists()
