"""Pictures of games: a Pillow canvas with text, playing cards and boards, returned as RGB arrays. Host only."""

from __future__ import annotations  # types of Pillow, which is imported once something is drawn

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engram.envs.popgym.deck import CARDS, NUM_SUITS

if TYPE_CHECKING:
    from PIL import ImageDraw

Color = tuple[int, int, int]

BACKGROUND: Color = (27, 94, 72)
PAPER: Color = (250, 248, 240)
INK: Color = (30, 30, 34)
RED: Color = (198, 40, 48)
GOLD: Color = (244, 190, 70)
BACK: Color = (44, 72, 132)
FADED: Color = (150, 190, 172)
WATER: Color = (88, 140, 190)

RANK_NAMES = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
SUIT_NAMES = ("spades", "diamonds", "clubs", "hearts")
COLOR_NAMES = ("black", "red")


def canvas(width: int = 320, height: int = 280, color: Color = BACKGROUND) -> ImageDraw.ImageDraw:
    """A drawing surface of one colour; `picture` turns it into an array."""
    from PIL import Image, ImageDraw

    return ImageDraw.Draw(Image.new("RGB", (width, height), color))


def picture(draw: ImageDraw.ImageDraw) -> np.ndarray:
    """What was drawn, `[height, width, 3]` uint8."""
    return np.asarray(draw._image)


def text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    string: str,
    size: float = 16,
    color: Color = PAPER,
    anchor: str = "mm",
) -> None:
    """Writes `string` with its `anchor` (Pillow's two letters, horizontal then vertical) at `xy`."""
    from PIL import ImageFont

    draw.text(xy, string, fill=color, font=ImageFont.load_default(size), anchor=anchor)


def caption(draw: ImageDraw.ImageDraw, title: str, step: int, limit: int | None) -> None:
    """The line at the top: what is played on the left, the step counter on the right."""
    width = draw._image.width
    text(draw, (10, 16), title, 16, PAPER, "lm")
    text(draw, (width - 10, 16), f"step {step}" + (f" / {limit}" if limit else ""), 16, GOLD, "rm")


def suit_symbol(draw: ImageDraw.ImageDraw, center: tuple[float, float], size: float, suit: int) -> None:
    """One of spades, diamonds, clubs, hearts (popgym's order), `size` pixels high."""
    x, y = center
    s = size / 2
    color = RED if suit % 2 else INK

    def disc(dx: float, dy: float, r: float) -> None:
        draw.ellipse((x + (dx - r) * s, y + (dy - r) * s, x + (dx + r) * s, y + (dy + r) * s), fill=color)

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x + px * s, y + py * s) for px, py in points], fill=color)

    stem = ((0, 0), (0.35, 1), (-0.35, 1))
    if suit == 0:
        polygon((0, -1), (0.84, 0.15), (-0.84, 0.15))
        disc(-0.43, 0.28, 0.44)
        disc(0.43, 0.28, 0.44)
        polygon(*stem)
    elif suit == 1:
        polygon((0, -1), (0.75, 0), (0, 1), (-0.75, 0))
    elif suit == 2:
        disc(0, -0.52, 0.44)
        disc(-0.48, 0.2, 0.44)
        disc(0.48, 0.2, 0.44)
        polygon(*stem)
    else:
        disc(-0.43, -0.42, 0.47)
        disc(0.43, -0.42, 0.47)
        polygon((-0.86, -0.22), (0.86, -0.22), (0, 1))


def card(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], width: float, index: int | None, label: str = ""
) -> None:
    """A playing card of proportions 5 : 7 with its upper left corner at `corner`; `index` None is face down.

    `index` counts as in `engram.envs.popgym.deck`; `label` is written below the card.
    """
    x, y = corner
    height = 1.4 * width
    radius = width / 10
    box = (x, y, x + width, y + height)
    if index is None:
        draw.rounded_rectangle(box, radius, fill=BACK, outline=PAPER, width=max(1, round(width / 30)))
    else:
        draw.rounded_rectangle(box, radius, fill=PAPER)
        suit, rank = index % NUM_SUITS, index % CARDS // NUM_SUITS
        text(draw, (x + width / 2, y + 0.3 * height), RANK_NAMES[rank], 0.38 * width, RED if suit % 2 else INK)
        suit_symbol(draw, (x + width / 2, y + 0.68 * height), 0.42 * width, suit)
    if label:
        text(draw, (x + width / 2, y + height + 12), label, 14)


def highlight(draw: ImageDraw.ImageDraw, corner: tuple[float, float], width: float) -> None:
    """A golden frame around the card of this `width` at `corner`."""
    x, y = corner
    draw.rounded_rectangle((x - 1, y - 1, x + width + 1, y + 1.4 * width + 1), width / 10, outline=GOLD, width=2)


def grid(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    width: float,
    fills: Sequence[Sequence[Color]],
    labels: Sequence[Sequence[str]] | None = None,
) -> None:
    """A board of square cells, `width` pixels wide: one colour and (optionally) one short text per cell."""
    x, y = corner
    size = width / len(fills[0])
    for i, row in enumerate(fills):
        for j, fill in enumerate(row):
            left, top = x + j * size, y + i * size
            draw.rectangle((left, top, left + size - 2, top + size - 2), fill=fill)
            if labels is not None and labels[i][j]:
                text(draw, (left + size / 2 - 1, top + size / 2 - 1), labels[i][j], 0.5 * size, INK)
