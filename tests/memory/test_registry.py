"""Building memories by name, as a command line does: registered ones, and those of the user's own modules."""

import sys
from importlib import invalidate_caches
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest

from benchmarks.memory import build, planned
from engram import plugins
from engram.errors import BadRequest, UnknownName
from engram.memory import MEMORIES, find_memory, make_memory, memory_options, options_of
from engram.memory.gru import GRU
from engram.memory.mamba import Mamba
from engram.memory.s5 import S5


def test_options_and_defaults():
    assert memory_options("gru") == {"max_timescale": 1.0, "backend": "auto"}
    assert memory_options("none") == {}


def test_strings_are_converted():
    memory = make_memory("s5", 8, layers=2, norm=False, state="16", blocks="2", dt_max="0.5", gate="gelu")
    assert memory.layers == (S5(8, state=16, blocks=2, dt_max=0.5, gate="gelu"),) * 2
    assert not memory.norm
    assert make_memory("mamba", 8, expand=1).layers == (Mamba(8, expand=1),)


def test_mixed_stacks():
    entries = ["s5.state=16", "gru.max_timescale=9", "lru.state=4"]
    options = options_of("s5*2,gru", entries)
    assert options == {"s5.state": "16", "gru.max_timescale": "9"}
    memory = make_memory("s5*2,gru", 8, layers=2, **options)
    once = (S5(8, state=16), S5(8, state=16), GRU(8, max_timescale=9))
    assert memory.layers == once + once
    x, reset = jnp.zeros((2, 1, 8)), jnp.zeros((2, 1), bool)
    shapes: Any = jax.eval_shape(memory.init, jax.random.key(0), memory.initial_state(1), x, reset)
    assert {f"layers_{i}" for i in range(6)} < {*shapes["params"]}
    assert make_memory("gru*3", 8).layers == make_memory("gru", 8, layers=3).layers


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mambo", {}, "unknown memory 'mambo': did you mean mamba"),
        ("xyz", {}, "unknown memory 'xyz': choose from " + ", ".join(sorted(MEMORIES))),
        ("s5", {"sate": 3}, "memory 's5' has no option 'sate': did you mean state"),
        ("none", {"state": 3}, "memory 'none' has no option 'state': there are none"),
        ("s5", {"state": "many"}, "s5.state = 'many' is not of type int"),
        ("s5", {"state": 8.5}, "s5.state = 8.5 is not of type int"),
        ("s5", {"state": True}, "s5.state = True is not of type int"),
        ("s5", {"spectrum": "flat"}, "s5.spectrum = 'flat': choose from hippo, ptd"),
        ("s5", {"dt_max": float("inf")}, "s5: needs 0 < dt_min"),
        ("s5", {"state": 7}, "s5: state (7) must be a positive multiple of 2 * blocks (2)"),
        ("shm", {"decay_max": 3.0}, "shm: needs size and thetas >= 1 and 0 < decay_max <= 2"),
        ("shm", {"thetas": 0}, "shm: needs"),
        ("s4d", {"state": 7}, "s4d: state (7) must be even and at least 2"),
        ("s4d", {"dt_min": 2.0}, "s4d: needs 0 < dt_min (2.0) < dt_max (1.0)"),
        ("s4d", {"dt_max": float("inf")}, "s4d: needs 0 < dt_min"),
        ("s4d", {"spectrum": "flat"}, "s4d.spectrum = 'flat': choose from legs, inv, lin, real, ptd"),
        ("h3", {"conv": 0}, "h3: conv must be at least 1, got 0"),
        ("h3", {"state": 7}, "h3: state (7) must be even and at least 2"),
        ("attention", {"heads": 3}, "attention: needs window >= 1 and heads that divide width 8"),
        ("attention", {"retrievals": 0}, "attention: needs retrievals >= 1 and a finite beta > 0"),
        (
            "attention",
            {"positions": "rope", "heads": 8},
            "attention: positions=rope needs heads of an even size, not 1",
        ),
        ("gla", {"decay": "fixed", "negative": True}, "gla: negative needs decay=data, not fixed"),
        ("lru", {"r_min": 2.0}, "lru: needs"),
        ("lru", {"kind": "rotrnn", "heads": 3}, "lru: heads=3 must divide state=64"),
        ("lru", {"kind": "rotrnn", "r_max": 1.0}, "lru: kind=rotrnn needs 0 < r_min (0.9) and r_max (1.0) < 1"),
        ("mingru", {"expand": 0}, "mingru: needs"),
        ("gru", {"max_timescale": 0.5}, "gru: max_timescale must be at least 1"),
        ("gru", {"max_timescale": float("nan")}, "gru: max_timescale must be at least 1"),
        ("framestack", {"frames": 0}, "framestack: frames must be at least 1, got 0"),
        ("tcn", {"dilation": 0}, "tcn: needs taps >= 1 and dilation >= 1, got 4 and 0"),
        ("tcn", {"squash": 0.1}, "tcn: squash must be finite, at least 0, and 0 with weights=dense, got 0.1"),
        ("rnn", {"kind": "jordan"}, "rnn.kind = 'jordan': choose from elman, indrnn, leaky, alrnn, reservoir"),
        ("rnn", {"activation": "gelu"}, "rnn.activation = 'gelu': choose from auto, tanh, relu"),
        ("rnn", {"kind": "alrnn", "activation": "tanh"}, "rnn: kind=alrnn has no activation"),
        ("rnn", {"kind": "alrnn", "rectified": 9}, "rnn: rectified must lie in [0, 8], the width, got 9"),
        ("rnn", {"radius": float("nan")}, "rnn: needs max_steps >= 1, a finite max_timescale >= 1 and a finite radius"),
        ("kalman", {"max_timescale": 0.5}, "kalman: max_timescale must be at least 1 and finite, got 0.5"),
        ("lssl", {"train": "dt"}, "lssl: train=dt needs discretisation=bilinear"),
        ("lssl", {"basis": "fout"}, "lssl: basis=fout needs an odd state (a constant and pairs of waves), got 16"),
        ("lssl", {"dt_min": 1.0}, "lssl: needs state >= 1, inputs >= 0 and 0 < dt_min <= dt_max"),
        ("lssl", {"basis": "hermite"}, "lssl.basis = 'hermite': choose from lmu, legt, fout, legs, lagt, companion"),
        ("para", {"limit": 0.0}, "para: needs a finite limit > 0, a finite max_timescale >= 1 and max_iterations >= 1"),
        ("para", {"cell": "rnn"}, "para.cell = 'rnn': choose from gru, lstm"),
        ("mamba", {"conv": 0}, "mamba: needs"),
        ("mamba2", {"head": 5}, "mamba2: heads of 5 channels do not divide 16 channels"),
        ("mamba3", {"head": 5}, "mamba3: heads of 5 channels do not divide 16 channels"),
        ("mamba3", {"state": 6}, "mamba3: turning=half needs a state that is a multiple of 4"),
        ("gla", {"heads": 3}, "gla: heads=3 must divide keys and values of sizes (4, 8)"),
        ("deltanet", {"decay": True}, "deltanet.decay = True: choose from none, head, channel"),
        ("deltanet", {"updates": 0}, "deltanet: needs"),
        ("rwkv7", {"heads": 3}, "rwkv7: heads=3 must divide keys and values of sizes (8, 8)"),
        ("rwkv7", {"rank": 0}, "rwkv7: needs rank >= 1"),
        ("mom", {"top": 1}, "mom: top must lie in [2, memories=4], got 1"),
        ("mom", {"heads": 3}, "mom: heads=3 must divide keys and values of sizes (4, 4)"),
        ("scout", {"every": 0}, "scout: needs every and slots >= 1 and heads that divide width 8"),
        ("scout", {"heads": 8}, "gla: heads=8 must divide keys and values of sizes (4, 8)"),
        ("scout", {"mixer": "s5"}, "scout.mixer = 's5': choose from gla, mamba, mamba2"),
        ("seqboat", {"modes": 0}, "seqboat: needs window and modes >= 1 and heads that divide width 8"),
        ("seqboat", {"max_timescale": 1.0}, "seqboat: max_timescale must be at least 2 and finite, got 1.0"),
        ("seqboat", {"select": 65}, "seqboat: select must lie in [0, window = 64], got 65"),
        ("ttt", {"chunk": 0}, "ttt: needs heads, key, chunk and window >= 1 and hidden >= 0"),
        ("aaren", {"heads": 3}, "aaren: needs heads that divide width 8"),
        ("s5", {"backend": "nope"}, "unknown backend 'nope': choose from auto, reference, xla"),
        ("gla", {"chunk": 3}, "chunk must be a power of 2, got 3"),
        ("gla", {"expand_k": float("inf")}, "gla: expand_k=inf and expand_v=1.0 must be finite"),
        ("s5,mambo", {}, "unknown memory 'mambo': did you mean mamba"),
        ("s5,", {}, "unknown memory ''"),
        ("s5*0", {}, "memory 's5*0': 's5*0' is not of the form memory*layers, such as mamba2*3"),
        ("s5*two,gru", {}, "memory 's5*two,gru': 's5*two' is not of the form memory*layers"),
        ("s5,gru", {"state": 8}, "memory 's5,gru': 'state' is not an option of one of its memories"),
        ("s5,gru", {"lru.state": 8}, "memory 's5,gru': 'lru.state' is not an option of one of its memories"),
        ("s5,gru", {"s5.sate": 8}, "memory 's5' has no option 'sate': did you mean state"),
        ("gru", {"layers": 0}, "memory 'gru': layers (0) and width (8) must be at least 1"),
    ],
)
def test_bad_requests_are_one_clear_line(name, options, message):
    with pytest.raises(BadRequest) as error:
        make_memory(name, 8, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


NUMBERS = [
    (name, option) for name in MEMORIES for option, default in memory_options(name).items() if type(default) is float
]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_numbers_of_options_are_finite(name, option, value):
    with pytest.raises(BadRequest, match=f"{name}: .*{option}"):
        make_memory(name, 8, **{option: value})


OWN_MEMORIES = """
from typing import Literal

import jax.numpy as jnp

from engram.memory import Memory


class Leaky(Memory):
    rate: float = 0.9
    sizes: tuple[int, ...] | None = None
    order: Literal[1, 2] = 1

    def initial_state(self, batch):
        return jnp.zeros((batch, self.width))

    def __call__(self, state, x, reset):
        return state, x


class Broken(Leaky):
    def __call__(self, state, x, reset):
        return state, x + jnp.zeros(self.width + 1)


class NoMemory:
    pass
"""


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """The working directory holds modules of the user's, and an installed package that declares one of them."""
    (tmp_path / "lab" / "nets").mkdir(parents=True)
    (tmp_path / "lab" / "nets" / "leaky.py").write_text(OWN_MEMORIES)
    (tmp_path / "failing.py").write_text("1 / 0")
    (tmp_path / "incomplete.py").write_text("import surely_not_installed")
    about = tmp_path / "lab-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: lab\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[engram.memories]\nlab-leaky = lab.nets.leaky:Leaky\nodd = failing:Odd\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = {*sys.modules}
    invalidate_caches()
    yield monkeypatch
    for name in {*sys.modules} - before:
        del sys.modules[name]
    plugins.entry_points.cache_clear()


OWN = "lab.nets.leaky:Leaky"


def test_a_memory_of_ones_own_is_its_module_and_class(own_modules):
    assert memory_options(OWN) == {"rate": 0.9, "sizes": None, "order": 1}
    entries = ["s5.state=128", f"{OWN}.rate=0.5", f"{OWN}.sizes=(3, 4)", f"{OWN}.order=2"]
    options = options_of(OWN, entries)
    assert options == {"rate": "0.5", "sizes": "(3, 4)", "order": "2"}
    memory, leaky = make_memory(OWN, 8, **options), cast(Any, find_memory(OWN))
    assert memory.layers == (leaky(8, rate=0.5, sizes=(3, 4), order=2),)
    assert options_of("s5", entries) == {"state": "128"}


def test_installed_packages_bring_memories(own_modules):
    own_modules.syspath_prepend(".")
    plugins.entry_points.cache_clear()
    assert find_memory("lab-leaky") is find_memory(OWN)
    assert options_of("lab-leaky", ["lab-leaky.rate=0.5"]) == {"rate": "0.5"}
    with pytest.raises(UnknownName, match="unknown memory 'lab-leeky': did you mean lab-leaky"):
        find_memory("lab-leeky")
    assert find_memory("s5") is S5
    with pytest.raises(ZeroDivisionError):  # nobody imported it before
        find_memory("odd")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Leaky", "unknown memory 'nowhere:Leaky': there is no module 'nowhere' in the working"),
        ("lab.nowhere:Leaky", "unknown memory 'lab.nowhere:Leaky': there is no module 'lab.nowhere'"),
        (":Leaky", "unknown memory ':Leaky': there is no module ''"),
        (".leaky:Leaky", "unknown memory '.leaky:Leaky': there is no module '.leaky'"),
        ("lab.nets.leaky:Leeky", "unknown memory 'lab.nets.leaky:Leeky': module 'lab.nets.leaky' has no 'Leeky'"),
        ("lab.nets.leaky:", "unknown memory 'lab.nets.leaky:': module 'lab.nets.leaky' has no ''"),
        (
            "lab.nets.leaky:NoMemory",
            "memory 'lab.nets.leaky:NoMemory': <class 'lab.nets.leaky.NoMemory'> is no subclass of engram.memory",
        ),
        ("lab.nets.leaky:jnp", "memory 'lab.nets.leaky:jnp': <module"),
    ],
)
def test_what_is_no_memory_is_one_clear_line(own_modules, name, message):
    with pytest.raises(BadRequest) as error:
        make_memory(name, 8)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_module_that_hides_ones_own_is_named(own_modules):
    """Python finds its own `json` before a file of that name in the working directory."""
    with pytest.raises(UnknownName, match=r"module 'json' has no 'Leaky' \(it is .*json.__init__\.py\)"):
        find_memory("json:Leaky")


def test_errors_in_the_users_module_are_not_hidden(own_modules):
    with pytest.raises(ZeroDivisionError):
        find_memory("failing:Leaky")
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        find_memory("incomplete:Leaky")
    with pytest.raises((TypeError, ValueError), match="shapes") as error:  # JAX's, whichever class it has
        make_memory("lab.nets.leaky:Broken", 8, rate=0.5)
    assert not isinstance(error.value, BadRequest)


@pytest.mark.parametrize("entry", ["state=3", "s5.state", "s5", "", "s5:state=3"])
def test_options_have_one_form(entry):
    with pytest.raises(BadRequest, match=r"is not of the form memory\.option=value, such as s5\.state=128"):
        options_of("s5", [entry])


def test_options_of_other_memories_are_checked_too():
    with pytest.raises(UnknownName, match="memory 'gru' has no option 'state'"):
        options_of("s5", ["gru.state=3"])
    with pytest.raises(UnknownName, match="unknown memory 'grü'"):
        options_of("s5", ["grü.state=3"])


def test_unknown_backend_is_reported():
    """A layer of one's own complains at its first use, `make_memory` at once (above)."""
    memory = GRU(8, backend="cuda")
    x, reset = jnp.ones((2, 1, 8)), jnp.ones((2, 1), bool)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        memory.init(jax.random.key(0), memory.initial_state(1), x, reset)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_stack_is_its_formula(norm, residual):
    """Two memoryless layers, by hand."""
    memory = make_memory("none", 4, layers=2, norm=norm, residual=residual)
    x = jax.random.normal(jax.random.key(0), (1, 3, 4))
    state, reset = memory.initial_state(3), jnp.ones((1, 3), bool)
    parameters = jax.jit(memory.init)(jax.random.key(1), state, x, reset)
    after, y = jax.jit(memory.apply)(parameters, state, x, reset)
    truth: Any = x
    for i in range(2):
        p = parameters["params"]
        assert (f"norms_{i}" in p) == norm
        u = (truth - truth.mean(-1, keepdims=True)) / jnp.sqrt(truth.var(-1, keepdims=True) + 1e-6) if norm else truth
        _, out = MEMORIES["none"](4).apply({"params": p[f"layers_{i}"]}, (), u, reset)
        truth = truth + out if residual else out
    assert jnp.allclose(y, truth, atol=1e-5)
    assert after == state == ((), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MEMORIES))
def test_no_memory_takes_two_gigabytes_to_learn(name):
    """One layer of width 128 on 1,024 steps of 64 rows, as the compiler plans it."""
    assert planned(build(name, 128), 1024, 64)[0] < 2e9
