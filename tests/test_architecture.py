"""The house itself: imports go one way, pins name no address."""

import ast
from pathlib import Path

import pytest

from tests.planted_bugs import BUGS

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "kernels": set(),
    "memory": {"kernels"},
    "envs": {"kernels"},
    "worldmodels": {"kernels", "memory"},
    "training": {"kernels", "envs"},
    "agents": {"kernels", "memory", "worldmodels", "envs", "training"},
    "configs": {"agents", "training"},
    "experiments": {"kernels", "memory", "worldmodels", "envs", "training", "agents", "configs"},
    "scripts": {"kernels", "memory", "worldmodels", "envs", "training", "agents", "configs", "experiments"},
}
"""Folders, and of which others they may import; all may import the modules of `engram` itself."""
SHARED = ("atomic_files", "errors", "plugins", "regular_files")
"""Modules of `engram` itself that all folders may import, and that import none of them."""
FAMILIES = ("ppo", "drama", "offline", "planners")


def imported(file: Path) -> set[str]:
    """Dotted names of all modules that a file imports anywhere, and of what it imports from them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder):
    foreign = {*MAY_IMPORT} - {folder} - MAY_IMPORT[folder]
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        parts = [name.split(".") for name in imported(file)]
        assert not {p[1] for p in parts if p[0] == "engram" and len(p) > 1} & foreign, file
        assert not {p[0] for p in parts} & {*MAY_IMPORT, "tests", "benchmarks"}, file


@pytest.mark.parametrize("name", SHARED)
def test_what_all_folders_share_imports_none_of_them(name):
    found = {tuple(module.split(".")[:2]) for module in imported(ROOT / "src" / "engram" / f"{name}.py")}
    assert {second for first, *rest in found if first == "engram" for second in rest} <= {*SHARED}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_agents_do_not_know_each_other(family):
    for file in (ROOT / "agents" / family).rglob("*.py"):
        others = {f"engram.agents.{other}" for other in FAMILIES if other != family}
        assert not {".".join(name.split(".")[:3]) for name in imported(file)} & others, file
    for file in (ROOT / "agents" / "common").rglob("*.py"):
        assert not {".".join(name.split(".")[:3]) for name in imported(file)} & {f"engram.agents.{f}" for f in FAMILIES}


def test_every_folder_of_the_package_is_linked():
    links = {path.name for path in (ROOT / "src" / "engram").iterdir() if path.is_symlink()}
    assert links == set(MAY_IMPORT)
    for name in links:
        assert (ROOT / "src" / "engram" / name).resolve() == ROOT / name


def test_planted_bugs_have_their_place():
    for bug in BUGS:
        assert (ROOT / bug.file).read_text().count(bug.right) == 1, (bug.file, bug.right)


SLOW = {
    *("scipy", "matplotlib", "gymnax", "gymnasium", "brax", "envpool", "ale_py", "wandb", "optuna", "xminigrid"),
    "craftax",
}
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


@pytest.mark.parametrize("script", ["train", "compare", "sweep", "evaluate", "adapt"])
def test_scripts_start_without_slow_imports(script):
    # What a script calls is imported when it is called.
    waiting, seen = {f"engram.scripts.{script}", f"engram.experiments.{script}", "engram.agents.ppo.build"}, set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = ROOT / "src" / name.replace(".", "/")
        files = [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()]
        found = {n for file in files for n in at_the_top(file)}
        slow = {n for n in found if n.split(".")[0] in SLOW}
        assert not slow, name
        # Importing a module imports the packages that it lies in.
        parents = {n.rsplit(".", i)[0] for n in found for i in range(n.count(".") + 1)}
        waiting |= (found | parents) - seen
    assert {"engram.agents.ppo.agent", "engram.envs.registry"} <= seen


@pytest.mark.parametrize("pins", ["py311.txt", "py312.txt"])
def test_pins_are_exact_and_name_no_address(pins):
    lines = (ROOT / "constraints" / pins).read_text().split()
    assert len(lines) > 100
    for line in lines:
        assert line.count("==") == 1, line
        assert "://" not in line, line
        assert "@" not in line, line
