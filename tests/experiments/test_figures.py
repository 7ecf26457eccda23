"""What learning curves are drawn from."""

import numpy as np

from engram.experiments.figures import band, missing

ROWS = [
    {"env_steps": 1, "train/return": [None, -90.0, None]},
    {"env_steps": 2, "train/return": [-88.0, -87.0, None], "eval/return": [1.0, None, 2.0]},
    {"env_steps": 3, "train/return": [-80.0, None, None]},
]


def test_a_seed_without_a_number_keeps_its_last_and_one_that_never_had_any_is_counted():
    steps, values = band(ROWS, "train/return")
    np.testing.assert_array_equal(steps, [2, 3])
    np.testing.assert_array_equal(values, [[-88, -87], [-80, -87]])
    assert missing(ROWS, "train/return") == " (2 of 3 seeds)"
    assert missing([row | {"train/return": [1.0, 2.0, 3.0]} for row in ROWS], "train/return") == ""
    assert missing(ROWS, "train/regret") == ""
    assert [len(part) for part in band(ROWS, "train/regret")] == [0, 0]
