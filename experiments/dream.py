"""Pictures of what the world model of a run makes of fresh episodes.

`world_model.png` and `world_model.gif` show what was played above, and below it what the model reconstructs of the
first `context` steps and then imagines from the actions alone. Under each frame stand the reward (played above,
predicted below) and "end" where the episode ends or the model expects it to; what it imagines after that is pale.
"""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from engram.agents.common.environments import DREAM
from engram.agents.common.spec import Build, Dreaming
from engram.errors import BadRequest
from engram.experiments.options import Dream as Options
from engram.experiments.runs import Run
from engram.training.programs import jit, keys_afterwards

if TYPE_CHECKING:
    from PIL.Image import Image

LANES = 3
"""Environments that are drawn."""
FRAME = 64  # pixels, about
CAPTION = 15
GAP = 2
GIF_MS = 200
CHANNELS = np.array(
    [
        *([31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189]),
        *([140, 86, 75], [227, 119, 194], [127, 127, 127], [188, 189, 34], [23, 190, 207]),
    ],
    np.float32,
)
"""Colours of the channels of pictures that have none."""


def dream(options: Options) -> list[Path]:
    """Draws a dream of a run and returns the pictures' paths.

    Raises:
        BadRequest: the run has no world model, or no checkpoint.
    """
    run = Run.load(options.run)
    dreaming = run.spec.dreaming
    if dreaming is None:
        raise BadRequest(f"{options.run} is a run of {run.config.agent}, which has no world model")
    with closing(run.build(Build(emulator_seed=(options.seed, DREAM)))) as agent:
        states, _ = run.restore(agent)
        return draw_dream(dreaming, agent, states, options.run, options.context, options.horizon, options.seed)


def draw_dream(
    dreaming: Dreaming,
    agent: Any,
    states: Any,
    folder: Path,
    context: int = 8,
    horizon: int = 16,
    seed: int = 2_000,
) -> list[Path]:
    """Draws a dream of the first seed of `states` into `folder`. `agent`: one whose `eval_env` was not played before,
    where that is an emulator. Returns the pictures' paths."""
    state = jax.tree.map(lambda x: x[0], states)
    compiled = jit(partial(dreaming.dream, agent), static_argnums=(2, 3))
    dream = compiled(state, keys_afterwards(seed, 1)[0], context, horizon)
    dream = jax.tree.map(lambda x: np.asarray(x)[:, :LANES], dream)
    played, seen, imagined = (
        to_pictures(x, dreaming.shape(agent)) for x in (dream.steps.obs, dream.reconstruction, dream.imagined)
    )
    # What is imagined after an imagined end means nothing: pale, and without words.
    ended = (dream.terminal > 0.5) & (np.arange(context + horizon)[:, None] >= context)
    over = np.cumsum(ended, axis=0) - ended > 0
    imagined = np.where(over[..., None, None, None], 255 - (255 - imagined) // 4, imagined)
    dream = dream.replace(reward=np.where(over, 0.0, dream.reward), terminal=np.where(over, 0.0, dream.terminal))
    still, film = folder / "world_model.png", folder / "world_model.gif"
    strips(played, imagined, dream, context).save(still)
    frames = [side_by_side(played[t], seen[t], imagined[t], dream, t, context) for t in range(len(played))]
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=GIF_MS, loop=0)
    return [still, film]


def to_pictures(obs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Observations `obs[T, B, ...]` of `shape` as RGB `[T, B, height, width, 3]` uint8.

    Pictures of 1 or 3 channels are shown as they are, of more in one colour for each channel, vectors as a grey row.
    """
    obs = obs.reshape(*obs.shape[:2], *shape).astype(np.float32)
    if len(shape) != 3:
        grid = obs if len(shape) == 2 else obs.reshape(*obs.shape[:2], 1, -1)
        low, high = min(0.0, float(grid.min())), max(1.0, float(grid.max()))
        rgb = np.repeat((grid[..., None] - low) / (high - low) * 255.0, 3, axis=-1)
    elif shape[-1] in (1, 3):
        bright = 255.0 if obs.max() <= 1.0 else 1.0
        rgb = np.repeat(obs * bright, 3 // shape[-1], axis=-1)
    else:
        colours = CHANNELS[np.arange(shape[-1]) % len(CHANNELS)]
        rgb = np.max(np.clip(obs, 0.0, 1.0)[..., None] * colours, axis=-2)
    pictures = np.clip(rgb, 0, 255).astype(np.uint8)
    scale = max(1, FRAME // max(pictures.shape[2:4]))
    return pictures.repeat(scale, axis=2).repeat(scale, axis=3)


def strips(played: np.ndarray, imagined: np.ndarray, dream: Any, context: int) -> "Image":
    """One row of time for each lane, played above imagined; the model saw what is left of the red line."""
    from PIL import Image, ImageDraw  # only once there is something to draw

    steps, lanes, height, width = played.shape[:4]
    cell, row = max(width, 34) + GAP, 2 * (height + CAPTION) + 3 * GAP
    sheet = Image.new("RGB", (steps * cell + GAP, lanes * row), "white")
    pen = ImageDraw.Draw(sheet)
    for b in range(lanes):
        for t in range(steps):
            for i, frames in enumerate((played, imagined)):
                corner = GAP + t * cell, b * row + i * (height + CAPTION)
                sheet.paste(Image.fromarray(frames[t, b]), corner)
                words, end = caption(dream, t, b, predicted=i == 1)
                pen.text((corner[0], corner[1] + height), words, "red" if end else "black", font_size=10)
        line = GAP // 2 + context * cell
        pen.line((line, b * row, line, (b + 1) * row - 2 * GAP), "red", 1)
    return sheet


def side_by_side(
    played: np.ndarray, seen: np.ndarray, imagined: np.ndarray, dream: Any, t: int, context: int
) -> "Image":
    """Step `t` of each lane: played, reconstructed, imagined."""
    from PIL import Image, ImageDraw

    lanes, height, width = played.shape[:3]
    cell = max(width, 80) + GAP
    sheet = Image.new("RGB", (3 * cell, CAPTION + lanes * (height + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, title in enumerate(("played", "reconstructed", "imagined" if t >= context else "seen")):
        pen.text((i * cell, 0), title, "black", font_size=11)
    for b in range(lanes):
        for i, frame in enumerate((played, seen, imagined)):
            corner = i * cell, CAPTION + b * (height + CAPTION)
            sheet.paste(Image.fromarray(frame[b]), corner)
            if i != 1:
                words, end = caption(dream, t, b, predicted=i == 2)
                pen.text((corner[0], corner[1] + height), words, "red" if end else "black", font_size=10)
    return sheet


def caption(dream: Any, t: int, b: int, predicted: bool) -> tuple[str, bool]:
    """Reward of step `t` of lane `b`, and whether it ends there."""
    reward = float(dream.reward[t, b] if predicted else dream.steps.reward[t, b])
    end = bool(dream.terminal[t, b] > 0.5 if predicted else dream.steps.terminal[t, b])
    words = "" if abs(reward) < 0.05 else f"{reward:+.1f}"
    return f"{words} end" if end else words, end
