"""Replay: draws against exact probabilities, and rows tagged with their lane and number against a log in Python."""

import itertools
from collections import deque
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engram.worldmodels.replay import Replay, ReplayState

pytestmark = pytest.mark.usefixtures("quickly_compiled")
REPLAY = Replay(capacity=5, lanes=2, sampling="frequency", temperature=2.0, imagine_temperature=3.0, ratio=4.0)
LENGTH, DRAWS = 3, 20_000
TRAINED = np.array([[0, 4], [1, 9], [3, 0], [2, 2], [7, 5]])
IMAGINED = np.array([[8, 4], [0, 60], [10, 0], [9, 9], [7, 5]])


def add_all(replay: Replay, rows: int) -> ReplayState:
    """`rows` rows in every lane, each of which holds its number."""
    state = replay.init(jnp.zeros((), jnp.int32))
    for row in range(rows):
        state = replay.add(state, jnp.full(replay.lanes, row, jnp.int32), jnp.ones(replay.lanes, bool))
    return state


def inclusion(weights: np.ndarray, n: int) -> np.ndarray:
    """Chance of each item to be among `n` drawn one after another without replacement (Plackett 1975, Luce 1959)."""
    out = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), n):
        chance, left = 1.0, weights.sum()
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        out[list(order)] += chance
    return out


def training_weights(trained, imagined):
    return np.exp(-trained / 2.0)


def imagination_weights(trained, imagined):
    """As published, with alpha = beta = 1; 4 imagined starts count as one."""
    m = imagined / 4.0
    return np.exp((trained - m - np.maximum(0.0, trained - m)) / 3.0)


def uniform_weights(trained, imagined):
    return np.ones(len(trained))


@pytest.mark.parametrize(
    ("kind", "sampling", "weights"),
    [
        ("training", "frequency", training_weights),
        ("imagination", "frequency", imagination_weights),
        ("training", "uniform", uniform_weights),
        ("imagination", "uniform", uniform_weights),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_draws_have_the_published_probabilities(kind, sampling, weights, n):
    replay = replace(REPLAY, sampling=sampling)
    # Rows 0 .. 4 are overwritten up to row 1: the starts in order of age are rows 2, 3, 4.
    state = add_all(replay, 7).replace(trained=jnp.asarray(TRAINED), imagined=jnp.asarray(IMAGINED))
    draw = replay.draw_training if kind == "training" else replay.draw_imagination
    keys = jax.random.split(jax.random.key(0), DRAWS)
    starts = np.asarray(jax.jit(jax.vmap(lambda key: draw(state, key, n, LENGTH)[1]))(keys))
    assert all(len(set(drawn)) == n for drawn in starts)
    valid = [2 * row + lane for row in (2, 3, 4) for lane in (0, 1)]
    assert set(starts.reshape(-1)) <= set(valid)
    expected = inclusion(weights(TRAINED.reshape(-1)[valid], IMAGINED.reshape(-1)[valid]), n)
    shares = np.array([(starts == start).any(-1).mean() for start in valid])
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-4).all(), (shares, expected)


def test_only_the_drawn_starts_are_counted_each_kind_on_its_own():
    state = add_all(REPLAY, 5)
    after, starts = REPLAY.draw_training(state, jax.random.key(0), 2, LENGTH)
    expected = np.zeros(10, int)
    expected[np.asarray(starts)] = 1
    np.testing.assert_array_equal(np.asarray(after.trained).reshape(-1), expected)
    assert not np.asarray(after.imagined).any()
    after, starts = REPLAY.draw_imagination(state, jax.random.key(1), 2, LENGTH)
    expected = np.zeros(10, int)
    expected[np.asarray(starts)] = 1
    np.testing.assert_array_equal(np.asarray(after.imagined).reshape(-1), expected)
    assert not np.asarray(after.trained).any()


def test_counts_in_the_thousands_still_give_probabilities():
    """exp(-n / tau) itself would be 0 for all."""
    state = add_all(REPLAY, 5).replace(trained=jnp.full((5, 2), 3000).at[1, 1].set(0))
    starts = REPLAY.draw_training(state, jax.random.key(0), 1, LENGTH)[1]
    assert int(starts[0]) == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_windows_are_rows_of_one_lane_one_after_another(seed):
    """Hundreds of random steps in three lanes that pause at random, far beyond the capacity."""
    rng = np.random.default_rng(seed)
    lanes, capacity, length, n = 3, 11, 4, 5
    replay = Replay(capacity, lanes, "frequency", 1.0, 1.0, 2.0)
    row = {"lane": jnp.zeros((), jnp.int32), "serial": jnp.zeros((2,), jnp.int32)}
    add, windows = jax.jit(replay.add), jax.jit(replay.windows, static_argnums=2)
    draws = {
        "trained": jax.jit(replay.draw_training, static_argnums=(2, 3)),
        "imagined": jax.jit(replay.draw_imagination, static_argnums=(2, 3)),
    }
    is_start = jax.jit(replay.is_start, static_argnums=1)

    state = replay.init(row)
    kept = [deque(maxlen=capacity) for _ in range(lanes)]  # serial numbers, oldest first
    counts = {"trained": {}, "imagined": {}}
    written = [0] * lanes
    pace = rng.uniform(0.3, 1.0, lanes)
    for time in range(200):
        valid = rng.random(lanes) < pace
        serial = np.stack([written, -np.array(written)], 1)
        state = add(state, {"lane": jnp.arange(lanes), "serial": jnp.asarray(serial)}, jnp.asarray(valid))
        for lane in np.flatnonzero(valid):
            kept[lane].append(written[lane])
            written[lane] += 1

        serials = np.asarray(state.rows["serial"])[..., 0]
        allowed = {(lane, s) for lane in range(lanes) for s in list(kept[lane])[: max(0, len(kept[lane]) - length + 1)]}
        flagged = [(lane, serials[r, lane]) for r, lane in np.argwhere(np.asarray(is_start(state, length)))]
        assert set(flagged) == allowed
        assert len(flagged) == len(allowed)

        if len(allowed) >= n and time % 3 == 0:
            name = ("trained", "imagined")[time % 2]
            state, starts = draws[name](state, jax.random.key(time), n, length)
            assert len(set(np.asarray(starts).tolist())) == n
            drawn = jax.tree.map(np.asarray, windows(state, starts, length))
            for i in range(n):
                lane, first = drawn["lane"][0, i], drawn["serial"][0, i, 0]
                assert (lane, first) in allowed
                np.testing.assert_array_equal(drawn["lane"][:, i], lane)
                np.testing.assert_array_equal(drawn["serial"][:, i, 0], np.arange(first, first + length))
                np.testing.assert_array_equal(drawn["serial"][:, i, 1], -np.arange(first, first + length))
                counts[name][lane, first] = counts[name].get((lane, first), 0) + 1

        if time % 10 == 0:
            for name, of_kind in counts.items():
                array = np.asarray(getattr(state, name))
                assert array.sum() == sum(c for (lane, s), c in of_kind.items() if s in kept[lane])
                for r, lane in np.argwhere(array):
                    assert array[r, lane] == of_kind[lane, serials[r, lane]], "a new row begins with a count of 0"
    assert min(written) > 2 * capacity
