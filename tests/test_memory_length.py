"""`benchmarks.memory_length`: its tasks have the answers that a reader of their inputs finds, its tests count right."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import memory_length as ml
from engram.memory import make_memory

STEPS, BATCH = 70, 3


@pytest.fixture(scope="module")
def drawn():
    """Sequences of every task, as NumPy."""

    @jax.jit
    def draw(key):
        return {name: task.draw(key, STEPS, BATCH) for name, task in ml.TASKS.items()}

    return jax.tree.map(np.asarray, draw(jax.random.key(0)))


def columns(data: Any):
    """Letters, answers and whether they are asked, row by row."""
    for row in range(BATCH):
        yield data.x[:, row], data.answer[:, row], data.asked[:, row]


@pytest.mark.parametrize(("name", "things"), [("s3", 3), ("s5", 5)])
def test_word_problems_are_products_of_permutations(drawn, name, things):
    elements = list(itertools.permutations(range(things)))
    for x, answer, asked in columns(drawn[name]):
        product = tuple(range(things))
        for letter, state in zip(x.argmax(-1), answer, strict=True):
            product = tuple(product[i] for i in elements[letter])
            assert elements[state] == product
        assert asked.all()


@pytest.mark.parametrize(("name", "size"), [("parity", 2), ("counting", 3)])
def test_cyclic_word_problems_are_sums(drawn, name, size):
    data = drawn[name]
    np.testing.assert_array_equal(data.answer, data.x.argmax(-1).cumsum(0) % size)


@pytest.mark.parametrize(("name", "distance"), [("repeat4", 4), ("repeat32", 32)])
def test_repeat_asks_for_the_letter_so_many_steps_before(drawn, name, distance):
    data = drawn[name]
    np.testing.assert_array_equal(data.answer[distance:], data.x.argmax(-1)[:-distance])
    assert data.asked[distance:].all()
    assert not data.asked[:distance].any()


def test_first_asks_for_the_marked_letter(drawn):
    data = drawn["first"]
    assert (data.answer == data.x[0, :, : ml.LETTERS].argmax(-1)).all()
    assert data.x[..., -1].sum(0).tolist() == [1] * BATCH
    assert (data.x[0, :, -1] == 1).all()


@pytest.mark.parametrize(("name", "pairs"), [("recall8", 8), ("recall32", 32)])
def test_recall_asks_for_values_of_keys_shown_before(drawn, name, pairs):
    for x, answer, asked in columns(drawn[name]):
        known = {}
        for now, value, is_asked in zip(x, answer, asked, strict=True):
            key = int(now[: ml.KEYS].argmax())
            if is_asked:
                assert known[key] == value
                assert now[ml.KEYS : -1].sum() == 0  # the value is not shown again
            else:
                known[key] = int(now[ml.KEYS : -1].argmax())
            assert now[-1] == is_asked
        assert len(known) == pairs
        assert asked.sum() == STEPS - pairs


def test_match_compares_with_eight_steps_before(drawn):
    data = drawn["match"]
    letters = data.x.argmax(-1)
    np.testing.assert_array_equal(data.answer[8:], letters[8:] == letters[:-8])
    assert data.asked[16:].all()
    assert 0.3 < data.answer[16:].mean() < 0.7


def test_the_exact_filter_sums_over_all_paths():
    """Against the sum over the 2^7 paths of the hidden chain."""
    data = jax.tree.map(np.asarray, jax.jit(lambda key: ml.hidden(key, 7, BATCH))(jax.random.key(1)))
    for row in range(BATCH):
        signs = data.x[:, row].argmax(-1)
        total = np.zeros(2)
        for path in itertools.product((0, 1), repeat=7):
            p = 0.5
            for before, now in itertools.pairwise(path):
                p *= ml.STAYS if before == now else 1 - ml.STAYS
            for state, sign in zip(path, signs, strict=True):
                p *= ml.RIGHT if state == sign else 1 - ml.RIGHT
            total[path[-1]] += p
        np.testing.assert_allclose(np.exp(data.exact[-1, row]), total / total.sum(), rtol=1e-5)
    assert float(ml.score(data, data.exact)) == pytest.approx(1, abs=1e-5)
    assert float(ml.score(data, data.last)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("name", "count"), [("selective", ml.COPIED), ("blank", 8)])
def test_copies_are_asked_in_order_at_the_end(drawn, name, count):
    for x, answer, asked in columns(drawn[name]):
        letters = x.argmax(-1)
        seen = [letter for letter in letters if letter < ml.CHOICES]
        assert answer[asked].tolist() == seen
        assert len(seen) == count
        assert asked.tolist() == [False] * (STEPS - count) + [True] * count
        assert (letters[asked] == ml.CHOICES + 1).all()


def test_a_score_counts_what_is_asked_and_right():
    data = ml.Sequences(
        jnp.zeros((3, 2, 1)), jnp.array([[1, 0], [1, 1], [0, 1]]), jnp.array([[True] * 2] * 2 + [[False] * 2])
    )
    logits = jnp.zeros((3, 2, 2)).at[..., 1].set(1.0)
    assert float(ml.score(data, logits)) == pytest.approx(3 / 4)


def test_tests_in_parts_see_the_whole_sequence():
    """Parts of 64 steps hand on the state, and each length counts its own last steps."""
    task, model = ml.TASKS["first"], ml.Model(make_memory("gru", 4), ml.LETTERS)
    key = jax.random.key(0)

    @jax.jit
    def both(key):
        data = task.draw(key, 4 * ml.TRAINED, ml.TESTS)
        fresh = model.memory.initial_state(ml.TESTS)
        parameters = model.init(key, fresh, data.x, ml.opened(data.x))
        logits: Any = model.apply(parameters, fresh, data.x, ml.opened(data.x))[1]
        right = (logits.argmax(-1) == data.answer).mean(-1)
        ends = [right[end - ml.LAST : end].mean() for end in (ml.TRAINED, 4 * ml.TRAINED)]
        return ml.scores(task, model, parameters, key, (1, 4)), jnp.stack(ends)

    parts, whole = both(key)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_a_file_is_gone_on_with(tmp_path, monkeypatch, capsys):
    """Cells in the file are not run again; a row for each seed and length."""
    ran = []

    def cell(name, task, seeds, updates, rate):
        ran.append((name, task))
        lengths = [ml.TRAINED * factor for factor in ml.FACTORS]
        return [
            dict(zip(ml.FIELDS, (name, task, str(updates), str(rate), str(seed), str(length), "0.5"), strict=True))
            for seed in range(seeds)
            for length in lengths
        ]

    monkeypatch.setattr(ml, "run_cell", cell)
    monkeypatch.setattr(ml, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(1))
    out = tmp_path / "file.csv"
    for memories in (["gru"], ["gru", "s5"]):
        monkeypatch.setattr(
            "sys.argv", ["x", "--memories", *memories, "--tasks", "parity", "--out", str(out), "--seeds", "2"]
        )
        ml.main()
    assert ran == [("gru", "parity"), ("s5", "parity")]
    assert len(ml.read(out)) == 2 * 2 * len(ml.FACTORS)
    assert "| `s5` | 50 50; 50 50 |" in capsys.readouterr().out


def test_what_lasts_was_learned_and_stays():
    def rows(short, long):
        return [
            {"memory": "gru", "task": "repeat4", "seed": str(seed), "length": str(length), "score": str(score)}
            for length, scores in ((ml.TRAINED, short), (16 * ml.TRAINED, long))
            for seed, score in enumerate(scores)
        ]

    assert ml.lasts(rows([1, 0.9, 0.2], [0.9, 0.95, 0.1]), "gru", "repeat4")
    assert not ml.lasts(rows([1, 0.9, 0.2], [0.7, 0.95, 0.1]), "gru", "repeat4")
    assert not ml.lasts(rows([0.3, 0.3, 0.3], [0.3, 0.3, 0.3]), "gru", "repeat4")  # never learned
