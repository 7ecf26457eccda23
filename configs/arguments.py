"""From the words on a command line to dataclasses: `--ppo.learning-rate 1e-3` is the field `ppo.learning_rate`.

The words mean what they mean in files and in Python (`engram.configs.store.convert`). The help is tyro's.
"""

import dataclasses
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from engram.configs import docstrings, spelling, store
from engram.errors import BadRequest

T = TypeVar("T")
POSITIONAL = "positional"
Positional = Annotated[T, POSITIONAL]
"""Type of fields whose values stand without an option before them: `Positional[Path]`."""


@dataclass(frozen=True)
class Option:
    """One option: the field that it sets."""

    part: int
    """Number of the part that the field is in."""
    field: str
    """Dotted name of the field."""
    kind: Any
    """Type of the field."""
    positional: bool = False
    """Whether words without an option before them are its value."""
    head: bool = False
    """Whether the name of its group sets it."""

    @property
    def name(self) -> str:
        """The option as it is typed."""
        name = (self.field.rpartition(".")[0] if self.head else self.field).replace("_", "-")
        return name.upper() if self.positional else f"--{name}"

    @property
    def inner(self) -> Any:
        """Type of the field where it is set."""
        if typing.get_origin(self.kind) in (typing.Union, types.UnionType):
            return next(kind for kind in typing.get_args(self.kind) if kind is not type(None))
        return self.kind

    @property
    def is_switch(self) -> bool:
        return self.inner is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.inner) is tuple


def options_of(part: Any, number: int = 0, prefix: str = "") -> list[Option]:
    """The options that set the fields of a dataclass, or of an instance of one, those of its groups within."""
    kind = part if isinstance(part, type) else type(part)
    hints = typing.get_type_hints(kind, include_extras=True)
    options = []
    for f in dataclasses.fields(kind):
        hint, marks = hints[f.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            options += options_of(hint if part is kind else getattr(part, f.name), number, f"{prefix}{f.name}.")
        else:
            options.append(Option(number, prefix + f.name, hint, POSITIONAL in marks, store.HEAD in marks))
    return options


def parse(parts: Sequence[Any], arguments: Sequence[str]) -> list[Any]:
    """The parts with the values that `arguments` give.

    Args:
        parts: dataclasses, or instances of them, whose values are the defaults. An option of one part hides those of
            the same name in later ones.

    Raises:
        UnknownName: there is no such option; the message offers what may be meant.
        BadRequest: a value that an option cannot have, or words that belong to none.
    """
    options: dict[str, Option] = {}
    for number, part in enumerate(parts):
        for option in options_of(part, number):
            options.setdefault(option.name, option)
    places = [option for option in options.values() if option.positional]
    changes: list[dict[str, Any]] = [{} for _ in parts]
    loose: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            loose.append(word)
            continue
        typed, given, value = word.partition("=")
        option, negated = resolve(typed, options)
        if negated and given:
            raise BadRequest(f"{typed} takes no value, got {value!r}")
        taken = ["false"] if negated else [value] if given else take(option, words)
        changes[option.part][option.field] = read(option, taken)
    for option in places:
        if option.is_list:
            taken, loose = loose, []
        else:
            taken, loose = loose[:1], loose[1:]
        if taken:
            changes[option.part][option.field] = read(option, taken)
    if loose:
        raise BadRequest(f"{loose[0]!r} belongs to no option")
    for option in options.values():
        if option.field not in changes[option.part] and lacks_default(parts[option.part], option.field):
            raise BadRequest(f"{option.name} is missing: see --help")
    return [
        store.build(part, store.nest(values)) if isinstance(part, type) else store.override(part, values)
        for part, values in zip(parts, changes, strict=True)
    ]


def given(arguments: Sequence[str]) -> set[str]:
    """The fields that are named on a command line."""
    return {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}


def resolve(typed: str, options: dict[str, Option]) -> tuple[Option, bool]:
    """The option that was typed, and whether as its opposite (`--no-resume`). Raises UnknownName."""
    name = typed.replace("_", "-")
    if name in options:
        return options[name], False
    group, dot, last = name.removeprefix("--").rpartition(".")
    positive = f"--{group}{dot}{last.removeprefix('no-')}"
    if last.startswith("no-") and positive in options and options[positive].is_switch:
        return options[positive], True
    raise spelling.unknown("option", typed, [o.name for o in options.values() if not o.positional])


def take(option: Option, words: list[str]) -> list[str]:
    """The words that follow an option and belong to it, which are taken away from `words`."""
    count = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    if option.is_switch:
        known = {*store.WORDS, *store.NOTHING}
        count = min(count, 1) if words and words[0].lower() in known else 0
    elif not option.is_list:
        count = min(count, 1)
    taken, words[:] = words[:count], words[count:]
    return taken


def read(option: Option, words: list[str]) -> Any:
    """The value that the words after an option stand for. Raises BadRequest."""
    if option.is_switch and not words:
        return True
    may_be_nothing = option.kind is not option.inner and len(words) == 1 and words[0].lower() in store.NOTHING
    if option.is_list and not may_be_nothing:
        return store.convert(option.kind, words, option.name)
    if not words:
        raise BadRequest(f"{option.name} needs a value")
    return store.convert(option.kind, words[0], option.name)


def lacks_default(part: Any, name: str) -> bool:
    """Whether the field of a part must be given."""
    fields = {f.name: f for f in dataclasses.fields(part)}
    f = fields.get(name)
    return (
        isinstance(part, type)
        and f is not None
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )


def show_help(parts: Sequence[Any], prog: str, description: str) -> None:
    """Prints what the options of the parts do, with their defaults, and ends the program."""
    import tyro  # here and below, as only who asks for help waits for it

    fields = [(f"part{number}", _shown(part, name="")) for number, part in enumerate(parts)]
    whole = dataclasses.make_dataclass("Options", fields)
    columns = min(shutil.get_terminal_size().columns, 120)
    lines = []
    for paragraph in description.strip().split("\n\n"):
        is_code = paragraph.startswith(" ")
        # tyro joins lines that begin with a letter.
        text = paragraph if is_code else textwrap.indent(textwrap.fill(" ".join(paragraph.split()), columns - 1), " ")
        lines.append(text.rstrip())
    tyro.cli(whole, args=["--help"], prog=prog, description="\n".join(lines))


def _shown(part: Any, group: str = "", **about: Any) -> Any:
    """A type that tyro shows as the fields of `part`, a `group` of another one, with their docstrings and defaults."""
    import tyro

    kind = part if isinstance(part, type) else type(part)
    texts, hints = docstrings.of_fields(kind), typing.get_type_hints(kind, include_extras=True)
    head = store.head_of(kind)
    fields: list[tuple[str, Any, Any]] = []
    for f in dataclasses.fields(kind):
        lacking = lacks_default(part, f.name)
        value = f.default if isinstance(part, type) else getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            fields.append((f.name, _shown(value, f.name, help=texts[f.name]), dataclasses.field()))
            continue
        said = lacking or "(default:" in texts[f.name] or value == ""
        shown = "" if said else f"(default: {docstrings.words(value)})"
        short: dict[str, Any] = {"name": group, "prefix_name": False} if f.name == head else {}
        arg = tyro.conf.arg(help=texts[f.name], help_behavior_hint=shown, metavar=metavar(hints[f.name]), **short)
        default = dataclasses.field() if lacking else dataclasses.field(default=value)
        hint = hints[f.name]
        if POSITIONAL in getattr(hint, "__metadata__", ()):
            hint = tyro.conf.Positional[hint.__origin__]
        fields.append((f.name, Annotated[hint, arg], default))
    mirror = dataclasses.make_dataclass(kind.__name__, fields, namespace={"__doc__": kind.__doc__}, kw_only=True)
    return Annotated[mirror, tyro.conf.arg(**about)]


def metavar(kind: Any) -> str | None:
    """What help shows for a value of this type (None: the type alone says it)."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    option = Option(0, "", kind)
    if kind is bool:
        return None
    if option.is_switch:
        return "true|false"
    if option.is_list:
        return f"{metavar(typing.get_args(option.inner)[0])} ..."
    if typing.get_origin(option.inner) is typing.Literal:
        return "|".join(map(str, typing.get_args(option.inner)))
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(option.inner, option.inner.__name__.upper())
