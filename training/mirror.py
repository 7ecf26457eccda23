"""Copies of run folders on other storage, such as a bucket, for machines that may vanish.

A run lives in its folder and nowhere else. After each checkpoint what changed in it is copied to a URL that fsspec can
write (`s3://`, `gs://`, `file://`, ...), a checkpoint's manifest after its arrays. A run that begins in an empty folder
is first fetched from there. Claims are not copied: a mirror belongs to one folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engram.atomic_files import UNFINISHED
from engram.errors import BadRequest
from engram.training.stderr import notify

CONFIG, SUMMARY, MANIFEST, CHECKPOINTS = "config.yaml", "summary.json", "manifest.json", "checkpoints"


class Mirror:
    """The copy of one run folder."""

    def __init__(self, url: str, folder: Path):
        """Opens the place `url` for the copy of `folder`; nothing is written.

        Raises:
            BadRequest: fsspec knows no such place, or needs a package that is not installed.
        """
        import fsspec  # half a second that runs without a mirror need not wait for

        self.url, self.folder = url.rstrip("/"), folder
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise BadRequest(f"--mirror {url}: {error}") from None
        self._copied: dict[str, tuple[int, int]] = {}
        self._complete = True

    @property
    def holds_a_run(self) -> bool:
        """Whether there is a copy of a run. Raises BadRequest where that cannot be told."""
        return bool(self._ask(lambda: self._fs.exists(f"{self._root}/{CONFIG}")))

    def fetch(self) -> None:
        """Copies the run into its folder, if that holds none. `config.yaml` comes last: a folder without it is fetched
        again. Raises BadRequest where it cannot be read."""
        if (self.folder / CONFIG).exists() or not self.holds_a_run:
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
        files = self._files()
        for name in sorted(files, key=_order):
            if self._copied.get(name) != files[name]:
                self._put(name)
                self._copied[name] = files[name]
        for name in self._names():
            if name not in files:
                self._fs.rm_file(f"{self._root}/{name}")
        self._copied = {name: stamp for name, stamp in self._copied.items() if name in files}

    def _put(self, name: str) -> None:
        target = f"{self._root}/{name}"
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(self.folder / name), target)

    def _files(self) -> dict[str, tuple[int, int]]:
        """The files of the folder that are part of the run, and their sizes and times."""
        found = {}
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder).parts
            passing = any(part.startswith(".") or UNFINISHED in part or ".damaged" in part for part in inside)
            if path.is_file() and not passing:
                about = path.stat()
                found["/".join(inside)] = about.st_size, about.st_mtime_ns
        return found

    def _names(self) -> list[str]:
        """The files of the copy, as in the folder."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._root)
        except FileNotFoundError:
            return []
        return [str(name)[len(self._root) :].lstrip("/") for name in found]

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # as in `update`
            raise BadRequest(f"cannot read {self.url} ({type(error).__name__}: {error}); nothing was trained") from None


def _order(name: str) -> tuple[int, str]:
    """What is copied first: a copy that was cut short must never look like more than it is."""
    last = 3 if name == SUMMARY else 2 if name.endswith(f"/{MANIFEST}") else 1 if name.startswith(CHECKPOINTS) else 0
    return last, name
