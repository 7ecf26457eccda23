"""Evaluating a run from its newest checkpoint: returns by seed, and a moving picture."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engram.agents.common.environments import EVALUATE
from engram.agents.common.spec import Build
from engram.envs.base import VectorEnvironment
from engram.errors import BadRequest
from engram.experiments.options import Evaluate as Options
from engram.experiments.runs import Run
from engram.training.folder import write_atomically
from engram.training.metrics import finite_or_none
from engram.training.programs import evaluation, jit, keys_afterwards
from engram.training.statistics import in_words, summarise
from engram.training.stderr import notify

FRAME_MS = 150
CAPTION = 22  # height in pixels of the line under each picture


def evaluate(options: Options) -> dict[str, Any]:
    """Evaluates a run, writes `evaluation.json` and, where the environment can be drawn, `eval.gif`.

    Returns:
        the contents of `evaluation.json`.

    Raises:
        BadRequest: there is nothing to evaluate, or not in the way that is asked for.
    """
    run = Run.load(options.run)
    play, config = run.spec.play, run.config
    if play is None:
        raise BadRequest(
            f"{config.agent} learns while it acts and has no episodes to play afterwards: "
            f"what it earned is in {run.folder / 'summary.json'}"
        )
    config = play.configure(config, options.episodes, options.greedy)
    run = dataclasses.replace(run, config=config)
    with closing(run.build(Build(emulator_seed=(options.seed, EVALUATE)))) as learner:
        states, progress = run.restore(learner)
        agent, states = play.player(learner, states)
        keys = keys_afterwards(options.seed, config.seeds)
        metrics = jax.device_get(jit(evaluation(agent, config.seeds))(states, keys))
    result: dict[str, Any] = {
        "preset": run.preset,
        **{name: value for name, value in config.identity.items() if name != "dataset"},
        "env": config.evaluated,
        "chunk": progress.chunk,
        "episodes_per_seed": options.episodes,
        "greedy": play.is_greedy(config),
        "eval_return": summarise([finite_or_none(v) for v in metrics["eval/return"]]),
        "eval_length": [finite_or_none(v) for v in metrics["eval/length"]],
    }
    if "eval/finished" in metrics:
        result["finished"] = [finite_or_none(v) for v in metrics["eval/finished"]]
    if "eval/score" in metrics:
        result["eval_score"] = summarise([finite_or_none(v) for v in metrics["eval/score"]])
    targets = {
        name.removeprefix("eval/"): summarise([finite_or_none(v) for v in values])
        for name, values in metrics.items()
        if "return_at_" in name or "score_at_" in name
    }
    if targets:
        result["targets"] = targets
    write_atomically(run.folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    if options.gif_steps:
        draw_episodes(run, agent, states, options)
    return result


def draw_episodes(run: Run, agent: Any, states: Any, options: Options) -> None:
    """Draws `eval.gif`, or says why it cannot be."""
    play = run.spec.play
    assert play is not None
    if play.scene is None:
        notify(f"{run.config.agent} is not drawn: no eval.gif")
    elif agent.env.is_host_pool:
        notify(f"{run.config.evaluated} runs in an emulator that cannot be drawn: no eval.gif")
    else:
        state = jax.tree.map(lambda x: x[0], states)
        picture, key = run.folder / "eval.gif", keys_afterwards(options.seed, 1)[0]
        if draw(agent, play.scene(agent), state, key, options.gif_steps, picture):
            notify(f"wrote {picture}")
        else:
            notify(f"{run.config.evaluated} cannot be drawn: no eval.gif")


def draw(agent: Any, env: VectorEnvironment, state: Any, key: jax.Array, steps: int, out: Path) -> bool:
    """Draws `steps` steps of one environment of `env` under the policy of `state` (one seed) into the GIF `out`.

    Returns:
        False if the environment has no picture.
    """
    from PIL import Image, ImageDraw  # only once there is something to draw

    env_states, actions, returns = jax.device_get(jit(agent.record, static_argnums=2)(state, key, steps))
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


def lines(result: dict[str, Any], first_seed: int) -> list[str]:
    """Lines for a person to read, of `evaluate`'s result."""
    whole, episodes = result["eval_return"], result["episodes_per_seed"]
    text = []
    for index, score in enumerate(whole["per_seed"]):
        share = result["finished"][index] if "finished" in result else 1.0
        words = f"no return, none of {episodes} episodes ended" if score is None else f"return {score:.4f}"
        if score is not None and share < 1:
            words += f" of the {round(share * episodes)} of {episodes} episodes that ended"
        text.append(f"seed {first_seed + index}: {words}")
    text.append(f"mean {in_words(whole, 4)}")
    if whole["ci95"] is not None:
        text[-1] += f", 95 % t interval of the mean over seeds; interquartile mean {whole['iqm']:.4f}"
    if "eval_score" in result:
        text.append(f"normalised score {in_words(result['eval_score'], 1)}")
    return text + [f"{name}: mean {in_words(values, 4)}" for name, values in result.get("targets", {}).items()]
