"""Measuring how trained agents adapt within the trials of a `meta/` environment, on tasks that they know and on others.

For every run: the return by inner episode on tasks of each split; the same in trials 4 and 16 times as long; with the
memory frozen after the first inner episode, and cleared at each one; and where the task switches within a trial, with
the memory cleared by a change-point detector or by the switch itself. Beside it what is known of the best: the policies
for bandits (Gittins index, Thompson sampling, random, for Bernoulli arms UCB1), the optimum where a family computes it.
Of a mixture each member is played by itself, and those members of the evaluation's mixture that training had not.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from engram.agents.planners import change_points as rbocpd
from engram.agents.ppo.agent import PPO
from engram.agents.ppo.build import observed
from engram.agents.ppo.experiment import PPOExperiment
from engram.envs import registry
from engram.envs.meta.bandits import BernoulliBandit, GaussianBandit
from engram.envs.meta.dark_room import DarkRoom
from engram.envs.meta.mixture import Member, Mixture
from engram.envs.meta.splits import SPLITS, drawn_from
from engram.envs.meta.task_switches import Switching
from engram.envs.meta.trials import Trials
from engram.envs.vector import Vectorised
from engram.envs.wrappers import flat_size
from engram.errors import BadRequest
from engram.experiments import adaptation, bandit_oracles, runs
from engram.experiments.adaptation import Played
from engram.experiments.figures import colors_of
from engram.experiments.options import Adapt as Options
from engram.training.folder import write_atomically
from engram.training.programs import keys_afterwards
from engram.training.stderr import notify

AS_TRAINED = ("kept", "off")
"""Treatment of the memory, and the detector that clears it, in training."""
SPLIT_SEEDS = 1_000_003
"""Step of the trials' seed from split to split."""
REFERENCE_TASKS = 1000
"""Number of tasks that reference returns are averaged over."""
MOST_MEMBERS = 64
"""Environments of a mixture that is made only to be asked for its members."""
TIMED = (1, 64)
"""Batches whose acting is timed."""


def refuse_impossible(options: Options) -> None:
    """Raises BadRequest."""
    if not options.runs:
        raise BadRequest("name at least one run folder")


@dataclass(frozen=True)
class TrialsRun:
    """A trained agent and the trials that it was trained on."""

    folder: Path
    preset: str
    config: PPOExperiment
    agent: PPO
    states: Any
    """One for each seed, leaves `[seeds, ...]`."""
    chunk: int
    tasks: dict[str, Trials | Member]
    """Tasks that it was trained on, by the names of a mixture's members; one family alone has the name ''."""
    unseen: dict[str, Member]
    """Members of the mixture that it was evaluated in, where it was not trained on them."""

    @property
    def seeds(self) -> int:
        return self.config.seeds

    def state(self, seed: int) -> Any:
        return jax.tree.map(lambda x: x[seed], self.states)


def is_trials(env_id: str) -> bool:
    """Whether an environment is made of trials, of one family of tasks or a mixture of several."""
    return env_id.startswith("meta/")


def tasks_of(env_id: str) -> dict[str, Trials | Member]:
    """The trials of an environment, by the names of a mixture's members. Raises BadRequest for an unknown one."""
    if not env_id.startswith("meta/Mixture"):
        trials = registry.make(env_id)
        assert isinstance(trials, Trials)
        return {"": trials}
    mixture = registry.make_vector(env_id, MOST_MEMBERS)
    assert isinstance(mixture, Mixture)
    members = mixture.members
    if len({member.name for member in members}) < len(members):
        raise BadRequest(f"{env_id}: two members have one name")
    return {member.name: member for member in members}


def trials_of(task: Trials | Member) -> Trials:
    return task.trials if isinstance(task, Member) else task


def read_run(folder: Path, greedy: bool | None) -> TrialsRun:
    """The run in `folder` at its newest checkpoint. Raises BadRequest where it is none of trials, or has none."""
    run = runs.Run.load(folder)
    config = cast(PPOExperiment, run.config)
    if not run.spec.adapts or not is_trials(config.env):
        raise BadRequest(f"{folder} is no run of PPO in trials (meta/...): there is no adaptation to measure")
    tasks = tasks_of(config.env)
    evaluated = tasks_of(config.evaluated) if is_trials(config.evaluated) else {}
    unseen = {name: task for name, task in evaluated.items() if name not in tasks and isinstance(task, Member)}
    view = config.observation
    if view.keep or view.time_limit:
        raise BadRequest(f"{folder}: adaptation is not measured under observation.keep or observation.time_limit")
    if greedy is not None:
        config = replace(config, ppo=replace(config.ppo, eval_greedy=greedy))
    run = replace(run, config=config)
    agent = run.build()
    states, progress = run.restore(agent)
    return TrialsRun(folder, run.preset, config, agent, states, progress.chunk, tasks, unseen)


# ------------------------------------------------------------------------------------------------------------ measuring


def lengthened(task: Trials | Member, split: str, times: int) -> Trials | Member:
    """Trials of tasks of a split, `times` as long; a task that switches does so as often a step."""
    if isinstance(task, Member):
        trials = lengthened(task.trials, split, times)
        assert isinstance(trials, Trials)
        return replace(task, trials=trials)
    family = task.family
    if isinstance(family, Switching):
        family = replace(family, horizon=family.horizon * times, switches=family.switches * times)
    return replace(task, family=family, split=split, episodes=task.episodes * times, steps=task.steps * times)


def opening_of(run: TrialsRun, task: Trials | Member) -> adaptation.Opening:
    """Entries of the observation that opens a trial, those of the wrapper for previous actions included."""
    parts = list(adaptation.opening_of(task.layout))
    view, params = run.config.observation, task.default_params
    if view.previous_action:
        begin = flat_size(task.observation_space(params))
        end = begin + flat_size(task.action_space(params)) + view.previous_reward
        parts += [(slice(begin, end), 0.0), (slice(end, end + 1), 1.0)]
    return tuple(parts)


def player(
    run: TrialsRun, task: Trials | Member, options: Options, detector: adaptation.Detector | None = None
) -> Callable[[adaptation.Treatment], list[Played]]:
    """Plays trials with every seed of a run: treatment -> one `Played` of host arrays for each."""
    limit = task.max_steps(task.default_params)
    if limit is None:
        raise BadRequest(f"{run.config.env}: a trial of it has no bound of steps")
    env, trials = observed(run.config, Vectorised(task, options.trials)), trials_of(task)
    play = adaptation.make_player(run.agent, env, opening_of(run, task), trials.episodes or limit, limit, detector)
    # Train and test may be one distribution: their tasks must still be different ones.
    keys = keys_afterwards(options.seed + SPLIT_SEEDS * SPLITS.index(trials.split), run.seeds)

    def play_one(seed: int, treatment: adaptation.Treatment) -> Played:
        state = run.state(seed)
        env_params = run.agent.env.evaluation_params(state.env, env.default_params)
        return jax.device_get(play(state.params, env_params, keys[seed], treatment))

    def play_all(treatment: adaptation.Treatment) -> list[Played]:
        return [play_one(seed, treatment) for seed in range(run.seeds)]

    return play_all


def measure(run: TrialsRun, options: Options) -> dict[str, Any]:
    """All conditions of one run, what is known of the best, and what acting costs. The contents of `adaptation.json`.

    Raises:
        BadRequest: changes are asked for where the task does not switch, or trials that cannot be played.
    """
    switching = any(isinstance(trials_of(task).family, Switching) for task in run.tasks.values())
    clears = "reset" in options.ablations or (switching and options.changes != ("off",))
    if clears and run.config.observation.normalise:
        raise BadRequest(
            "memory is not cleared amid a trial under observation.normalise: take --ablations frozen --changes off"
        )
    if options.changes and options.changes != ("off",) and not switching:
        raise BadRequest(f"{run.config.env}: its tasks do not switch within a trial: leave out --changes")
    wanted = [c for c in ("on", "oracle") if switching and (options.changes is None or c in options.changes)]
    conditions, references = [], []
    measured = [(name, task, split) for name, task in run.tasks.items() for split in options.splits]
    measured += [(f"{name} (never trained on)", task, "heldout") for name, task in run.unseen.items()]
    for name, task, split in measured:
        label = ", ".join(part for part in (name, split) if part)
        for times in sorted(set(options.lengths)):
            notify(f"{run.folder}: {label} tasks, trials x {times}")
            longer = lengthened(task, split, times)
            shortest = times == min(options.lengths)
            changes = wanted * (shortest and isinstance(trials_of(task).family, Switching))
            played = play_conditions(run, longer, options, options.ablations if shortest else (), changes)
            for (memory, cleared), of_seeds in played.items():
                where = {"split": label, "length": times, "memory": memory, "changes": cleared}
                conditions.append({**where, **adaptation.summarise_trials(of_seeds)})
                if (memory, cleared) != AS_TRAINED:
                    conditions[-1]["gain"] = adaptation.gain(of_seeds, played[AS_TRAINED])
            known = reference(trials_of(longer), options.seed)
            references += [{"split": label, "length": times, **entry} for entry in known]
    params = run.state(0).params
    seconds = {str(batch): adaptation.step_seconds(run.agent, params, batch) for batch in TIMED}
    return {
        "preset": run.preset,
        "env": run.config.env,
        "memory": run.config.memory,
        "chunk": run.chunk,
        "seeds": run.seeds,
        "trials_per_seed": options.trials,
        "greedy": run.config.ppo.eval_greedy,
        "state_bytes": adaptation.state_bytes(run.agent),
        "step_seconds": seconds,
        "eta": options.eta if wanted else None,
        "conditions": conditions,
        "references": references,
    }


def play_conditions(
    run: TrialsRun, task: Trials | Member, options: Options, ablations: Sequence[str], changes: Sequence[str]
) -> dict[tuple[str, str], list[Played]]:
    """The same trials under every condition, by what is done to the memory and what clears it; `AS_TRAINED` first."""
    play = player(run, task, options)
    played: dict[tuple[str, str], list[Played]] = {AS_TRAINED: play(adaptation.treatment())}
    for memory in ablations:
        played[memory, "off"] = play(adaptation.treatment(memory, freeze_after=options.freeze_after))
    if changes:
        play = player(run, task, options, make_detector(played[AS_TRAINED], task, options))
    for what in changes:
        played["kept", what] = play(adaptation.treatment(changes=what))
    return played


def make_detector(played: list[Played], task: Trials | Member, options: Options) -> adaptation.Detector:
    """A detector for these trials. Its edges are the quartiles of the returns that the agent had without it."""
    returns = np.concatenate([p.returns[p.finished] for p in played])
    space = task.action_space(task.default_params)
    streams = getattr(space, "n", 1)
    eta = rbocpd.make_eta(options.eta, options.eta_delta / streams)
    return adaptation.Detector(adaptation.quartiles(returns), eta)


@functools.cache
def reference(trials: Trials, seed: int) -> list[dict[str, Any]]:
    """Reference returns in trials of this kind, each with a `name` and, by inner episode, `return`."""
    family = trials.family
    bandit = isinstance(family, BernoulliBandit | GaussianBandit)
    # Asked by its shape: a task may be a whole world.
    if not bandit and jax.eval_shape(lambda: family.optimal_return(family.default_params)) is None:
        return []
    draw_key, play_key = jax.random.split(jax.random.key(seed))
    tasks = jax.vmap(lambda k: family.draw(k, trials.split))(jax.random.split(draw_key, REFERENCE_TASKS))
    if not bandit:
        best: Any = jax.vmap(family.optimal_return)(tasks)
        entry = {"name": "optimum", "return": float(jnp.mean(best))}
        if isinstance(family, DarkRoom):
            # Within the horizon, as the agent's own are counted.
            steps = jnp.minimum(jax.vmap(family.steps_to_goal)(tasks), family.horizon)
            entry["steps_to_goal"] = float(jnp.mean(steps))
        return [entry]
    if trials.flip_reward:
        return []  # these policies are for arms that pay
    if isinstance(family, BernoulliBandit):
        names, simulate = bandit_oracles.POLICIES, bandit_oracles.simulate
    else:  # the policies know what the agent could learn in training
        known = drawn_from("bandits", "GaussianBandit", "train")
        prior = bandit_oracles.Prior(known["mean"], known["deviation"], known["noise"])
        names = bandit_oracles.GAUSSIAN_POLICIES
        simulate = functools.partial(bandit_oracles.simulate_gaussian, prior=prior)
    result = []
    for name in [*names, *(["gittins"] if trials.episodes <= bandit_oracles.MAX_PULLS else [])]:
        play = simulate(name, play_key, trials.episodes, tasks.means)
        reward, regret = np.asarray(play.reward).T, np.asarray(play.regret).T
        entry = {"name": name, "total": adaptation.scalar([reward.sum(axis=1)])}
        entry |= {"regret": adaptation.scalar([regret.sum(axis=1)])}
        result.append({**entry, "return": np.round(reward.mean(axis=0), 5).tolist()})
    return result


# ------------------------------------------------------------------------------------------------------------ reporting


def label_of(condition: dict[str, Any]) -> str:
    """Words for a condition, beside its split."""
    words = [f"x {condition['length']}"] if condition["length"] != 1 else []
    words += [f"memory {condition['memory']}"] if condition["memory"] != "kept" else []
    words += [f"changes {condition['changes']}"] if condition["changes"] != "off" else []
    return ", ".join(words) or "as trained"


def words_of(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["ci95"]
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]"


def names_of(results: list[dict[str, Any]]) -> list[str]:
    """A name for each run: its memory, with its environment and number where these do not tell runs apart."""
    envs = {r["env"] for r in results}
    names = [r["memory"] if len(envs) == 1 else f"{r['env']}, {r['memory']}" for r in results]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def reference_of(result: dict[str, Any], name: str, split: str, length: int) -> dict[str, Any] | None:
    for entry in result["references"]:
        if (entry["name"], entry["split"], entry["length"]) == (name, split, length):
            return entry
    return None


def markdown(results: list[dict[str, Any]]) -> str:
    """All runs and conditions in one table, then what acting costs."""
    lines = [
        "| run | tasks | trials | first episode | last episodes | ratio | whole trial | gain | of Gittins | regret |",
        "|---" * 10 + "|",
    ]
    seen = set()
    for name, result in zip(names_of(results), results, strict=True):
        for c in result["conditions"]:
            first, last = c["first"]["mean"], c["last"]["mean"]
            ratio = f"{last / first:.2f}" if first > 0 else ""
            best = reference_of(result, "gittins", c["split"], c["length"])
            share = f"{c['total']['mean'] / best['total']['mean']:.1%}" if best else ""
            cells = (name, c["split"], label_of(c), *(words_of(c[part]) for part in ("first", "last")), ratio)
            lines.append(
                "| "
                + " | ".join((*cells, words_of(c["total"]), words_of(c.get("gain")), share, words_of(c.get("regret"))))
                + " |"
            )
        for entry in result["references"]:
            key = (result["env"], entry["name"], entry["split"], entry["length"])
            if key in seen or "total" not in entry:
                continue
            seen.add(key)
            longer = "" if entry["length"] == 1 else f"x {entry['length']}"
            first, *_, last = entry["return"]
            cells = (f"*{entry['name']}*", entry["split"], longer, f"{first:.3f}", f"{last:.3f}", "")
            lines.append(
                "| " + " | ".join((*cells, words_of(entry["total"]), "", "", words_of(entry["regret"]))) + " |"
            )
    lines += [
        "",
        "Returns of inner episodes: of the first, of the last tenth of those that every trial finished, their ratio;",
        "of a whole trial, and what it gains on the first row of its tasks, trial by trial; the regret of one. Means",
        "over seeds and trials, with 95 % t intervals over the trials of these very agents: how agents differ from",
        "seed to seed is in `per_seed` of adaptation.json.",
    ]
    optima = [entry for result in results for entry in result["references"] if entry["name"] == "optimum"]
    for split in dict.fromkeys(entry["split"] for entry in optima):
        values = sorted({f"{entry['return']:.3f}" for entry in optima if entry["split"] == split})
        lines.append(f"The best return of an inner episode for who knows the task, {split}: {', '.join(values)}.")
    lines += steps_to_goal(results)
    detections = [
        (name, c)
        for name, r in zip(names_of(results), results, strict=True)
        for c in r["conditions"]
        if c["changes"] == "on" and "detection" in c
    ]
    if detections:
        lines += ["", "| run | tasks | switches a trial | detected | steps to the alarm | false alarms a trial |"]
        lines += ["|---|---|---|---|---|---|"]
    for name, c in detections:
        d = c["detection"]
        delay = "" if d["delay"] is None else f"{d['delay']:.1f}"
        numbers = f"{d['switches']:.2f} | {d['detected']:.0%} | {delay} | {d['false_alarms']:.2f}"
        lines.append(f"| {name} | {c['split']} | {numbers} |")
    batches = " | ".join(f"us a step, {batch} at once" for batch in TIMED)
    lines += ["", f"| run | seeds | trials a seed | bytes of state | {batches} |", "|---" * (4 + len(TIMED)) + "|"]
    for name, result in zip(names_of(results), results, strict=True):
        times = " | ".join(f"{1e6 * result['step_seconds'][str(batch)]:.1f}" for batch in TIMED)
        lines.append(
            f"| {name} | {result['seeds']} | {result['trials_per_seed']} | {result['state_bytes']:,} | {times} |"
        )
    return "\n".join(lines) + "\n"


def steps_to_goal(results: list[dict[str, Any]]) -> list[str]:
    """The table of how soon goals are reached, where families say so."""
    rows = []
    for name, result in zip(names_of(results), results, strict=True):
        for c in result["conditions"]:
            if "first_steps_to_goal" in c:
                best = reference_of(result, "optimum", c["split"], c["length"])
                fewest = f"{best['steps_to_goal']:.2f}" if best and "steps_to_goal" in best else ""
                steps = " | ".join(words_of(c[f"{part}_steps_to_goal"]) for part in ("first", "last"))
                rows.append(f"| {name} | {c['split']} | {label_of(c)} | {steps} | {fewest} |")
    if not rows:
        return []
    head = "| run | tasks | trials | steps to the goal, first episode | last episodes | fewest, for who knows it |"
    return ["", head, "|---" * 6 + "|", *rows]


STYLES = {"kept": "-", "frozen": "--", "reset": ":"}
REFERENCE_STYLES = {"gittins": "-.", "thompson": (0, (1, 1)), "optimum": (0, (5, 1))}


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """One row of panels a split: adaptation with its ablations; steps to the goal, where there is one; the longest
    trials; what clearing the memory gains.

    Long curves show means of neighbouring episodes, and as their bands the means of the intervals of these.
    """
    import matplotlib.pyplot as plt  # slow to import

    plt.switch_backend("Agg")
    conditions = [c for r in results for c in r["conditions"]]
    splits = list(dict.fromkeys(c["split"] for c in conditions))
    shortest, longest = (f(c["length"] for c in conditions) for f in (min, max))
    changes = any(c["changes"] != "off" for c in conditions)
    goals = any("steps_to_goal" in c["by_episode"] for c in conditions)
    columns = 1 + goals + (longest > shortest) + changes
    figure, axes = plt.subplots(
        len(splits), columns, figsize=(5.2 * columns, 3.4 * len(splits)), layout="constrained", squeeze=False
    )
    for row, split in zip(axes, splits, strict=True):
        draw_curves(row[0], results, split, shortest, "return by inner episode")
        if goals:
            draw_curves(row[1], results, split, shortest, "steps to the goal by inner episode", "steps_to_goal")
        if longest > shortest:
            at = row[1 + goals]
            draw_curves(at, results, split, longest, f"return in trials {longest} times as long")
            at.axvline(training_episodes(results, split, shortest), color="0.7", linewidth=1)
        if changes:
            draw_changes(row[-1], results, split)
    handles = {label: h for at in axes.flat for h, label in zip(*at.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def training_episodes(results: list[dict[str, Any]], split: str, length: int) -> int:
    return max(c["episodes"] for r in results for c in r["conditions"] if (c["split"], c["length"]) == (split, length))


def smoothed(values: Sequence[float], points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers, from 1, and means of so many neighbouring values each that there are at most `points`."""
    size = -(-len(values) // points)
    groups = len(values) // size  # what does not fill a group at the end is left out
    rows = np.asarray(values, float)[: groups * size].reshape(groups, size)
    return 1 + (size - 1) / 2 + size * np.arange(groups), rows.mean(axis=1)


def draw_curves(
    axes: Any, results: list[dict[str, Any]], split: str, length: int, title: str, what: str = "return"
) -> None:
    """Return (or `what`) by inner episode of every run, its ablations, and what is known of the best."""
    for name, color, result in zip(names_of(results), colors_of([r["memory"] for r in results]), results, strict=True):
        for c in result["conditions"]:
            if (c["split"], c["length"], c["changes"]) != (split, length, "off") or what not in c["by_episode"]:
                continue
            curve = c["by_episode"][what]
            at, mean = smoothed(curve["mean"])
            text = name if c["memory"] == "kept" else f"{name}, {c['memory']}"
            axes.plot(at, mean, STYLES[c["memory"]], color=color, label=text, linewidth=1.4)
            if c["memory"] == "kept":
                axes.fill_between(at, *(smoothed(curve[p])[1] for p in ("low", "high")), color=color, alpha=0.2)
    for name, style in REFERENCE_STYLES.items():
        known = (reference_of(result, name, split, length) for result in results)
        entry = next((entry for entry in known if entry is not None), None)
        if entry is None or what not in entry:
            continue
        if isinstance(entry[what], float):
            axes.axhline(entry[what], linestyle=style, color="black", linewidth=1, label=name)
        else:
            axes.plot(*smoothed(entry[what]), linestyle=style, color="black", linewidth=1, label=name)
    axes.set_title(f"{split} tasks: {title}", fontsize=9)
    axes.set_xlabel("inner episode of the trial", fontsize=8)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)


def draw_changes(axes: Any, results: list[dict[str, Any]], split: str) -> None:
    """Gain in a trial's return from clearing the memory, trial by trial."""
    width, shown = 0.8 / len(results), ("on", "oracle")
    for place, (color, result) in enumerate(zip(colors_of([r["memory"] for r in results]), results, strict=True)):
        for c in result["conditions"]:
            if c["split"] == split and c["changes"] in shown:
                x = shown.index(c["changes"]) + (place - (len(results) - 1) / 2) * width
                axes.bar(x, c["gain"]["mean"], width * 0.9, color=color, alpha=0.8)
                axes.vlines(x, *c["gain"]["ci95"], color="black", linewidth=1.2)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(shown)), ["detector", "oracle"], fontsize=8)
    axes.set_title(f"{split} tasks: what clearing the memory gains a trial", fontsize=9)
    axes.tick_params(labelsize=7)


def adapt(folders: Sequence[Path], options: Options, out: Path | None = None) -> list[dict[str, Any]]:
    """Measures all runs; writes `adaptation.json` in each, and table and figure of all into `out`.

    Args:
        out: default: as `options` say, else the run folder if there is one, else runs/adaptation.

    Returns:
        the contents of each `adaptation.json`.

    Raises:
        BadRequest: see `read_run` and `measure`.
    """
    options = replace(options, runs=tuple(Path(folder) for folder in folders))
    refuse_impossible(options)
    out = out or options.out or (options.runs[0] if len(options.runs) == 1 else Path("runs") / "adaptation")
    trained = [read_run(folder, options.greedy) for folder in options.runs]
    results = []
    for run in trained:
        try:
            results.append(measure(run, options))
        except BadRequest as error:
            raise BadRequest(f"{run.folder}: {error}") from None
        write_atomically(run.folder / "adaptation.json", json.dumps(results[-1]) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "adaptation.md", markdown(results))
    draw(results, out / "adaptation.png")
    print(markdown(results))
    notify(f"wrote adaptation.md and adaptation.png in {out}")
    return results
