"""How long many cells take on many workers: a model by discrete events, on paper and not a measurement.

    python -m benchmarks.cluster runs/my-comparison --workers 2 8 64
    python -m benchmarks.cluster --plan popgym --workers 8 64 512
    python -m benchmarks.cluster --plan atari --workers 8 64 65 512 --crash-hours 24 --checkpoint 10 --intervals

Cells are all finished runs in the folders, with the durations of their `summary.json`, or those of a plan. A worker
starts a process, compiles what no worker has compiled before, and trains chunk by chunk, with a checkpoint after a
chunk where one is due, and one at the end; so does the training loop. Crashes and preemptions come by chance, at any
time alike. A crash costs what was trained since the last checkpoint. A run that is preempted makes a checkpoint after
its chunk if the grace is long enough. Either begins again on its worker after a pause. Checkpoints queue at one file
server.

The table has the makespan and what the workers' time went into: training that was kept (how well they were used),
starting and compiling, checkpoints, training that was lost, pauses, and no cell left. With `--intervals` it has the
time between checkpoints that wastes least, beside Young's sqrt(2 x checkpoint x MTBF). Numbers are means over
`--repeats` draws; the same command prints the same numbers.

Plans: `popgym` is 48 ids x memories, 5 seeds of 10 million steps in one program, with the steps of all seeds per second
and the seconds to compile from `benchmarks/measured/popgym_easy.csv` (3 seeds of RepeatPreviousEasy on about one
crowded core; all ids are taken to cost the same). `atari` is 26 games x 5 seeds of Drama, a run each: 100 minutes of
updates and 70 s to compile on one H200 (docs/drama.md), and 20 minutes of emulation and evaluation, which are a guess.
"""

import argparse
import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.popgym_easy import TASKS, read
from engram.configs.presets import PRESETS
from engram.envs.registry import env_ids
from engram.errors import BadRequest, EngramError, UnknownName
from engram.experiments.atari_scores import published
from engram.experiments.engines import MANY, SPARING
from engram.experiments.runs import read_summary
from engram.training.metrics import read_metrics

ATTEMPTS = 1000
"""Attempts at a cell after which the model gives up: it would end by luck alone."""
FEW = ["none", "gru", "lstm", "mingru", "lru", "s5", "mamba", "mamba2", "ffm", "gla", "attention", "rwkv7"]
"""Memories of the plan `popgym`."""


@dataclass(frozen=True)
class Cell:
    """A run: seconds to compile it, seconds to train it, and into how many chunks these are divided."""

    compile_s: float
    train_s: float
    chunks: int = 50
    program: str = ""
    """Name of its programs, which cells may share; empty where no other cell has them."""

    def __post_init__(self):
        if not (0 <= self.compile_s < math.inf and 0 < self.train_s < math.inf and self.chunks > 0):
            raise BadRequest(f"no durations of a run: {self}")


@dataclass(frozen=True)
class Cluster:
    """Workers, what they share, and how often they fail. Times are in seconds."""

    workers: int
    start_s: float = 0.0
    """From the start of a process to training, without compiling."""
    cached: float = 0.0
    """Share of the time to compile that is left where the programs are kept already."""
    cache: bool = True
    """Whether all workers share what is kept. Otherwise each keeps its own."""
    interval_s: float = 30.0
    """Least time between two checkpoints."""
    checkpoint_s: float = 0.0
    """Time that a checkpoint takes while the file server has nothing else to do."""
    files: int = 11
    """Files of a checkpoint."""
    files_per_s: float = math.inf
    """Files that the server takes in a second."""
    crash_s: float = math.inf
    """Mean time between crashes of a worker."""
    preemption_s: float = math.inf
    """Mean time between preemptions of a worker."""
    grace_s: float = 90.0
    """From the notice of a preemption to the end of the process."""
    pause_s: float = 90.0
    """From the end of a process by either to the start of the next: a lost claim is free after so long."""

    def __post_init__(self):
        positive = ("workers", "files_per_s", "crash_s", "preemption_s")
        for name, value in vars(self).items():
            if not value >= 0 or (name in positive and value == 0):
                raise BadRequest(f"{name} must be {'above 0' if name in positive else '0 or more'}, got {value}")
        if self.cached > 1 or not math.isfinite(self.start_s + self.checkpoint_s + self.pause_s + self.workers):
            raise BadRequest(f"no cluster: {self}")


@dataclass
class Outcome:
    """What a cluster made of its cells; seconds but for the counts, of all workers together."""

    makespan: float = 0.0
    trained: float = 0.0
    """Training that was kept."""
    begun: float = 0.0
    """Starting and compiling."""
    checkpoints: float = 0.0
    lost: float = 0.0
    """Training that was thrown away."""
    paused: float = 0.0
    crashes: float = 0
    preemptions: float = 0

    @property
    def wasted(self) -> float:
        """What the time between checkpoints decides: too short and they take long, too long and much is lost."""
        return self.checkpoints + self.lost


def longest_first(cells: Sequence[Cell]) -> list[Cell]:
    """The order in which the last workers to end have short cells."""
    return sorted(cells, key=lambda cell: -(cell.compile_s + cell.train_s))


def simulate(cells: Sequence[Cell], cluster: Cluster, seed: int = 0) -> Outcome:
    """Has the workers take one cell after the other, in this order. Raises BadRequest for a cell that never ends."""
    if not cells:
        raise BadRequest("no cells")
    shared = _Shared(cluster, deque(cells))
    # A worker has its own stream of chances, so that they stay the same where others take longer.
    workers = [_work(shared, np.random.default_rng([seed, i])) for i in range(cluster.workers)]
    events = [(0.0, i) for i in range(cluster.workers)]
    while events:  # whoever is earliest goes on until it needs what others change
        _, i = heapq.heappop(events)
        if (later := next(workers[i], None)) is not None:
            heapq.heappush(events, (later, i))
    return shared.outcome


@dataclass
class _Shared:
    """What all workers use."""

    cluster: Cluster
    cells: deque[Cell]
    outcome: Outcome = field(default_factory=Outcome)
    kept: set[object] = field(default_factory=set)
    """Programs in the cache."""
    server_free: float = 0.0
    """When the file server has written all that it was given."""

    def written(self, now: float) -> float:
        """When a checkpoint is there that is begun at `now`."""
        self.server_free = max(now, self.server_free) + self.cluster.files / self.cluster.files_per_s
        return max(now + self.cluster.checkpoint_s, self.server_free)


def _work(shared: _Shared, chance: np.random.Generator) -> Iterator[float]:
    """A worker until no cell is left. Yields the time before it takes or changes what is shared."""
    cluster, outcome = shared.cluster, shared.outcome
    own, now = object(), 0.0
    while shared.cells:
        cell = shared.cells.popleft()
        program = (cell.program or object(), None if cluster.cache else own)
        chunk_s, kept = cell.train_s / cell.chunks, 0  # chunks in the newest checkpoint
        for _ in range(ATTEMPTS):
            # Drawn anew for each attempt: how long a worker lasts does not depend on how long it has lasted.
            crash, notice = now + chance.exponential(size=2) * (cluster.crash_s, cluster.preemption_s)
            end = min(crash, notice + cluster.grace_s)
            before = now
            now += cluster.start_s + cell.compile_s * (cluster.cached if program in shared.kept else 1.0)
            outcome.begun += min(now, end) - before
            if now <= end:
                yield now
                shared.kept.add(program)
            saved, chunk, unsaved = now, kept, 0.0
            while now <= end:
                before, now, chunk = now, now + chunk_s, chunk + 1
                unsaved += min(now, end) - before
                stops = chunk == cell.chunks or now >= notice
                if now <= end and (stops or now - saved >= cluster.interval_s):
                    yield now
                    before, now = now, shared.written(now)
                    outcome.checkpoints += min(now, end) - before
                    if now <= end:
                        saved, kept, unsaved = now, chunk, 0.0
                        if stops:
                            break
            outcome.lost += unsaved
            if kept == cell.chunks:
                break
            now = min(now, end) + cluster.pause_s
            outcome.paused += cluster.pause_s
            outcome.crashes += end == crash
            outcome.preemptions += end != crash
        else:
            raise BadRequest(f"a cell that does not end in {ATTEMPTS} attempts: workers fail too often for its chunks")
        outcome.trained += cell.train_s
        outcome.makespan = max(outcome.makespan, now)
        yield now


def mean(cells: Sequence[Cell], cluster: Cluster, repeats: int, seed: int = 0) -> Outcome:
    """The mean outcome of several draws; one where nothing is left to chance."""
    if cluster.crash_s == cluster.preemption_s == math.inf:
        repeats = 1
    drawn = [dataclasses.astuple(simulate(cells, cluster, seed + i)) for i in range(repeats)]
    return Outcome(*np.mean(drawn, axis=0).tolist())


def young(checkpoint_s: float, crash_s: float) -> float:
    """The best time between checkpoints of a long run, to first order (Young 1974)."""
    return math.sqrt(2 * checkpoint_s * crash_s)


def best_interval(cells: Sequence[Cell], cluster: Cluster, repeats: int, seed: int = 0) -> float:
    """The time between checkpoints that wastes least: of Young's, and of its multiples from 1/8 to 8. (No run makes
    more than one in a chunk.) Raises BadRequest where checkpoints cost nothing, or nothing crashes."""
    about = young(max(cluster.checkpoint_s, cluster.files / cluster.files_per_s), cluster.crash_s)
    if not 0 < about < math.inf:
        raise BadRequest("the best time between checkpoints needs crashes, and checkpoints that take time")
    choices = [about * 2 ** (power / 2) for power in range(-6, 7)]

    def wasted(interval: float) -> float:
        return mean(cells, dataclasses.replace(cluster, interval_s=interval), repeats, seed).wasted

    return min(choices, key=wasted)


def cells_in(folders: Sequence[Path]) -> list[Cell]:
    """All finished runs below the folders. Raises BadRequest where there are none, or one is damaged."""
    cells = []
    for folder in folders:
        found = [path.parent for path in sorted(folder.rglob("summary.json"))]
        if not found:
            raise BadRequest(f"no finished run in {folder}")
        for run in found:
            try:
                summary, chunks = read_summary(run), len(read_metrics(run / "metrics.jsonl"))
            except OSError as error:
                raise BadRequest(f"cannot read {run}: {error.strerror}") from None
            assert summary is not None
            # They share no programs here: what they found in a cache is in their time to compile already.
            cells.append(Cell(summary["compile_s"], summary["wall_s"], chunks))
    return cells


def popgym(memories: Sequence[str], apart: bool = False, steps: int = 10_000_000, seeds: int = 5) -> list[Cell]:
    """The plan of that name, in no order of length. With `apart` each seed is a cell of its own: all first ones, then
    all second ones, which find the programs of the first."""
    rows = {row["memory"]: row for row in read() if row["task"] == TASKS[0]}
    for name in memories:
        if name not in rows:
            raise UnknownName.among("measured memory", name, rows)
    times = {name: (float(rows[name]["compile_s"]), float(rows[name]["steps_per_s"])) for name in memories}
    together = 1 if apart else seeds
    return [
        Cell(compile_s, steps * together / speed, PRESETS["popgym-fast"].log_points, f"{env}/{name}")
        for _ in range(seeds // together)
        for env in env_ids("popgym/")
        for name, (compile_s, speed) in times.items()
    ]


def atari(seeds: int = 5) -> list[Cell]:
    """The plan of that name: a run for each game and seed, as `scripts/atari100k.py` makes them. Runs of a game share
    their programs."""
    games = published()["random"]
    return [
        Cell(70.0, (100 + 20) * 60.0, PRESETS["atari100k"].log_points, game) for _ in range(seeds) for game in games
    ]


def line(label: str, cells: Sequence[Cell], cluster: Cluster, repeats: int, seed: int, intervals: bool) -> str:
    """A row of the table."""
    result = mean(cells, cluster, repeats, seed)
    whole = result.makespan * cluster.workers
    shares = [result.trained, result.begun, result.checkpoints, result.lost, result.paused]
    shares.append(max(0.0, whole - sum(shares)))
    words = [f"{cluster.workers}", label, _time(result.makespan)]
    words += [f"{share / whole:.1%}" for share in shares]
    words += [f"{result.crashes:.1f}", f"{result.preemptions:.1f}"]
    if intervals:
        cost = max(cluster.checkpoint_s, cluster.files / cluster.files_per_s)
        words += [_time(best_interval(cells, cluster, repeats, seed)), _time(young(cost, cluster.crash_s))]
    return f"| {' | '.join(words)} |"


def _time(seconds: float) -> str:
    """Seconds in the unit that is read most easily."""
    size, unit = next(
        (size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 2 * size or size == 1
    )
    return f"{seconds / size:.1f} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with finished runs")
    parser.add_argument("--plan", choices=["popgym", "atari"], help="instead of folders")
    parser.add_argument("--memories", nargs="+", default=FEW, metavar="NAME", help="of popgym; all for those measured")
    parser.add_argument("--apart", action="store_true", help="each seed of popgym in a cell of its own")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--orders", nargs="+", choices=["given", "longest"], default=["given", "longest"])
    parser.add_argument("--start", type=float, default=5.0, help="seconds from a process to training, compiling apart")
    parser.add_argument("--cached", type=float, default=0.17, help="share of compiling that is left for kept programs")
    parser.add_argument("--own-caches", action="store_true", help="each worker keeps its own programs")
    parser.add_argument("--checkpoint", type=float, default=0.6, help="seconds that a checkpoint takes")
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        help=f"between two of them (default: the preset's, for folders 30; {SPARING:.0f} or more above {MANY} workers)",
    )
    parser.add_argument("--files", type=int, default=11, help="of a checkpoint")
    parser.add_argument("--files-per-second", type=float, default=math.inf, help="that the file server takes")
    parser.add_argument("--crash-hours", type=float, default=math.inf, help="mean time between crashes of a worker")
    parser.add_argument("--preemption-hours", type=float, default=math.inf, help="mean time between its preemptions")
    parser.add_argument("--grace", type=float, default=90.0, help="seconds from the notice of a preemption to its end")
    parser.add_argument(
        "--pause", type=float, default=90.0, help="seconds from a crash or preemption to the next start"
    )
    parser.add_argument("--intervals", action="store_true", help="the best time between checkpoints, and Young's")
    parser.add_argument("--repeats", type=int, default=5, help="draws of which a row has the mean")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        print(table(arguments))
    except EngramError as error:
        parser.exit(error.exit_code, f"{error}\n")


def table(arguments: argparse.Namespace) -> str:
    """What `main` prints. Raises BadRequest for numbers that make no sense."""
    if bool(arguments.folders) == bool(arguments.plan):
        raise BadRequest("give folders with finished runs, or --plan")
    if arguments.repeats < 1 or arguments.seed < 0:
        raise BadRequest("--repeats must be 1 or more, and --seed 0 or more")
    if arguments.plan == "popgym":
        every = [row["memory"] for row in read() if row["task"] == TASKS[0]]
        cells = popgym(every if arguments.memories == ["all"] else arguments.memories, arguments.apart)
    else:
        cells = atari() if arguments.plan else cells_in(arguments.folders)
    orders = {"given": cells, "longest": longest_first(cells)}
    whole = sum(cell.compile_s + cell.train_s for cell in cells)
    longest = max(cell.compile_s + cell.train_s for cell in cells)
    heads = ["workers", "order", "makespan", "trained", "begun", "checkpoints", "lost", "paused", "idle"]
    heads += ["crashes", "preemptions"]
    heads += ["best interval", "Young's"] if arguments.intervals else []
    lines = [f"{len(cells)} cells, {_time(whole)} in all, the longest {_time(longest)}\n"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for workers in arguments.workers:
        usual = PRESETS["atari100k" if arguments.plan == "atari" else "popgym-fast"].checkpoint_seconds
        usual = max(usual, SPARING) if workers > MANY else usual
        cluster = Cluster(
            workers=workers,
            start_s=arguments.start,
            cached=arguments.cached,
            cache=not arguments.own_caches,
            interval_s=usual if arguments.checkpoint_seconds is None else arguments.checkpoint_seconds,
            checkpoint_s=arguments.checkpoint,
            files=arguments.files,
            files_per_s=arguments.files_per_second,
            crash_s=arguments.crash_hours * 3600,
            preemption_s=arguments.preemption_hours * 3600,
            grace_s=arguments.grace,
            pause_s=arguments.pause,
        )
        for order in arguments.orders:
            lines.append(line(order, orders[order], cluster, arguments.repeats, arguments.seed, arguments.intervals))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
