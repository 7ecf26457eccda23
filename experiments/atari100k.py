"""The Atari 100k benchmark: games x seeds, and human-normalised scores beside published ones.

Each game and seed is a run folder `<out>/<Game>/seed<k>`, trained in a process of its own. Repeating a benchmark skips
finished runs and resumes broken ones; several with other games or seeds may share the folder, also at the same time.
`scores.json`, `table.md` and `scores.png` of all runs in the folder are written after every run.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.atomic_files import replacing
from engram.envs.host.atari import ATARI_100K
from engram.errors import BadRequest, UnknownName
from engram.experiments.atari_scores import published
from engram.experiments.cells import Cell, make_folder, reporting
from engram.experiments.launch import require_engine, run_cells
from engram.experiments.options import Atari100k as Options
from engram.experiments.options import Output
from engram.experiments.runs import Run, read_summary
from engram.experiments.watch import watch
from engram.training.folder import write_atomically
from engram.training.metrics import read_metrics
from engram.training.statistics import (
    bootstrap_interval,
    human_normalised,
    iqm_of_scores,
    iqm_of_tasks,
    mean_of_tasks,
    median_of_tasks,
    t_interval,
)
from engram.training.stderr import notify

BUDGET = 100_000
"""Agent steps of the benchmark."""
AGGREGATES: dict[str, Callable[[list[np.ndarray]], Any]] = {
    "mean": mean_of_tasks,
    "median": median_of_tasks,
    "IQM of game means": iqm_of_tasks,
    "IQM of runs": iqm_of_scores,
}
"""Aggregates of human-normalised scores."""
REFERENCES = ("random", "human")


@dataclass(frozen=True)
class GameRun:
    """One game and seed, in the folder of a benchmark."""

    game: str
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / self.game / f"seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.game}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """Score and cost of a finished run."""

    run: GameRun
    score: float
    """Mean return of the evaluation that ended the run."""
    episodes: int
    """Episodes of that evaluation which came to their end."""
    env_steps: int
    minutes: float
    """Training, evaluation and compilation."""
    steps_per_s: float


def atari100k(
    config: Experiment,
    preset: str,
    options: Options,
    output: Output = Output(),
    seconds: float | None = None,
) -> dict[str, str]:
    """Trains what is not there yet, and reports all runs of the folder.

    Args:
        config: what all runs have in common, for a game of Atari.
        preset: name of the preset that it began from.
        output: `wandb` and `quiet` of the runs.
        seconds: time between two looks at runs that others train (see `watch`); None to train them here.

    Returns:
        why runs are not there, by their names.

    Raises:
        BadRequest: the configuration does not play Atari, or the folder holds runs of another.
        Interrupted: stopped, or out of time; the same command goes on where it was.
    """
    started = time.monotonic()
    config = configuration(config, options.episodes)
    games = games_of(options.games)
    out = folder_of(config, preset, options)
    # All games once before any twice: what there is after some hours then says most.
    seeds = range(config.seed, config.seed + options.seeds)
    runs = [GameRun(game, seed, out) for seed in seeds for game in games]
    cells = {run: cell_of(config, preset, run) for run in runs}
    next(iter(cells.values())).refuse_impossible()
    for run in runs_in(out):
        cell_of(config, preset, run).refuse_other()
    if seconds is not None and not out.is_dir():
        raise BadRequest(f"there is no benchmark in {out}")
    if seconds is None:
        require_engine(options.launcher, options.hours)
    make_folder(out)

    def failures() -> dict[str, str]:
        return {run.name: reason for run, cell in cells.items() if (reason := cell.failure) is not None}

    def write() -> None:
        report(out, preset, config, failures())

    write()
    left = None if options.hours is None else started + 3600 * options.hours - time.monotonic()
    if seconds is None:
        run_cells(list(cells.values()), output, options.jobs, write, left, options.launcher, out)
        write()
    else:
        watch(list(cells.values()), seconds, write, left)
    notify(f"wrote scores.json, table.md and scores.png in {out}")
    return {run.name: cell.failure or cell.state for run, cell in cells.items() if not cell.is_finished}


def folder_of(config: Experiment, preset: str, options: Options) -> Path:
    """Folder of the benchmark."""
    return options.out or Path("runs") / "atari-100k" / f"{preset or 'own'}-{config.chosen}"


def configuration(config: Experiment, episodes: int | None) -> Experiment:
    """`config` with evaluations of `episodes` episodes.

    Raises:
        BadRequest: it does not play Atari, or cannot be evaluated so.
    """
    play = spec_of(config).play
    if play is None or not config.env.startswith("atari/"):
        raise BadRequest(f"{config.env} is not a game of Atari (atari/...)")
    if config.eval_env and not config.eval_env.startswith("?"):
        raise BadRequest(f"eval_env must be options alone, such as ?noop_max=30, got {config.eval_env}")
    if episodes is not None:
        if episodes < 1:
            raise BadRequest(f"--episodes must be at least 1, got {episodes}")
        config = play.configure(config, episodes, None)
    return config


def cell_of(config: Experiment, preset: str, run: GameRun) -> Cell:
    """The run of a game and seed, with the options of the environment of `config` kept."""
    _, mark, options = config.env.partition("?")
    one = replace(config, env=f"atari/{run.game}{mark}{options}", seeds=1, seed=run.seed)
    return Cell(one, run.folder, preset)


def games_of(names: Sequence[str]) -> list[str]:
    """Those of the benchmark's games that are named, all if none is.

    Raises:
        BadRequest: a name is not one of theirs.
    """
    for name in names:
        if name not in ATARI_100K:
            raise UnknownName.among("game of Atari 100k", name, ATARI_100K)
    return list(dict.fromkeys(names)) or list(ATARI_100K)


def runs_in(out: Path) -> list[GameRun]:
    """All runs in the folder, by game and seed."""
    found = []
    for game in ATARI_100K:
        names = (p.name.removeprefix("seed") for p in (out / game).glob("seed*") if (p / "config.yaml").exists())
        found += [GameRun(game, seed, out) for seed in sorted(int(name) for name in names if name.isdigit())]
    return found


# ------------------------------------------------------------------------------------------------------------ scores


def normalise(scores: dict[str, Any], table: dict[str, dict[str, float]]) -> dict[str, np.ndarray]:
    """Human-normalised scores, one array `[runs]` for each game of `scores`."""
    return {
        game: np.atleast_1d(human_normalised(score, table["random"][game], table["human"][game]))
        for game, score in scores.items()
    }


def results_in(out: Path) -> list[Result]:
    """Results of all finished runs in the folder.

    Raises:
        BadRequest: a summary is damaged, or tells of no episode that ended.
    """
    results = []
    for run in runs_in(out):
        summary, path = read_summary(run.folder), run.folder / "summary.json"
        if summary is None:
            continue
        config = Run.load(run.folder).config
        try:
            (score,) = summary["eval_return"]["per_seed"]
            score = float(score)
        except (ValueError, TypeError):
            raise BadRequest(f"{path} holds no score: remove it, and the run is resumed from its checkpoint") from None
        play = spec_of(config).play
        assert play is not None
        played = play.episodes(config)
        metrics = run.folder / "metrics.jsonl"
        evaluated = [row["eval/finished"] for row in read_metrics(metrics) if "eval/finished" in row]
        if not evaluated or evaluated[-1][0] is None:
            raise BadRequest(f"{metrics} tells of no evaluation: lines are missing")
        minutes = (summary["wall_s"] + summary["compile_s"]) / 60
        episodes = round(evaluated[-1][0] * played)
        results.append(Result(run, score, episodes, summary["env_steps"], minutes, summary["steps_per_s"]))
    return results


def scores_of(results: list[Result]) -> dict[str, list[float]]:
    """Scores by game, in the order of the seeds."""
    scores: dict[str, list[float]] = {}
    for result in results:
        scores.setdefault(result.run.game, []).append(result.score)
    return scores


def report(out: Path, preset: str, config: Experiment, failures: dict[str, str]) -> None:
    """Writes scores, table and picture of all finished runs in the folder."""
    with reporting(out):  # another command may report as well
        results = results_in(out)
        scores = scores_of(results)
        label = f"{preset}, {config.chosen}"
        write_atomically(out / "scores.json", json.dumps(scores, indent=2) + "\n")
        write_atomically(out / "table.md", markdown(results, label, failures))
        if scores:
            draw(scores, label, out / "scores.png")


def short(value: float) -> str:
    """A score with as many digits as published ones."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}".removesuffix(".0")


def row_of(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(results: list[Result], label: str, failures: dict[str, str]) -> str:
    """Scores and aggregates beside published ones, then what the runs cost."""
    table = published()
    scores = scores_of(results)
    methods = [name for name in table if name not in REFERENCES]
    ours = list(normalise(scores, table).values())
    columns = ("game", *REFERENCES, label, "HNS", *methods)
    lines = ["# Atari 100k", "", row_of(*columns), "|---" * len(columns) + "|"]
    for (game, each), normalised in zip(scores.items(), ours, strict=True):
        score = f"**{short(float(np.mean(each)))}** ({', '.join(short(s) for s in each)})"
        others = [short(table[name][game]) for name in methods]
        references = [short(table[name][game]) for name in REFERENCES]
        lines.append(row_of(game, *references, score, f"{normalised.mean():.3f}", *others))
    for name, statistic in AGGREGATES.items() if scores else ():
        count = sum(len(game) for game in ours)
        if min(len(game) for game in ours) > 1:
            low, high = t_interval(ours)[1:] if statistic is mean_of_tasks else bootstrap_interval(ours, statistic)
            interval = f" [{low:.3f}, {high:.3f}] (n = {count})"
        else:  # of a game with one run nothing is known of how runs differ
            interval = f" (n = {count})"
        # A published game is one number, its mean over seeds: nothing is known of the runs.
        others = [
            "" if name == "IQM of runs" else f"{statistic(list(normalise(dict(picked), table).values())):.3f}"
            for picked in ([(game, table[method][game]) for game in scores] for method in methods)
        ]
        lines.append(row_of(f"**HNS {name}**", "0", "1", f"**{statistic(ours):.3f}**{interval}", "", *others))
    lines += ["", *notes(results, label)]
    if failures:
        lines += ["", *[f"- **failed**: {name}: {why}" for name, why in failures.items()]]
    return "\n".join(lines) + "\n"


def notes(results: list[Result], label: str) -> list[str]:
    """Notes on how to read the table, and the cost of the runs."""
    if not results:
        return ["No run is finished."]

    def all_of(values: Sequence[int]) -> str:
        return ", ".join(f"{value:,}" for value in sorted(set(values)))

    lines = [
        f"{label}: mean over seeds of the return of the evaluation that ends a run (each seed in brackets). "
        f"Finished runs: {len(results)}; games: {len(scores_of(results))} of {len(ATARI_100K)}. Aggregates of all "
        "columns are over the games above, ours with n runs. 95 % intervals need two runs of every game: of the mean a "
        "t interval with the variance in games, of others a bootstrap that resamples seeds in each game, widened for "
        "few seeds. "
        "Published columns are means over seeds, rounded, from papers and score files (`configs/atari_scores.csv`).",
        "",
        f"Environment steps per run: {all_of([r.env_steps for r in results])}. "
        f"Episodes of an evaluation: {all_of([r.episodes for r in results])}.",
    ]
    if min(r.env_steps for r in results) < BUDGET:
        lines.append(f"**Runs below the benchmark's {BUDGET:,} steps: not comparable with published columns.**")
    columns = ("game", "runs", "minutes a run", "steps/s")
    lines += ["", row_of(*columns), "|---" * len(columns) + "|"]
    for game in scores_of(results):
        runs = [r for r in results if r.run.game == game]
        minutes, speed = (np.mean([getattr(r, name) for r in runs]) for name in ("minutes", "steps_per_s"))
        lines.append(row_of(game, str(len(runs)), f"{minutes:.1f}", f"{speed:.1f}"))
    return [*lines, "", f"All runs: {sum(r.minutes for r in results) / 60:.2f} hours, compilation included."]


def draw(scores: dict[str, list[float]], label: str, out: Path) -> None:
    """Human-normalised scores by game, ours with the seeds as dots and those of Drama's paper."""
    import matplotlib.pyplot as plt  # slow to import: only once there is something to draw

    plt.switch_backend("Agg")
    table = published()
    ours = normalise(scores, table)
    theirs = normalise({game: table["Drama"][game] for game in scores}, table)
    places = np.arange(len(ours))
    figure, axes = plt.subplots(figsize=(max(5.0, 0.45 * len(ours) + 1.5), 4), layout="constrained")
    axes.bar(places - 0.2, [each.mean() for each in ours.values()], 0.4, label=label)
    axes.bar(places + 0.2, [each.mean() for each in theirs.values()], 0.4, label="Drama as published", color="0.75")
    for place, each in zip(places, ours.values(), strict=True):
        axes.plot([place - 0.2] * len(each), each, ".", color="black", markersize=3)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="human")
    axes.set_yscale("symlog", linthresh=0.1)  # games range from 0.001 to 10, and below 0
    axes.set_xticks(places, list(ours), rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("human-normalised score")
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    with replacing(out) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
