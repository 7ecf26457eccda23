"""Files and folders that are replaced as a whole: a kill or a full disk leaves what was there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; what was written there takes the place of `path` at the
    end. After an error `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        sync(partial)
        if path.is_dir():  # a rename does not replace a folder that holds something
            old = path.with_name(f".{path.name}.old")
            _remove(old)
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


def sync(path: Path) -> None:
    """Forces a file or a folder tree to disk, so that a rename after it never outlives what it names."""
    for file in [*path.rglob("*"), path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
