"""Configurations as files: from an experiment to the mapping of a `config.yaml` and back."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from engram.agents.common.experiment import Experiment
from engram.configs import spelling
from engram.configs.migrations import SCHEMA, migrate
from engram.errors import BadRequest, UnknownName
from engram.training.yaml_files import read_yaml, shown

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""Words for booleans, in files, in options of memories and on the command line alike."""

NOTHING = ("none", "null")
"""Words for a value that is not set, where there may be none."""

T = TypeVar("T")
HEAD = "head"
Head = Annotated[T, HEAD]
"""Type of the field of a group that is set by the name of the group: `--launcher slurm` is `launcher.name`."""


def to_dict(config: Experiment) -> dict[str, Any]:
    """`config` in plain YAML types."""
    return plain(dataclasses.asdict(config))


def plain(value: Any) -> Any:
    """A value in plain YAML types: tuples as lists."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def describe(preset: str, config: Experiment) -> dict[str, Any]:
    """What `config.yaml` of a run holds."""
    return {"schema": SCHEMA, "preset": preset, "agent": config.agent, **to_dict(config)}


def from_dict(values: dict[str, Any], where: str = "config.yaml") -> Experiment:
    """The experiment of a mapping such as `describe` makes, of this version or an earlier one.

    Fields that are missing have their defaults.

    Raises:
        BadRequest: unknown keys, or values of the wrong kind.
    """
    values = _current(values, where)
    agent = values.pop("agent", None)
    if agent is None:
        raise BadRequest(f"{where} does not say what it begins from: `preset: NAME`, or `agent: NAME` for its defaults")
    if not isinstance(agent, str):
        raise BadRequest(f"{where} does not describe an experiment: agent must be text, got {shown(agent)}")
    from engram.agents import registry  # with JAX, which a list of presets does without

    spec = registry.find(agent)
    try:
        return build(spec.experiment, nest(values))
    except BadRequest as error:
        raise BadRequest(f"{where} does not describe an experiment: {error}") from None


def change(config: Experiment, values: dict[str, Any], where: str) -> Experiment:
    """`config` with the values of a mapping such as `describe` makes, which may hold some fields only.

    Raises:
        BadRequest: it is of another agent, has unknown keys, or values of the wrong kind.
    """
    values = _current(values, where)
    agent = values.pop("agent", config.agent)
    if agent != config.agent:
        raise BadRequest(f"{where} is of the agent {agent}, and the preset of {config.agent}")
    try:
        return override(config, values)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from None


def _current(values: dict[str, Any], where: str) -> dict[str, Any]:
    """`values` in the form of this version, without version and preset."""
    version = values.get("schema", SCHEMA)
    if type(version) is not int or not 1 <= version <= SCHEMA:
        raise BadRequest(f"{where} has schema version {shown(version)}; this version of Engram reads up to {SCHEMA}")
    values = migrate(values)
    return {key: value for key, value in values.items() if key not in ("schema", "preset")}


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """What `describe` made in an earlier version, as it would be made now. Raises BadRequest as `from_dict`."""
    return describe(preset_of(values, "config.yaml"), from_dict(values))


def preset_of(values: dict[str, Any], where: str) -> str:
    """Name of the preset that a configuration began from, empty where it says none. Raises BadRequest."""
    preset = values.get("preset") or ""
    if not isinstance(preset, str):
        raise BadRequest(f"{where}: preset must be text, got {shown(preset)}")
    return preset


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadRequest: it cannot be read, or holds no mapping.
    """
    try:
        return read_yaml(path)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None


def override(config: Any, changes: dict[str, Any]) -> Any:
    """`config`, an experiment or other settings, with other values: by field (`seeds`), dotted field (`ppo.num_envs`)
    or mapping of a group.

    Raises:
        UnknownName: there is no such field; the message offers close matches.
        BadRequest: a value of the wrong kind, or one that the settings refuse.
    """
    return _override(config, nest({name.replace("__", "."): value for name, value in changes.items()}), "", config)


def nest(changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` with dotted names (`ppo.num_envs`) gathered in mappings of their groups."""
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if dot:
            value = {rest: value}
        nested[head] = nested[head] | value if isinstance(nested.get(head), dict) and isinstance(value, dict) else value
    return nested


def dotted(changes: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all fields that `changes` are of, as `override` takes them."""
    names = set()
    for name, value in changes.items():
        name = prefix + name.replace("__", ".")
        names |= dotted(value, f"{name}.") if isinstance(value, dict) else {name}
    return names


def field_names(settings: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields of `settings`, those of groups within."""
    names = []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        inner = field_names(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name]
        names += inner
    return names


def _override(settings: Any, changes: dict[str, Any], prefix: str, whole: Any) -> Any:
    hints = typing.get_type_hints(type(settings))
    fields = {f.name for f in dataclasses.fields(settings)}
    values = {}
    for name, value in changes.items():
        if name not in fields:
            raise spelling.unknown("setting", f"{prefix}{name}", field_names(whole))
        current = getattr(settings, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            values[name] = _override(current, nest(value), f"{prefix}{name}.", whole)
        else:
            values[name] = convert(hints[name], value, f"{prefix}{name}")
    return dataclasses.replace(settings, **values)


def build(kind: type, values: Any, prefix: str = "") -> Any:
    """The dataclass `kind` from a mapping of its fields; those missing have their defaults.

    Raises:
        BadRequest: unknown or missing fields, or values of the wrong kind.
    """
    if not isinstance(values, dict):
        raise BadRequest(f"{prefix.rstrip('.') or kind.__name__} is not a mapping")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise spelling.unknown("key", f"{prefix}{name}", [f"{prefix}{field}" for field in fields])
    needed = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
    ]
    if needed:
        raise BadRequest(f"missing: {', '.join(prefix + name for name in needed)}")
    return kind(**{name: convert(hints[name], value, f"{prefix}{name}") for name, value in values.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind` of the field `where`: 1e6 is an integer, "1e-3" a number, "on" a boolean.

    Raises:
        BadRequest: it is nothing of this type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        head = head_of(kind)
        if head is not None and isinstance(value, str):
            value = {head: value}
        return value if isinstance(value, typing.cast(Any, kind)) else build(typing.cast(Any, kind), value, f"{where}.")
    if origin is typing.Annotated:
        return convert(arguments[0], value, where)
    if origin is typing.Literal:
        if isinstance(value, bool):  # YAML reads the words true and off as booleans
            value = next((word for word in arguments if WORDS.get(word) is value), value)
        if value not in arguments:
            raise UnknownName.among(f"value of {where}", str(value)[:80], [str(a) for a in arguments])
        return value
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and (value is None or str(value).lower() in NOTHING):
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return convert(option, value, where)
            except BadRequest:
                continue
        return convert(options[-1], value, where)
    if origin is tuple:
        if arguments in ((int, ...), (float, ...)) and says_nothing(value):
            return ()  # as help and tables show it
        if not isinstance(value, list | tuple):
            raise BadRequest(f"{where} must be a list, got {shown(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise BadRequest(f"{where} must have {len(kinds)} entries, got {len(value)}")
        return tuple(convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    return _scalar(kind, value, where)


def head_of(kind: Any) -> str | None:
    """The field of a group that the name of the group sets, if there is one."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return next((name for name, hint in hints.items() if HEAD in getattr(hint, "__metadata__", ())), None)


def says_nothing(value: Any) -> bool:
    """Whether a value, or the one word of a list, is a word for nothing."""
    word = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    return word is None or (isinstance(word, str) and word.lower() in NOTHING)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    wrong = BadRequest(f"{where} must be {words.get(kind, getattr(kind, '__name__', kind))}, got {shown(value)}")
    if kind is bool:
        value = WORDS.get(value.lower(), value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise wrong
        return number(kind, str(value), wrong)
    if kind is str or kind is Path:
        if not isinstance(value, str | Path):
            raise wrong
        return kind(value)
    return value


def number(kind: type, text: str, wrong: BadRequest) -> Any:
    """`text` as an int or a float; whole numbers may be written 1e6 or 1_000_000. Raises `wrong` for anything else."""
    try:
        return kind(text)
    except ValueError:
        pass
    try:
        real = float(text)
    except ValueError:
        raise wrong from None
    if kind is int and not real.is_integer():
        raise wrong
    return kind(real)
