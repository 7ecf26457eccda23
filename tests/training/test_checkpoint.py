"""Checkpoints: exact round trips, and damage of every kind found before it is used."""

import errno
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.errors import BadRequest, InUse
from engram.training import checkpoint
from engram.training.checkpoint import Progress


def state(value: float) -> dict:
    return {
        "params": {"w": jnp.full((2, 3), float(value)), "empty": jnp.zeros((2, 0))},
        "keys": jax.vmap(jax.random.key)(jnp.arange(2)),
        "complex": jnp.full((2,), value + 1j, jnp.complex64),
        "count": jnp.asarray(int(value), jnp.int32),
        "flags": (jnp.array([True, False]), ()),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def save(root, chunk):
    return checkpoint.save(root, state(chunk), Progress(chunk, 1.5, [{"env_steps": chunk}], 7, 8, 9))


def template():
    return jax.eval_shape(lambda: state(0.0))


def test_round_trip_keeps_the_newest_two(tmp_path):
    assert checkpoint.restore(tmp_path / "none", template()) is None
    for chunk in (1, 2, 10):
        save(tmp_path, chunk)
    assert checkpoint.checkpoints(tmp_path) == [2, 10]
    restored, progress = restore(tmp_path)
    assert progress == Progress(10, 1.5, [{"env_steps": 10}], 7, 8, 9)
    assert_same(restored, state(10))


def restore(root):
    found = checkpoint.restore(root, template())
    assert found is not None
    return found


def newest_files(root):
    return [p for p in (root / "2").rglob("*") if p.is_file() and p.stat().st_size]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest"])
def test_damage_to_any_file_is_found_and_the_one_before_used(tmp_path, damage):
    save(tmp_path / "clean", 1)
    save(tmp_path / "clean", 2)
    names = [p.relative_to(tmp_path / "clean") for p in newest_files(tmp_path / "clean")]
    for name in names if damage != "manifest" else ["2/manifest.json"]:
        file = tmp_path / "clean" / name
        data = file.read_bytes()
        if damage == "delete":
            file.unlink()
        elif damage == "flip" and file.name != "manifest.json":
            file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        else:
            file.write_bytes(data[: len(data) // 2])
        restored, progress = restore(tmp_path / "clean")
        assert progress.chunk == 1, name
        assert_same(restored, state(1))
        file.write_bytes(data)
    assert restore(tmp_path / "clean")[1].chunk == 2


def test_an_unfinished_checkpoint_is_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "2.partial").mkdir()
    assert restore(tmp_path)[1].chunk == 1
    checkpoint.remove_unfinished(tmp_path)
    assert restore(tmp_path)[1].chunk == 1
    assert not (tmp_path / "2.partial").exists()


def test_a_state_of_another_shape_is_refused(tmp_path):
    save(tmp_path, 1)
    other = jax.eval_shape(lambda: state(0.0) | {"more": jnp.zeros(3)})
    with pytest.raises(BadRequest, match="does not fit"):
        checkpoint.restore(tmp_path, other)
    wider = jax.eval_shape(lambda: state(0.0) | {"count": jnp.zeros(3)})
    with pytest.raises(BadRequest, match="does not fit"):
        checkpoint.restore(tmp_path, wider)


def test_a_failed_write_leaves_no_trace(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert json.loads((tmp_path / "1" / "manifest.json").read_text())["chunk"] == 1


def test_a_disk_that_takes_no_more_is_one_short_error(tmp_path, capfd):
    """The operating system itself refuses: files may not grow beyond 4 KB."""
    save(tmp_path, 1)
    large = {"w": jnp.asarray(np.random.default_rng(0).normal(size=100_000))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            checkpoint.save(tmp_path, large, Progress(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "2"))
    assert "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    checkpoint.save(tmp_path, large, Progress(2))


def test_who_lost_its_folder_makes_no_checkpoint(tmp_path):
    def lost():
        raise InUse("taken over")

    save(tmp_path, 1)
    with pytest.raises(InUse, match="taken over"):
        checkpoint.save(tmp_path, state(2), Progress(2), lost)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
