"""Configurations as text: YAML that stays small, and says nothing but mappings, lists and plain values."""

from pathlib import Path
from typing import Any

import yaml

from engram.errors import BadRequest
from engram.regular_files import read_text

MOST_YAML = 2**18
"""Bytes of the largest YAML text, which takes seconds to read."""
MOST_ENTRIES = 2**16
"""Entries of the largest YAML text, each as often as it is referred to: a few lines can describe millions."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises OSError where it cannot be read, else as `parse_yaml`."""
    return parse_yaml(read_text(path, MOST_YAML), str(path))


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
                    raise BadRequest(f"{where} has the key {shown(key)}, which names no field")
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
