"""Ids and their options; environments that stand outside of the repository."""

import subprocess
import sys
import textwrap
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram import plugins
from engram.envs.base import Environment
from engram.envs.registry import EnvSpec, UnknownEnvironment, env_ids, is_host_pool, make, make_vector
from engram.errors import BadRequest, UnknownName

# --- ids


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("popgym/RepeatFirstEasy", ("popgym", "RepeatFirstEasy", {})),
        ("meta/Bandit?arms=5&split=heldout", ("meta", "Bandit", {"arms": 5, "split": "heldout"})),
        ("meta/Mixture?members=CartPole+Acrobot", ("meta", "Mixture", {"members": "CartPole+Acrobot"})),
        ("meta/CartPole?gain=0.5&flip_reward=true", ("meta", "CartPole", {"gain": 0.5, "flip_reward": True})),
        ("meta/DarkRoom?time_limit=[50,200]", ("meta", "DarkRoom", {"time_limit": [50, 200]})),
        ("gymnasium/ALE/Pong-v5", ("gymnasium", "ALE/Pong-v5", {})),
        ("gymnasium/lab/Vec-v0", ("gymnasium", "lab/Vec-v0", {})),
        ("gymnasium/my.module:lab/Vec-v0", ("gymnasium", "my.module:lab/Vec-v0", {})),
        ("my.module:TMaze?length=20", ("", "my.module:TMaze", {"length": 20})),
        ('a/b?word="5"&path=x/y?z=1:2&rate=%25%26', ("a", "b", {"word": "5", "path": "x/y?z=1:2", "rate": "%&"})),
        ("a/b?none=null&empty=", ("a", "b", {"none": None, "empty": ""})),
    ],
)
def test_ids_and_their_parts(env_id, parts):
    spec = EnvSpec.parse(env_id)
    assert (spec.family, spec.name, spec.options) == parts
    assert str(spec) == env_id


@pytest.mark.parametrize(
    ("env_id", "written"),
    [
        ("a/b?", "a/b"),
        ("a/b?x=1e-3&y=1e+3", "a/b?x=0.001&y=1000.0"),
        ("a/b?x=[ 1, 2 ]", "a/b?x=[1,2]"),
        ("a/b?x=True&y=False", "a/b?x=true&y=false"),
        ("a/b?x=1&x=2", "a/b?x=2"),
        ("a/b?x=%7B", "a/b?x={"),
    ],
)
def test_other_spellings_of_an_id_become_one(env_id, written):
    assert str(EnvSpec.parse(env_id)) == str(EnvSpec.parse(written)) == written


@pytest.mark.parametrize(
    "value", ["true", "5", "[1]", '"', '"x"', " 1", "null", "x&y=%", "Größe", ["a", 1.5], {"a": [1]}]
)
def test_every_value_survives_its_written_form(value):
    spec = EnvSpec("a", "b", {"option": value, "after": 1})
    assert EnvSpec.parse(str(spec)) == spec


def test_a_value_that_json_cannot_write():
    with pytest.raises(BadRequest, match="option 'x' cannot be written"):
        str(EnvSpec("a", "b", {"x": object()}))


def test_keyword_options_are_those_of_the_id():
    assert make("meta/Bandit", arms=5, pulls=7) == make("meta/Bandit?arms=5&pulls=7") != make("meta/Bandit")
    assert make("meta/Bandit?arms=5", arms=6) == make("meta/Bandit?arms=6")
    assert make("meta/Bandit", arms=np.int64(5)) == make(EnvSpec.parse("meta/Bandit?arms=5"))
    limits = {make("meta/DarkRoom", time_limit=limit) for limit in ("5-9", (5, 9), [5, 9])}
    assert limits == {make("meta/DarkRoom?time_limit=[5,9]")}
    assert make_vector("meta/Bandit", 3, arms=5) == make_vector("meta/Bandit?arms=5", 3)
    names = ["CartPole", "Acrobot"]
    assert make_vector("meta/Mixture", 4, members=names) == make_vector("meta/Mixture?members=CartPole+Acrobot", 4)
    assert make_vector("gymnasium/CartPole-v1", 1, max_episode_steps=7).max_steps(None) == 7


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("popgym/RepeatPreviusEasy", "did you mean popgym/RepeatPreviousEasy"),
        ("gymnax/cartpole-v1", "did you mean gymnax/CartPole-v1"),
        ("gymnasium/CartPol-v1", "did you mean gymnasium/CartPole-v1"),
        ("popjym/RepeatFirstEasy", "ids are popgym/..., "),
        ("popgym", "ids are <family>/<name> or <module>:<name>"),
        ("popgym/RepeatFirstEasy?decks=2", "has no option 'decks': it takes none"),
        ("brax/ant?backed=spring", "has no option 'backed': did you mean backend"),
        ("meta/Bandit?arm=2", "has no option 'arm': did you mean arms"),
        ("gymnasium/CartPole-v1?suton_barto_reward=true", "did you mean sutton_barto_reward"),
        ("envpool/CartPole-v1?max_episode_step=1", "did you mean max_episode_steps"),
    ],
)
def test_unknown_ids_and_options_offer_close_matches_in_one_line(env_id, message):
    with pytest.raises(UnknownEnvironment) as error:
        make_vector(env_id, 2)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("meta/Bandit?arms=few", "arms must be int"),
        ("meta/Bandit?arms=[1,2]", "arms must be int"),
        ("envpool/CartPole-v1?max_episode_steps=few", "max_episode_steps must be int"),
        ("envpool/Pendulum-v1?max_episode_steps=-1", "at least 1, got -1"),
        ("gymnasium/CartPole-v1?max_episode_steps=0", "at least 1, or -1 for no limit, got 0"),
        ("gymnasium/CartPole-v1?max_episode_steps=1.5", "must be int"),
        ("gymnasium/ALE/Pong-v5?max_num_frames_per_episode=0", "at least 1, got 0"),
        ("envpool/CartPole-v1?num_envs=2", "num_envs cannot be given in the id"),
        ("gymnasium/CartPole-v1?sutton_barto_reward=3", "sutton_barto_reward must be bool"),
        ("gymnasium/HalfCheetah-v4", "gymnasium/HalfCheetah-v4"),  # older versions need a package that is gone
    ],
)
def test_bad_options_are_told_in_one_line(env_id, message):
    with pytest.raises(BadRequest, match=message) as error:
        make_vector(env_id, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("gymnasium/Pendulum-v1", 200),
        ("gymnasium/Pendulum-v1?max_episode_steps=300", 300),
        ("gymnasium/Pendulum-v1?max_episode_steps=-1", None),
        ("envpool/Pendulum-v1?max_episode_steps=300", 300),
        ("gymnasium/ALE/Pong-v5", 108_000 / 4),
        ("gymnasium/ALE/Pong-v5?max_num_frames_per_episode=401", 101),
        ("gymnasium/ALE/Pong-v5?max_num_frames_per_episode=400&frameskip=2", 200),
        ("gymnasium/PongNoFrameskip-v4", 108_000),  # stepped one by one
    ],
)
def test_limits_are_those_that_run(env_id, limit):
    pool = make_vector(env_id, 1)
    assert pool.max_steps(None) == limit
    pool.close()


def test_a_game_of_ale_ends_at_its_limit():
    pool = make_vector("gymnasium/ALE/Pong-v5?max_num_frames_per_episode=41&frameskip=2", 2)
    done = played(pool, pool.max_steps(None))[1]
    np.testing.assert_array_equal(done.sum(axis=1), [0] * (len(done) - 1) + [2])
    pool.close()


@pytest.mark.parametrize("limit", [0, -3, 2**31])
@pytest.mark.parametrize("env_id", ["gymnax/CartPole-v1?max_steps_in_episode=", "meta/Bandit?arms=2&pulls="])
def test_an_episode_has_a_step_at_least(env_id, limit):
    for construct in (make, lambda env_id: make_vector(env_id, 2)):
        with pytest.raises(BadRequest) as error:
            construct(f"{env_id}{limit}")
        assert "\n" not in str(error.value)


def test_emulators_only_come_in_batches():
    assert is_host_pool("envpool/CartPole-v1")
    assert not is_host_pool("gymnax/CartPole-v1?length=1.0")
    with pytest.raises(BadRequest, match="make_vector"):
        make("envpool/CartPole-v1")


def test_ids_of_the_families():
    assert len(env_ids("popgym/")) == 48
    assert len(env_ids("gymnax/")) == 25
    assert "gymnax/MNISTBandit-bsuite" not in env_ids("gymnax/")
    assert env_ids("envpool/Pong-v") == ["envpool/Pong-v5"]
    assert "gymnasium/ALE/Pong-v5" in env_ids("gymnasium/ALE/")
    assert {"brax/ant", "brax/humanoid"} <= set(env_ids("brax/"))
    assert "brax/swimmer" not in env_ids("brax/")


def test_importing_the_registry_imports_no_emulator():
    heavy = ["brax", "envpool", "gymnasium", "gymnax", "ale_py", "mujoco", "h5py", "scipy.stats", "sklearn"]
    code = f"import sys, engram.envs.registry; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- outside of the repository

TMAZE = '''
from dataclasses import dataclass

import jax.numpy as jnp

from engram.envs.base import Environment
from engram.envs.spaces import Box, Discrete


@dataclass(frozen=True)
class TMaze(Environment):
    """The cue is shown at the first step and asked for after `length` steps."""

    length: int = 5
    cues: tuple[float, ...] = (-1.0, 1.0)

    def reset(self, key, params):
        return jnp.array([self.cues[1]]), jnp.int32(0)

    def step(self, key, state, action, params):
        state = state + 1
        over = state >= self.length
        return jnp.zeros(1), state, (over & (action == 1)).astype(jnp.float32), over, jnp.bool_(False), {}

    def observation_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(2)

    def max_steps(self, params):
        return self.length


def long_maze(*, factor: int):
    return TMaze(5 * factor)


def broken(length=3):
    return {}["nothing"]


def words():
    return "a maze"


instance = TMaze()
'''

GYMNASIUM = '''
import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    """Ends after `length` steps; shows the steps taken."""

    observation_space = gymnasium.spaces.Box(0.0, 100.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 3, render_mode=None):
        if length == 13:
            raise KeyError("a mistake of the user's own")
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.taken += 1
        return np.full(1, self.taken, np.float32), float(action), self.taken >= self.length, False, {}


class Corridors(gymnasium.vector.VectorEnv):
    """A batch of one-step corridors that is no batch of single environments."""

    single_observation_space, single_action_space = Corridor.observation_space, Corridor.action_space
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs, mode="NextStep"):
        self.num_envs, self.ended = num_envs, np.zeros(num_envs, bool)
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode(mode)}

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        self.ended = ~self.ended
        zeros = np.zeros(self.num_envs, bool)
        return np.ones((self.num_envs, 1), np.float32), np.where(self.ended, 1.0, 0.0), self.ended.copy(), zeros, {}


gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=50)
gymnasium.register("lab/Corridor-v0", entry_point=Corridor)
gymnasium.register("lab/Corridors-v0", vector_entry_point=Corridors)
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules into the working directory, which Python does not search by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before, registered = {*sys.modules}, {*gymnasium.registry}

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))

    yield write
    for name in {*sys.modules} - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    for name in {*gymnasium.registry} - registered:
        del gymnasium.registry[name]


def played(env, steps):
    """Rewards, ends and openings `[T, B]` of the action 1 in a compiled program."""

    def step(state, key):
        _, state, reward, terminated, truncated, info = env.step(key, state, jnp.ones(env.num_envs, int), None)
        return state, (reward, terminated | truncated, info["reset"])

    def run(key):
        _, state = env.reset(key, None)
        return jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0)))


def test_a_class_in_a_module_of_the_working_directory(write):
    write("own_maze.py", TMAZE)
    env: Any = make("own_maze:TMaze?length=3&cues=[0,2]")
    assert Environment in type(env).__mro__
    assert (env.length, env.cues) == (3, (0, 2))
    assert env == make("own_maze:TMaze", length=3, cues=[0, 2])
    reward, done, _ = played(make_vector("own_maze:TMaze", 2, length=3), 6)
    np.testing.assert_array_equal(reward[:, 0], [0, 0, 1] * 2)
    np.testing.assert_array_equal(done[:, 1], [False, False, True] * 2)
    assert make("own_maze:long_maze", factor=2).max_steps(None) == 10


def test_a_module_in_a_package_below(write):
    write("own_package/__init__.py", "")
    write("own_package/mazes.py", TMAZE)
    assert make("own_package.mazes:TMaze").max_steps(None) == 5


@pytest.mark.parametrize(
    ("env_id", "kind", "message"),
    [
        ("own_mase:TMaze", UnknownName, "there is no module 'own_mase'"),
        ("own_maze.py:TMaze", UnknownName, "there is no module 'own_maze.py'"),
        (":TMaze", UnknownName, "there is no module ''"),
        ("own_maze:TMase", UnknownName, "module 'own_maze' has no 'TMase'"),
        ("own_maze:TMaze?lenght=3", UnknownEnvironment, "has no option 'lenght': did you mean length"),
        ("own_maze:TMaze?length=long", BadRequest, "length must be int"),
        ("own_maze:long_maze", BadRequest, "own_maze:long_maze needs the option factor"),
        ("own_maze:words", BadRequest, "own_maze:words is no class .* but 'a maze'"),
        ("own_maze:instance", BadRequest, "own_maze:instance is no class"),
        ("own_maze:dataclass?length=3", UnknownEnvironment, "has no option 'length'"),
        ("own_gym:Corridor", BadRequest, "named gymnasium/<module>:<id>"),
    ],
)
def test_what_is_no_environment_is_told_in_one_line(write, env_id, kind, message):
    write("own_maze.py", TMAZE)
    write("own_gym.py", GYMNASIUM)
    with pytest.raises(kind, match=message) as error:
        make(env_id)
    assert "\n" not in str(error.value)


def test_a_mistake_inside_a_module_shows_as_it_is(write):
    write("own_mistake.py", "import no_such_package")
    write("own_maze.py", TMAZE)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        make("own_mistake:TMaze")
    with pytest.raises(KeyError, match="nothing"):
        make("own_maze:broken")


# --- gymnasium's own forms


def test_a_module_registers_its_environments_with_gymnasium(write):
    write("own_gym.py", GYMNASIUM)
    env = make_vector("gymnasium/own_gym:Corridor-v0?length=2", 2)
    assert (env.name, env.max_steps(None)) == ("gymnasium/own_gym:Corridor-v0", 50)
    reward, done, reset = played(env, 6)
    np.testing.assert_array_equal(reward[:, 0], [1, 1, 0] * 2)
    np.testing.assert_array_equal(done[:, 0], [False, True, False] * 2)
    np.testing.assert_array_equal(reset[:, 0], [False, False, True] * 2)
    # Registered in this process, they are found without the module; a namespace belongs to the name.
    assert make_vector("gymnasium/Corridor-v0", 1).max_steps(None) == 50
    assert make_vector("gymnasium/lab/Corridor-v0", 1, max_episode_steps=4).max_steps(None) == 4
    assert make_vector("gymnasium/own_gym:lab/Corridor-v0", 1).max_steps(None) is None
    assert "gymnasium/lab/Corridor-v0" in env_ids("gymnasium/lab/")


def test_an_environment_that_comes_as_a_batch_alone(write):
    write("own_gym.py", GYMNASIUM)
    _, done, reset = played(make_vector("gymnasium/own_gym:lab/Corridors-v0", 3), 4)
    np.testing.assert_array_equal(done, np.tile([[True], [False]], (2, 3)))
    np.testing.assert_array_equal(reset, np.tile([[False], [True]], (2, 3)))
    with pytest.raises(BadRequest, match="does not restart in the step after the end"):
        make_vector("gymnasium/lab/Corridors-v0?mode=SameStep", 3)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("own_gim:Corridor-v0", UnknownName, "there is no module 'own_gim'"),
        ("own_gym:Corridr-v0", UnknownEnvironment, "did you mean gymnasium/own_gym:Corridor-v0"),
        ("own_gym:lab/Corridr-v0", UnknownEnvironment, "gymnasium/own_gym:lab/Corridor-v0"),
        ("own_gym:Corridor-v0?lenght=2", UnknownEnvironment, "has no option 'lenght': did you mean length"),
    ],
)
def test_unknown_names_of_gymnasium_offer_close_matches(write, name, kind, message):
    write("own_gym.py", GYMNASIUM)
    with pytest.raises(kind, match=message):
        make_vector(f"gymnasium/{name}", 2)


def test_a_mistake_inside_an_environment_of_gymnasium_shows_as_it_is(write):
    write("own_gym.py", GYMNASIUM)
    with pytest.raises(KeyError, match="a mistake of the user's own"):
        make_vector("gymnasium/own_gym:Corridor-v0?length=13", 2)


# --- entry points


@pytest.fixture
def installed(write, tmp_path, monkeypatch):
    """A package that declares families of environments, as installers leave it behind."""
    write("own_maze.py", TMAZE)
    write("own_table.py", "from own_maze import TMaze\nENVIRONMENTS = {'Short': lambda length=2: TMaze(length)}")
    write("own_maze-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: own-maze\nVersion: 1.0\n")
    write(
        "own_maze-1.0.dist-info/entry_points.txt",
        """
        [engram.environments]
        mazes = own_table:ENVIRONMENTS
        maze = own_maze:TMaze
        words = own_maze:words
        absent = no_such_package:ENVIRONMENTS
        popgym = own_table:ENVIRONMENTS
        """,
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.entry_points.cache_clear()
    yield
    plugins.entry_points.cache_clear()


@pytest.mark.usefixtures("installed")
def test_installed_packages_declare_families():
    assert make("mazes/Short").max_steps(None) == 2
    assert make("mazes/Short?length=4") == make("maze/TMaze", length=4)
    assert env_ids("maze") == ["maze/TMaze", "mazes/Short"]
    assert len(env_ids("popgym/")) == 48, "families of this suite keep their names"
    with pytest.raises(UnknownEnvironment, match="did you mean mazes/Short"):
        make("mazes/short")
    with pytest.raises(UnknownEnvironment, match=r"mazes/\.\.\."):
        make("mases/Short")
    with pytest.raises(BadRequest, match="entry point 'words' is no mapping"):
        make("words/any")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        make("absent/any")


@pytest.mark.usefixtures("installed")
def test_a_family_is_loaded_when_it_is_asked_for():
    make("maze/TMaze")
    assert "own_table" not in sys.modules
