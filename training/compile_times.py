"""Seconds that programs took to compile on this machine, which tell how long the next wait will be."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from engram.atomic_files import replacing
from engram.errors import BadRequest
from engram.kernels.cache import user_folder
from engram.regular_files import is_number, read_json

MOST = 500
"""Programs that are remembered, the latest ones."""


def key_of(*texts: str) -> str:
    """Name of the program whose parts are `texts`."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def recall(key: str) -> float | None:
    """Seconds that the program took the last time, or None."""
    seconds: Any = _read().get(key)
    return float(seconds) if is_number(seconds) else None


def remember(key: str, seconds: float) -> None:
    """Keeps `seconds` for the next time, where there is a place for that."""
    file = _file()
    if file is None:
        return
    times = _read()
    times.pop(key, None)
    times[key] = round(seconds, 1)
    with suppress(OSError), replacing(file) as partial:
        partial.write_text(json.dumps(dict(list(times.items())[-MOST:])))


def _file() -> Path | None:
    folder = user_folder()
    return None if folder is None else folder / "compile_times.json"


def _read() -> dict:
    file = _file()
    with suppress(OSError, BadRequest):
        if file is not None and isinstance(times := read_json(file), dict):
            return times
    return {}
