"""Copies of run folders on other storage, such as a bucket, for machines that may vanish.

A run lives in its folder and nowhere else. After each checkpoint what changed in it is copied to a URL that fsspec can
write (`s3://`, `gs://`, `file://`, ...), a checkpoint's manifest after its arrays. A run that begins in an empty folder
is first fetched from there. Claims are not copied: a mirror belongs to one folder. What else lies at the URL is not
touched: a place that holds anything but a copy of this very run is refused.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engram.atomic_files import UNFINISHED, replacing
from engram.errors import BadRequest
from engram.training.stderr import notify
from engram.training.yaml_files import parse_yaml

CONFIG, SUMMARY, MANIFEST, CHECKPOINTS = "config.yaml", "summary.json", "manifest.json", "checkpoints"


def opened(url: str) -> tuple[Any, str]:
    """The file system that `url` names, and the path in it; nothing is read.

    Raises:
        BadRequest: fsspec knows no such place, or needs a package that is not installed.
    """
    if not url.strip():
        raise BadRequest("--mirror needs the URL of a place")
    import fsspec  # half a second that runs without a mirror need not wait for

    try:
        return fsspec.core.url_to_fs(url.rstrip("/"))
    except (ValueError, ImportError) as error:
        raise BadRequest(f"--mirror {url}: {error}") from None


class Mirror:
    """The copy of one run folder."""

    def __init__(self, url: str, folder: Path):
        """Opens the place `url` for the copy of `folder`; nothing is written.

        Raises:
            BadRequest: as `opened`, or it lies in `folder` or around it.
        """
        self.url, self.folder = url.rstrip("/"), folder
        self._fs, self._root = opened(url)
        from fsspec.implementations.local import LocalFileSystem

        self._local = isinstance(self._fs, LocalFileSystem)
        here, there = folder.resolve(), Path(self._root).resolve()
        if self._local and (there.is_relative_to(here) or here.is_relative_to(there)):
            raise BadRequest(f"--mirror {url}: a copy of {folder} must lie neither in it nor around it")
        self._is_ours = False
        self._copied: dict[str, tuple[int, int]] = {}
        self._complete = True

    @property
    def holds_a_run(self) -> bool:
        """Whether there is a copy of a run. Raises BadRequest where that cannot be told."""
        return bool(self._ask(lambda: self._fs.exists(f"{self._root}/{CONFIG}")))

    def config(self) -> dict[str, Any] | None:
        """The configuration of the run whose copy is there, None where nothing is.

        Raises:
            BadRequest: that cannot be told, or something else is there.
        """
        names = self._ask(self._names)
        if CONFIG not in names:
            self._ask(lambda: self._refuse_strangers(names))
            return None
        text = self._ask(lambda: self._fs.cat_file(f"{self._root}/{CONFIG}"))
        return parse_yaml(text.decode(errors="replace"), f"{self.url}/{CONFIG}")

    def fetch(self) -> None:
        """Copies the run into its folder, if that holds none. `config.yaml` comes last: a folder without it is fetched
        again. Raises BadRequest where it cannot be read, or the folder holds another run."""
        if (self.folder / CONFIG).exists():
            self._check_now()
            return
        if not self.holds_a_run:
            return
        notify(f"fetching {self.url}")
        names = sorted(self._ask(self._names), key=lambda name: name == CONFIG)
        whole = {name.rpartition("/")[0] for name in names if name.endswith(f"/{MANIFEST}")}
        for name in names:
            inside = name.split("/")
            if inside[0] == CHECKPOINTS and "/".join(inside[:2]) not in whole:
                continue  # without its manifest it was not copied to its end
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._ask(lambda name=name, target=target: self._fs.get_file(f"{self._root}/{name}", str(target)))

    def update(self) -> None:
        """Copies what changed. A place that cannot be reached is no reason to stop: next time all that is missing is
        copied."""
        try:
            self._update()
            self._complete = True
        except Exception as error:  # of any kind: the libraries of storage providers raise their own
            self._complete = False
            notify(f"{self.url} was not brought up to date ({type(error).__name__}: {error}); training goes on")

    def finish(self) -> None:
        """Copies what changed at the end of a run. Raises BadRequest where that failed."""
        self.update()
        if not self._complete:
            raise BadRequest(
                f"{self.folder} is complete and {self.url} is not: repeat the command with --resume to copy it"
            )

    def _update(self) -> None:
        if not self._is_ours:
            self._check()
        files = self._files()
        for name in sorted(files, key=_order):
            if self._copied.get(name) != files[name]:
                self._put(name)
                self._copied[name] = files[name]
        for name in self._names():
            if name not in files and (name == SUMMARY or name.startswith(f"{CHECKPOINTS}/")):
                self._fs.rm_file(f"{self._root}/{name}")
        self._copied = {name: stamp for name, stamp in self._copied.items() if name in files}

    def _check(self) -> None:
        """Makes sure that what is there is a copy of this run, or nothing. Raises BadRequest."""
        names = self._names()
        if CONFIG not in names:
            self._refuse_strangers(names)
        elif self._fs.cat_file(f"{self._root}/{CONFIG}") != (self.folder / CONFIG).read_bytes():
            raise BadRequest(f"{self.url} is the copy of another run")
        self._is_ours = True

    def _check_now(self) -> None:
        """As `_check`, where the place can be reached. Elsewhere `update` does it."""
        try:
            self._check()
        except BadRequest:
            raise
        except Exception as error:  # as in `update`
            notify(f"{self.url} cannot be read ({type(error).__name__}: {error}); training goes on")

    def _refuse_strangers(self, names: list[str]) -> None:
        if not names and self._fs.isfile(self._root):
            raise BadRequest(f"{self.url} is a file: a mirror is a folder")
        if names:
            raise BadRequest(f"{self.url} holds files that are no copy of a run, such as {min(names)}: choose another")

    def _put(self, name: str) -> None:
        target = f"{self._root}/{name}"
        if self._local:  # a file of a disk may be copied in part, an object of a bucket not
            with replacing(Path(target)) as partial:
                shutil.copyfile(self.folder / name, partial)
            return
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(self.folder / name), target)

    def _files(self) -> dict[str, tuple[int, int]]:
        """The files of the folder that are part of the run, and their sizes and times."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not _is_passing(name):
                about = path.stat()
                found[name] = about.st_size, about.st_mtime_ns
        return found

    def _names(self) -> list[str]:
        """The files of the copy, as in the folder."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._root)
        except FileNotFoundError:
            return []
        names = [str(name)[len(self._root) :].lstrip("/") for name in found]
        return [name for name in names if name and not _is_passing(name)]

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except BadRequest:
            raise
        except Exception as error:  # as in `update`
            raise BadRequest(f"cannot read {self.url} ({type(error).__name__}: {error}); nothing was trained") from None


def _is_passing(name: str) -> bool:
    """Whether a file is no part of a run."""
    return any(part.startswith(".") or UNFINISHED in part or ".damaged" in part for part in name.split("/"))


def _order(name: str) -> tuple[int, str]:
    """What is copied first: a copy that was cut short must never look like more than it is."""
    last = 3 if name == SUMMARY else 2 if name.endswith(f"/{MANIFEST}") else 1 if name.startswith(CHECKPOINTS) else 0
    return -1 if name == CONFIG else last, name  # the configuration says whose copy it is
