"""The space of a sweep: what entries mean, what is refused, what is drawn."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.experiments.space import parse

CONFIG: Any = PRESETS["popgym-fast"]


def test_entries_are_ranges_of_settings():
    space = parse(
        [
            "ppo.learning-rate=log:1e-4:1e-2:3",
            "ppo.entropy+ppo.entropy-end=choice:0,0.1",
            "network.encoder=choice:none,64 32",
            "observation.normalise=choice:on,off",
        ],
        CONFIG,
    )
    assert space.grid()[0] == (1e-4, 0.0, (), True)
    assert [values[0] for values in space.grid()[::8]] == [1e-4, 1e-3, 1e-2]
    assert len({*space.grid()}) == len(space.grid()) == 3 * 2 * 2 * 2
    assert space.settings(space.grid()[-1]) == {
        "ppo.learning_rate": 1e-2,
        "ppo.entropy": 0.1,
        "ppo.entropy_end": 0.1,
        "network.encoder": (64, 32),
        "observation.normalise": False,
    }


def test_a_grid_has_all_whole_numbers_of_a_range():
    space = parse(["network.layers=linear:1:3", "network.width=log:8:128:5"], CONFIG)
    assert space.grid()[:6] == [(1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (2, 8)]
    with pytest.raises(BadRequest, match=r"a grid needs counted values of ppo\.clip"):
        parse(["ppo.clip=linear:0.1:0.3"], CONFIG).grid()


def test_draws_are_even_in_their_range():
    """Whole numbers are equally likely up to both ends; half of `log` lies below the middle of the logarithm."""
    space = parse(["ppo.learning_rate=log:1e-4:1e-2", "network.layers=linear:1:3", "ppo.clip=linear:0.1:0.3"], CONFIG)
    drawn = [space.draw(5, number) for number in range(2000)]
    rates, layers, clips = (np.array(values) for values in zip(*drawn, strict=True))
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    spread = 4 * math.sqrt(2000 / 4)
    assert abs((rates < 1e-3).sum() - 1000) < spread
    assert abs((clips < 0.2).sum() - 1000) < spread
    for number in (1, 2, 3):
        assert abs((layers == number).sum() - 2000 / 3) < spread
    assert drawn[7] == space.draw(5, 7)
    assert drawn[7] != space.draw(6, 7)


def test_drawn_numbers_are_those_that_tables_show():
    space = parse(["ppo.learning_rate=log:1e-4:1e-2"], CONFIG)
    for number in range(50):
        (rate,) = space.draw(0, number)
        assert rate == float(f"{rate:g}")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ppo.learning_rat=log:1e-4:1e-2", r"unknown setting 'ppo.learning_rat': did you mean ppo.learning_rate"),
        ("ppo.lr=log:1e-4:1e-2", r"unknown setting 'ppo.lr': did you mean ppo.learning_rate"),
        ("ppo=choice:1,2", "unknown setting 'ppo'"),
        ("ppo.learning_rate=lgo:1e-4:1e-2", "unknown range of ppo.learning_rate 'lgo': did you mean log"),
        ("ppo.learning_rate=log:1e-4", "is no range"),
        ("ppo.learning_rate=log:1e-4:much", "is no range"),
        ("ppo.learning_rate=log:1e-4:inf", "is no range"),
        ("ppo.learning_rate=log:1e-2:1e-4", "the range from 1e-2 to 1e-4 is empty"),
        ("ppo.learning_rate=log:0:1e-2", "log needs a range above 0"),
        ("ppo.learning_rate=log:1e-4:1e-2:1", "is no range"),
        ("ppo.clip=linear:0:1", r"ppo.clip must be above 0, got 0"),
        ("network.layers=linear:1:2.5", "is no range"),
        ("network.activation=linear:1:2", "network.activation is no number"),
        ("network.activation=choice:relu,tan", "unknown value of network.activation 'tan': did you mean tanh"),
        ("network.layers=choice:2", "choice needs two values or more"),
        ("network.layers=choice:1,1", "all different"),
        ("ppo.num_envs=choice:64,66", r"ppo.minibatches \(4\) must divide ppo.num_envs \(66\)"),
        ("ppo.clip+network.layers=linear:1:2", "must be of one type"),
        ("ppo.clip+ppo.clip=linear:1:2", "ppo.clip has two ranges"),
        ("memory=choice:gru,s5", "the sweep sets memory itself"),
        ("env=choice:a,b", "the sweep sets env itself"),
        ("seeds=choice:1,2", "the sweep sets seeds itself"),
        ("seed=choice:1,2", "the sweep sets seed itself"),
        ("total_steps=choice:1000,2000", "total_steps must be the same for all trials"),
        ("ppo.eval_envs=choice:1,2", "ppo.eval_envs must be the same for all trials"),
        ("ppo.clip", "is no range of a setting"),
    ],
)
def test_what_cannot_be_searched_is_refused(entry, message):
    with pytest.raises(BadRequest, match=message):
        parse([entry], CONFIG)


def test_a_setting_has_one_range():
    with pytest.raises(BadRequest, match=r"ppo\.clip has two ranges"):
        parse(["ppo.clip=linear:0.1:0.2", "ppo.clip=choice:0.1,0.3"], CONFIG)
    with pytest.raises(BadRequest, match="needs a space to search"):
        parse([], CONFIG)


def test_values_may_need_each_other():
    """3 minibatches do not divide the preset's 64 environments, but the 48 that are searched too."""
    space = parse(["ppo.num_envs=choice:48,64", "ppo.minibatches=choice:3,4"], CONFIG)
    assert len(space.grid()) == 4
    with pytest.raises(BadRequest, match="must divide"):
        parse(["ppo.minibatches=choice:3,4"], replace(CONFIG))
