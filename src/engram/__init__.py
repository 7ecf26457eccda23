"""Engram: reinforcement learning in JAX with pluggable memory."""

__version__ = "0.2.0"
