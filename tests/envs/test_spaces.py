"""Spaces: samples lie inside and are spread evenly."""

import jax
import numpy as np
import pytest

from engram.envs.spaces import Discrete, MultiDiscrete, uniform_below


@pytest.mark.parametrize("n", [1, 2, 7, 52, 65_535, 65_536])
def test_uniform_below_is_the_random_word_scaled_down(n):
    """In Python's integers, which do not overflow."""
    key = jax.random.key(n)
    words = np.asarray(jax.random.bits(key, (1000,), "uint32"))
    drawn = np.asarray(uniform_below(key, n, (1000,)))
    assert drawn.dtype == np.int32
    assert drawn.tolist() == [int(word) * n >> 32 for word in words]


@pytest.mark.parametrize("n", [0, -1, 65_537, np.array([3, 1 << 20])])
def test_uniform_below_refuses_what_it_cannot_do(n):
    with pytest.raises(ValueError, match=r"n must lie in 1 \.\. 65536"):
        uniform_below(jax.random.key(0), n, np.shape(n))


def test_samples_of_discrete_spaces_are_uniform():
    """Within 5 standard deviations of the expected count, for every value of every entry."""
    keys, n = jax.random.split(jax.random.key(0), 20_000), (3, 10, 64)
    many = np.asarray(jax.vmap(MultiDiscrete(n).sample)(keys))
    columns = [(many[:, i], size) for i, size in enumerate(n)]
    columns.append((np.asarray(jax.vmap(Discrete(5).sample)(keys)), 5))
    for column, size in columns:
        counts = np.bincount(column, minlength=size)
        assert len(counts) == size
        expected = len(keys) / size
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert abs(np.corrcoef(many[:, 1], many[:, 2])[0, 1]) < 0.05


def test_samples_of_large_spaces():
    n = 1_000_000
    drawn = np.asarray(jax.vmap(Discrete(n).sample)(jax.random.split(jax.random.key(1), 2000)))
    assert drawn.min() >= 0
    assert n * 0.99 < drawn.max() < n
