"""What is installed: the core needs no extra."""

import subprocess
import sys

import pytest

EXTRAS = ("ale_py", "chex", "craftax", "cv2", "h5py", "minari", "mazelib", "popgym", "pytest", "sklearn", "xminigrid")
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
