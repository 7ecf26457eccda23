"""`benchmarks.cluster`: the model of many cells on many workers, against closed forms."""

import itertools
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cluster
from benchmarks.cluster import Cell, Cluster, best_interval, longest_first, mean, simulate, young
from engram.errors import BadRequest

RUNS = Path(__file__).parent / "fixtures" / "runs"
LONG = Cell(0.0, 100_000.0, chunks=5_000)


def cells_of(*seconds: float) -> list[Cell]:
    return [Cell(0.0, each) for each in seconds]


def test_one_worker_takes_the_sum():
    cells = [Cell(10.0, 100.0, chunks=10), Cell(20.0, 50.0, chunks=10)]
    alone = Cluster(1, start_s=3.0, checkpoint_s=2.0, interval_s=35.0)
    result = simulate(cells, alone)
    # The first has checkpoints after 40, 80 and 100 s, the second after 35 and 50 s.
    assert result.makespan == pytest.approx(2 * 3 + 10 + 20 + 100 + 50 + 5 * 2)
    assert (result.trained, result.begun, result.checkpoints) == pytest.approx((150, 36, 10))
    assert (result.lost, result.paused, result.crashes, result.preemptions) == (0, 0, 0, 0)


@pytest.mark.parametrize(("workers", "waves"), [(1, 130), (64, 3), (65, 2), (129, 2), (130, 1), (512, 1)])
def test_equal_cells_go_in_waves(workers, waves):
    result = simulate([Cell(70.0, 7_200.0)] * 130, Cluster(workers, start_s=5.0, interval_s=math.inf))
    assert result.makespan == pytest.approx(waves * 7_275)


def test_programs_are_compiled_once_for_all_who_come_later():
    cells = [Cell(100.0, 50.0, program=name) for name in "aaab"]
    shared = Cluster(2, cached=0.1)
    # Both workers compile `a`, as neither is done; then one finds it, and the other compiles `b`.
    assert simulate(cells, shared).begun == pytest.approx(100 + 100 + 10 + 100)
    alone = replace(shared, workers=1)
    assert simulate(cells, alone).begun == pytest.approx(100 + 10 + 10 + 100)
    apart = [Cell(100.0, each, program="a") for each in (1.0, 500.0, 1.0)]
    assert simulate(apart, replace(shared, cache=False)).begun == pytest.approx(100 + 100 + 10)
    nameless = [Cell(100.0, 50.0)] * 3
    assert simulate(nameless, alone).begun == pytest.approx(300)
    # The second worker comes for its second cell before the first one has kept the programs, or after.
    early, late = (
        [Cell(100.0, 10.0, program="a"), Cell(0.0, s), Cell(100.0, 10.0, program="a")] for s in (90.0, 105.0)
    )
    assert simulate(early, shared).begun == pytest.approx(100 + 100)
    assert simulate(late, shared).begun == pytest.approx(100 + 10)
    assert simulate(late, replace(shared, cache=False)).begun == pytest.approx(100 + 100)


def test_longest_first_is_within_its_bound_of_the_best():
    """Graham's: (4/3 - 1/3m) of the best, found here by trying all."""
    chance, workers, gained = np.random.default_rng(0), 3, 0
    for _ in range(10):
        seconds = chance.uniform(1, 10, size=7)
        best = min(
            max(sum(s for s, at in zip(seconds, places, strict=True) if at == worker) for worker in range(workers))
            for places in itertools.product(range(workers), repeat=len(seconds))
        )
        cells = cells_of(*seconds)
        given, first = (simulate(each, Cluster(workers)).makespan for each in (cells, longest_first(cells)))
        assert best - 1e-9 <= first <= (4 / 3 - 1 / (3 * workers)) * best
        gained += first < given
    assert gained > 5
    assert simulate(cells_of(1, 1, 1, 1, 4), Cluster(2)).makespan == pytest.approx(6)
    assert simulate(longest_first(cells_of(1, 1, 1, 1, 4)), Cluster(2)).makespan == pytest.approx(4)


def test_a_crash_loses_half_an_interval():
    """Exactly: the rest of an exponential time after whole intervals."""
    interval, crash = 100.0, 5_000.0
    result = simulate([LONG] * 50, Cluster(10, interval_s=interval, crash_s=crash, pause_s=7.0))
    expected = crash - interval / math.expm1(interval / crash)
    assert expected == pytest.approx(interval / 2, rel=0.01)
    assert result.crashes > 800
    assert result.crashes == pytest.approx(50 * LONG.train_s / crash, rel=0.1)
    within = 4 * interval / math.sqrt(12 * result.crashes)
    assert result.lost / result.crashes == pytest.approx(expected, abs=within)
    assert result.paused == pytest.approx(7 * result.crashes)
    assert result.trained == pytest.approx(50 * LONG.train_s), "in the end all is trained"


def test_youngs_interval_is_near_the_best():
    cells, failing = [LONG] * 8, Cluster(8, checkpoint_s=10.0, crash_s=2_000.0)
    about = young(10.0, 2_000.0)
    assert about == 200
    best = best_interval(cells, failing, repeats=1)
    assert about / 1.5 < best < about * 1.5
    result = mean(cells, replace(failing, interval_s=about), repeats=1)
    assert result.wasted / result.trained == pytest.approx(10 / about + about / (2 * 2_000), rel=0.2)


def test_a_grace_that_is_long_enough_saves_all():
    cells, taken = [Cell(0.0, 10_000.0, chunks=200)] * 20, Cluster(4, preemption_s=2_000.0, interval_s=1_000.0)
    result = simulate(cells, replace(taken, checkpoint_s=10.0, grace_s=61.0))
    assert result.preemptions > 50
    assert (result.lost, result.crashes) == (0, 0)
    short = simulate(cells, replace(taken, checkpoint_s=10.0, grace_s=20.0))
    assert short.lost > 50 * short.preemptions, "most chunks of 50 s do not end in time"
    assert short.crashes == 0


def test_a_file_server_writes_one_checkpoint_after_the_other():
    crowded = Cluster(8, files=11, files_per_s=5.5, interval_s=math.inf)
    result = simulate(cells_of(*[100.0] * 8), crowded)
    assert result.makespan == pytest.approx(100 + 8 * 2)
    assert result.checkpoints == pytest.approx(2 * sum(range(1, 9)))
    slow = replace(crowded, checkpoint_s=5.0)
    assert simulate(cells_of(*[100.0] * 8), slow).checkpoints == pytest.approx(5 + 5 + sum(range(6, 17, 2)))


def test_the_same_seed_is_the_same_and_no_second_is_missing():
    cells = [Cell(20.0, each, program=str(i % 3)) for i, each in enumerate(np.linspace(100, 2_000, 30))]
    all_at_once = Cluster(
        4, 5.0, 0.3, interval_s=60.0, checkpoint_s=2.0, files_per_s=5.0, crash_s=900.0, preemption_s=700.0, grace_s=30.0
    )
    result = simulate(cells, all_at_once, seed=3)
    assert result == simulate(cells, all_at_once, seed=3)
    assert result != simulate(cells, all_at_once, seed=4)
    assert min(result.crashes, result.preemptions) > 5
    assert result.lost > 0
    spent = result.trained + result.begun + result.wasted + result.paused
    assert 0.8 < spent / (4 * result.makespan) < 1
    alone = simulate(cells, replace(all_at_once, workers=1), seed=3)
    assert alone.trained + alone.begun + alone.wasted + alone.paused == pytest.approx(alone.makespan)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"workers": 0}, {"workers": -1}, {"start_s": -1.0}, {"cached": 1.5}, {"checkpoint_s": math.nan}),
        *({"start_s": math.inf}, {"crash_s": 0.0}, {"preemption_s": -1.0}, {"files_per_s": 0.0}),
        {"interval_s": math.nan},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(BadRequest):
        Cluster(**{"workers": 1, **wrong})


def test_cells_that_cannot_be_are_refused():
    for compile_s, train_s, chunks in (
        (-1.0, 1.0, 1),
        (1.0, 0.0, 1),
        (1.0, math.nan, 1),
        (math.inf, 1.0, 1),
        (1, 1, 0),
    ):
        with pytest.raises(BadRequest, match="no durations"):
            Cell(compile_s, train_s, chunks)
    with pytest.raises(BadRequest, match="no cells"):
        simulate([], Cluster(1))
    with pytest.raises(BadRequest, match="does not end in 1000 attempts"):
        simulate([Cell(0.0, 1_000.0, chunks=1)], Cluster(1, crash_s=10.0))
    with pytest.raises(BadRequest, match="needs crashes"):
        best_interval(cells_of(1.0), Cluster(1, checkpoint_s=1.0), 1)


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster", *words])
    cluster.main()


def test_runs_are_read_from_their_folders(tmp_path, monkeypatch, capsys):
    for name in "ab":
        shutil.copytree(RUNS / "ppo", tmp_path / name)
    cells = cluster.cells_in([tmp_path])
    assert len(cells) == 2
    assert cells[0] == cells[1]
    assert not cells[0].program
    assert cells[0].chunks == len((RUNS / "ppo" / "metrics.jsonl").read_text().splitlines())
    run(monkeypatch, str(tmp_path), "--workers", "1", "2", "--orders", "given")
    first = capsys.readouterr().out
    assert first.startswith("2 cells")
    assert len(first.splitlines()) == 6
    run(monkeypatch, str(tmp_path), "--workers", "1", "2", "--orders", "given")
    assert capsys.readouterr().out == first
    (tmp_path / "b" / "metrics.jsonl").unlink()
    with pytest.raises(BadRequest, match=r"cannot read .*b: No such file"):
        cluster.cells_in([tmp_path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give folders"),
        (["nowhere"], "no finished run in nowhere"),
        (["nowhere", "--plan", "atari"], "give folders"),
        (["--plan", "popgym", "--memories", "s6"], "unknown measured memory 's6'"),
        (["--plan", "atari", "--workers", "0"], "workers must be above 0"),
        (["--plan", "atari", "--repeats", "0"], "--repeats must be 1 or more"),
        (["--plan", "atari", "--intervals"], "needs crashes"),
    ],
)
def test_bad_requests_are_one_line(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *words)
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_plans_are_as_large_as_they_say():
    assert len(cluster.popgym(cluster.FEW)) == 48 * 12
    assert len({cell.program for cell in cluster.popgym(cluster.FEW)}) == 48 * 12
    apart = cluster.popgym(cluster.FEW, apart=True)
    assert len(apart) == 48 * 12 * 5
    assert sum(c.train_s for c in apart) == pytest.approx(sum(c.train_s for c in cluster.popgym(cluster.FEW)))
    games = cluster.atari()
    assert (len(games), len({cell.program for cell in games})) == (26 * 5, 26)
