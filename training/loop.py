"""The training loop of every agent: compiled chunks, and between them logging, evaluation and checkpoints.

The agent is three pure functions (`init`, `update`, `evaluate`); this file alone talks to the world. A chunk is a
`lax.scan` over updates in one compiled program that consumes the state it is given (see `engram.training.programs`).
Python runs between chunks and nowhere else. What is computed depends on the number of the chunk, never on the clock, so
a run that is resumed from any checkpoint repeats what an unbroken run does, bit for bit.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from jax.sharding import Mesh

from engram.atomic_files import set_aside
from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest, Diverged, Interrupted
from engram.kernels.host_call import errors_as_raised
from engram.training import action_log, checkpoint, compile_times, team
from engram.training.display import Display
from engram.training.faults import in_words
from engram.training.folder import RunFolder, is_disk_trouble
from engram.training.metrics import LastKnown, MetricsLog, Row, WandbLog, aggregate, finite_or_none, read_metrics
from engram.training.programs import Compiled, compile_agent, seed_keys
from engram.training.statistics import summarise
from engram.training.stderr import notify
from engram.training.stopping import StopRequest
from engram.training.types import Agent, Key, PyTree

Keep = Callable[[int, Any, PyTree], None]
"""Takes the number of a chunk, its metric `replay/record` `[updates, seeds, ...]`, and the states after it."""


MOST_UPDATES = 2**30
"""Updates of the longest run: agents count them in 32 bits."""


@dataclass(frozen=True)
class Plan:
    """How the updates of a run are divided into chunks of equal size."""

    updates: int
    updates_per_chunk: int

    @property
    def chunks(self) -> int:
        return self.updates // self.updates_per_chunk


def plan(total_steps: int, steps_per_update: int, log_points: int) -> Plan:
    """Rounds `total_steps` up to whole chunks of equal size (one compiled program), at most `log_points` of them.

    Raises:
        BadRequest: more updates than agents count.
    """
    updates = math.ceil(total_steps / steps_per_update)
    if updates > MOST_UPDATES:
        most = MOST_UPDATES * steps_per_update
        raise BadRequest(f"total_steps must be at most {most:,} (2^30 updates), got {total_steps:,}")
    chunks = min(log_points, updates)
    per_chunk = math.ceil(updates / chunks)
    return Plan(updates=math.ceil(updates / per_chunk) * per_chunk, updates_per_chunk=per_chunk)


@dataclass(frozen=True)
class LoopSettings:
    """Arguments of the training loop."""

    label: str
    """Name of the run in the display."""
    seeds: int
    """Independent runs side by side."""
    seed: int
    """Seed of the first of them; the others count up from it."""
    plan: Plan
    """Updates, and how many of them make a chunk."""
    eval_points: int
    """Evaluations during the run, the last one at its end."""
    checkpoint_seconds: float
    """Least time between two checkpoints; 0 makes one after every chunk."""
    wandb: Literal["disabled", "offline", "online"]
    """Mode of Weights & Biases."""
    quiet: bool
    """Whether the display shows nothing."""
    mesh: Mesh | None = None
    """Devices over which the run is spread (see `engram.training.devices`); None for one."""


def train(
    agent: Agent,
    remake: Callable[[int], Agent],
    settings: LoopSettings,
    folder: RunFolder,
    config: dict[str, Any],
    views: Callable[[PyTree], list[Path]] = lambda states: [],
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Trains to the end of the plan and writes the run folder; continues from its newest intact checkpoint.

    Args:
        remake: makes the agent again, with emulators that are new after so many steps (functional environments ignore
            it).
        config: configuration, for Weights & Biases.
        views: draws pictures of the trained states, of which Weights & Biases gets a copy.
        keep: called after every chunk, before it is checkpointed. A run that resumes may repeat some chunks, with the
            same values.

    Returns:
        the numbers of the summary (see `summary.json` in the documentation).

    Raises:
        Diverged, Interrupted, BadRequest: see `engram.errors`; the folder can be resumed after each.
    """
    run = TrainingRun(agent, remake, settings, folder, keep)
    try:
        run.compile()
        with errors_as_raised():  # of emulators
            run.begin()
            run.open_logs(config)
            for chunk in range(run.done + 1, settings.plan.chunks + 1):
                row = run.train_chunk(chunk)
                folder.check_place()
                run.write(row)
                run.save(chunk)
        states = team.on_host(run.states)
        for picture in views(states) if team.leads() else ():
            run.wandb.picture(picture)
        return run.summary() if team.leads() else {}
    except OSError as error:
        if not is_disk_trouble(error, folder.path):
            raise
        reason = error.strerror or error
        raise BadRequest(f"cannot write to {folder.path}: {reason}; checkpoints already written are intact") from None
    finally:
        run.close()


@dataclass
class TrainingRun:
    """A run on its way: its agent, its programs, how far it is, and where its numbers go."""

    agent: Agent
    remake: Callable[[int], Agent]
    settings: LoopSettings
    folder: RunFolder
    keep: Keep | None

    progress: checkpoint.Progress = field(default_factory=lambda: checkpoint.Progress(0, lanes=action_log.LANES))
    """What was trained before this process began."""
    wall: float = 0.0
    """Seconds of training and evaluation, over all processes of the run."""
    programs: Compiled = field(init=False)
    states: PyTree = field(init=False)
    """Agent states of all seeds, leaves `[seeds, ...]`."""
    log: MetricsLog = field(init=False)
    last_known: LastKnown = field(default_factory=LastKnown)
    actions: action_log.ActionLog | None = None
    fault: str | None = None
    """The first number of an environment, in words, that may have made training diverge."""
    wandb: WandbLog = field(default_factory=WandbLog)

    def __post_init__(self):
        plan = self.settings.plan
        self.keys: Key = seed_keys(self.settings.seed, self.settings.seeds)
        self.steps_per_chunk = plan.updates_per_chunk * self.agent.steps_per_update
        # An emulator can be opened once, so an agent on one is evaluated once, at the end.
        points = 1 if self.agent.env.is_host_pool else self.settings.eval_points
        self.evaluations = {math.ceil(plan.chunks * (i + 1) / points) for i in range(points)}
        # Closed from the last one to the first.
        self._open = contextlib.ExitStack()
        self._open.callback(lambda: self.wandb.close())
        self.stop = StopRequest()
        self._open.callback(self.stop.restore)
        total_steps = plan.chunks * self.steps_per_chunk
        self.display = Display(self.settings.label, total_steps, self.settings.seeds, self.settings.quiet)
        self._open.callback(self.display.close)

    @property
    def done(self) -> int:
        """Chunks that were finished before this process began."""
        return self.progress.chunk

    def compile(self) -> None:
        """Has the programs of the agent compiled, which goes on in threads."""
        plan = self.settings.plan
        self.programs = compile_agent(
            self.agent,
            self.settings.seeds,
            plan.updates_per_chunk,
            self.done + 1 in self.evaluations,
            plan.chunks,
            self.settings.mesh,
        )
        expected = compile_times.recall(self.programs.key)

        def show() -> None:
            left = [program.name for program in self.programs.all if not program.is_there]
            self.display.compiling(left, expected)

        show()
        for program in self.programs.all:
            program.when_there(show)
        if not team.is_alone():
            self.keys = team.on_devices(team.bits_of(self.keys), self.programs.keys)

    def begin(self) -> None:
        """Makes the first states, or restores those of the newest intact checkpoint; waits for the chunk's program."""
        self._first_states()
        self.programs.chunk.wait()
        seconds = time.perf_counter() - self.programs.started
        compile_times.remember(self.programs.key, seconds)
        self.display.compiled(seconds)

    def _first_states(self) -> None:
        root, path = self.folder.checkpoints, self.folder.path / "metrics.jsonl"
        found = self._restored(root)
        if found is None:
            if path.exists() and path.stat().st_size:
                notify(f"no intact checkpoint in {root}: training begins anew")
                if any(root.glob("*.damaged*")):
                    notify(f"the metrics so far are kept as {set_aside(path).name}")
            self.states = self.programs.init(self.keys)
            return
        self.states, progress = found
        chunks = self.settings.plan.chunks
        if progress.chunk > chunks:
            raise BadRequest(f"{root / str(progress.chunk)} is no checkpoint of this run, which has {chunks} chunks")
        rows = self._rows_in(path, progress.chunk) if progress.rows is None else progress.rows
        self.progress, self.wall = dataclasses.replace(progress, rows=rows), progress.wall_s
        notify(f"resuming after {self.done} of {chunks} chunks")
        devices = 1 if self.settings.mesh is None else self.settings.mesh.size
        if self.done and self.folder.devices not in (None, devices):
            notify(f"other device count, {devices} in place of {self.folder.devices}: continues, not bit for bit")
        if self.agent.env.is_host_pool and self.done < chunks:
            self._resume_emulators()

    def _restored(self, root: Path) -> tuple[PyTree, checkpoint.Progress] | None:
        """States and progress of the newest intact checkpoint, which the process that leads reads for all."""
        template = self.programs.template
        if team.is_alone():
            found = checkpoint.restore(root, template, training=True)
        else:
            plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), template)
            found = checkpoint.restore(root, plain, training=True) if team.leads() else None
            if (chunk := int(team.of_leader(np.int32(-1 if found is None else found[1].chunk)))) >= 0:
                states, progress = found or (plain, checkpoint.Progress(chunk))
                found = team.on_devices(team.of_leader(team.bits_of(states)), template), progress
        checkpoint.remove_unfinished(root)
        return found

    def _rows_in(self, path: Path, chunks: int) -> list[Row]:
        """The lines of metrics of the first chunks, for a checkpoint of an earlier version, which does not hold them.

        Raises:
            BadRequest: there are fewer, or others.
        """
        try:
            rows = read_metrics(path)[:chunks]
        except FileNotFoundError:
            rows = []
        per_chunk, seeds = self.settings.plan.updates_per_chunk, self.settings.seeds
        updates = [per_chunk * chunk for chunk in range(1, chunks + 1)]
        lists = [value for row in rows for value in row.values() if isinstance(value, list)]
        if [row.get("updates") for row in rows] != updates or any(len(value) != seeds for value in lists):
            raise BadRequest(
                f"{path} does not hold the first {chunks} lines of the run: put them back, or, to begin anew, "
                f"remove {self.folder.checkpoints}"
            )
        return rows

    def _resume_emulators(self) -> None:
        """Brings fresh emulators to where the checkpoint was, or continues in new episodes where that is too far."""
        steps = self.done * self.steps_per_chunk
        too_far = steps * self.settings.seeds > action_log.EXACT_STEPS
        if not too_far and self.progress.lanes == action_log.LANES:
            assert self.programs.action is not None
            action_log.repeat(
                cast(Wrapper, self.agent.env),
                self.keys,
                self.folder.path / action_log.ACTIONS,
                self.progress,
                self.programs.action,
                self.done * self.settings.plan.updates_per_chunk,
                self.states.env,
            )
        else:
            reason = (
                "too far to repeat exactly"
                if too_far
                else "its emulators were seeded by another version, or opened anew before, and cannot be repeated"
            )
            notify(f"{reason}: going on with new episodes of the emulator")
            self.progress = dataclasses.replace(self.progress, lanes=0)
            self.agent = self.remake(steps)
            self.compile()
            self.states = action_log.reopen(self.keys, self.programs.init, self.states)

    def open_logs(self, config: dict[str, Any]) -> None:
        """Opens everything that is written between chunks, cut back to where the states are."""
        self.log = MetricsLog(self.folder.path / "metrics.jsonl", self.progress.rows or ())
        self._open.callback(self.log.close)
        for row in self.log.rows:
            self.last_known.fill(row)
        if self.agent.env.is_host_pool:
            space = self.agent.env.action_space(self.agent.env.default_params)
            self.actions = action_log.ActionLog(self.folder.path / action_log.ACTIONS, self.progress, space)
            self._open.callback(self.actions.close)
        self.wandb = WandbLog(self.settings.wandb, self.folder.path, config)
        self.saved_at = time.perf_counter()

    def train_chunk(self, chunk: int) -> Row:
        """Trains one chunk, evaluates where that is due -> its line of `metrics.jsonl`. Raises Diverged."""
        started = time.perf_counter()
        self.states, metrics = self.programs.chunk(self.states)
        metrics = jax.device_get(team.on_host(metrics))
        self.folder.check_place()
        if self.actions is not None:
            self.actions.write(metrics["replay/action"], metrics["replay/played"])
        if self.keep is not None:
            self.keep(chunk, metrics["replay/record"], self.states)
        if self.fault is None and "replay/fault" in metrics:
            env: Any = self.agent.env  # a batch, which the metric is of
            faults, plan = metrics["replay/fault"], self.settings.plan
            lanes = env.num_envs * getattr(self.agent, "groups", 1)
            before, steps = (chunk - 1) * plan.updates_per_chunk, self.agent.steps_per_update // lanes
            self.fault = in_words(faults.reshape(len(faults), -1), self.settings.seed, lanes, before, steps)
        metrics = aggregate(metrics)
        seconds = time.perf_counter() - started
        self._check_finite(metrics, chunk)

        if chunk in self.evaluations:
            started += self.programs.evaluate.wait()  # compilation is no part of the run's time
            evaluated = self.programs.evaluate(self.states, self.keys, np.uint32(chunk))
            metrics |= jax.device_get(team.on_host(evaluated))
        self.wall += time.perf_counter() - started
        return {
            "env_steps": chunk * self.steps_per_chunk,
            "updates": chunk * self.settings.plan.updates_per_chunk,
            "wall_s": round(self.wall, 3),
            "steps_per_s": round(self.steps_per_chunk * self.settings.seeds / seconds, 1),
            **{name: [finite_or_none(v) for v in np.atleast_1d(values)] for name, values in sorted(metrics.items())},
        }

    def _check_finite(self, metrics: dict[str, np.ndarray], chunk: int) -> None:
        bad = sorted(name for name, v in metrics.items() if name.startswith("loss/") and not np.all(np.isfinite(v)))
        if not bad:
            return
        root = self.folder.checkpoints
        good = checkpoint.checkpoints(root)
        kept = f"last good checkpoint: {root / str(good[-1])}" if good else "no checkpoint was due before"
        cause = f"{self.fault}; " if self.fault else ""
        raise Diverged(f"training diverged in chunk {chunk}: {cause}{', '.join(bad)} not finite; {kept}")

    def write(self, row: Row) -> None:
        """Hands a line of metrics to all that take it."""
        self.log.write(row)
        row = self.last_known.fill(row)
        self.wandb.write(row)
        self.display.show(row)

    def save(self, chunk: int) -> None:
        """Makes a checkpoint if one is due or the user asked to stop; in that case raises Interrupted after it."""
        last, stops = chunk == self.settings.plan.chunks, team.any_of(self.stop.requested)
        due = bool(team.of_leader(np.bool_(time.perf_counter() - self.saved_at >= self.settings.checkpoint_seconds)))
        if due or last or stops:
            states = team.on_host(self.states)
            logged = {} if self.actions is None else self.actions.so_far
            progress = checkpoint.Progress(chunk, self.wall, self.log.rows, lanes=self.progress.lanes, **logged)
            if team.leads():
                checkpoint.save(self.folder.checkpoints, states, progress, self.folder.check_place)
            if self.folder.mirror is not None:
                self.folder.mirror.update()
            self.saved_at = time.perf_counter()
        if stops and not last:
            where = f"chunk {chunk} of {self.settings.plan.chunks}"
            raise Interrupted(f"stopped after {where}; continue with --resume --out {self.folder.path}")

    def summary(self) -> dict[str, Any]:
        """Final numbers: returns of each seed's last log point with ended episodes, and of its last evaluation."""
        rows, seeds = self.log.rows, self.settings.seeds
        last = self.last_known.values
        return {
            "seeds": seeds,
            "env_steps": rows[-1]["env_steps"],
            "compile_s": round(self.programs.seconds, 2),
            "wall_s": round(self.wall, 2),
            "steps_per_s": round(float(np.median([row["steps_per_s"] for row in rows])), 1),
            "train_return": summarise(last.get("train/return", [None] * seeds)),
            "eval_return": summarise(last.get("eval/return", [None] * seeds)),
            **({"eval_finished": last["eval/finished"]} if "eval/finished" in last else {}),
        }

    def close(self) -> None:
        """Closes what is open, and takes signals no longer."""
        self._open.close()
