import math
import os
import subprocess
import sys

import pytest

from engram.kernels.cache import program_folder, user_folder

PROGRAM = """
import jax
import jax.numpy as jnp
from engram.kernels.cache import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(7)).sum())
"""


def kept(cache_home, **environment):
    """Files that lie in the cache after a program ran, the result of which is right."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**inherited, "XDG_CACHE_HOME": str(cache_home), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(done.stdout) == pytest.approx(7 * math.sin(1), abs=1e-5)  # sin of the identity, times it, summed
    return {path.relative_to(cache_home) for path in cache_home.rglob("jit_*-cache")}


@pytest.mark.slow
def test_compiled_programs_are_kept_and_found_again_and_half_written_ones_compiled_again(tmp_path):
    first = kept(tmp_path)
    assert first
    assert all(path.parts[:2] == ("engram", "programs") for path in first)
    written = {path: (tmp_path / path).stat().st_mtime_ns for path in first}
    assert kept(tmp_path) == first
    assert written == {path: (tmp_path / path).stat().st_mtime_ns for path in first}
    for path in first:
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(whole[: len(whole) // 2])
    assert kept(tmp_path)


@pytest.mark.parametrize(
    "setting", ["JAX_COMPILATION_CACHE_DIR", pytest.param("JAX_ENABLE_COMPILATION_CACHE", marks=pytest.mark.slow)]
)
def test_settings_of_jax_have_precedence(tmp_path, setting):
    own = tmp_path / "own"
    assert not kept(tmp_path / "home", **{setting: str(own) if "DIR" in setting else "false"})
    assert own.exists() == ("DIR" in setting)


def test_programs_that_others_have_written_are_not_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = program_folder()
    assert folder is not None
    folder.chmod(0o775)
    (folder / "jit_x-cache").write_bytes(b"")
    assert program_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    if os.getuid():
        pytest.skip("only root can give a file away")
    os.chown(folder / "jit_x-cache", 1234, 1234)
    assert program_folder() is None
    (folder / "jit_x-cache").unlink()
    os.chown(folder, 1234, 1234)
    assert program_folder() is None


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # nor an entry among the users
    assert user_folder() is None
    assert program_folder() is None
