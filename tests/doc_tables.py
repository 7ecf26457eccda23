"""The tables of the documentation that say what is in the code: presets, modifiers, settings, options of scripts.

    python -m tests.doc_tables            # writes them anew where they differ; a test asks for that

A table stands between the lines `<!-- table: NAME ARGUMENTS -->` and `<!-- end -->`.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import popgym_easy
from engram.agents.ppo.experiment import PPOExperiment
from engram.configs import docstrings, presets
from engram.configs.arguments import metavar, options_of
from engram.configs.presets import PRESETS
from engram.configs.presets.differences import Changes, Kind
from engram.experiments import options
from engram.experiments.match import sizes
from engram.memory import MEMORIES, make_memory, memory_options

ROOT = Path(__file__).resolve().parents[1]
MORE = {
    "env": "[ids](environments.md)",
    "memory": "[names](memory.md)",
    "total_steps": "[what is counted](sharp-bits.md#what-is-counted-how)",
    "ppo.bootstrap_truncated": "[why](sharp-bits.md#truncation-and-waiting)",
    "network.memory_options": "[table](memory.md#options)",
    "mamba.start": "[Why](sharp-bits.md#rates-and-steps-of-mamba).",
    "mamba2.start": "[Why](sharp-bits.md#rates-and-steps-of-mamba).",
    "s5.dt_max": "[Why](sharp-bits.md#how-s5-and-the-lru-begin).",
    "shm.decay_max": "[Why](sharp-bits.md#a-stable-hadamard-memory-can-overflow).",
    **{
        f"{memory}.negative": "[Counting needs them](kernels.md#state-tracking)."
        for memory in ("deltanet", "gla", "mamba2", "mlstm")
    },
}
"""Where to read on, by key."""
BACKEND = "Backend of its scan, see above."
SCRIPTS = {
    "train.py": (options.Output, options.Distributed),
    "evaluate.py": (options.Evaluate,),
    "compare.py": (options.Compare, options.Watch),
    "sweep.py": (options.Sweep,),
    "atari100k.py": (options.Atari100k, options.Watch),
    "dream.py": (options.Dream,),
    "plot.py": (options.Plot,),
    "runs.py": (options.Runs,),
    "adapt.py": (options.Adapt,),
}
TYPES = {"INT": "whole number", "NUMBER": "number", "TEXT": "text", "PATH": "path", "true|false": "switch"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def kind_of(hint: Any) -> str:
    """What a value of this type is called."""
    word = "switch" if hint is bool else metavar(hint) or ""
    single = word.removesuffix(" ...")
    name = TYPES.get(single, single.replace("|", ", "))
    return f"list of {name}s" if word != single and single in TYPES else name


def settings(group: str, *shown: str) -> str:
    """The settings of PPO's experiment at its top (`experiment`) or of a group of any experiment, with the defaults of
    the fields, or with the values of the presets `shown`."""
    top = group == "experiment"
    kinds = [PPOExperiment, *map(type, PRESETS.values())]
    owner = PPOExperiment if top else next(kind for kind in kinds if group in typing.get_type_hints(kind))
    kind = owner if top else typing.get_type_hints(owner)[group]
    texts, hints = docstrings.of_fields(kind), typing.get_type_hints(kind)
    examples = [PRESETS[name] if top else getattr(PRESETS[name], group) for name in shown] or [kind()]
    rows = []
    for f in dataclasses.fields(kind):
        values = [getattr(example, f.name) for example in examples]
        if dataclasses.is_dataclass(values[0]):
            continue
        key = f.name if top else f"{group}.{f.name}"
        meaning = " ".join(filter(None, [texts[f.name], MORE.get(key)]))
        rows.append([code(key), kind_of(hints[f.name]), *map(docstrings.words, values), meaning])
    return table(["key", "type", *(map(code, shown) if shown else ["default"]), "meaning"], rows)


def script(name: str) -> str:
    """The options of a script beside those of an experiment."""
    rows = []
    for kind in SCRIPTS[name]:
        for option in options_of(kind):
            owner, _, leaf = option.field.rpartition(".")
            group = typing.get_type_hints(kind)[owner] if owner else kind
            (f,) = (f for f in dataclasses.fields(group) if f.name == leaf)
            text = docstrings.of_fields(group)[leaf]
            if leaf not in ("run", "runs", "folders"):
                rows.append([code(option.name), "" if "(default:" in text else docstrings.words(f.default), text])
    return table([f"option of `{name}`", "default", "meaning"], rows)


def family(name: str) -> str:
    """The presets of a file of `configs/presets/`."""
    rows = []
    for preset, entry in presets.module_of(name).PRESETS.items():
        made = PRESETS[preset]
        default = " (default)" if preset == presets.DEFAULT else ""
        task = code(made.task)
        rows.append(
            [code(preset) + default, entry.sentence, task, made.label, f"{made.seeds}", f"{made.total_steps:,}"]
        )
    return table(["preset", "what for", "environment or data", "memory or algorithm", "seeds", "steps per seed"], rows)


def shown(changes: Changes) -> str:
    """Values by their keys; `*` stands for three groups or more that share one."""
    lines: dict[str, list[str]] = {}
    for key, value in changes.items():
        group, _, leaf = key.rpartition(".")
        lines.setdefault(f"{leaf}={docstrings.words(value)}", []).append(f"{group}." if group else "")
    texts = [f"*.{line}" if len(groups) > 2 else f"{g}{line}" for line, groups in lines.items() for g in groups]
    return ", ".join(map(code, dict.fromkeys(texts))) or "nothing"


def differences(name: str) -> str:
    """What the presets of a file change, and of what."""
    rows = []
    for preset, entry in presets.module_of(name).PRESETS.items():
        base = "the defaults" if isinstance(entry.base, Kind) else code(entry.base)
        changes = {key: value for key, value in entry.changes.items() if key not in ("env", "eval_env")}
        rows.append([code(preset), base, shown(changes)])
    return table(["preset", "differs from", "in (beside the environments)"], rows)


def modifiers() -> str:
    """All modifiers, by the agent that they are for."""
    rows: dict[str, list[str]] = {}
    for preset in PRESETS:
        kind, _ = presets.trace(preset)
        agent = PRESETS[preset].agent
        for name, difference in kind.modifiers.items():
            rows[f"{agent}+{name}"] = [agent, code(f"+{name}"), difference.sentence, shown(difference.changes)]
    return table(["agent", "modifier", "what for", "values"], rows.values())


WIDTH = 128
"""Width at which memories are compared."""


def sized(count: float) -> str:
    """A count to three digits: 512, 98.3k, 1.2M."""
    for unit, word in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{word}"
    return f"{count:.0f}"


def memories(group: str) -> str:
    """The registered memories of a group: equation, source, and the sizes of one layer."""
    rows = []
    for name, kind in MEMORIES.items():
        if (about := kind.about) is None or about.group != group:
            continue
        layer: Any = make_memory(name, WIDTH, norm=False, residual=False)
        found = sizes(layer)
        rows.append(
            [
                code(name),
                code(about.equation),
                f"[{about.source}]({about.home})" if about.home else about.source,
                sized(found.state),
                sized(found.params),
                sized(found.flops),
            ]
        )
    return table(["memory", "what it computes", "source", "state, bytes", "parameters", "operations a step"], rows)


def memory_settings() -> str:
    """The options of the registered memories."""
    rows = []
    for name, kind in MEMORIES.items():
        texts, options = docstrings.of_fields(kind), memory_options(name)
        own_first = sorted(options.items(), key=lambda item: item[0] not in vars(kind)["__annotations__"])
        for i, (option, default) in enumerate(own_first):
            meaning = [BACKEND if option == "backend" else texts[option], MORE.get(f"{name}.{option}")]
            shown = str(default).lower() if isinstance(default, bool) else docstrings.words(default)
            rows.append(["" if i else code(name), code(option), shown, " ".join(filter(None, meaning))])
        if not options:
            rows.append([code(name), "", "", "no options"])
    return table(["memory", "option", "default", "meaning"], rows)


def popgym_of_memories() -> str:
    """What each memory came to on two tasks of POPGym."""
    return popgym_easy.table(popgym_easy.read())


TABLES: dict[str, Callable[..., str]] = {
    "settings": settings,
    "script": script,
    "family": family,
    "differences": differences,
    "modifiers": modifiers,
    "memories": memories,
    "memory_settings": memory_settings,
    "popgym_easy": popgym_of_memories,
}


def rendered(text: str) -> str:
    """A page with all its tables as they should be."""

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return f"<!-- table: {match[1]} -->\n{TABLES[name](*arguments)}\n<!-- end -->"

    return re.sub(r"<!-- table: ([^>]*) -->\n(?:.*?\n)??<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> None:
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        if (new := rendered(text)) != text:
            page.write_text(new)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
