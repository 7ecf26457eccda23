"""The house itself: imports go one way, pins name no address."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "kernels": set(),
    "memory": {"kernels"},
    "envs": set(),
    "worldmodels": {"kernels", "memory"},
    "agents": {"kernels", "memory", "worldmodels", "envs"},
    "configs": {"agents"},
    "scripts": {"kernels", "memory", "worldmodels", "envs", "agents", "configs"},
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    others = {*MAY_IMPORT, "tests", "benchmarks"} - {package} - MAY_IMPORT[package]
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & others, file


@pytest.mark.parametrize("pins", ["py311.txt", "py312.txt"])
def test_pins_are_exact_and_name_no_address(pins):
    lines = (ROOT / "constraints" / pins).read_text().split()
    assert len(lines) > 100
    for line in lines:
        assert line.count("==") == 1, line
        assert "://" not in line, line
        assert "@" not in line, line
