"""Making datasets for offline learning: tiers of a PPO run, a scripted set, or an existing file in another format.

Repeating a call goes on where it was stopped, and makes what is missing.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from engram.agents.common.environments import divide
from engram.agents.common.experiment import Experiment
from engram.agents.common.spec import Build
from engram.agents.ppo.agent import PPO
from engram.agents.ppo.build import make_environment, make_ppo
from engram.agents.ppo.experiment import ObservationSettings, PPOExperiment
from engram.agents.registry import spec_of
from engram.envs.datasets import Episodes, Origin, load, save, unpack
from engram.envs.datasets.episodes import normalised_score
from engram.envs.datasets.folder import ENDING
from engram.envs.datasets.recorder import Step, Tape, joined
from engram.envs.spaces import Space
from engram.errors import BadRequest, Interrupted
from engram.experiments.options import TIERS, Convert, Expert, Format, Output, PendulumNoise, Tier, Tiers
from engram.experiments.recording import (
    Player,
    Policy,
    load_policy,
    named_key,
    policy_of,
    policy_player,
    random_player,
    save_policy,
)
from engram.experiments.runs import RECORDINGS, Run, folder_name
from engram.experiments.train import train
from engram.regular_files import is_number, read_json
from engram.training.folder import versions, write_atomically
from engram.training.stderr import notify

MIXED = ("medium", "expert")
"""Tiers that medium-expert consists of."""
LANES = 100
"""Environments that are played at a time; a return that is measured is the mean of one episode in each."""
MEDIUM = 100 / 3
"""Normalised score from which on a checkpoint is medium."""
MEDIUM_HIGH = 45.0
"""Normalised score of the medium checkpoint above which checkpoints came too seldom."""


# --------------------------------------------------------------------------------------------------- what a tier is


@dataclass(frozen=True)
class Measured:
    """Mean return and length of a policy's episodes."""

    episode_return: float
    episode_length: float


@dataclass(frozen=True)
class Played:
    """A tier of one policy: random, medium or expert."""

    player: Player
    policy: Any
    measured: Measured
    algorithm: str


@dataclass(frozen=True)
class Replayed:
    """A tier of what training played, up to and with the chunk `last`."""

    recordings: Path
    last: int
    actions: Space
    algorithm: str


Sources = dict[str, Any]
"""Sources of tiers: `Played` for random, medium and expert, `Replayed` for the replay tiers."""


@dataclass(frozen=True)
class Workshop:
    """Makes the tiers of one environment and writes them under `out`."""

    config: PPOExperiment
    out: Path
    steps: int
    format: Format
    measured: Path | None = None
    """File that keeps means once they were measured."""

    @cached_property
    def random_player(self) -> Player:
        seen = self.config.observation
        plain = ObservationSettings(
            previous_action=False, keep=seen.keep, action_mask=seen.action_mask, time_limit=seen.time_limit
        )
        config = replace(self.config, observation=plain, seeds=1)
        return random_player(make_environment(config, LANES, (0,), Build(record=True)))

    def measure(self, player: Player, policy: Any, name: str) -> Measured:
        """Means over the first episode in each of `LANES` environments."""
        known = {}
        if self.measured is not None and self.measured.exists():
            known = read_json(self.measured)
            wanted = {"episode_return", "episode_length"}
            if not isinstance(known, dict) or not all(
                isinstance(entry, dict) and entry.keys() == wanted and all(map(is_number, entry.values()))
                for entry in known.values()
            ):
                raise BadRequest(f"{self.measured} is damaged: remove it, and policies are measured again")
        if name not in known:
            once = self.play(player, policy, f"measure {name}", np.ones(LANES, int), Origin(env=""))
            known[name] = {
                "episode_return": float(once.returns.mean()),
                "episode_length": float(once.lengths.mean()),
            }
            if self.measured is not None:
                write_atomically(self.measured, json.dumps(known, indent=2) + "\n")
        return Measured(**known[name])

    def play(self, player: Player, policy: Any, purpose: str, each: np.ndarray, origin: Origin) -> Episodes:
        tape = player.play(policy, named_key(self.config.seed, purpose), each)
        return tape.episodes(origin, player.actions, each)

    def random(self) -> Played:
        player = self.random_player
        return Played(player, None, self.measure(player, None, "random"), "uniform actions")

    def path(self, tier: str) -> Path:
        if self.format == "minari":
            return self.out / "minari" / re.sub(r"[^-\w]+", "-", self.config.env) / f"{tier}-v0"
        return self.out / f"{tier}.{'npz' if self.format == 'npz' else 'hdf5'}"

    def episodes_of(self, sources: Sources, tier: str) -> int | None:
        """How many episodes `tier` gets, where that can be chosen."""
        if tier == "medium-expert":
            return sum(self.episodes_of(sources, part) or 0 for part in MIXED)
        source = sources[tier]
        return math.ceil(self.steps / source.measured.episode_length) if isinstance(source, Played) else None

    def origin(self, sources: Sources, tier: str) -> Origin:
        parts = [sources[part] for part in (MIXED if tier == "medium-expert" else (tier,))]
        references = {
            name: source.measured.episode_return
            for name, of in (("ref_min", "random"), ("ref_max", "expert"))
            if isinstance(source := sources.get(of), Played)
        }
        return Origin(
            env=self.config.env,
            keep=self.config.observation.keep,
            time_limit=self.config.observation.time_limit,
            tier=tier,
            algorithm="; ".join(part.algorithm for part in parts),
            seed=self.config.seed,
            versions=json.dumps(versions()),
            **references,
        )

    def write(self, sources: Sources, wanted: Sequence[Tier]) -> None:
        """Makes those of the tiers that are not there yet, and prints what there is."""
        made: dict[str, Episodes] = {}
        print(f"{'tier':14}{'episodes':>10}{'steps':>11}{'mean return':>13}{'score':>8}  file")
        for tier in sorted(wanted, key=lambda tier: (tier == "medium-expert", TIERS.index(tier))):
            path = self.path(tier)
            episodes = self.existing(sources, tier) or self.make(sources, tier, made)
            made[tier] = episodes
            score = "" if episodes.origin.ref_max is None else f"{episodes.score(episodes.returns.mean()):.1f}"
            print(
                f"{tier:14}{len(episodes.lengths):>10,}{len(episodes.reward):>11,}{episodes.returns.mean():>13.3f}"
                f"{score:>8}  {path}",
                flush=True,
            )

    def existing(self, sources: Sources, tier: str) -> Episodes | None:
        """The dataset of an earlier call, if this one would make the same."""
        try:
            found = load(self.path(tier))
        except BadRequest:
            return None
        stable = replace(found.origin, score=None, versions="")
        same = stable == replace(self.origin(sources, tier), versions="")
        return found if same and self.episodes_of(sources, tier) in (None, len(found.lengths)) else None

    def make(self, sources: Sources, tier: str, made: Mapping[str, Episodes]) -> Episodes:
        origin = self.origin(sources, tier)
        if tier == "medium-expert":
            parts = [made.get(part) or self.existing(sources, part) or self.collect(sources, part) for part in MIXED]
            episodes = joined(parts, origin)
        else:
            episodes = self.collect(sources, tier)
        save(episodes, self.path(tier))
        return episodes

    def collect(self, sources: Sources, tier: str) -> Episodes:
        source, origin = sources[tier], self.origin(sources, tier)
        if isinstance(source, Replayed):
            chunks = [Tape.load(source.recordings / f"{n}.npz") for n in range(1, source.last + 1)]
            return Tape.joined(chunks).episodes(origin, source.actions)
        count = self.episodes_of(sources, tier) or 0
        # The same number in every environment, or one more in the first: an episode counts however long it takes.
        each = count // LANES + (np.arange(LANES) < count % LANES)
        episodes = self.play(source.player, source.policy, f"tier {tier}", each, origin)
        if origin.ref_max is None:
            return episodes
        return replace(episodes, origin=replace(origin, score=float(episodes.score(episodes.returns.mean()))))


# ---------------------------------------------------------------------------------------------------- the commands


def make_tiers(preset: str, config: Experiment, options: Tiers) -> None:
    """Trains PPO once in `<out>/training` and records tiers of it; with the tier random alone nothing is trained.

    Raises:
        BadRequest, Diverged, Interrupted: see `engram.errors`; the same call goes on where it was.
    """
    config = as_recorded(config)
    if config.seeds != 1:
        raise BadRequest(f"a dataset is made from one run: --seeds must be 1, got {config.seeds}")
    workshop = make_workshop(config, options)
    player = workshop.random_player  # refuses what cannot be recorded before anything is written
    if {*options.tiers} == {"random"}:
        workshop.write({"random": workshop.random()}, ("random",))
        return
    agent = make_ppo(config, Build(record=True))
    chunks, folder = divide(config, agent).chunks, workshop.out / "training"

    def keep(folder: Path, chunk: int, record: Step, states: Any) -> None:
        """One chunk: its steps `[updates, 1, T, B, ...]` in the order of time, and the policy after it."""
        steps = jax.tree.map(lambda x: x[:, 0].reshape(-1, *x.shape[3:]), record)
        Tape.of(steps).save(folder / RECORDINGS / f"{chunk}.npz")
        save_policy(policy_of(agent, jax.tree.map(lambda x: x[0], states)), folder / "policies" / f"{chunk}.npz")

    try:
        train(config, preset, Output(folder, resume=True, quiet=options.quiet), agent, keep)
    except Interrupted as stopped:
        raise Interrupted(f"{str(stopped).partition(';')[0]}; repeat the command to go on where it was") from None

    player, template = recorded_player(agent)
    described = f"PPO with memory {config.memory} (preset {preset})"
    steps = divide(config, agent).updates_per_chunk * agent.steps_per_update
    workshop = replace(workshop, measured=folder / "measured.json")

    def played(chunk: int) -> Played:
        policy = load_policy(folder / "policies" / f"{chunk}.npz", template)
        measured = workshop.measure(player, policy, f"checkpoint {chunk}")
        return Played(player, policy, measured, f"{described}, after {chunk * steps:,} steps")

    def replayed(last: int) -> Replayed:
        return Replayed(folder / RECORDINGS, last, player.actions, f"{described}, its first {last * steps:,} steps")

    sources = {"random": workshop.random(), "expert": played(chunks), "full-replay": replayed(chunks)}
    refuse_poor(sources)
    if any("medium" in tier for tier in options.tiers):
        chunk, sources["medium"] = find_medium(sources, played, chunks)
        sources["medium-replay"] = replayed(chunk)
    workshop.write(sources, options.tiers)


def find_medium(sources: Sources, played: Callable[[int], Played], chunks: int) -> tuple[int, Played]:
    """The first checkpoint that scores a third of the expert, and its number."""
    low, high = (sources[tier].measured.episode_return for tier in ("random", "expert"))
    for chunk in range(1, chunks + 1):
        medium = played(chunk)
        score = normalised_score(medium.measured.episode_return, low, high)
        if score >= MEDIUM:
            notify(f"medium is checkpoint {chunk} of {chunks}, which scores {score:.1f}")
            if score > MEDIUM_HIGH:
                notify(
                    "that is a lot for medium: with more --log-points, in a new folder, there may be one closer to 33"
                )
            return chunk, medium
    raise BadRequest("no checkpoint scores a third of the expert: train longer, or with more --log-points")


def refuse_poor(sources: Sources) -> None:
    low, high = (sources[tier].measured.episode_return for tier in ("random", "expert"))
    if high <= low:
        raise BadRequest(f"the expert's return {high:.3f} is not above that of random actions, {low:.3f}: train longer")


def record_expert(options: Expert) -> None:
    run = Run.load(options.run)
    refuse_other_agents(run.config)
    if not run.is_finished:
        raise BadRequest(f"{options.run} is not finished: continue it with train.py --resume")
    stored = cast(PPOExperiment, run.config)
    trained = run.build()
    states, _ = run.restore(trained)
    policy = policy_of(trained, jax.tree.map(lambda x: x[0], states))
    config = as_recorded(stored)
    workshop = make_workshop(config, options)
    player, _ = recorded_player(make_ppo(replace(config, seeds=1), Build(record=True)))
    measured = workshop.measure(player, policy, "expert")
    what = f"PPO with memory {config.memory}, a finished run"
    sources: Sources = {"random": workshop.random(), "expert": Played(player, policy, measured, what)}
    refuse_poor(sources)
    workshop.write(sources, options.tiers)


def make_pendulum(options: PendulumNoise) -> None:
    from engram.envs.datasets import swing_up  # with gymnax, which takes seconds to import

    made = swing_up.noisy(options.episodes, options.seed, options.mask_velocity, json.dumps(versions()))
    save(made, options.out)
    levels = made.returns.reshape(len(swing_up.NOISE), -1).mean(axis=1)
    for noise, level in zip(swing_up.NOISE, levels, strict=True):
        print(f"noise {noise}: mean return {level:.1f}, score {made.score(level):.1f}")
    print(f"{describe_size(made)}, mean return {made.returns.mean():.1f}: {options.out}")


def convert(options: Convert) -> None:
    if options.out.suffix == ENDING:
        episodes = unpack(options.source, options.out, options.max_episode_steps)
    else:
        episodes = load(options.source, options.max_episode_steps)
        save(episodes, options.out)
    print(f"{describe_size(episodes)}: {options.out}")


def describe_size(episodes: Episodes) -> str:
    return f"{len(episodes.lengths):,} episodes, {len(episodes.reward):,} steps"


def refuse_other_agents(config: Experiment) -> None:
    """Raises BadRequest for agents whose steps cannot be recorded."""
    if not spec_of(config).adapts:
        raise BadRequest(f"episodes are recorded of PPO alone, not of {config.agent}")


def as_recorded(config: Experiment) -> PPOExperiment:
    """`config` with evaluations as policies are recorded: in the environment of training, with sampled actions.

    Raises:
        BadRequest: its agent cannot be recorded.
    """
    refuse_other_agents(config)
    config = cast(PPOExperiment, config)
    return replace(config, eval_env="", ppo=replace(config.ppo, eval_envs=LANES, eval_greedy=False))


def make_workshop(config: PPOExperiment, options: Tiers | Expert) -> Workshop:
    out = options.out or Path("runs") / "datasets" / folder_name(config.env, config.label)
    return Workshop(config, out, options.steps, options.format)


def recorded_player(agent: PPO) -> tuple[Player, Policy]:
    """A player of the policies of `agent`, and the shapes of such a policy."""
    state = jax.eval_shape(agent.init, jax.random.key(0))
    return policy_player(agent, state), policy_of(agent, state)
