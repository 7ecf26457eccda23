"""A process that stands in for training, and ends as a test says."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from engram.configs.presets import PRESETS
from engram.experiments.cells import Cell

CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
assert "--resume" in sys.argv and sys.stdin.read().startswith("schema:")
plan = pathlib.Path(f"{folder}.plan")
code, *rest = plan.read_text().split()
plan.write_text(" ".join(rest))
print(f"this was {code}", file=sys.stderr, flush=True)
if code == "asked":
    asked = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: asked.append(number))
    pathlib.Path(f"{folder}.ready").touch()
    while not asked and os.getppid() == int(os.environ["ENGRAM_PARENT"]):
        time.sleep(0.01)
    code = 130
if code == "0":
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text("{}")
if int(code) < 0:
    os.kill(os.getpid(), -int(code))
    signal.pause()
sys.exit(int(code))
"""
"""Takes the first word of `<folder>.plan`: an exit code, a signal as a negative number, or `asked` for 130 as soon as
it is asked to stop."""


def use(place: Path, monkeypatch: Any) -> None:
    """Has processes that train find the stand-in, in the folder `place`."""
    scripts = place / "engram" / "scripts"
    scripts.mkdir(parents=True)
    for folder in (scripts, scripts.parent):
        (folder / "__init__.py").touch()
    (scripts / "train.py").write_text(textwrap.dedent(CHILD))
    monkeypatch.syspath_prepend(str(place))


def cells_with(out: Path, *plans: str) -> list[Cell]:
    """Cells whose processes end with these codes, one after the other."""
    config: Any = replace(PRESETS["lsd"], total_steps=100)
    for number, plan in enumerate(plans):
        (out / f"cell{number}.plan").write_text(plan)
    return [Cell(replace(config, seed=number), out / f"cell{number}", "lsd") for number in range(len(plans))]


def left(out: Path) -> list[str]:
    """Codes that were not come to, by cell."""
    return [path.read_text() for path in sorted(out.glob("*.plan"))]


def notes(out: Path) -> list[str]:
    """What stands beside the folders."""
    return sorted(path.name for path in out.iterdir() if path.suffix in (".json", ".txt"))
