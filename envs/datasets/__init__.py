"""Recorded experience for offline learning, and the files that hold it."""

from pathlib import Path

from engram.envs.datasets import d4rl, minari, npz
from engram.envs.datasets.episodes import Episodes, Origin
from engram.errors import BadRequest

__all__ = ["Episodes", "Origin", "load", "save"]

HDF5 = (".hdf5", ".h5")
KINDS = "an .npz file, a D4RL file (.hdf5 or .h5) or a Minari dataset folder"


def load(path: str | Path, max_episode_steps: int | None = None) -> Episodes:
    """The dataset in `path`: an .npz file, a D4RL file (.hdf5, .h5) or a Minari dataset folder. No code is run.

    Args:
        max_episode_steps: see `engram.envs.datasets.d4rl.read`.

    Raises:
        BadRequest: there is none, or it is damaged; one line that names `path` and what is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise BadRequest(f"{path}: no such file")
    if path.is_dir():
        return minari.read(path)
    if path.suffix == ".npz":
        return npz.read(path)
    if path.suffix in HDF5:
        return d4rl.read(path, max_episode_steps)
    if path.suffix in (".pkl", ".pickle", ".npy", ".pt"):
        raise BadRequest(f"{path}: {path.suffix} files may hold pickles, which can run code, and are not read")
    raise BadRequest(f"{path}: not a dataset, which is {KINDS}")


def save(episodes: Episodes, path: str | Path) -> None:
    """Writes `episodes` in the format that the ending of `path` says (none: a Minari folder `<namespace>/<name>-v0`);
    `path` is replaced as a whole, or left as it was.

    Raises:
        BadRequest: another ending, or a folder of something else.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix and path.is_dir():
        raise BadRequest(f"{path} is a folder: it is left as it is")
    if path.suffix == ".npz":
        npz.write(episodes, path)
    elif path.suffix in HDF5:
        d4rl.write(episodes, path)
    elif not path.suffix:
        minari.write(episodes, path)
    else:
        raise BadRequest(f"{path}: not the name of a dataset, which is {KINDS}")
