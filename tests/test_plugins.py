"""What stands outside of this repository, from end to end: a module with a memory and environments, and an agent."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram import api, plugins
from engram.agents import registry
from engram.configs.store import describe
from engram.errors import BadRequest, Interrupted, UnknownName
from engram.experiments import cells
from engram.training import checkpoint
from tests import toy_agent
from tests.experiments.runs import assert_same_end, rows_of, train_here
from tests.scripts import kill_resume
from tests.toy_agent import ToyExperiment

pytestmark = pytest.mark.usefixtures("quickly_compiled")

LAB = """
from dataclasses import dataclass
import flax.linen as nn
import gymnasium
from typing import Any
import jax
import jax.numpy as jnp
from engram.envs.base import Environment
from engram.envs.spaces import Box, Discrete
from engram.memory import Memory, where_reset

class Sum(Memory):
    @nn.nowrap
    def initial_state(self, batch):
        return jnp.zeros((batch, self.width), self.param_dtype)
    def __call__(self, state, x, reset):
        def step(h, now):
            h = where_reset(now[1], jnp.zeros_like(h), h) + now[0]
            return h, jnp.tanh(h)
        return jax.lax.scan(step, state, (x, reset))

@dataclass(frozen=True)
class Cue(Environment):
    length: int = 3
    def reset(self, key, params):
        cue = jax.random.rademacher(key, (), jnp.float32)
        return jnp.array([cue, 0.0]), (cue, 0)
    def step(self, key, state, action, params):
        cue, time = state[0], state[1] + 1
        right = jnp.where((action == 0) == (cue > 0), 1.0, -1.0)
        done = time >= self.length
        return jnp.array([0.0, 1.0]), (cue, time), jnp.where(done, right, 0.0), done, jnp.zeros((), bool), {}
    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))
    def action_space(self, params):
        return Discrete(2)
    def max_steps(self, params):
        return self.length

class Coin(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = float(self.np_random.choice([-1.0, 1.0]))
        return self.observation_space.sample() * 0 + self.side, {}
    def step(self, action):
        return self.observation_space.sample() * 0, float((action == 0) == (self.side > 0)), True, False, {}

gymnasium.register("lab/Coin-v0", Coin, max_episode_steps=5)
"""
TINY: dict[str, Any] = {"total_steps": 1024, "log_points": 4, "eval_points": 1, "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the module `lab`, in which the user works."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "lab.py").write_text(LAB)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
        sys.modules.pop("lab", None)


def stopping_after(chunk):
    """A `checkpoint.save` that stops the run after one."""
    save = checkpoint.save

    def stop(root, state, progress, *rest):
        save(root, state, progress, *rest)
        if progress.chunk == chunk:
            raise Interrupted("stopped")

    return stop


# --------------------------------------------------------------------------------------------- memory and environments


@pytest.fixture(scope="module")
def trained(home):
    """A run of the memory in the JAX environment, which was stopped and resumed."""
    what = {"memory": "lab:Sum", "env": "lab:Cue?length=4", **TINY}
    whole = api.train("debug", **what, out="whole", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping_after(2))
        with pytest.raises(Interrupted):
            api.train("debug", **what, out="run", quiet=True)
    run = api.train("debug", **what, out="run", resume=True, quiet=True)
    assert_same_end(whole.folder, run.folder)
    return run


def test_a_run_of_ones_own_memory_and_environment_is_found_again(trained):
    stored = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert (stored["memory"], stored["env"]) == ("lab:Sum", "lab:Cue?length=4")
    run = api.load("run")
    assert run.evaluate(episodes=8, gif_steps=3)["eval_length"] == [4.0]
    policy = run.policy(greedy=True)
    assert policy([1.0, 0.0]) in (0, 1)
    assert policy.memory[0].shape == (8,)
    assert api.plot([run]).exists()


@pytest.mark.slow
def test_ones_own_memories_are_compared(home, trained, monkeypatch):
    monkeypatch.setattr(cells, "train_apart", train_here)
    names: dict[str, Any] = {"memories": ["lab:Sum", "none"], "envs": ["lab:Cue?length=4"]}
    compared = api.compare("debug", **names, seeds=1, out="compared", quiet=True, **TINY)
    assert not compared.failures
    assert compared.table.startswith("| environment | lab:Sum | none |")
    # A cell is the run that it would be by itself.
    assert rows_of(compared.cells[0].folder) == rows_of(trained.folder)


def test_ones_own_gymnasium_environment(home):
    run = api.train("debug", memory="lab:Sum", env="gymnasium/lab:lab/Coin-v0", **TINY, out="coin", quiet=True)
    assert run.evaluate(episodes=4, gif_steps=0)["eval_length"] == [1.0]
    assert run.policy()([1.0]) in (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": "lab:Som"}, "unknown memory 'lab:Som': module 'lab' has no 'Som'"),
        ({"memory": "lob:Sum"}, "unknown memory 'lob:Sum': there is no module 'lob'"),
        ({"memory": "lab:Cue"}, "no subclass of engram.memory.Memory"),
        ({"env": "lab:Kue"}, "module 'lab' has no 'Kue'"),
        ({"env": "lab:Sum"}, "Environment"),
        ({"env": "lab:Cue?lenght=4"}, "did you mean length"),
        ({"env": "gymnasium/lab:lab/Coyn-v0"}, "Coyn"),
    ],
)
def test_names_of_what_is_not_there(home, changes, message):
    with pytest.raises(BadRequest, match=message) as error:
        api.train("debug", **changes, out="refused")
    assert "\n" not in str(error.value)
    assert not Path("refused").exists()


def test_errors_in_ones_own_module_show_as_they_are(home):
    (home / "broken.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        api.train("debug", memory="broken:Sum")


@pytest.mark.slow
@pytest.mark.parametrize("env", ["lab:Cue", "gymnasium/lab:lab/Coin-v0"])
def test_scripts_find_the_module_in_the_working_folder(home, env, tmp_path):
    """Trained, killed and resumed, evaluated, drawn and compared, each by a process of its own."""
    folder, options = tmp_path / "run", ["debug", "--memory", "lab:Sum", "--checkpoint-seconds", "0", "--quiet"]

    def script(name: str, *arguments: str) -> str:
        command = [sys.executable, str(kill_resume.ROOT / "scripts" / f"{name}.py"), *arguments]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    longer = [*options, "--total-steps", "15360", "--log-points", "60"]
    killed = subprocess.Popen([*kill_resume.TRAIN, *longer, "--env", env, "--out", str(folder)], cwd=home)
    kill_resume.first_chunk(folder, killed)
    killed.kill()
    assert killed.wait() == -9, "it was to be killed before its end"
    script("train", *longer, "--env", env, "--out", str(folder), "--resume")
    assert json.loads((folder / "summary.json").read_text())["memory"] == "lab:Sum"
    assert "seed 0: return" in script("evaluate", str(folder), "--episodes", "8")
    script("plot", str(folder), "--out", str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").exists()
    if env.startswith("gymnasium"):  # one comparison shows it
        return
    compared = ["--memories", "lab:Sum", "none", "--envs", env, "--seeds", "1", "--out", str(tmp_path / "compared")]
    assert "| lab:Sum | none |" in script("compare", "debug", *compared, "--total-steps", "1024", "--quiet")


# ------------------------------------------------------------------------------------------------------------- agents


@pytest.fixture
def in_the_registry(monkeypatch):
    monkeypatch.setitem(registry.AGENTS, "toy", "tests.toy_agent:TOY")


@pytest.fixture
def installed(monkeypatch):
    """As an installed package would declare it."""
    point = importlib.metadata.EntryPoint("toy", "tests.toy_agent:TOY", registry.GROUP)
    entry_points = plugins.entry_points
    monkeypatch.setattr(plugins, "entry_points", lambda group: entry_points(group) | {"toy": point})


def lives(config: ToyExperiment, folder: Path, monkeypatch) -> None:
    """Asserts that a run of the agent is trained, stopped, resumed, evaluated, drawn and compared."""
    monkeypatch.setattr(cells, "train_apart", train_here)
    whole = api.train(config, out=folder / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping_after(2))
        with pytest.raises(Interrupted):
            api.train(config, out=folder / "run", quiet=True)
    run = api.train(config, out=folder / "run", resume=True, quiet=True)
    assert_same_end(whole.folder, run.folder)
    stored = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (stored["agent"], stored["algorithm"]) == (config.agent, "greedy")
    again = api.load(run.folder)
    assert again.config == config
    result = again.evaluate(episodes=16)
    assert result["algorithm"] == "greedy"
    assert result["eval_return"]["mean"] == pytest.approx(3, abs=0.5), "the arm that pays 3"
    assert again.plot(folder / "toy.png").exists()
    compared = api.compare(config, seeds=2, out=folder / "compared", quiet=True)
    assert "| greedy | uniform |" in compared.table
    with pytest.raises(BadRequest, match="does not declare how it acts"):
        again.policy()
    with pytest.raises(UnknownName, match="did you mean uniform"):
        api.train(config, algorithm="unifrom")


SMALL: dict[str, Any] = {"total_steps": 320, "log_points": 4, "checkpoint_seconds": 0, "seeds": 2}


def toy(kind: type = ToyExperiment) -> ToyExperiment:
    return kind(env="tests.toy_agent:Arms", **SMALL)


def test_an_agent_by_one_line(in_the_registry, tmp_path, monkeypatch):
    lives(toy(), tmp_path, monkeypatch)


def test_an_agent_by_an_entry_point(installed, tmp_path):
    assert "toy" in registry.names()
    run = api.train(toy(), out=tmp_path / "run", quiet=True)
    assert api.load(run.folder).spec is toy_agent.TOY


def test_an_agent_by_its_module_in_a_file(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"agent": "tests.toy_agent:SPEC", "env": "tests.toy_agent:Arms", **SMALL}))
    run = api.train(path, toy__explore=0.5, out=tmp_path / "run", quiet=True)
    assert run.config == toy_agent.NamedExperiment(
        env="tests.toy_agent:Arms", toy=toy_agent.ToySettings(explore=0.5), **SMALL
    )
    assert api.load(run.folder).spec is toy_agent.SPEC


@pytest.mark.slow
def test_scripts_train_an_agent_by_its_module(tmp_path):
    """Each cell of a comparison in a process of its own, which finds the agent by what the configuration says."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(describe("toy", toy(toy_agent.NamedExperiment))))
    command = [sys.executable, str(kill_resume.ROOT / "scripts" / "compare.py"), str(path), "--seeds", "2"]
    options = ["--out", str(tmp_path / "out"), "--toy.explore", "0.3"]
    done = subprocess.run([*command, *options], cwd=kill_resume.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| greedy | uniform |" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toi", "unknown agent 'toi': did you mean toy"),
        ("tests.toy_agent:SPEK", "module 'tests.toy_agent' has no 'SPEK'"),
        ("tests.toy_agent:Toy", "is not an AgentSpec but type"),
        ("tests.toy_agent:TOY", r"calls itself 'toy': set `agent` of its experiment to 'tests.toy_agent:TOY'"),
    ],
)
def test_names_of_agents_that_are_none(in_the_registry, name, message):
    with pytest.raises(BadRequest, match=message):
        registry.find(name)


def test_an_agent_that_is_gone_is_named(in_the_registry, tmp_path, monkeypatch):
    run = api.train(toy(), out=tmp_path / "run", quiet=True)
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(BadRequest, match="no intact checkpoint"):
        api.evaluate(run)
    monkeypatch.delitem(registry.AGENTS, "toy")
    with pytest.raises(UnknownName, match="unknown agent 'toy'"):
        api.load(run.folder)
