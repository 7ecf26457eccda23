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

import yaml

from engram.errors import BadRequest

MOST_YAML = 2**18
"""Bytes of the largest YAML text, which takes seconds to read."""
MOST_ENTRIES = 2**16
"""Entries of the largest YAML text, each as often as it is referred to: a few lines can describe millions."""
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


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML text holds, down to lists, mappings by text, and plain values.

    Raises:
        BadRequest: it holds something else, is too large, refers to itself, or has a number that is no field's.
    """
    if len(text) > MOST_YAML:
        raise BadRequest(f"{where} is too large: it has more than {MOST_YAML:,} letters")
    try:
        values = yaml.safe_load(text)
    # Besides its own error, PyYAML raises whatever making a date, a number or a flag from the wrong text does.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise BadRequest(f"{where} is not YAML") from None
    if not isinstance(values, dict):
        raise BadRequest(f"{where} holds no mapping of fields to values")
    left: list[Any] = [values]
    seen = 0
    while left:
        entry, seen = left.pop(), seen + 1
        if seen > MOST_ENTRIES:
            raise BadRequest(f"{where} is too large, or refers to itself")
        if isinstance(entry, dict):
            for key in entry:
                if not isinstance(key, str) or not key.isprintable() or len(key) > 100:
                    raise BadRequest(f"{where} has a key of {shown(key)}, which names no field")
            left += entry.values()
        elif isinstance(entry, list):
            left += entry
        elif isinstance(entry, int) and abs(entry) >= 2**64:
            raise BadRequest(f"{where} has a number beyond 2^64")
        elif isinstance(entry, str) and "\0" in entry:
            raise BadRequest(f"{where} has a text with a NUL in it")
    return values


def shown(value: Any) -> str:
    """`value` as a message shows it, in one line that ends."""
    try:
        text = repr(value)
    except ValueError:  # a number of too many digits
        return "a number of very many digits"
    return text if len(text) <= 80 else text[:80] + " ..."


def is_number(value: Any) -> bool:
    """Whether what JSON says is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
