"""`engram train ...` and `python -m engram train ...` are the scripts, wherever one stands."""

import importlib
import sys

from engram import __version__

SCRIPTS = ("train", "evaluate", "plot", "runs", "compare", "sweep", "adapt", "atari100k", "make_dataset", "dream")


def main() -> None:
    """Runs the script that is named first."""
    name, *arguments = sys.argv[1:] or ("--help",)
    if name == "--version":
        print(__version__)
    elif name in SCRIPTS:
        from engram.scripts.command_line import run_script

        sys.argv = [f"engram {name}", *arguments]
        run_script(importlib.import_module(f"engram.scripts.{name}").main)
    else:
        from engram.errors import UnknownName

        print(f"usage: engram {{{','.join(SCRIPTS)}}} ...\n       engram NAME --help\n       engram --version")
        if name not in ("-h", "--help"):
            print(f"error: {UnknownName.among('script', name, SCRIPTS)}", file=sys.stderr)
            sys.exit(UnknownName.exit_code)


if __name__ == "__main__":
    main()
