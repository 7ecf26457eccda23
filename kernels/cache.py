"""The user's cache folder (`$XDG_CACHE_HOME/engram`, by default `~/.cache/engram`) of compiled programs and kernels.

It can be deleted at any time.
"""

import hashlib
import os
import platform
import stat
import sys
from pathlib import Path

LEAST_SECONDS = 0.1
"""Seconds of compilation from which on a program is kept: reading one back takes a few milliseconds."""


def user_folder() -> Path | None:
    """The folder, or None where it cannot be used or others could write to it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "engram"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):  # the latter where the user has no home
        return None
    usable = about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(folder, os.W_OK)
    return folder if usable else None


def is_own_file(path: Path) -> bool:
    """Whether `path` is a regular file of this user's which nobody else can write: what is loaded from it is run."""
    about = path.lstat()
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022


def program_folder() -> Path | None:
    """The folder of compiled programs for this kind of processor, or None where it cannot be used or others have
    written to it."""
    folder = user_folder()
    if folder is None:
        return None
    try:
        for part in ("programs", hashlib.sha256(processor().encode()).hexdigest()[:16]):
            folder /= part
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.lstat().st_uid != os.getuid():
                return None
            folder.chmod(0o700)
        with os.scandir(folder) as entries:
            own = all(entry.stat(follow_symlinks=False).st_uid == os.getuid() for entry in entries)
    except OSError:
        return None
    return folder if own else None


def keep_compiled_programs() -> None:
    """Keeps XLA's programs that took `LEAST_SECONDS` to compile in the folder, and loads them from it the next time.

    Machines with the same kind of processor share them, as a shared home may serve several. JAX's settings have
    precedence: `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` goes without.
    Programs that hold addresses, of JAX's own callbacks for instance, are never kept.
    """
    folder = program_folder()
    if folder is None:
        return
    wanted = {
        "jax_compilation_cache_dir": (None, str(folder)),
        "jax_persistent_cache_min_compile_time_secs": (1.0, LEAST_SECONDS),
    }
    for name, (default, value) in wanted.items():
        if "jax" not in sys.modules:  # which takes a second to import, and may never be needed
            os.environ.setdefault(name.upper(), str(value))
        else:
            import jax

            if jax.config.values[name] == default:
                jax.config.update(name, value)


def processor() -> str:
    """Kind and features of this machine's processor, on which compiled programs depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
