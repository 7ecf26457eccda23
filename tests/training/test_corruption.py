"""Checkpoints damaged in hundreds of ways: the right state, the one before it, or one line; never a wrong state."""

import errno
import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from engram.errors import BadRequest
from engram.training import checkpoint
from engram.training.checkpoint import Progress
from tests.training.test_checkpoint import assert_same, save, state, template

Damage = tuple[str, Callable[[Path], object]]
"""Its name, and what does it to a folder of checkpoints."""
NEWEST, BEFORE = 2, 1


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """The checkpoints 1 and 2."""
    root = tmp_path_factory.mktemp("intact") / "checkpoints"
    root.mkdir()
    for chunk in (BEFORE, NEWEST):
        save(root, chunk)
    return root


TEMPLATE = template()
made = functools.cache(state)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Puts what `make` makes in the place of a file or folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def flipped(data: bytes, *bits: int) -> bytes:
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damages_of_files(intact: Path) -> Iterator[Damage]:
    """Of every file of the newest checkpoint."""
    rng = random.Random(0)
    files = sorted(p.relative_to(intact) for p in (intact / str(NEWEST)).rglob("*") if p.is_file())
    for name in files:
        data = (intact / name).read_bytes()
        bits = 8 * len(data)
        contents = {
            "empty": b"",
            "half": data[: len(data) // 2],
            "one byte less": data[:-1],
            "one byte more": data + b"\0",
            "first bit": flipped(data, 0),
            "last bit": flipped(data, bits - 1),
            "a few bits": flipped(data, *rng.sample(range(bits), 5)),
            "zeros": bytes(len(data)),
            "noise": rng.randbytes(len(data)),
            "another file": (intact / files[files.index(name) - 1]).read_bytes(),
        }
        for what, content in contents.items():
            yield f"{name}: {what}", lambda root, name=name, content=content: (root / name).write_bytes(content)
        others = {
            "gone": lambda path: None,
            "a folder": Path.mkdir,
            "a pipe": os.mkfifo,
            "a device without end": lambda path: path.symlink_to("/dev/zero"),
            "a link to nothing": lambda path: path.symlink_to("nothing"),
            "a link to itself": lambda path: path.symlink_to(path),
        }
        for what, make in others.items():
            yield f"{name}: {what}", lambda root, name=name, make=make: replace(root / name, make)


def damages_of_the_manifest(intact: Path) -> Iterator[Damage]:
    """Single bits, hostile texts, entries of other types and values, with and without a checksum that fits."""
    name = f"{NEWEST}/manifest.json"
    data = (intact / name).read_bytes()
    texts: dict[str, str | bytes] = {
        **{f"bit {bit}": flipped(data, bit) for bit in random.Random(1).sample(range(8 * len(data)), 60)},
        "deep": "[" * 100_000,
        "deep objects": '{"a":' * 100_000,
        "long number": '{"chunk": ' + "9" * 100_000 + "}",
        "null": "null",
        "list": "[]",
        "not a number": data.replace(b"1.5", b"NaN"),
        "infinite": data.replace(b"1.5", b"1e999"),
        "other encoding of the same": data.decode().encode("utf-16"),
    }
    manifest = json.loads(data)
    for entry in manifest:
        rest = {key: value for key, value in manifest.items() if key != entry}
        texts[f"without {entry}"] = json.dumps(rest)
        for value in (-1, 2**70, True, "2", [], {}, 0.5):
            changed = manifest | {entry: value}
            texts[f"{entry} {value}"] = json.dumps(changed)
            if entry != "crc32" and not checkpoint.CHECKS[entry](value):
                texts[f"{entry} {value}, sealed"] = json.dumps(changed | {"crc32": checkpoint._own_crc32(changed)})
    texts["one more entry"] = json.dumps(manifest | {"more": 1})
    for what, text in texts.items():
        content = text.encode() if isinstance(text, str) else text
        yield f"manifest: {what}", lambda root, content=content: (root / name).write_bytes(content)


def damages_of_folders(intact: Path) -> Iterator[Damage]:
    """Checkpoints under other names, in pieces, and strange neighbours."""
    newest = str(NEWEST)
    yield "renamed upwards", lambda root: (root / newest).rename(root / "60")
    yield "renamed downwards", lambda root: (root / newest).rename(root / "0")
    yield "copied upwards", lambda root: shutil.copytree(root / newest, root / "3")
    yield "an old one copied upwards", lambda root: shutil.copytree(root / "1", root / "3")
    yield "no arrays", lambda root: shutil.rmtree(root / newest / "state")
    yield (
        "arrays of another",
        lambda root: replace(root / newest / "state", lambda p: shutil.copytree(root / "1/state", p)),
    )
    yield "strange arrays", lambda root: (root / newest / "state" / "more").write_bytes(b"x")
    yield "a folder without content", lambda root: (root / "3").mkdir()
    yield "a file", lambda root: (root / "3").write_bytes(b"x")
    yield "a pipe", lambda root: os.mkfifo(root / "3")
    yield "a link to itself", lambda root: (root / "3").symlink_to(root / "3")
    for name in ("03", "-3", "3.0", "٣", "3 ", "9" * 40, "3.damaged", "3.partial"):
        yield f"a folder {name!r}", lambda root, name=name: (root / name).mkdir()


def restored(root: Path, training: bool) -> tuple[int | None, str]:
    """Number of the checkpoint that is taken, whose state and progress are checked, and what refuses it."""
    try:
        found = checkpoint.restore(root, TEMPLATE, training)
    except BadRequest as error:
        return None, str(error)
    if found is None:
        return None, ""
    assert found[1] == Progress(found[1].chunk, 1.5, [{"env_steps": found[1].chunk}], 7, 8, 9)
    assert_same(found[0], made(found[1].chunk))
    return found[1].chunk, ""


HARMLESS = (
    "a file",
    "a pipe",
    "a folder",
    "a link",
    "copied",
    "an old one",
    "renamed downwards",
)
"""How the names of damages begin that leave the newest checkpoint as it is, or beside others."""


def test_no_damage_gives_a_wrong_state(intact, tmp_path, capfd, monkeypatch):
    kinds = (damages_of_files, damages_of_the_manifest, damages_of_folders)
    damages = {name: damage for kind in kinds for name, damage in kind(intact)}
    assert len(damages) >= 260
    for number, (name, damage) in enumerate(damages.items()):
        root = tmp_path / str(number)
        root.mkdir()
        (root / str(BEFORE)).symlink_to(intact / str(BEFORE))
        shutil.copytree(intact / str(NEWEST), root / str(NEWEST))
        damage(root)
        with monkeypatch.context() as patch:
            if number % 10 and not name.startswith(HARMLESS):  # nine of ten are spared the reading of 1, which is whole
                patch.setattr(checkpoint, "_load", lambda folder, *_: made(int(folder.name)))
            chunk, refused = restored(root, training=True)
        said = capfd.readouterr().err
        assert not refused, name
        if name.startswith(HARMLESS):
            assert chunk in (BEFORE, NEWEST), name
        else:
            assert chunk == BEFORE, name
            assert "is damaged" in said, name
            assert any(path.name.endswith(".damaged") for path in root.iterdir()), name
        assert said.count("\n") == said.count("it is kept as") <= 2, name
        assert checkpoint.checkpoints(root)[-1] == chunk, name


def test_the_next_checkpoints_are_kept_where_all_were_damaged(intact, tmp_path, capfd):
    """Whatever number the damaged ones have: they are set aside and count no more."""
    root = tmp_path / "checkpoints"
    shutil.copytree(intact, root)
    for chunk in (BEFORE, NEWEST):
        (root / str(chunk)).rename(root / str(50 + chunk))
    assert restored(root, training=False) == (None, "")
    assert checkpoint.checkpoints(root) == [51, 52]  # who only reads changes nothing
    assert restored(root, training=True) == (None, "")
    assert "52 is damaged (it is number 2); it is kept as 52.damaged" in capfd.readouterr().err
    for chunk in (1, 2, 3):
        save(root, chunk)
        assert restored(root, training=True)[0] == chunk
    assert sorted(path.name for path in root.iterdir()) == ["2", "3", "51.damaged", "52.damaged"]
    # A second one of the same number does not take the place of the first.
    (root / "3" / "manifest.json").write_text("")
    (root / "3.damaged").mkdir()
    assert restored(root, training=True)[0] == 2
    assert (root / "3.damaged.2" / "manifest.json").exists()


def test_a_manifest_of_an_earlier_version_is_read_and_its_damage_found(intact, tmp_path, capfd):
    """It has no checksum of its own, and counts the lines of metrics instead of holding them."""
    root = tmp_path / "checkpoints"
    shutil.copytree(intact, root)
    file = root / "2" / "manifest.json"
    manifest = json.loads(file.read_text())
    (root / "2" / "metrics.jsonl").unlink()
    del manifest["files"]["metrics.jsonl"]
    old = {"chunk": 2, "files": manifest["files"], "rows": 2, "wall_s": 1.5, "action_bytes": 7}
    file.write_text(json.dumps(old))
    found = checkpoint.restore(root, template())
    assert found is not None
    assert found[1] == Progress(2, 1.5, None, 7, None, None, None)
    assert_same(found[0], state(2))
    for changed in ({"chunk": 3}, {"rows": 3}, {"rows": 60, "chunk": 60}, {"action_bytes": -1}, {"wall_s": "1"}):
        file.write_text(json.dumps(old | changed))
        assert restored(root, training=False)[0] == BEFORE, changed
    file.write_text(json.dumps({key: value for key, value in old.items() if key != "rows"}))
    assert restored(root, training=False)[0] == BEFORE


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("function", ["read_json", "_crc32", "_sizes", "_load", "listdir"])
def test_what_cannot_be_read_is_not_damaged(intact, tmp_path, monkeypatch, code, function):
    """One line, and everything stays as it is: the next try may succeed."""
    root = tmp_path / "checkpoints"
    shutil.copytree(intact, root)

    def fail(*_):
        raise OSError(code, os.strerror(code), str(root / "2" / "some file"))

    monkeypatch.setattr(os if function == "listdir" else checkpoint, function, fail)
    chunk, refused = restored(root, training=True)
    monkeypatch.undo()
    assert chunk is None
    assert refused == f"cannot read {root / '2' / 'some file'}: {os.strerror(code)}; nothing was changed"
    assert restored(root, training=True)[0] == NEWEST


def test_a_file_that_the_user_may_not_read(intact, tmp_path):
    if os.getuid() == 0:
        pytest.skip("root may read everything")
    root = tmp_path / "checkpoints"
    shutil.copytree(intact, root)
    for path in (root / "2" / "manifest.json", root / "2" / "state", root / "2", root):
        mode = path.stat().st_mode
        path.chmod(0)
        assert "Permission denied; nothing was changed" in restored(root, training=True)[1]
        path.chmod(mode)
    assert restored(root, training=True)[0] == NEWEST


def test_keys_of_another_generator_are_one_line(intact):
    """Of the shapes alone `rbg` and `unsafe_rbg` could not be told from each other."""
    with jax.default_prng_impl("unsafe_rbg"):
        other = template()
    with pytest.raises(BadRequest, match=r"random keys of the type key<fry>, not key<urbg>: set JAX_DEFAULT_PRNG_IMPL"):
        checkpoint.restore(intact, other)
