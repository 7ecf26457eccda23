"""Recorded experience for offline learning."""

from envs.datasets.episodes import Episodes, Origin

__all__ = ["Episodes", "Origin"]
