"""Files and folders that are replaced as a whole: a kill or a full disk leaves what was there."""

import itertools
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

UNFINISHED = ".partial"
"""End of the names of files that are being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; what was written there takes the place of `path` at the
    end. After an error `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: others, on other machines too, may replace the same file at the same time.
    mark = f"{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{mark}{UNFINISHED}")
    try:
        yield partial
        sync(partial)
        if path.is_dir():  # a rename does not replace a folder that holds something
            old = path.with_name(f".{path.name}.{mark}.old{UNFINISHED}")
            path.rename(old)
            try:
                partial.rename(path)
            except BaseException:
                old.rename(path)
                raise
            _remove(old)
        else:
            partial.rename(path)
    except BaseException:
        _remove(partial)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left in `folder` of files that they replaced; a day old, as it may still be
    written."""
    for left in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 86_400:
                _remove(left)


def sync(path: Path) -> None:
    """Forces a file or a folder tree to disk, so that a rename after it never outlives what it names."""
    for file in [*path.rglob("*"), path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_at(file: IO, path: Path) -> bool:
    """Whether the open `file` is still the one at `path`: it may have been moved, removed or replaced."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder to `<name>.damaged`, or `<name>.damaged.2` and so on; returns the new path."""
    for number in itertools.count(1):
        other = path.with_name(f"{path.name}.damaged{'' if number == 1 else f'.{number}'}")
        if not os.path.lexists(other):
            path.rename(other)
            return other
    raise AssertionError


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
