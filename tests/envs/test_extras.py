"""Packages that only some environments need: where one is missing, a line says what brings it."""

import sys

import numpy as np
import pytest

from engram.envs import datasets
from engram.envs.datasets import Episodes, Origin
from engram.envs.host import atari
from engram.envs.registry import env_ids, make, make_vector
from engram.errors import MissingExtra

EPISODES = Episodes(
    obs=np.zeros((3, 1), np.float32),
    action=np.zeros(2, np.int32),
    reward=np.zeros(2, np.float32),
    terminated=np.array([True]),
    lengths=np.array([2]),
    origin=Origin(env=""),
    num_actions=2,
)


@pytest.fixture
def hide(monkeypatch):
    def hide(package: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        atari.games.cache_clear()

    yield hide
    atari.games.cache_clear()


@pytest.mark.parametrize(
    ("package", "what", "extra", "use"),
    [
        ("ale_py", "atari/...", "atari", lambda folder: make_vector("atari/Pong", 1)),
        ("cv2", "atari/...", "atari", lambda folder: make_vector("atari/Pong", 1)),
        ("ale_py", "gymnasium/ALE/Pong-v5", "atari", lambda folder: make_vector("gymnasium/ALE/Pong-v5", 1)),
        ("sklearn", "classification/wine", "bandits", lambda folder: make("classification/wine")),
        ("h5py", "none.hdf5 (HDF5)", "offline", lambda folder: datasets.save(EPISODES, folder / "none.hdf5")),
        ("h5py", "none-v0 (HDF5)", "offline", lambda folder: datasets.save(EPISODES, folder / "none-v0")),
        ("h5py", "there.hdf5 (HDF5)", "offline", lambda folder: datasets.load(folder / "there.hdf5")),
        ("h5py", "there-v0 (HDF5)", "offline", lambda folder: datasets.load(folder / "there-v0")),
        ("xminigrid", "meta/XLand", "xland", lambda folder: make("meta/XLand")),
        ("craftax", "meta/Craftax", "craftax", lambda folder: make("meta/Craftax")),
        ("craftax", "meta/CraftaxClassic", "craftax", lambda folder: make("meta/CraftaxClassic")),
    ],
)
def test_a_missing_package_is_told_in_one_line(tmp_path, hide, package, what, extra, use):
    datasets.save(EPISODES, tmp_path / "there.hdf5")
    datasets.save(EPISODES, tmp_path / "there-v0")
    hide(package)
    with pytest.raises(MissingExtra) as error:
        use(tmp_path)
    assert str(error.value).removeprefix(f"{tmp_path}/") == (
        f'{what} needs an optional dependency: pip install "engram[{extra}]"'
    )
    assert not list(tmp_path.glob("*none*")), "nothing was written"


def test_what_needs_no_extra_is_there_without_it(hide):
    for package in ("ale_py", "cv2", "h5py", "sklearn", "xminigrid", "craftax"):
        hide(package)
    assert env_ids("atar") == []
    with pytest.raises(MissingExtra):
        env_ids("atari/")
    assert make_vector("gymnasium/CartPole-v1", 2).num_envs == 2
    assert make("meta/Bandit").max_steps(None) == 100


def test_a_mistake_inside_a_package_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("import no_such_package")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        make("classification/wine")
