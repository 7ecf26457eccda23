"""Sweeps: fair to each memory, whole after any kill, shared by commands; what their report says."""

import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import engram
from engram.configs import store
from engram.configs.presets import PRESETS
from engram.errors import BadRequest, Interrupted, MissingExtra
from engram.experiments import attempts, sweep_report
from engram.experiments import cells as cells_module
from engram.experiments.cells import make_folder
from engram.experiments.children import Crashed
from engram.experiments.match import measured, width_of
from engram.experiments.options import Launcher, Sweep
from engram.experiments.search import Search
from engram.experiments.space import words
from engram.experiments.sweep_report import best_of
from engram.experiments.trials import Plan
from engram.scripts import compare as compare_script
from engram.scripts import sweep as script
from engram.training.folder import write_atomically
from engram.training.statistics import summarise

pytest.importorskip("optuna", reason="the extra `sweep` is not installed")

SPACE = ["ppo.learning_rate=log:1e-4:1e-2", "network.layers=choice:1,2"]


def score_of(config: Any) -> float:
    """Best at 1e-3, with two layers; the same for all memories."""
    return -abs(math.log10(config.ppo.learning_rate) + 3) + config.network.layers


def finish(config: Any, folder: Path, per_seed: list[float | None]) -> None:
    """Ends a run with these returns."""
    numbers = {"seeds": config.seeds, "env_steps": 10, "wall_s": 1.0, "compile_s": 1.0, "steps_per_s": 1.0}
    returns = {"eval_return": summarise(per_seed), "train_return": summarise(per_seed)}
    write_atomically(folder / "config.yaml", yaml.safe_dump(store.describe("debug", config)))
    write_atomically(folder / "summary.json", json.dumps({**numbers, **returns}))


@pytest.fixture
def pictures():
    """Asks for pictures, which take longest of all where runs end at once."""


@pytest.fixture
def trained(monkeypatch, request):
    """Runs end at once with `score_of`, unless a function says why they fail; those that were begun. What a signal ends
    is tried again at once."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(sweep_report, "draw", lambda plan, trials: None)
    begun: list[str] = []

    def use(fails=lambda folder, config: None):
        def train_apart(config, preset, folder, output, children, cores):
            begun.append("/".join(folder.parts[-2:]))
            reason = fails(folder, config)
            if reason is not None and not reason.startswith("exit code 3"):
                raise Crashed(reason)
            if reason is None:
                finish(config, folder, [score_of(config)] * config.seeds)
            return reason

        monkeypatch.setattr(cells_module, "train_apart", train_apart)
        return begun

    return use


def swept(out: Path, **options: Any) -> Any:
    options = {"memories": ["none", "gru"], "space": SPACE, "trials": 6, "seeds": 1, "quiet": True, **options}
    return engram.sweep("debug", out=out, **options)


def settings_of(result: Any, column: str) -> list[dict[str, Any]]:
    return [trial.settings for trial in result.trials if trial.column == column]


def test_all_memories_have_as_many_trials_in_one_space(tmp_path, trained):
    begun = trained()
    result = swept(tmp_path, sampler="random", jobs=2, seeds=3)
    names = [f"{memory}/{number}" for memory in ("none", "gru") for number in range(6)]
    assert sorted(begun) == sorted(names)
    assert [f"{trial.column}/{trial.number}" for trial in result.trials] == names
    assert result.is_complete
    assert {(cell.config.seed, cell.config.seeds) for trial in result.trials for cell in trial.cells} == {
        (1_000_000, 3)
    }
    assert settings_of(result, "none") == settings_of(result, "gru")
    assert len({str(settings) for settings in settings_of(result, "gru")}) == 6
    for trial in result.trials:
        (cell,) = trial.cells
        assert (cell.config.ppo.learning_rate, cell.config.network.layers) == tuple(trial.settings.values())
        assert cell.config.memory == trial.column
    swept(tmp_path, sampler="random", jobs=2, seeds=3)
    assert len(begun) == 12, "what has ended is not trained again"


def test_memories_of_one_size_are_searched_and_compared(tmp_path, trained):
    """Widths of the search are those of the comparison, which is refused without the same `match`."""
    trained()
    kind = {"memories": ["gru", "lstm"], "sampler": "random", "trials": 2, "space": SPACE[:1], "match": "params"}
    result = swept(tmp_path / "sweep", **kind)
    widths = {trial.column: width_of(cell.config) for trial in result.trials for cell in trial.cells}
    sizes = {trial.column: measured(cell.config).params for trial in result.trials for cell in trial.cells}
    assert widths["gru"] == 8 > widths["lstm"]
    assert abs(sizes["lstm"] / sizes["gru"] - 1) < 0.1
    compared = engram.compare("debug", tuned=result.best, match="params", seeds=2, quiet=True, out=tmp_path / "b")
    assert {cell.label: width_of(cell.config) for cell in compared.cells} == widths
    with pytest.raises(BadRequest, match="compare them with --match params too"):
        engram.compare("debug", tuned=result.best, seeds=2, quiet=True, out=tmp_path / "c")
    for other in ("none", "flops"):
        with pytest.raises(BadRequest, match="holds another sweep; these differ: match"):
            swept(tmp_path / "sweep", **{**kind, "match": other})
    with pytest.raises(BadRequest, match="leave it out of --space"):
        swept(tmp_path / "d", **{**kind, "space": ["network.memory_width=choice:8,16"]})


def test_a_grid_is_tried_whole_by_all(tmp_path, trained):
    trained()
    grid = ["ppo.learning_rate=log:1e-4:1e-2:3", "network.layers=choice:1,2"]
    result = swept(tmp_path / "a", sampler="grid", space=grid, trials=None)
    expected = [{"ppo.learning_rate": rate, "network.layers": n} for rate in (1e-4, 1e-3, 1e-2) for n in (1, 2)]
    assert settings_of(result, "none") == settings_of(result, "gru") == expected
    winner = result.winners["gru"]
    assert winner.settings == {"ppo.learning_rate": 1e-3, "network.layers": 2}
    assert winner.number == 3
    with pytest.raises(BadRequest, match="the grid has 6 combinations"):
        swept(tmp_path / "b", sampler="grid", space=grid, trials=5)
    assert not (tmp_path / "b").exists()


def test_the_search_repeats_itself_with_one_job_even_when_stopped(tmp_path, trained):
    """More trials than the sampler begins with by chance. What it chose is not what chance would have."""
    trained()
    whole = swept(tmp_path / "whole", trials=14)
    begun: list[str] = []

    def stop(folder, config):
        begun.append(folder.name)
        if len(begun) in (9, 25):
            raise Interrupted("stopped")

    trained(stop)
    for _ in range(2):
        with pytest.raises(Interrupted):
            swept(tmp_path / "broken", trials=14)
    broken = swept(tmp_path / "broken", trials=14)
    assert [t.settings for t in broken.trials] == [t.settings for t in whole.trials]
    assert broken.is_complete
    chance = swept(tmp_path / "chance", trials=14, sampler="random")
    assert settings_of(whole, "gru") != settings_of(chance, "gru")
    late = [abs(math.log10(settings["ppo.learning_rate"]) + 3) for settings in settings_of(whole, "gru")[10:]]
    assert np.mean(late) < 0.35, "by chance it is 0.5"


def test_a_diverged_trial_is_the_worst_and_not_missing(tmp_path, trained):
    def fails(folder, config):
        return "exit code 3: training diverged in chunk 1" if config.ppo.learning_rate > 2e-3 else None

    begun = trained(fails)
    result = swept(tmp_path, sampler="random", trials=8)
    diverged = [t for t in result.trials if t.settings["ppo.learning_rate"] > 2e-3]
    assert diverged
    assert all(t.state == "diverged" and t.score == -math.inf for t in diverged)
    assert result.is_complete
    lowest = min(t.score for t in result.trials if t.state == "done")
    scores = [max(t.score, lowest) for t in result.trials if t.column == "gru"]
    (row,) = [line for line in result.report.splitlines() if line.startswith("| gru |")]
    assert f"| {max(scores):.3f} | {np.median(scores):.3f} |" in row
    assert f"| 8 of 8 | {len(diverged) // 2} |" in row
    assert "**diverged**: exit code 3: training diverged in chunk 1" in result.report
    count = len(begun)
    swept(tmp_path, sampler="random", trials=8)
    assert len(begun) == count, "it has ended, for good"


def test_a_seed_without_a_number_makes_a_trial_the_worst(tmp_path, trained, monkeypatch):
    def train_apart(config, preset, folder, output, children, cores):
        finish(config, folder, [1.0, None if folder.name == "0" else 0.0])

    monkeypatch.setattr(cells_module, "train_apart", train_apart)
    result = swept(tmp_path, trials=2, seeds=2)
    assert [trial.score for trial in result.trials] == [-math.inf, 0.5] * 2
    assert {trial.number for trial in result.winners.values()} == {1}


def test_a_killed_trial_is_trained_again_under_its_number(tmp_path, trained):
    killed: list[str] = []

    def fails(folder, config):
        name = f"{config.memory}/{folder.name}"
        if name in ("gru/2", "none/0") and killed.count(name) < 2:
            killed.append(name)
            return "killed by SIGKILL"
        return None

    begun = trained(fails)
    result = swept(tmp_path, trials=4)
    assert result.is_complete
    assert sorted(begun) == sorted([f"{memory}/{i}" for memory in ("none", "gru") for i in range(4)] + killed)
    assert len(killed) == 4


def test_what_fails_again_and_again_is_said_and_tried_by_the_next_command(tmp_path, trained, capsys):
    begun = trained(lambda folder, config: "exit code 1: MemoryError" if folder.name == "1" else None)
    arguments = ["debug", "--memories", "gru", "--space", *SPACE, "--trials", "3", "--seeds", "1", "--quiet"]
    arguments += ["--out", str(tmp_path)]
    assert script.main(arguments) == 1
    assert begun.count("gru/1") == 1 + Launcher().retries
    assert "| 2 of 3 |" in (report := capsys.readouterr().out)
    assert "**failed**: exit code 1: MemoryError (after 4 attempts)" in report
    with pytest.raises(BadRequest, match="gru has 2 of 3 trials: finish the sweep first"):
        engram.compare("debug", tuned=tmp_path / "best.json", out=tmp_path / "compared")
    trained()
    assert script.main(arguments) == 0
    assert begun.count("gru/1") == 2 + Launcher().retries


def test_settings_that_do_not_go_together_are_the_worst(tmp_path, trained):
    begun = trained()
    space = ["ppo.num_envs=choice:8,12", "ppo.minibatches=choice:2,3"]
    result = swept(tmp_path, space=space, sampler="grid", trials=None)
    assert [t.state for t in result.trials] == ["done", "refused", "done", "done"] * 2
    assert sorted(begun) == sorted(f"{memory}/{i}" for memory in ("none", "gru") for i in (0, 2, 3))
    assert result.is_complete
    assert "**refused**: ppo.minibatches (3) must divide ppo.num_envs (8)" in result.report
    assert engram.sweep("debug", out=tmp_path, memories=["gru"], space=space, sampler="grid", seeds=1).is_complete


def plan(out: Path, **changes: Any) -> Plan:
    fields: dict[str, Any] = {"memories": ("none", "gru"), "space": tuple(SPACE), "trials": 4, "seeds": 1, "out": out}
    made = Plan.of(PRESETS["debug"], "debug", Sweep(**{**fields, **changes}))
    make_folder(out)
    return made


def keys(trials: Any) -> list[tuple[str, int]]:
    return [(trial.column, trial.number) for trial in trials]


def test_two_commands_share_the_trials(tmp_path):
    """Each has trials of its own while both live; what is left of one is taken over under its numbers."""
    with closing(Search(plan(tmp_path))) as second:
        first = Search(plan(tmp_path))
        mine, theirs = first.take(2), second.take(2)
        assert keys(mine) == [("none", 0), ("gru", 0)]
        assert keys(theirs) == [("none", 1), ("gru", 1)]
        assert keys(first.take(2)) == keys(mine)
        for trial in theirs:
            finish(trial.cells[0].config, trial.cells[0].folder, [1.0])
        assert keys(second.take(2)) == [("none", 2), ("gru", 2)]
        first.close()
        assert keys(second.take(4)) == [("none", 0), ("gru", 0), ("none", 2), ("gru", 2)]
        again = {(t.column, t.number): t.settings for t in second.trials()}
        assert all(again[t.column, t.number] == t.settings for t in mine)


def test_the_last_trials_of_another_command_are_waited_for(tmp_path):
    with closing(Search(plan(tmp_path, trials=1))) as first, closing(Search(plan(tmp_path, trials=1))) as second:
        mine = first.take(1)
        assert keys(second.take(1)) == keys(mine) == [("none", 0), ("gru", 0)]
        for trial in mine:
            finish(trial.cells[0].config, trial.cells[0].folder, [1.0])
        assert first.take(1) == second.take(1) == []


def test_a_sweep_grows_and_is_never_another(tmp_path, trained):
    begun = trained()
    swept(tmp_path, memories=["gru"], trials=2)
    result = swept(tmp_path, memories=["none"], trials=3)
    assert keys(result.trials) == [(memory, i) for memory in ("gru", "none") for i in range(3)]
    assert len(begun) == 6
    for other, named in (
        ({"seeds": 2}, "config"),
        ({"seed": 5}, "config"),
        ({"sampler": "random"}, "sampler"),
        ({"space": SPACE[:1]}, "space"),
        ({"envs": ["popgym/RepeatFirstEasy"]}, "tasks"),
        ({"total_steps": 512}, "config"),
    ):
        with pytest.raises(BadRequest, match=f"holds another sweep; these differ: {named}: take another --out"):
            swept(tmp_path, **{"trials": 3, **other})
    with pytest.raises(BadRequest, match="has 3 trials already"):
        swept(tmp_path, trials=2)
    assert len(begun) == 6


def test_several_tasks_are_scored_on_one_scale(tmp_path, trained, monkeypatch):
    def train_apart(config, preset, folder, output, children, cores):
        finish(config, folder, [0.25 if config.env.endswith("FirstEasy") else 0.75])

    monkeypatch.setattr(cells_module, "train_apart", train_apart)
    envs = ["popgym/RepeatFirstEasy", "popgym/RepeatPreviousEasy"]
    result = swept(tmp_path, envs=envs, trials=1, memories=["gru"])
    (trial,) = result.trials
    assert [cell.config.env for cell in trial.cells] == envs
    assert trial.score == 0.5
    assert len({cell.folder for cell in trial.cells}) == 2
    with pytest.raises(BadRequest, match="have no common scale"):
        swept(tmp_path / "b", envs=["gymnax/CartPole-v1", "popgym/RepeatFirstEasy"])


def test_a_damaged_journal_is_one_clear_line(tmp_path, trained):
    begun = trained()
    swept(tmp_path, trials=1)
    with (tmp_path / "journal.log").open("a") as file:
        file.write("half a li\nne\n")
    with pytest.raises(BadRequest, match=r"journal\.log is damaged"):
        swept(tmp_path, trials=2)
    (tmp_path / "journal.log").unlink()
    count = len(begun)
    assert swept(tmp_path, trials=2).is_complete
    assert len(begun) == count + 2, "the runs of the first trials are still there"


@pytest.mark.parametrize("change", [{"trials": "many"}, {"columns": []}, {"columns": {"gru": {"seeds": "9"}}}])
def test_a_damaged_description_is_one_clear_line(change, tmp_path, trained):
    trained()
    swept(tmp_path, trials=1)
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadRequest, match=r"sweep\.json is damaged"):
        swept(tmp_path, trials=1)


def test_runs_of_other_settings_are_not_taken_for_a_trial(tmp_path, trained):
    """Such as those of a journal that was lost."""
    trained()
    swept(tmp_path, trials=1)
    (tmp_path / "journal.log").unlink()
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(BadRequest, match="was trained with other options: choose another --out"):
        swept(tmp_path, trials=1, seed=7)


def test_a_trial_whose_folder_was_removed_is_trained_again(tmp_path, trained):
    begun = trained()
    swept(tmp_path, trials=2)
    shutil.rmtree(tmp_path / "trials" / "gru" / "1")
    assert swept(tmp_path, trials=2).is_complete
    assert begun[4:] == ["gru/1"]


def test_best_of_k_is_the_mean_over_all_choices():
    scores = [0.3, -1.0, 2.0, 0.3, 0.9, -0.2]
    brute = [np.mean([max(chosen) for chosen in itertools.combinations(scores, k)]) for k in range(1, 7)]
    np.testing.assert_allclose(best_of(scores), brute, rtol=1e-12)
    assert best_of([]).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "ppo.learning_rat=log:1e-4:1e-2"], "did you mean ppo.learning_rate"),
        (["--space", "ppo.clip=log:1:0.1"], "is empty"),
        (["--space", "memory=choice:gru,s5"], "the sweep sets memory itself"),
        ([], "needs a space to search"),
        (["--space", *SPACE, "--memory", "gru"], "the sweep sets --memory itself"),
        (["--space", *SPACE, "--ppo.learning-rate", "0.1"], "the sweep sets --ppo.learning-rate itself"),
        (["--space", *SPACE, "--resume"], "the sweep sets --resume itself"),
        (["--space", *SPACE, "--memories", "grru"], "did you mean gru"),
        (["--space", *SPACE, "--sampler", "tpee"], "did you mean tpe"),
        (["--space", *SPACE, "--trials", "0"], "trials"),
        (["--space", *SPACE, "--launcher", "slurm", "--launcher.detach"], "launcher.detach is not for a sweep"),
        (["--space", "ppo.num_envs=choice:8,12", "ppo.minibatches=choice:5,7"], "must divide"),
        (["--space", *SPACE, "--algorithms", "iql"], "has no --algorithms"),
    ],
)
def test_refusals_write_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message):
        script.main(["debug", *arguments])
    assert not list(tmp_path.iterdir())


def test_without_optuna_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r'pip install "engram\[sweep\]"') as error:
        swept(tmp_path / "out")
    assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ comparing the winners


def test_winners_are_compared_with_their_settings_on_fresh_seeds(tmp_path, trained, capsys):
    trained()
    result = swept(tmp_path / "sweep", sampler="random")
    best = ["--tuned", str(result.best), "--seeds", "3", "--quiet", "--out", str(tmp_path / "compared")]
    assert compare_script.main(["debug", *best]) == 0
    table = capsys.readouterr().out
    for memory in ("none", "gru"):
        (shown,) = [line for line in table.splitlines() if line.startswith(f"| {memory} |")]
        settings = result.winners[memory].settings
        words = f"ppo.learning_rate={settings['ppo.learning_rate']:g}, network.layers={settings['network.layers']}"
        assert shown.endswith(f"| {words} |")
    none, gru = csv.DictReader((tmp_path / "compared" / "table.csv").read_text().splitlines())
    assert none["memory_width"] == gru["memory_width"] == "8"
    assert (none["memory_state_bytes"], gru["memory_state_bytes"]) == (
        "0",
        str(8 * 4 * result.winners["gru"].settings["network.layers"]),
    )
    compared = engram.compare("debug", tuned=result.best, seeds=3, quiet=True, out=tmp_path / "compared")
    for cell in compared.cells:
        config: Any = cell.config
        assert cell.scores() == [result.winners[cell.label].score] * 3
        assert {*range(config.seed, config.seed + config.seeds)} == {0, 1, 2}
        assert config.ppo.learning_rate == result.winners[cell.label].settings["ppo.learning_rate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1000000"], r"used seed 1000000.*such as --seed 1000001"),
        (["--seed", "999999"], "used seed 1000000"),
        (["--memories", "gruu"], "did you mean gru"),
        (["--ppo.learning-rate", "1"], "compare sets --ppo.learning-rate itself"),
        (["--memory", "gru"], "compare sets --memory itself"),
        (["--match", "params", "--network.memory-width", "8"], "compare sets --network.memory-width itself"),
        (["--match", "parms"], "did you mean params"),
        (["--match", "state", "--memories", "none", "gru"], "none has no state: name another first"),
    ],
)
def test_unfair_comparisons_are_refused(arguments, message, tmp_path, trained):
    trained()
    best = swept(tmp_path / "sweep", trials=2).best
    with pytest.raises(BadRequest, match=message):
        compare_script.main(["debug", "--tuned", str(best), "--seeds", "2", "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda best: best.update(schema=2), "has version 2"),
        (lambda best: best.update(agent="drama"), "has settings of drama"),
        (lambda best: best.update(seeds=[]), "no best.json of a sweep"),
        (lambda best: best.pop("winners"), "no best.json of a sweep"),
        (lambda best: best["winners"]["gru"].pop("settings"), "no best.json of a sweep"),
        (lambda best: best["winners"]["gru"].update(fields={"memory": "none"}), "gru is not what its fields choose"),
        (lambda best: best["winners"]["gru"].update(fields={"env": "x"}), "gru is not what its fields choose"),
        (lambda best: best["winners"]["gru"]["settings"].update({"ppo.clp": 1}), "did you mean ppo.clip"),
        (lambda best: best["winners"]["gru"]["settings"].update({"seeds": 9}), "the sweep sets seeds itself"),
        (lambda best: best["winners"]["gru"]["settings"].update({"total_steps": 9}), "must be the same for all trials"),
        (lambda best: best["winners"]["gru"]["settings"].update({"ppo.clip": "x"}), "ppo.clip must be a number"),
    ],
)
def test_damaged_winners_are_refused(change, message, tmp_path, trained):
    trained()
    path = swept(tmp_path / "sweep", trials=1).best
    best = json.loads(path.read_text())
    change(best)
    path.write_text(json.dumps(best))
    with pytest.raises(BadRequest, match=message):
        engram.compare("debug", tuned=path, out=tmp_path / "out")
    with pytest.raises(BadRequest, match="cannot read"):
        engram.compare("debug", tuned=tmp_path / "nothing.json", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- real runs

TINY = ["--total-steps", "1024", "--log-points", "2", "--eval-points", "1", "--seeds", "1", "--quiet"]


def command(out: Path, *arguments: str) -> subprocess.Popen:
    script = [sys.executable, "-m", "engram.scripts.sweep", "debug", "--out", str(out), *TINY, *arguments]
    return subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(word) for task in tasks.glob("*/children") for word in task.read_text().split()]


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_a_sweep_is_whole_after_a_kill_and_its_winners_are_compared(tmp_path, capsys):
    out = tmp_path / "sweep"
    process = command(out, "--memories", "none", "gru", "--trials", "2", "--jobs", "2", "--space", *SPACE)
    deadline = time.monotonic() + 300
    while not (out / "trials" / "gru" / "0" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    report, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "killed by SIGKILL" in errors
    rows = re.findall(r"^\| (\d+) \| (-?\d\.\d{3}) \|", report, re.MULTILINE)
    assert sorted(number for number, _ in rows) == ["0", "0", "1", "1"]
    summaries = sorted(out.glob("trials/*/*/summary.json"))
    assert len(summaries) == 4
    scores = {str(p.parent.relative_to(out / "trials")): json.loads(p.read_text())["eval_return"] for p in summaries}
    best = json.loads((out / "best.json").read_text())["winners"]
    for memory in ("none", "gru"):
        assert best[memory]["score"] == max(scores[f"{memory}/{i}"]["mean"] for i in range(2))
    compared = ["debug", "--tuned", str(out / "best.json"), *TINY, "--out", str(tmp_path / "compared")]
    assert compare_script.main(compared) == 0
    assert "failed" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_the_trials_of_a_killed_command_go_on_in_the_next(tmp_path):
    """Its run stops by itself. The next command waits for that, and ends with what one command would have chosen."""
    out, arguments = tmp_path / "sweep", ["--memories", "none", "--trials", "2", "--space", *SPACE]
    process = command(out, *arguments)
    deadline = time.monotonic() + 300
    while not (out / "trials" / "none" / "0" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert len(list((out / "drivers").iterdir())) == 1, "it could not say that it ended"
    following = command(out, *arguments)
    report, errors = following.communicate(timeout=600)
    assert following.returncode == 0, errors
    assert not list((out / "drivers").iterdir())
    with closing(Search(plan(tmp_path / "other", memories=("none",), trials=2))) as other:
        chosen = {str(trial.number): words(trial.settings) for trial in other.take(2)}
    assert dict(re.findall(r"^\| ([01]) \| -?\d\.\d{3} \| (.*) \|$", report, re.MULTILINE)) == chosen


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_two_commands_on_one_folder_train_every_trial_once(tmp_path):
    out = tmp_path / "sweep"
    processes = [command(out, "--memories", "none", "--trials", "3", "--space", *SPACE) for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    began = "".join(errors for _, errors in ends)
    assert "failed" not in began
    for number in range(3):
        assert began.count(f"in {out / 'trials' / 'none' / str(number)}\n") == 1
    assert all("done: eval return" in errors for _, errors in ends), "both took part"
    assert not list((out / "drivers").iterdir())


def test_settings_are_rows_of_a_csv_file(tmp_path, pictures, trained):
    trained()
    result = swept(tmp_path, trials=2, sampler="random")
    head, *rows = (tmp_path / "sweep.csv").read_text().splitlines()
    assert head == "memory,trial,state,score,per_seed,ppo.learning_rate,network.layers,why"
    assert len(rows) == 4
    for row, trial in zip(rows, result.trials, strict=True):
        memory, number, state, score, _, rate, layers, _ = row.split(",")
        assert (memory, int(number), state) == (trial.column, trial.number, "done")
        assert float(score) == pytest.approx(trial.score, rel=1e-5)
        assert (float(rate), int(layers)) == tuple(trial.settings.values())
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
