"""Files from elsewhere: only regular ones are opened, none of more bytes than is asked for, and text is text.

A pipe or a device in place of a file would wait for ever, or never end.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from engram.errors import BadRequest

MOST = 64 * 2**20
"""Bytes of the largest text that is read, unless a reader says otherwise."""


def size_of(path: Path) -> int:
    """Bytes of the regular file `path`.

    Raises:
        BadRequest: it is a folder, a pipe, a socket or a device, or no name of a file.
        OSError: there is none, or it cannot be reached.
    """
    try:
        about = os.stat(path)
    except ValueError:  # a NUL in the name
        raise BadRequest(f"{str(path)!r} is no name of a file") from None
    if not stat.S_ISREG(about.st_mode):
        raise BadRequest(f"{path} is no regular file")
    return about.st_size


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The regular file `path`, to read bytes. Raises as `size_of`."""
    size_of(path)  # before it is opened, which some devices take for a command
    # Without waiting, should a pipe take its place in this moment.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadRequest(f"{path} is no regular file")
        yield file


def read_text(path: Path, most: int = MOST) -> str:
    """The text (UTF-8) of the regular file `path`.

    Raises:
        BadRequest: it is not regular, has more than `most` bytes, or holds something else.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size) if size <= most else b""  # for `read` asks for all the memory first
    if size > most:
        raise BadRequest(f"{path} is damaged: it has more than {most:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{path} is damaged: it is no text") from None


def read_json(path: Path, most: int = MOST) -> Any:
    """What the JSON in the regular file `path` says. Raises as `read_text`, and BadRequest where it is no JSON."""
    return parse_json(read_text(path, most), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text says. Raises BadRequest where it is no JSON, or nested beyond reason."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest(f"{where} is damaged: it is no JSON") from None


def is_number(value: Any) -> bool:
    """Whether what JSON says is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
