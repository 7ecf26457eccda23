"""What a person waits for: from a command to its first line of metrics, in seconds and CPU-seconds of all processes.

    python -m benchmarks.wait popgym-fast --total-steps 60000
    python -m benchmarks.wait popgym-fast --total-steps 60000 --against ../older-checkout --repeats 5
    python -m benchmarks.wait --program "python cartpole_ppo.py" --until "return 475"

Each round starts every contender once with an empty cache of programs (cold) and once with what that left (warm), one
after the other, so that whatever else the machine does meets all of them alike. The C++ kernels are built before, as
`make setup` does, unless `--with-kernels` counts them too. A contender is this checkout, the checkouts `--against`, and
programs given whole, which end where a line of their output matches `--until`. `--until end` waits for the end of runs.
"""

import argparse
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_LINE = r"steps  return"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Contender:
    """A command, and what was measured of it."""

    name: str
    command: list[str]
    environment: dict[str, str]
    trains: bool
    """Whether it is a training, which is given a run folder."""
    measured: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    """Seconds, CPU-seconds and largest resident megabytes of every start, by state of the cache."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def peak_megabytes(pid: int) -> float:
    """Largest resident size of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")


def start(contender: Contender, until: str, cache: Path) -> tuple[float, float, float]:
    """Runs the command until a line matches; returns seconds, CPU-seconds and megabytes up to there."""
    # An empty PYTHONDONTWRITEBYTECODE lets Python keep what it compiled of our sources, as it does for most people.
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
    began = time.perf_counter()
    process = subprocess.Popen(
        contender.command,
        env={**os.environ, **contender.environment, **cached},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    measured = None
    for line in process.stdout:
        lines.append(line)
        if until != "end" and re.search(until, line):
            measured = time.perf_counter() - began, cpu_seconds(process.pid), peak_megabytes(process.pid)
            break
    if measured is None:
        _, status, used = os.wait4(process.pid, 0)
        measured = time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        if until != "end" or status:
            raise SystemExit(f"{contender.name}: no line matched {until!r}:\n{''.join(lines[-20:])}")
        return measured
    # Politely: a training first keeps what it still compiles, which the next start finds.
    os.killpg(process.pid, signal.SIGTERM)
    process.stdout.read()
    process.wait()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other checkouts, with this environment")
    parser.add_argument("--program", nargs="*", default=[], help="whole commands to compare with")
    parser.add_argument("--until", default=FIRST_LINE, help="pattern of the line at which the clock stops, or end")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--with-kernels", action="store_true", help="start without built C++ kernels as well")
    args, train = parser.parse_known_args()
    contenders = []
    for root in (ROOT, *(path.resolve() for path in args.against)) if train else ():
        command = [sys.executable, str(root / "scripts" / "train.py"), *train]
        contenders.append(Contender(root.name, command, {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}, True))
    contenders += [Contender(shlex.split(text)[-1], shlex.split(text), {}, False) for text in args.program]
    for _ in range(args.repeats):
        for contender in contenders:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                if args.with_kernels:
                    contender.environment["XDG_CACHE_HOME"] = str(place / "home")
                for state in ("cold", "warm"):
                    out = ["--out", str(place / state)] if contender.trains else []
                    numbers = start(
                        replace(contender, command=[*contender.command, *out]), args.until, place / "programs"
                    )
                    contender.measured.setdefault(state, []).append(numbers)
                    shown = f"{numbers[0]:6.1f} s {numbers[1]:6.1f} CPU-s {numbers[2]:6.0f} MB"
                    print(f"{contender.name:24} {state:5} {shown}", flush=True)
    print("\nmedians, and ratios to the first contender")
    for state in ("cold", "warm"):
        base = None
        for contender in contenders:
            seconds, cpu, size = (statistics.median(column) for column in zip(*contender.measured[state], strict=True))
            base = base or (seconds, cpu, size)
            ratios = " ".join(f"{a / b:.2f}" for a, b in zip((seconds, cpu, size), base, strict=True))
            print(f"{contender.name:24} {state:5} {seconds:6.1f} s {cpu:6.1f} CPU-s {size:6.0f} MB   x {ratios}")


if __name__ == "__main__":
    main()
