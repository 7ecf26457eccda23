"""What the scripts share: from words on a command line to an experiment, from an error to an exit code."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro
import yaml

from engram.agents.common.experiment import Experiment
from engram.configs import store
from engram.configs.presets import DEFAULT, PRESETS
from engram.errors import BadRequest, EngramError, Interrupted, UnknownName
from engram.experiments.train import Output
from engram.kernels.cache import keep_compiled_programs
from engram.kernels.malloc import keep_freed_memory
from engram.training.folder import DISK_FULL, FILE_TROUBLE


def run_script(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a script's `main(arguments)`: errors of ours become one line on stderr and their exit code, others show
    their traceback."""
    keep_freed_memory()
    keep_compiled_programs()
    try:
        code = main(sys.argv[1:])
    except EngramError as error:
        print(str(error) if isinstance(error, Interrupted) else f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        if error.errno in DISK_FULL:
            print(f"error: cannot write{where}: {error.strerror}; what was written before is intact", file=sys.stderr)
        elif where and error.errno in FILE_TROUBLE:
            print(f"error:{where}: {error.strerror}", file=sys.stderr)
        else:
            raise
        code = BadRequest.exit_code
    sys.exit(code)


def experiment_named(arguments: Sequence[str], default: str = DEFAULT) -> tuple[str, Experiment, list[str]]:
    """The preset or file named first (or `default`): its name, its experiment, and the other arguments.

    Raises:
        UnknownName: there is no preset of that name.
        BadRequest: the file describes no experiment.
    """
    if not arguments or arguments[0].startswith("--") or arguments[0] == "-h":
        return default, PRESETS[default], list(arguments)
    name, rest = arguments[0], list(arguments[1:])
    if name == "-":
        values = yaml.safe_load(sys.stdin)
        return values.get("preset", ""), store.from_dict(values, "the standard input"), rest
    if name.endswith((".yaml", ".yml")):
        values = store.read(Path(name))
        return values.get("preset", ""), store.from_dict(values, name), rest
    if name not in PRESETS:
        raise UnknownName.among("preset", name, PRESETS, cutoff=0.4)
    return name, PRESETS[name], rest


def parse(options: Any, default: Any, arguments: Sequence[str], prog: str, description: str) -> Any:
    """`options`, filled from the command line over `default`."""
    return tyro.cli(options, default=default, args=list(arguments), prog=prog, description=description)


def output_of(options: Any) -> Output:
    """Where a run goes and what it shows, of the options of a script that trains."""
    return Output(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Output)})


def parse_both(options: type, arguments: Sequence[str], prog: str, description: str) -> tuple[Any, list[str]]:
    """`options` of a script and the arguments that are not its own."""
    return tyro.cli(options, args=list(arguments), prog=prog, description=description, return_unknown_args=True)
