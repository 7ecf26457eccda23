"""Command lines: which words set which values, what is refused in one line, and what the help says."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from engram.configs import arguments, docstrings, spelling
from engram.configs.arguments import Positional
from engram.configs.presets import PRESETS
from engram.errors import BadRequest, UnknownName
from engram.experiments import options


@dataclass(frozen=True)
class Group:
    """A group."""

    learning_rate: float = 0.5
    """Size of a step."""
    sizes: tuple[int, ...] = (3, 4)
    """Sizes of layers."""
    normalise: bool = False
    """Normalisation of something
    in two lines."""


@dataclass(frozen=True)
class Settings:
    """Settings of each kind."""

    run: Positional[Path]
    """Folder."""
    more: Positional[tuple[Path, ...]] = ()
    """Other folders."""
    steps: int = 1
    """Number of steps (default: as few as possible)."""
    greedy: bool | None = None
    """Greedy actions."""
    kind: Literal["on", "off", "some"] = "on"
    """Kind of it."""
    limit: float | None = 1.0
    """Limit of it."""
    words: tuple[str, ...] | None = None
    """Words of any number."""
    quiet: bool = True
    """Silence."""
    group: Group = Group()
    """Values that belong together."""


def read(*words: str) -> Any:
    return arguments.parse([Settings], words)[0]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--steps 1e6", "steps", 1_000_000),
        ("--steps 1_000_000", "steps", 1_000_000),
        ("--steps=7", "steps", 7),
        ("--steps -3", "steps", -3),
        ("--steps 2 --steps 3", "steps", 3),
        ("--limit 1e-3", "limit", 1e-3),
        ("--limit none", "limit", None),
        ("--limit -.5", "limit", -0.5),
        ("--kind off", "kind", "off"),
        ("--words", "words", ()),
        ("--words a b", "words", ("a", "b")),
        ("--words None", "words", None),
        ("--words=a=b", "words", ("a=b",)),
        ("--group.learning-rate 1e-3", "group.learning_rate", 1e-3),
        ("--group.learning_rate 1", "group.learning_rate", 1.0),
        ("--group.sizes 1e2 -2", "group.sizes", (100, -2)),
        ("--group.sizes", "group.sizes", ()),
        ("--group.sizes none", "group.sizes", ()),
        *((f"--greedy {word}", "greedy", True) for word in ("true", "yes", "on", "1", "True", "ON")),
        *((f"--greedy {word}", "greedy", False) for word in ("false", "no", "off", "0", "False")),
        ("--greedy", "greedy", True),
        ("--no-greedy", "greedy", False),
        ("--greedy=off", "greedy", False),
        ("--greedy none", "greedy", None),
        ("--no-quiet", "quiet", False),
        ("--quiet off", "quiet", False),
        ("--quiet", "quiet", True),
        ("--group.normalise", "group.normalise", True),
        ("--group.normalise yes", "group.normalise", True),
        ("--group.no-normalise", "group.normalise", False),
        ("--group.normalise --steps 2", "group.normalise", True),
    ],
)
def test_words_are_values(words, field, value):
    made = read("here", *words.split())
    group, _, leaf = field.rpartition(".")
    found = getattr(made.group if group else made, leaf)
    assert found == value
    assert type(found) is type(value)


def test_words_without_an_option_are_places():
    assert read("a").run == Path("a")
    made = read("--quiet", "a", "--steps", "3", "b", "c")
    assert (made.run, made.more, made.steps) == (Path("a"), (Path("b"), Path("c")), 3)
    assert read("--greedy", "a").run == Path("a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "RUN is missing"),
        ("a --steps", "--steps needs a value"),
        ("a --steps --quiet", "--steps needs a value"),
        ("a --steps many", "--steps must be a whole number, got 'many'"),
        ("a --steps 2.5", "--steps must be a whole number"),
        ("a --group.learning-rate x", "--group.learning-rate must be a number, got 'x'"),
        ("a --group.sizes 3 x", r"--group.sizes\[1\] must be a whole number"),
        ("a --kind somme", "unknown value of --kind 'somme': did you mean some"),
        ("a --quiet=perhaps", "--quiet must be true or false, got 'perhaps'"),
        ("a --no-quiet=true", "--no-quiet takes no value"),
        ("a --no-steps", "unknown option '--no-steps'"),
        ("a --lr 3", "unknown option '--lr': did you mean --group.learning-rate"),
        ("a --sizes 3", "unknown option '--sizes': did you mean --group.sizes"),
        ("a --grup.sizes 3", "did you mean --group.sizes"),
        ("a --stops 3", "did you mean --steps"),
    ],
)
def test_what_is_wrong_is_one_line(words, message):
    with pytest.raises(BadRequest, match=message) as error:
        read(*words.split())
    assert "\n" not in str(error.value)


def test_words_that_belong_nowhere_are_refused():
    with pytest.raises(BadRequest, match="'3' belongs to no option"):
        arguments.parse([Group()], ["--normalise", "3"])


def test_an_option_belongs_to_the_first_part_that_has_it():
    compare, output, experiment = arguments.parse(
        [options.Compare(), options.Output(), PRESETS["debug"]],
        ["--seeds", "9", "--out", "there", "--seed", "4", "--quiet", "--memories", "gru"],
    )
    assert (compare.seeds, compare.out, compare.memories) == (9, Path("there"), ("gru",))
    assert (output.out, output.quiet) == (None, True)
    assert (experiment.seeds, experiment.seed) == (1, 4)


def test_fields_that_are_named():
    assert arguments.given(["x", "--eval-env", "--memory=gru"]) == {"eval_env", "memory"}


# --------------------------------------------------------------------------------------------------- what is meant

WORDS_OF_OTHERS = {
    "popgym-fast": {
        "lr": "ppo.learning-rate",
        "gamma": "ppo.discount",
        "num-envs": "ppo.num-envs",
        "n_steps": "ppo.num-steps",
        "ent-coef": "ppo.entropy",
        "vf_coef": "ppo.value-coefficient",
        "clip-range": "ppo.clip",
        "update-epochs": "ppo.epochs",
        "num-minibatches": "ppo.minibatches",
        "total-timesteps": "total-steps",
        "hidden-size": "network.width",
        "num-layers": "network.layers",
        "env-id": "env",
        "rnn": "memory",
        "normalize": "observation.normalise",
        "track": "wandb",
        "ppo.learning-rat": "ppo.learning-rate",
        "learning-rate": "ppo.learning-rate",
    },
    "drama-catch": {"lr": "drama.world-learning-rate", "buffer-size": "drama.replay", "lambda": "drama.return-lambda"},
    "dm": {"lr": "sequence.learning-rate", "wd": "sequence.weight-decay", "mixer.hidden-size": "mixer.width"},
    "offline": {"iql.lr": "iql.learning-rate", "cql.tau": "cql.target-rate", "gradient-steps": "total-steps"},
    "neucb": {"lr": "neucb.learning-rate", "algo": "algorithm"},
}


@pytest.mark.parametrize(
    ("preset", "typed", "meant"), [(p, t, m) for p, words in WORDS_OF_OTHERS.items() for t, m in words.items()]
)
def test_words_of_other_libraries_are_understood(preset, typed, meant):
    with pytest.raises(UnknownName) as error:
        arguments.parse([options.Output(), PRESETS[preset]], [f"--{typed}", "1"])
    offered = re.findall(r"--[\w.-]+", str(error.value).partition("did you mean")[2])
    assert offered[0] == f"--{meant}"


def test_other_words_stand_for_names_that_exist():
    """Left in the table are names of settings; a rename that forgets the table is noticed."""
    names = set()
    for name in PRESETS:
        names |= {o.field.rpartition(".")[2] for o in arguments.options_of(PRESETS[name])}
    for kind in (options.Output, options.Evaluate, options.Compare, options.Atari100k, options.Adapt):
        names |= {o.field for o in arguments.options_of(kind)}
    assert {here for here, *_ in spelling.SAME} <= names
    assert len({here for here, *_ in spelling.SAME}) == len(spelling.SAME)


# ------------------------------------------------------------------------------------------------------------- help


def test_help_is_readable_on_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ending:
        arguments.show_help([Settings], "some.py", "A sentence that is longer than a line. " * 3 + "\n\n    some code")
    assert not ending.value.code
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\n    some code\n" in shown
    plain = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert "usage: some.py" in plain
    assert "--steps INT Number of steps (default: as few as possible)." in plain
    assert plain.count("as few as possible") == 1
    assert "--limit NUMBER Limit of it. (default: 1)" in plain
    assert "--greedy true|false Greedy actions. (default: none)" in plain
    assert "--kind on|off|some" in plain
    assert "--group.sizes INT ... Sizes of layers. (default: 3 4)" in plain
    assert "--group.normalise, --group.no-normalise Normalisation of something in two lines. (default: off)" in plain
    assert "Values that belong together." in plain


def all_settings() -> list[type]:
    """Every dataclass whose fields are options."""
    kinds = {type(PRESETS[name]) for name in PRESETS}
    groups = {type(v) for name in PRESETS for v in vars(PRESETS[name]).values() if dataclasses.is_dataclass(v)}
    ours = {kind for kind in vars(options).values() if isinstance(kind, type) and kind.__module__ == options.__name__}
    return sorted(kinds | groups | ours, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", all_settings(), ids=lambda kind: kind.__name__)
def test_every_option_says_what_it_is(kind):
    """Each docstring reads alone: it begins with a capital letter or a name, not with `Of`, and ends with a stop."""
    for name, text in docstrings.of_fields(kind).items():
        assert text, name
        assert text[-1] in ".)", (name, text)
        assert not re.match(r"(Of|Whether|How|What|When|Which|Take|Show|Add|Keep|Cut)\b", text), (name, text)
