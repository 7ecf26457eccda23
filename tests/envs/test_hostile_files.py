"""Datasets that were made to harm: each is refused in one line, at once, without the memory that it asks for."""

import json
import os
import signal
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from engram.envs.datasets import Episodes, load, save
from engram.envs.datasets.files import ALWAYS
from engram.errors import BadRequest
from engram.regular_files import read_json, read_text
from tests.envs.test_datasets import random_episodes

SECONDS = 20
"""After which a case hangs."""
ROWS = 6


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Case = Callable[[Path], Path]
"""Makes a file in a folder, and returns what is loaded."""
CASES: dict[str, Case] = {}


# --------------------------------------------------------------------------------------------------- no regular files


def special(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path.parent / "s"))
            os.rename(path.parent / "s", path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to({"zero": "/dev/zero", "null": "/dev/null", "loop": path.name}[kind])

    return make


PLACES = ("set.npz", "set.hdf5", "set.h5", "set.csv", "ns/set-v0/data/metadata.json", "ns/set-v0/data/main_data.hdf5")
for _kind in ("pipe", "socket", "folder", "zero", "null", "loop"):
    for _place in PLACES:

        def _special(folder: Path, kind: str = _kind, place: str = _place) -> Path:
            dataset = folder / place
            if place.startswith("ns/"):
                dataset = folder / "ns" / "set-v0"
                save(random_episodes(0, False), dataset)
                (folder / place).unlink()
            special(kind)(folder / place)
            return dataset

        CASES[f"{_kind} for {_place}"] = _special

# ----------------------------------------------------------------------------------------------------------------- npz


def npz(**changes: Any) -> Case:
    def make(folder: Path) -> Path:
        path = folder / "set.npz"
        save(random_episodes(0, False), path)
        with np.load(path) as stored:
            arrays = {**stored, **changes}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return make


def header(**changes: Any) -> Case:
    whole = {"version": 1, "num_actions": None, "origin": {"env": "", "keep": []}}
    return npz(header=np.array(json.dumps(whole | changes)))


def raw_npz(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> Case:
    """With the bytes `content` in place of an array."""

    def make(folder: Path) -> Path:
        path = npz(**{name: None})(folder)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", content, compression)
        return path

    return make


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


for _name in ("obs", "action", "reward", "terminated", "lengths", "action_low", "action_high"):
    for _what, _array in {
        "text": np.array(["a", "b"]),
        "complex": np.ones(3, complex),
        "dates": np.zeros(3, "datetime64[s]"),
        "a record": np.zeros(3, "f4,i4"),
        "objects": np.array([None, {}], object),
        "one number": np.float32(1.0),
        "seven axes": np.zeros((1,) * 7, np.float32),
        "NaN": np.full(21, np.nan),
        "fractions": np.full(3, 1.7),
    }.items():
        if not (_name in ("action_low", "action_high") and _array.size == 1):  # which holds for every entry
            CASES[f"npz: {_name} is {_what}"] = npz(**{_name: _array})
    CASES[f"npz: {_name} declares 2 GB"] = raw_npz(_name, npy("'<f4'", "(536870912,)", b"1234"))
    CASES[f"npz: {_name} expands to 300 MB"] = raw_npz(
        _name, npy("'|u1'", "(300000000,)", bytes(300)), zipfile.ZIP_DEFLATED
    )
for _what, _lengths in {
    "wrap around": [2**62, 2**62, 2**62, 2**62 + 20],
    "are negative": [-1, 22],
    "are empty": [],
    "are one too many": [21],
}.items():
    CASES[f"npz: lengths {_what}"] = npz(lengths=np.array(_lengths, np.int64))
CASES |= {
    "npz: actions of 2^40": npz(
        action=np.full(21, 2**40), action_low=None, header=np.array('{"version": 1, "num_actions": 4, "origin": {}}')
    ),
    "npz: reversed bounds": npz(action_low=np.array([2.0, 2.0]), action_high=np.array([-2.0, 3.0])),
    "npz: bounds that are NaN": npz(action_low=np.full(2, np.nan)),
    "npz: ends that are 2": npz(terminated=np.full(7, 2)),
    "npz: python literal that is deep": raw_npz("obs", npy("(" * 3000, "(1,)")),
    "npz: unclosed string": raw_npz("obs", npy("'''", "(1,)")),
    "npz: negative shape": raw_npz("obs", npy("'<f4'", "(-1,)")),
    "npz: shape of a float": raw_npz("obs", npy("'<f4'", "(1.5,)")),
    "npz: type of no bytes": raw_npz("obs", npy("'<U0'", "(9999999999999,)")),
    "npz: type in a type": raw_npz("obs", npy("('<f4', (536870912,))", "(1,)")),
    "npz: no magic": raw_npz("obs", b"\x80\x04."),
    "npz: nothing at all": raw_npz("obs", b""),
    "npz: version 9": raw_npz("obs", b"\x93NUMPY\x09\x00\xff\xff"),
    "npz: lzma": raw_npz("obs", npy("'<f4'", "(1,)", b"1234"), zipfile.ZIP_LZMA),
    "npz: header is deep": npz(header=np.array('{"version":' + "[" * 100_000)),
    "npz: header is a list": npz(header=np.array("[]")),
    "npz: header of a number": npz(header=np.array(7)),
    "npz: header of huge digits": npz(header=np.array('{"version":' + "9" * 5000 + "}")),
    "npz: no members": lambda folder: (zipfile.ZipFile(folder / "set.npz", "w").close(), folder / "set.npz")[1],
}
for _key, _values in {
    "version": (True and "1", 2, None, []),
    "num_actions": ("3", 1.5, [], 2**40, 0, -1, float("nan")),
    "origin": (None, [], "text", 7, {}),
}.items():
    for _value in _values:
        CASES[f"npz: {_key} of the header is {_value!r}"] = header(**{_key: _value})
for _key, _values in {
    "env": (None, 3, [], {"a": 1}),
    "keep": (None, 3, ["a"], [1.5], [True], [2**70]),
    "time_limit": ("a", None, 1.5, 2**70, []),
    "seed": ("a", 1.5, []),
    "score": ("a", [], float("nan"), float("inf"), 2**1100),
    "ref_min": ("a", [], float("nan"), True),
    "ref_max": ("a", {}, float("-inf")),
    "algorithm": (None, 3),
    "colour": ("red",),
}.items():
    for _index, _value in enumerate(_values):
        CASES[f"npz: {_key} of the origin, {_index}"] = header(origin={"env": "", "keep": [], _key: _value})

# ---------------------------------------------------------------------------------------------------------------- HDF5

SECRET = np.arange(100, dtype=np.float32)


def columns() -> dict[str, np.ndarray]:
    number = np.arange(ROWS, dtype=np.float32)
    return {
        "observations": number[:, None],
        "actions": number[:, None] / 10,
        "rewards": number,
        "terminals": np.zeros(ROWS, bool),
        "timeouts": np.arange(ROWS) == ROWS - 1,
        "next_observations": number[:, None] + 1,
    }


def hdf5(name: str, put: Callable[[Any, Path], None]) -> Case:
    """D4RL's columns, but for `name`, which `put` makes in the open file."""

    def make(folder: Path) -> Path:
        path = folder / "set.hdf5"
        with h5py.File(folder / "secret.hdf5", "w") as secret:
            secret["secret"] = SECRET[:ROWS]
        (folder / "secret.bin").write_bytes(SECRET.tobytes())
        with h5py.File(path, "w") as file:
            for column, array in columns().items():
                if column != name:
                    file[column] = array
            put(file, folder)
        return path

    return make


def minari(name: str, put: Callable[[Any, Path], None]) -> Case:
    """A Minari dataset whose first episode has `name` made by `put`."""

    def make(folder: Path) -> Path:
        path = folder / "ns" / "set-v0"
        save(random_episodes(0, False), path)
        with h5py.File(folder / "secret.hdf5", "w") as secret:
            secret["secret"] = SECRET[:ROWS]
        (folder / "secret.bin").write_bytes(SECRET.tobytes())
        with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
            del file[f"episode_0/{name}"]
            put(file["episode_0"], folder)
        return path

    return make


def virtual(file: Any, folder: Path, name: str) -> None:
    layout = h5py.VirtualLayout((ROWS,), np.float32)
    layout[:] = h5py.VirtualSource(folder / "secret.hdf5", "secret", shape=(ROWS,))
    file.create_virtual_dataset(name, layout)


PUTS: dict[str, Callable[[Any, Path, str], Any]] = {
    "an external link": lambda file, folder, name: file.__setitem__(
        name, h5py.ExternalLink(str(folder / "secret.hdf5"), "secret")
    ),
    "a link to itself": lambda file, folder, name: file.__setitem__(name, h5py.SoftLink(f"{file.name}/{name}")),
    "a link to nothing": lambda file, folder, name: file.__setitem__(name, h5py.SoftLink("/nothing")),
    "external storage": lambda file, folder, name: file.create_dataset(
        name, (ROWS,), np.float32, external=[(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
    ),
    "virtual": virtual,
    "2 GB of nothing": lambda file, folder, name: file.create_dataset(name, (2**29,), np.float32, chunks=(1024,)),
    "2^62 rows": lambda file, folder, name: file.create_dataset(name, (2**61, 1), np.uint8, chunks=(1024, 1)),
    "no rows of 2^61": lambda file, folder, name: file.create_dataset(
        name, (0, 2**61), np.uint8, chunks=(1, 2**20), maxshape=(None, 2**61)
    ),
    "a chunk of 1 GB": lambda file, folder, name: file.create_dataset(
        name, (ROWS,), np.float32, chunks=(2**28,), maxshape=(None,), compression="gzip"
    ),
    "nothing": lambda file, folder, name: file.__setitem__(name, h5py.Empty("f4")),
    "a group": lambda file, folder, name: file.create_group(name),
    "a type": lambda file, folder, name: file.__setitem__(name, np.dtype("f4")),
    "text": lambda file, folder, name: file.__setitem__(name, ["a"] * ROWS),
    "records": lambda file, folder, name: file.__setitem__(name, np.zeros(ROWS, "f4,i4")),
    "lists": lambda file, folder, name: file.create_dataset(name, (ROWS,), h5py.vlen_dtype(np.float32)),
    "references": lambda file, folder, name: file.create_dataset(name, (ROWS,), h5py.ref_dtype),
    "complex": lambda file, folder, name: file.__setitem__(name, np.ones(ROWS, complex)),
}
for _what, _put in PUTS.items():
    for _name in columns():
        CASES[f"hdf5: {_name} is {_what}"] = hdf5(_name, lambda f, d, put=_put, name=_name: put(f, d, name))
    for _name in ("observations", "actions", "rewards", "terminations"):
        CASES[f"minari: {_name} is {_what}"] = minari(_name, lambda f, d, put=_put, name=_name: put(f, d, name))


def bomb(filters: list[str]) -> Callable[[Any, Path], None]:
    """Rewards in one chunk of 24 bytes, which inflates to 300 MB."""

    def put(file: Any, folder: Path) -> None:
        options = {name: True for name in filters if name != "gzip"} | (
            {"compression": "gzip"} if "gzip" in filters else {}
        )
        rewards = file.create_dataset("rewards", (ROWS,), np.float32, chunks=(ROWS,), **options)
        rewards.id.write_direct_chunk((0,), zlib.compress(bytes(300 * 2**20)))

    return put


def inflated_twice(file: Any, folder: Path) -> None:
    kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kind.set_chunk((ROWS,))
    kind.set_deflate(9)
    kind.set_deflate(9)
    space = h5py.h5s.create_simple((ROWS,))
    h5py.h5d.create(file.id, b"rewards", h5py.h5t.NATIVE_FLOAT, space, kind)


CASES |= {
    "hdf5: a chunk that inflates": hdf5("rewards", bomb(["gzip"])),
    "hdf5: a chunk that inflates, shuffled and with a checksum": hdf5(
        "rewards", bomb(["gzip", "shuffle", "fletcher32"])
    ),
    "hdf5: a chunk that is inflated twice": hdf5("rewards", inflated_twice),
    "hdf5: a filter that is not usual": hdf5(
        "rewards", lambda f, d: f.create_dataset("rewards", (ROWS,), np.int32, chunks=(ROWS,), scaleoffset=0)
    ),
}


def described(**metadata: Any) -> Case:
    return hdf5("", lambda file, folder: file.update({f"metadata/{name}": value for name, value in metadata.items()}))


CASES |= {
    "hdf5: origin is deep": described(origin="[" * 100_000),
    "hdf5: origin is a number": described(origin=7),
    "hdf5: origin is two texts": described(origin=["{}", "{}"]),
    "hdf5: three counts": described(num_actions=[1, 2, 3]),
    "hdf5: a count of fractions": described(num_actions=1.5),
    "hdf5: a count that is text": described(num_actions="a"),
    "hdf5: one bound": described(action_low=-1.0),
    "hdf5: bounds of another width": described(action_low=[-1.0, -1.0], action_high=[1.0, 1.0]),
    "hdf5: reversed bounds": described(action_low=1.0, action_high=-1.0),
    "hdf5: ends that are NaN": hdf5("terminals", lambda f, d: f.update({"terminals": np.full(ROWS, np.nan)})),
    "hdf5: ends that are halves": hdf5("timeouts", lambda f, d: f.update({"timeouts": np.full(ROWS, 0.5)})),
    "hdf5: actions of 2^40": hdf5("actions", lambda f, d: f.update({"actions": np.full(ROWS, 2**40)})),
    "hdf5: whole numbers that float32 cannot hold": hdf5(
        "observations", lambda f, d: f.update({"observations": np.full((ROWS, 1), 2**24 + 1)})
    ),
}

# -------------------------------------------------------------------------------------------------------------- Minari


def metadata(text: str | bytes | None = None, **changes: Any) -> Case:
    def make(folder: Path) -> Path:
        path = folder / "ns" / "set-v0"
        save(random_episodes(0, False), path)
        file = path / "data" / "metadata.json"
        if text is None:
            values = json.loads(file.read_text()) | changes
            if "env_spec" in changes:  # which is read where Engram has not written
                del values["origin"]
            file.write_text(json.dumps(values))
        else:
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


BOX = {"type": "Box", "dtype": "float32", "shape": [2]}
CASES |= {
    "metadata: deep": metadata("[" * 100_000),
    "metadata: deep, closed": metadata("[" * 100_000 + "]" * 100_000),
    "metadata: no text": metadata(b"\xff\xfe\x00"),
    "metadata: zeros": metadata(bytes(1000)),
    "metadata: digits": metadata("9" * 5000),
    "metadata: text": metadata('"text"'),
    "metadata: null": metadata("null"),
    "metadata: empty": metadata(""),
}
for _key, _values in {
    "data_format": (None, 3, [], {}),
    "total_episodes": (None, "7", 7.5, [], 2**70),
    "observation_space": (
        None,
        3,
        "3",
        "null",
        '"Box"',
        "{}]",
        "[" * 10_000,
        '{"type": []}',
        '{"type": "Text"}',
        *map(
            json.dumps,
            (
                {"type": "Discrete", "n": 10**12, "start": 0},
                {"type": "Discrete", "n": "a"},
                {"type": "Discrete"},
                {"type": "MultiDiscrete", "nvec": [[1], [2, 3]]},
                {"type": "MultiDiscrete", "nvec": [2**70]},
                {"type": "MultiBinary", "n": 3, "start": "a"},
                {"type": "Tuple", "subspaces": {}},
                {"type": "Tuple", "subspaces": [BOX]},
                {"type": "Dict", "subspaces": [BOX]},
                {"type": "Dict", "subspaces": {"../../x": BOX}},
                {"type": "Dict", "subspaces": {"a": 3}},
            ),
        ),
    ),
    "action_space": (
        None,
        3,
        "null",
        '{"type": null}',
        '{"type": "Discrete", "n": "3"}',
        '{"type": "Discrete"}',
        *map(
            json.dumps,
            (
                BOX | {"low": "a", "high": 1},
                BOX | {"low": [[1], [2, 3]], "high": 1},
                BOX | {"low": [1, 2, 3], "high": [4, 5, 6]},
                BOX | {"low": 1, "high": -1},
                BOX | {"low": None, "high": 1},
                BOX | {"low": float("nan"), "high": 1},
                BOX | {"low": {}, "high": 1},
                {"type": "Discrete", "n": 3, "start": -1},
            ),
        ),
    ),
    "origin": (None, 3, [], {}, "text", {"env": 3, "keep": []}),
}.items():
    for _index, _value in enumerate(_values):
        CASES[f"metadata: {_key}, {_index}"] = metadata(**{_key: _value})
for _index, _value in enumerate((3, "{", "[]", "null", '{"id": 3}', '{"id": "A", "kwargs": 3}', {}, [])):
    CASES[f"metadata: env_spec, {_index}"] = metadata(env_spec=_value)

# -------------------------------------------------------------------------------------------------------------- tables

TABLE = "observations_0,observations_1,actions,rewards,terminals,timeouts\n"


def table(text: str | bytes) -> Case:
    def make(folder: Path) -> Path:
        (folder / "set.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder / "set.csv"

    return make


for _what, _text in {
    "no rows": TABLE,
    "words": TABLE + "1,2,a,3,0,0\n",
    "ragged": TABLE + "1,2,3,4,0,0\n1,2,3\n",
    "wide": TABLE + "1,2,3,4,0,0,7\n",
    "two of one name": TABLE.replace("observations_1", "observations_0") + "1,2,3,4,0,1\n",
    "half an end": TABLE + "1,2,3,4,0.5,0\n1,2,3,4,0,1\n",
    "NaN": TABLE + "nan,2,0,4,0,0\n1,2,0,4,0,1\n",
    "infinity": TABLE + "1,2,0.5,1e999,0,0\n1,2,0,4,0,1\n",
    "large actions": TABLE + "1,2,1099511627776,4,0,0\n1,2,0,4,0,1\n",
    "code": TABLE + "1,2,__import__('os').abort(),4,0,0\n",
    "no text": b"\xff\xfe\x00\x01",
    "zeros": bytes(1000),
    "a field of 200,000": '"' + "a" * 200_000,
    "a huge number": TABLE + "9" * 5000 + ",2,0,4,0,0\n1,2,0,4,0,1\n",
}.items():
    CASES[f"csv: {_what}"] = table(_text)


@pytest.mark.parametrize("name", CASES)
def test_hostile_datasets_are_refused_in_one_line(name, tmp_path):
    path = CASES[name](tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest) as error:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert peak < ALWAYS, "memory that the file cannot fill"


def test_there_are_many_cases():
    assert len(CASES) >= 350


# -------------------------------------------------------------------------------------------------- damaged at random


def test_large_files_that_are_compressed_are_read(tmp_path):
    """Chunks of which all are inflated to see whether they stay in theirs."""
    rng = np.random.default_rng(0)
    rows = 2**19
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        noise = rng.integers(0, 2**16, (rows, 2)).astype(np.float32)
        for name, column in {
            "observations": noise,
            "actions": np.zeros((rows, 1), np.float32),
            "rewards": np.zeros(rows, np.float32),
            "terminals": np.arange(rows) == rows - 1,
        }.items():
            options = {"shuffle": True, "fletcher32": True, "compression": "gzip", "compression_opts": 1}
            file.create_dataset(name, data=column, chunks=(rows // 2, *column.shape[1:]), **options)
    read = load(tmp_path / "set.hdf5", max_episode_steps=rows)
    np.testing.assert_array_equal(read.obs[:rows], noise)


@pytest.mark.parametrize(
    "name", ["set.npz", "set.hdf5", "ns/set-v0/data/main_data.hdf5", "ns/set-v0/data/metadata.json"]
)
def test_flipped_and_missing_bytes_give_a_dataset_or_one_line(name, tmp_path):
    """A dataset whose episodes fit together, or one line; in most places of these files a byte is a number."""
    file = tmp_path / name
    dataset = file if file.parent == tmp_path else tmp_path / "ns" / "set-v0"
    save(random_episodes(0, True), dataset)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            broken[at] ^= 1 << rng.integers(8)
        if rng.random() < 0.3:
            broken = broken[: rng.integers(len(whole))]
        file.write_bytes(broken)
        outcome: Any = None
        try:
            outcome = load(dataset)
        except BadRequest as error:
            outcome = str(error)
        assert isinstance(outcome, Episodes) or (outcome.startswith(f"{dataset}: ") and "\n" not in outcome)


def test_text_and_json_of_hostile_files(tmp_path):
    path = tmp_path / "text"
    path.write_text("x" * 100)
    assert read_text(path, 100) == "x" * 100
    with pytest.raises(BadRequest, match="more than 99 bytes"):
        read_text(path, 99)
    for content in (b"\xff", b"[" * 100_000, b"{", b"", b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(BadRequest, match="is damaged"):
            read_json(path)
    with pytest.raises(BadRequest, match="no name of a file"):
        read_text(Path("a\0b"))
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["SZIP", "NBIT", "SCALEOFFSET"])
def test_a_filter_that_is_not_read_is_named_with_the_way_out(name, tmp_path):
    number = getattr(h5py.h5z, f"FILTER_{name}")
    if not h5py.h5z.filter_avail(number):
        pytest.skip(f"this HDF5 has no filter {name}")

    def put(file: Any, folder: Path) -> None:
        kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        kind.set_chunk((ROWS,))
        if name == "SZIP":
            kind.set_szip(h5py.h5z.SZIP_NN_OPTION_MASK, 2)
        elif name == "SCALEOFFSET":
            kind.set_scaleoffset(h5py.h5z.SO_INT, 0)
        else:
            kind.set_filter(number)
        space = h5py.h5s.create_simple((ROWS,))
        h5py.h5d.create(file.id, b"rewards", h5py.h5t.NATIVE_INT32, space, kind)

    path = hdf5("rewards", put)(tmp_path)
    with pytest.raises(BadRequest, match=rf"rewards .*\({name.lower()}\): h5repack -f GZIP=1 OLD NEW") as error:
        load(path)
    assert "\n" not in str(error.value)
