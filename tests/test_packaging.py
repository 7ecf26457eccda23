"""What is installed: the core needs no extra."""

import contextlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

EXTRAS = (
    "ale_py",
    "chex",
    "craftax",
    "cv2",
    "h5py",
    "minari",
    "mazelib",
    "optuna",
    "popgym",
    "pytest",
    "sklearn",
    "xminigrid",
)
"""Modules of what only an extra brings."""


@pytest.mark.slow
def test_every_module_can_be_imported_without_extras():
    program = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # None: importing it fails as if it were not there
import engram
for module in pkgutil.walk_packages(engram.__path__, "engram."):
    importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_licence_of_every_dependency_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in ("all", "dev")}
    wanted = {re.split(r"[\[<>=;]", line)[0] for lines in (project["dependencies"], *extras.values()) for line in lines}
    table = [line for line in (ROOT / "docs" / "licences.md").read_text().splitlines() if line.startswith("| ")]
    named = {name.strip(" *") for line in table for name in line.split("|")[1].split(",")}
    assert wanted <= named
    assert metadata.metadata("ale-py")["License-Expression"] == "GPL-2.0-only"
    for name in sorted(named - {"package"}):
        with contextlib.suppress(metadata.PackageNotFoundError):  # some extras are not installed here
            about = metadata.metadata(name).json
            short = str(about.get("license"))[:20]  # some put the whole text there
            words = f"{about.get('license_expression')} {short} {about.get('classifier')}"
            assert "GPL" not in words or name == "ale-py", name
