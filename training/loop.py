"""The training loop of every agent: compiled chunks, and between them logging, evaluation and checkpoints.

The agent is three pure functions (`init`, `update`, `evaluate`); this file alone talks to the world. Seeds run side
by side in one program. A chunk is a `lax.scan` over updates in one compiled program whose input state is donated;
Python runs between chunks and nowhere else. What is computed depends on the number of the chunk, never on the clock,
so a run resumed from any checkpoint repeats what the unbroken run does, bit for bit.
"""

import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from engram.envs.wrappers import Wrapper
from engram.errors import BadRequest, Diverged, Interrupted
from engram.training import action_log as replay
from engram.training import checkpoint
from engram.training.folder import RunFolder, notify
from engram.training.metrics import Display, MetricsLog, Row, WandbLog, aggregate, finite_or_none
from engram.training.statistics import summarise
from engram.training.types import Agent

EVALUATION = 0x5EED  # separates the keys of evaluation from those of training


@dataclass(frozen=True)
class Plan:
    """How the updates of a run are divided."""

    updates: int
    updates_per_chunk: int

    @property
    def chunks(self) -> int:
        return self.updates // self.updates_per_chunk


def plan(total_steps: int, steps_per_update: int, log_points: int) -> Plan:
    """Rounds `total_steps` up to whole chunks of equal size (one compiled program), at most `log_points` of them."""
    updates = math.ceil(total_steps / steps_per_update)
    chunks = min(log_points, updates)
    per_chunk = math.ceil(updates / chunks)
    return Plan(updates=math.ceil(updates / per_chunk) * per_chunk, updates_per_chunk=per_chunk)


@dataclass(frozen=True)
class LoopSettings:
    """What the loop is told."""

    label: str
    seeds: int
    seed: int
    plan: Plan
    eval_points: int
    checkpoint_seconds: float
    wandb: Literal["disabled", "offline", "online"]
    quiet: bool


def seed_keys(seed: int, seeds: int) -> jax.Array:
    """One key per seed: the i-th of a run with `seed` is the only one of a run with `seed + i`."""
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds, dtype=jnp.uint32))


def over_seeds(f: Callable, seeds: int) -> Callable:
    """`f` of one seed as a function of all: its arguments and results get a leading axis `[seeds, ...]`, named "seeds".

    A single seed is not batched: programs of many small products are three times slower with an axis of one.
    """
    if seeds > 1:
        return jax.vmap(f, axis_name="seeds")

    def alone(*args):
        return jax.tree.map(lambda x: x[None], f(*jax.tree.map(lambda x: x[0], args)))

    return alone


def evaluation(agent: Agent, seeds: int) -> Callable:
    """`agent.evaluate` for all seeds: states and keys `[seeds, ...]` -> metrics `[seeds]`."""
    return over_seeds(functools.partial(agent.evaluate, axis_name="seeds" if seeds > 1 else None), seeds)


def given(agent: Agent, data: Any) -> Agent:
    """`agent` with `data` in place of its own, if it has any."""
    return agent if data is None else dataclasses.replace(cast(Any, agent), data=data)


@dataclass
class Compiled:
    """The three programs of a run, compiled ahead of time for all seeds."""

    init: Any
    chunk: Any
    evaluate: Any
    template: Any
    action: Any
    """Shape and dtype of one update's actions, `[seeds, T, B, ...]`; None unless they are logged."""
    seconds: float


def compile_agent(agent: Agent, seeds: int, updates_per_chunk: int) -> Compiled:
    """Compiles `init`, one chunk of updates, and `evaluate`, for all seeds together."""
    started = time.perf_counter()
    data = getattr(agent, "data", None)

    def init_all(keys, data):
        return over_seeds(given(agent, data).init, seeds)(keys)

    def chunk(states, data):
        update_all = over_seeds(given(agent, data).update, seeds)
        return jax.lax.scan(lambda s, _: update_all(s), states, None, length=updates_per_chunk)

    def evaluate_all(states, keys, data):
        return evaluation(given(agent, data), seeds)(states, keys)

    def compiled(lowered):
        return functools.partial(lowered.compile(), data=data)

    keys = jax.eval_shape(lambda: seed_keys(0, seeds))
    init = jax.jit(init_all).lower(keys, data=data)
    template = init.out_info
    update = jax.jit(chunk, donate_argnums=0).lower(template, data=data)
    action = update.out_info[1].get("replay/action")
    return Compiled(
        init=compiled(init),
        chunk=compiled(update),
        evaluate=compiled(jax.jit(evaluate_all).lower(template, keys, data=data)),
        template=template,
        action=None if action is None else jax.ShapeDtypeStruct(action.shape[1:], action.dtype),
        seconds=time.perf_counter() - started,
    )


def train(
    agent: Agent,
    remake: Callable[[int], Agent],
    settings: LoopSettings,
    folder: RunFolder,
    config: dict[str, Any],
    views: Callable[[Any], list[Path]] = lambda states: [],
    keep: Callable[[int, Any, Any], None] | None = None,
) -> dict[str, Any]:
    """Trains to the end of the plan and writes the run folder; continues from its newest intact checkpoint.

    Args:
        remake: makes the agent again with another seed for its emulators (functional environments ignore it).
        views: draws pictures of the trained states, of which Weights & Biases gets a copy.
        keep: gets every chunk's number, its metric `replay/record` `[updates, seeds, ...]` and the states after it,
            before the chunk is checkpointed; a run that resumes may repeat some, with the same values.

    Returns:
        the summary's numbers (see `summary.json` in the documentation).

    Raises:
        Diverged, Interrupted, BadRequest: see `engram.errors`; the folder can be resumed after each.
    """
    keys = seed_keys(settings.seed, settings.seeds)
    stop = _StopRequest()
    display = Display(settings.label, settings.plan.updates * agent.steps_per_update, settings.seeds, settings.quiet)
    wandb = None
    try:
        programs = compile_agent(agent, settings.seeds, settings.plan.updates_per_chunk)
        checkpoint.remove_unfinished(folder.checkpoints)
        found = checkpoint.restore(folder.checkpoints, programs.template)
        if found is None:
            states, first, rows, wall, logged = programs.init(keys), 0, 0, 0.0, 0
        else:
            states, manifest = found
            first, rows, wall = manifest["chunk"], manifest["rows"], manifest["wall_s"]
            logged = manifest["action_bytes"]
            notify(f"resuming after {first} of {settings.plan.chunks} chunks")
            if agent.env.is_host_pool and first < settings.plan.chunks:
                steps = first * settings.plan.updates_per_chunk * agent.steps_per_update
                if steps * settings.seeds <= replay.EXACT_STEPS:
                    path = folder.path / replay.ACTIONS
                    replay.repeat(cast(Wrapper, agent.env), keys, path, logged, programs.action, states.env)
                else:
                    notify("too far to repeat exactly: going on with new episodes of the emulator")
                    agent = remake(settings.seed + steps)
                    programs = compile_agent(agent, settings.seeds, settings.plan.updates_per_chunk)
                    states = replay.reopen(keys, programs.init, states)
        log = MetricsLog(folder.path / "metrics.jsonl", rows)
        actions = replay.ActionLog(folder.path / replay.ACTIONS, logged) if agent.env.is_host_pool else None
        wandb = WandbLog(settings.wandb, folder.path, config)
        try:
            states, wall = _train_chunks(
                agent, settings, folder, programs, states, first, wall, log, actions, wandb, display, stop, keep
            )
            for picture in views(states):
                wandb.picture(picture)
        finally:
            log.close()
            if actions is not None:
                actions.close()
        return _summary(settings, log.rows, programs.seconds, wall)
    except OSError as error:
        raise BadRequest(f"cannot write to {folder.path}: {error}; checkpoints already written are intact") from None
    finally:
        display.close()
        stop.restore()
        if wandb is not None:
            wandb.close()


def _train_chunks(
    agent: Agent,
    settings: LoopSettings,
    folder: RunFolder,
    programs: Compiled,
    states: Any,
    first: int,
    wall: float,
    log: MetricsLog,
    actions: replay.ActionLog | None,
    wandb: WandbLog,
    display: Display,
    stop: "_StopRequest",
    keep: Callable[[int, Any, Any], None] | None,
) -> tuple[Any, float]:
    chunks = settings.plan.chunks
    steps_per_chunk = settings.plan.updates_per_chunk * agent.steps_per_update
    # An emulator can be opened once, so an agent on one is evaluated once, at the end.
    points = 1 if agent.env.is_host_pool else settings.eval_points
    evaluations = {math.ceil(chunks * (i + 1) / points) for i in range(points)}
    keys = seed_keys(settings.seed, settings.seeds)
    saved_at = time.perf_counter()

    for done in range(first + 1, chunks + 1):
        started = time.perf_counter()
        states, metrics = programs.chunk(states)
        metrics = jax.device_get(metrics)
        if actions is not None:
            actions.write(metrics["replay/action"])
        if keep is not None:
            keep(done, metrics["replay/record"], states)
        metrics = aggregate(metrics)
        seconds = time.perf_counter() - started
        _check_finite(metrics, folder, done)

        if done in evaluations:
            eval_keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, EVALUATION), done))(keys)
            metrics |= jax.device_get(programs.evaluate(states, eval_keys))
        wall += time.perf_counter() - started
        row: Row = {
            "env_steps": done * steps_per_chunk,
            "updates": done * settings.plan.updates_per_chunk,
            "wall_s": round(wall, 3),
            "steps_per_s": round(steps_per_chunk * settings.seeds / seconds, 1),
            **{name: [finite_or_none(v) for v in np.atleast_1d(values)] for name, values in sorted(metrics.items())},
        }
        log.write(row)
        wandb.write(row)
        display.show(row)

        due = time.perf_counter() - saved_at >= settings.checkpoint_seconds
        if due or done == chunks or stop.requested:
            extra = {"rows": len(log.rows), "wall_s": wall, "action_bytes": actions.size if actions is not None else 0}
            checkpoint.save(folder.checkpoints, done, states, extra)
            saved_at = time.perf_counter()
        if stop.requested and done < chunks:
            raise Interrupted(f"stopped after chunk {done} of {chunks}; continue with --resume --out {folder.path}")
    return states, wall


def _check_finite(metrics: dict[str, np.ndarray], folder: RunFolder, done: int) -> None:
    bad = sorted(name for name, v in metrics.items() if name.startswith("loss/") and not np.all(np.isfinite(v)))
    if bad:
        good = checkpoint.checkpoints(folder.checkpoints)
        kept = f"last good checkpoint: {folder.checkpoints / str(good[-1])}" if good else "no checkpoint was due before"
        raise Diverged(f"training diverged in chunk {done}: {', '.join(bad)} not finite; {kept}")


def _summary(settings: LoopSettings, rows: list[Row], compile_s: float, wall: float) -> dict[str, Any]:
    """Final numbers: training return of the last log point with ended episodes, return of the last evaluation."""

    def last(key: str) -> list[float | None]:
        per_seed: list[float | None] = [None] * settings.seeds
        for row in rows:
            per_seed = [
                new if new is not None else old for new, old in zip(row.get(key, per_seed), per_seed, strict=True)
            ]
        return per_seed

    return {
        "seeds": settings.seeds,
        "env_steps": rows[-1]["env_steps"],
        "compile_s": round(compile_s, 2),
        "wall_s": round(wall, 2),
        "steps_per_s": round(float(np.median([row["steps_per_s"] for row in rows])), 1),
        "train_return": summarise(last("train/return")),
        "eval_return": summarise(last("eval/return")),
    }


class _StopRequest:
    """Turns Ctrl-C (and a polite kill) into a request that the loop honours after the running chunk."""

    def __init__(self):
        self.requested = False
        self._before = {}
        for name in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[name] = signal.signal(name, self._ask)
            except ValueError:  # not in the main thread: the caller handles signals
                return

    def _ask(self, number, frame):
        if self.requested:  # asked twice: now
            raise KeyboardInterrupt
        self.requested = True
        notify("stopping after this chunk (once more to stop at once) ...")

    def restore(self) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
