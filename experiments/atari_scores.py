"""Published scores of Atari's games. It imports no emulator."""

import csv
from importlib import resources


def published() -> dict[str, dict[str, float]]:
    """Published scores by column (random, human, then methods) and game."""
    text = resources.files("engram.configs").joinpath("atari_scores.csv").read_text()
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    columns = [name for name in rows[0] if name != "game"]
    return {name: {row["game"]: float(row[name]) for row in rows} for name in columns}
