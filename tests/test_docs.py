"""The documentation names what exists: keys, presets, memories, metrics, files, links; its examples work."""

import dataclasses
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.offline import random_episodes
from engram import api, errors, testing
from engram.agents.common.experiment import Experiment
from engram.agents.offline.build import VALUE_METHODS, make_sequence, make_values
from engram.agents.registry import AGENTS, build, find
from engram.configs import presets
from engram.configs.arguments import options_of
from engram.configs.presets import PRESETS
from engram.configs.sources import is_file
from engram.envs import registry
from engram.envs.vector import Vectorised
from engram.experiments import options
from engram.memory import MEMORIES
from engram.memory.base import GROUPS
from engram.training.metrics import aggregate
from tests import doc_tables

ROOT = Path(__file__).resolve().parents[1]


def of(*agents: str) -> dict[str, Any]:
    """The presets of these agents."""
    return {name: preset for name, preset in PRESETS.items() if preset.agent in agents}


PLANNERS = ("conservative", "lsd", "ucrl", "stepmix", "dynlin", "neucb")
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("README.md")]


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def section(text: str, heading: str) -> str:
    """What stands under `heading` up to the next one of the same or a higher level."""
    level = heading.split()[0]
    rest = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def defined(text: str) -> list[str]:
    """What the first cells of a text's tables name in `code`."""
    first_cells = re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)
    return [name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_say_what_is_in_the_code(page):
    """`python -m tests.doc_tables` writes them."""
    text = page.read_text()
    assert doc_tables.rendered(text) == text
    assert text.count("<!-- table: ") == text.count("<!-- end -->")


def test_presets_settings_and_options_have_tables():
    groups = {
        name for preset in PRESETS.values() for name, value in vars(preset).items() if dataclasses.is_dataclass(value)
    }
    assert {"ppo", "drama", "sequence", "ucrl"} < groups
    pages = "".join(page.read_text() for page in PAGES)
    wanted = [
        "modifiers",
        *(f"family {name}" for name in presets.FAMILIES),
        *(f"differences {name}" for name in presets.FAMILIES),
        "settings experiment",
        *(f"settings {name}" for name in groups),
        *(f"script {name}" for name in doc_tables.SCRIPTS),
    ]
    for name in wanted:
        assert len(re.findall(rf"<!-- table: {name}[ >]", pages)) == 1, name


def test_planners_are_documented():
    """Presets, and metrics by agent."""
    page = read("planners.md")
    rows = re.findall(r"^\| `([\w/-]+)` \| [^|]* \| ([^| ]+) \| ([\w-]+) \| (\d+) \| ([\d,]+) \|", page, re.MULTILINE)
    assert {name: (env, algorithm, seeds, steps) for name, env, algorithm, seeds, steps in rows} == {
        name: (p.env, p.chosen, str(p.seeds), f"{p.total_steps:,}") for name, p in of(*PLANNERS).items()
    }
    ids = {name for name in defined(section(page, "## Environments")) if "/" in name}
    assert ids == {name for family in registry.OURS if family != "meta" for name in registry.env_ids(f"{family}/")}
    seen = set()
    for preset in of(*PLANNERS).values():
        if preset.agent in seen:
            continue
        seen.add(preset.agent)
        metrics = set(defined(section(page, f"### Metrics of {preset.agent}")))
        others = metric_names("debug") if preset.agent == "conservative" else set()
        assert metrics == metric_names(preset) - others, preset.agent


def test_offline_is_documented():
    """Presets of the sequence policy, and its metrics."""
    page = read("offline.md")
    rows = re.findall(
        r"^\| `([\w/-]+)` \| [^|]* \| (\w+), width (\d+), (\d+) layers \| ([\d,]+) \|", page, re.MULTILINE
    )
    assert {name: (memory, int(width), int(layers), steps) for name, memory, width, layers, steps in rows} == {
        name: (p.memory, p.mixer.width, p.mixer.layers, f"{p.total_steps:,}") for name, p in of("sequence").items()
    }
    preset = PRESETS["dm-pendulum"]
    agent = make_sequence(
        dataclasses.replace(preset, sequence=dataclasses.replace(preset.sequence, alpha_T=0.5)),
        episodes=random_episodes(references=True),
    )
    state = jax.eval_shape(agent.init, jax.random.key(0))
    metrics = {*jax.eval_shape(agent.update, state)[1], *jax.eval_shape(agent.evaluate, state, jax.random.key(0))}
    named = {re.sub("at_.*", "at_<target>", name) for name in metrics}
    assert any(name.startswith("eval/recurrent_") for name in named)
    documented = set(defined(section(page, "## Metrics")))
    assert {name for name in named if not name.startswith("eval/recurrent_")} == documented - {"eval/recurrent_..."}


def test_offline_values_are_documented():
    """Presets, and the metrics of all algorithms, with and without a memory."""
    page = read("offline-values.md")
    rows = re.findall(r"^\| `([\w-]+)` \| [^|]* \| ([\w/.-]+) \| (\w+) \| ([\d,]+) \|", page, re.MULTILINE)
    assert {name: tuple(row) for name, *row in rows} == {
        name: (p.dataset, p.algorithm, f"{p.total_steps:,}") for name, p in of("values").items()
    }
    episodes, metrics = random_episodes(episodes=2, references=True), set()
    for algorithm, memory in (*((name, "") for name in VALUE_METHODS), ("iql", "gru")):
        preset = dataclasses.replace(PRESETS["offline-pendulum"], algorithm=algorithm, memory=memory)
        agent = make_values(preset, episodes=episodes)
        state = jax.eval_shape(agent.init, jax.random.key(0))
        metrics |= {*jax.eval_shape(agent.update, state)[1], *jax.eval_shape(agent.evaluate, state, jax.random.key(0))}
    assert {re.sub("at_.*", "at_<target>", name) for name in metrics} == set(defined(section(page, "## Metrics")))


@pytest.mark.slow
def test_drama_is_documented():
    """Presets, and metrics of both ways to learn a behaviour."""
    page = read("drama.md")
    rows = re.findall(
        r"^\| `([\w-]+)` \| [^|]* \| `([^|` ]+)` \| (\w+), width (\d+) \| ([\d,]+) \|", page, re.MULTILINE
    )
    assert {name: (env, memory, int(width), steps) for name, env, memory, width, steps in rows} == {
        name: (p.env, p.memory, p.world.width, f"{p.total_steps:,}") for name, p in of("drama").items()
    }
    preset = PRESETS["drama-catch"]
    plain, ppo = (
        build(dataclasses.replace(preset, drama=dataclasses.replace(preset.drama, behaviour=behaviour)))
        for behaviour in ("reinforce", "ppo")
    )
    state = jax.eval_shape(plain.init, jax.random.key(0))
    update = {*jax.eval_shape(plain.update, state)[1], *jax.eval_shape(ppo.update, state)[1]}
    collected = {"train/episodes", "train/return_sum", "train/length_sum", "replay/fault"}
    assert set(defined(section(page, "## Metrics"))) == update - collected


# ----------------------------------------------------------------------------------------------------------- memories


def test_every_registered_memory_has_a_row():
    """The tables are generated, in groups that a memory names."""
    page = read("memory.md")
    shown = [name for group in GROUPS for name in rows_of(page, group)]
    assert sorted(shown) == sorted(MEMORIES)


def rows_of(page: str, group: str) -> list[str]:
    table = page.partition(f"<!-- table: memories {group} -->")[2].partition("<!-- end -->")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


# ------------------------------------------------------------------------------------------------------------ metrics


@cache
def metric_names(preset: str | Experiment) -> set[str]:
    """Names of all metrics of an agent, as they reach metrics.jsonl."""
    agent = build(PRESETS[preset] if isinstance(preset, str) else preset)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    _, update = jax.eval_shape(agent.update, state)
    evaluation = jax.eval_shape(agent.evaluate, state, jax.random.key(0))
    one_chunk = jax.tree.map(lambda leaf: np.zeros((1, 1, *leaf.shape)), update)
    return {*aggregate(one_chunk), *evaluation}


def test_every_metric_is_documented():
    page = section(read("metrics.md"), "## metrics.jsonl")
    clock = {"env_steps", "updates", "wall_s", "steps_per_s"}
    # Memories with metrics of their own.
    assert set(defined(page)) == metric_names(dataclasses.replace(PRESETS["debug"], memory="para,mom,seqboat")) | clock


def test_files_of_a_run_are_documented(tmp_path):
    """Keys of summary.json and evaluation.json, and the names of files, from a real run."""
    tiny = {"memory": "para,mom,seqboat", "total_steps": 256, "log_points": 1, "eval_points": 1}
    run = api.train("debug", **tiny, out=tmp_path / "run", quiet=True)
    run.evaluate(episodes=2, gif_steps=0)
    folder = run.folder
    page = read("metrics.md")
    for file in ("summary.json", "evaluation.json"):
        assert set(defined(section(page, f"## {file}"))) == set(json.loads((folder / file).read_text())), file
    row = json.loads((folder / "metrics.jsonl").read_text())
    assert set(defined(section(page, "## metrics.jsonl"))) == set(row)
    documented = defined(section(read("quickstart.md"), "## The run folder"))
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} <= {name.strip("/") for name in documented}


# ----------------------------------------------------------------------------------------------------- links and files


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_exist(page):
    text = page.read_text()
    example_files = {"memory/leaky.py", "envs/tmaze.py"}  # which the reader is told to make
    packages = "agents|benchmarks|configs|constraints|envs|kernels|memory|scripts|tests|worldmodels"
    for name in set(re.findall(rf"(?<![\w/])((?:{packages})/[\w/]+\.\w+)", text)) - example_files:
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ((?:tests|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for target in re.findall(r"^\s*make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page):
    """Presets, files and options of commands of train.py, compare.py, sweep.py and atari100k.py are such."""
    shared = [options.Output, options.Distributed, options.Compare, options.Sweep, options.Atari100k]
    parts = [*(find(agent).experiment for agent in AGENTS), *shared]
    known = {option.name for part in parts for option in options_of(part)}
    known |= {re.sub(r"^--((?:\w+\.)?)", r"--\1no-", name) for name in known}
    commands = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"scripts/(?:train|compare|sweep|atari100k)\.py ([^\n`#]*)", commands):
        assert {*re.findall(r"--[\w.-]+", line)} <= known | {"--help", "--list", "--config"}, line
        first = line.split()[0] if line.split() else ""
        assert first in PRESETS or first in ("PRESET", "-", "--help", "--list") or is_file(first), line


# ----------------------------------------------------------------------------------------------------------- examples


def load_example(page: str, tmp_path: Path, name: str) -> ModuleType:
    """The code block that is marked as tested, as a module."""
    (code,) = re.findall(r"<!-- tested by tests/test_docs.py -->\n```python\n(.*?)```", read(page), re.DOTALL)
    path = tmp_path / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_memory_keeps_the_contract(tmp_path):
    memory = load_example("memory.md", tmp_path, "docs_example_memory").Leaky(6)
    testing.check_memory(memory)


def test_contract_checks_are_listed():
    listed = set(defined(section(read("memory.md"), "## Add your own")))
    assert listed == {check.__name__ for check in testing.CHECKS}


def test_the_example_environment_has_a_family(tmp_path, monkeypatch):
    """The line that the page adds to the registry, and the module that it names."""
    (entry,) = re.findall(r'"tmaze": "([\w.:]+)"', read("environments.md"))
    module = load_example("environments.md", tmp_path, "docs_example_environment")
    monkeypatch.setitem(sys.modules, entry.partition(":")[0], module)
    monkeypatch.setitem(cast(Any, registry.FUNCTIONAL), "tmaze", entry)
    assert registry.make("tmaze/Short").max_steps(None) == 12
    assert registry.env_ids("tmaze/") == ["tmaze/Long", "tmaze/Short"]


def test_code_imports_the_package():
    """And not its folders, which have no names of their own outside of the clone."""
    folders = "agents|configs|envs|experiments|kernels|memory|training|worldmodels"
    for page in PAGES:
        assert not re.search(rf"(?:from|import) (?:{folders})\b[\w.]*(?: import|$)", page.read_text(), re.M), page.name


def test_every_exit_code_is_listed():
    table = section(read("quickstart.md"), "## Exit codes")
    codes = {kind.exit_code for kind in (errors.EngramError, *errors.EngramError.__subclasses__())}
    assert {str(code) for code in codes} <= set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE))


def test_the_example_environment_can_be_played(tmp_path):
    """Who remembers the cue earns 1 in `length + 1` steps, who turns the other way 0, who never turns times out."""
    maze = load_example("environments.md", tmp_path, "docs_example_environment").TMAZES["Short"]()
    env = Vectorised(maze, 3)
    params: Any = env.default_params

    @jax.jit
    def play(key):
        obs, state = env.reset(key, params)
        cue = obs[:, 0]

        def step(carry, key):
            obs, state = carry
            at_end = obs[:, 1] == 1
            turn = jnp.where((cue < 0) == jnp.array([True, False, True]), 1, 2)
            action = jnp.where(at_end & jnp.array([True, True, False]), turn, 0)
            obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
            return (obs, state), (at_end, reward, terminated, truncated, info["reset"])

        return jax.lax.scan(step, (obs, state), jax.random.split(key, 12))[1]

    at_end, reward, terminated, truncated, reset = play(jax.random.key(0))
    ends = np.asarray(terminated)
    assert [int(np.argmax(ends[:, i])) + 1 for i in range(3)] == [7, 7, 12]
    assert [float(reward[: int(np.argmax(ends[:, i])) + 1, i].sum()) for i in range(3)] == [1.0, 0.0, 0.0]
    np.testing.assert_array_equal(at_end[:, 2], np.arange(12) >= 6)
    assert not truncated.any()
    np.testing.assert_array_equal(reset, ends)
    picture = maze.render(jax.device_get(maze.reset(jax.random.key(0), params)[1]), params)
    assert picture.shape == (48, 112, 3)
    assert picture.dtype == np.uint8
