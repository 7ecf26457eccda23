"""The run folder: who may write it, what it holds, and files that are either whole or absent."""

import errno
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from engram import __version__
from engram.atomic_files import is_at, remove_leftovers, replacing
from engram.errors import BadRequest, EngramError
from engram.regular_files import read_json
from engram.training.claim import KERNEL, Claim
from engram.training.mirror import Mirror
from engram.training.yaml_files import read_yaml

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the operating system that only writing to a disk causes."""
FILE_TROUBLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Errors of the operating system about the file that the error names."""
RECORDED = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("gymnax", "gymnasium", "brax", "envpool", "ale-py", "opencv-python", "opencv-python-headless"),
)
"""Packages whose versions a run records."""


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one rename; a kill or a full disk leaves the old content."""
    with replacing(path) as partial:
        partial.write_text(text)


def versions() -> dict[str, Any]:
    """Versions of Engram, its packages (None: not installed) and Python, JAX's random generator, device, platform and
    git commit, for `versions.json`."""
    packages: dict[str, str | None] = {"engram": __version__}
    for name in RECORDED:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    import jax  # here, as scripts show help without it

    return {
        "python": platform.python_version(),
        "packages": packages,
        "random_generator": jax.config.values["jax_default_prng_impl"],
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": git_commit(Path(__file__).resolve().parents[1]),
    }


def git_commit(root: Path) -> str | None:
    """The commit that is checked out at `root`, or None: an installed package lies in no checkout of its own."""
    # Without git's own variables, which name another repository where a hook started this process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError:  # there is no git
        return None
    top, _, commit = git.stdout.strip().partition("\n")
    return commit if git.returncode == 0 and Path(top).resolve() == root.resolve() else None


def is_disk_trouble(error: OSError, folder: Path) -> bool:
    """Whether a disk takes no more, or a file in `folder` cannot be reached. Other errors of the operating system,
    such as a lost connection, are not the disk's."""
    if error.errno in DISK_FULL:
        return True
    named = isinstance(error.filename, str | os.PathLike)
    return error.errno in FILE_TROUBLE and named and Path(error.filename).absolute().is_relative_to(folder.absolute())


class RunFolder:
    """An open run folder, which nobody else can open until it is closed or this process ends."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        resume: bool,
        upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda stored: stored,
        devices: int = 1,
        mirror: Mirror | None = None,
    ):
        """Opens or creates `path`.

        Args:
            upgrade: brings a stored configuration of an earlier version to the form of this one.
            devices: over which the run is spread.
            mirror: its copy elsewhere, which is fetched if the folder is empty.

        Raises:
            InUse: another process has it open.
            BadRequest: it cannot be written, holds a run and `resume` is off, or holds a run of another configuration,
                as may the mirror.
        """
        self.path, self.mirror = path, mirror
        if path.exists() and not resume and (not path.is_dir() or any(path.iterdir())):
            raise BadRequest(f"{path} already exists: choose another --out, or continue it with --resume")
        if mirror is not None and not (path / "config.yaml").exists():
            copied = mirror.config()
            if copied is not None and not resume:
                raise BadRequest(
                    f"{mirror.url} already holds a run: choose another --mirror, or continue it with --resume"
                )
            _refuse_other(copied, config, upgrade, mirror.url)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadRequest(f"cannot write to {path}: {error.strerror}") from None
        self._claim = Claim(path)
        try:
            remove_leftovers(path)
            if mirror is not None:
                mirror.fetch()
            self._begin(config, upgrade, devices)
        except BaseException:
            self.close()
            raise

    def _begin(self, config: dict[str, Any], upgrade: Callable[[dict[str, Any]], dict[str, Any]], devices: int) -> None:
        """Writes what describes the run, or checks what stands there."""
        stored = self.config()
        _refuse_other(stored, config, upgrade, self.path)
        try:
            if stored is None:
                write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
                described = json.dumps({**versions(), "devices": devices}, indent=2)
                write_atomically(self.path / "versions.json", described + "\n")
        except OSError as error:
            raise BadRequest(f"cannot write to {self.path}: {error.strerror}") from None

    def check_place(self) -> None:
        """To be called before anything is written.

        Raises:
            BadRequest: the folder was moved or removed since it was opened: another one of its name, with half of a
                run, must not take its place.
            InUse: another process has taken it over.
        """
        if not is_at(self._claim.file, self.path / KERNEL):
            raise BadRequest(
                f"{self.path} was moved or removed in the middle of its training: where it is now, it can be resumed"
            )
        self._claim.check()

    def close(self) -> None:
        """Lets other processes, and this one, open the folder again."""
        self._claim.close()

    def config(self) -> dict[str, Any] | None:
        """The stored configuration, or None before it was written."""
        return read_config(self.path) if is_there(self.path / "config.yaml") else None

    @property
    def devices(self) -> int | None:
        """Over how many devices the run was spread when it began; None where it does not say."""
        try:
            return int(read_json(self.path / "versions.json").get("devices", 1))
        except (OSError, EngramError, AttributeError, TypeError, ValueError):
            return None

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints."""
        return self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end."""
        return is_there(self.path / "summary.json")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes `summary.json`, which ends the run."""
        self.check_place()
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def is_there(path: Path) -> bool:
    """Whether there is something of this name. Raises BadRequest where that cannot be told: nothing is known then."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}; nothing was changed") from None
    return True


def read_config(path: Path) -> dict[str, Any]:
    """`config.yaml` of a run folder.

    Raises:
        BadRequest: there is none, or it cannot be read.
    """
    try:
        return read_yaml(path / "config.yaml")
    except OSError as error:
        raise BadRequest(f"{path} is not a run folder: no readable config.yaml ({error.strerror})") from None


def _refuse_other(
    stored: dict[str, Any] | None,
    config: dict[str, Any],
    upgrade: Callable[[dict[str, Any]], dict[str, Any]],
    where: Path | str,
) -> None:
    """Raises BadRequest where the configuration that is `stored` is not `config`."""
    if stored is not None and upgrade(stored) != config:
        changed = sorted(_differences(upgrade(stored), config))
        raise BadRequest(f"{where} holds a run of another configuration; these differ: {', '.join(changed)}")


def _differences(a: Any, b: Any, prefix: str = "") -> set[str]:
    """Keys, joined by dots, under which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            d for key in {*a, *b} for d in _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
        }
    return set() if a == b else {prefix}
