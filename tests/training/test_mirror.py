"""Copies of run folders on other storage: a run whose machine vanished goes on from there, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from engram import api
from engram.errors import BadRequest
from engram.training import loop
from engram.training.mirror import Mirror
from tests.experiments.runs import TINY, assert_same_end

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CHANGES: dict[str, Any] = {**TINY, "log_points": 4, "checkpoint_seconds": 0}


class Vanished(Exception):
    """The machine is gone."""


@pytest.fixture
def memory():
    """An empty store in memory."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


def files(folder: Path, text: str = "x") -> None:
    """A run folder with two checkpoints, and what is no part of a run."""
    for name in ("config.yaml", "metrics.jsonl", "summary.json", ".lock", "checkpoints/2.ab.partial/state"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for chunk in (1, 2):
        for name in ("state/data", "manifest.json"):
            (folder / f"checkpoints/{chunk}/{name}").parent.mkdir(parents=True, exist_ok=True)
            (folder / f"checkpoints/{chunk}/{name}").write_text(f"{text}{chunk}")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_vanished_run_goes_on_from_its_mirror(memory, tmp_path, monkeypatch, capfd):
    whole = api.train("debug", **CHANGES, out=tmp_path / "whole", quiet=True)
    folder, url = tmp_path / "run", "memory://bucket/run"
    save, write = loop.TrainingRun.save, loop.TrainingRun.write

    def vanish(self, row):
        if row["updates"] == 3 * self.settings.plan.updates_per_chunk:
            raise Vanished
        write(self, row)

    monkeypatch.setattr(loop.TrainingRun, "write", vanish)
    with pytest.raises(Vanished):
        api.train("debug", **CHANGES, out=folder, quiet=True, mirror=url)
    monkeypatch.setattr(loop.TrainingRun, "write", write)
    assert save is loop.TrainingRun.save
    shutil.rmtree(folder)
    with pytest.raises(BadRequest, match="already holds a run"):
        api.train("debug", **CHANGES, out=folder, quiet=True, mirror=url)
    assert not folder.exists()
    api.train("debug", **CHANGES, out=folder, quiet=True, mirror=url, resume=True)
    assert "resuming after 2 of 4 chunks" in capfd.readouterr().err
    assert_same_end(whole.folder, folder)
    copied = {name.removeprefix("/bucket/run/") for name in memory.find("/bucket/run")}
    assert copied == {name for name in names(folder) if not name.startswith(".")}
    assert memory.cat("/bucket/run/summary.json") == (folder / "summary.json").read_bytes()


def test_only_what_changed_is_copied_and_what_is_gone_is_removed(tmp_path):
    files(tmp_path / "run")
    mirror = Mirror(f"file://{tmp_path}/copy", tmp_path / "run")
    mirror.update()
    part_of_a_run = {name for name in names(tmp_path / "run") if ".lock" not in name and "partial" not in name}
    assert names(tmp_path / "copy") == part_of_a_run
    for path in (tmp_path / "copy").rglob("*"):
        if path.is_file():
            path.write_text("as it was copied")
    shutil.rmtree(tmp_path / "run/checkpoints/1")
    (tmp_path / "run/metrics.jsonl").write_text("longer")
    mirror.update()
    assert (tmp_path / "copy/metrics.jsonl").read_text() == "longer"
    assert (tmp_path / "copy/config.yaml").read_text() == "as it was copied"
    assert names(tmp_path / "copy") == {name for name in part_of_a_run if "checkpoints/1" not in name}


def test_a_copy_that_was_cut_short_is_never_more_than_it_is(tmp_path, monkeypatch):
    """Whatever number of files was copied: a manifest is there only with its arrays, the summary only with all else."""
    files(tmp_path / "run")
    whole = len(names(tmp_path / "run")) - 2
    for count in range(whole + 1):
        copy = tmp_path / f"copy_{count}"
        mirror, put, left = Mirror(str(copy), tmp_path / "run"), Mirror._put, [count]

        def limited(self, name, put=put, left=left):
            if not left[0]:
                raise OSError("the line is cut")
            left[0] -= 1
            put(self, name)

        monkeypatch.setattr(Mirror, "_put", limited)
        mirror.update()
        monkeypatch.setattr(Mirror, "_put", put)
        there = names(copy)
        assert len(there) == count
        for chunk in (1, 2):
            assert f"checkpoints/{chunk}/manifest.json" not in there or f"checkpoints/{chunk}/state/data" in there
        assert "summary.json" not in there or count == whole
        fetched = Mirror(str(copy), tmp_path / f"fetched_{count}")
        if fetched.holds_a_run:
            fetched.fetch()
            assert names(fetched.folder) == {
                name
                for name in there
                if not name.startswith("checkpoints") or f"{'/'.join(name.split('/')[:2])}/manifest.json" in there
            }


def test_a_folder_that_was_fetched_in_part_is_fetched_again(tmp_path, monkeypatch):
    files(tmp_path / "copy")
    mirror = Mirror(str(tmp_path / "copy"), tmp_path / "run")
    get, gotten = type(mirror._fs).get_file, []

    def cut(self, source, target, **options):
        if len(gotten) == 4:
            raise OSError("the line is cut")
        gotten.append(source)
        return get(self, source, target, **options)

    monkeypatch.setattr(type(mirror._fs), "get_file", cut)
    with pytest.raises(BadRequest, match=r"the line is cut.*nothing was trained"):
        mirror.fetch()
    assert not (tmp_path / "run/config.yaml").exists()
    monkeypatch.setattr(type(mirror._fs), "get_file", get)
    mirror.fetch()
    assert (tmp_path / "run/config.yaml").read_text() == "x"
    assert "checkpoints/2/manifest.json" in names(tmp_path / "run")


def test_a_mirror_that_cannot_be_reached_stops_no_training_and_is_told_at_the_end(tmp_path, monkeypatch, capfd):
    files(tmp_path / "run")
    mirror = Mirror(str(tmp_path / "copy"), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put", lambda self, name: (_ for _ in ()).throw(ConnectionError("refused")))
        mirror.update()
        assert "not brought up to date (ConnectionError: refused); training goes on" in capfd.readouterr().err
        with pytest.raises(BadRequest, match=r"is complete and .* is not"):
            mirror.finish()
    mirror.finish()
    assert "summary.json" in names(tmp_path / "copy")


@pytest.mark.parametrize(("url", "message"), [("nowhere://x", "Protocol not known"), ("s3://x", "s3fs")])
def test_places_that_nobody_knows_are_refused(url, message, tmp_path):
    with pytest.raises(BadRequest, match=f"--mirror {url}.*{message}"):
        api.train("debug", **TINY, out=tmp_path / "run", mirror=url)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("url", ["", "nowhere://x"])
def test_places_that_nobody_knows_are_refused_before_a_table_begins(url, tmp_path):
    with pytest.raises(BadRequest, match="--mirror"):
        api.compare("debug", memories=["none"], out=tmp_path / "table", mirror=url)
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("url", ["", "{run}", "{run}/copy", "{run}/..", "file://{run}/../../x/.."])
def test_no_place_in_the_folder_or_around_it(url, tmp_path):
    folder = tmp_path / "runs/a"
    with pytest.raises(BadRequest, match="--mirror"):
        api.train("debug", **TINY, out=folder, mirror=url.format(run=folder))
    assert not list(tmp_path.rglob("*"))


def test_what_is_no_copy_of_a_run_is_refused_and_left_alone(tmp_path):
    place = tmp_path / "place"
    (place / "thesis").mkdir(parents=True)
    (place / "thesis/chapter.tex").write_text("years of work")
    for url, message in ((place, "thesis/chapter.tex"), (place / "thesis/chapter.tex", "is a file")):
        for resume in (False, True):
            with pytest.raises(BadRequest, match=message):
                api.train("debug", **TINY, out=tmp_path / "run", mirror=str(url), resume=resume)
    files(tmp_path / "begun")
    with pytest.raises(BadRequest, match=r"is complete and .* is not"):
        Mirror(str(place), tmp_path / "begun").finish()
    assert names(place) == {"thesis/chapter.tex"}
    assert not (tmp_path / "run").exists()


def test_files_of_others_beside_a_copy_stay(tmp_path):
    files(tmp_path / "run")
    mirror = Mirror(str(tmp_path / "copy"), tmp_path / "run")
    mirror.update()
    (tmp_path / "copy/notes.txt").write_text("mine")
    mirror.finish()
    assert "notes.txt" in names(tmp_path / "copy")


def test_the_copy_of_another_run_is_refused_and_left_alone(tmp_path):
    files(tmp_path / "first", "first")
    copy = str(tmp_path / "copy")
    Mirror(copy, tmp_path / "first").update()
    files(tmp_path / "second", "second")
    with pytest.raises(BadRequest, match="copy of another run"):
        Mirror(copy, tmp_path / "second").fetch()
    with pytest.raises(BadRequest, match=r"is complete and .* is not"):
        Mirror(copy, tmp_path / "second").finish()
    assert (tmp_path / "copy/config.yaml").read_text() == "first"


def test_a_copy_of_another_configuration_is_not_fetched(tmp_path):
    api.train("debug", **TINY, out=tmp_path / "first", quiet=True, mirror=str(tmp_path / "copy"))
    with pytest.raises(BadRequest, match="another configuration; these differ: memory"):
        api.train(
            "debug", **{**TINY, "memory": "gru"}, out=tmp_path / "new", resume=True, mirror=str(tmp_path / "copy")
        )
    assert not (tmp_path / "new").exists()


def test_a_file_of_a_disk_is_copied_as_a_whole(tmp_path, monkeypatch):
    files(tmp_path / "run", "old")
    mirror = Mirror(str(tmp_path / "copy"), tmp_path / "run")
    mirror.update()
    (tmp_path / "run/summary.json").write_text("a newer one")
    copyfile = shutil.copyfile

    def cut(source, target):
        Path(target).write_text("a n")
        raise OSError("the machine is gone")

    monkeypatch.setattr(shutil, "copyfile", cut)
    mirror.update()
    assert (tmp_path / "copy/summary.json").read_text() == "old"
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    mirror.finish()
    assert (tmp_path / "copy/summary.json").read_text() == "a newer one"
