"""What learning curves are drawn from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engram.configs import store
from engram.configs.presets import PRESETS
from engram.errors import BadRequest
from engram.experiments.figures import COLORS, band, color_of, colors_of, draw_curves, missing, told_apart
from engram.memory import MEMORIES

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


def test_a_memory_has_one_color_and_no_other_has_it():
    assert {*COLORS} <= {*MEMORIES}
    assert len({color_of(name) for name in MEMORIES}) == len(MEMORIES)
    assert color_of("my_module:Leaky") == color_of("my_module:Leaky") != color_of("my_module:Other")
    assert colors_of(["s5", "gru"]) == [color_of("s5"), color_of("gru")]
    assert len({*colors_of(["gru", "gru"])}) == 2


def run_folder(out: Path, **changes: Any) -> Path:
    out.mkdir(parents=True)
    config: Any = replace(PRESETS["debug"], **changes)
    (out / "config.yaml").write_text(yaml.safe_dump(store.describe("debug", config)))
    rows = [{"env_steps": 10 * i, "wall_s": i / 3, "train/return": [i, i + 1.0], "loss/kl": [0.1, i]} for i in (1, 2)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def drawn(monkeypatch, *arguments: Any, **options: Any) -> Any:
    """The figure that `draw_curves` would close."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_curves(*arguments, **options)
    return plt.gcf()


def test_runs_are_told_apart_and_drawn_over_what_is_asked_for(tmp_path, monkeypatch):
    folders = [run_folder(tmp_path / "fast"), run_folder(tmp_path / "slow"), run_folder(tmp_path / "c", memory="s5")]
    axes = drawn(monkeypatch, folders, tmp_path / "a.svg").axes[0]
    assert [line.get_label() for line in axes.lines] == ["gru (fast)", "gru (slow)", "s5"]
    assert axes.get_xlabel() == "environment steps per seed"
    figure = drawn(
        monkeypatch, folders[1:], tmp_path / "a.pdf", "wall_s", ("loss/kl", "train/return"), ("small steps", "s5")
    )
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss/kl", "train/return"]
    line = figure.axes[0].lines[1]
    assert (line.get_label(), line.get_color()) == ("s5", color_of("s5"))
    np.testing.assert_allclose(line.get_xydata(), [[1 / 3, 0.55], [2 / 3, 1.05]])
    assert "seconds" in figure.axes[0].get_xlabel()
    assert (tmp_path / "a.svg").read_bytes()[:5] == b"<?xml"
    assert (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF"


def test_metrics_and_labels_that_do_not_fit_are_refused(tmp_path):
    folder = run_folder(tmp_path / "a")
    with pytest.raises(BadRequest, match="unknown metric 'loss/kll': did you mean loss/kl"):
        draw_curves([folder], tmp_path / "a.png", metrics=["loss/kll"])
    with pytest.raises(BadRequest, match="2 labels for 1 runs"):
        draw_curves([folder], tmp_path / "a.png", labels=["a", "b"])


def test_tasks_tell_runs_apart():
    gru, s5 = PRESETS["debug"], replace(PRESETS["debug"], env="popgym/CountRecallEasy", memory="s5")
    assert told_apart([Path("a"), Path("b")], [gru, s5]) == [
        "popgym/RepeatPreviousEasy, gru",
        "popgym/CountRecallEasy, s5",
    ]
