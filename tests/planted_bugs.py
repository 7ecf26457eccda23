"""Planted bugs: mistakes that the tests must notice, each with a test that does.

    python -m tests.planted_bugs                # plants every bug in a copy of the repository and runs its test
    python -m tests.planted_bugs --only reset   # those whose file or reason contains the word

A bug replaces a piece of a file that occurs there once. The exit code is 0 if every test failed on its bug. What a tier
must notice is a promise about that tier: `fast` is `make test`, `slow` is what `make test-all` adds.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bug:
    """A mistake in one place."""

    file: str
    """Path of the file."""
    right: str
    """Piece of the file, which occurs there once."""
    wrong: str
    """Replacement that makes it wrong."""
    test: str
    """Test that fails on it, as pytest names it."""
    reason: str
    """What goes wrong, in a few words."""
    tier: Literal["fast", "slow"] = "fast"
    """Tier that notices it."""


BUGS: tuple[Bug, ...] = (
    Bug(
        "agents/drama/agent.py",
        'd = d[1:] if self.settings.reward_index == "after" else d[:-1]',
        'd = d[:-1] if self.settings.reward_index == "after" else d[1:]',
        "tests/agents/drama/test_drama.py::test_rewards_and_ends_are_read_after_the_action[after-1]",
        "rewards are read one step early",
    ),
    Bug(
        "worldmodels/world_model.py",
        "valid = ~reset[1:]",
        "valid = ~reset[:-1]",
        "tests/worldmodels/test_world_model.py::test_every_term_by_definition[True]",
        "predictions across a reset",
    ),
    Bug(
        "worldmodels/world_model.py",
        "latents.kl(target, jax.lax.stop_gradient(prior))",
        "latents.kl(target, prior)",
        "tests/worldmodels/test_world_model.py::test_where_the_gradients_of_the_divergences_go",
        "the representation loss moves the prior",
    ),
    Bug(
        "worldmodels/twohot.py",
        "return symexp(jax.nn.softmax(logits) @",
        "return (jax.nn.softmax(logits) @",
        "tests/worldmodels/test_twohot.py::test_round_trip",
        "symlog is not undone",
    ),
    Bug(
        "worldmodels/replay.py",
        "trained=put(state.trained, 0)",
        "trained=state.trained",
        "tests/worldmodels/test_replay.py::test_windows_are_rows_of_one_lane_one_after_another",
        "counts of overwritten rows",
    ),
    Bug(
        "worldmodels/replay.py",
        "return age + length <= state.filled",
        "return age < state.filled",
        "tests/worldmodels/test_replay.py::test_windows_are_rows_of_one_lane_one_after_another",
        "windows cross the newest row",
    ),
    Bug(
        "worldmodels/latents.py",
        "one_hot = one_hot + probs - jax.lax.stop_gradient(probs)",
        "one_hot = one_hot + 0.0",
        "tests/worldmodels/test_latents.py::test_samples_carry_the_gradient_of_the_probabilities",
        "no gradient through samples",
    ),
    Bug(
        "worldmodels/networks.py",
        "x.shape[:-3], self.kernel // 2",
        "x.shape[:-3], 1",
        "tests/worldmodels/test_networks.py::test_the_encoder_layer_by_layer[5]",
        "padding of wide kernels",
    ),
    Bug(
        "worldmodels/networks.py",
        "use_running_average=not train",
        "use_running_average=train",
        "tests/worldmodels/test_networks.py::test_batch_statistics_move_in_training_alone",
        "batch statistics in inference",
    ),
)


def copy_repository(to: Path) -> None:
    """Copies what git knows of the repository, links included."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name, follow_symlinks=False)


def is_noticed(bug: Bug, copy: Path) -> str | None:
    """Plants `bug` in the copy and takes it out again; returns None if its test failed, else what happened."""
    path = copy / bug.file
    text = path.read_text()
    if text.count(bug.right) != 1:
        return f"the piece occurs {text.count(bug.right)} times in {bug.file}"
    env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", bug.test]
    path.write_text(text.replace(bug.right, bug.wrong))
    try:
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text)
    if done.returncode == 1:
        return None
    return "its test passes" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-300:]}"


def is_marked_slow(bug: Bug, copy: Path) -> bool:
    """Whether the fast tier leaves the test of `bug` out."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "not slow", bug.test]
    env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"}
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, check=False).returncode == 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="word in the file's name or the reason of the bugs to plant")
    only = parser.parse_args().only
    bugs = [bug for bug in BUGS if only in bug.file or only in bug.reason]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_repository(copy)
        for bug in bugs:
            started = time.monotonic()
            trouble = is_noticed(bug, copy)
            if trouble is None and is_marked_slow(bug, copy) != (bug.tier == "slow"):
                trouble = f"its test is not in the tier {bug.tier}"
            missed += trouble is not None
            verdict = "noticed" if trouble is None else f"MISSED: {trouble}"
            print(f"{verdict:8} {bug.tier} {bug.file}: {bug.reason} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs are noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
