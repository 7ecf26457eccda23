"""Run folders as a list: what each holds, how far it is, what it scored, and in which settings runs differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from engram.configs import store
from engram.errors import BadRequest, UnknownName
from engram.experiments.cells import Cell
from engram.experiments.runs import Run
from engram.training.statistics import in_words, summarise
from engram.training.yaml_files import shown


@dataclass(frozen=True)
class Listed:
    """A run folder of a list."""

    folder: Path
    cell: Cell | None = field(repr=False)
    """None where its configuration cannot be read."""
    trouble: str = ""
    """Why it cannot be."""

    @classmethod
    def of(cls, folder: Path) -> "Listed":
        """The run in a folder that has a configuration, whether that can be read or not."""
        try:
            run = Run.load(folder)
        except BadRequest as error:
            return cls(folder, None, str(error))
        return cls(folder, Cell(run.config, folder, run.preset))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings by dotted name, the preset among them; none where the configuration cannot be read."""
        if self.cell is None:
            return {}
        values = store.to_dict(self.cell.config)
        found: dict[str, Any] = {"preset": self.cell.preset}
        for name in sorted(store.dotted(values)):
            value: Any = values
            for part in name.split("."):
                value = value[part]
            found[name] = value
        return found

    @property
    def words(self) -> list[str]:
        """Folder, state, task, column, seeds, steps and final evaluation."""
        if self.cell is None:
            return [str(self.folder), "unreadable", self.trouble]
        known = [str(self.folder), self.cell.state, self.cell.task, self.cell.label]
        try:
            summary = self.cell.summary
        except BadRequest as error:
            return [str(self.folder), "unreadable", str(error)]
        if summary is None:
            return [*known, str(self.cell.config.seeds), "", self.cell.failure or ""]
        return [*known, str(summary["seeds"]), f"{summary['env_steps']:,}", in_words(summarise(self.cell.scores()))]


HEAD = ["run", "state", "task", "column", "seeds", "steps", "evaluation"]


def find(places: Sequence[Path]) -> Iterator[Path]:
    """Run folders at or below some places, in the order of their names.

    Raises:
        BadRequest: a place is not there.
    """
    for place in places:
        if not place.is_dir():
            raise BadRequest(f"there is no folder {place}")
        yield from sorted(path.parent for path in place.rglob("config.yaml") if path.is_file())


def chosen(runs: Sequence[Listed], where: Sequence[str]) -> list[Listed]:
    """The runs whose settings are as asked for: `name=value`, the value with `*` and `?` as in names of files.

    Raises:
        BadRequest: an entry is not of that form.
        UnknownName: no run has such a setting.
    """
    known = {name for run in runs for name in run.settings}
    for entry in where:
        name, equals, value = entry.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals:
            raise BadRequest(f"--where takes setting=value, and {entry!r} is not")
        if name not in known and known:
            raise UnknownName.among("setting", name, sorted(known))
        runs = [run for run in runs if name in run.settings and fnmatchcase(shown_plainly(run.settings[name]), value)]
    return list(runs)


def shown_plainly(value: Any) -> str:
    """A setting in words, as it is typed: a switch as true or false, a list with spaces, nothing as none."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return " ".join(map(shown_plainly, value))
        case str():
            return value
        case _:
            return str(shown(value))


def listing(runs: Sequence[Listed]) -> str:
    """One line a run, in columns."""
    rows = [HEAD, *(run.words for run in runs)]
    widths = [max(len(row[i]) for row in rows if i < len(row) - 1) for i in range(len(HEAD) - 1)]
    lines = [
        "  ".join([*(word.ljust(width) for word, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def differences(runs: Sequence[Listed]) -> str:
    """The settings in which runs differ, one line a setting, one column a run.

    Raises:
        BadRequest: there are fewer than two runs that can be read.
    """
    runs = [run for run in runs if run.cell is not None]
    if len(runs) < 2:
        raise BadRequest("differences need two runs or more")
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [["setting", *(str(run.folder) for run in runs)]]
    for name in names:
        words = [shown_plainly(run.settings[name]) if name in run.settings else "" for run in runs]
        if len({*words}) > 1:
            rows.append([name, *words])
    if len(rows) == 1:
        return "no setting differs"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
