"""Kill a training run again and again, while it starts, trains or saves, resume it each time, and compare its end with
that of an unbroken run.

python -m tests.scripts.kill_resume --kills 20
python -m tests.scripts.kill_resume --kills 2 --env atari/Pong --options atari100k-small --total-steps 1200 ...
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from engram.scripts import train

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"wall_s", "steps_per_s"}
TRAIN = (sys.executable, str(ROOT / "scripts" / "train.py"))
DEBUG = (
    *("debug", "--seeds", "2", "--checkpoint-seconds", "0", "--total-steps", "10240"),
    *("--log-points", "10", "--eval-points", "3", "--observation.normalise", "--quiet"),
)
IMPORTS = 5.0
"""About the seconds until a process that trains begins to compile."""
SAVING = 0.1
"""About the seconds in which a checkpoint is written."""


def start(folder: Path, env: str, options: Sequence[str] = DEBUG) -> subprocess.Popen:
    """Trains with a preset and `options` in `folder`, or goes on there, in a process to be killed."""
    command = [*TRAIN, *options, "--env", env, "--out", str(folder), "--resume"]
    return subprocess.Popen(command, cwd=folder.parent)


def finish(folder: Path, env: str, options: Sequence[str] = DEBUG) -> dict:
    """The same to the end, in this process, which has imported what it takes -> the run's summary."""
    assert train.main([*options, "--env", env, "--out", str(folder), "--resume"]) == 0
    return json.loads((folder / "summary.json").read_text())


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def final_state(folder: Path) -> dict[str, bytes]:
    """Every array of the last checkpoint, as bytes."""
    import orbax.checkpoint as ocp

    newest = max((p for p in (folder / "checkpoints").iterdir()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((newest / "state").absolute())
    return {name: array.tobytes() for name, array in arrays.items()}


def first_chunk(folder: Path, process: subprocess.Popen) -> float:
    """Seconds until the run has written its first line."""
    started = time.monotonic()
    path = folder / "metrics.jsonl"
    before = path.stat().st_size if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_size > before):
        time.sleep(0.02)
    return time.monotonic() - started


def saving(folder: Path, process: subprocess.Popen) -> None:
    """Waits until the run begins to write a checkpoint."""
    while process.poll() is None and not any((folder / "checkpoints").glob("*.partial")):
        time.sleep(0.001)


def compare(parent: Path, kills: int, seed: int, env: str, options: Sequence[str] = DEBUG) -> None:
    """Asserts bitwise equality of final state and metrics after `kills` kills at random moments. What is resumed last
    was begun by another process: only the folder connects them."""
    rng = random.Random(seed)
    whole, broken = parent / "whole", parent / "broken"
    summary = finish(whole, env, options)
    warm_up, training = IMPORTS + summary["compile_s"], summary["wall_s"]
    done = 0
    while done < kills:
        process = start(broken, env, options)
        when = rng.choices(("while it saves", "while it trains", "before the first chunk"), (0.4, 0.4, 0.2))[0]
        if when == "while it saves":
            saving(broken, process)
            time.sleep(rng.uniform(0, SAVING))
        elif when == "while it trains":
            first_chunk(broken, process)
            time.sleep(rng.uniform(0, 1.5 * training / max(kills, 4)))
        else:
            time.sleep(rng.uniform(0, warm_up))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        assert process.wait() in (0, -signal.SIGKILL)
        lines = len((broken / "metrics.jsonl").read_text().splitlines()) if (broken / "metrics.jsonl").exists() else 0
        left = ", a checkpoint half written" if any((broken / "checkpoints").glob("*.partial")) else ""
        print(f"kill {done} {when}: {lines} log points on disk{left}", flush=True)
        if (broken / "summary.json").exists():
            # It got to its end: begin a new broken run after checking this one.
            check(whole, broken)
            shutil.rmtree(broken)
    finish(broken, env, options)
    check(whole, broken)


def check(whole: Path, broken: Path) -> None:
    assert metrics(whole) == metrics(broken), "metrics differ"
    assert final_state(whole) == final_state(broken), "final states differ"
    print("equal, bit for bit", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env", default="popgym/RepeatPreviousEasy")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=DEBUG, help="preset and options of train.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.kills, arguments.seed, arguments.env, arguments.options)
