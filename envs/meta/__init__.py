"""Families of tasks for learning in context, in trials of several episodes: see `envs.meta.trials`."""

from collections.abc import Callable

from envs.base import Environment
from envs.meta.bandits import BernoulliBandit, GaussianBandit
from envs.meta.trials import constructor

NAMES: dict[str, Callable[..., Environment]] = {
    "Bandit": constructor(BernoulliBandit, pulls=100),
    "GaussianBandit": constructor(GaussianBandit, pulls=100),
}
"""Public names of the family `meta`."""
