"""Evaluate a finished or running run from its newest checkpoint.

    python scripts/evaluate.py RUN_DIR [--episodes N] [--seed K] [--greedy True] [--gif-steps N]

Prints the return of every seed, writes `evaluation.json` and, where the environment can be drawn, `eval.gif`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from engram.agents.drama.agent import Drama
from engram.agents.offline.base import OfflineAgent
from engram.agents.offline.sequence_policy import SequenceAgent
from engram.agents.ppo.agent import PPO
from engram.agents.ppo.conservative import Conservative
from engram.configs.experiment import DramaExperiment, OfflineExperiment, PPOExperiment, ValueExperiment
from engram.errors import BadRequest
from engram.scripts.common import from_dict, is_recorded, parse, restored, run_script, with_episodes
from engram.scripts.factory import make_agent
from engram.training.folder import read_config, say, write_atomically
from engram.training.loop import evaluation, seed_keys
from engram.training.metrics import number
from engram.training.statistics import summarise

FRAME_MS = 150
CAPTION = 22  # height in pixels of the line under each picture


@dataclass(frozen=True)
class Options:
    """Evaluate a run from its newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    episodes: int = 64
    """Episodes per seed."""
    seed: int = 1_000
    """Seed of the evaluation's environments."""
    greedy: bool | None = None
    """Take the most likely action instead of a sampled one (default: as the run was configured)."""
    gif_steps: int = 150
    """Steps of the first seed to draw into eval.gif (0: draw nothing)."""


def main(arguments: Sequence[str]) -> int:
    options = parse(Options, None, arguments, "evaluate.py", Options.__doc__ or "")
    if options.episodes < 1 or options.gif_steps < 0:
        raise BadRequest("--episodes must be at least 1 and --gif-steps at least 0")
    stored = read_config(options.run)
    preset = stored.get("preset")
    config = from_dict(stored)
    if isinstance(config, PPOExperiment):
        greedy = config.ppo.eval_greedy if options.greedy is None else options.greedy
        config = with_episodes(replace(config, ppo=replace(config.ppo, eval_greedy=greedy)), options.episodes)
    elif isinstance(config, DramaExperiment):
        greedy = config.drama.eval_greedy if options.greedy is None else options.greedy
        config = with_episodes(replace(config, drama=replace(config.drama, eval_greedy=greedy)), options.episodes)
    elif isinstance(config, OfflineExperiment):
        if options.greedy is False:
            raise BadRequest(
                "what learned from recorded episodes takes the best action and has none to sample: "
                "leave out --greedy False"
            )
        greedy = True
        config = with_episodes(config, options.episodes)
    else:
        raise BadRequest(
            f"{config.agent} learns while it acts and has no episodes to play afterwards: "
            f"what it earned is in {options.run / 'summary.json'}"
        )
    learner = make_agent(config, options.seed, is_recorded(options.run))
    agent = learner.ppo if isinstance(learner, Conservative) else learner
    assert isinstance(agent, PPO | Drama | SequenceAgent | OfflineAgent)
    states, manifest = restored(options.run, learner, config)
    states = states.ppo if isinstance(learner, Conservative) else states  # evaluated is the learner alone

    metrics = jax.device_get(jax.jit(evaluation(agent, config.seeds))(states, seed_keys(options.seed, config.seeds)))
    result: dict[str, Any] = {
        "preset": preset,
        "env": config.evaluated,
        config.choice: config.chosen,
        **({"memory": config.memory} if isinstance(config, ValueExperiment) else {}),
        "chunk": manifest["chunk"],
        "episodes_per_seed": options.episodes,
        "greedy": greedy,
        "eval_return": summarise([number(v) for v in metrics["eval/return"]]),
        "eval_length": [number(v) for v in metrics["eval/length"]],
    }
    if "eval/finished" in metrics:
        result["finished"] = [number(v) for v in metrics["eval/finished"]]
    if "eval/score" in metrics:
        result["eval_score"] = summarise([number(v) for v in metrics["eval/score"]])
    targets = {
        name.removeprefix("eval/"): summarise([number(v) for v in values])
        for name, values in metrics.items()
        if "return_at_" in name or "score_at_" in name
    }
    if targets:
        result["targets"] = targets
    write_atomically(options.run / "evaluation.json", json.dumps(result, indent=2) + "\n")
    for index, score in enumerate(result["eval_return"]["per_seed"]):
        print(f"seed {config.seed + index}: return {score:.4f}" if score is not None else f"seed {index}: unfinished")
    print(f"mean {result['eval_return']['mean']}, 95 % interval {result['eval_return']['ci95']}")
    if "eval_score" in result:
        print(f"normalised score {result['eval_score']['mean']:.1f}")
    for name, values in targets.items():
        print(f"{name}: mean {values['mean']:.4f}")
    if isinstance(agent, SequenceAgent):
        say("sequence policies are not drawn: no eval.gif")
        return 0
    if options.gif_steps and agent.env.is_host_pool:
        say(f"{config.evaluated} runs in an emulator that cannot be drawn: no eval.gif")
    elif options.gif_steps:
        state = jax.tree.map(lambda x: x[0], states)
        picture = options.run / "eval.gif"
        if draw(agent, state, jax.random.key(options.seed), options.gif_steps, picture):
            say(f"wrote {picture}")
        else:
            say(f"{config.evaluated} cannot be drawn: no eval.gif")
    return 0


def draw(agent: PPO | Drama | OfflineAgent, state: Any, key: jax.Array, steps: int, out: Path) -> bool:
    """Draws `steps` steps of one environment under the policy of `state` (one seed) into the GIF `out`.

    Returns:
        False if the environment has no picture.
    """
    from PIL import Image, ImageDraw  # only once there is something to draw

    env = agent.env if isinstance(agent, OfflineAgent) else agent.eval_env
    env_states, actions, returns = jax.device_get(jax.jit(agent.record, static_argnums=2)(state, key, steps))
    frames = []
    try:
        for t in range(steps):
            now = jax.tree.map(lambda x: x[t], env_states)
            picture = Image.fromarray(np.asarray(env.render(now, env.default_params)))
            frame = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
            frame.paste(picture)
            action = np.array2string(actions[t, 0], precision=2)
            text = f"action {action}   return after it {returns[t, 0]:+.3f}"
            ImageDraw.Draw(frame).text((8, picture.height + 2), text, "black", font_size=14)
            frames.append(frame)
    except NotImplementedError:
        return False
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    return True


if __name__ == "__main__":
    run_script(main)
