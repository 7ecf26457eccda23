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


SLOW = {"scipy", "matplotlib", "gymnax", "gymnasium", "brax", "envpool", "ale_py", "wandb", "xminigrid", "craftax"}
"""These take seconds to import, or import what does: only who uses them waits for them."""


def at_the_top(file: Path) -> set[str]:
    """Dotted names that a module imports when it is imported itself."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("script", ["train", "compare", "evaluate", "adapt"])
def test_scripts_start_without_slow_imports(script):
    waiting, seen = {f"scripts.{script}"}, set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = ROOT / name.replace(".", "/")
        files = [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()]
        found = {n for file in files for n in at_the_top(file)}
        slow = {n for n in found if n.split(".")[0] in SLOW}
        assert not slow, name
        # Importing a module imports the packages that it lies in.
        parents = {n.rsplit(".", i)[0] for n in found for i in range(n.count(".") + 1)}
        waiting |= (found | parents) - seen
    assert {"agents.ppo", "envs.registry"} <= seen


@pytest.mark.parametrize("pins", ["py311.txt", "py312.txt"])
def test_pins_are_exact_and_name_no_address(pins):
    lines = (ROOT / "constraints" / pins).read_text().split()
    assert len(lines) > 100
    for line in lines:
        assert line.count("==") == 1, line
        assert "://" not in line, line
        assert "@" not in line, line
