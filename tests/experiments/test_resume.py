"""Runs whose folder was damaged, moved or could not be read: they go on to where the unbroken run ends, or stop with
one line that says why, and never lose or repeat in silence what was trained."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engram import api
from engram.errors import BadRequest
from engram.experiments.train import Output, train
from engram.training import checkpoint, loop
from tests.experiments.runs import TINY, assert_same_end, rows_of

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CHUNKS = 4


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """All runs of an environment here are the same programs."""
    compiled, compile_agent = {}, loop.compile_agent

    def once(agent, *arguments):
        if agent.env.name not in compiled:
            compiled[agent.env.name] = compile_agent(agent, *arguments)
        return compiled[agent.env.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_agent", once)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run of four chunks, of which it keeps the last two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    changes: dict[str, Any] = {"log_points": CHUNKS, "checkpoint_seconds": 0}
    return api.train("debug", **TINY | changes, out=folder, quiet=True).folder


@pytest.fixture
def broken(whole, tmp_path) -> Path:
    """The same, stopped after chunk 3."""
    return shutil.copytree(whole, tmp_path / "broken", ignore=shutil.ignore_patterns("summary.json", str(CHUNKS)))


def resume(folder: Path) -> None:
    run = api.load(folder)
    train(run.config, run.preset, Output(folder, resume=True, quiet=True))


def damage_manifests(folder: Path) -> None:
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.write_text("{}")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("lost", ["all", "the end", "the middle", "a row", "nothing"])
@pytest.mark.parametrize("after", [pytest.param(3, marks=pytest.mark.slow), CHUNKS])
def test_lines_of_metrics_come_from_the_checkpoint_where_the_file_lost_them(whole, broken, lost, after, capfd):
    if after == CHUNKS:  # trained to its end, but not summed up
        shutil.copytree(whole / "checkpoints" / str(CHUNKS), broken / "checkpoints" / str(CHUNKS))
    path = broken / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    kept = {
        "the end": lines[0] + lines[1][:20],
        "the middle": lines[0] + b"\xff\xfe\n" + b"".join(lines[2:]),
        "a row": lines[0] + b"".join(lines[2:]),
        "nothing": b"".join(lines),
    }
    path.unlink()
    if lost in kept:
        path.write_bytes(kept[lost])
    resume(broken)
    assert_same_end(whole, broken)
    is_kept = (broken / "metrics.jsonl.damaged").exists()
    assert is_kept == ("has lost lines" in capfd.readouterr().err) == (lost not in ("all", "nothing"))
    assert json.loads((broken / "summary.json").read_text())["env_steps"] == 1024


def test_metrics_removed_in_the_middle_are_written_again(whole, broken, monkeypatch):
    write = loop.TrainingRun.write

    def remove(run, row):
        (broken / "metrics.jsonl").unlink()
        write(run, row)

    monkeypatch.setattr(loop.TrainingRun, "write", remove)
    resume(broken)
    assert_same_end(whole, broken)


def test_damaged_checkpoints_are_set_aside_loudly_and_never_count_again(whole, broken, capfd):
    damage_manifests(broken)
    resume(broken)
    said = capfd.readouterr().err
    assert said.count("is damaged") == 1
    assert "training begins anew" in said
    assert sorted(p.name for p in (broken / "checkpoints").iterdir()) == ["3", "3.damaged", "4"]
    assert (broken / "metrics.jsonl.damaged").exists()
    assert rows_of(whole) == rows_of(broken)


@pytest.mark.parametrize("after", [3, CHUNKS])
def test_what_cannot_be_read_stops_before_anything_is_changed(whole, broken, after, monkeypatch):
    """Neither is a run begun anew, nor a finished one trained again."""
    if after == CHUNKS:
        shutil.copy(whole / "summary.json", broken)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error", "some file")

    before = content(broken)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_json", fail)
        if after == CHUNKS:
            patch.setattr(Path, "lstat", fail)
        with pytest.raises(BadRequest, match=r"^cannot read .*: Input/output error; nothing was changed$"):
            resume(broken)
    assert content(broken) == before


def test_a_checkpoint_of_a_longer_run_is_refused(broken):
    root = broken / "checkpoints"
    (root / "3").rename(root / "60")
    file = root / "60" / "manifest.json"
    manifest = json.loads(file.read_text()) | {"chunk": 60}
    file.write_text(json.dumps(manifest | {"crc32": checkpoint._own_crc32(manifest)}))
    before = content(broken)
    with pytest.raises(BadRequest, match="60 is no checkpoint of this run, which has 4 chunks"):
        resume(broken)
    assert content(broken) == before


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_moved_or_removed_in_the_middle_ends_the_training(whole, broken, how, monkeypatch):
    elsewhere = broken.with_name("elsewhere")

    def vanish(*arguments):
        (broken.rename if how == "moved" else shutil.rmtree)(elsewhere if how == "moved" else broken)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(loop, "aggregate", vanish)
        with pytest.raises(BadRequest, match="was moved or removed in the middle of its training"):
            resume(broken)
    assert not broken.exists(), "nothing is written where it was"
    if how == "moved":
        resume(elsewhere)
        assert_same_end(whole, elsewhere)
