"""The user's cache folder (`$XDG_CACHE_HOME/engram`, by default `~/.cache/engram`) of compiled programs and kernels.

It can be deleted at any time.
"""

import os
import platform
import sys
from pathlib import Path


def user_folder() -> Path | None:
    """The folder, or None where it cannot be used or others could write to it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "engram"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return None
    usable = about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(folder, os.W_OK)
    return folder if usable else None


def keep_compiled_programs() -> None:
    """Keeps XLA's programs that took over a second to compile in the folder, and loads them from it the next time.

    Each machine has its own, as a shared home may serve different processors. JAX's settings have precedence:
    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` goes without. Programs that
    call Python (emulators) are never kept.
    """
    folder = user_folder()
    if folder is None:
        return
    programs = str(folder / "programs" / platform.node())
    if "jax" not in sys.modules:  # which takes a second to import, and may never be needed
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
        return
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", programs)
