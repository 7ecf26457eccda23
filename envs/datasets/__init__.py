"""Recorded experience for offline learning, and the files that hold it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engram.envs.datasets import d4rl, folder, minari, npz, table
from engram.envs.datasets.d4rl import episodes_of
from engram.envs.datasets.episodes import Episodes, Origin
from engram.envs.datasets.files import reading
from engram.errors import BadRequest
from engram.regular_files import size_of

__all__ = ["Episodes", "Origin", "episodes_of", "load", "save", "unpack"]

READERS = {".npz": npz.read, ".csv": table.read, ".hdf5": d4rl.read, ".h5": d4rl.read}
KINDS = "an .npz file, a D4RL file (.hdf5 or .h5), a table (.csv), a folder .engram or a Minari dataset folder"


def load(path: str | Path, max_episode_steps: int | None = None) -> Episodes:
    """The dataset in `path`: an .npz file, a D4RL file (.hdf5, .h5), a table (.csv), a folder .engram, whose arrays
    stay in their files, or a Minari dataset folder.

    No code is run, only regular files are read, and no more memory is taken than a file of that size can fill.

    Args:
        max_episode_steps: steps after which the environment cut episodes; see `episodes_of`.

    Raises:
        BadRequest: there is none, or it is damaged; one line that names `path` and what is wrong.
    """
    path = Path(path)
    if path.suffix in (".pkl", ".pickle", ".npy", ".pt"):
        raise BadRequest(f"{path}: {path.suffix} files may hold pickles, which can run code, and are not read")
    with reading(path):
        if path.is_dir():
            return folder.read(path) if path.suffix == folder.ENDING else minari.read(path)
        size_of(path)
        if path.suffix not in READERS:
            raise BadRequest(f"not a dataset, which is {KINDS}")
        return READERS[path.suffix](path, max_episode_steps)


def save(episodes: Episodes, path: str | Path) -> None:
    """Writes `episodes` in the format that the ending of `path` says (none: a Minari folder `<namespace>/<name>-v0`);
    `path` is replaced as a whole, or left as it was.

    Raises:
        BadRequest: another ending, or a folder of something else.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix == folder.ENDING:
        folder.write(episodes, path)
        return
    if path.suffix and path.is_dir():
        raise BadRequest(f"{path} is a folder: it is left as it is")
    if path.suffix == ".npz":
        npz.write(episodes, path)
    elif path.suffix in (".hdf5", ".h5"):
        d4rl.write(episodes, path)
    elif not path.suffix:
        minari.write(episodes, path)
    else:
        raise BadRequest(
            f"{path}: not the name of a dataset that is written: .npz, .hdf5, .h5, .engram, or a Minari folder"
        )


def unpack(source: str | Path, path: str | Path, max_episode_steps: int | None = None) -> Episodes:
    """Writes the dataset in `source` as a folder `path`, NAME.engram, part by part: of what a step has only a few bytes
    are held in memory. Observations of bytes stay bytes.

    Args:
        max_episode_steps: as for `load`.

    Raises:
        BadRequest: as `load` and `save`.
    """
    source, path = Path(source), Path(path)
    if source.is_dir() and source.suffix != folder.ENDING:
        opened = minari.opened_parts(source)
    elif source.suffix == ".npz":
        opened = npz.opened_parts(source, max_episode_steps)
    elif source.suffix in (".hdf5", ".h5"):
        opened = d4rl.opened_parts(source, max_episode_steps)
    else:
        episodes = load(source, max_episode_steps)
        folder.write(episodes, path)
        return folder.read(path)

    def named(parts: Iterator[Any]) -> Iterator[Any]:
        with reading(source):
            yield from parts

    unwritten = None
    with reading(source), opened as (parts, about):
        try:
            folder.write_parts(named(parts), about, path)
        except OSError as error:  # which is not the source's fault, as what opened it would say
            unwritten = error
    if unwritten is not None:
        raise unwritten
    return folder.read(path)
