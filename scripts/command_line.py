"""What the scripts share: from words on a command line to an experiment, from an error to an exit code."""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from engram.agents.common.experiment import Experiment
from engram.configs import presets, sources
from engram.configs.arguments import parse as parse_arguments
from engram.configs.arguments import show_help
from engram.errors import BadRequest, EngramError, Interrupted
from engram.kernels.cache import keep_compiled_programs
from engram.kernels.malloc import keep_freed_memory, no_search_for_garbage
from engram.training.folder import DISK_FULL, FILE_TROUBLE
from engram.training.stderr import notify, open_what_is_closed


def run_script(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a script's `main(arguments)`: errors of ours become one line on stderr and their exit code, others show
    their traceback."""
    open_what_is_closed()
    keep_freed_memory()
    keep_compiled_programs()
    try:
        code = main(sys.argv[1:])
    except EngramError as error:
        notify(str(error) if isinstance(error, Interrupted) else f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        notify("interrupted")
        code = Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        if error.errno in DISK_FULL:
            notify(f"error: cannot write{where}: {error.strerror}; what was written before is intact")
        elif where and error.errno in FILE_TROUBLE:
            notify(f"error:{where}: {error.strerror}")
        else:
            raise
        code = BadRequest.exit_code
    sys.exit(code)


def experiment_named(arguments: Sequence[str], default: str = presets.DEFAULT) -> tuple[str, Experiment, list[str]]:
    """The preset or file named first (or `default`), with the values of each `--config FILE` on top: its name, its
    experiment, and the other arguments.

    Raises:
        UnknownName: there is no preset of that name.
        BadRequest: a file describes no experiment.
    """
    rest, files = list(arguments), []
    named = rest.pop(0) if rest and (not rest[0].startswith("-") or rest[0] == sources.STDIN) else None
    for place in reversed([i for i, word in enumerate(rest) if word.partition("=")[0] == "--config"]):
        option, given, file = rest.pop(place).partition("=")
        if not given and (place == len(rest) or rest[place].startswith("--")):
            raise BadRequest(f"{option} needs a YAML file")
        files.insert(0, file if given else rest.pop(place))
    if named is None:
        named = files.pop(0) if files else default
    with no_search_for_garbage():  # imports JAX
        name, experiment = sources.find(named)
    gc.freeze()  # modules stay
    for file in files:
        experiment = sources.overlay(experiment, file)
    return name, experiment, rest


def help_if_asked(parts: Sequence[Any], arguments: Sequence[str], prog: str, description: str) -> None:
    """Shows the options of the parts and ends the program, where `arguments` ask for that."""
    if {"-h", "--help"} & {*arguments}:
        show_help(parts, prog, description)


def parse(parts: Sequence[Any], arguments: Sequence[str], prog: str, description: str) -> list[Any]:
    """The parts (dataclasses, or instances with defaults) with the values of the command line, or help.

    Raises:
        BadRequest: see `engram.configs.arguments.parse`.
    """
    help_if_asked(parts, arguments, prog, description)
    return parse_arguments(parts, arguments)


def about(preset: str, experiment: Experiment) -> str:
    """What `--help` says on the experiment whose options it shows."""
    what = presets.sentence(preset) if preset in presets.PRESETS else experiment.__doc__
    return f"Shown are the values of {preset or 'the file'}: {what}"
